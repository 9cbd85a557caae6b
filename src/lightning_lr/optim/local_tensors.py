"""What an update is made of: one piece for each parameter that a rank holds a part of, and what to take together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_lr.shards import FlatSegment, Whole

Group = dict[str, Any]
"""A parameter group of an optimizer."""

HALF, WHOLE = (torch.float16, torch.bfloat16), (torch.float32, torch.float64)


@dataclass(slots=True)
class Piece:
    """One parameter's share of a step, as real tensors that this rank holds.

    Args:
        parameter: the parameter as the user knows it.
        weight: its values on this rank.
        grad: its gradient, laid out as it came.
        state: the optimizer's tensors, by name.
        adapted: whether it has a trust ratio.
        fuses: whether torch's fused kernels take it.
        segment: where it lies in ``parameter``, if that is a flat vector.
    """

    parameter: Tensor
    weight: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    adapted: bool
    fuses: bool
    segment: FlatSegment | None = None

    @property
    def on_host(self) -> bool:
        """Whether a number can be read from it without waiting for a device."""
        return self.weight.device.type == "cpu"

    @property
    def sharded(self) -> bool:
        """Whether its norm needs other ranks."""
        return self.segment is not None or isinstance(self.parameter, DTensor)


def adapts(group: dict[str, Any], whole: Whole) -> bool:
    """Whether a tensor that was flattened has a trust ratio."""
    adapt = group["adapt"]
    if isinstance(adapt, str):
        return adapt == "all" or (adapt == "ndim>1" and len(whole.shape) > 1)
    return bool(adapt[whole.place])


def by_device_and_dtype(pieces: Iterable[Piece]) -> Iterator[list[Piece]]:
    """Pieces that one multi-tensor kernel can take together: by device and dtype."""
    together: dict[tuple[torch.device, torch.dtype], list[Piece]] = {}
    for piece in pieces:
        together.setdefault((piece.weight.device, piece.weight.dtype), []).append(piece)
    yield from together.values()


def goes_one_by_one(pieces: list[Piece]) -> bool:
    """Whether :func:`one_by_one_on_cpu` takes these one by one."""
    return bool(pieces) and pieces[0].on_host and not any(piece.sharded for piece in pieces)


def one_by_one_on_cpu(pieces: list[Piece]) -> Iterator[list[Piece]]:
    """What to take together: on the host one tensor after the other, each while it is in the cache; on a device, or
    over shards, all of them, so that there is one question about norms."""
    if goes_one_by_one(pieces):
        yield from ([piece] for piece in pieces)
    elif pieces:
        yield pieces


def learning_rate(group: dict[str, Any], piece: Piece) -> float | Tensor:
    """The group's lr: a tensor stays one where it lies on the piece's device; one of the CPU is read there."""
    lr: float | Tensor = group["lr"]
    return float(lr) if isinstance(lr, Tensor) and lr.device != piece.weight.device else lr


def real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
