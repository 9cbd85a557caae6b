"""The tensors in a batch, whatever it is made of, and its first samples."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor


def tensors_in(batch: Any) -> Iterator[Tensor]:
    """All tensors in nested mappings, sequences and dataclasses."""
    if isinstance(batch, Tensor):
        yield batch
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from tensors_in(value)
    elif isinstance(batch, list | tuple):
        for value in batch:
            yield from tensors_in(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        yield from tensors_in(vars(batch))


def first_samples(batch: Any, count: int) -> Any:
    """The batch cut to its first ``count`` samples: every tensor as long as the first one; else the batch itself."""
    size = next((tensor.shape[0] for tensor in tensors_in(batch) if tensor.ndim), 0)
    return batch if size <= count else _cut(batch, size, count)


def _cut(batch: Any, size: int, count: int) -> Any:
    if isinstance(batch, Tensor):
        return batch[:count] if batch.ndim and batch.shape[0] == size else batch
    if isinstance(batch, Mapping):
        shorter = copy.copy(batch)
        for key, value in batch.items():
            shorter[key] = _cut(value, size, count)  # type: ignore[index]
        return shorter
    if isinstance(batch, list | tuple):
        parts = [_cut(value, size, count) for value in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    if dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        changed = copy.copy(batch)
        for name, value in vars(batch).items():
            object.__setattr__(changed, name, _cut(value, size, count))  # frozen ones, too
        return changed
    return batch
