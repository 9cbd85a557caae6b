"""Norms of many tensors at once, over all ranks that hold a part of them, and the trust ratios made of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lr.optim.cpu_norms import norms_on_cpu
from lightning_lr.optim.local_tensors import HALF, Piece
from lightning_lr.shards import sum_over_shards


def norms(tensors: Sequence[Tensor], pieces: Sequence[Piece]) -> Tensor:
    """The 2-norm of each tensor as one vector, over all ranks that hold a part of the piece it belongs to.

    Half-precision tensors are summed in fp32.
    """
    parts = torch.stack(torch._foreach_norm(list(tensors), 2, dtype=_sums_in(tensors)))
    if not any(piece.sharded for piece in pieces):
        return parts
    return sum_over_shards(parts.square(), [piece.parameter for piece in pieces]).sqrt()


def trust_ratios(
    pieces: Sequence[Piece], others: Sequence[Tensor], formula: Callable[[Any, Any], Any]
) -> Tensor | list[float]:
    """``formula(norm of weight, norm of other)`` of each piece, 1 where a norm is 0.

    A vector on the device, or a number for one tensor on the host (see :func:`one_by_one_on_cpu`), where it costs less.
    """
    weights = [piece.weight for piece in pieces]
    if len(pieces) == 1 and pieces[0].on_host and not pieces[0].sharded:
        weight, other = norms_on_cpu(weights[0], others[0])
        return [formula(weight, other) if weight > 0 and other > 0 else 1.0]
    both = norms([*weights, *others], [*pieces, *pieces])
    ratio: Tensor = formula(*both.chunk(2))
    return torch.where(both.view(2, -1).amin(0) > 0, ratio, torch.ones_like(ratio))


def _sums_in(tensors: Sequence[Tensor]) -> torch.dtype | None:
    return torch.float32 if tensors[0].dtype in HALF else None
