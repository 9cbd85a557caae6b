"""The packed format on a GPU: Triton kernels with the bits of the reference in ``groups.py``.

One program codes or decodes one group. What differs from the reference is only how it is written: minima ignore NaN, so
that groups which are not finite are found apart, and a slot is read again for coding (it is in the cache by then).
Without a GPU the kernels run in Triton's interpreter (``TRITON_INTERPRET=1``), where the tests compare the bits.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found, unused-ignore]
import triton.language as tl  # type: ignore[import-not-found, unused-ignore]
from torch import Tensor

from lightning_lr.activations.compression import groups, noise

FRACTION_BITS = tl.constexpr(groups.FRACTION_BITS)
LARGEST = tl.constexpr(groups.LARGEST)
LARGEST_RANGE = tl.constexpr(groups.LARGEST_RANGE)
LEAST_STEP = tl.constexpr(groups.LEAST_STEP)
SMALL_STEP = tl.constexpr(groups.SMALL_STEP)
FIRST_MULTIPLIER = tl.constexpr(noise.FIRST_MULTIPLIER)
SECOND_MULTIPLIER = tl.constexpr(noise.SECOND_MULTIPLIER)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _hashed(counter, first, second):  # type: ignore[no-untyped-def]
    word = counter ^ first
    word = (word ^ ((word >> 16) & 0xFFFF)) * FIRST_MULTIPLIER
    word = word + second
    word = (word ^ ((word >> 15) & 0x1FFFF)) * SECOND_MULTIPLIER
    return word ^ ((word >> 16) & 0xFFFF)


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _encode(  # type: ignore[no-untyped-def]
    numbers, codes, meta, count, first, second, bits: tl.constexpr, size: tl.constexpr, zero_exact: tl.constexpr
):
    group = tl.program_id(0).to(tl.int64)
    half: tl.constexpr = size // 2
    width: tl.constexpr = size * bits // 8
    levels: tl.constexpr = 2**bits - 1
    start = group * size
    whole = tl.minimum(start + tl.arange(0, size), count - 1)  # the last group repeats the last number
    x = tl.load(numbers + whole).to(tl.float32)
    low = tl.min(x, axis=0)
    high = tl.max(x, axis=0)
    bad = tl.max((x != x).to(tl.int32), axis=0) > 0
    low = tl.where(low == 0.0, 0.0, low)
    least = low
    equal = low == high
    sparse = low != low
    if zero_exact:
        sparse = (low == 0.0) & (high > 0.0) & (bad == 0)
        positive = tl.where(x > 0.0, x, float("inf"))
        low = tl.where(sparse, tl.min(positive, axis=0), low)
    else:
        sparse = bad & (bad == 0)
    intervals = tl.where(sparse, levels - 1.0, levels * 1.0)
    reciprocal = tl.where(sparse, 1.0 / (levels - 1), 1.0 / levels)
    finite = (high - low < LARGEST_RANGE) & (bad == 0)
    low_bits = tl.where(finite, low, 0.0).to(tl.int32, bitcast=True)
    low_bits = tl.where(low_bits < 0, low_bits + 0xFFFF, low_bits) >> 16
    low = tl.maximum((low_bits << 16).to(tl.float32, bitcast=True), -LARGEST)
    step = tl.where(finite, (high - low) * reciprocal, float("inf"))
    step = tl.where((step > 0.0) & (step < LEAST_STEP), LEAST_STEP, step)
    step_bits = (step.to(tl.int32, bitcast=True) + 0xFFFF) >> 16
    step_bits = tl.where(equal & finite, 0, step_bits)
    step = (step_bits << 16).to(tl.float32, bitcast=True)
    up = tl.where(step < SMALL_STEP, 1.0 / SMALL_STEP, 1.0)
    scale = tl.where(step > 0.0, tl.div_rn(2.0**FRACTION_BITS, step * up), 0.0)
    single = (step_bits == 0) & (sparse == 0)
    least_bits = least.to(tl.int32, bitcast=True)
    low_bits = tl.where(single, least_bits >> 16, low_bits)
    limit = intervals * (2.0**FRACTION_BITS)

    places = tl.arange(0, width)
    packed = tl.zeros((width,), dtype=tl.int32)
    for slot in tl.static_range(8 // bits):
        part = tl.load(numbers + tl.minimum(start + slot * width + places, count - 1)).to(tl.float32)
        place = slot * width + places
        upper = place >= half
        counter = (group * half).to(tl.int32) + tl.where(upper, place - half, place)
        word = _hashed(counter, first, second)
        noise16 = tl.where(upper, word >> 16, word) & 0xFFFF
        scaled = (part - low) * up * scale
        scaled = tl.where(scaled > 0.0, scaled, 0.0)
        scaled = tl.where(scaled < limit, scaled, limit)
        code = (scaled.to(tl.int32) + 2 * noise16 + 1) >> FRACTION_BITS
        if zero_exact:
            code = tl.where(sparse, tl.where(part > 0.0, code + 1, 0), code)
        packed = packed | (code << (slot * bits))
    half_of_least = tl.where(places == 0, least_bits & 0xFF, tl.where(places == 1, (least_bits >> 8) & 0xFF, 0))
    packed = tl.where(single, half_of_least, packed)
    tl.store(codes + group * width + places, packed.to(tl.uint8))
    tl.store(meta + group * 2, low_bits.to(tl.int16))
    tl.store(meta + group * 2 + 1, tl.where(sparse, step_bits - 0x8000, step_bits).to(tl.int16))


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _decode(codes, meta, numbers, count, bits: tl.constexpr, size: tl.constexpr, largest: tl.constexpr):  # type: ignore[no-untyped-def]
    group = tl.program_id(0).to(tl.int64)
    width: tl.constexpr = size * bits // 8
    upper_half = tl.load(meta + group * 2).to(tl.int32) << 16
    low = tl.maximum(upper_half.to(tl.float32, bitcast=True), -LARGEST)
    lower_half = tl.load(codes + group * width).to(tl.int32) | (tl.load(codes + group * width + 1).to(tl.int32) << 8)
    single = (upper_half | lower_half).to(tl.float32, bitcast=True)
    step_bits = tl.load(meta + group * 2 + 1).to(tl.int32)
    sparse = step_bits < 0
    step = ((step_bits & 0x7FFF) << 16).to(tl.float32, bitcast=True)
    places = tl.arange(0, width)
    packed = tl.load(codes + group * width + places).to(tl.int32)
    for slot in tl.static_range(8 // bits):
        code = (packed >> (slot * bits)) & (2**bits - 1)
        number = low + (code - sparse.to(tl.int32)).to(tl.float32) * step
        number = tl.where(sparse & (code == 0), 0.0, number)
        number = tl.where(step_bits == 0, single, number)
        number = tl.where(number > largest, largest, number)
        number = tl.where(number < -largest, -largest, number)
        place = group * size + slot * width + places
        if numbers.dtype.element_ty == tl.bfloat16:  # to nearest, ties to even; the interpreter would cut off
            word = number.to(tl.int32, bitcast=True)
            word = (word + 0x7FFF + ((word >> 16) & 1)) >> 16
            tl.store(numbers + place, word.to(tl.int16).to(tl.bfloat16, bitcast=True), mask=place < count)
        else:
            tl.store(numbers + place, number.to(numbers.dtype.element_ty), mask=place < count)


def pack(
    flat: Tensor, bits: int, group_size: int, key: tuple[int, int], zero_exact: bool = True
) -> tuple[Tensor, Tensor]:
    """Codes and metadata of a one-dimensional tensor of at least one number, as ``Kernels.pack`` makes them."""
    count = -(-flat.numel() // group_size)
    codes = torch.empty(count, group_size * bits // 8, dtype=torch.uint8, device=flat.device)
    meta = torch.empty(count, 2, dtype=torch.int16, device=flat.device)
    _encode[(count,)](flat, codes, meta, flat.numel(), key[0], key[1], bits, group_size, zero_exact, num_warps=1)
    return codes, meta


def unpack(codes: Tensor, meta: Tensor, bits: int, count: int, dtype: torch.dtype) -> Tensor:
    """The numbers that codes and metadata stand for, one-dimensional."""
    flat = torch.empty(count, dtype=dtype, device=codes.device)
    size = codes.shape[1] * 8 // bits
    _decode[(len(codes),)](codes, meta, flat, count, bits, size, groups.largest_of(dtype), num_warps=1)
    return flat
