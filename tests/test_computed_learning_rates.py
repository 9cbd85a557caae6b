"""Learning rates computed from `group["lr"]`, and schedulers that nobody shows: our factor applies exactly once."""

from __future__ import annotations

import copy
import functools
import gc
import io
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from torch.optim import lr_scheduler as sched

from lightning_lr import Cosine, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.multiplied import Multiplied, plain
from tests.support.manual import ManualToy
from tests.support.toy import Probe, Toy, fit

BASE = 0.05


def sgd(module: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=BASE)


class Writes(Callback):
    """Writes learning rates; keeps what it read at the start."""

    def groups(self, trainer: Any) -> Any:
        return trainer.optimizers[0].param_groups

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.first = [group["lr"] for group in self.groups(trainer)]


class StepDecay(Writes):
    def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
        for group in self.groups(trainer):
            group["lr"] *= 0.5


class Divides(Writes):
    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            group["lr"] /= 1.25


class WarmsUpFromTheFirst(Writes):
    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        for group, first in zip(self.groups(trainer), self.first, strict=True):
            group["lr"] = min(1.0, (trainer.global_step + 1) / 8) * first


class StopsAndGoesOn(Writes):
    """Keeps a rate, sets 0, and puts the kept one back."""

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if batch_idx == 1:
            self.kept = [group["lr"] for group in self.groups(trainer)]
            for group in self.groups(trainer):
                group["lr"] = 0.0
        if batch_idx == 3:
            for group, kept in zip(self.groups(trainer), self.kept, strict=True):
                group["lr"] = kept


COMPUTED: list[type[Writes]] = [StepDecay, Divides, WarmsUpFromTheFirst, StopsAndGoesOn]


def rates(ours: list[Callback], theirs: list[Callback], module: Any = None) -> list[list[float]]:
    probe = Probe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fit([*theirs, *ours, probe], module=module or Toy(sgd))
    return [[float(lr) for lr in row] for row in probe.series]


def methods() -> list[Callback]:
    return [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1)), LayerwiseLRDecay(0.5, layers=["body", "head"])]


@functools.cache
def our_factors() -> list[list[float]]:
    """At every update, of each group."""
    return [[lr / BASE for lr in row] for row in rates(methods(), [], Toy(sgd))]


def _times_the_factor(theirs: Callable[[], list[Callback]], make: Callable[[], Any]) -> None:
    bare, factors = rates([], theirs(), make()), our_factors()
    got = rates(methods(), theirs(), make())
    assert len({row[0] for row in bare}) > 1, "they do write"
    want = [[row[0] * own for own in factor] for row, factor in zip(bare, factors, strict=True)]
    # three products in another order: an ulp each, and one for every time that a rate was multiplied
    torch.testing.assert_close(
        torch.tensor(got, dtype=torch.float64), torch.tensor(want, dtype=torch.float64), rtol=1e-13, atol=0
    )


@pytest.mark.parametrize("writes", COMPUTED)
def test_a_rate_computed_from_the_one_in_effect_is_multiplied_once(writes: type[Writes]) -> None:
    _times_the_factor(lambda: [writes()], lambda: Toy(sgd))


def test_other_arithmetic_is_warned_of_with_what_to_do() -> None:
    class Subtracts(Writes):
        def on_train_epoch_start(self, trainer: Any, pl_module: Any) -> None:
            for group in self.groups(trainer):
                group["lr"] = group["lr"] - 0.001

    with pytest.warns(UserWarning, match="in any other computation use your own numbers"):
        fit([Subtracts(), *methods()], module=Toy(sgd))


# ---------------------------------------------------------------------- schedulers that nobody shows
@dataclass(slots=True)
class Drawer:
    things: list[Any] = field(default_factory=list)


class Steps(Writes):
    """Steps a scheduler of its own after every update."""

    def __init__(self, make: Callable[[Any], Any], late: bool, metric: bool = False, frozen: bool = False) -> None:
        self.make, self.late, self.arguments = make, late, (1.0,) if metric else ()
        self.frozen = frozen

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.step: Callable[[], None] | None = None

    def on_fit_start(self, trainer: Any, pl_module: Any) -> None:
        if not self.late:
            self.begin(trainer.optimizers[0])

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.step is None and trainer.global_step == 2:
            self.begin(pl_module.optimizers())  # Lightning's wrapper

    def begin(self, optimizer: Any) -> None:
        scheduler = self.make(optimizer)
        drawer = Drawer([{"deep": ({"inside": [scheduler]},)}])
        self.step = lambda: drawer.things[0]["deep"][0]["inside"][0].step(*self.arguments)  # a closure
        if self.frozen:
            gc.freeze()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        if self.step is not None:
            self.step()


SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "exponential": lambda optimizer: sched.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer: sched.CosineAnnealingLR(optimizer, 20),
    "restarts": lambda optimizer: sched.CosineAnnealingWarmRestarts(optimizer, 5),
    "lambda": lambda optimizer: sched.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "multiplicative": lambda optimizer: sched.MultiplicativeLR(optimizer, lambda step: 0.9),
    "polynomial": lambda optimizer: sched.PolynomialLR(optimizer, 20, 2.0),
    "plateau": lambda optimizer: sched.ReduceLROnPlateau(optimizer, factor=0.5, patience=1),
    "sequential": lambda optimizer: sched.SequentialLR(
        optimizer, [sched.LinearLR(optimizer, 0.1, total_iters=5), sched.ExponentialLR(optimizer, 0.9)], [5]
    ),
    "chained": lambda optimizer: sched.ChainedScheduler(
        [sched.ConstantLR(optimizer, 0.5, 6), sched.ExponentialLR(optimizer, 0.9)]
    ),
}


LATE = ("exponential", "restarts", "plateau", "sequential", "chained")


@pytest.mark.parametrize(("name", "late"), [*((name, False) for name in SCHEDULERS), *((name, True) for name in LATE)])
def test_a_scheduler_in_a_closure_sees_the_scheduled_values(name: str, late: bool) -> None:
    _times_the_factor(lambda: [Steps(SCHEDULERS[name], late, metric=name == "plateau")], lambda: ManualToy(sgd))


def test_a_scheduler_that_the_garbage_collector_does_not_show_any_more_is_found() -> None:
    _times_the_factor(lambda: [Steps(SCHEDULERS["cosine"], False, frozen=True)], lambda: ManualToy(sgd))
    assert gc.get_freeze_count() > 0, "what was frozen is frozen again"


def test_torchs_classes_are_as_before() -> None:
    before = [cls.__init__ for cls in (sched.LRScheduler, sched.ReduceLROnPlateau, sched.SequentialLR)]
    steps = Steps(SCHEDULERS["exponential"], late=True)
    fit([steps, *methods()], module=ManualToy(sgd))
    assert [cls.__init__ for cls in (sched.LRScheduler, sched.ReduceLROnPlateau, sched.SequentialLR)] == before
    assert steps.step is not None
    scheduler = steps.step.__closure__[0].cell_contents.things[0]["deep"][0]["inside"][0]  # type: ignore[attr-defined]
    assert type(scheduler) is sched.ExponentialLR


class Replaced(Toy):
    def on_train_epoch_start(self) -> None:
        if self.current_epoch == 1:
            self.trainer.optimizers = [sgd(self)]


def test_an_optimizer_that_takes_the_place_of_another_is_refused() -> None:
    """It would step without our factors, in silence."""
    with pytest.raises(MisconfigurationException, match="LayerwiseLRDecay: optimizer 0 of the Trainer was replaced"):
        fit(methods(), module=Replaced(sgd))


# ---------------------------------------------------------------------- what is read
def test_the_number_is_a_float_that_knows_what_was_multiplied() -> None:
    rate = Multiplied(0.05, 0.1)
    assert rate == 0.05
    assert repr(rate) == "0.05"
    for changed, value in ((rate * 3, 3.0), (3 * rate, 3.0), (rate / 4, 0.25)):
        assert (changed, changed.scheduled) == (pytest.approx(0.05 * value), pytest.approx(0.1 * value))
    assert all(
        type(other) is float for other in (rate + 1, rate - 1, 1 / rate, rate**2, -rate, rate * rate, float(rate))
    )
    assert torch.equal(rate * torch.ones(2), torch.full((2,), 0.05))
    assert copy.deepcopy(rate) is copy.copy(rate) is rate
    assert type(plain(rate)) is float


def test_a_state_dictionary_saved_by_hand_is_plain_and_can_be_put_back() -> None:
    class Saves(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            optimizer = trainer.optimizers[0]
            state = optimizer.state_dict()
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            loaded = torch.load(file, weights_only=True)
            assert [group["lr"] for group in loaded["param_groups"]] == [BASE, BASE], "as in a checkpoint"
            optimizer.load_state_dict(state)

    assert rates(methods(), [Saves()]) == rates(methods(), [])


def test_an_optimizer_steps_with_plain_numbers() -> None:
    """Their arithmetic costs nothing, and compiled kernels take them."""
    seen: list[type] = []

    class Looks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            loss = closure()
            seen.extend(type(group["lr"]) for group in self.param_groups)
            return super().step(lambda: loss)

    fit(methods(), module=Toy(lambda module: Looks(module.parameters(), lr=BASE)))
    assert set(seen) == {float}
