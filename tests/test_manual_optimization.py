"""Manual optimization and several optimizers: every method at every step of every optimizer."""

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
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import lr_scheduler as sched
from torch.utils.data import DataLoader

from lightning_lr import (
    ActivationCompression,
    AdaptiveRamp,
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointedStrategy,
    CheckpointPolicy,
    Constant,
    Cosine,
    CurveRamp,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    Polynomial,
    StepRamp,
)
from tests.support.manual import STYLES, ManualToy, Rivals, Steps
from tests.support.toy import ResumableLoader, Stream, Toy, data, fit, weights

BATCHES = 18
Make = Callable[[], list[Callback]]


def adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.2)


ONE: dict[str, tuple[Make, Any]] = {
    "schedule": (lambda: [LearningRateSchedule(Cosine(warmup=0.25))], None),
    "scaling": (lambda: [LearningRateScaling(4, warmup_epochs=1)], None),
    "layer-wise": (lambda: [LayerwiseLRDecay(0.5)], None),
    "weight decay": (lambda: [NormalizedWeightDecay(), LearningRateSchedule(Cosine())], adamw),
    "unfreezing": (lambda: [GradualUnfreezing(layers=["body", "head"])], None),
    "hypergradient": (lambda: [HypergradientDescent(rule="normalized")], None),
    "hypergradient, other": (lambda: [HypergradientDescent(0.01, "multiplicative")], adamw),
    "warm-up": (lambda: [AdaptiveWarmup(0.02, 0.08, patience=1)], None),
    "warm-up by a logged loss": (lambda: [AdaptiveWarmup(0.02, 0.08, patience=1, loss="train_loss")], None),
    "ramp": (lambda: [BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=24)], None),
    "compression": (lambda: [ActivationCompression(8, group_size=16)], None),
}


@pytest.mark.filterwarnings("ignore:AdaptiveWarmup")
@pytest.mark.parametrize("name", ONE)
def test_updates_made_by_hand_equal_those_of_automatic_optimization(name: str) -> None:
    make, configure = ONE[name]
    by_hand, automatic = Steps(), Steps()
    manual, _ = fit([*make(), by_hand], module=ManualToy(configure))
    module, _ = fit([*make(), automatic], module=Toy(configure))
    assert by_hand.of == automatic.of
    assert torch.equal(weights(manual), weights(module))
    bare, _ = fit([], module=Toy(configure))
    assert not torch.equal(weights(bare), weights(module)), "it does something"


def linear(batch: int, total: int = BATCHES) -> float:
    return 1 - batch / total


def cosine(batch: int, total: int = BATCHES) -> float:
    return (1 + math.cos(math.pi * batch / total)) / 2


@pytest.mark.parametrize("style", STYLES)
def test_every_step_of_every_optimizer_has_the_closed_form(style: str) -> None:
    steps = Steps()
    callbacks = [
        LearningRateSchedule([Polynomial(power=1.0), Cosine()]),
        LearningRateScaling(4, warmup_epochs=0),
        LayerwiseLRDecay(0.5),
        HypergradientDescent(0.0),
        steps,
    ]
    module, _ = fit(callbacks, module=Rivals(style))
    for index, (base, curve) in enumerate([(0.05, linear), (0.01, cosine)]):
        at = steps.batches[index]
        assert len(at) == {"accumulated": BATCHES // 2, "twice": 2 * BATCHES}.get(style, BATCHES)
        for batch, lrs in zip(at, steps.of[index], strict=True):
            full = base * 2 * curve(batch)
            parts = len(lrs) // 2  # AdamW's groups are split by weight decay too
            assert lrs == pytest.approx([0.5 * full] * parts + [full] * parts, rel=1e-12), (index, batch)
    assert torch.isfinite(weights(module)).all()


OFF: dict[str, Make] = {
    "schedule": lambda: [LearningRateSchedule(Constant())],
    "scaling": lambda: [LearningRateScaling(8)],
    "layer-wise": lambda: [LayerwiseLRDecay(1.0, no_weight_decay=[])],
    "hypergradient": lambda: [HypergradientDescent(0.0)],
    "unfreezing": lambda: [GradualUnfreezing(layers=["maker|judge"])],
    "ramp": lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))],
    "all": lambda: [
        LearningRateSchedule(Constant()),
        LayerwiseLRDecay(1.0, no_weight_decay=[]),
        HypergradientDescent(0.0),
        LearningRateScaling(8),
    ],
}


@pytest.mark.parametrize(
    "style", ["plain", *(pytest.param(s, marks=pytest.mark.slow) for s in ("toggled", "closure")), "accumulated"]
)
def test_off_is_bare_to_the_bit_with_two_optimizers(style: str) -> None:
    bare, _ = fit([], module=Rivals(style))
    for name, make in OFF.items():
        off, _ = fit(make(), module=Rivals(style))
        assert torch.equal(weights(off), weights(bare)), name


CHOOSING: dict[str, Callable[[list[int]], Callback]] = {
    "schedule": lambda chosen: LearningRateSchedule(Cosine(), optimizers=chosen),
    "scaling": lambda chosen: LearningRateScaling(4, warmup_epochs=0, optimizers=chosen),
    "layer-wise": lambda chosen: LayerwiseLRDecay(0.5, optimizers=chosen),
    "hypergradient": lambda chosen: HypergradientDescent(0.1, "normalized", optimizers=chosen),
    "warm-up": lambda chosen: AdaptiveWarmup(0.001, 0.008, patience=1, optimizers=chosen),
}


@pytest.mark.filterwarnings("ignore:AdaptiveWarmup")
@pytest.mark.parametrize("name", CHOOSING)
def test_optimizers_that_are_not_chosen_are_left_alone(name: str) -> None:
    bare = Steps()
    fit([bare], module=Rivals())
    for chosen in (0, 1):
        steps = Steps()
        fit([CHOOSING[name]([chosen]), steps], module=Rivals())
        assert steps.of[1 - chosen] == bare.of[1 - chosen]
        assert steps.first(chosen) != bare.first(chosen)


def test_weight_decay_is_normalized_for_the_optimizer_that_has_one() -> None:
    steps = Steps("lr", "weight_decay")
    fit([NormalizedWeightDecay(0.025, optimizers=[1]), steps], module=Rivals())
    assert {decay for groups in steps.of[0] for _, decay in groups} == {0}
    wanted = 0.025 * math.sqrt(8 / (48 * 3)) / 0.01
    assert [groups[0][1] for groups in steps.of[1]] == pytest.approx([wanted] * BATCHES, rel=1e-12)
    with pytest.raises(MisconfigurationException, match=r"SGD .* leave it out with the argument optimizers"):
        fit([NormalizedWeightDecay()], module=Rivals())


def test_hypergradients_are_each_optimizers_own() -> None:
    both, first, second = Steps(), Steps(), Steps()
    fit([HypergradientDescent(rule="normalized", optimizers=[0]), first], module=Rivals())
    fit([HypergradientDescent(rule="normalized", optimizers=[1]), second], module=Rivals())
    fit([HypergradientDescent(rule="normalized"), both], module=Rivals())
    # until the one optimizer's other rate has reached the other's gradient
    assert both.of[0][:2] == first.of[0][:2]
    assert both.of[1][0] == second.of[1][0]
    assert len({tuple(lrs) for lrs in both.of[0]}) == len({tuple(lrs) for lrs in both.of[1]}) == BATCHES


def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(tmp_path: Path) -> None:
    def callbacks() -> list[Callback]:
        return [
            LearningRateSchedule([Polynomial(power=1.0), Cosine()]),
            LayerwiseLRDecay(0.5),
            HypergradientDescent(rule="normalized"),
        ]

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole_steps = Steps()
    loader = ResumableLoader(data(), 8)
    whole, _ = fit([*callbacks(), save, whole_steps], module=Rivals(), loader=loader, enable_checkpointing=True)
    for step in (4, 10, 24, 30):
        steps = Steps()
        path = str(tmp_path / f"step={step}.ckpt")
        torch.load(path, weights_only=True)
        resumed, _ = fit([*callbacks(), steps], module=Rivals(), loader=ResumableLoader(data(), 8), ckpt_path=path)
        for index in (0, 1):
            assert steps.of[index] == whole_steps.of[index][step // 2 :], step
        assert torch.equal(weights(resumed), weights(whole)), step
        state = torch.load(path, weights_only=True)["optimizer_states"]
        assert [group["lr"] for group in state[0]["param_groups"]] == [0.05, 0.05]


def scheduled(module: Any) -> Any:
    maker = torch.optim.SGD(module.maker.parameters(), lr=1.0)
    judge = torch.optim.SGD(module.judge.parameters(), lr=1.0)
    return [maker, judge], [sched.ExponentialLR(maker, 0.9), sched.StepLR(judge, 2, 0.5)]


class Scheduled(Rivals):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        for scheduler in self.lr_schedulers():
            scheduler.step()
        return loss


def test_schedulers_stepped_by_hand_see_the_scheduled_values() -> None:
    bare, scaled, replaced, multiplied = Steps(), Steps(), Steps(), Steps()
    fit([bare], module=Scheduled(configure=scheduled))
    fit([LearningRateScaling(16, warmup_epochs=0), scaled], module=Scheduled(configure=scheduled))
    assert all(scaled.of[i] == [[0.5 * lr for lr in lrs] for lrs in bare.of[i]] for i in (0, 1))
    with pytest.raises(MisconfigurationException, match=r"ExponentialLR.*module_scheduler"):
        fit([LearningRateSchedule(Cosine())], module=Scheduled(configure=scheduled))
    fit([LearningRateSchedule(Cosine(), module_scheduler="replace"), replaced], module=Scheduled(configure=scheduled))
    fit(
        [LearningRateSchedule(Cosine(), module_scheduler="multiply"), multiplied],
        module=Scheduled(configure=scheduled),
    )
    for index in (0, 1):
        assert replaced.first(index) == pytest.approx([cosine(batch) for batch in range(BATCHES)], rel=1e-12)
        wanted = [lr * cosine(batch) for batch, lr in enumerate(bare.first(index))]
        assert multiplied.first(index) == pytest.approx(wanted, rel=1e-12)


def test_warmed_up_together_by_a_logged_loss() -> None:
    steps = Steps()
    warmup = AdaptiveWarmup(0.01, 0.05, confidence=1 - 1e-12, patience=1, loss="maker/loss")
    with pytest.warns(UserWarning, match="AdaptiveWarmup: the run has 18 updates"):
        fit([warmup, steps], module=Rivals())
    climb = [0.01 * 5 ** (batch / (BATCHES / 2)) for batch in range(BATCHES // 2)]
    assert steps.first(0)[: len(climb)] == pytest.approx(climb, rel=1e-12)
    assert steps.first(1)[: len(climb)] == pytest.approx([lr / 5 for lr in climb], rel=1e-12)
    with pytest.raises(
        MisconfigurationException, match=r"loss='other', which this training_step did not log.*maker/loss"
    ):
        fit([AdaptiveWarmup(0.01, 0.05, patience=1, loss="other")], module=Rivals())


class Silent(Rivals):
    def training_step(self, batch: Any, batch_idx: int) -> None:
        super().training_step(batch, batch_idx)


def unfit() -> dict[str, tuple[Make, dict[str, Any], str]]:
    return {
        "noise scale": (lambda: [GradientNoiseScale()], {}, r"name the one to measure, such as optimizers=\[0\]"),
        "no such optimizer": (
            lambda: [LearningRateSchedule(Cosine(), optimizers=[2])], {}, r"optimizers=\[2\].*returned 2.*from 0 to 1"),
        "three curves": (lambda: [LearningRateSchedule([Cosine()] * 3)], {}, "got 3 curves for 2 optimizers"),
        "ramp by accumulation": (
            lambda: [BatchSizeRamp(StepRamp([1]), max_micro_batch_size=8)], {}, "leave it at None"),
        "adaptive ramp": (lambda: [BatchSizeRamp(AdaptiveRamp())], {}, "use a StepRamp or a CurveRamp"),
        "ramp of a stream": (
            lambda: [BatchSizeRamp(CurveRamp(Cosine()), 32)],
            {"loader": DataLoader(Stream(48), batch_size=8), "max_steps": 12, "max_epochs": -1},
            "use a map-style data set"),
        "bits by measurement": (lambda: [ActivationCompression("auto")], {}, "give bits=8, 4 or 2"),
        "no loss": (
            lambda: [AdaptiveWarmup(0.01, 0.05, patience=1)], {"module": Silent()}, "give the name of a logged one"),
        "two schedules": (
            lambda: [LearningRateSchedule(Cosine(), optimizers=[i]) for i in (0, 1)], {}, "two of them are attached"),
    }  # fmt: skip


@pytest.mark.filterwarnings("ignore:AdaptiveWarmup")
@pytest.mark.parametrize("case", unfit())
def test_what_cannot_work_is_refused_with_the_reason(case: str) -> None:
    make, arguments, message = unfit()[case]
    module = arguments.pop("module", None) or Rivals()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=message):
        fit(make(), module=module, **arguments)
    if case != "no loss":  # known after the first batch
        assert torch.equal(weights(module), before)


def test_ramp_grows_the_micro_batch_alone() -> None:
    sizes: list[int] = []

    class Sized(Rivals):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            sizes.append(len(batch[0]))
            return super().training_step(batch, batch_idx)

    fit([BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=32)], module=Sized())
    assert sizes == [8] * 6 + [16] * 3 + [32, 16]


def test_a_scaler_that_skips_the_first_updates() -> None:
    def trained(callbacks: list[Callback]) -> tuple[Any, Steps]:
        steps = Steps()
        plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**40))
        module, _ = fit([*callbacks, steps], module=Rivals(), plugins=[plugin])
        return module, steps

    bare, bare_steps = trained([])
    assert 0 < len(bare_steps.of[0]) < BATCHES, "some are skipped"
    off, _ = trained([LearningRateSchedule(Constant()), HypergradientDescent(0.0)])
    assert torch.equal(weights(off), weights(bare))
    _, steps = trained([LearningRateSchedule(Polynomial(power=1.0))])
    assert steps.first(0) == pytest.approx([0.05 * linear(batch) for batch in steps.batches[0]], rel=1e-12)


def test_activations_are_checkpointed_to_the_bit() -> None:
    bare, _ = fit([], module=Rivals())
    policy = CheckpointPolicy("every_block", modules=["maker.0", "maker.2", "judge.0", "judge.2"])
    checkpointed, _ = fit([], module=Rivals(), strategy=CheckpointedStrategy(policy))
    assert torch.equal(weights(checkpointed), weights(bare))


def test_an_optimizer_whose_layers_are_all_frozen_is_named_before_its_loss_has_no_gradient() -> None:
    unfreezing = GradualUnfreezing(layers=["judge", "maker"])  # the maker first, and the judge an epoch later
    with (
        pytest.warns(UserWarning, match=r"all parameters of optimizer 1 \(AdamW\) are frozen when training begins"),
        pytest.raises(RuntimeError, match="does not require grad"),
    ):
        fit([unfreezing], module=Rivals("toggled"))
