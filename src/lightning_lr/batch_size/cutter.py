"""Cutting a run into updates: where each window of each epoch begins, how large it is, and how long the run gets.

Everything is counted per device, in samples of one epoch (``position``), because devices take equal shares. A change
of the batch takes effect at the first window that begins at or after it; the end of an epoch cuts its last window.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lightning_lr.batch_size.batch_rule import BatchRule
from lightning_lr.batch_size.schedules import RampSchedule
from lightning_lr.curves import SNAP


class Cut(NamedTuple):
    """One window, per device."""

    position: int
    size: int
    batch_size: int
    lr_factor: float
    part: int


@dataclass(frozen=True)
class Cutter:
    """Cuts epochs into windows.

    Args:
        schedule: how the noise scale falls.
        rule: batch and learning rate for that.
        device_samples: samples of one device in an epoch.
        drop_last: whether a window that the end of an epoch cuts short is left out.
        begin: samples of the run over all devices before the ramp, ``math.inf`` if it has not begun.
        length: samples of the run over all devices, to which progress is a share; what ``drop_last`` leaves out counts.
    """

    schedule: RampSchedule
    rule: BatchRule
    device_samples: int
    drop_last: bool
    begin: float
    length: float

    def cuts(self, epoch: int) -> Iterator[Cut]:
        """Yield the windows of an epoch in order."""
        schedule, rule = self.schedule, self.rule
        for position, size, batch_size, progress in self._sizes(epoch):
            if progress < 0.0:
                yield Cut(position, size, batch_size, 1.0, -1)
                continue
            when = epoch + position / self.device_samples
            decay = schedule.decay(when, progress, size * rule.world_size / self._span)
            yield Cut(position, size, batch_size, rule.lr_factor(decay, batch_size), schedule.part(when, progress))

    def epochs_alike(self, epoch: int) -> float:
        """Number of epochs from this one on that are cut alike in windows all alike; 0 where a change is inside it."""
        changes = self._changes
        if changes is None:
            return 0
        index = bisect_right(changes, epoch + SNAP)
        return math.floor(changes[index] + SNAP) - epoch if index < len(changes) else math.inf

    def pattern(self, epoch: int) -> int | None:
        """A number that epochs share which are cut alike in windows all alike; ``None`` for any other epoch."""
        return bisect_right(self._changes or (), epoch + SNAP) if self.epochs_alike(epoch) else None

    def updates_before(self, samples: float, enough: float = math.inf) -> int:
        """Number of windows that begin before so many samples of the run, over all devices, are consumed.

        Args:
            samples: of the run.
            enough: from which on no more are counted: a Trainer's ``max_epochs`` may be a thousand million.
        """
        epoch, updates = 0, 0
        epoch_samples = self.device_samples * self.rule.world_size
        while epoch * epoch_samples < samples and updates < enough:
            alike = min(self.epochs_alike(epoch), samples // epoch_samples - epoch)
            if alike >= 1:
                updates += int(alike) * sum(1 for _ in self._sizes(epoch))
                epoch += int(alike)
                continue
            last = samples / self.rule.world_size - epoch * self.device_samples
            updates += sum(position < last for position, _, _, _ in self._sizes(epoch))
            epoch += 1
        return updates

    @cached_property
    def _span(self) -> float:
        return max(1.0, self.length - self.begin)

    @cached_property
    def _changes(self) -> tuple[float, ...] | None:
        if math.isinf(self.begin):
            return ()
        changes = self.schedule.changes()
        if changes is None:
            return None
        begin = self.begin / (self.device_samples * self.rule.world_size)
        return (begin, *(change for change in changes if change > begin + SNAP)) if begin > 0 else changes

    def _sizes(self, epoch: int) -> Iterator[tuple[int, int, int, float]]:
        """Position, size and full batch of each window, and the progress at its start; -1 before the ramp begins."""
        schedule, rule, samples, world = self.schedule, self.rule, self.device_samples, self.rule.world_size
        begin, span = self.begin, self._span
        before, position = epoch * samples * world, 0
        while position < samples:
            done = before + position * world
            if done < begin:
                progress, batch_size = -1.0, rule.start
            else:
                progress = min(1.0, (done - begin) / span)
                batch_size = rule.batch_size(schedule.batch_decay(epoch + position / samples, progress))
            size = batch_size // world
            if size > samples - position:
                if self.drop_last:
                    return
                size = samples - position
            yield position, size, batch_size, progress
            position += size
