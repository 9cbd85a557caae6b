"""The budget of a run, and how much of it is spent: the one place where progress is defined.

A run ends by a number of updates, a number of epochs or a span of time, whichever ends first. Progress is the largest
of the three shares that are spent. All of it is arithmetic on the loop's own counters, so that it is right wherever
the loop stands: after a resume, a second ``fit``, a reloaded loader, an epoch that was cut short. Pure Python.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple


class NoEndError(ValueError):
    """Progress was needed in a run that has no known end."""


class Place(NamedTuple):
    """Where the training loop stands, in its own counters.

    Args:
        epoch: epochs done.
        micro_batch: micro-batches of the present epoch done, per device.
        updates: updates made in the whole run, as ``max_steps`` counts them.
        seconds: time spent in the whole run, the fits before a resume included.
        window: the micro-batch at which the coming update began, where it is not ``micro_batch``: a resume inside it.
    """

    epoch: int = 0
    micro_batch: int = 0
    updates: int = 0
    seconds: float = 0.0
    window: int | None = None


class Span(NamedTuple):
    """What one update covers of something: where it begins, where it ends, and the whole."""

    start: float
    end: float
    whole: float

    @property
    def progress(self) -> float:
        """The share spent before the update."""
        return min(1.0, self.start / self.whole)

    @property
    def after(self) -> float:
        """The share spent after the update."""
        return min(1.0, self.end / self.whole)

    @property
    def width(self) -> float:
        """The share that the update covers."""
        return (self.end - self.start) / self.whole


@dataclass(frozen=True)
class Budget:
    """What ends a run; ``None`` where a limit is not set.

    Args:
        max_epochs: epochs.
        max_updates: updates, the Trainer's ``max_steps``.
        max_seconds: seconds of training.
    """

    max_epochs: int | None = None
    max_updates: int | None = None
    max_seconds: float | None = None

    def spans(self, place: Place, epoch: Span | None, seconds: float) -> list[Span]:
        """What the coming update covers of each limit that is set.

        Args:
            place: where the loop stands.
            epoch: what the update covers of its epoch, in whole numbers; ``None`` where an epoch has no known length.
            seconds: that an update takes, as far as is known.
        """
        found = []
        if self.max_updates is not None:
            found.append(Span(place.updates, place.updates + 1, self.max_updates))
        if self.max_epochs is not None and epoch is not None:
            # whole numbers until the one division: update t of T equal ones has t / T to the bit
            before = place.epoch * epoch.whole
            found.append(Span(before + epoch.start, before + epoch.end, self.max_epochs * epoch.whole))
        if self.max_seconds is not None:
            found.append(Span(place.seconds, place.seconds + seconds, self.max_seconds))
        return found
