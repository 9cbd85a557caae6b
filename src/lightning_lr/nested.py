"""Tensors in what a block is given and returns: nested tuples, lists and dicts; and whether one is still the same."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

from torch import Tensor


def map_tensors(structure: Any, change: Callable[[Any], Any], kinds: tuple[type, ...] = (Tensor,)) -> Any:
    """The structure of tuples, lists and dicts with every tensor in it changed; other objects stay as they are."""
    if isinstance(structure, kinds):
        return change(structure)
    if isinstance(structure, tuple) and hasattr(structure, "_fields"):
        return type(structure)(*(map_tensors(part, change, kinds) for part in structure))
    if isinstance(structure, (list, tuple)) and type(structure) in (list, tuple):
        return type(structure)(map_tensors(part, change, kinds) for part in structure)
    if type(structure) is dict:
        return {key: map_tensors(part, change, kinds) for key, part in structure.items()}
    return structure


def tensors_in(structure: Any) -> list[Tensor]:
    """Every tensor in a structure of tuples, lists and dicts, in order."""
    found: list[Tensor] = []
    map_tensors(structure, lambda tensor: found.append(tensor))
    return found


class Mark:
    """A tensor as it is now: the object and how often it was written, without keeping it alive."""

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = weakref.ref(tensor)
        self._version = version_of(tensor)

    def is_still(self, tensor: Tensor) -> bool:
        return self._tensor() is tensor and version_of(tensor) == self._version


def version_of(tensor: Tensor) -> int:
    """How often the tensor was written in place; inference tensors do not count it."""
    return 0 if tensor.is_inference() else tensor._version
