"""How a gradient and the last update's direction lie to each other, read from the device."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Alignment(NamedTuple):
    """How a gradient g and the last update's direction d lie to each other, over one parameter group."""

    dot: float
    """g . d; minus the derivative of the loss with respect to the last learning rate."""
    gradient: float
    """Squared norm of g."""
    direction: float
    """Squared norm of d; 0 where there was no update."""

    @property
    def cosine(self) -> float:
        """Cosine of the angle; NaN where one of both is zero."""
        return cosine(self.dot, self.gradient, self.direction)

    @property
    def finite(self) -> bool:
        """Whether all three are."""
        return all(map(math.isfinite, self))


_NUMBERS, _new = frozenset((float, int)), Alignment._make


def read(sums: Tensor, values: Sequence[Any]) -> tuple[list[Alignment], list[float]]:
    """Read :meth:`AlignmentEstimator.sums`, and other values that may be tensors, from the device in one transfer.

    It is the one moment of an update at which the host waits for the device.
    """
    numbers: list[float]
    if _NUMBERS.issuperset(map(type, values)):
        return list(map(_new, sums.tolist())), list(map(float, values))
    on_device = [value.detach().reshape(1).to(sums) for value in values if isinstance(value, Tensor)]
    numbers = torch.cat([sums.reshape(-1), *on_device]).tolist()
    rest = iter(numbers[sums.numel() :])
    found = [next(rest) if isinstance(value, Tensor) else float(value) for value in values]
    return [_new(numbers[at : at + 3]) for at in range(0, sums.numel(), 3)], found


def cosine(dot: float, first: float, second: float) -> float:
    """Cosine of the angle of two vectors, from their dot product and squared norms."""
    norms = math.sqrt(first) * math.sqrt(second) if min(first, second) >= 0 else math.nan
    return max(-1.0, min(1.0, dot / norms)) if norms > 0 else math.nan
