"""Operations whose backward asks of a number only in which region it lies: LeakyReLU, ReLU6, hardtanh and clamp.

Rounding moves numbers near a border to its other side, and the gradient then has a bias. One bit says exactly what the
backward needs: numbers are kept as a representative of their region.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from lightning_lr.activations.compression.exact import PackedBits, pack_bits
from lightning_lr.activations.compression.operations import Operation

Arguments = tuple[tuple[str, Any], ...]
BOUNDED: dict[str, Arguments] = {
    "hardtanh": (("min_val", -1.0), ("max_val", 1.0)),
    "relu6": (),
    "clamp": (("min", None), ("max", None)),
    "clip": (("min", None), ("max", None)),
    "clamp_min": (("min", None),),
    "clamp_max": (("max", None),),
}
"""Names without the ``_`` of what works in place, and the arguments after the input, with their defaults."""


def asks_for_regions(operation: Operation) -> bool:
    """Whether the backward of an operation may need no more than regions."""
    name = operation.name.strip("_")
    return name == "leaky_relu" or name in BOUNDED


def region_marks(flat: Tensor, operation: Operation) -> PackedBits | None:
    """The regions of a flat tensor that ``operation`` saves, or None where it needs more than these."""
    name = operation.name.strip("_")
    if name == "leaky_relu":
        return _marked(flat > 0, flat, 1.0, 0.0)
    given = {argument: operation.argument(1 + i, argument, default) for i, (argument, default) in _numbered(name)}
    least, largest = (0.0, 6.0) if name == "relu6" else (_first(given, "min"), _first(given, "max"))
    if any(bound is not None and not isinstance(bound, (int, float)) for bound in (least, largest)):
        return None
    low = -math.inf if least is None else float(least)
    high = math.inf if largest is None else float(largest)
    if name in ("hardtanh", "relu6"):  # a bound itself has no gradient
        return _marked((flat > low) & (flat < high), flat, (low + high) / 2, math.inf)
    inside, outside = (low if math.isfinite(low) else high), (math.inf if math.isfinite(high) else -math.inf)
    return _marked((flat >= low) & (flat <= high), flat, inside, outside) if math.isfinite(inside) else None


def _marked(inside: Tensor, flat: Tensor, value: float, otherwise: float) -> PackedBits:
    packed = pack_bits(inside)
    return PackedBits(packed.words, packed.count, flat.new_tensor(value), flat.new_tensor(otherwise))


def _numbered(name: str) -> list[tuple[int, tuple[str, Any]]]:
    return list(enumerate(BOUNDED[name]))


def _first(given: dict[str, Any], start: str) -> Any:
    return next((value for name, value in given.items() if name.startswith(start)), None)
