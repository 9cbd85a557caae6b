"""Parameters that are spread over ranks, seen as one: sums per parameter with one all-reduce for all of them.

What a method needs of a parameter (its norm, the dot product of its gradient with its last step) is a sum over its
elements, so it is a sum over the pieces that the ranks hold: each rank sums its own, and :func:`sum_over_shards` adds
them up for all parameters together. There are three ways to hold a parameter:

- whole (one device, DDP), which costs nothing;
- as a ``DTensor`` (FSDP2), one piece per rank, which :func:`local` returns;
- flattened (DeepSpeed ZeRO): the optimizer sees one vector per group or part of a group, cut without regard to where a
  tensor begins. The strategy that made it registers by :func:`describe_flat` which run of it belongs to which
  tensor, and :func:`flat_of` returns its :class:`FlatSegment` s.

Pure torch; a method that uses these functions knows nothing of the strategy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.utils.weak import WeakTensorKeyDictionary


@dataclass(frozen=True)
class Whole:
    """A tensor before it was flattened.

    Args:
        group: its parameter group, by index.
        place: its place in that group, as the user made it.
        shape: its shape.
    """

    group: int
    place: int
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Partition:
    """How the tensors of one optimizer were flattened and dealt out; the same on every rank.

    Args:
        tensors: all of them. A rank need not hold a piece of each, nor of any.
        vectors: flat vectors that the optimizer has on each rank.
        process_group: the ranks they were dealt to; None for all.
        device: where that group communicates.
    """

    tensors: tuple[Whole, ...]
    vectors: int
    process_group: Any
    device: torch.device


@dataclass(frozen=True)
class FlatSegment:
    """The run ``[start, stop)`` of a flat vector, which belongs to one tensor; what is in no segment is padding.

    Args:
        tensor: index in the partition's ``tensors``.
        start: first element.
        stop: one past the last.
    """

    tensor: int
    start: int
    stop: int


@dataclass(frozen=True, eq=False)
class Flat:
    """What a flat vector is made of on this rank."""

    segments: tuple[FlatSegment, ...]
    partition: Partition


# apart from the vectors, not on them: attributes of a tensor are saved with it, and a process group cannot be
_FLAT: Any = WeakTensorKeyDictionary()


def describe_flat(vector: Tensor, flat: Flat) -> None:
    """Register what ``vector`` is made of for :func:`flat_of`, for as long as it lives."""
    _FLAT[vector] = flat


def flat_of(parameter: Tensor) -> Flat | None:
    """What a flattened parameter is made of; ``None`` for one that is a tensor of its own."""
    return _FLAT.get(parameter) if _FLAT else None


def partition_of(parameters: Iterable[Tensor]) -> Partition | None:
    """The partition that flattened parameters belong to; ``None`` where there is none among them."""
    if not _FLAT:
        return None
    return next((flat.partition for flat in map(flat_of, parameters) if flat is not None), None)


def local(tensor: Tensor) -> Tensor:
    """The piece of ``tensor`` that this rank holds, sharing its memory; the tensor itself where it is held whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_shards(partial: Tensor, holders: Sequence[Tensor | Partition]) -> Tensor:
    """Sums over whole parameters, from the sums over the pieces that each rank holds.

    Args:
        partial: shape ``(len(holders), ...)``: on this rank, one or more sums over the local piece of each parameter.
        holders: the parameters (or tensors sharded alike, such as their gradients), in the same order on every rank.
            For a sum over flattened tensors the partition they belong to.

    Returns:
        the same shape, equal on all ranks that hold a piece. ``partial`` itself where no parameter is sharded.

    Raises:
        ValueError: for a ``DTensor`` whose pieces are terms of a sum that has not been made (placement ``Partial``).
    """
    held_by: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for index, holder in enumerate(holders):
        if isinstance(holder, Partition):
            held_by.setdefault((holder, ()), []).append(index)
        if not isinstance(holder, DTensor):
            continue
        if any(placement.is_partial() for placement in holder.placements):
            raise ValueError(
                f"sum_over_shards: tensor {index} has placements {holder.placements}; reduce it first "
                "(redistribute to Shard or Replicate)"
            )
        sharded = tuple(dim for dim, placement in enumerate(holder.placements) if placement.is_shard())
        if sharded:
            held_by.setdefault((holder.device_mesh, sharded), []).append(index)
    for (held, sharded), indices in held_by.items():
        sums = partial[indices]
        if isinstance(held, Partition):
            sums = sums.to(held.device)
            dist.all_reduce(sums, group=held.process_group)
        else:
            for dim in sharded:
                dist.all_reduce(sums, group=held.get_group(dim))
        partial = partial.clone()
        partial[indices] = sums.to(partial)
    return partial
