r"""The packed format of compressed activations and its reference in torch: groups of numbers at 8, 4 or 2 bits.

A group of consecutive numbers between :math:`m` and :math:`M` becomes codes :math:`q` of :math:`b` bits, of which the
backward reads :math:`\hat x = \ell + q s`. Rounding is stochastic: :math:`q` is one of the two neighbours, so that
:math:`E[\hat x] = x`, and the error has variance :math:`R^2 / (6 (2^b-1)^2)` where numbers are uniform over the range
:math:`R = M - \ell`. As :math:`\ell` is a bf16 number at most :math:`|m| 2^{-7}` below :math:`m`, R is the range
:math:`M - m` of the numbers themselves as long as their common offset is not many times that: up to an offset of 13
ranges it is at most a tenth wider. Numbers far from zero in a narrow range (1001 and 1001.01) are coded as if they
began at the bf16 number below, with more noise than they vary by; still without bias.

Per group two bf16 numbers are kept, :math:`\ell = \lfloor m \rfloor` and :math:`s = \lceil (M - \ell) / (2^b-1)
\rceil`, rounded outwards; numbers are coded against these rounded ones, so that storing them costs no bias. A group of
non-negative numbers with zeros among them (an output of ReLU, of dropout after it, of max-pooling both) is coded
*zero-exact*: code 0 is zero, codes from 1 span the positive numbers from the least to the largest. A positive number
then never becomes zero, and the mask that ReLU's backward takes from its output is the true one; coded plainly, small
positives turn to zero and the gradient is biased. Such groups are found group by group and are marked by the sign of
:math:`s`; nothing has to know what produced a tensor.

Arithmetic is fp32 whatever the input, and integer from the scaled difference on: :math:`\lfloor 2^{17} (x - \ell) / s
\rfloor`, clamped at both ends, plus 17 bits of noise, shifted. No product is followed by a sum that a compiler could
contract, so that eager torch, the C kernels and the Triton kernel give the same bits. A group of equal numbers is
kept exactly: its step is 0, :math:`\ell` has the upper half of the number and the first two bytes of the codes the
lower. What decodes is finite, also at the ends of the type. A group with a number that is not finite, or a range of
3e38 or more, decodes to NaN. Slot :math:`k` of a group's bytes holds its numbers
:math:`k w .. (k+1) w - 1`, where :math:`w` is the number of bytes.

Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357); the zero-exact code and the outward rounding are new here.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_lr.activations.compression.noise import halves, hashed

WIDTHS = (8, 4, 2)
"""Bits per number that the format knows."""

FRACTION_BITS = 17
LARGEST = torch.finfo(torch.float32).max
LARGEST_RANGE = 3e38
"""A range times the rounding of its step must not overflow."""
LEAST_STEP = 2.0**-126
"""The least normal number: smaller steps are rounded up to it, as denormal numbers differ between processors."""
SMALL_STEP = 2.0**-64
"""Below it, what is divided by the step is first multiplied by the inverse of this, which is exact."""


def encode_groups(numbers: Tensor, key: Tensor, bits: int, zero_exact: bool = True) -> tuple[Tensor, Tensor]:
    """Code groups of numbers.

    Args:
        numbers: shape (groups, group size), of any floating dtype; the group size is a multiple of 16.
        key: int32 of shape (3,), see :func:`~lightning_lr.activations.compression.noise.key_tensor`.
        bits: 8, 4 or 2.
        zero_exact: whether non-negative groups with zeros keep their zeros (and only these).

    Returns:
        codes, uint8 of shape (groups, group size * bits / 8), and the bf16 bits of (low, step), int16 of (groups, 2).
    """
    x = numbers.float()
    count, size = x.shape
    half, width, levels = size // 2, size * bits // 8, 2**bits - 1
    low, high = x.amin(1, keepdim=True), x.amax(1, keepdim=True)
    low = torch.where(low == 0, 0.0, low)  # of -0 and 0, which one is least is anybody's choice
    equal, least = low == high, low
    intervals = torch.full_like(low, levels)
    reciprocal = torch.full_like(low, 1 / levels)
    sparse = torch.zeros_like(low, dtype=torch.bool)
    if zero_exact:
        sparse = (low == 0) & (high > 0)
        low = torch.where(sparse, torch.where(x > 0, x, torch.inf).amin(1, keepdim=True), low)
        intervals = torch.where(sparse, levels - 1.0, intervals)
        reciprocal = torch.where(sparse, 1 / (levels - 1), reciprocal)
    finite = high - low < LARGEST_RANGE
    low_bits = _bits(torch.where(finite, low, 0.0))
    low_bits = torch.where(low_bits < 0, low_bits + 0xFFFF, low_bits) >> 16  # down: away from zero if negative
    low = _value(low_bits).clamp(min=-LARGEST)
    step = torch.where(finite, (high - low) * reciprocal, torch.inf)
    step = torch.where((step > 0) & (step < LEAST_STEP), LEAST_STEP, step)
    step_bits = (_bits(step) + 0xFFFF) >> 16
    step_bits = torch.where(equal & finite, 0, step_bits)
    step = _value(step_bits)
    up = torch.where(step < SMALL_STEP, 1.0 / SMALL_STEP, 1.0)
    scale = torch.where(step > 0, 2.0**FRACTION_BITS / (step * up), 0.0)
    # all equal (or nothing but denormals apart): the least number's upper half, the lower goes where the codes are
    single = (step_bits == 0) & ~sparse
    low_bits = torch.where(single, _bits(least) >> 16, low_bits)
    limit = intervals * 2.0**FRACTION_BITS

    groups = torch.arange(count, dtype=torch.int32, device=x.device).unsqueeze(1) * half + key[2]
    places = torch.arange(half, dtype=torch.int32, device=x.device).unsqueeze(0)

    def coded(part: Tensor, noise: Tensor) -> Tensor:
        scaled = (part - low) * up * scale
        scaled = torch.where(scaled > 0, scaled, 0.0)  # NaN, too, becomes 0
        scaled = torch.where(scaled < limit, scaled, limit)
        code = (scaled.int() + 2 * noise + 1) >> FRACTION_BITS
        return torch.where(sparse, torch.where(part > 0, code + 1, 0), code) if zero_exact else code

    # one hash serves two numbers, half a group apart
    if bits == 8:
        lower, upper = halves(hashed(groups + places, key[0], key[1]))
        codes = torch.cat([coded(x[:, :half], lower), coded(x[:, half:], upper)], dim=1)
    else:
        codes = torch.zeros((), dtype=torch.int32, device=x.device)
        for start in range(0, half, width):
            lower, upper = halves(hashed(groups + places[:, start : start + width], key[0], key[1]))
            for first, noise in ((start, lower), (start + half, upper)):
                codes = codes | (coded(x[:, first : first + width], noise) << (first // width * bits))
    place = torch.arange(width, dtype=torch.int32, device=x.device).unsqueeze(0)
    halves_of_least = torch.where(place < 2, (_bits(least) >> (8 * place.clamp(max=1))) & 0xFF, 0)
    codes = torch.where(single, halves_of_least, codes)
    signed_step = torch.where(sparse, step_bits - 0x8000, step_bits)
    return codes.to(torch.uint8), torch.cat([low_bits, signed_step], dim=1).to(torch.int16)


def decode_groups(codes: Tensor, meta: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
    """The numbers that :func:`encode_groups` stands for, of shape (groups, group size) and the given dtype."""
    low = _value(meta[:, :1].int()).clamp(min=-LARGEST)
    step_bits = meta[:, 1:].int()
    sparse = step_bits < 0
    lower_half = codes[:, :1].int() | (codes[:, 1:2].int() << 8)
    single = (meta[:, :1].int() << 16 | lower_half).view(torch.float32)
    step = _value(step_bits & 0x7FFF)
    shifts = torch.arange(0, 8, bits, dtype=torch.int32, device=codes.device).view(1, -1, 1)
    code = (codes.int().unsqueeze(1) >> shifts) & (2**bits - 1)
    low, step, sparse = low.unsqueeze(1), step.unsqueeze(1), sparse.unsqueeze(1)
    numbers = low + (code - sparse.int()).float() * step
    numbers = torch.where(sparse & (code == 0), 0.0, numbers)
    numbers = torch.where((step_bits == 0).unsqueeze(1), single.unsqueeze(1), numbers)
    largest = largest_of(dtype)  # the step is rounded up: the largest number must not become infinite
    numbers = numbers.clamp(-largest, largest)
    return numbers.to(dtype).flatten(1)


def largest_of(dtype: torch.dtype) -> float:
    """The largest number that decodes to ``dtype``: its own, or float32's, which the arithmetic is in."""
    return min(torch.finfo(dtype).max, LARGEST)


def _bits(x: Tensor) -> Tensor:
    return x.view(torch.int32)


def _value(upper_bits: Tensor) -> Tensor:
    return (upper_bits << 16).view(torch.float32)
