"""Change a user's object for a while, and put it back: a method on one instance, the buffers of a module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import update_wrapper
from inspect import getattr_static
from typing import Any

import torch
from torch import nn


class Override:
    """Stands in the place of a method of one instance.

    It belongs to that instance alone: a copy of the instance, and what is unpickled of it, has the method that the
    instance had before, bound to itself. A function in its place would go with the copy and act on the original.

    Args:
        instance: whose method is replaced.
        name: of the method.
        replacement: what is called instead.
    """

    def __init__(self, instance: Any, name: str, replacement: Callable[..., Any]) -> None:
        self._instance, self._name = instance, name
        self._before = vars(instance).get(name)
        self._replacement = replacement
        update_wrapper(self, replacement, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self._replacement(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        if self._before is not None:
            return copy.deepcopy(self._before, memo)
        return own_method(memo.get(id(self._instance), self._instance), self._name)

    def __reduce__(self) -> Any:
        if self._before is not None:
            return _as_it_is, (self._before,)
        return own_method, (self._instance, self._name)


def own_method(instance: Any, name: str) -> Any:
    """The method of an instance's class, bound to it, whatever stands in the instance itself."""
    return getattr_static(type(instance), name).__get__(instance, type(instance))


def _as_it_is(value: Any) -> Any:
    return value


def override_on_instance(instance: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method on this one instance; returns a function that undoes this, unless somebody replaced it since.

    Copies of the instance do not have the replacement, see :class:`Override`.
    """
    before = instance.__dict__.get(name)
    override = replacement if isinstance(replacement, Override) else Override(instance, name, replacement)
    instance.__dict__[name] = override

    def undo() -> None:
        if instance.__dict__.get(name) is override:
            if before is None:
                del instance.__dict__[name]
            else:
                instance.__dict__[name] = before

    return undo


@contextmanager
def buffers_put_back(module: nn.Module) -> Iterator[None]:
    """Buffers (the statistics of batch norm, counts) are as before afterwards, changed in place or assigned anew."""
    before = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for owner, name, buffer, value in before:
                buffer.copy_(value)
                owner._buffers[name] = buffer
