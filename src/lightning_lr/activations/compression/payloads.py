"""The forms in which a saved tensor waits for the backward."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from lightning_lr.activations.compression.exact import PackedBits, PackedIntegers
from lightning_lr.activations.compression.kernels import Kernels, Packed


class Payload(Protocol):
    """What stands for a flat tensor."""

    @property
    def bits(self) -> int | None:
        """Bits per number of a rounded tensor; None for one that is kept exactly."""

    def restore(self) -> Tensor: ...


class SavedAsIs:
    """A tensor as it is: the same memory, which must not change in place before the backward."""

    bits = None

    def __init__(self, tensor: Tensor, watched: bool) -> None:
        self.tensor = tensor.detach()  # the tensor itself, if it is a result, would keep its own graph alive
        self._version = tensor._version if watched else None

    def restore(self) -> Tensor:
        """The tensor.

        Raises:
            RuntimeError: if it was modified in place after it had been saved.
        """
        if self._version is not None and self.tensor._version != self._version:
            raise RuntimeError(
                f"a tensor of shape {tuple(self.tensor.shape)} that the backward needs was modified in place after the "
                f"forward (it is at version {self.tensor._version}, expected {self._version}); do not modify it"
            )
        return self.tensor


class Exact:
    """A mask or integers, smaller and without loss."""

    bits = None

    def __init__(self, packed: PackedBits | PackedIntegers) -> None:
        self.packed = packed

    def restore(self) -> Tensor:
        """The flat tensor."""
        return self.packed.unpack()


class Rounded:
    """Numbers at a few bits."""

    def __init__(self, packed: Packed, kernels: Kernels) -> None:
        self.packed, self.bits = packed, packed.bits
        self._kernels = kernels

    def restore(self) -> Tensor:
        """The flat tensor, as it was rounded."""
        return self._kernels.unpack(self.packed)


class TrialPayload:
    """Numbers that are rounded when they are read, anew under another key: how the probe draws its noise.

    Args:
        flat: the numbers themselves.
        name: of the tensor.
        bits: to which it is rounded.
        adjustable: whether the allocation decides about it.
        noise: the noise key of a draw.
    """

    def __init__(
        self, flat: Tensor, name: str, bits: int, adjustable: bool, group_size: int, kernels: Kernels, keys: Keys
    ) -> None:
        self.flat, self.name, self.bits, self.adjustable = flat.detach(), name, bits, adjustable
        self.draw = 0
        self._first: Tensor | None = None
        self._group_size, self._kernels, self._keys = group_size, kernels, keys

    def restore(self) -> Tensor:
        """The flat tensor, rounded under the key of the present draw; the first draw's, which many read, is kept."""
        if self.draw == 0 and self._first is not None:
            return self._first
        packed = self._kernels.pack(self.flat, self.bits, self._group_size, self._keys(self.draw))
        rounded = self._kernels.unpack(packed)
        if self.draw == 0:
            self._first = rounded
        return rounded


class Keys(Protocol):
    """Noise keys of one tensor, by draw."""

    def __call__(self, draw: int) -> tuple[int, int]: ...


def plain(tensor: Tensor) -> bool:
    """Whether a tensor is an ordinary one that can be packed: strided and of no subclass."""
    return type(tensor) in (Tensor, torch.nn.Parameter) and tensor.layout == torch.strided and not tensor.is_nested
