"""Remember a graph of live objects, and put every one of them back in place.

A copy of module and optimizer (``copy.deepcopy``) would cost the device's memory twice, and cannot be made of a DDP
wrapper or an optimizer that a strategy holds. Instead the objects themselves train in the branch. Before it, the graph
is walked from its roots, and each mutable object is remembered in the way of its kind: a tensor by a copy of its values
on the host, a container by its items, a random generator by its state, an object by its attributes. Restoring writes
into the *same* objects, so every reference that anyone holds (a bucket of DDP, an optimizer's group, a user's list)
stays valid.
"""

from __future__ import annotations

import argparse
import array
import functools
import itertools
import math
import random
import sys
import types
from collections import ChainMap, UserDict, UserList, deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler

from lightning_lr.branches.code import (
    LARGE,
    attributes_of_class,
    cells_of,
    functions_in,
    globals_of,
    held_by,
    put_attribute_back,
)

ENTERED = (nn.Module, Optimizer, LRScheduler, torch.amp.GradScaler, Sampler, BatchSampler)
"""Classes of libraries whose instances are entered: they are what trains."""

PLAIN = (types.SimpleNamespace, argparse.Namespace, ChainMap, UserDict, UserList)
"""Classes of Python's own library whose instances hold what a user keeps."""

CANNOT_BE_PUT_BACK = (
    types.GeneratorType, map, filter, zip, enumerate, itertools.count, itertools.cycle, itertools.chain,
    itertools.islice, itertools.repeat,
)  # fmt: skip
"""Iterators: what is taken from them is gone."""

DATA = (Dataset, DataLoader)
"""Classes whose instances are entered only as roots: they are large, and training only reads them."""

LIBRARIES = frozenset(
    (
        "PIL", "accelerate", "comet_ml", "datasets", "deepspeed", "fsspec", "gpytorch", "lightning",
        "lightning_fabric", "linear_operator", "matplotlib", "mlflow", "numpy", "pandas", "pyarrow",
        "pytorch_lightning",
        "scipy", "sklearn", "tensorboard", "tokenizers", "torch", "torchdata", "torchmetrics", "torchvision", "tqdm",
        "transformers", "triton", "wandb",
    )
)  # fmt: skip
"""Packages whose other objects are not entered: data sets, trackers, settings, which training does not change."""


class ForkedState:
    """Everything mutable that can be reached from some objects, as it is at the moment of construction.

    Tensors are copied to the host, once each: that is the only copy. Iterators (:attr:`gone`), files,
    threads, locks, data sets and objects of libraries other than modules, optimizers, schedulers, scalers and samplers
    are not entered; a reference to them is put back, what happens inside them is not undone.

    Args:
        roots: where the walk begins: the module, its optimizer, an AMP scaler, callbacks. Always entered.
        leave_out: objects (compared by identity) that are not entered wherever they are met: the Trainer, loggers.
        tensors: whether tensors and arrays are copied; without, only generators, containers and attributes are.
        largest: containers with more items are taken for data and left as they are.

    Example::

        before = ForkedState([module, optimizer])
        for x, y in batches:
            optimizer.zero_grad()
            loss(module(x), y).backward()
            optimizer.step()
        before.restore()  # weights, buffers, moments: to the bit
    """

    def __init__(
        self,
        roots: Iterable[Any],
        leave_out: Iterable[Any] = (),
        tensors: bool = True,
        largest: int = 1_000_000,
    ) -> None:
        self._tensors, self._largest = tensors, largest
        self._left_out = {id(thing) for thing in leave_out}
        self._met: dict[int, Any] = {}  # holds what was met, so that no id is used twice
        self._restore: list[Callable[[], None]] = []
        self._copies: dict[tuple[Any, ...], Tensor] = {}
        self.copied_bytes = 0
        """Size of the copies on the host."""
        self.gone: list[str] = []
        """Attributes whose values cannot be put back: iterators, from which a branch takes what is next."""
        self._in_code: deque[Any] = deque()  # what was met in code, which is walked when all else has been
        self._most_elements: float = math.inf
        waiting: deque[tuple[Any, bool]] = deque((root, True) for root in roots)
        while waiting or self._in_code:  # without recursion: a list of lists may be deeper than Python's stack
            if not waiting:  # a program's variables hold its data, too
                self._largest, self._most_elements = min(self._largest, LARGE), LARGE
                waiting.append((self._in_code.popleft(), False))
            thing, is_root = waiting.popleft()
            waiting.extend((inner, False) for inner in self._remember(thing, is_root))

    def restore(self) -> None:
        """Put everything back, in place; may be called any number of times."""
        with torch.no_grad():
            for restore in self._restore:
                restore()

    # ------------------------------------------------------------------ inside
    def _remember(self, thing: Any, is_root: bool) -> Iterable[Any]:
        """Remember one object; what is inside it is remembered next."""
        if isinstance(thing, type):
            self._remember_class(thing)
            return ()
        if id(thing) in self._left_out or id(thing) in self._met or _is_immutable(thing):
            return ()
        if isinstance(thing, types.FunctionType):
            self._remember_functions([thing])
            return ()
        self._met[id(thing)] = thing
        if isinstance(thing, types.MethodType | functools.partial):
            self._remember_functions(functions_in(thing))
            return held_by(thing)
        generator = _generator(thing)
        if generator is not None:
            self._restore.append(generator)
            return ()
        if isinstance(thing, Tensor):
            return self._remember_tensor(thing)
        if type(thing).__module__ == "numpy" and hasattr(thing, "copy"):
            return self._remember_array(thing)
        if isinstance(thing, tuple | frozenset):
            return thing
        if isinstance(thing, dict | list | set | deque | bytearray | array.array):
            return self._remember_container(thing)
        if is_root or isinstance(thing, ENTERED + PLAIN) or (_is_of_the_user(thing) and not isinstance(thing, DATA)):
            return self._remember_attributes(thing)
        return ()

    def _remember_tensor(self, tensor: Tensor) -> Iterable[Any]:
        # a result that has a graph is read, never written; nobody can write into an expanded one
        if not self._tensors or not tensor.is_leaf or tensor.is_meta or _is_expanded(tensor):
            return ()
        if tensor.numel() > self._most_elements:
            return ()
        held = tensor.to_local() if isinstance(tensor, DTensor) else tensor
        held = held.detach()
        copy = self._copy_of(held)
        needs_grad, gradient = tensor.requires_grad, tensor.grad
        # the branch makes gradients of its own; those that are there are kept as they are, uncopied
        tensor.grad = None

        def restore() -> None:
            tensor.grad = None
            if tensor.requires_grad != needs_grad:
                tensor.requires_grad_(needs_grad)
            now = (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()
            if now.shape == copy.shape:
                now.copy_(copy)
            else:
                tensor.data = copy.to(now.device)
            tensor.grad = gradient

        self._restore.append(restore)
        return ()

    def _copy_of(self, held: Tensor) -> Tensor:
        """A copy on the host: of tensors that are one and the same memory, one."""
        strided = held.layout is torch.strided
        place = (held.device, held.data_ptr(), held.numel(), held.dtype) if strided and held.numel() else (id(held),)
        known = self._copies.get(place) if strided and held.is_contiguous() else None
        if known is not None:
            return known.view(held.shape)
        copy = held.to("cpu", copy=True)
        self.copied_bytes += copy.numel() * copy.element_size()
        if strided and held.is_contiguous():
            self._copies[place] = copy
        return copy

    def _remember_array(self, array: Any) -> Iterable[Any]:
        if self._tensors and getattr(array, "size", 0) <= self._most_elements:
            copy = array.copy()
            self.copied_bytes += int(getattr(copy, "nbytes", 0))

            def restore() -> None:
                if getattr(array, "flags", None) is not None and array.flags.writeable:
                    array[...] = copy

            self._restore.append(restore)
        return ()

    def _remember_container(self, container: Any) -> Iterable[Any]:
        if len(container) > self._largest:
            return ()
        keys = list(container) if isinstance(container, dict) else []
        values = list(container.values()) if isinstance(container, dict) else list(container)

        def restore() -> None:
            # written only where something is different: others may be iterating over it
            if isinstance(container, dict):
                if not _identical(container, keys) or not _identical(container.values(), values):
                    container.clear()
                    for key, value in zip(keys, values, strict=True):  # update of a Counter would count
                        container[key] = value
            elif not _identical(container, values):
                if isinstance(container, array.array):  # in place: others may hold its address
                    container[:] = array.array(container.typecode, values)
                    return
                container.clear()
                container.update(values) if isinstance(container, set) else container.extend(values)

        self._restore.append(restore)
        return values

    def _remember_attributes(self, thing: Any) -> Iterable[Any]:
        inner: list[Any] = []
        attributes = getattr(thing, "__dict__", None)
        if isinstance(attributes, dict):
            inner.append(attributes)
            self.gone += [
                f"{type(thing).__name__}.{name} is a {type(value).__name__}"
                for name, value in attributes.items()
                if isinstance(value, CANNOT_BE_PUT_BACK)
            ]
        if isinstance(thing, nn.Module):  # a scripted one keeps them where no attribute leads
            inner += [*thing.parameters(recurse=False), *thing.buffers(recurse=False), *thing.children()]
        for name in _slots(type(thing)):
            if hasattr(thing, name):
                value = getattr(thing, name)
                inner.append(value)
                self._restore.append(lambda name=name, value=value: object.__setattr__(thing, name, value))  # type: ignore[misc]
        if isinstance(thing, dict | list | set | deque):
            inner.extend(self._remember_container(thing))
        for kind in type(thing).__mro__:
            self._remember_class(kind)
        return inner

    def _remember_class(self, kind: type) -> None:
        """What a class of the user's has itself: counters, lists, and what its methods go by."""
        if id(kind) in self._met or not _is_users_code(kind.__module__):
            return
        self._met[id(kind)] = kind
        for name, value in attributes_of_class(kind):
            functions = list(functions_in(value))
            if functions:
                self._remember_functions(functions)
            elif not hasattr(type(value), "__get__"):
                self._restore.append(put_attribute_back(kind, name, value))
                self._in_code.append(value)

    def _remember_functions(self, functions: Iterable[types.FunctionType]) -> None:
        """What functions of the user's keep: variables of closures, global ones, defaults, attributes."""
        for function in functions:
            if id(function) in self._met or not _is_users_code(function.__module__):
                continue
            self._met[id(function)] = function
            for restore, value in (*cells_of(function), *globals_of(function)):
                self._restore.append(restore)
                self._in_code.append(value)
            self._in_code += [
                vars(function),
                *(function.__defaults__ or ()),
                *(function.__kwdefaults__ or {}).values(),
            ]


# ---------------------------------------------------------------------- kinds
def _is_immutable(thing: Any) -> bool:
    return thing is None or isinstance(
        thing,
        int | float | complex | str | bytes | type | range | torch.dtype | torch.device | torch.Size | slice,
    )


def _generator(thing: Any) -> Callable[[], None] | None:
    """What puts a random generator back, if ``thing`` is one."""
    if isinstance(thing, torch.Generator):
        state = thing.get_state()

        def restore_torch() -> None:
            thing.set_state(state)

        return restore_torch
    if isinstance(thing, random.Random):
        own = thing.getstate()
        return lambda: thing.setstate(own)
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(thing, numpy.random.Generator):
        bits = thing.bit_generator.state
        return lambda: setattr(thing.bit_generator, "state", bits)
    if numpy is not None and isinstance(thing, numpy.random.RandomState):
        legacy = thing.get_state()
        return lambda: thing.set_state(legacy)
    return None


def _is_of_the_user(thing: Any) -> bool:
    """Whether an object with attributes is one whose attributes training may change, and not a library's."""
    if callable(thing) and not isinstance(getattr(thing, "__dict__", None), dict):
        return False
    kind = type(thing)
    if _is_of_a_library(kind.__module__):
        return False
    return any(base not in (object,) for base in kind.__mro__) and (hasattr(thing, "__dict__") or bool(_slots(kind)))


def _is_users_code(module: str | None) -> bool:
    """Whether a class or function of a module is the user's."""
    module = module or "builtins"
    return not _is_of_a_library(module) and module.partition(".")[0] != "lightning_lr"


def _is_of_a_library(module: str) -> bool:
    package = module.partition(".")[0]
    return package in LIBRARIES or package in sys.stdlib_module_names


def _slots(kind: type) -> Iterator[str]:
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] in LIBRARIES or base.__module__ == "builtins":
            continue
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__") and not name.startswith("__"):
                yield name


def _identical(now: Iterable[Any], before: list[Any]) -> bool:
    """Whether a container holds the very same objects in the same order."""
    present = list(now)
    return len(present) == len(before) and all(a is b for a, b in zip(present, before, strict=True))


def _is_expanded(tensor: Tensor) -> bool:
    """Whether several elements share a place in memory."""
    return tensor.layout is torch.strided and any(
        stride == 0 and size > 1 for stride, size in zip(tensor.stride(), tensor.shape, strict=True)
    )
