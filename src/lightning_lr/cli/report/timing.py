"""When a run was where: seconds of training by the number of updates, from our stopwatch or TensorBoard's events.

``CSVLogger`` has no column of time. ``lightning_lr/seconds.jsonl`` is written by every run with a callback of this
package, and by every run of ``lightning-lr fit``; a ``TensorBoardLogger`` dates each value. Other runs have no seconds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning_lr.stopwatch import seconds_at


@dataclass(frozen=True)
class Timing:
    """How long a run trained.

    Args:
        known: (updates, seconds), increasing.
        since: updates that were made before the first second: 0, but where a run was resumed into a new directory.
    """

    known: tuple[tuple[float, float], ...]
    since: int = 0

    def at(self, updates: Sequence[float]) -> list[float]:
        """Seconds after each of ``updates``; interpolated between the logged ones."""
        return seconds_at(updates, [(float(self.since), 0.0), *self.known])

    @property
    def total(self) -> float:
        """Seconds until the last update that is known."""
        return self.known[-1][1]


def timing_of_journal(records: Sequence[dict[str, Any]]) -> Timing | None:
    """What the stopwatch wrote, or ``None`` where it wrote nothing."""
    timed = [r for r in records if "seconds" in r]
    known = {int(r["update"]): float(r["seconds"]) for r in timed}
    return Timing(tuple(sorted(known.items())), int(timed[0].get("since", 0))) if known else None


def timing_of_events(directory: Path, pattern: str) -> Timing | None:
    """From the dates of TensorBoard's events: one file is one ``fit``, counted from its beginning; pauses do not count.

    Where a later ``fit`` resumed is not in its events; it is taken to be the update before its first event, which
    counts up to the time of one logging interval too much.

    Args:
        directory: that of the run.
        pattern: of its event files. tensorboard is installed.
    """
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    sessions = []
    for file in directory.glob(pattern):
        events = EventAccumulator(str(file), size_guidance={"scalars": 0})
        events.Reload()
        names = [name for name in events.Tags()["scalars"] if not name.startswith("test") and name != "hp_metric"]
        dated: dict[float, float] = {}
        for event in (event for name in names for event in events.Scalars(name)):
            at = event.step + 1.0
            dated[at] = min(dated.get(at, event.wall_time), event.wall_time)
        if dated:
            sessions.append((float(events.FirstEventTimestamp()), dated))
    known: dict[float, float] = {}
    for began, dated in sorted(sessions):
        first = min(dated)
        base = seconds_at([first - 1], [(0.0, 0.0), *sorted(known.items())])[0]
        known = {at: seconds for at, seconds in known.items() if at < first}
        known |= {at: base + wall - began for at, wall in dated.items()}
    return Timing(tuple(sorted(known.items()))) if known else None
