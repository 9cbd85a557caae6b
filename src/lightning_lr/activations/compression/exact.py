"""What is saved for the backward and is not a real number to be rounded: masks and indices, kept exactly and smaller.

A mask of booleans takes a bit each; so does a tensor with the two values 0 and c, as dropout's scaled mask is on a CPU.
Integers (the places of max-pooling, token numbers) are narrowed to the smallest type that holds them. To find values
out, a GPU would have to be waited for; there, only the type of a tensor decides.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lr.activations.compression.cpu_kernels import CpuKernels, loaded_kernels


@dataclass(frozen=True)
class PackedBits:
    """A flat tensor of two values, at one bit each.

    Args:
        words: uint8, eight numbers each.
        count: numbers.
        value: where a bit is set, as a tensor without dimensions and of the dtype of the whole.
        otherwise: where none is; ``None`` for 0.
    """

    words: Tensor
    count: int
    value: Tensor
    otherwise: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.words.nbytes + self.value.nbytes + (0 if self.otherwise is None else self.otherwise.nbytes)

    def unpack(self) -> Tensor:
        """The tensor, one-dimensional."""
        fast = _fast(self.value)
        if fast is not None:
            return fast.unpack_two_valued(self.words, self.count, self.value, self.otherwise)
        shifts = torch.arange(8, dtype=torch.uint8, device=self.words.device)
        bits = ((self.words.unsqueeze(1) >> shifts) & 1).view(-1)[: self.count].bool()
        if self.value.dtype == torch.bool:
            return bits
        return torch.where(bits, self.value, torch.zeros_like(self.value) if self.otherwise is None else self.otherwise)


@dataclass(frozen=True)
class PackedIntegers:
    """A flat tensor of integers in a smaller type.

    Args:
        values: the integers.
        dtype: the type that they had.
    """

    values: Tensor
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.values.nbytes

    def unpack(self) -> Tensor:
        """The tensor, one-dimensional."""
        return self.values.to(self.dtype)


def pack_bits(mask: Tensor) -> PackedBits:
    """One bit for each boolean of a flat tensor."""
    return _packed(mask, torch.ones((), dtype=torch.bool, device=mask.device))


def pack_two_valued(flat: Tensor) -> PackedBits | None:
    """One bit for each number of a flat tensor that has no values but 0 and one other; None for any other tensor."""
    value = flat[flat[:64].ne(0).byte().argmax()]
    for part in (flat[:64], flat):  # the first numbers rule out nearly every other tensor
        if not bool(((part == 0) | (part == value)).all()):
            return None
        fast = _fast(part)
        if fast is not None:
            marks = fast.pack_two_valued(flat, value)
            return None if marks is None else PackedBits(marks, flat.numel(), value.clone())
    return _packed(flat != 0, value.clone())


def pack_integers(flat: Tensor, bounds: tuple[int, int] | None) -> PackedIntegers | None:
    """The integers of a flat tensor in the smallest signed type that holds them all; None where it is no smaller.

    Args:
        flat: the integers.
        bounds: the least and the largest that there can be, both included; None: they are looked for.
    """
    least, largest = bounds or (int(bound) for bound in torch.aminmax(flat))
    for dtype in (torch.int8, torch.int16, torch.int32):
        kind = torch.iinfo(dtype)
        if kind.min <= least and largest <= kind.max and dtype.itemsize < flat.dtype.itemsize:
            return PackedIntegers(flat.to(dtype), flat.dtype)
    return None


def _fast(numbers: Tensor) -> CpuKernels | None:
    """The C kernels, where they are in use and know the type."""
    known = numbers.device.type == "cpu" and numbers.is_floating_point() and numbers.dtype.itemsize in (2, 4)
    return loaded_kernels() if known else None


def _packed(mask: Tensor, value: Tensor) -> PackedBits:
    count = mask.numel()
    filled = torch.zeros(-(-count // 8) * 8, dtype=torch.uint8, device=mask.device)
    filled[:count] = mask
    weights = torch.tensor([1, 2, 4, 8, 16, 32, 64, 128], dtype=torch.uint8, device=mask.device)
    return PackedBits((filled.view(-1, 8) * weights).sum(1, dtype=torch.uint8), count, value)
