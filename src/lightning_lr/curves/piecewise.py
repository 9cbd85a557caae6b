"""Curves in straight pieces: constant, a slanted triangle, steps, and a plateau with a fall after it."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_lr.checks import is_real
from lightning_lr.curves.arguments import check, check_floor, check_share
from lightning_lr.curves.curve import SNAP, Curve, Phase, WarmedUp, clamped, consecutive


@dataclass(frozen=True)
class Constant(WarmedUp):
    """Gradual warm-up, then no change: ``min(1, (progress + width) / warmup)``.

    Args:
        warmup: share of the run that the climb takes, in [0, 1).

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [Constant(warmup=0.5)(p, 0.25) for p in (0.0, 0.25, 0.9)]
        [0.5, 1.0, 1.0]

    Source: Goyal et al. 2017, arXiv:1706.02677, section 2.2 (gradual warm-up, per update).
    """

    decays = False

    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_share(self, "warmup")

    def _body(self, progress: float) -> float:
        return 1.0

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("constant", 1.0)]


@dataclass(frozen=True)
class SlantedTriangle(Curve):
    """A short straight climb from ``1 / ratio`` to 1 and a long straight fall back to it (STLR)::

        p = progress / cut_fraction                    before the cut
            (1 - progress) / (1 - cut_fraction)        after it
        factor = (1 + p (ratio - 1)) / ratio

    The paper rounds the cut down to a whole update, floor(T cut_fraction), and keeps the slope of the exact cut after
    it. That divides by zero for T < 1 / cut_fraction and ends below zero for T just under a multiple of it. Here
    the cut stays where cut_fraction puts it; wherever T cut_fraction is an integer the two formulas are the same.

    Args:
        cut_fraction: share of the run at which the climb ends, in (0, 1).
        ratio: highest factor over the lowest, above 1.

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [round(SlantedTriangle()(p), 4) for p in (0.0, 0.1, 0.55)]
        [0.0312, 1.0, 0.5156]

    Source: Howard & Ruder 2018, arXiv:1801.06146, eq. 3.
    """

    cut_fraction: float = 0.1
    ratio: float = 32.0

    def __post_init__(self) -> None:
        check(self, "cut_fraction", lambda value: 0 < value < 1, "a share of the run in (0, 1)")
        check(self, "ratio", lambda value: value > 1, "a number above 1")

    def __call__(self, progress: float, width: float = 0.0) -> float:
        """Return the factor for one update; ``width`` changes nothing, as the climb starts above zero by itself."""
        if not (0.0 <= progress <= 1.0 and width >= 0.0):
            progress = clamped(self, progress, width)
        if progress < self.cut_fraction:
            height = progress / self.cut_fraction
        else:
            height = (1.0 - progress) / (1.0 - self.cut_fraction)
        return height + (1.0 - height) / self.ratio

    def phases(self) -> tuple[Phase, ...]:
        return consecutive([("climb", self.cut_fraction), ("decay", 1.0)])


@dataclass(frozen=True)
class Step(WarmedUp):
    """A drop at each milestone: ``factor ** (number of milestones that progress has reached)``.

    Args:
        milestones: shares of the whole run, warm-up included, strictly increasing within (warmup, 1); kept as a tuple.
        factor: what each drop multiplies by, in (0, 1).
        warmup: share of the run that the climb takes, in [0, 1).

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [round(Step()(p), 4) for p in (0.0, 0.3, 0.7)]
        [1.0, 0.1, 0.01]

    Source: the milestones are those of wide residual networks, 60, 120 and 160 of 200 epochs (Zagoruyko & Komodakis
    2016, arXiv:1605.07146, with factor 0.2); the tenth is that of Goyal et al. 2017, arXiv:1706.02677.
    """

    milestones: Sequence[float] = (0.3, 0.6, 0.8)
    factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        check_share(self, "warmup")
        check(self, "factor", lambda value: 0 < value < 1, "a number in (0, 1)")
        given = self.milestones
        # A tuple, because a YAML list would leave the frozen dataclass without a hash.
        milestones = tuple(given) if isinstance(given, Iterable) else ()
        if not (milestones and all(map(is_real, milestones)) and _increases(self.warmup, *milestones, 1.0)):
            raise ValueError(
                f"Step: milestones={given!r} is not a list of shares of the run that strictly increase within "
                f"({self.warmup!r}, 1), after the warm-up; give epochs / max_epochs, or use Constant for no drop"
            )
        object.__setattr__(self, "milestones", tuple(map(float, milestones)))

    def _body(self, progress: float) -> float:
        return math.pow(self.factor, bisect_right(self.milestones, progress + SNAP))

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [(f"step {number}", end) for number, end in enumerate([*self.milestones, 1.0], start=1)]


@dataclass(frozen=True)
class WarmupStableDecay(WarmedUp):
    """A climb, a plateau at 1, and a straight fall over the last part (WSD)::

        floor + (1 - floor) min(1, (1 - progress) / decay)        after the warm-up

    Args:
        warmup: share of the run that the climb takes, in [0, 1).
        decay: share of the run that the fall takes, in [0, 1); warmup + decay is at most 1.
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range, or warmup + decay passes 1.

    Example:
        >>> [round(WarmupStableDecay()(p, 0.01), 4) for p in (0.0, 0.5, 0.9)]
        [0.2, 1.0, 0.5]

    Source: Hu et al. 2024, arXiv:2404.06395 (MiniCPM; their fall is exponential); the straight fall is that of Haegele
    et al. 2024, arXiv:2405.18392.
    """

    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_share(self, "warmup")
        check_share(self, "decay")
        check_floor(self)
        if self.warmup + self.decay > 1.0 + SNAP:
            raise ValueError(
                f"WarmupStableDecay: warmup={self.warmup!r} and decay={self.decay!r} add up to more than the "
                "whole run; lower one until warmup + decay is at most 1"
            )

    def _body(self, progress: float) -> float:
        left = 1.0 - progress
        if left >= self.decay:
            return 1.0
        return self.floor + (1.0 - self.floor) * left / self.decay

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("stable", 1.0 - self.decay), ("decay", 1.0)]


def _increases(*values: float) -> bool:
    return all(low < high for low, high in pairwise(values))
