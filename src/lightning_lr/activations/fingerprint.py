"""A few numbers of a tensor, by which a second computation of it is recognised."""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLED = 64
"""Numbers of a tensor that are compared at least, spread over it; all of a smaller one."""


class Fingerprint:
    """A few numbers of a tensor, to know it again by; rounding apart, since kernels may add up in another order."""

    def __init__(self, tensor: Tensor) -> None:
        self._numbers = self._of(tensor)

    def is_of(self, tensor: Tensor) -> bool:
        mine, other = self._numbers, self._of(tensor)
        if mine is None or other is None or mine.shape != other.shape or not mine.numel():
            return True
        if not mine.is_floating_point():
            return torch.equal(mine, other)
        rounding = torch.finfo(mine.dtype).eps ** 0.75
        close = (mine - other).abs() <= rounding * mine.abs().nan_to_num(0.0, 0.0, 0.0).max()
        return bool((close | (mine == other) | (mine.isnan() & other.isnan())).all())

    @staticmethod
    def _of(tensor: Tensor) -> Tensor | None:
        if tensor.layout is not torch.strided or tensor.is_complex() or tensor.is_meta:
            return None
        flat = tensor.detach().reshape(-1)
        return flat[:: max(1, len(flat) // SAMPLED)].clone()


def all_are(known: list[Fingerprint], tensors: list[Tensor]) -> bool:
    """Whether these are the tensors that the fingerprints were taken of."""
    return len(known) == len(tensors) and all(one.is_of(tensor) for one, tensor in zip(known, tensors, strict=True))
