"""How long a run has trained: lines of ``<log_dir>/lightning_lr/seconds.jsonl``, one at each logged update.

The seconds are those of training, from its start to the end of the update: validations and checkpoints in between
count, the set-up of the Trainer does not. A resumed run goes on from the seconds at which the restored update was made,
so the pause and the work that was lost do not count. Pure Python.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence

from lightning_lr.journal import Journal, read_journal

JOURNAL = "seconds"
EVENT = "logged"


class Stopwatch:
    """Writes the seconds of a run next to its decisions.

    Args:
        journal: where they go.
        update: updates that were made before training starts (again).
        now: a clock, in seconds.
    """

    def __init__(self, journal: Journal, update: int, now: Callable[[], float] = time.perf_counter) -> None:
        self._journal, self._now = journal, now
        before = [r for r in read_journal(journal.path) if "seconds" in r] if journal.path.exists() else []
        journal.truncate(update + 1)  # the line of an update was written after it: that of the restored one stays
        self._since, self._base = update, 0.0
        if before and update >= before[0]["since"]:
            self._since = int(before[0]["since"])
            known = [(self._since, 0.0), *((int(r["update"]), float(r["seconds"])) for r in before)]
            self._base = seconds_at([update], known)[0]
        self._last = max((r["update"] for r in before if r["update"] <= update), default=0)
        self._began = now()

    def note(self, update: int) -> None:
        """Write down that the first ``update`` updates are done; once for each."""
        if update > self._last:
            self._last = update
            seconds = round(self._base + self._now() - self._began, 3)
            self._journal.append(update, EVENT, seconds=seconds, since=self._since)


def seconds_at(updates: Sequence[float], known: Sequence[tuple[float, float]]) -> list[float]:
    """Seconds after each of ``updates``, interpolated between what is known; beyond it, those of the nearest.

    Args:
        updates: how many were done.
        known: (updates, seconds), increasing.
    """
    at = [k[0] for k in known]
    found = []
    for update in updates:
        right = min(bisect_left(at, update), len(at) - 1)
        left = right if at[right] <= update else max(0, right - 1)
        share = 0.0 if left == right else (update - at[left]) / (at[right] - at[left])
        found.append(known[left][1] + max(0.0, share) * (known[right][1] - known[left][1]))
    return found
