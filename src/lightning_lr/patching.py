"""Change a user's object for a while, and put it back: a method on one instance, the buffers of a module."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def override_on_instance(instance: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Replace a method on this one instance; returns a function that undoes this, unless somebody replaced it since."""
    before = instance.__dict__.get(name)
    instance.__dict__[name] = replacement

    def undo() -> None:
        if instance.__dict__.get(name) is replacement:
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
