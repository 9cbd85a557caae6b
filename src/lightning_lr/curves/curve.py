"""What every curve is: a map from progress to a factor, with named parts, and a climb at its start if it has one."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields, is_dataclass, replace
from functools import partial
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

SNAP = 1e-9
"""Progress this little below a boundary counts as having reached it: t / T and a sum of shares round differently."""


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

    # no ClassVar: jsonargparse reads a subclass's hints with the names of its module, and checks none if one is absent
    decays = True
    """Whether the factor falls again; two callbacks whose curves both do would decay the learning rate twice."""

    @abstractmethod
    def __call__(self, progress: float, width: float = 0.0) -> float:
        """Return the factor for one update.

        Args:
            progress: share of the run done before the update. Values outside [0, 1] are clamped.
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

    def __str__(self) -> str:
        """As ``repr``, with the numbers to four digits."""
        if not is_dataclass(self):
            return repr(self)
        values = ((f.name, getattr(self, f.name)) for f in fields(self))
        return f"{type(self).__name__}({', '.join(f'{name}={_short(value)}' for name, value in values)})"

    def __getattr__(self, name: str) -> Any:
        hint = ""
        if name == "setup" or name.startswith("on_"):  # asked for by a Trainer
            hint = f"; a curve is no callback: give callbacks=[LearningRateSchedule({type(self).__name__}(...))]"
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{hint}")

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


def _short(value: object) -> str:
    if isinstance(value, tuple | list):
        return f"({', '.join(map(_short, value))})"
    rounded = f"{value:.4g}" if isinstance(value, float) else ""
    return rounded if rounded and len(rounded) < len(repr(value)) - 2 else repr(value)


def _factor_of_update(curve: Curve, total_updates: int, update: int) -> float:
    if update >= total_updates:
        return curve(1.0)
    return curve(update / total_updates, 1.0 / total_updates)


class WarmedUp(Curve):
    """A curve that climbs in a straight line over ``warmup`` and then follows its ``_body``, which starts at 1."""

    warmup: float

    def __call__(self, progress: float, width: float = 0.0) -> float:
        if not (0.0 <= progress <= 1.0 and width >= 0.0):
            progress = clamped(self, progress, width)
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
        return consecutive([("warm-up", self.warmup), *self._parts()])

    def _share_after_warmup(self, progress: float) -> float:
        return (progress - self.warmup) / (1.0 - self.warmup)


def consecutive(parts: Iterable[tuple[str, float]]) -> tuple[Phase, ...]:
    """Phases from (name, end) pairs, each beginning where the one before it ends; empty ones are left out."""
    phases: list[Phase] = []
    for name, end in parts:
        start = phases[-1].end if phases else 0.0
        if end - start > SNAP:
            phases.append(Phase(name, start, end))
    # Where rounding left the last part out as empty, the one before it reaches the end of the run.
    return (*phases[:-1], replace(phases[-1], end=1.0))


def clamped(curve: Curve, progress: float, width: float) -> float:
    if math.isnan(progress) or not width >= 0.0:
        raise ValueError(
            f"{type(curve).__name__}: progress={progress!r}, width={width!r} are not shares of the run; give progress "
            "in [0, 1] and a width of at least 0"
        )
    return min(1.0, max(0.0, progress))
