"""Ramp schedules decide how far the noise scale has fallen at a point of the run, and how much of it the batch takes.

A schedule answers with two factors, both 1 at the start: ``decay`` for the noise scale lr N / (B (1 - m)), and
``batch_decay`` for the part of it that a growing batch is to bring about; the learning rate brings about the rest.
:class:`~lightning_lr.batch_size.plan.RampPlan` turns them into batch sizes and learning-rate factors, under a cap.
``StepRamp`` and ``CurveRamp`` are known before training; ``AdaptiveRamp`` decides from what is measured. Sources:
Smith et al. 2018, arXiv:1711.00489; McCandlish et al. 2018, arXiv:1812.06162.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from itertools import pairwise
from typing import ClassVar, Literal, get_args

from lightning_lr.batch_size.critical import BranchSettings
from lightning_lr.checks import is_list, is_real, require, require_count
from lightning_lr.curves import SNAP, Curve

Mode = Literal["increase", "hybrid", "decay"]
Measure = Literal["noise_scale", "branches"]


class RampSchedule(ABC):
    """How the noise scale falls over a run; subclass it for a schedule of your own.

    ``RampSchedule`` itself is no dataclass, as :class:`~lightning_lr.curves.Curve` is none: jsonargparse has to offer a
    choice of subclasses here, by ``class_path``.
    """

    known_ahead: ClassVar[bool] = True
    """Whether the whole run follows from the schedule; otherwise batch sizes are decided while it trains."""

    @abstractmethod
    def decay(self, epoch: float, progress: float, width: float = 0.0) -> float:
        """Return the noise scale lr N / (B (1 - m)) of an update over that of the first.

        Args:
            epoch: epochs done before the update, with a fraction.
            progress: share of the run done before the update.
            width: share of the run that the update covers; it counts in the climb of a warm-up only.

        Returns:
            A factor, 1 at the start (below it during a warm-up).
        """

    @abstractmethod
    def batch_decay(self, epoch: float, progress: float) -> float:
        """Return the part of :meth:`decay` that the batch takes: it is to be the starting batch over this."""

    @property
    def falls(self) -> bool:
        """Whether the noise scale ever falls; a ramp whose does not changes neither batch nor learning rate."""
        return True

    def changes(self) -> tuple[float, ...] | None:
        """Return the epochs at which the factors change, constant in between; ``None`` if they change all the time."""
        return None

    def part(self, epoch: float, progress: float) -> int:
        """Return the number of the part of the run that a point belongs to, for the rows of a table."""
        return 0

    def check_length(self, epochs: float) -> None:
        """Refuse a run of so many epochs.

        Raises:
            ValueError: if the schedule changes at its end or past it.
        """
        late = [change for change in self.changes() or () if change >= epochs]
        if late:
            raise ValueError(
                f"{type(self).__name__}: milestones {late} are not before the end of the run, which has {epochs:g} "
                "epochs; give milestones below that, or train longer"
            )

    def doubts(self, epochs: float | None) -> list[str]:
        """What looks like a mistake in a run of so many epochs: milestones that were meant as shares of the run."""
        changes = self.changes() or ()
        if not epochs or epochs < 2 or not changes or changes[-1] >= 1:
            return []
        meant = ", ".join(f"{epochs * change:g}" for change in changes)
        return [
            f"milestones {list(changes)} are epochs, and all of them lie in the first of {epochs:g}; for shares of the "
            f"run give [{meant}]"
        ]


@dataclass(frozen=True)
class StepRamp(RampSchedule):
    """The noise scale falls by ``factor`` at each milestone: ``decay = factor ** -(milestones passed)``.

    Args:
        milestones: epochs at which it falls, above 0 and strictly increasing; with a fraction, the fall is within an
            epoch, at the first update that starts at or after it. Kept as a tuple.
        factor: noise scale before a milestone over that after it, above 1.
        mode: what brings the fall about. "increase": the batch, at every milestone. "hybrid": the batch at the first,
            the learning rate at the later ones (the hardware's limit is reached). "decay": the learning rate.

    Raises:
        ValueError: if an argument is outside its range; from :meth:`check_length`, if a milestone is not before the
            end of the run.

    Example:
        >>> [round(StepRamp([60, 120], factor=5.0).decay(epoch, 0.0), 4) for epoch in (0, 60, 120)]
        [1.0, 0.2, 0.04]

    Source: arXiv:1711.00489, section 5.1; factor 5 at epochs 60, 120 and 160 of 200 is that of wide residual networks.
    """

    milestones: Sequence[float]
    factor: float = 5.0
    mode: Mode = "increase"

    def __post_init__(self) -> None:
        given = self.milestones
        # A tuple, because a YAML list would leave the frozen dataclass without a hash.
        milestones = tuple(given) if isinstance(given, Iterable) else ()
        if not (milestones and all(map(is_real, milestones)) and all(a < b for a, b in pairwise((0, *milestones)))):
            raise ValueError(
                f"StepRamp: milestones={given!r} is not a list of epochs that are above 0 and strictly increase; give "
                "for example [60, 120, 160]"
            )
        object.__setattr__(self, "milestones", tuple(map(float, milestones)))
        require(is_real(self.factor) and self.factor > 1, "StepRamp", "factor", self.factor, "a number above 1")
        object.__setattr__(self, "factor", float(self.factor))
        require(self.mode in get_args(Mode), "StepRamp", "mode", self.mode, f"one of {', '.join(get_args(Mode))}")

    def decay(self, epoch: float, progress: float, width: float = 0.0) -> float:
        return math.pow(self.factor, -self.part(epoch, progress))

    def batch_decay(self, epoch: float, progress: float) -> float:
        steps_of_the_batch = {"increase": len(self.milestones), "hybrid": 1, "decay": 0}[self.mode]
        return math.pow(self.factor, -min(self.part(epoch, progress), steps_of_the_batch))

    def changes(self) -> tuple[float, ...]:
        return tuple(self.milestones)

    def part(self, epoch: float, progress: float) -> int:
        return bisect_right(self.milestones, epoch + SNAP)


@dataclass(frozen=True)
class CurveRamp(RampSchedule):
    """The noise scale follows a curve: where the curve halves, the batch doubles (up to the cap).

    A climb at the start of the curve (its warm-up) is left to the learning rate, and the batch stays at its start:
    the batch follows the body of the curve. The climb is the first of ``curve.phases()``, if the curve rises over it.

    Args:
        curve: any curve, from 1 (after its climb) down. Where it rises again, as at a restart, the batch shrinks.

    Raises:
        ValueError: if curve is none, or does not stand at 1 after its climb.

    Example:
        >>> from lightning_lr.curves import Cosine
        >>> ramp = CurveRamp(Cosine(warmup=0.2))
        >>> [round(ramp.batch_decay(0, progress), 4) for progress in (0.1, 0.6, 0.8)]
        [1.0, 0.5, 0.1464]

    Source: arXiv:1711.00489, section 2, states it for any schedule and shows steps; with ``lr_rule="sqrt"``, Seesaw
    (arXiv:2510.14717).
    """

    curve: Curve

    def __post_init__(self) -> None:
        if not isinstance(self.curve, Curve):
            raise ValueError(f"CurveRamp: curve={self.curve!r} is no Curve; give for example Cosine(floor=0.01)")
        top = self.curve(self.climb)
        if abs(top - 1.0) > SNAP:
            where = f"at {self.climb:g} of the run, the end of its climb," if self.climb else "at its start"
            raise ValueError(
                f"CurveRamp: {type(self.curve).__name__} stands at {top!r} {where} and not at 1, so its fall would not "
                "begin with the starting batch; give a curve that starts at 1 or names its climb as the first of its "
                "phases()"
            )

    @cached_property
    def falls(self) -> bool:
        """Whether the curve ever falls below 1, after its climb."""
        return any(self.batch_decay(0.0, step / 1000) < 1.0 - SNAP for step in range(1001))

    @cached_property
    def climb(self) -> float:
        """Share of the run in which the curve climbs at its start; 0 where it does not."""
        first = self.curve.phases()[0]
        return first.end if self.curve(first.start) < self.curve(first.end) else 0.0

    @cached_property
    def _ends(self) -> tuple[float, ...]:
        return tuple(phase.end for phase in self.curve.phases()[:-1])

    def decay(self, epoch: float, progress: float, width: float = 0.0) -> float:
        return self.curve(progress, width)

    def batch_decay(self, epoch: float, progress: float) -> float:
        return 1.0 if progress < self.climb else self.curve(progress)

    def part(self, epoch: float, progress: float) -> int:
        return bisect_right(self._ends, progress + SNAP)


@dataclass(frozen=True)
class AdaptiveRamp(RampSchedule):
    """The batch grows where a larger one is measured to be as good; nothing is known ahead.

    - ``measure="noise_scale"``: by ``growth`` whenever the gradient noise scale passes ``ratio`` x the batch. Each
      growth counts as a fall of the noise scale by as much: with ``lr_rule="linear"`` the learning rate stays, with
      "sqrt" it falls by the root of the growth.
    - ``measure="branches"``: at the shares ``at`` of the run, to the critical batch, see :mod:`.critical`: the largest
      of 2, 4, ..., ``largest`` times the batch whose branch keeps up. The learning rate grows by the rule, so that the
      noise scale stays where it is: by the growth with "linear", by its root with "sqrt". A curve that falls can be
      attached.

    At the cap the batch stays; the learning rate takes nothing over, for there is no path to keep.

    Args:
        ratio: gradient noise scale over batch size from which the batch grows, above 0.
        growth: batch after a growth over that before, above 1.
        check_every: updates between two decisions; more than the estimator's smoothing remembers, so that a decision
            sees gradients of the present batch.
        measure: what decides. The three arguments before belong to "noise_scale", those that follow to "branches".
        at: shares of the run at which branches are made, in [0, 1), strictly increasing.
        budget: share of the run's updates (with the first batch throughout) that all branches together may take, in
            (0, 1], on top of the run.
        tolerance: share of what the present batch gains in a branch that a larger one may lose, in [0, 1).
        largest: largest growth at one measurement, a power of 2.

    Raises:
        ValueError: if an argument is outside its range, or belongs to the other measure.

    Example:
        >>> [AdaptiveRamp().next_batch_size(64, noise, cap=100) for noise in (50.0, 70.0, None)]
        [64, 100, 64]

    Source: gradient noise scale as a measure of the largest useful batch: arXiv:1812.06162, section 2.2; branches, and
    doubling at a raised learning rate: Merrill et al. 2025, arXiv:2505.23971.
    """

    known_ahead: ClassVar[bool] = False

    ratio: float = 1.0
    growth: float = 2.0
    check_every: int = 100
    measure: Measure = "noise_scale"
    at: Sequence[float] = (0.1, 0.3, 0.6)
    budget: float = 0.1
    tolerance: float = 0.1
    largest: int = 2

    def __post_init__(self) -> None:
        require(
            self.measure in get_args(Measure), "AdaptiveRamp", "measure", self.measure, " or ".join(get_args(Measure))
        )
        self._refuse_arguments_of_the_other_measure()
        object.__setattr__(self, "at", self.branch_settings.at)
        require(is_real(self.ratio) and self.ratio > 0, "AdaptiveRamp", "ratio", self.ratio, "a number above 0")
        require(is_real(self.growth) and self.growth > 1, "AdaptiveRamp", "growth", self.growth, "a number above 1")
        require_count("AdaptiveRamp", "check_every", self.check_every, "updates")

    def next_batch_size(self, current: int, measured: float | None, cap: int) -> int:
        """Return the batch size after a decision.

        Args:
            current: samples per update now.
            measured: gradient noise scale in samples; ``None`` or NaN, nothing measured yet, changes nothing. Infinity
                (a gradient lost in its noise) is above every ratio.
            cap: samples per update that the batch may not pass.
        """
        if measured is None or not measured > self.ratio * current:  # NaN compares false as well
            return current
        return max(current, min(cap, max(current + 1, round(current * self.growth))))

    @property
    def by_branches(self) -> bool:
        """Whether branches decide, and not the gradient noise scale."""
        return self.measure == "branches"

    @property
    def branch_settings(self) -> BranchSettings:
        """When and how branches measure the critical batch."""
        return BranchSettings("AdaptiveRamp", self.at, self.budget, self.tolerance, self.largest)

    @property
    def falls(self) -> bool:
        return not self.by_branches

    def decided(self, epochs: Sequence[float], decays: Sequence[float]) -> RampSchedule:
        """Return the schedule of a run in which the batch took a fall to ``decays[i]`` at ``epochs[i]``."""
        return _Grown(tuple(epochs), tuple(decays), keeps_noise=self.by_branches)

    def _refuse_arguments_of_the_other_measure(self) -> None:
        own = ("at", "budget", "tolerance", "largest") if self.by_branches else ("ratio", "growth", "check_every")
        for field in fields(self):
            value = getattr(self, field.name)
            given = tuple(value) if is_list(value) else value
            if field.name not in (*own, "measure") and given != field.default:
                raise ValueError(
                    f"AdaptiveRamp: got {field.name}={value!r} with measure={self.measure!r}, where it has no effect; "
                    f"leave it out (this measure has {', '.join(own)})"
                )

    def decay(self, epoch: float, progress: float, width: float = 0.0) -> float:
        return 1.0

    def batch_decay(self, epoch: float, progress: float) -> float:
        return 1.0

    def changes(self) -> tuple[float, ...]:
        return ()


@dataclass(frozen=True)
class _Grown(RampSchedule):
    """The decisions of an ``AdaptiveRamp`` so far: from each of ``epochs`` on, the batch is the start over a decay.

    The noise scale falls with it, or is kept by the learning rate.
    """

    epochs: tuple[float, ...]
    decays: tuple[float, ...]
    keeps_noise: bool = False

    def decay(self, epoch: float, progress: float, width: float = 0.0) -> float:
        return 1.0 if self.keeps_noise else self.batch_decay(epoch, progress)

    def batch_decay(self, epoch: float, progress: float) -> float:
        return (1.0, *self.decays)[self.part(epoch, progress)]

    def changes(self) -> tuple[float, ...]:
        return self.epochs

    def part(self, epoch: float, progress: float) -> int:
        return bisect_right(self.epochs, epoch + SNAP)
