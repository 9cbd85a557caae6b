"""A running mean for what was logged so often that its points would hide each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

DENSE = 150
"""Points above which a line is drawn pale, with a running mean over it."""


def smoothing_window(values: Sequence[Any]) -> int:
    """Values in the running mean: a fortieth of them, or 1 where they are few enough to be read one by one."""
    return len(values) // 40 if len(values) > DENSE else 1


def running_mean(values: Sequence[float], window: int) -> list[float]:
    """The mean of the finite values among the last ``window``; a gap stays a gap."""
    given = np.asarray(values, dtype=float)
    finite = np.isfinite(given)
    sums = np.cumsum(np.where(finite, given, 0.0))
    counts = np.cumsum(finite)
    before = np.maximum(np.arange(len(given)) - window, -1)
    start = np.where(before >= 0, sums[before], 0.0)
    number = counts - np.where(before >= 0, counts[before], 0)
    mean = np.where(finite, (sums - start) / np.maximum(number, 1), np.nan)
    return [float(value) for value in mean]
