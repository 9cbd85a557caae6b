"""One metric of a run, as its logger wrote it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import overload


@dataclass(frozen=True, eq=False)
class Pairs(Sequence[tuple[int, float]]):
    """Steps and values as pairs, of which hundreds of thousands would take ten times the memory if they were made.

    Args:
        steps: the first of each pair.
        values: the second.
    """

    steps: Sequence[int]
    values: Sequence[float]

    def __len__(self) -> int:
        return len(self.steps)

    def __iter__(self) -> Iterator[tuple[int, float]]:
        return zip(self.steps, self.values, strict=True)

    @overload
    def __getitem__(self, index: int) -> tuple[int, float]: ...

    @overload
    def __getitem__(self, index: slice) -> Pairs: ...

    def __getitem__(self, index: int | slice) -> tuple[int, float] | Pairs:
        if isinstance(index, slice):
            return Pairs(self.steps[index], self.values[index])
        return self.steps[index], self.values[index]


@dataclass(frozen=True)
class MetricSeries:
    """The values of one metric in the order of the logger's steps.

    Args:
        steps: Lightning's step numbers, increasing.
        values: one per step; may hold NaN.
    """

    steps: list[int]
    values: list[float]

    @cached_property
    def finite(self) -> Pairs:
        """(step, value) of the values that are numbers."""
        if all(map(math.isfinite, self.values)):
            return Pairs(self.steps, self.values)
        kept = [(s, v) for s, v in zip(self.steps, self.values, strict=True) if math.isfinite(v)]
        return Pairs([step for step, _ in kept], [value for _, value in kept])

    @classmethod
    def of(cls, by_step: Mapping[int, float]) -> MetricSeries:
        """From the values by their steps, in any order."""
        steps = sorted(by_step)
        return cls(steps, [by_step[step] for step in steps])
