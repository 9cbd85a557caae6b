"""Where a run is, and a walk through all of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning_lr.progress.budget import NoEndError, Place, Span
from lightning_lr.progress.shape import RunShape
from lightning_lr.saved_state import COUNT, FLAG, FROM_0, SHARE, keys, later, one_of, optional, row

SAVED = keys(
    {
        "counts": later(one_of("samples", "micro-batches")),
        "updates": COUNT,
        "samples_seen": COUNT,
        "samples_counted": later(FLAG),
        "batch_size": COUNT,
        "window_samples": COUNT,
        "progress": later(optional(SHARE)),
        "place": later(row(COUNT, COUNT, COUNT, FROM_0)),
        "update_made": later(FLAG),
        "update_seconds": later(FROM_0),
        **{name: later(COUNT) for name in ("units", "window_start")},  # of 0.1.0
    }
)
"""The form of :meth:`SampleClock.state_dict`."""


class SampleClock:
    """Where a run is: the share of its budget spent before the next update, and the share that this will cover.

    :meth:`stand` takes the loop's counters whenever the loop has moved; nothing is accumulated here, so no place that
    the loop can be moved to is wrong. :meth:`close_window` is for the time between an update and the next place: from
    then on :attr:`progress` is that of the *next* update. Samples are counted separately, for reports.

    Args:
        shape: the run to walk through.
    """

    def __init__(self, shape: RunShape) -> None:
        self._shape = shape
        self.updates = 0
        """Updates done."""
        self.samples_seen = 0
        """Samples consumed over all devices, the open window included."""
        self.samples_counted = True
        """Whether the samples of every micro-batch so far were known, so that :attr:`samples_seen` is right."""
        self.batch_size = 0
        """Samples in the last finished update."""
        self.rescaled = 1.0
        """How much the shares of the run so far have grown, as a factor, by changes of the run's budget."""
        self.epoch = 0
        """Epoch (from 0) of the next update."""
        self.micro_batch = 0
        """Micro-batch of that epoch at which the next update begins."""
        self._window_samples = 0
        self._place = Place()
        self._spans: list[Span] = []
        self._before: float | None = None  # the update, and after it
        self._after: float | None = None
        self._epoch_span: Span | None = None
        self._update_seconds = 0.0
        self._update_made = False
        self.stand(Place())

    # ------------------------------------------------------------------ reading
    @property
    def shape(self) -> RunShape:
        """The run as it will be if nothing changes any more."""
        return self._shape

    @shape.setter
    def shape(self, shape: RunShape) -> None:
        """Go on in a run whose end or epochs have changed."""
        if shape is self._shape:
            return
        before = self._progress()
        self._shape = shape
        self._measure()
        self._rescale(before)

    @property
    def progress(self) -> float:
        """Share of the run's budget spent before the next update (the current one until its gradient is complete).

        Raises:
            NoEndError: where the run has no end.
        """
        progress = self._after if self._update_made else self._before
        if progress is None:
            raise NoEndError(self.shape.why_no_end)
        return progress

    @property
    def width(self) -> float:
        """Share of the run's budget that this update covers.

        Raises:
            NoEndError: where the run has no end.
        """
        if len(self._spans) == 1:
            start, end, whole = self._spans[0]
            return (end - start) / whole
        if not self._spans:
            raise NoEndError(self.shape.why_no_end)
        first, last = max(self._spans, key=_progress), max(self._spans, key=_after)
        return first.width if first is last else last.after - first.progress

    @property
    def epochs(self) -> float | None:
        """Epochs done before the next update, or ``None`` where an epoch has no known length."""
        span = self._epoch_span
        if span is None:
            return None
        return self._place.epoch + (span.end if self._update_made else span.start) / span.whole

    @property
    def epoch_width(self) -> float | None:
        """Epochs that this update covers, or ``None`` where an epoch has no known length."""
        return None if self._epoch_span is None else self._epoch_span.width

    @property
    def counts(self) -> str:
        """What the shape counts: ``"samples"``, or ``"micro-batches"`` where the loader's batch size is not known."""
        return "samples" if self.shape.epoch.counts_samples else "micro-batches"

    # ------------------------------------------------------------------ walking
    def stand(self, place: Place) -> None:
        """The loop stands here, before the next update."""
        if place.updates == self._place.updates + 1 and place.seconds > self._place.seconds:
            self._update_seconds = place.seconds - self._place.seconds
        self._place = place
        self._update_made = False
        self.updates, self.epoch, self.micro_batch = place.updates, place.epoch, place.micro_batch
        self._measure()

    @property
    def lacks_seconds(self) -> bool:
        """Whether time limits the run and no update has been made yet that tells how long one takes."""
        return self.shape.max_seconds is not None and self._update_seconds == 0.0

    def take(self, seconds: float) -> None:
        """The update before which the clock stands has taken until ``seconds`` of the run."""
        self._update_seconds = max(0.0, seconds - self._place.seconds)
        self._measure()

    def count(self, samples: int | None) -> None:
        """Count the samples of a micro-batch over all devices; ``None`` where they are not known."""
        if samples is None:
            self.samples_counted = False
            return
        self.samples_seen += samples
        self._window_samples += samples

    def close_window(self) -> None:
        """The update that consumes everything counted so far is about to be made."""
        self.updates += 1
        self._update_made = True
        self.batch_size = self._window_samples
        self._window_samples = 0

    def drop_open_window(self) -> None:
        """Forget the samples of an unfinished update: its gradient is lost."""
        self.samples_seen -= self._window_samples
        self._window_samples = 0

    # ------------------------------------------------------------------ resuming
    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues."""
        return {
            "counts": self.counts,
            "updates": self.updates,
            "samples_seen": self.samples_seen,
            "samples_counted": self.samples_counted,
            "batch_size": self.batch_size,
            "window_samples": self._window_samples,
            "progress": self._progress(),
            "place": [self._place.epoch, self._window, self._place.updates, self._place.seconds],
            "update_made": self._update_made,
            "update_seconds": self._update_seconds,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue what is counted where ``state`` was taken; the place is the loop's, see :meth:`resume`."""
        self.samples_seen = int(state["samples_seen"])
        self.samples_counted = bool(state.get("samples_counted", True))
        self.batch_size = int(state["batch_size"])
        self._window_samples = int(state["window_samples"])
        self._update_seconds = float(state.get("update_seconds", 0.0))  # not in checkpoints of 0.1.0

    def resume(self, place: Place, state: dict[str, Any] | None) -> None:
        """Move to where a run continues, by the loop's counters; ``state`` has what they lack.

        Args:
            place: where the loop stands.
            state: of :meth:`state_dict`; ``None`` where the run went on without a clock until now.
        """
        if state is None:
            self.samples_seen = self.shape.samples_before(place)
            self.stand(place)
            return
        self.load_state_dict(state)
        if "place" not in state:  # of 0.1.0
            if self._window_samples:
                place = place._replace(window=self.shape.window_start(place.epoch, place.micro_batch))
            self.stand(place)
            return
        saved = Place(*state["place"])
        made = bool(state["update_made"])
        same_update = not made and (saved.epoch, saved.updates) == (place.epoch, place.updates)
        if same_update and saved.micro_batch <= place.micro_batch:
            place = place._replace(window=saved.micro_batch)  # inside the update that was open
        self.stand(saved)  # the same place in a run whose end may be another one now
        self._update_made = made
        self._rescale(state["progress"])
        self.stand(place)

    # ------------------------------------------------------------------ inside
    @property
    def _window(self) -> int:
        return self._place.micro_batch if self._place.window is None else self._place.window

    def _progress(self) -> float | None:
        return self._after if self._update_made else self._before

    def _measure(self) -> None:
        shape, place = self._shape, self._place
        self._epoch_span = shape.epoch_span(place)
        self._spans = shape.budget.spans(place, self._epoch_span, self._update_seconds)
        if len(self._spans) == 1:  # at every update: without calls
            start, end, whole = self._spans[0]
            before, after = start / whole, end / whole
            self._before, self._after = before if before < 1.0 else 1.0, after if after < 1.0 else 1.0
        else:
            self._before = max(map(_progress, self._spans), default=None)
            self._after = max(map(_after, self._spans), default=None)

    def _rescale(self, before: float | None) -> None:
        now = self._progress()
        if before and now and before != now:
            self.rescaled *= now / before


def _progress(span: Span) -> float:
    return span.progress


def _after(span: Span) -> float:
    return span.after


def walk(shape: RunShape) -> Iterator[SampleClock]:
    """Yield the clock before every update of the run, as the run itself would see it.

    What ``plan`` draws is computed by this walk through the very objects that train.
    """
    clock = SampleClock(shape)
    epoch = updates = 0
    while updates < shape.total_updates:
        batches = shape.micro_batches_in(epoch)
        position = 0
        while (batches is None or position < batches) and updates < shape.total_updates:
            clock.stand(Place(epoch, position, updates))
            yield clock
            position, units = shape.window(epoch, position)
            clock.count(units)
            clock.close_window()
            updates += 1
        epoch += 1
