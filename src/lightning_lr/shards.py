"""Parameters that are spread over ranks, seen as one: sums per parameter with one all-reduce for all of them.

Under FSDP2 a parameter is a ``DTensor`` and each rank holds a piece of it. What a method asks about a parameter (its
norm, the dot product of its gradient with its last step) is a sum over its elements, so it is a sum over the pieces:
each rank sums its own, and :func:`sum_over_shards` adds them up in one vector for all parameters. A parameter that is
held whole costs nothing. Pure torch; a method that uses these two functions knows nothing of shards.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor


def local(tensor: Tensor) -> Tensor:
    """The piece of ``tensor`` that this rank holds, sharing its memory; the tensor itself where it is held whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def sum_over_shards(partial: Tensor, parameters: Sequence[Tensor]) -> Tensor:
    """Sums over whole parameters, from the sums over the pieces that each rank holds.

    Args:
        partial: shape ``(len(parameters),)``: on this rank, the sum over the local piece of each parameter.
        parameters: the parameters (or tensors sharded alike, such as their gradients), in the same order on every rank.

    Returns:
        the same shape, equal on all ranks that hold a piece. ``partial`` itself where no parameter is sharded.

    Raises:
        ValueError: for a ``DTensor`` whose pieces are terms of a sum that has not been made (placement ``Partial``).
    """
    held_by: dict[tuple[Any, tuple[int, ...]], list[int]] = {}
    for index, parameter in enumerate(parameters):
        if not isinstance(parameter, DTensor):
            continue
        if any(placement.is_partial() for placement in parameter.placements):
            raise ValueError(
                f"sum_over_shards: tensor {index} has placements {parameter.placements}; reduce it first "
                "(redistribute to Shard or Replicate)"
            )
        sharded = tuple(dim for dim, placement in enumerate(parameter.placements) if placement.is_shard())
        if sharded:
            held_by.setdefault((parameter.device_mesh, sharded), []).append(index)
    for (mesh, sharded), indices in held_by.items():
        sums = partial[indices]
        for dim in sharded:
            dist.all_reduce(sums, group=mesh.get_group(dim))
        partial = partial.clone()
        partial[indices] = sums
    return partial
