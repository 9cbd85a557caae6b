"""What a block changes in the objects that it is given: a cache, a counter, a list inside of an object.

A block that is computed again has to find these objects as it found them first. So their contents are noted before the
block runs, and what it changed is put back for the time of the recomputation. Contents are noted one level at a time
(which items a list holds, which values an object's attributes have), so nothing is copied but references; tensors that
a block writes in place are copied, once a block was seen to do so.

The block's own buffers (an EMA codebook, the vectors of spectral norm), its tensors, numbers, flags, lists and dicts (a
metric's, a running mean, a count of calls), and random generators, among its arguments or its attributes, are noted the
same way. Its attributes are put back also where somebody else has changed them after the forward.

Plain lists, tuples and dicts among a block's own arguments need no note: a segment keeps copies of them anyway.
"""

from __future__ import annotations

import pickle
import random
import sys
import types
import weakref
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_lr.activations.iterators import Tape, is_iterator
from lightning_lr.nested import version_of

NO_STATE = (
    str, bytes, bytearray, int, float, complex, range, type(None), type, nn.Module, torch.device, torch.dtype,
    torch.Size, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType,
    weakref.ref,
)  # fmt: skip
"""What holds no state that a block may change, or is not a block's argument to change (a module)."""

MOST_OBJECTS = 5_000
"""Objects that are looked at; beyond them a structure is no cache but a whole program."""


ENGINES = ("ds_", "applied_", "_ds_", "_fsdp", "_hf_", "_external_params", "_original_parameters")
"""Beginnings of the names under which FSDP, DeepSpeed and Accelerate keep their own state in a module."""

OF_TORCH = frozenset(vars(nn.Module()))
"""Under which torch does."""

SMALL = 65_536
"""A buffer of a block with at most so many numbers is always copied, in case the block writes it in place."""


class ArgumentState:
    """The contents of every object among some arguments, before a block runs.

    Args:
        arguments: of the block.
        copy_tensors: whether tensors in the objects are copied, for a block that writes them in place.
        modules: of the block, whose buffers and generators it may change.
    """

    def __init__(self, arguments: Any, copy_tensors: bool = False, modules: Iterable[nn.Module] = ()) -> None:
        self._before: list[tuple[Any, dict[Any, Any]]] = []
        self._tensors: dict[int, tuple[Tensor, int, Tensor | None]] = {}
        own, iterators = own_state(modules)
        buffers = {id(holder) for holder in own}
        holders = _holders(arguments)
        self.iterators = [*iterators, *(thing for thing in holders if is_iterator(thing))]
        """Whose place cannot be put back, in lists, dicts and objects among the arguments, or in the block itself."""
        for holder in [*own, *holders]:
            contents = _contents(holder)
            self._before.append((holder, contents))
            for value in contents.values():
                if isinstance(value, Tensor) and id(value) not in self._tensors:
                    small = id(holder) in buffers and value.numel() <= SMALL
                    copied = value.detach().clone() if copy_tensors or small else None
                    self._tensors[id(value)] = (value, version_of(value), copied)

    @property
    def wrote_in_place(self) -> bool:
        """Whether a tensor in one of the objects was written since."""
        return any(version_of(tensor) != version for tensor, version, _ in self._tensors.values())

    @property
    def overwrote(self) -> bool:
        """Whether a tensor was written since of which there is no copy."""
        return any(
            copied is None and version_of(tensor) != version for tensor, version, copied in self._tensors.values()
        )

    def changes(self) -> ArgumentChanges | None:
        """What was changed since, and what others may change; ``None`` where there is nothing."""
        written = {
            key: copied for key, (tensor, version, copied) in self._tensors.items() if version_of(tensor) != version
        }
        changed = []
        for holder, before in self._before:
            restored = {
                key: written[id(value)] if id(value) in written and written[id(value)] is not None else value
                for key, value in before.items()
            }
            if isinstance(holder, nn.Module) or not _same(restored, _contents(holder)):
                changed.append((holder, {key: _without_graph(value) for key, value in restored.items()}))
        return ArgumentChanges(changed) if changed else None


class ArgumentChanges:
    """Objects that a block changed or others may change, and what each held before."""

    def __init__(self, changed: list[tuple[Any, dict[Any, Any]]]) -> None:
        self._changed = changed

    @contextmanager
    def undone(self) -> Iterator[None]:
        """Inside, the objects are as the block found them; afterwards as they were."""
        now = [(holder, _contents(holder)) for holder, _ in self._changed]
        try:
            for (holder, before), (_, present) in zip(self._changed, now, strict=True):
                if not _same(before, present):
                    _fill(holder, before)
            yield
        finally:
            for holder, contents in now:
                _fill(holder, contents)


def own_state(modules: Iterable[nn.Module]) -> tuple[list[Any], list[Any]]:
    """What the modules of a block hold that their forward may change: buffers, tensors, numbers, lists, generators.

    Statistics of batch norms are not among it: :func:`~lightning_lr.activations.replay_state.statistics_written_once`.
    Layers of torch's own change nothing but buffers.

    Returns:
        The holders, and apart from them the iterators.
    """
    found: list[Any] = []
    iterators: list[Any] = []
    for module in modules:
        if module._buffers and not isinstance(module, _BatchNorm):
            found.append(module._buffers)
        if type(module).__module__.startswith("torch.nn."):
            continue
        numbers = False
        for name, value in vars(module).items():
            kind = _KINDS.get(type(value)) or _kind(value)
            if kind == NOTHING:
                continue
            if kind == ITERATOR:
                iterators.append(value)
            elif kind == GENERATOR:
                found.append(value)
            elif not _is_an_engines(name):
                numbers = True
                if kind == CONTAINER:
                    found.append(value)
        if numbers:
            found.append(module)
    return found, iterators


# ---------------------------------------------------------------------- inside
NOTHING, VALUE, CONTAINER, GENERATOR, ITERATOR = "nothing", "value", "container", "generator", "iterator"
_KINDS: dict[type, str] = {
    **dict.fromkeys((int, float, bool, str, tuple, type(None), Tensor), VALUE),
    **dict.fromkeys((list, deque, dict, set), CONTAINER),
}
"""What values of a type are in a module, for the types that were met."""


@cache
def _is_an_engines(name: str) -> bool:
    return name in OF_TORCH or name.startswith(ENGINES)


def _kind(value: Any) -> str:
    kind = GENERATOR if _is_generator(value) else ITERATOR if is_iterator(value) else NOTHING
    if len(_KINDS) < MOST_OBJECTS:
        _KINDS[type(value)] = kind
    return kind


def _is_generator(thing: Any) -> bool:
    return isinstance(thing, torch.Generator | random.Random) or _is_numpy_generator(thing)


def _attributes_of(module: nn.Module) -> dict[str, Any]:
    """A module's own attributes, objects too, so that one that the block makes stays; an engine's are no concern."""
    return {name: value for name, value in vars(module).items() if not _is_an_engines(name)}


def _is_numpy_generator(thing: Any) -> bool:
    numpy = sys.modules.get("numpy")  # what has not been imported has made no generator
    return numpy is not None and isinstance(thing, (numpy.random.Generator, numpy.random.RandomState))


def _generator_state(generator: Any) -> bytes:
    if isinstance(generator, torch.Generator):
        return bytes(generator.get_state().numpy().tobytes())
    if isinstance(generator, random.Random):
        return pickle.dumps(generator.getstate())
    return pickle.dumps(generator._bit_generator.state)


def _set_generator_state(generator: Any, state: bytes) -> None:
    if isinstance(generator, torch.Generator):
        generator.set_state(torch.frombuffer(bytearray(state), dtype=torch.uint8))
    elif isinstance(generator, random.Random):
        generator.setstate(pickle.loads(state))
    else:
        generator._bit_generator.state = pickle.loads(state)


def _holders(arguments: Any) -> list[Any]:
    """Every object that can be changed, the plain lists, tuples and dicts of the arguments themselves left out."""
    found: list[Any] = []
    seen: set[int] = set()
    waiting: deque[tuple[Any, bool]] = deque([(arguments, True)])
    while waiting and len(seen) < MOST_OBJECTS:
        thing, is_argument = waiting.popleft()
        if isinstance(thing, (Tensor, Tape, *NO_STATE)) or id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, tuple):
            waiting.extend((part, is_argument) for part in thing)
            continue
        plain = is_argument and type(thing) in (list, dict)
        if not plain:
            found.append(thing)
        waiting.extend((part, plain) for part in _contents(thing).values())
    return found


def _contents(holder: Any) -> dict[Any, Any]:
    """What an object holds now: items of containers, and attributes, by a key that :func:`_fill` understands."""
    if _is_generator(holder):
        return {("state", "generator"): _generator_state(holder)}
    if isinstance(holder, nn.Module):
        return {("attribute", name): value for name, value in _attributes_of(holder).items()}
    held: dict[Any, Any] = {}
    if isinstance(holder, list | deque):
        held |= {("item", index): value for index, value in enumerate(holder)}
    elif isinstance(holder, dict):
        held |= {("item", key): value for key, value in holder.items()}
    elif isinstance(holder, set):
        held |= {("item", value): value for value in holder}
    held |= {("attribute", name): value for name, value in getattr(holder, "__dict__", {}).items()}
    for kind in type(holder).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if not name.startswith("__") and hasattr(holder, name):
                held["slot", name] = getattr(holder, name)
    return held


def _without_graph(value: Any) -> Any:
    """A tensor that an earlier step computed, without what it was computed from."""
    if not isinstance(value, Tensor) or value.grad_fn is None:
        return value
    return value.detach().requires_grad_(value.requires_grad)


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    return one.keys() == other.keys() and all(
        other[key] is value or _equal(other[key], value) for key, value in one.items()
    )


def _equal(one: Any, other: Any) -> bool:
    simple = (int, float, str, bytes, bool, type(None))
    return isinstance(one, simple) and isinstance(other, simple) and type(one) is type(other) and one == other


def _fill(holder: Any, contents: dict[Any, Any]) -> None:
    if _is_generator(holder):
        _set_generator_state(holder, contents["state", "generator"])
        return
    if isinstance(holder, nn.Module):
        for name in _attributes_of(holder):
            if ("attribute", name) not in contents:  # the block made it
                del vars(holder)[name]
        for _, name in contents:
            vars(holder)[name] = contents["attribute", name]
        return
    items = [(key, value) for (kind, key), value in contents.items() if kind == "item"]
    if isinstance(holder, list | deque):
        holder.clear()
        holder.extend(value for _, value in items)
    elif isinstance(holder, dict):
        dict.clear(holder)
        for key, value in items:
            dict.__setitem__(holder, key, value)
        if hasattr(holder, "move_to_end"):  # an OrderedDict keeps an order of its own
            holder.clear()
            holder.update(items)
    elif isinstance(holder, set):
        holder.clear()
        holder.update(value for _, value in items)
    attributes = {key: value for (kind, key), value in contents.items() if kind == "attribute"}
    own = getattr(holder, "__dict__", None)
    if own is not None:
        own.clear()
        own.update(attributes)
    for (kind, key), value in contents.items():
        if kind == "slot":
            object.__setattr__(holder, key, value)
