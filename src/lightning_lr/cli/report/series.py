"""One metric of a run, as its logger wrote it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class MetricSeries:
    """The values of one metric in the order of the logger's steps.

    Args:
        steps: Lightning's step numbers, increasing.
        values: one per step; may hold NaN.
    """

    steps: list[int]
    values: list[float]

    @property
    def finite(self) -> list[tuple[int, float]]:
        """(step, value) of the values that are numbers."""
        return [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]

    @classmethod
    def of(cls, by_step: Mapping[int, float]) -> MetricSeries:
        """From the values by their steps, in any order."""
        steps = sorted(by_step)
        return cls(steps, [by_step[step] for step in steps])
