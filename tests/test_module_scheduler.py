"""The module's own LR scheduler: refused, replaced or multiplied by a method; and the learning rate that it means."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim import SGD, AdamW, Optimizer
from torch.optim import lr_scheduler as sched

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    CurveRamp,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateSchedule,
    NormalizedWeightDecay,
)
from lightning_lr.base_rates import base_learning_rates, base_values
from lightning_lr.callbacks import hypergradient_follower
from tests.support.toy import Probe, ResumableLoader, Toy, data, fit, weights

UPDATES = 18


class Doubling(sched.LRScheduler):
    """A user's own: up to twice the optimizer's rate and down again."""

    def get_lr(self) -> list[Any]:
        return [base * (1 + min(self.last_epoch, UPDATES - self.last_epoch) / 9) for base in self.base_lrs]


def hf_linear(optimizer: Optimizer) -> Any:
    """As ``transformers.get_linear_schedule_with_warmup(optimizer, 5, 18)``."""
    return sched.LambdaLR(optimizer, lambda step: step / 5 if step < 5 else max(0.0, (UPDATES - step) / (UPDATES - 5)))


def one_cycle(optimizer: Optimizer) -> Any:
    return sched.OneCycleLR(optimizer, 0.4, total_steps=UPDATES + 1)


SCHEDULERS: dict[str, tuple[Callable[[Optimizer], Any], float]] = {
    # the scheduler, and the rate that the user means for an optimizer of 0.1
    "OneCycleLR": (one_cycle, 0.4),
    "CyclicLR": (lambda o: sched.CyclicLR(o, 1e-3, 0.5, step_size_up=4), 0.5),
    "CosineAnnealingLR": (lambda o: sched.CosineAnnealingLR(o, UPDATES), 0.1),
    "ExponentialLR": (lambda o: sched.ExponentialLR(o, 0.9), 0.1),
    "LinearLR, longer than the run": (lambda o: sched.LinearLR(o, 0.1, 1.0, 100), 0.1),
    "Hugging Face": (hf_linear, 0.1),
    "LambdaLR above 1": (lambda o: sched.LambdaLR(o, lambda t: 1 + min(t, 7)), 0.8),
    "warm-up by hand, longer than the run": (lambda o: sched.LambdaLR(o, lambda t: min(1.0, (t + 1) / 1000)), 0.1),
    "MultiplicativeLR": (lambda o: sched.MultiplicativeLR(o, lambda t: 2.0 if t < 4 else 0.5), 0.8),
    "SequentialLR": (
        lambda o: sched.SequentialLR(o, [sched.LinearLR(o, 0.1, 1.0, 5), sched.CosineAnnealingLR(o, 13)], [5]), 0.1),
    "ChainedScheduler": (
        lambda o: sched.ChainedScheduler([sched.ExponentialLR(o, 0.9), sched.StepLR(o, 5, 0.5)], o), 0.1),
    "ReduceLROnPlateau": (lambda o: sched.ReduceLROnPlateau(o, factor=0.5, patience=0), 0.1),
    "own class": (Doubling, 0.2),
}  # fmt: skip


def configured(name: str, cls: Any = SGD, **arguments: Any) -> Callable[[Any], Any]:
    def configure(module: Any) -> Any:
        optimizer = cls(module.parameters(), lr=0.1, **arguments)
        scheduler = SCHEDULERS[name][0](optimizer)
        config = {"scheduler": scheduler, "interval": "step"}
        if name == "ReduceLROnPlateau":
            config["monitor"] = "train_loss"
        return {"optimizer": optimizer, "lr_scheduler": config}

    return configure


def cosine(update: int) -> float:
    return (1 + math.cos(math.pi * update / UPDATES)) / 2


@pytest.mark.parametrize("name", SCHEDULERS)
def test_base_rate_is_the_rate_that_the_user_means(name: str) -> None:
    make, meant = SCHEDULERS[name]
    optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    before = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    state = {k: v for k, v in scheduler.state_dict().items() if not k.startswith("_schedulers")}
    assert base_learning_rates(optimizer, [scheduler], UPDATES) == pytest.approx([meant], rel=1e-15)
    assert [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups] == before
    assert {k: v for k, v in scheduler.state_dict().items() if not k.startswith("_schedulers")} == state


def test_momentum_that_is_cycled_has_the_optimizers_own_base() -> None:
    optimizer = AdamW([torch.nn.Parameter(torch.zeros(1))], lr=0.1, betas=(0.8, 0.99))
    scheduler = one_cycle(optimizer)
    assert optimizer.param_groups[0]["betas"] != (0.8, 0.99)
    assert base_values(optimizer, [scheduler]) == [{"lr": 0.4, "betas": (0.8, 0.99)}]


@pytest.mark.parametrize("name", SCHEDULERS)
def test_refuse_replace_and_multiply(name: str, tmp_path: Path) -> None:
    configure, meant = configured(name), SCHEDULERS[name][1]
    bare_probe = Probe()
    _, bare_trainer = fit([bare_probe], module=Toy(configure))
    if not name.startswith("LinearLR"):
        with pytest.raises(MisconfigurationException, match=r"choose with the argument module_scheduler: 'replace'"):
            fit([LearningRateSchedule(Cosine())], module=Toy(configure))
    replaced = Probe()
    _, trainer = fit([LearningRateSchedule(Cosine(), module_scheduler="replace"), replaced], module=Toy(configure))
    assert replaced.first == pytest.approx([meant * cosine(update) for update in range(UPDATES)], rel=1e-12)
    if name != "ReduceLROnPlateau":  # which follows the loss
        multiplied = Probe()
        fit([LearningRateSchedule(Cosine(), module_scheduler="multiply"), multiplied], module=Toy(configure))
        wanted = [lr * cosine(update) for update, lr in enumerate(bare_probe.first)]
        assert multiplied.first == pytest.approx(wanted, rel=1e-12)
        # the scheduler went on as without us, and the optimizer was given back to it
        assert trainer.optimizers[0].param_groups[0]["lr"] == bare_trainer.optimizers[0].param_groups[0]["lr"]


@pytest.mark.parametrize("name", ["OneCycleLR", "CosineAnnealingLR", "Hugging Face", "SequentialLR"])
def test_checkpoint_of_a_replaced_scheduler_goes_on_with_and_without_us(name: str, tmp_path: Path) -> None:
    configure = configured(name, momentum=0.9)
    bare = Probe("lr", "momentum")
    fit([bare], module=Toy(configure), loader=ResumableLoader(data(), 8))
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole_probe = Probe("lr", "momentum")
    schedule = LearningRateSchedule(Cosine(), module_scheduler="replace")
    whole, _ = fit(
        [schedule, whole_probe, save],
        module=Toy(configure),
        loader=ResumableLoader(data(), 8),
        enable_checkpointing=True,
    )
    assert {momentum for ((_, momentum),) in whole_probe.series} == {0.9}, "not cycled"
    for step in (3, 11):
        path = str(tmp_path / f"step={step}.ckpt")
        without, probe = Probe("lr", "momentum"), Probe("lr", "momentum")
        fit([without], module=Toy(configure), loader=ResumableLoader(data(), 8), ckpt_path=path)
        assert without.series == bare.series[step:]
        again = LearningRateSchedule(Cosine(), module_scheduler="replace")
        resumed, _ = fit([again, probe], module=Toy(configure), loader=ResumableLoader(data(), 8), ckpt_path=path)
        assert probe.series == whole_probe.series[step:]
        assert torch.equal(weights(resumed), weights(whole))


@pytest.mark.filterwarnings("ignore:AdaptiveWarmup")
def test_the_other_methods_that_refuse_have_the_choice() -> None:
    configure = configured("CosineAnnealingLR")
    for make in (
        lambda **choice: AdaptiveWarmup(0.01, 0.08, confidence=1 - 1e-12, patience=1, lr_scale=1e-9, **choice),
        lambda **choice: BatchSizeRamp(CurveRamp(Cosine(floor=0.25)), max_batch_size=8, **choice),
    ):
        with pytest.raises(MisconfigurationException, match=r"CosineAnnealingLR.*module_scheduler: 'replace'"):
            fit([make()], module=Toy(configure))
        alone, replaced, multiplied = Probe(), Probe(), Probe()
        fit([make(), alone], module=Toy(lambda module: SGD(module.parameters(), lr=0.1)))
        fit([make(module_scheduler="replace"), replaced], module=Toy(configure))
        fit([make(module_scheduler="multiply"), multiplied], module=Toy(configure))
        assert replaced.first == pytest.approx(alone.first, rel=1e-12)
        wanted = [lr * cosine(update) for update, lr in enumerate(alone.first)]
        assert multiplied.first == pytest.approx(wanted, rel=1e-9)


def test_choices_that_contradict_each_other_are_refused() -> None:
    callbacks: list[Callback] = [
        LearningRateSchedule(Constant(), module_scheduler="replace"),
        BatchSizeRamp(CurveRamp(Cosine()), module_scheduler="multiply"),
    ]
    with pytest.raises(MisconfigurationException, match="give both the same"):
        fit(callbacks, module=Toy(configured("CosineAnnealingLR")))
    with pytest.raises(ValueError, match="got module_scheduler='ignore'; allowed are"):
        LearningRateSchedule(Cosine(), module_scheduler="ignore")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["OneCycleLR", "CyclicLR", "LambdaLR above 1", "Hugging Face", "own class"])
def test_weight_decay_is_normalized_by_the_rate_that_is_meant(name: str) -> None:
    configure = configured(name, AdamW, weight_decay=0.2)
    if name == "CyclicLR":
        configure = _cyclic_adamw
    probe = Probe("lr", "weight_decay")
    fit([NormalizedWeightDecay(0.025), probe], module=Toy(configure))
    decay = 0.025 * math.sqrt(8 / (48 * 3))
    meant = SCHEDULERS[name][1]
    assert [wd for ((_, wd),) in probe.series] == pytest.approx([decay / meant] * UPDATES, rel=1e-12)


def _cyclic_adamw(module: Any) -> Any:
    optimizer = AdamW(module.parameters(), lr=0.1, weight_decay=0.2)
    scheduler = sched.CyclicLR(optimizer, 1e-3, 0.5, step_size_up=4, cycle_momentum=False)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def test_the_table_of_layers_shows_the_rate_that_is_meant(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_lr.callbacks.layerwise_lr_decay.rank_zero_info", said.append)
    fit([LayerwiseLRDecay(0.5, layers=["body", "head"])], module=Toy(configured("OneCycleLR")))
    table = next(text for text in said if text.startswith("LayerwiseLRDecay"))
    assert [line.split()[-1] for line in table.splitlines()[-2:]] == ["0.2", "0.4"]


def test_additive_hypergradients_are_relative_to_the_rate_that_is_meant() -> None:
    seen: list[list[float]] = []
    refine = hypergradient_follower.FactorLearner.refine

    def spied(self: Any, alignments: Any, base: Any, initial: Any) -> Any:
        seen.append(list(initial))
        return refine(self, alignments, base, initial)

    hypergradient_follower.FactorLearner.refine = spied  # type: ignore[method-assign]
    try:
        fit([HypergradientDescent(1e-4)], module=Toy(configured("OneCycleLR")))
    finally:
        hypergradient_follower.FactorLearner.refine = refine  # type: ignore[method-assign]
    assert seen == [[0.4]] * UPDATES


# ---------------------------------------------------------------------- silences
def test_two_of_a_kind_are_refused_in_our_words() -> None:
    with pytest.raises(MisconfigurationException, match="LearningRateSchedule: two of them are attached"):
        fit([LearningRateSchedule(Cosine()), LearningRateSchedule(Constant())])


@pytest.mark.parametrize("callback", [LayerwiseLRDecay(0.5), LearningRateSchedule(Cosine()), HypergradientDescent()])
def test_a_module_without_an_optimizer_is_refused_with_a_sentence(callback: Callback) -> None:
    with pytest.raises(MisconfigurationException, match="configure_optimizers returned no optimizer"):
        fit([callback], module=Toy(lambda module: None))


def _without_scheduler(module: Any) -> Any:
    return {"optimizer": SGD(module.parameters(), 0.1), "lr_scheduler": {"interval": "step"}}


@pytest.mark.parametrize("returned", [3, "adam", object, lambda module: list(module.parameters()), _without_scheduler])
def test_wrong_returns_of_configure_optimizers_keep_lightnings_message(returned: Any) -> None:
    def configure(module: Any) -> Any:
        return returned(module) if callable(returned) and returned is not object else returned

    def said(callbacks: list[Callback]) -> tuple[type, str]:
        with pytest.raises(Exception) as error:  # noqa: PT011
            fit(callbacks, module=Toy(configure))
        return error.type, str(error.value)

    assert said([LayerwiseLRDecay(0.5)]) == said([])


def test_warm_up_says_where_it_switched_at_which_rate_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("lightning_lr.callbacks.adaptive_warmup.rank_zero_info", said.append)
    with pytest.warns(UserWarning, match="AdaptiveWarmup: the run has 18 updates, up to 9"):
        fit([AdaptiveWarmup(0.02, 0.08, confidence=1 - 1e-12, patience=1)])
    lines = [text for text in said if "the warm-up has ended" in text]
    assert len(lines) == 1
    assert "after update 9 (50% of the run) at a learning rate of 0.0686" in lines[0]
