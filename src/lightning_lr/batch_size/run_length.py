"""How long a run is in samples, where it ends by updates: the samples depend on the batches, and those on the length.

Where the schedule asks for no progress (milestones in epochs), the length follows by counting; for a curve it is the
solution of an equation, and every evaluation of it walks through the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

from lightning_lr.batch_size.cutter import Cutter


def cutter_for_run(cutter: Cutter, max_epochs: int | None, max_updates: int | None) -> Cutter:
    """Return ``cutter`` with the length of the run in place of its own.

    Args:
        cutter: with any length.
        max_epochs: epochs after which the run ends, or ``None``.
        max_updates: updates after which the run ends, or ``None``. The earlier of the two ends it.
    """
    if max_epochs is not None:
        cutter = replace(cutter, length=max_epochs * cutter.device_samples * cutter.rule.world_size)
    if max_updates is None or (max_epochs is not None and cutter.position_after(max_updates + 1) > cutter.length):
        return cutter
    if cutter.schedule.changes() is not None or math.isinf(cutter.begin):
        return replace(cutter, length=cutter.position_after(max_updates))

    def position_after(length: int) -> int:
        return replace(cutter, length=length).position_after(max_updates)

    without_ramp = replace(cutter, begin=math.inf).position_after(max_updates)
    return replace(cutter, length=length_for_updates(position_after, without_ramp, tolerance=cutter.rule.start))


def length_for_updates(position_after: Callable[[int], int], guess: int, tolerance: int) -> int:
    """Solve ``length = position_after(length)``: the samples that a run of a given number of updates comes to.

    A curve's progress is a share of the run's samples, which depend on the batches, which follow the curve. The longer
    the run is taken to be, the later the curve falls and the fewer samples its updates get: ``position_after`` falls,
    so the two sides cross once, between any guess and what it leads to. Regula falsi finds it, with the Illinois step
    that keeps one end from standing still. Batches are whole samples, so the two sides may step over each other
    instead of meeting; the closest length met is returned.

    Args:
        position_after: samples at the end of the run, were its length the argument; it does not rise.
        guess: a length to start from.
        tolerance: difference of the two sides, in samples, at which they count as equal.
    """
    gaps = {guess: position_after(guess) - guess}
    other = guess + gaps[guess]
    gaps[other] = position_after(other) - other
    low, high = sorted((guess, other))
    height_low, height_high = float(gaps[low]), float(gaps[high])
    while min(map(abs, gaps.values())) > tolerance and high - low > 1 and height_low > 0 > height_high:
        middle = low + round((high - low) * height_low / (height_low - height_high))
        middle = min(high - 1, max(low + 1, middle))
        before = gaps[middle] = position_after(middle) - middle
        if before > 0:
            low, height_low, height_high = middle, before, height_high / 2
        else:
            high, height_high, height_low = middle, before, height_low / 2
    return min(gaps, key=lambda length: (abs(gaps[length]), length))
