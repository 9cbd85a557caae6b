"""What the ranks tell each other, without the barriers of Lightning's own reductions."""

from __future__ import annotations

import torch
from lightning.pytorch import Trainer


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


def take_from_rank_zero(trainer: Trainer, tensor: torch.Tensor) -> None:
    """Give every rank the bits that rank 0 has, so that what is decided by them cannot differ."""
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        sent = tensor.to(trainer.strategy.root_device)  # what is offloaded to the host cannot be sent from there
        torch.distributed.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)
