"""One-line checks of what comes from outside, so that every module of the room words its refusals in the same way."""

from __future__ import annotations

from lightning_lr.checks import is_count, is_real


def require(is_allowed: bool, caller: str, argument: str, value: object, allowed: str) -> None:
    """Raise a ValueError that quotes what was given and says what is allowed, unless ``is_allowed``."""
    if not is_allowed:
        raise ValueError(f"{caller}: {argument}={value!r} is not allowed; give {allowed}")


def require_count(caller: str, argument: str, value: object, unit: str) -> None:
    """Raise a ValueError unless ``value`` is an integer of at least 1."""
    require(is_count(value), caller, argument, value, f"a whole number of {unit}, at least 1")


def require_momentum(caller: str, value: object, argument: str = "momentum") -> None:
    """Raise a ValueError unless ``value`` is a momentum coefficient."""
    require(is_real(value) and 0 <= value < 1, caller, argument, value, "a number in [0, 1)")  # type: ignore[operator]


def require_positive(caller: str, argument: str, value: object, meaning: str) -> None:
    """Raise a ValueError unless ``value`` is a number above 0."""
    require(is_real(value) and value > 0, caller, argument, value, f"{meaning} above 0")  # type: ignore[operator]
