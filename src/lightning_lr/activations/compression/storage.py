"""Which tensors are the same numbers: so that what is saved twice is packed once, and nothing stale is handed out.

Operations save the same activation again and again (ReLU its output, the next convolution its input), and often as
another view. Two tensors are the same where storage, place and version agree. The storage is held by a weak reference
for as long as it is in the table: its memory may be freed, but its address cannot become another storage's, as the
pointer to its data can. Source of this caution: a table keyed by data pointers returns stale payloads once the
allocator hands the memory out again.
"""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Iterable
from typing import Generic, TypeVar

from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef

Payload = TypeVar("Payload")


def is_dense(tensor: Tensor) -> bool:
    """Whether the tensor fills a stretch of memory without gaps, in whatever order of its dimensions."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True


def in_memory_order(tensor: Tensor) -> Tensor:
    """The numbers of a tensor in one dimension: as they lie in memory where it is dense, else copied in its order."""
    if is_dense(tensor):
        return tensor.as_strided((tensor.numel(),), (1,))
    return tensor.reshape(-1)


def restored(flat: Tensor, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> Tensor:
    """The tensor whose :func:`in_memory_order` is ``flat``; ``strides`` are None for one that was not dense."""
    return flat.view(shape) if strides is None else flat.as_strided(shape, strides)


def storages_of(module: nn.Module, others: Iterable[Tensor] = ()) -> set[int]:
    """The storages of all parameters and buffers of a module, and of other tensors; valid while those live."""
    return {t.untyped_storage()._cdata for t in (*module.parameters(), *module.buffers(), *others)}


class PackedOnce(Generic[Payload]):
    """The payloads of one forward pass, found again by the tensors that they were made of.

    Payloads are held weakly: where the graph that uses one is gone, so is the payload.
    """

    def __init__(self) -> None:
        self._found: dict[Hashable, tuple[weakref.ref[Payload], StorageWeakRef, int]] = {}

    def find(self, tensor: Tensor) -> Payload | None:
        """The payload of the same numbers, if there is one."""
        payload, _, version = self._found.get(self._place(tensor), (None, None, -1))
        return payload() if payload is not None and version == tensor._version else None

    def add(self, tensor: Tensor, payload: Payload) -> None:
        """Remember the payload of a tensor."""
        storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        self._found[self._place(tensor)] = (weakref.ref(payload), storage, tensor._version)

    def clear(self) -> None:
        """Forget everything."""
        self._found.clear()

    @staticmethod
    def _place(tensor: Tensor) -> Hashable:
        storage = tensor.untyped_storage()
        form = tensor.numel() if is_dense(tensor) else (tuple(tensor.shape), tensor.stride())
        sign = tensor.is_neg(), tensor.is_conj()  # views whose sign is turned when they are read
        return storage._cdata, storage.data_ptr(), tensor.storage_offset(), tensor.dtype, sign, form
