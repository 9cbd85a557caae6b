"""Where a run is, and a walk through all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_lr.progress.shape import RunShape


class SampleClock:
    """Where a run is: samples consumed before the next update, and how many that update will cover.

    The order of calls in a run: ``begin_micro_batch`` for every micro-batch, ``close_window`` when the optimizer is
    about to step (from then on :attr:`progress` speaks of the *next* update), ``place`` when the position in the
    epoch is known. The state is consistent at every moment at which Lightning may write a checkpoint.

    Args:
        shape: the run to walk through.
    """

    def __init__(self, shape: RunShape) -> None:
        self.shape = shape
        self.total = shape.total_units
        """Units in the whole run."""
        self.updates = 0
        """Updates done."""
        self.samples_seen = 0
        """Samples consumed over all devices, the open window included."""
        self.batch_size = 0
        """Samples in the last finished update."""
        self._units = 0
        self._window_start = 0
        self._window_samples = 0
        self._width = 0
        self.epoch = 0
        """Epoch (from 0) of the next update."""
        self.micro_batch = 0
        """Micro-batch of that epoch at which the next update begins."""
        self.place(epoch=0, micro_batch=0)

    # ------------------------------------------------------------------ reading
    @property
    def progress(self) -> float:
        """Share of the run done before the next update (the current one until its gradient is complete)."""
        return min(1.0, self._window_start / self.total)

    @property
    def width(self) -> float:
        """Share of the run that this update covers."""
        return self._width / self.total

    @property
    def epochs(self) -> float | None:
        """Epochs done before the next update, or ``None`` where an epoch has no known length."""
        units = self.shape.epoch.total_units
        return self._window_start / units if units else None

    @property
    def counts(self) -> str:
        """What a unit of progress is: ``"samples"``, or ``"micro-batches"`` where the loader does not tell."""
        return "samples" if self.shape.epoch.counts_samples else "micro-batches"

    # ------------------------------------------------------------------ walking
    def begin_micro_batch(self, units: int, samples: int | None = None) -> None:
        """Count a micro-batch over all devices, in units of progress and in samples (the same where not given)."""
        self._units += units
        self.samples_seen += units if samples is None else samples
        self._window_samples += units if samples is None else samples

    def close_window(self) -> None:
        """The update that consumes everything counted so far is about to be made."""
        self.updates += 1
        self.batch_size = self._window_samples
        self._window_samples = 0
        self._window_start = self._units
        self._reckon_total()

    def drop_open_window(self) -> None:
        """Forget the micro-batches of an unfinished update: they will be run again."""
        self._units = self._window_start
        self.samples_seen -= self._window_samples
        self._window_samples = 0

    def place(self, epoch: int, micro_batch: int) -> None:
        """Say where in the data the next window begins, which tells how much it will cover."""
        self.epoch, self.micro_batch = epoch, micro_batch
        _, self._width = self.shape.window(epoch, micro_batch)

    def seek(self, updates: int, epoch: int, micro_batch: int) -> None:
        """Place the clock by the loop's counters, for a run that is resumed without a state of ours."""
        self._units = epoch * (self.shape.epoch.total_units or 0) + self.shape.units_before(epoch, micro_batch)
        self._window_start = self._units
        self.samples_seen = self._units
        self.updates = updates
        self._reckon_total()
        self.place(epoch, micro_batch)

    # ------------------------------------------------------------------ resuming
    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues."""
        return {
            "counts": self.counts,
            "updates": self.updates,
            "samples_seen": self.samples_seen,
            "batch_size": self.batch_size,
            "units": self._units,
            "window_start": self._window_start,
            "window_samples": self._window_samples,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken (with the same :attr:`counts`); follow with :meth:`place`."""
        self.updates = int(state["updates"])
        self.samples_seen = int(state["samples_seen"])
        self.batch_size = int(state["batch_size"])
        self._units = int(state["units"])
        self._window_start = int(state["window_start"])
        self._window_samples = int(state["window_samples"])
        self._reckon_total()

    def _reckon_total(self) -> None:
        # Without a length the run ends by updates. Where some were smaller than nominal (the end of a stream), what is
        # left is still that many nominal updates, so that a curve ends with the run.
        shape = self.shape
        if shape.epoch.micro_batches is None and shape.max_updates is not None:
            self.total = max(1, self._window_start + shape.units_left(self.updates))


def walk(shape: RunShape) -> Iterator[SampleClock]:
    """Yield the clock before every update of the run, as the run itself would see it.

    What ``plan`` draws is computed by this walk through the very objects that train.
    """
    clock = SampleClock(shape)
    epoch = 0
    while clock.updates < shape.total_updates:
        batches = shape.micro_batches_in(epoch)
        position = 0
        while (batches is None or position < batches) and clock.updates < shape.total_updates:
            clock.place(epoch, position)
            yield clock
            position, units = shape.window(epoch, position)
            clock.begin_micro_batch(units)
            clock.close_window()
        epoch += 1
