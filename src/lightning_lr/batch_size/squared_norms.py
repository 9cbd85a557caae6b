"""Squared norms of gradients, of one tensor after the other as they appear in a backward, at little more than a read.

The two norms of a noise scale are nearly equal where the noise is small, so they must not be rounded as the gradients
are: a norm in bf16 is off by 2^-9, and the CPU's own in fp32 by 2e-4 for eight million elements. What is summed in
single precision is short here, and all else is added in double precision.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from itertools import chain
from operator import is_

import torch
from torch import Tensor

PIECE = 1 << 15
"""Elements that a CPU sums in single precision; more are off by 5e-12 times their number."""

_REAL = frozenset((torch.float32, torch.float64))


def squared_norm(tensors: Sequence[Tensor], device: torch.device) -> Tensor:
    """The sum of the squares of all elements, on ``device``, in double precision (on MPS, which has none, single)."""
    return _added([_measured(tensor) for tensor in tensors if tensor.numel()], device).sum()


class SquaredNorms:
    """Of the gradients of single parameters in the backwards of one update, added up over these.

    Args:
        device: where they are added.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._open: tuple[list[Tensor], list[Tensor]] = [], []
        """Parameters of the present backward, and what was measured of each."""
        self._closed: list[tuple[list[Tensor], Tensor]] = []
        """Parameters of backwards that are over, and squared norms."""

    def add(self, parameter: Tensor, gradient: Tensor) -> None:
        """The gradient of a parameter has appeared in a backward."""
        if gradient.numel():
            self._open[0].append(parameter)
            self._open[1].append(_measured(gradient))

    def close(self, scale: float) -> bool:
        """The backward is over; its squared norms are multiplied by ``scale``.

        Returns:
            Whether each gradient came whole. Reentrant checkpointing derives block by block, so that a layer that it
            calls twice has its gradient in two parts, whose squared norms do not add up to that of their sum.
        """
        parameters, measured = self._open
        if not parameters:
            return True
        self._open = [], []
        squares = _added(measured, self._device).mul_(scale)
        known = next((found for found in self._closed if _same(found[0], parameters)), None)
        if known is not None:
            known[1].add_(squares)
            return True
        self._closed.append((parameters, squares))
        return len(set(map(id, parameters))) == len(parameters)

    @property
    def parameters(self) -> list[Tensor]:
        """Whose gradients have appeared; one may be there several times."""
        return [*chain.from_iterable(parameters for parameters, _ in self._closed), *self._open[0]]

    def total(self, parameters: Collection[Tensor]) -> Tensor:
        """The sum over these parameters, of all backwards that are over."""
        wanted, sums = set(map(id, parameters)), []
        for found, squares in self._closed:
            chosen = [place for place, parameter in enumerate(found) if id(parameter) in wanted]
            sums.append((squares if len(chosen) == len(found) else squares[chosen]).sum())
        return torch.stack(sums).sum() if len(sums) > 1 else sums[0] if sums else _added([], self._device).sum()


def _same(some: list[Tensor], others: list[Tensor]) -> bool:
    return len(some) == len(others) and all(map(is_, some, others))


def _measured(tensor: Tensor) -> Tensor:
    """The squared norm of a tensor of the CPU; on any other device, where that costs one kernel less, the norm."""
    if tensor.requires_grad:
        tensor = tensor.detach()
    if tensor.is_cpu and tensor.dtype in _REAL and tensor.is_contiguous():  # as nearly always
        flat = tensor if tensor.dim() == 1 else tensor.view(-1)
        if flat.numel() <= PIECE:
            return torch.dot(flat, flat)
        return torch.stack([torch.dot(part, part) for part in torch.split(flat, PIECE)]).sum(dtype=torch.float64)
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not tensor.is_cpu:
        norm: Tensor = torch.linalg.vector_norm(tensor, dtype=torch.float32 if tensor.itemsize < 4 else None)
        return norm
    real = tensor.float() if tensor.itemsize < 4 else tensor
    return _measured(real) if real is not tensor and real.is_contiguous() else real.square().sum(dtype=torch.float64)


def _added(measured: list[Tensor], device: torch.device) -> Tensor:
    """The squared norms behind what was measured, in one tensor."""
    dtype = torch.float32 if device.type == "mps" else torch.float64
    if not measured:
        return torch.zeros(0, dtype=dtype, device=device)
    if len({(found.device, found.dtype) for found in measured}) > 1:
        return torch.cat([_added([found], device) for found in measured])
    values = torch.stack(measured).to(dtype)
    return (values if values.device.type == "cpu" else values.square()).to(device)
