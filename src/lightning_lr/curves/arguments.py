"""What a curve's arguments may be."""

from __future__ import annotations

from collections.abc import Callable

from lightning_lr.checks import is_real
from lightning_lr.curves.curve import Curve


def check(curve: Curve, argument: str, is_allowed: Callable[[float], bool], allowed: str) -> None:
    value = getattr(curve, argument)
    if not is_real(value) or not is_allowed(value):
        raise ValueError(f"{type(curve).__name__}: {argument}={value!r} is not allowed; give {allowed}")
    object.__setattr__(curve, argument, float(value))


def check_share(curve: Curve, argument: str) -> None:
    check(curve, argument, lambda value: 0 <= value < 1, "a share of the run in [0, 1), as epochs / max_epochs")


def check_floor(curve: Curve) -> None:
    check(curve, "floor", lambda value: 0 <= value <= 1, "a factor in [0, 1]")
