"""What of a model and its optimizer the memory of a rank depends on."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from torch.optim import Optimizer

from lightning_lr.nested import tensors_in
from lightning_lr.optimizer_copy import optimizer_like

WHOLE = 4
"""Bytes of an fp32 number."""
HALF = 2
"""Bytes of a bf16 or fp16 number."""

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


@dataclass(frozen=True)
class ModelSize:
    """What of a model its memory depends on.

    Args:
        trainable: numbers in each trainable parameter.
        frozen: numbers in all parameters that are not trained.
        state_bytes: what the optimizer keeps for a trainable number, in bytes: 0 for SGD, 4 with momentum, 8 for Adam.
    """

    trainable: tuple[int, ...]
    frozen: int = 0
    state_bytes: float = 2 * WHOLE

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer | None = None) -> ModelSize:
        """The size of a module, with the state of its optimizer (of Adam where none is given)."""
        trainable = tuple(p.numel() for p in module.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
        return cls(trainable, frozen) if optimizer is None else cls(trainable, frozen, state_bytes(optimizer))

    @property
    def numbers(self) -> int:
        """Trainable numbers."""
        return sum(self.trainable)

    def shard(self, ranks: int) -> int:
        """Trainable numbers of a rank in stage 3, where each parameter is padded to a multiple of the ranks."""
        return sum(math.ceil(numbers / ranks) for numbers in self.trainable)


def state_bytes(optimizer: Optimizer) -> float:
    """What an optimizer keeps for each number that it trains, in bytes; the mean over its groups.

    It is measured: a copy of the optimizer steps once on small flat fp32 vectors, as ZeRO's shards are, and its state
    is counted. What does not grow with the vector (step counts) is not in it.

    Args:
        optimizer: any torch optimizer, with its hyperparameters; neither it nor its parameters change.

    Raises:
        ValueError: for an optimizer that cannot step on its own, with its error.
    """
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    kept = 0.0
    for group in optimizer.param_groups:
        few, many = 256, 512
        growth = (_kept_after_a_step(optimizer, group, many) - _kept_after_a_step(optimizer, group, few)) / (many - few)
        kept += growth * sum(p.numel() for p in group["params"]) / max(total, 1)
    return kept


def _kept_after_a_step(optimizer: Optimizer, group: dict[str, Any], numbers: int) -> int:
    parameter = nn.Parameter(torch.ones(numbers))
    parameter.grad = torch.full((numbers,), 0.5)
    try:
        with torch.enable_grad():
            copy = optimizer_like(optimizer, group, parameter)
            copy.step(lambda: float(parameter.detach().sum()))
    except Exception as error:
        raise ValueError(
            f"state_bytes: {type(optimizer).__name__} does not step on its own ({error}); give ModelSize the bytes "
            "that it keeps for each number"
        ) from error
    return sum(t.numel() * t.element_size() for t in tensors_in(copy.state[parameter]))
