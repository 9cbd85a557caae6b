"""What a value from outside has to be, asked in one way everywhere: a number, a count, a list of names."""

from __future__ import annotations

import math
from collections.abc import Sequence
from numbers import Integral, Real

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
