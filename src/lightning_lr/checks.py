"""Checks of values that users give, in one vocabulary: what a value is (``is_...``), and a refusal that quotes it."""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Sequence
from difflib import get_close_matches
from numbers import Integral, Real
from typing import Any

LARGEST = 3e38
"""About the largest float32."""


def is_real(value: object) -> bool:
    """Whether ``value`` is a finite number that a float can hold (a bool is none)."""
    if not isinstance(value, Real) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:  # an int beyond the largest float
        return False


def is_rate(value: object) -> bool:
    """Whether ``value`` is a number from 0 that weights in float32 can be multiplied by."""
    return is_real(value) and 0.0 <= value <= LARGEST  # type: ignore[operator]


def is_count(value: object, least: int = 1) -> bool:
    """Whether ``value`` is a whole number from ``least`` that 63 bits can hold (a bool is none)."""
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= int(value) < 2**63


def is_list(value: object) -> bool:
    """Whether ``value`` is a sequence that was not meant as one word."""
    return isinstance(value, Sequence) and not isinstance(value, str | bytes)


# ---------------------------------------------------------------------- refusals
def name_arguments(kind: type) -> None:
    """Let the constructor of a class answer an argument that it does not have with the nearest that it has.

    Args:
        kind: the class, changed in place; its signature stays. One that hands ``**kwargs`` on refuses only what looks
            like a misspelt argument of its own.
    """
    init: Any = vars(kind).get("__init__")
    if init is None or hasattr(init, "names_arguments_of"):
        return
    parameters = inspect.signature(init).parameters.values()
    own = [p.name for p in parameters if p.name != "self" and p.kind is not p.VAR_KEYWORD]
    takes_more = any(p.kind is p.VAR_KEYWORD for p in parameters)
    known = {*own, *(name for base in kind.__mro__[1:-1] for name in inspect.signature(base.__init__).parameters)}  # type: ignore[misc]

    @functools.wraps(init)
    def named(self: Any, *args: Any, **kwargs: Any) -> None:
        for name in kwargs:
            if name in (known if takes_more else own):
                continue
            near = get_close_matches(name, own, n=1) or [other for other in own if name.startswith(other)]
            if near or not takes_more:
                hint = f"; did you mean {near[0]!r}?" if near else "."
                raise TypeError(f"{kind.__name__} has no argument {name!r}{hint} It has {', '.join(own) or 'none'}")
        init(self, *args, **kwargs)

    named.names_arguments_of = kind  # type: ignore[attr-defined]
    kind.__init__ = named  # type: ignore[misc]


def require(is_allowed: bool, caller: str, argument: str, value: object, allowed: str) -> None:
    """Raise a ValueError that quotes what was given and what is allowed, unless ``is_allowed``."""
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


def check_flags(caller: str, foreach: bool | None = None, **flags: bool) -> None:
    """Refuse what is neither True nor False, by name; ``foreach`` may be None."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{caller}: got {name}={value!r}; give True or False")
    if foreach is not None and not isinstance(foreach, bool):
        raise ValueError(f"{caller}: got foreach={foreach!r}; give True, False, or None for what is fastest")


def check_not_negative(caller: str, **arguments: float) -> None:
    """Refuse what is negative or not a number, by name."""
    for name, value in arguments.items():
        if not is_rate(value):
            raise ValueError(
                f"{caller}: got {name}={value!r}; give a finite number that is not negative, within float32"
            )
