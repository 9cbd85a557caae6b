"""A learning rate in effect that remembers the scheduled one, so that ``group["lr"] *= 0.1`` means what it says."""

from __future__ import annotations

from typing import Any


class Multiplied(float):
    r"""A scheduled learning rate times our multipliers: a float, equal to their product.

    What the user's code reads from a group has been multiplied already. Written back times a number, it would be
    multiplied again. Here :math:`c \cdot \text{Multiplied}` and :math:`\text{Multiplied} / c` are ``Multiplied`` too,
    with the scheduled value times or divided by the same :math:`c`; all other arithmetic gives plain floats.

    Args:
        value: the rate in effect.
        scheduled: what was multiplied.

    Example::

        >>> rate = Multiplied(0.05, 0.1)  # a factor of 0.5 at work
        >>> rate * 0.1, (rate * 0.1).scheduled
        (0.005000000000000001, 0.010000000000000002)
    """

    __slots__ = ("plain", "scheduled")
    plain: float
    """The same number without a memory, always the same object."""
    scheduled: float

    def __new__(cls, value: float, scheduled: float) -> Multiplied:
        self = super().__new__(cls, value)
        self.plain, self.scheduled = float(value), scheduled
        return self

    def __mul__(self, other: Any) -> Any:
        return _applied(self, other, float.__mul__)

    __rmul__ = __mul__

    def __truediv__(self, other: Any) -> Any:
        return _applied(self, other, float.__truediv__)

    def __copy__(self) -> Multiplied:
        return self

    def __deepcopy__(self, memo: Any) -> Multiplied:
        return self

    def __reduce__(self) -> Any:
        return float, (self.plain,)


def _applied(rate: Multiplied, other: Any, operation: Any) -> Any:
    if isinstance(other, int | float) and type(other) is not Multiplied:
        return Multiplied(operation(rate, other), operation(float(rate.scheduled), other))
    return operation(rate, other)


def plain(value: Any) -> Any:
    """A value without its memory."""
    return value.plain if type(value) is Multiplied else value
