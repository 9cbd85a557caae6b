"""What the ranks exchange, without the barriers of Lightning's own reductions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from lightning.pytorch import Trainer

T = TypeVar("T")


def maximum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The maximum over the ranks, in place; Lightning's own reduction would make them wait for each other first."""
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return value


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks; values on the host are sent by the device where the backend has no other way."""
    if torch.distributed.get_backend() == "nccl" and values.device.type == "cpu":
        values = values.cuda()
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def broadcast_from_rank_zero(trainer: Trainer, tensor: torch.Tensor) -> None:
    """Give every rank the bits that rank 0 has, so that what is decided by them cannot differ."""
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        sent = tensor.to(trainer.strategy.root_device)  # what is offloaded to the host cannot be sent from there
        torch.distributed.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)


def gather_to_rank_zero(own: T) -> list[T | None]:
    """What every rank has, in their order, on the first rank; each of the others has its own in its place.

    The first rank's state goes into a checkpoint, but in ZeRO's stage 3, where every rank writes its own.
    """
    if not torch.distributed.is_initialized():
        return [own]
    rank, ranks = torch.distributed.get_rank(), torch.distributed.get_world_size()
    everybody: list[T | None] = [None] * ranks
    torch.distributed.gather_object(own, everybody if rank == 0 else None)
    everybody[rank] = own
    return everybody


def gather_to_all(own: T) -> list[T]:
    """What every rank has, in their order, on every rank."""
    if not torch.distributed.is_initialized():
        return [own]
    everybody: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(everybody, own)
    return everybody


def own_entry(everybody: Sequence[T | None] | None) -> T | None:
    """This rank's of what was :func:`gathered`; ``None`` where that was by another number of ranks."""
    started = torch.distributed.is_initialized()
    rank, ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if started else (0, 1)
    return everybody[rank] if everybody is not None and len(everybody) == ranks else None
