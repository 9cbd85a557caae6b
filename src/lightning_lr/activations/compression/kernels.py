"""Packing and unpacking of whole tensors, by the fastest of three implementations that give the same bits.

On a GPU the Triton kernel; on a CPU the C kernels once they are compiled, which happens when so much has been packed
that it pays (they then stay in a cache). Elsewhere, and where Triton or a C compiler is missing, the reference of
:mod:`~lightning_lr.activations.compression.groups` in eager torch.
"""

from __future__ import annotations

import functools
import importlib.util
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lr.activations.compression.cpu_kernels import LONGEST, cpu_kernels, is_cached
from lightning_lr.activations.compression.groups import decode_groups, encode_groups
from lightning_lr.activations.compression.noise import key_tensor

COMPILE_AFTER = 2**22
"""Numbers packed eagerly on a CPU before the kernels are compiled: some tenths of a second's worth."""


@dataclass(frozen=True)
class Packed:
    """A tensor at a few bits per number.

    Args:
        codes: uint8 of shape (groups, bytes per group).
        meta: int16 of shape (groups, 2): bf16 bits of each group's low and step.
        bits: per number.
        count: numbers; the last group is filled up by repeating the last one.
        dtype: of the numbers.
    """

    codes: Tensor
    meta: Tensor
    bits: int
    count: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return self.codes.nbytes + self.meta.nbytes


def packed_bytes(count: int, bits: int, group_size: int) -> int:
    """What ``count`` numbers take when packed: codes and 32 bits per group."""
    groups = -(-count // group_size)
    return groups * (group_size * bits // 8 + 4)


class Kernels:
    """Packs and unpacks; holds how much was packed, so that it knows when compiling pays.

    Args:
        cpu: ``"auto"``, or ``"eager"`` or ``"native"`` to have one of the two from the start.
    """

    def __init__(self, cpu: str = "auto") -> None:
        self.cpu = cpu
        self._numbers = 0

    def pack(self, flat: Tensor, bits: int, group_size: int, key: tuple[int, int], zero_exact: bool = True) -> Packed:
        """Pack a one-dimensional tensor under a noise key."""
        if flat.numel() == 0:
            codes = torch.empty(0, group_size * bits // 8, dtype=torch.uint8, device=flat.device)
            return Packed(codes, codes.new_empty(0, 2, dtype=torch.int16), bits, 0, flat.dtype)
        self._numbers += flat.numel()
        fast = self._fast(flat.device, group_size)
        if fast is not None:
            codes, meta = fast.pack(flat, bits, group_size, key, zero_exact)
            return Packed(codes, meta, bits, flat.numel(), flat.dtype)
        whole = flat.numel() // group_size * group_size
        parts = []
        if whole:
            start = key_tensor(key, 0, flat.device)
            parts.append(encode_groups(flat[:whole].view(-1, group_size), start, bits, zero_exact))
        if whole < flat.numel():
            tail = flat[whole:]
            filled = torch.cat([tail, tail[-1:].expand(group_size - tail.numel())]).unsqueeze(0)
            start = key_tensor(key, whole // 2, flat.device)
            parts.append(encode_groups(filled, start, bits, zero_exact))
        codes, meta = parts[0] if len(parts) == 1 else (torch.cat(pair) for pair in zip(*parts, strict=True))
        return Packed(codes, meta, bits, flat.numel(), flat.dtype)

    def unpack(self, packed: Packed) -> Tensor:
        """The numbers that ``packed`` stands for, one-dimensional."""
        if packed.count == 0:
            return torch.empty(0, dtype=packed.dtype, device=packed.codes.device)
        fast = self._fast(packed.codes.device, packed.codes.shape[1] * 8 // packed.bits)
        if fast is not None:
            flat: Tensor = fast.unpack(packed.codes, packed.meta, packed.bits, packed.count, packed.dtype)
            return flat
        groups = decode_groups(packed.codes, packed.meta, packed.bits, packed.dtype)
        return groups.view(-1)[: packed.count]

    def _fast(self, device: torch.device, group_size: int) -> Any:
        """What packs faster than the reference, where there is such a thing: it has ``pack`` and ``unpack``."""
        if device.type == "cuda":
            return _triton()
        if device.type != "cpu" or self.cpu == "eager" or group_size > LONGEST:
            return None
        if self.cpu == "auto" and self._numbers <= COMPILE_AFTER and not _is_cached():
            return None
        return cpu_kernels()


_is_cached = functools.cache(is_cached)
"""Asked once: kernels that another process makes meanwhile are found when this one wants to compile them."""


@functools.cache
def _triton() -> Any:
    if importlib.util.find_spec("triton") is None:
        return None
    from lightning_lr.activations.compression import triton_kernels

    return triton_kernels
