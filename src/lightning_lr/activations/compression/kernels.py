"""Packing and unpacking of whole tensors, by the fastest of three implementations that give the same bits.

On a GPU the Triton kernel; on a CPU the reference of :mod:`~lightning_lr.activations.compression.groups`, eagerly at
first, and through ``torch.compile`` once so much has been packed that compiling pays (it takes some ten seconds). Where
nothing can be compiled (no C++ compiler), or Triton is missing, eager torch does it all.
"""

from __future__ import annotations

import functools
import importlib.util
import types
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_lr.activations.compression.groups import decode_groups, encode_groups
from lightning_lr.activations.compression.noise import key_tensor

COMPILE_AFTER = 2**28
"""Numbers packed eagerly on a CPU before the reference is compiled: about five seconds' worth."""

LEAST_ROWS = 16
"""Groups of the smallest tensor that goes through the compiled function."""


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
        cpu: ``"auto"``, or ``"eager"`` or ``"compiled"`` to have one of the two from the start.
    """

    def __init__(self, cpu: str = "auto") -> None:
        self.cpu = cpu
        self._numbers = 0

    def pack(self, flat: Tensor, bits: int, group_size: int, key: tuple[int, int], zero_exact: bool = True) -> Packed:
        """Pack a one-dimensional tensor under a noise key."""
        if flat.numel() == 0:
            codes = torch.empty(0, group_size * bits // 8, dtype=torch.uint8, device=flat.device)
            return Packed(codes, codes.new_empty(0, 2, dtype=torch.int16), bits, 0, flat.dtype)
        if flat.is_cuda and _triton() is not None:
            codes, meta = _triton().pack(flat, bits, group_size, key, zero_exact)
            return Packed(codes, meta, bits, flat.numel(), flat.dtype)
        whole = flat.numel() // group_size * group_size
        parts = []
        if whole:
            start = key_tensor(key, 0, flat.device)
            self._numbers += whole
            groups = flat[:whole].view(-1, group_size)
            encode = _compiled(encode_groups, bits, zero_exact) if self._compiles(groups) else encode_groups
            parts.append(encode(groups, start, bits, zero_exact))
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
        if packed.codes.is_cuda and _triton() is not None:
            flat: Tensor = _triton().unpack(packed.codes, packed.meta, packed.bits, packed.count, packed.dtype)
            return flat
        compiles = self._compiles(packed.codes)
        decode = _compiled(decode_groups, packed.bits, packed.dtype) if compiles else decode_groups
        groups: Tensor = decode(packed.codes, packed.meta, packed.bits, packed.dtype)
        return groups.view(-1)[: packed.count]

    def _compiles(self, rows: Tensor) -> bool:
        if rows.device.type != "cpu" or self.cpu == "eager" or len(rows) < LEAST_ROWS:
            return False
        return self.cpu == "compiled" or self._numbers > COMPILE_AFTER


@functools.cache
def _compiled(reference: Callable[..., Any], *settings: Any) -> Callable[..., Any]:
    """``reference`` through torch.compile for any number of groups at these settings, or itself where that fails."""

    def configured(first: Tensor, second: Tensor) -> Any:
        return reference(first, second, *settings)

    # dynamo counts its compilations per code object, with a limit: each setting gets one of its own
    own_code = configured.__code__.replace(co_name=f"{reference.__name__}_{settings}")
    own = types.FunctionType(own_code, configured.__globals__, None, None, configured.__closure__)
    compiled = torch.compile(own, fullgraph=True)
    failed = False

    def call(first: Tensor, second: Tensor, *_: Any) -> Any:
        nonlocal failed
        if not failed:
            try:
                for rows in (first, second) if second.ndim == 2 else (first,):
                    torch._dynamo.mark_dynamic(rows, 0)
                with torch.no_grad():
                    return compiled(first, second)
            except Exception as error:  # whatever the compiler's tool chain raises
                failed = True
                warnings.warn(
                    f"activation compression: torch.compile failed on {reference.__name__} ({type(error).__name__}); "
                    "packing goes on eagerly, with the same bits, at a fraction of the speed",
                    stacklevel=2,
                )
        return reference(first, second, *settings)

    return call


@functools.cache
def _triton() -> Any:
    if importlib.util.find_spec("triton") is None:
        return None
    from lightning_lr.activations.compression import triton_kernels

    return triton_kernels
