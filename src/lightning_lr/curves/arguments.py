"""What a curve's arguments may be."""

from __future__ import annotations

from collections.abc import Callable

from lightning_lr.checks import is_real, require
from lightning_lr.curves.curve import Curve


def check(curve: Curve, argument: str, is_allowed: Callable[[float], bool], allowed: str) -> None:
    value = getattr(curve, argument)
    require(is_real(value) and is_allowed(value), type(curve).__name__, argument, value, allowed)
    object.__setattr__(curve, argument, float(value))


def check_share(curve: Curve, argument: str) -> None:
    check(curve, argument, lambda value: 0 <= value < 1, "a share of the run in [0, 1), as epochs / max_epochs")


def check_floor(curve: Curve) -> None:
    check(curve, "floor", lambda value: 0 <= value <= 1, "a factor in [0, 1]")
