"""Curves decide how a quantity changes over a run: each maps training progress in [0, 1] to a factor in [0, 1].

Progress is counted in samples, so a batch that grows during the run bends no curve. ``LearningRateSchedule``
multiplies the learning rate by the factor, ``BatchSizeRamp(CurveRamp(curve))`` divides the noise scale by it, and
``AdaptiveWarmup`` follows it after the warm-up that it found. Sources: SGDR (Loshchilov & Hutter 2017,
arXiv:1608.03983), ULMFiT (Howard & Ruder 2018, arXiv:1801.06146), gradual warm-up (Goyal et al. 2017,
arXiv:1706.02677), LARS (You et al. 2017, arXiv:1708.03888).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import pairwise
from numbers import Integral
from typing import TYPE_CHECKING, ClassVar

from lightning_lr.checks import is_real

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

SNAP = 1e-9
"""Progress this little below a boundary counts as having reached it: t / T and a sum of shares round differently."""

MAX_CYCLES = 10_000


@dataclass(frozen=True)
class Phase:
    """One named part of the run that a curve defines.

    Args:
        name: what the curve does there, for example "warm-up" or "cycle 2".
        start: where it begins, as a share of the run.
        end: where it ends, as a share of the run.
    """

    name: str
    start: float
    end: float


class Curve(ABC):
    """A map from training progress to a factor; subclass it and write ``__call__`` for a curve of your own.

    ``Curve`` itself is no dataclass: jsonargparse asks for the fields of a dataclass, and has to offer a choice of
    subclasses here, by ``class_path``.
    """

    decays: ClassVar[bool] = True
    """Whether the factor falls again; two callbacks whose curves both do would decay the learning rate twice."""

    @abstractmethod
    def __call__(self, progress: float, width: float = 0.0) -> float:
        """Return the factor for one update.

        Args:
            progress: share of the run, in samples, done before the update. Values outside [0, 1] are clamped.
            width: share of the run that the update itself covers. It counts in the climb of a warm-up only, so that the
                first update does not run at zero.

        Returns:
            The factor, in [0, 1].

        Raises:
            ValueError: if progress or width is NaN, or width is negative.
        """

    def phases(self) -> tuple[Phase, ...]:
        """Return the named parts of the run, in order, covering [0, 1] without gaps."""
        return (Phase(type(self).__name__, 0.0, 1.0),)

    def scheduler(self, optimizer: Optimizer, total_updates: int) -> LRScheduler:
        """Return a torch scheduler that follows this curve, for use without the callback.

        Update t runs at ``base_lr * curve(t / T, 1 / T)``; from update T on the factor stays at ``curve(1)``.

        Args:
            optimizer: its groups keep the ratio of their learning rates.
            total_updates: T, the optimizer updates of the whole run; call ``step()`` once after each.

        Raises:
            ValueError: if total_updates is not a positive integer.
        """
        if isinstance(total_updates, bool) or not isinstance(total_updates, Integral) or total_updates < 1:
            raise ValueError(
                f"{type(self).__name__}.scheduler: total_updates={total_updates!r} is not a positive integer; "
                "give the number of optimizer updates of the whole run"
            )
        from torch.optim.lr_scheduler import LambdaLR

        # A partial pickles, and its __dict__, which LambdaLR copies into the state_dict, is empty: the checkpoint holds
        # plain types only, and a resumed run follows the curve of its own configuration.
        return LambdaLR(optimizer, partial(_factor_of_update, self, int(total_updates)))


def _factor_of_update(curve: Curve, total_updates: int, update: int) -> float:
    if update >= total_updates:
        return curve(1.0)
    return curve(update / total_updates, 1.0 / total_updates)


class _WarmedUp(Curve):
    """A curve that climbs in a straight line over ``warmup`` and then follows its ``_body``, which starts at 1."""

    warmup: float

    def __call__(self, progress: float, width: float = 0.0) -> float:
        if not (0.0 <= progress <= 1.0 and width >= 0.0):
            progress = _clamped(self, progress, width)
        reached = progress + width
        if reached < self.warmup:
            return reached / self.warmup
        if progress < self.warmup:
            return 1.0
        return self._body(progress)

    @abstractmethod
    def _body(self, progress: float) -> float:
        """The factor at a progress of the whole run that is not below ``warmup``."""

    @abstractmethod
    def _parts(self) -> Iterable[tuple[str, float]]:
        """Name and end of each part of the run after the warm-up."""

    def phases(self) -> tuple[Phase, ...]:
        return _consecutive([("warm-up", self.warmup), *self._parts()])

    def _share_after_warmup(self, progress: float) -> float:
        return (progress - self.warmup) / (1.0 - self.warmup)


@dataclass(frozen=True)
class Constant(_WarmedUp):
    """Gradual warm-up, then no change: ``min(1, (progress + width) / warmup)``.

    Args:
        warmup: share of the run that the climb takes, in [0, 1).

    Raises:
        ValueError: if an argument is outside its range.

    Source: Goyal et al. 2017, arXiv:1706.02677, section 2.2 (gradual warm-up, per update).
    """

    decays: ClassVar[bool] = False

    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self, "warmup")

    def _body(self, progress: float) -> float:
        return 1.0

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("constant", 1.0)]


@dataclass(frozen=True)
class Cosine(_WarmedUp):
    """Half a cosine from 1 to ``floor``: ``floor + (1 - floor) (1 + cos(pi x)) / 2``.

    x is the share of the run after the warm-up that is done.

    Args:
        warmup: share of the run that the climb takes, in [0, 1).
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range.

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 with one cycle; with a warm-up, He et al. 2019,
    arXiv:1812.01187.
    """

    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self, "warmup")
        _check_floor(self)

    def _body(self, progress: float) -> float:
        return _half_cosine(1.0, self.floor, self._share_after_warmup(progress))

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("cosine", 1.0)]


@dataclass(frozen=True)
class CosineRestarts(_WarmedUp):
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

    Source: Loshchilov & Hutter 2017, arXiv:1608.03983, eq. 5 (T_mult = cycle_growth); the falling peak is ours.
    """

    first_cycle: float = 0.1
    cycle_growth: float = 2.0
    warmup: float = 0.0
    floor: float = 0.0
    peak_decay: float = 1.0

    def __post_init__(self) -> None:
        _check(self, "first_cycle", lambda value: 0 < value <= 1, "a share of the whole run, in (0, 1]")
        _check(self, "cycle_growth", lambda value: value >= 1, "a number of at least 1: shrinking cycles may never end")
        _check_share(self, "warmup")
        _check_floor(self)
        _check(self, "peak_decay", lambda value: 0 < value <= 1, "a number in (0, 1]")
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

    Source: Howard & Ruder 2018, arXiv:1801.06146, eq. 3.
    """

    cut_fraction: float = 0.1
    ratio: float = 32.0

    def __post_init__(self) -> None:
        _check(self, "cut_fraction", lambda value: 0 < value < 1, "a share of the run in (0, 1)")
        _check(self, "ratio", lambda value: value > 1, "a number above 1")

    def __call__(self, progress: float, width: float = 0.0) -> float:
        """Return the factor for one update; ``width`` changes nothing, as the climb starts above zero by itself."""
        if not (0.0 <= progress <= 1.0 and width >= 0.0):
            progress = _clamped(self, progress, width)
        if progress < self.cut_fraction:
            height = progress / self.cut_fraction
        else:
            height = (1.0 - progress) / (1.0 - self.cut_fraction)
        return height + (1.0 - height) / self.ratio

    def phases(self) -> tuple[Phase, ...]:
        return _consecutive([("climb", self.cut_fraction), ("decay", 1.0)])


@dataclass(frozen=True)
class Step(_WarmedUp):
    """A drop at each milestone: ``factor ** (number of milestones that progress has reached)``.

    Args:
        milestones: shares of the whole run, warm-up included, strictly increasing within (warmup, 1); kept as a tuple.
        factor: what each drop multiplies by, in (0, 1).
        warmup: share of the run that the climb takes, in [0, 1).

    Raises:
        ValueError: if an argument is outside its range.

    Source: the milestones are those of wide residual networks, 60, 120 and 160 of 200 epochs (Zagoruyko & Komodakis
    2016, arXiv:1605.07146, with factor 0.2); the tenth is that of Goyal et al. 2017, arXiv:1706.02677.
    """

    milestones: Sequence[float] = (0.3, 0.6, 0.8)
    factor: float = 0.1
    warmup: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self, "warmup")
        _check(self, "factor", lambda value: 0 < value < 1, "a number in (0, 1)")
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
class Polynomial(_WarmedUp):
    """A power of the share that is left: ``floor + (1 - floor) (1 - x)**power``.

    x is the share of the run after the warm-up that is done.

    Args:
        power: exponent, above 0; 1 is a straight line.
        warmup: share of the run that the climb takes, in [0, 1).
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range.

    Source: You et al. 2017, arXiv:1708.03888, algorithm 1 (power 2).
    """

    power: float = 2.0
    warmup: float = 0.0
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check(self, "power", lambda value: value > 0, "a number above 0")
        _check_share(self, "warmup")
        _check_floor(self)

    def _body(self, progress: float) -> float:
        return self.floor + (1.0 - self.floor) * math.pow(1.0 - self._share_after_warmup(progress), self.power)

    def _parts(self) -> Iterable[tuple[str, float]]:
        return [("polynomial", 1.0)]


@dataclass(frozen=True)
class WarmupStableDecay(_WarmedUp):
    """A climb, a plateau at 1, and a straight fall over the last part (WSD)::

        floor + (1 - floor) min(1, (1 - progress) / decay)        after the warm-up

    Args:
        warmup: share of the run that the climb takes, in [0, 1).
        decay: share of the run that the fall takes, in [0, 1); warmup + decay is at most 1.
        floor: factor at the end of the run, in [0, 1].

    Raises:
        ValueError: if an argument is outside its range, or warmup + decay passes 1.

    Source: Hu et al. 2024, arXiv:2404.06395 (MiniCPM; their fall is exponential); the straight fall is that of Haegele
    et al. 2024, arXiv:2405.18392.
    """

    warmup: float = 0.05
    decay: float = 0.2
    floor: float = 0.0

    def __post_init__(self) -> None:
        _check_share(self, "warmup")
        _check_share(self, "decay")
        _check_floor(self)
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


def _half_cosine(top: float, bottom: float, share: float) -> float:
    return bottom + (top - bottom) * (1.0 + math.cos(math.pi * share)) / 2.0


def _consecutive(parts: Iterable[tuple[str, float]]) -> tuple[Phase, ...]:
    """Phases from (name, end) pairs, each beginning where the one before it ends; empty ones are left out."""
    phases: list[Phase] = []
    for name, end in parts:
        start = phases[-1].end if phases else 0.0
        if end - start > SNAP:
            phases.append(Phase(name, start, end))
    # Where rounding left the last part out as empty, the one before it reaches the end of the run.
    return (*phases[:-1], replace(phases[-1], end=1.0))


def _clamped(curve: Curve, progress: float, width: float) -> float:
    if math.isnan(progress) or not width >= 0.0:
        raise ValueError(
            f"{type(curve).__name__}: progress={progress!r}, width={width!r} are not shares of the run; give progress "
            "in [0, 1] and a width of at least 0"
        )
    return min(1.0, max(0.0, progress))


def _increases(*values: float) -> bool:
    return all(low < high for low, high in pairwise(values))


def _check(curve: Curve, argument: str, is_allowed: Callable[[float], bool], allowed: str) -> None:
    value = getattr(curve, argument)
    if not is_real(value) or not is_allowed(value):
        raise ValueError(f"{type(curve).__name__}: {argument}={value!r} is not allowed; give {allowed}")
    object.__setattr__(curve, argument, float(value))


def _check_share(curve: Curve, argument: str) -> None:
    _check(curve, argument, lambda value: 0 <= value < 1, "a share of the run in [0, 1), as epochs / max_epochs")


def _check_floor(curve: Curve) -> None:
    _check(curve, "floor", lambda value: 0 <= value <= 1, "a factor in [0, 1]")
