r"""How many bits each tensor gets under a budget: where a bit removes the most variance of the gradient.

Rounding tensor :math:`l` to :math:`b_l` bits adds variance :math:`c_l S(b_l)` with :math:`S(b) = (2^b - 1)^{-2}` to the
gradient; :math:`c_l` is its sensitivity. Wanted are :math:`b_l` from 8, 4 and 2 with the least :math:`\sum_l c_l
S(b_l)` under :math:`\sum_l b_l D_l \le \bar b \sum_l D_l`, where :math:`D_l` counts numbers. All start at 8 bits and go
down where variance per bit saved is cheapest (GACT's greedy algorithm); a last step often saves more than was needed,
and a refill spends what is left over. The same bits for all, refilled, are taken where they are better. Pure Python.

Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357), section 4; the refill is ours.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from operator import mul

from lightning_lr.activations.compression.groups import WIDTHS


def variance_factor(bits: int) -> float:
    r""":math:`S(b) = (2^b - 1)^{-2}`: the squared step of a range of 1."""
    return float((2.0**bits - 1) ** -2)


def predicted_variance(sensitivities: Sequence[float], bits: Sequence[int]) -> float:
    r""":math:`\sum_l c_l S(b_l)`: variance of the gradient that rounding adds."""
    return sum(c * variance_factor(b) for c, b in zip(sensitivities, bits, strict=True))


def allocate(sensitivities: Sequence[float], sizes: Sequence[int], average_bits: float) -> list[int]:
    """Bits for each tensor.

    Args:
        sensitivities: the c of each tensor, at least 0; infinite for one that must not go below 8 bits if avoidable.
        sizes: numbers in each tensor, at least 1.
        average_bits: mean over all numbers that must not be exceeded, at least 2.

    Returns:
        8, 4 or 2 for each tensor; the mean over all numbers is at most ``average_bits``.

    Raises:
        ValueError: for fewer than 2 bits, which no allocation reaches.
    """
    if average_bits < WIDTHS[-1]:
        raise ValueError(f"allocate: got average_bits={average_bits}; the least that can be had is {WIDTHS[-1]}")
    even = next(width for width in WIDTHS if width <= average_bits)
    chosen = [
        _refilled(bits, sensitivities, sizes, average_bits * sum(sizes) - sum(map(mul, bits, sizes)))
        for bits in (_lowered(sensitivities, sizes, average_bits), [even] * len(sizes))
    ]
    return min(chosen, key=lambda bits: predicted_variance(sensitivities, bits))


def _lowered(sensitivities: Sequence[float], sizes: Sequence[int], average_bits: float) -> list[int]:
    """From 8 bits for all down to the budget, by the cheapest step each time."""
    bits = [WIDTHS[0]] * len(sizes)
    excess = WIDTHS[0] * sum(sizes) - average_bits * sum(sizes)

    def step_down(tensor: int) -> tuple[float, int]:
        lower = WIDTHS[WIDTHS.index(bits[tensor]) + 1]
        added = sensitivities[tensor] * (variance_factor(lower) - variance_factor(bits[tensor]))
        return added / (sizes[tensor] * (bits[tensor] - lower)), tensor

    queue = [step_down(tensor) for tensor in range(len(sizes))]
    heapq.heapify(queue)
    while excess > 0:
        _, tensor = heapq.heappop(queue)
        lower = WIDTHS[WIDTHS.index(bits[tensor]) + 1]
        excess -= sizes[tensor] * (bits[tensor] - lower)
        bits[tensor] = lower
        if lower != WIDTHS[-1]:
            heapq.heappush(queue, step_down(tensor))
    return bits


def _refilled(bits: list[int], sensitivities: Sequence[float], sizes: Sequence[int], spare: float) -> list[int]:
    """Raise, as long as one fits into the spare bits, the tensor whose raise removes the most variance."""
    while True:
        best, best_gain = None, 0.0
        for tensor, now in enumerate(bits):
            for higher in WIDTHS[: WIDTHS.index(now)]:
                gain = sensitivities[tensor] * (variance_factor(now) - variance_factor(higher))
                if gain > best_gain and sizes[tensor] * (higher - now) <= spare:
                    best, best_gain = (tensor, higher), gain
        if best is None:
            return bits
        tensor, higher = best
        spare -= sizes[tensor] * (higher - bits[tensor])
        bits[tensor] = higher
