"""How an optimizer's tensors are put together, so that a hypergradient is a few operations on long vectors.

Small tensors are packed into chunks as far as they are treated alike; what is copied from step to step lies in memory
in the order in which it is packed, so that it need not be put together again.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_lr.shards import local


@dataclass
class Chunk:
    """Parameters of a group that are packed into one vector, and whether their last update is known."""

    group: int
    known: bool
    parameters: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    elements: int = 0
    copies: Sequence[Tensor] = ()
    """What is kept of each parameter, if anything is."""


def pack(
    group: int,
    parameters: Sequence[tuple[int, Tensor]],
    known: set[int],
    copies: Mapping[int, Tensor],
    step: Callable[[Tensor], object],
    size: int,
) -> Iterator[Chunk]:
    """Chunks of the parameters that have a gradient.

    Args:
        group: index of their group.
        parameters: and their places in the optimizer.
        known: places of those whose last update is known.
        copies: what is kept of some, by place.
        step: a key; parameters of which it differs are not packed together.
        size: elements that a chunk of more than one parameter has at most.

    Raises:
        ValueError: for sparse gradients.
    """
    open_chunks: dict[object, Chunk] = {}
    for place, parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            raise ValueError(
                f"hypergradient: parameter {place} of the optimizer (shape {tuple(parameter.shape)}) has a sparse "
                "gradient, of which no dot product with the last update is taken; use sparse=False in its embedding"
            )
        key = (
            place in known,
            step(parameter) if place in known else None,
            parameter.dtype,
            parameter.device,
            (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None,
        )
        elements = local(parameter).numel()
        chunk = open_chunks.get(key)
        if chunk is not None and chunk.elements + elements > size:
            yield _closed(open_chunks.pop(key), copies)
            chunk = None
        if chunk is None:
            chunk = open_chunks[key] = Chunk(group, place in known)
        chunk.parameters.append(parameter)
        chunk.places.append(place)
        chunk.elements += elements
    for chunk in open_chunks.values():
        yield _closed(chunk, copies)


def _closed(chunk: Chunk, copies: Mapping[int, Tensor]) -> Chunk:
    kept = [copies[place] for place in chunk.places if place in copies]
    chunk.copies = _as_one(kept) if len(kept) > 1 else kept
    return chunk


def side_by_side(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Memory for a copy of each tensor; those of one dtype and device follow each other."""
    totals: dict[tuple[torch.dtype, torch.device], int] = {}
    for tensor in tensors:
        key = (tensor.dtype, tensor.device)
        totals[key] = totals.get(key, 0) + tensor.numel()
    left = {key: torch.empty(total, dtype=key[0], device=key[1]) for key, total in totals.items()}
    places = []
    for tensor in tensors:
        key = (tensor.dtype, tensor.device)
        places.append(left[key][: tensor.numel()].view(tensor.shape))
        left[key] = left[key][tensor.numel() :]
    return places


def _as_one(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """The tensors as one vector, if that is how they lie in memory."""
    first, end = tensors[0], tensors[0].storage_offset()
    for tensor in tensors:
        same = tensor.untyped_storage().data_ptr() == first.untyped_storage().data_ptr() and tensor.dtype == first.dtype
        if not same or tensor.storage_offset() != end or not tensor.is_contiguous():
            return tensors
        end += tensor.numel()
    return [first.as_strided((end - first.storage_offset(),), (1,), first.storage_offset())]
