"""Curves that fall all the way: half a cosine, cosine cycles, and a power of what is left."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from lightning_lr.curves.arguments import check, check_floor, check_share
from lightning_lr.curves.curve import SNAP, WarmedUp

MAX_CYCLES = 10_000


@dataclass(frozen=True)
class Cosine(WarmedUp):
    """Half a cosine from 1 to ``floor``: ``floor + (1 - floor) (1 + cos(pi x)) / 2``.

    x is the share of the run after the warm-up that is done.

    Args:
        warmup: share of the run that the climb takes, in [0, 1).
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [round(Cosine(warmup=0.2)(p, 0.1), 4) for p in (0.0, 0.6, 1.0)]
        [0.5, 0.5, 0.0]

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 with one cycle; with a warm-up, He et al. 2019,
    arXiv:1812.01187.
    """

    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check_share(self, "warmup")
        check_floor(self)

    def _body(self, progress: float) -> float:
        return _half_cosine(1.0, self.floor, self._share_after_warmup(progress))

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("cosine", 1.0)]


@dataclass(frozen=True)
class CosineRestarts(WarmedUp):
    """Cosine cycles that start again at the top (SGDR).

    Cycle i has length ``l_i = first_cycle * cycle_growth**i`` and falls from ``p_i = max(floor, peak_decay**i)``::

        floor + (p_i - floor) (1 + cos(pi s / l_i)) / 2        s: share done since the cycle's start

    The end of the run cuts the last cycle short, or ends it; it starts no cycle.

    Args:
        first_cycle: length of the first cycle as a share of the whole run, in (0, 1]; it starts after the warm-up.
        cycle_growth: length of a cycle over that of the one before it, at least 1; need not be an integer.
        warmup: share of the run that the climb takes, in [0, 1).
        floor: factor at the end of each cycle, in [0, 1].
        peak_decay: factor at the start of a cycle over that of the one before it, in (0, 1].

    Raises:
        ValueError: if an argument is outside its range, or there are more than 10000 cycles.

    Example:
        >>> curve = CosineRestarts(first_cycle=0.25, cycle_growth=1.0, peak_decay=0.5)
        >>> [round(curve(p), 4) for p in (0.0, 0.125, 0.25)]
        [1.0, 0.5, 0.5]

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 (T_mult = cycle_growth); the falling peak is new here.
    """

    first_cycle: float = 0.1
    cycle_growth: float = 2.0
    warmup: float = 0.0
    floor: float = 0.0
    peak_decay: float = 1.0

    def __post_init__(self) -> None:
        check(self, "first_cycle", lambda value: 0 < value <= 1, "a share of the whole run, in (0, 1]")
        check(self, "cycle_growth", lambda value: value >= 1, "a number of at least 1: shrinking cycles may never end")
        check_share(self, "warmup")
        check_floor(self)
        check(self, "peak_decay", lambda value: 0 < value <= 1, "a number in (0, 1]")
        if len(self._cycles[0]) > MAX_CYCLES:
            raise ValueError(
                f"CosineRestarts: first_cycle={self.first_cycle!r} with cycle_growth={self.cycle_growth!r} makes more "
                f"than {MAX_CYCLES} cycles; raise one of them"
            )

    def restarts(self) -> tuple[float, ...]:
        """Return the progress, as shares of the whole run, at which each cycle starts; the first is ``warmup``."""
        return self._cycles[0]

    def cycle_length(self, progress: float) -> float:
        """Return the length, as a share of the whole run, of the cycle that an update at ``progress`` belongs to.

        A warm-up belongs to the first cycle; a last cycle that the end of the run cuts short counts in full.
        """
        return self._cycles[1][self._cycle(progress)]

    def _cycle(self, progress: float) -> int:
        return max(0, bisect_right(self._cycles[0], progress + SNAP) - 1)

    @cached_property
    def _cycles(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Starts and lengths as shares of the whole run; added up, for a float log misplaces starts."""
        starts, lengths = [float(self.warmup)], [self.first_cycle]
        while (start := starts[-1] + lengths[-1]) < 1.0 - SNAP and len(starts) <= MAX_CYCLES:
            starts.append(start)
            lengths.append(lengths[-1] * self.cycle_growth)
        return tuple(starts), tuple(lengths)

    def _body(self, progress: float) -> float:
        starts, lengths = self._cycles
        cycle = self._cycle(progress)
        position = (progress - starts[cycle]) / lengths[cycle]
        peak = max(self.floor, self.peak_decay**cycle)
        return _half_cosine(peak, self.floor, min(1.0, max(0.0, position)))

    def _parts(self) -> Iterable[tuple[str, float]]:
        ends = [*self.restarts()[1:], 1.0]
        return [(f"cycle {number}", end) for number, end in enumerate(ends, start=1)]


@dataclass(frozen=True)
class Polynomial(WarmedUp):
    """A power of the share that is left: ``floor + (1 - floor) (1 - x)**power``.

    x is the share of the run after the warm-up that is done.

    Args:
        power: exponent, above 0; 1 is a straight line.
        warmup: share of the run that the climb takes, in [0, 1).
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range.

    Example:
        >>> [round(Polynomial(power=2.0)(p), 4) for p in (0.0, 0.5, 0.9)]
        [1.0, 0.25, 0.01]

    Source: You et al. 2017, arXiv:1708.03888, algorithm 1 (power 2).
    """

    power: float = 2.0
    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        check(self, "power", lambda value: value > 0, "a number above 0")
        check_share(self, "warmup")
        check_floor(self)

    def _body(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * math.pow(1.0 - self._share_after_warmup(progress), self.power)

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("polynomial", 1.0)]


def _half_cosine(top: float, bottom: float, share: float) -> float:
    return bottom + (top - bottom) * (1.0 + math.cos(math.pi * share)) / 2.0
