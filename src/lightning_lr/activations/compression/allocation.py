r"""How many bits each tensor gets under a budget: where a bit removes the most variance of the gradient.

Rounding tensor :math:`l` to :math:`b_l` bits adds variance :math:`c_l S(b_l)` with :math:`S(b) = (2^b - 1)^{-2}` to the
gradient; :math:`c_l` is its sensitivity. Wanted are :math:`b_l` from 8, 4 and 2 with the least :math:`\sum_l c_l
S(b_l)` under :math:`\sum_l b_l D_l \le \bar b \sum_l D_l`, where :math:`D_l` counts numbers: a knapsack in which each
tensor has three choices. GACT's greedy algorithm (from 8 bits down, where variance per bit saved is cheapest), refilled
with what it leaves over, is mostly within :data:`TOLERANCE` of the least sum, and a bound by a Lagrange multiplier
shows it. Where the bound does not, the tensors are gone through one by one, keeping every set of choices that could
still end below, or the :data:`STATES` most promising of them. Pure Python.

Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357), section 4, for the problem and the greedy algorithm; the search
is the multiple-choice knapsack's by dynamic programming with dominance (Pisinger 1995, EJOR 83).
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from operator import mul
from typing import NamedTuple

from lightning_lr.activations.compression.groups import WIDTHS

TOLERANCE = 0.005
"""How far above the least sum an allocation may be, relative to it."""

STATES = 500
"""Sets of choices that the search keeps from one tensor to the next; a model with more has many that are as good."""


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
        raise ValueError(
            f"allocate: got average_bits={average_bits}; give at least {WIDTHS[-1]}, the fewest of a width"
        )
    budget = average_bits * sum(sizes)
    # infinite: as many at 8 bits as there can be, whatever the others get; what that costs is the budget's
    finite = [c for c in sensitivities if math.isfinite(c)]
    above_all = 4.0 * (sum(finite) or 1.0) * variance_factor(WIDTHS[-1]) / variance_factor(WIDTHS[0])
    whole = {i for i, c in enumerate(sensitivities) if not math.isfinite(c)}
    held = sum(sizes[i] * WIDTHS[0] for i in whole)
    rest = [i for i in range(len(sizes)) if i not in whole]
    if not whole or held + WIDTHS[-1] * sum(sizes[i] for i in rest) > budget:
        return _least([c if math.isfinite(c) else above_all for c in sensitivities], sizes, budget)
    bits = [WIDTHS[0]] * len(sizes)
    found = _least([sensitivities[i] for i in rest], [sizes[i] for i in rest], budget - held)
    for i, width in zip(rest, found, strict=True):
        bits[i] = width
    return bits


def _least(sensitivities: Sequence[float], sizes: Sequence[int], budget: float) -> list[int]:
    """Bits with the least sum of variance, up to the tolerance, for finite sensitivities."""
    if not sizes:
        return []
    even = next(width for width in WIDTHS if width * sum(sizes) <= budget)
    chosen = [
        _refilled(bits, sensitivities, sizes, budget - sum(map(mul, bits, sizes)))
        for bits in (_lowered(sensitivities, sizes, budget), [even] * len(sizes))
    ]
    best = min(chosen, key=lambda bits: predicted_variance(sensitivities, bits))
    return _searched(best, sensitivities, sizes, budget)


def _lowered(sensitivities: Sequence[float], sizes: Sequence[int], budget: float) -> list[int]:
    """From 8 bits for all down to the budget, by the cheapest step each time."""
    bits = [WIDTHS[0]] * len(sizes)
    excess = WIDTHS[0] * sum(sizes) - budget

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


class _Choices(NamedTuple):
    """The bits of the tensors gone through so far: what they take, what they add, and the last choice before those."""

    taken: int
    variance: float
    width: int
    before: _Choices | None


def _searched(best: list[int], sensitivities: Sequence[float], sizes: Sequence[int], budget: float) -> list[int]:
    """Bits of which the sum is at most ``1 + TOLERANCE`` times the least, given some whose sum is not far from it."""
    known = predicted_variance(sensitivities, best)
    price = _price(sensitivities, sizes, budget)
    # with every bit at this price, no allocation in the budget costs less than each tensor's cheapest choice
    cheapest = [
        min(c * variance_factor(width) + price * size * width for width in WIDTHS)
        for c, size in zip(sensitivities, sizes, strict=True)
    ]
    bound = sum(cheapest) - price * budget
    if known <= bound * (1.0 + TOLERANCE):
        return best
    order = sorted(range(len(sizes)), key=lambda i: -sizes[i])
    still, left = sum(cheapest), sum(sizes)
    grain = max(bound, 0.0) * TOLERANCE / (2 * len(sizes))  # all roundings together are half the tolerance
    kept = [_Choices(0, 0.0, 0, None)]
    for i in order:
        still, left = still - cheapest[i], left - sizes[i]
        room, limit = budget - left * WIDTHS[-1], known * (1.0 - TOLERANCE / 2) + price * budget - still
        found = [
            _Choices(taken, variance, width, choices)
            for choices in kept
            for width in WIDTHS
            if (taken := choices.taken + width * sizes[i]) <= room
            and (variance := choices.variance + sensitivities[i] * variance_factor(width)) + price * taken <= limit
        ]
        kept = _undominated(found, grain)
        if len(kept) > STATES:
            kept = heapq.nsmallest(STATES, kept, key=lambda choices: choices.variance + price * choices.taken)
    if not kept:
        return best
    bits, last = list(best), min(kept, key=lambda choices: choices.variance)
    for i in reversed(order):
        bits[i] = last.width
        assert last.before is not None
        last = last.before
    return min(best, bits, key=lambda bits: predicted_variance(sensitivities, bits))


def _price(sensitivities: Sequence[float], sizes: Sequence[int], budget: float) -> float:
    """Variance that one more bit of budget removes, where tensors could be divided: the Lagrange multiplier."""
    steps = []
    for c, size in zip(sensitivities, sizes, strict=True):
        for width, higher in zip(WIDTHS[:0:-1], WIDTHS[-2::-1], strict=True):
            removed = c * (variance_factor(width) - variance_factor(higher))
            steps.append((removed / (size * (higher - width)), size * (higher - width)))
    spare = budget - WIDTHS[-1] * sum(sizes)
    for gain, bits in sorted(steps, reverse=True):
        spare -= bits
        if spare < 0:
            return gain
    return 0.0


def _undominated(found: list[_Choices], grain: float) -> list[_Choices]:
    """Those of which none other takes as few bits and adds as little variance, up to ``grain``."""
    kept: list[_Choices] = []
    for choices in sorted(found, key=lambda choices: choices[:2]):
        if not kept or choices.variance < kept[-1].variance - grain:
            kept.append(choices)
    return kept
