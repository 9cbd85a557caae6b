"""A run as a whole: its totals, and its updates put together into phases that a table or a picture can show.

A step schedule has one phase for each step. A curve changes the batch all the time: there a phase is a stretch in
which the batch stays within a doubling, and within one part of the curve (warm-up, cycle, decay); what is at the cap
is a stretch of its own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from lightning_lr.batch_size.batch_rule import BatchRule
from lightning_lr.batch_size.cutter import Cut, Cutter
from lightning_lr.curves import SNAP

MAX_PHASES = 32
"""Curves with more stretches than this are shown in this many equal shares of the run instead."""


@dataclass(frozen=True)
class RampPhase:
    """A stretch of the run; what changes within it (a curve's batch and factor) is given as at its start.

    Args:
        start_epoch: epochs before it.
        epochs: epochs that it lasts.
        batch_size: samples per update, over all devices.
        micro_batch_size: samples per device and backward, of the largest micro-batch.
        accumulation: micro-batches per update and device.
        lr_factor: what the ramp multiplies the learning rate by.
        noise_scale: lr / (1 - m) (N / B - 1), or ``None`` where no learning rate was given.
        updates: optimizer updates in it.
    """

    start_epoch: float
    epochs: float
    batch_size: int
    micro_batch_size: int
    accumulation: int
    lr_factor: float
    noise_scale: float | None
    updates: int


@dataclass
class Stretch:
    """Consecutive updates that make a phase: the epochs before them, the first one, and how many."""

    start_epoch: float
    first: Cut
    updates: int


class Stretches:
    """Puts consecutive updates together.

    Args:
        rule: the run's, for its start and cap.
        exact: whether every batch size is a stretch of its own; else all within a doubling are.
    """

    def __init__(self, rule: BatchRule, exact: bool) -> None:
        self._rule = rule
        self._exact = exact
        self._stretches: list[Stretch] = []
        self._last: tuple[int, int] | None = None

    def add(self, start_epoch: float, cut: Cut, updates: int) -> None:
        """Append updates that are alike."""
        kind = (cut.part, self._batch_kind(cut.batch_size))
        if kind != self._last:
            self._last = kind
            self._stretches.append(Stretch(start_epoch, cut, 0))
        self._stretches[-1].updates += updates

    def bounded(self, epochs: float) -> list[Stretch]:
        """The stretches of a run of so many epochs, at most :data:`MAX_PHASES`."""
        if len(self._stretches) <= MAX_PHASES or self._exact:
            return self._stretches
        merged: dict[int, Stretch] = {}
        for stretch in self._stretches:
            share = int(stretch.start_epoch / epochs * MAX_PHASES)
            if share in merged:
                merged[share].updates += stretch.updates
            else:
                merged[share] = stretch
        return list(merged.values())

    def _batch_kind(self, batch_size: int) -> int:
        if self._exact:
            return batch_size
        if batch_size == self._rule.cap:
            return -1
        return math.floor(math.log2(batch_size / self._rule.start) + SNAP)


@dataclass(frozen=True)
class Totals:
    """What a run comes to.

    Args:
        updates: optimizer updates.
        samples: samples consumed, over all devices.
        epochs: its length; what is left out of an epoch counts, except after the last update of a run ended by updates.
        last_position: samples per device of the last epoch up to the end of the run.
        stretches: the updates, put together.
    """

    updates: int
    samples: int
    epochs: float
    last_position: int
    stretches: list[Stretch]

    @classmethod
    def of(cls, cutter: Cutter, max_epochs: int | None, max_updates: int | None) -> Totals:
        """Walk through the run that ends after so many epochs or updates, whichever comes first."""
        updates = samples = last_position = 0
        end = 0.0
        stretches = Stretches(cutter.rule, exact=cutter.schedule.changes() is not None)
        for epoch, whole, cuts in _walk(cutter, max_epochs, max_updates):
            consumed = cuts[-1].position + cuts[-1].size
            updates, samples = updates + whole * len(cuts), samples + whole * consumed
            last_position = consumed if updates == max_updates else cutter.device_samples
            end = epoch + whole - 1 + last_position / cutter.device_samples
            if cutter.pattern(epoch) is not None:
                stretches.add(epoch, cuts[0], whole * len(cuts))
                continue
            for cut in cuts:
                stretches.add(epoch + cut.position / cutter.device_samples, cut, 1)
        return cls(updates, samples * cutter.rule.world_size, end, last_position, stretches.bounded(end))


def _walk(cutter: Cutter, max_epochs: int | None, max_updates: int | None) -> Iterator[tuple[int, int, list[Cut]]]:
    """Yield (first epoch, epochs cut alike, windows of one of them) to the end of the run."""
    last = math.inf if max_epochs is None else max_epochs
    updates_left = math.inf if max_updates is None else max_updates
    epoch = 0
    while epoch < last and updates_left > 0:
        cuts = list(cutter.cuts(epoch))
        whole = int(min(max(1, cutter.epochs_alike(epoch)), last - epoch, updates_left // len(cuts)))
        if whole == 0:
            whole, cuts = 1, cuts[: int(updates_left)]
        yield epoch, whole, cuts
        epoch, updates_left = epoch + whole, updates_left - whole * len(cuts)
