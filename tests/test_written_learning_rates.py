"""A learning rate that the user writes into ``group["lr"]`` by hand: at every update, it times our factor, once."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer
from torch.optim import lr_scheduler as sched
from torch.utils.data import DataLoader

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    StepRamp,
)
from tests.support.toy import Toy, data, fit

UPDATES = 18

MODULE_HOOKS = (
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_validation_start",
    "on_validation_epoch_end",
)
CALLBACK_HOOKS = tuple(hook for hook in MODULE_HOOKS if hook != "on_before_zero_grad")


def written(trainer: Trainer) -> float:
    """A different value at each update; some repeat, as a plateau's do."""
    return 0.01 * (1 + trainer.global_step % 5)


def write(trainer: Trainer) -> None:
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = written(trainer)


class Writes(Toy):
    """Writes in one of its own hooks."""

    def __init__(self, hook: str, configure: Any) -> None:
        super().__init__(configure)
        if hook in MODULE_HOOKS:
            setattr(self, hook, lambda *args, **kwargs: write(self.trainer))
        self.hook = hook

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        if self.hook == "training_step":
            write(self.trainer)
        return loss

    def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
        if self.hook == "optimizer_step before the step":
            write(self.trainer)
        optimizer.step(closure=optimizer_closure)
        if self.hook == "optimizer_step after the step":
            write(self.trainer)

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        super().configure_gradient_clipping(optimizer, *args, **kwargs)
        if self.hook == "configure_gradient_clipping":
            write(self.trainer)

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        scheduler.step()
        if self.hook == "lr_scheduler_step":
            write(self.trainer)


class WritingCallback(Callback):
    def __init__(self, hook: str) -> None:
        setattr(self, hook, lambda trainer, *args, **kwargs: write(trainer))


PLACES = [
    *((place, "module") for place in MODULE_HOOKS),
    ("training_step", "module"),
    ("optimizer_step before the step", "module"),
    ("optimizer_step after the step", "module"),
    ("configure_gradient_clipping", "module"),
    *((place, where) for where in ("callback before", "callback after") for place in CALLBACK_HOOKS),
]

Make = Callable[[], list[Callback]]
METHODS: dict[str, Make] = {
    "schedule": lambda: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
    "scaling": lambda: [LearningRateScaling(16, warmup_epochs=0)],
    "climbing scaling": lambda: [LearningRateScaling(4, warmup_epochs=1)],
    "square-root scaling": lambda: [LearningRateScaling(2, lr_rule="sqrt", warmup_epochs=0)],
    "layer-wise": lambda: [LayerwiseLRDecay(0.5)],
    "ramp by the learning rate": lambda: [BatchSizeRamp(StepRamp([1, 2], factor=2, mode="decay"))],
    "warm-up": lambda: [AdaptiveWarmup(0.02, 0.08, confidence=1 - 1e-12, patience=1, lr_scale=1e-9)],
    "hypergradient, off": lambda: [HypergradientDescent(0.0)],
    "weight decay": lambda: [NormalizedWeightDecay()],
    "unfreezing": lambda: [GradualUnfreezing(layers=["body|head"])],
    "three of them": lambda: [
        LayerwiseLRDecay(0.5),
        LearningRateSchedule(Cosine(warmup=0.25, floor=0.1)),
        HypergradientDescent(0.0),
        LearningRateScaling(4, warmup_epochs=1),
    ],
}


class Rates(Callback):
    """The learning rate of every group at every step of the optimizer."""

    def __init__(self) -> None:
        self.series: list[list[float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def note(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            self.series.append([float(group["lr"]) for group in optimizer.param_groups])

        self.hook = trainer.optimizers[0].register_step_post_hook(note)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.hook.remove()


def adamw(module: LightningModule) -> Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.05, betas=(0.9, 0.99))


def rates(ours: list[Callback], hook: str = "", where: str = "module", module: Any = None) -> list[list[float]]:
    before: list[Callback] = [WritingCallback(hook)] if where == "callback before" else []
    after: list[Callback] = [WritingCallback(hook)] if where == "callback after" else []
    probe = Rates()
    module = module or (Writes(hook, adamw) if where == "module" else Toy(adamw))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*was set to")
        fit([*before, *ours, *after, probe], module=module, validation=DataLoader(data(8), 8), num_sanity_val_steps=0)
    assert len(probe.series) == UPDATES
    return probe.series


@pytest.fixture(scope="module")
def factors() -> dict[str, list[list[float]]]:
    """What each method multiplies the learning rate of each group by, from runs in which nobody writes."""
    return {name: [[lr / 0.05 for lr in lrs] for lrs in rates(make())] for name, make in METHODS.items()}


QUICK = ("three of them",)


@pytest.mark.parametrize(
    "methods",
    [QUICK, pytest.param(tuple(name for name in METHODS if name not in QUICK), marks=pytest.mark.slow)],
    ids=["some methods", "the others"],
)
@pytest.mark.parametrize("place", PLACES, ids=lambda place: f"{place[1]}, {place[0]}")
def test_factor_applies_once_to_the_value_written_at_that_very_step(
    place: tuple[str, str], methods: tuple[str, ...], factors: dict[str, list[list[float]]]
) -> None:
    bare = [lrs[0] for lrs in rates([], *place)]
    assert len(set(bare)) > 2, "the user writes"
    for name in methods:
        wanted = [[lr * factor for factor in of_update] for lr, of_update in zip(bare, factors[name], strict=True)]
        got = rates(METHODS[name](), *place)
        for update, (lrs, right) in enumerate(zip(got, wanted, strict=True)):
            assert lrs == pytest.approx(right, rel=1e-12), (name, update)


class ByHand(Toy):
    """Keeps a scheduler to itself and steps it at the end of each epoch."""

    def __init__(self, make: Callable[[Optimizer], Any], keep: Callable[[Any, Any], None]) -> None:
        super().__init__()
        self.make, self.keep = make, keep

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=1.0)
        self.keep(self, self.make(optimizer))
        return optimizer

    def on_train_epoch_end(self) -> None:
        for value in vars(self).values():
            if isinstance(value, sched.LRScheduler):
                value.step()
            elif isinstance(value, dict) and "mine" in value:
                value["mine"][0].step()
            elif isinstance(value, SimpleNamespace):
                value.inner.step()


SCHEDULERS = {
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.5),
    "StepLR": lambda o: sched.StepLR(o, 1, 0.5),
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda epoch: 0.5**epoch),
    "SequentialLR": lambda o: sched.SequentialLR(
        o, [sched.ConstantLR(o, 1.0, 1), sched.ExponentialLR(o, 0.5)], milestones=[1]
    ),
    "ChainedScheduler": lambda o: sched.ChainedScheduler([sched.ExponentialLR(o, 0.5), sched.ConstantLR(o, 0.5, 1)], o),
}
KEPT: dict[str, Callable[[Any, Any], None]] = {
    "attribute": lambda module, scheduler: setattr(module, "mine", scheduler),
    "dict of lists": lambda module, scheduler: setattr(module, "kept", {"mine": [scheduler]}),
    "object": lambda module, scheduler: setattr(module, "helper", SimpleNamespace(inner=scheduler)),
}


@pytest.mark.parametrize("kept", KEPT)
@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduler_stepped_by_hand_sees_the_scheduled_values(name: str, kept: str) -> None:
    bare = rates([], module=ByHand(SCHEDULERS[name], KEPT[kept]))
    assert len({lrs[0] for lrs in bare}) > 1, "it steps"
    module = ByHand(SCHEDULERS[name], KEPT[kept])
    ours = rates([LearningRateScaling(16, warmup_epochs=0)], module=module)
    assert ours == [[0.5 * lr for lr in lrs] for lrs in bare]
    held = [v for v in vars(module).values() if isinstance(v, sched.LRScheduler)]
    assert all(type(scheduler) is getattr(sched, name) for scheduler in held), "given back"


def test_a_value_equal_to_the_one_in_effect_counts_as_written() -> None:
    class Halves(Toy):
        def on_train_epoch_start(self) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = 0.5**self.current_epoch

    ours = rates([LearningRateScaling(16, warmup_epochs=0)], module=Halves())
    assert [lrs[0] for lrs in ours] == [0.5] * 6 + [0.25] * 6 + [0.125] * 6


def test_the_warning_says_what_happens() -> None:
    with pytest.warns(
        UserWarning, match=r"'lr' was set to 0\.0[12] .* scheduled value .* schedule applies to it, once"
    ):
        fit([LearningRateSchedule(Cosine())], module=Writes("on_train_batch_start", adamw))


def test_writing_the_same_value_again_is_no_reason_to_warn() -> None:
    class Constantly(Toy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            for group in self.trainer.optimizers[0].param_groups:
                group["lr"] = float("0.05")

    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*was set to")
        fit([LearningRateSchedule(Constant())], module=Constantly())


def test_lbfgs_and_a_step_without_a_closure() -> None:
    class Own(Toy):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer_closure()
            write(self.trainer)
            optimizer.optimizer.step()

    bare = rates([], module=Own())
    ours = rates([LearningRateScaling(16, warmup_epochs=0)], module=Own())
    assert ours == [[0.5 * lr for lr in lrs] for lrs in bare]

    class Searches(Writes):
        def configure_optimizers(self) -> Any:
            return torch.optim.LBFGS(self.parameters(), lr=0.05, max_iter=3)

    bare = rates([], module=Searches("training_step", None))
    ours = rates([LearningRateScaling(16, warmup_epochs=0)], module=Searches("training_step", None))
    assert ours == [[0.5 * lr for lr in lrs] for lrs in bare]
    assert math.isfinite(bare[-1][0])
