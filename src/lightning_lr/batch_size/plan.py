"""The plan of a ramp: which samples make which update, at what learning-rate factor, over a whole run.

It stands between a :class:`~lightning_lr.batch_size.schedules.RampSchedule`, which decides how far the noise scale has
fallen, and the sampler and callback that carry it out; ``lightning-lr plan`` prints it without a Trainer. Source:
Smith, Kindermans, Ying & Le 2018, arXiv:1711.00489.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

from lightning_lr.batch_size.batch_rule import BatchRule, LRRule
from lightning_lr.batch_size.cutter import Cut, Cutter
from lightning_lr.batch_size.noise_scale import noise_scale
from lightning_lr.batch_size.phases import RampPhase, Stretch, Totals
from lightning_lr.batch_size.plan_checks import notes, refuse
from lightning_lr.batch_size.run_length import cutter_for_run
from lightning_lr.batch_size.schedules import AdaptiveRamp, RampSchedule
from lightning_lr.batch_size.windows import EpochWindows, Window, micro_batch_sizes

KEPT_EPOCHS = 4
"""Epochs whose windows are kept where each epoch has its own."""


class Growth(NamedTuple):
    """A decision of an ``AdaptiveRamp``: the batch from sample ``start`` (over all devices) of an epoch on."""

    epoch: int
    start: int
    batch_size: int


@dataclass(frozen=True)
class RampPlan:
    r"""A run under a ramp, worked out without a Trainer.

    For every window :class:`~lightning_lr.batch_size.batch_rule.BatchRule` holds: the batch is the starting batch over
    its part of the fall, at most the cap, and the learning-rate factor is what that leaves, so that
    ``lr N / (B (1 - m))`` is on the schedule's path exactly (with ``lr_rule="sqrt"``, ``lr / sqrt B``).

    - The batch over all devices is world size x per-device batch. The start is rounded up to that, every later batch
      and the cap down, so that a falling schedule never has a learning-rate factor above 1; the factor is that of the
      real batch. :attr:`warnings` lists what was rounded, and where the batch grows in coarse steps.
    - A window never reaches into the next epoch: the last one has what is left, at an undiminished learning rate.
    - Progress is samples over samples of the run (those that ``drop_last`` leaves out are counted as passed). With
      ``max_updates`` the run's samples depend on the batches, which follow progress: they are solved for, see
      :mod:`~lightning_lr.batch_size.run_length`, so that a curve ends with the run.
    - Plans do not change: :meth:`grown` and :meth:`begun` return new ones that agree with the old up to that point.

    Args:
        schedule: how the noise scale falls.
        dataset_size: N, samples in the training set.
        batch_size: samples of the first updates, over all devices and accumulation.
        world_size: devices.
        max_epochs: epochs after which the run ends, or ``None``.
        max_updates: updates after which the run ends, or ``None``. At least one of the two; the earlier ends the run.
        max_batch_size: largest batch, over all devices; ``None``: a tenth of the training set, or the starting batch
            where that is larger.
        max_micro_batch_size: most samples per device and backward; beyond it, gradients are accumulated. ``None``: no
            limit.
        lr_rule: "linear" for SGD, "sqrt" for Adam.
        lr: learning rate at the start, for noise scales; ``None`` leaves them out.
        momentum: m, in [0, 1), for noise scales and warnings.
        drop_last: whether a window that the end of an epoch cuts short is left out.
        device_samples: samples of an epoch on one device; ``None``: dataset_size / world_size rounded up, as
            ``DistributedSampler`` pads.
        begin_samples: samples of the run before the ramp, at the starting batch; ``None``: it has not begun. A curve
            runs from there to the end; milestones stay where they are, and passed ones take effect there.
        growths: what an ``AdaptiveRamp`` has decided so far; a resumed run gives back its plan's.

    Raises:
        ValueError: if an argument is outside its range, or they do not fit together.

    Source: arXiv:1711.00489.
    """

    schedule: RampSchedule
    dataset_size: int
    batch_size: int
    world_size: int = 1
    max_epochs: int | None = None
    max_updates: int | None = None
    max_batch_size: int | None = None
    max_micro_batch_size: int | None = None
    lr_rule: LRRule = "linear"
    lr: float | None = None
    momentum: float = 0.0
    drop_last: bool = False
    device_samples: int | None = None
    begin_samples: int | None = 0
    growths: tuple[Growth, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "growths", tuple(Growth(*growth) for growth in self.growths))  # a state's are lists
        refuse(self)

    # ------------------------------------------------------------------ the run, epoch by epoch
    def windows(self, epoch: int) -> EpochWindows:
        """Return the windows of an epoch, all of them, also where ``max_updates`` ends the run within it.

        Args:
            epoch: counted from 0.
        """
        if epoch not in self._recent:  # needed several times per update
            while len(self._recent) >= KEPT_EPOCHS:
                del self._recent[next(iter(self._recent))]
            self._recent[epoch] = self._windows_of(epoch)
        return self._recent[epoch]

    def noise_scale(self, window: Window) -> float | None:
        """Return lr / (1 - m) (N / B - 1) of a window's update, or ``None`` where no ``lr`` was given."""
        return self._noise_scale(window.batch_size, window.lr_factor)

    def grown(self, batch_size: int, epoch: int, start: int) -> RampPlan:
        """Return the plan in which an ``AdaptiveRamp`` has grown the batch.

        Args:
            batch_size: what :meth:`AdaptiveRamp.next_batch_size` answered.
            epoch: epoch, from 0, in which the batch grows.
            start: samples of that epoch, over all devices, before the first window that grows.

        Raises:
            ValueError: if the schedule is not adaptive, the batch not larger, above the cap, or not later than the
                growth before it.
        """
        return replace(self, growths=(*self.growths, Growth(epoch, start, batch_size)))

    def with_growths(self, growths: Sequence[Growth]) -> RampPlan:
        """This plan with growths that were decided in a run of other data: none above the largest batch of this one."""
        kept: list[Growth] = []
        for growth in growths:
            batch_size = min(growth.batch_size, self.largest_batch_size)
            if batch_size > (kept[-1].batch_size if kept else self.starting_batch_size):
                kept.append(growth._replace(batch_size=batch_size))
        return replace(self, growths=tuple(kept)) if kept else self

    def begun(self, samples: int) -> RampPlan:
        """Return the plan in which the ramp begins after so many samples of the run, over all devices."""
        return replace(self, begin_samples=samples)

    # ------------------------------------------------------------------ the run as a whole
    @property
    def starting_batch_size(self) -> int:
        """Samples of the first updates, over all devices: whole ones per device (rounded up), an epoch at most."""
        return self.rule.start

    @property
    def largest_batch_size(self) -> int:
        """The cap, over all devices, rounded down to whole samples per device, and not above an epoch's samples."""
        return self.rule.cap

    @property
    def largest_window_per_device(self) -> int:
        """Most samples of one device in any update; those of the cap where the batches are not known ahead."""
        if not self.schedule.known_ahead or self.begin_samples is None:
            return self.largest_batch_size // self.world_size
        epochs = range(math.ceil(self.epochs))
        return max(window.size for epoch in epochs for window in self.windows(epoch)) // self.world_size

    @property
    def micro_batch_grows(self) -> bool:
        """Whether a micro-batch ever has more samples than those of the first update."""
        largest = micro_batch_sizes(self.largest_window_per_device, self.max_micro_batch_size)[0]
        return largest > micro_batch_sizes(self.starting_batch_size // self.world_size, self.max_micro_batch_size)[0]

    def lone_sample(self, first: int = 0) -> tuple[int, int] | None:
        """Epoch and micro-batch of the first micro-batch of one sample, where the loader's own batches have more.

        What an epoch leaves over depends on the batch that has grown. ``None``: there is none if the batch grows as far
        as is known now.

        Args:
            first: epoch from which to look.
        """
        own = self.starting_batch_size // self.world_size
        left = 0 if self.drop_last else self.samples_per_device % own
        if 1 in (own, left):
            return None
        for epoch in range(first, math.ceil(self.epochs)):
            sizes = self.windows(epoch).micro_sizes
            if 1 in sizes:
                return epoch, sizes.index(1)
        return None

    @property
    def total_updates(self) -> int:
        """Updates in the run; for an ``AdaptiveRamp``, if the batch grows no more."""
        return self._totals.updates

    @property
    def total_samples(self) -> int:
        """Samples consumed in the run over all devices, without what ``drop_last`` leaves out."""
        return self._totals.samples

    @property
    def epochs(self) -> float:
        """Length of the run in epochs."""
        return self._totals.epochs

    @property
    def fixed_batch_updates(self) -> int:
        """Updates that the same samples take with the starting batch throughout."""
        local = self.starting_batch_size // self.world_size
        samples, totals = self.samples_per_device, self._totals

        def updates_in(position: int) -> int:
            return position // local if self.drop_last else -(-position // local)

        return (math.ceil(totals.epochs) - 1) * updates_in(samples) + updates_in(totals.last_position)

    @cached_property
    def phases(self) -> list[RampPhase]:
        """The run in stretches, see :mod:`~lightning_lr.batch_size.phases`."""
        stretches = self._totals.stretches
        ends = [stretch.start_epoch for stretch in stretches[1:]] + [self.epochs]
        return [self._phase(stretch, end) for stretch, end in zip(stretches, ends, strict=True)]

    @property
    def warnings(self) -> list[str]:
        """What the user should know before training, see :func:`~lightning_lr.batch_size.plan_checks.notes`."""
        return notes(self)

    # ------------------------------------------------------------------ inside
    @property
    def samples_per_device(self) -> int:
        """Samples of an epoch on one device."""
        return self.device_samples or -(-self.dataset_size // self.world_size)

    @property
    def cap(self) -> int:
        """``max_batch_size``, or its default."""
        return max(self.dataset_size // 10, self.batch_size) if self.max_batch_size is None else self.max_batch_size

    @cached_property
    def rule(self) -> BatchRule:
        """The rule that shares a fall between batch and learning rate."""
        return BatchRule.for_run(self.batch_size, self.cap, self.world_size, self.samples_per_device, self.lr_rule)

    @cached_property
    def _patterns(self) -> dict[int, EpochWindows]:
        return {}

    @cached_property
    def _recent(self) -> dict[int, EpochWindows]:
        return {}

    @cached_property
    def _cutter(self) -> Cutter:
        begin = math.inf if self.begin_samples is None else self.begin_samples
        cutter = Cutter(self._path, self.rule, self.samples_per_device, self.drop_last, begin, length=1)
        return cutter_for_run(cutter, self.max_epochs, self.max_updates)

    @property
    def _path(self) -> RampSchedule:
        if not isinstance(self.schedule, AdaptiveRamp):
            return self.schedule
        samples, start = self.samples_per_device * self.world_size, self.starting_batch_size
        return self.schedule.decided(
            [growth.epoch + growth.start / samples for growth in self.growths],
            [start / self.rule.whole(growth.batch_size) for growth in self.growths],
        )

    @cached_property
    def _totals(self) -> Totals:
        return Totals.of(self._cutter, self.max_epochs, self.max_updates)

    def _windows_of(self, epoch: int) -> EpochWindows:
        pattern = self._cutter.pattern(epoch)
        if pattern is None:
            return EpochWindows(map(self._window, self._cutter.cuts(epoch)))
        if pattern not in self._patterns:  # a step schedule has few of these, each for many epochs
            self._patterns[pattern] = EpochWindows(map(self._window, self._cutter.cuts(epoch)))
        return self._patterns[pattern]

    def _window(self, cut: Cut) -> Window:
        world = self.world_size
        micro_sizes = micro_batch_sizes(cut.size, self.max_micro_batch_size)
        return Window(cut.position * world, cut.size * world, micro_sizes, cut.lr_factor, cut.batch_size)

    def _phase(self, stretch: Stretch, end: float) -> RampPhase:
        first = stretch.first
        micro_sizes = micro_batch_sizes(first.batch_size // self.world_size, self.max_micro_batch_size)
        return RampPhase(
            start_epoch=stretch.start_epoch,
            epochs=end - stretch.start_epoch,
            batch_size=first.batch_size,
            micro_batch_size=micro_sizes[0],
            accumulation=len(micro_sizes),
            lr_factor=first.lr_factor,
            noise_scale=self._noise_scale(first.batch_size, first.lr_factor),
            updates=stretch.updates,
        )

    def _noise_scale(self, batch_size: int, lr_factor: float) -> float | None:
        if self.lr is None:
            return None
        return noise_scale(self.lr * lr_factor, self.momentum, batch_size, self.dataset_size)
