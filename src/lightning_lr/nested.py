"""Everything that looks for tensors in a structure: a batch, the arguments and the output of a block, optimizer state.

A structure is a tensor, or nests tuples, named tuples, lists, mappings and dataclasses; a batch may also be an object
of the user's that holds tensors in its attributes. A changed structure keeps its type.
"""

from __future__ import annotations

import copy
import dataclasses
import types
import weakref
from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from typing import Any

from torch import Tensor, nn

_NO_STRUCTURE = (
    str, bytes, bytearray, range, type, nn.Module, types.ModuleType, types.FunctionType, types.MethodType, weakref.ref,
)  # fmt: skip


_LEAVES = (str, bytes, int, float)


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


def tensors_in(structure: Any, objects: bool = False) -> list[Tensor]:
    """Every tensor in a structure, in order.

    Args:
        structure: tuples, lists, mappings and dataclasses.
        objects: whether to look into the attributes of other objects as well, as a batch may be one.
    """
    return list(_walk(structure, objects, ()))


def batch_tensors(batch: Any) -> list[Tensor]:
    """Every tensor in a batch, whatever it is made of."""
    return tensors_in(batch, objects=True)


def samples_in(batch: Any) -> int | None:
    """Samples in a batch: the first dimension of its first tensor that has one; ``None`` where it has no tensor."""
    first: int | None = None
    for tensor in _walk(batch, True, ()):
        if tensor.ndim:
            return int(tensor.shape[0])
        first = 1
    return first


def first_samples(batch: Any, count: int) -> Any:
    """The batch cut to its first ``count`` samples; the batch itself where it has no more.

    Cut is every tensor as long as the first one, and every list of as many numbers or strings.
    """
    size = samples_in(batch)
    return batch if size is None or size <= count else with_samples(batch, count)


def with_samples(batch: Any, count: int) -> Any:
    """The batch with ``count`` samples: its first ones, and again from the first where it has fewer."""
    size = samples_in(batch)
    return batch if size is None or size == count else _resized(batch, size, count, ())


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


# ---------------------------------------------------------------------- inside
def _walk(structure: Any, objects: bool, above: tuple[int, ...]) -> Iterator[Tensor]:
    if isinstance(structure, Tensor):
        yield structure
    elif id(structure) not in above:  # an object may refer to what holds it
        for _, part in _parts(structure, objects):
            yield from _walk(part, objects, (*above, id(structure)))


def _parts(structure: Any, objects: bool) -> list[tuple[Any, Any]]:
    """Key, position or attribute, and what stands there; nothing for what is no structure."""
    if isinstance(structure, _NO_STRUCTURE):
        return []
    if isinstance(structure, Mapping):
        return list(structure.items())
    if isinstance(structure, Sequence):
        return list(enumerate(structure))
    if dataclasses.is_dataclass(structure) or objects:
        return list(_attributes(structure).items())
    return []


def _attributes(thing: Any) -> dict[str, Any]:
    """What an object holds in its ``__dict__`` and its slots."""
    slots = [name for kind in type(thing).__mro__ for name in _names(vars(kind).get("__slots__", ()))]
    held = {name: getattr(thing, name) for name in slots if not name.startswith("__") and hasattr(thing, name)}
    return held | dict(getattr(thing, "__dict__", {}))


def _names(slots: Any) -> tuple[str, ...]:
    return (slots,) if isinstance(slots, str) else tuple(slots)


def _resized(structure: Any, size: int, count: int, above: tuple[int, ...]) -> Any:
    if isinstance(structure, Tensor):
        return _resized_tensor(structure, size, count)
    if (
        isinstance(structure, list)
        and len(structure) == size
        and all(isinstance(e, str | int | float) for e in structure)
    ):
        return [structure[index % size] for index in range(count)]
    if id(structure) in above:
        return structure
    parts = _parts(structure, objects=True)
    changed = {key: _resized(part, size, count, (*above, id(structure))) for key, part in parts}
    if all(changed[key] is part for key, part in parts):
        return structure
    return _rebuilt(structure, changed)


def _resized_tensor(tensor: Tensor, size: int, count: int) -> Tensor:
    if not tensor.ndim or tensor.shape[0] != size:
        return tensor
    return tensor[:count] if count <= size else tensor[[index % size for index in range(count)]]


def _rebuilt(structure: Any, changed: dict[Any, Any]) -> Any:
    """A copy of the structure, of the same type, with other parts."""
    if isinstance(structure, tuple):
        parts = changed.values()
        return type(structure)(*parts) if hasattr(structure, "_fields") else type(structure)(parts)
    if isinstance(structure, Mapping) and not isinstance(structure, MutableMapping):
        return dict(changed)
    copied = copy.copy(structure)
    if isinstance(structure, Mapping | Sequence):
        for key, part in changed.items():
            copied[key] = part
    else:
        for name, part in changed.items():
            object.__setattr__(copied, name, part)  # frozen dataclasses, too
    return copied
