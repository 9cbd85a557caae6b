"""The packed format on a CPU: kernels in C, compiled on the user's machine, with the bits of the reference.

Eager torch passes over a tensor a hundred times where ``cpu_kernels.c`` does it in one pass, at some forty times the
rate (``python -m benchmarks.compression speed``). What was loaded has to give the reference's bits on a few groups
before it is used. Where this or compiling fails, one warning says so and the reference does the work, with the same
bits.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from lightning_lr.activations.compression.groups import WIDTHS, decode_groups, encode_groups, largest_of
from lightning_lr.activations.compression.noise import key_tensor
from lightning_lr.c_library import CSource, in_threads

LONGEST = 4096
"""Numbers of the largest group that the kernels know; they hold one on their stack."""

# no product and sum become one operation, which would round differently
SOURCE = CSource(Path(__file__).with_suffix(".c"), ("-ffp-contract=off",), ("-mavx2",))

NUMBERS_PER_THREAD = 2**17
"""A tensor is divided among as many threads as torch has, with at least so many numbers each."""


class CpuKernels:
    """The compiled functions.

    Args:
        functions: the shared library of ``cpu_kernels.c``.
    """

    def __init__(self, functions: ctypes.CDLL) -> None:
        whole, place, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        self._encode, self._decode = functions.encode, functions.decode
        self._encode.argtypes = [address, whole, place, *[whole] * 5, place, place, address, address]
        self._decode.argtypes = [address, address, whole, whole, ctypes.c_float, place, place, place, address, whole]
        self._encode.restype = self._decode.restype = None
        self._mark: dict[int, Callable[..., int]] = {}
        self._unmark: dict[int, Callable[..., None]] = {}
        for size in (2, 4):
            mark, unmark = getattr(functions, f"mark_{size}"), getattr(functions, f"unmark_{size}")
            mark.argtypes, mark.restype = [address, place, ctypes.c_uint32, address], whole
            unmark.argtypes, unmark.restype = [address, place, ctypes.c_uint32, ctypes.c_uint32, address], None
            self._mark[size], self._unmark[size] = mark, unmark

    def pack(
        self, flat: Tensor, bits: int, group_size: int, key: tuple[int, int], zero_exact: bool = True
    ) -> tuple[Tensor, Tensor]:
        """Codes and metadata of a one-dimensional tensor of at least one number, as ``Kernels.pack`` makes them."""
        numbers = flat.resolve_neg().contiguous()
        if numbers.dtype not in (torch.float32, torch.bfloat16):
            numbers = numbers.float()
        count = -(-numbers.numel() // group_size)
        codes = torch.empty(count, group_size * bits // 8, dtype=torch.uint8)
        meta = torch.empty(count, 2, dtype=torch.int16)
        brain = int(numbers.dtype == torch.bfloat16)
        given = (numbers.data_ptr(), brain, numbers.numel(), group_size, bits, int(zero_exact), *key)
        made = (codes.data_ptr(), meta.data_ptr())
        _in_threads(lambda begin, end: self._encode(*given, begin, end, *made), count, group_size)
        return codes, meta

    def unpack(self, codes: Tensor, meta: Tensor, bits: int, count: int, dtype: torch.dtype) -> Tensor:
        """The numbers that codes and metadata stand for, one-dimensional."""
        brain = dtype == torch.bfloat16
        flat = torch.empty(count, dtype=dtype if brain else torch.float32)
        size = codes.shape[1] * 8 // bits
        given = (codes.data_ptr(), meta.data_ptr(), size, bits, largest_of(dtype), count)
        made = (flat.data_ptr(), int(brain))
        _in_threads(lambda begin, end: self._decode(*given, begin, end, *made), len(codes), size)
        return flat.to(dtype)

    def pack_two_valued(self, flat: Tensor, value: Tensor) -> Tensor | None:
        """A bit for each number that is not 0, eight to a byte; None where there are others than 0 and ``value``."""
        numbers = flat.resolve_neg().contiguous()
        marks = torch.empty(-(-numbers.numel() // 8), dtype=torch.uint8)
        mark = self._mark[numbers.dtype.itemsize]
        return marks if mark(numbers.data_ptr(), numbers.numel(), _word(value), marks.data_ptr()) else None

    def unpack_two_valued(self, marks: Tensor, count: int, value: Tensor, otherwise: Tensor | None) -> Tensor:
        """``value`` where a bit is set and ``otherwise``, or 0, where none is."""
        flat = torch.empty(count, dtype=value.dtype)
        least = 0 if otherwise is None else _word(otherwise)
        self._unmark[value.dtype.itemsize](marks.data_ptr(), count, _word(value), least, flat.data_ptr())
        return flat


@functools.cache
def cpu_kernels() -> CpuKernels | None:
    """The kernels, compiled now if they never were on this machine; None, after one warning, where that fails."""
    return SOURCE.made(
        CpuKernels,
        _check,
        "activation compression: the C kernels could not be made ({error}); torch packs instead, with the same bits, "
        "at a fortieth of the speed. They need {compiler}",
    )


def loaded_kernels() -> CpuKernels | None:
    """The kernels where they are in use already; None otherwise."""
    return cpu_kernels() if cpu_kernels.cache_info().currsize else None


def is_cached() -> bool:
    """Whether the kernels need no compiling."""
    return SOURCE.is_compiled()


def _check(kernels: CpuKernels) -> None:
    """Refuse kernels that do not give the bits of the reference, as those of a compiler with fast arithmetic.

    Raises:
        ArithmeticError: where they differ.
    """
    size, key = 64, (12345, -99)
    wave = torch.linspace(-3, 7, 9 * size, dtype=torch.float64).mul(40).sin().float().view(9, size)
    scales = torch.tensor([1, 1e-37, 1e37, 1, 1e-30, 0, 1, 1, 1]).unsqueeze(1)
    numbers = wave * scales
    numbers[3:5] = numbers[3:5].relu()
    numbers[6] += 100
    numbers[7, 5], numbers[8, 9] = float("nan"), float("inf")
    for bits in WIDTHS:
        for dtype in (torch.float32, torch.bfloat16):
            given = numbers.to(dtype)
            codes, meta = encode_groups(given, key_tensor(key, 0, given.device), bits)
            mine = kernels.pack(given.view(-1), bits, size, key)
            back = kernels.unpack(codes, meta, bits, given.numel(), dtype)
            true = decode_groups(codes, meta, bits, dtype).view(-1)
            if not (
                torch.equal(codes, mine[0]) and torch.equal(meta, mine[1]) and torch.equal(_words(back), _words(true))
            ):
                raise ArithmeticError(f"at {bits} bits they differ from the reference")


def _word(number: Tensor) -> int:
    """The bits of a number without dimensions."""
    size = number.dtype.itemsize
    return int(number.view(torch.int16 if size == 2 else torch.int32)) & ((1 << 8 * size) - 1)


def _words(numbers: Tensor) -> Tensor:
    """The bits of numbers, those of any NaN being the same."""
    return torch.where(numbers.isnan(), 0.0, numbers).float().view(torch.int32)


def _in_threads(work: Callable[[int, int], None], groups: int, size: int) -> None:
    """Do ``work`` on all groups, in parts."""
    in_threads(work, groups, groups * size // NUMBERS_PER_THREAD)
