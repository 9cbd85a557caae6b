"""One update of LARS or LAMB over parameters that are spread over ranks, with one all-reduce for all groups.

The norms of all tensors are computed before any tensor moves: each rank adds up the squares of the pieces that it
holds, in one table with a row for each tensor, and the sum over the ranks gives every rank every ratio. For LAMB this
means that the step of every tensor is there before the first is applied: one more copy of the rank's share of the
weights while the step lasts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from lightning_lr.optim.local_tensors import HALF, Group, Piece, adapts, by_device_and_dtype
from lightning_lr.shards import Partition, partition_of, sum_over_shards

if TYPE_CHECKING:
    from lightning_lr.optim.trust_ratio import TrustRatioOptimizer


class _Compared(NamedTuple):
    """Pieces that have a trust ratio, what each is compared with, and the rows of their tensors in the table."""

    group: Group
    pieces: list[Piece]
    others: list[Tensor]
    rows: list[int]


def update_sharded(optimizer: TrustRatioOptimizer, work: Sequence[tuple[Group, list[Piece]]]) -> list[Tensor]:
    """Make one update.

    Args:
        optimizer: whose groups they are.
        work: each group with the pieces of it that this rank holds, which may be none.

    Returns:
        The trust ratios of each group that has any.

    Raises:
        RuntimeError: where flat vectors come to the optimizer one after the other.
    """
    vectors = [parameter for group, _ in work for parameter in group["params"]]
    partition = partition_of(vectors)
    holders: list[Tensor | Partition] = []
    if partition is not None:
        if not _all_here(optimizer, vectors, partition):
            return []
        holders = [partition] * len(partition.tensors)
    questions: list[_Compared] = []
    rows_of: list[list[int]] = []
    for index, (group, pieces) in enumerate(work):
        optimizer._advance_step(group, pieces)
        rows = _flattened(group, index, partition)
        for some in by_device_and_dtype(pieces):
            adapted = [piece for piece in some if piece.adapted]
            fixed = [piece for piece in some if not piece.adapted]
            if fixed:
                optimizer._apply(group, fixed, None, [None] * len(fixed))
            if adapted:
                own = []
                for piece in adapted:
                    if piece.segment is None:
                        holders.append(piece.parameter)
                    own.append(len(holders) - 1 if piece.segment is None else piece.segment.tensor)
                rows += [row for row, piece in zip(own, adapted, strict=True) if piece.segment is None]
                questions.append(_Compared(group, adapted, optimizer._denominator_tensors(group, adapted), own))
        rows_of.append(rows)
    norms = _norms(questions, holders, partition)
    of_groups: list[Tensor] = []
    ratios = torch.ones_like(norms[:, 0])
    for (group, _), rows in zip(work, rows_of, strict=True):
        if rows:
            weight, other = norms[rows].unbind(1)
            found = torch.where((weight > 0) & (other > 0), optimizer._trust_ratio(group, weight, other), 1.0)
            of_groups.append(found)
            ratios[rows] = found
    for question in questions:
        theirs = ratios[question.rows].to(question.pieces[0].weight.device)
        on_host = question.pieces[0].on_host
        optimizer._apply(question.group, question.pieces, question.others, theirs.tolist() if on_host else list(theirs))
    return of_groups


def _all_here(optimizer: TrustRatioOptimizer, vectors: Sequence[Tensor], partition: Partition) -> bool:
    """Whether there is an update to make; a flat vector that is absent would miss its part of the norms."""
    here = sum(vector.grad is not None for vector in vectors)
    if here not in (0, partition.vectors):
        raise RuntimeError(
            f"{type(optimizer).__name__}: {here} of {partition.vectors} flat vectors have a gradient in this step, "
            "and the norm of a tensor takes all of them; let the engine make one step of the optimizer per update"
        )
    return here > 0


def _flattened(group: Group, index: int, partition: Partition | None) -> list[int]:
    """Rows of all flattened tensors of a group that have a ratio, also those of which this rank holds nothing."""
    tensors = () if partition is None else partition.tensors
    return [row for row, whole in enumerate(tensors) if whole.group == index and adapts(group, whole)]


def _norms(questions: Sequence[_Compared], holders: Sequence[Any], partition: Partition | None) -> Tensor:
    """Shape ``(len(holders), 2)``: the norms of each tensor and of what it is compared with."""
    kinds = {piece.weight.dtype for question in questions for piece in question.pieces}
    dtype = torch.float64 if torch.float64 in kinds else torch.float32
    device = questions[0].pieces[0].weight.device if questions else partition.device if partition else None
    table = torch.zeros(len(holders), 2, dtype=dtype, device=device)
    for question in questions:
        weights = [piece.weight for piece in question.pieces]
        half = weights[0].dtype in HALF
        parts = torch._foreach_norm([*weights, *question.others], 2, dtype=torch.float32 if half else None)
        squares = torch.stack(parts).square().view(2, -1).T
        rows = torch.tensor(question.rows, device=device)
        table.index_add_(0, rows, squares.to(table))  # two segments of a tensor can be on one rank
    return sum_over_shards(table, holders).sqrt()
