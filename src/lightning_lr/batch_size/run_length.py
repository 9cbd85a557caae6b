"""How long a run is in samples, where it ends by updates: the samples depend on the batches, and those on the length.

A curve's progress is a share of the run's samples. Where a number of updates ends the run, its samples depend on the
batches, which follow the curve, whose progress is a share of the samples: an equation, solved here. Schedules that
change at epochs ask for no progress and need none of it.
"""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_lr.batch_size.cutter import Cutter

TOLERANCE = 1e-4
"""Share of the updates by which a curve may end before or after the run; below one update, none."""

MAX_WALKS = 12
"""Walks through the run that the solution may take; three or four are usual."""


def cutter_for_run(cutter: Cutter, max_epochs: int | None, max_updates: int | None) -> Cutter:
    """Return ``cutter`` with the length of the run in place of its own.

    Args:
        cutter: with any length.
        max_epochs: epochs after which the run ends, or ``None``.
        max_updates: updates after which the run ends, or ``None``. The earlier of the two ends it.
    """
    if max_epochs is not None:
        cutter = replace(cutter, length=max_epochs * cutter.device_samples * cutter.rule.world_size)
    if max_updates is None or (
        max_epochs is not None and cutter.updates_before(cutter.length, max_updates + 1) <= max_updates
    ):
        return cutter
    nominal = replace(cutter, length=max_updates * cutter.rule.start)
    if cutter.schedule.changes() is not None or math.isinf(cutter.begin):
        return nominal
    return _cutter_for_updates(nominal, max_updates)


def _cutter_for_updates(cutter: Cutter, max_updates: int) -> Cutter:
    """Solve ``updates(length) = max_updates``, where ``updates`` walks through the run of that length.

    A curve stretched to twice the length takes about twice the updates, so ``length * max_updates / updates`` is close
    at once; what rounding and the ends of epochs do to it, halving the interval undoes. Where no length has exactly
    ``max_updates`` (of a curve with restarts, a large batch more or less makes many small ones), the closest met is
    taken.
    """
    best, best_gap = cutter, math.inf
    low, high = 0.0, math.inf
    for _ in range(MAX_WALKS):
        length, updates = cutter.length, cutter.updates_before(cutter.length)
        if abs(updates - max_updates) < best_gap:
            best, best_gap = cutter, abs(updates - max_updates)
        if best_gap <= TOLERANCE * max_updates:
            break
        if updates < max_updates:
            low = max(low, length)
        else:
            high = min(high, length)
        guess = length + (length - cutter.begin) * (max_updates - updates) / updates
        cutter = replace(cutter, length=round(guess if low < guess < high else (low + high) / 2))
    return best
