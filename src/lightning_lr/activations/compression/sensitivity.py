r"""How much each tensor's rounding moves the gradient, measured at the bits in use.

Rounding is drawn anew for one tensor at a time and the gradient is taken again from the same graph: the forward does
not change, so one forward and one backward per tensor do. Two independent draws differ by twice the variance, hence
:math:`c_l = \tfrac12 \|g - g_l\|^2 / S(b_l)`.

Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357), algorithm 1. Its released code probes at 1 bit, where the linear
model does not hold and sensitivities come out up to four times too large.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from lightning_lr.activations.compression.allocation import allocate, variance_factor
from lightning_lr.activations.compression.hooks import ActivationCompressor

Sensitivities = dict[str, tuple[float, int]]
"""By the tensor's name: c, and how many numbers it has."""


def probe(
    compressor: ActivationCompressor,
    loss: Callable[[], Tensor | None],
    parameters: Iterable[Tensor],
    batch: Iterable[Tensor] = (),
) -> Sensitivities:
    """Sensitivities of all tensors that the allocation decides about.

    Args:
        compressor: whose bits are in use.
        loss: the forward; it is called once. None from it: there is nothing to probe.
        parameters: whose gradient counts; those that need none are left out.
        batch: tensors that are alive anyway.
    """
    wanted = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.enable_grad(), compressor.probing(batch) as trials:
        value = loss()
    if value is None or not value.requires_grad or not trials:
        return {}

    def gradient() -> tuple[Tensor | None, ...]:
        return torch.autograd.grad(value, wanted, retain_graph=True, allow_unused=True)

    first = gradient()
    found = {}
    for trial in trials:
        if trial.adjustable:
            trial.draw = 1
            distance = _squared_distance(first, gradient())
            trial.draw = 0
            found[trial.name] = (0.5 * distance / variance_factor(trial.bits), trial.flat.numel())
    return found


def summed(over_ranks: Sequence[Sensitivities]) -> Sensitivities:
    """Sensitivities and sizes added up by name, in the same order whoever adds them."""
    total: Sensitivities = {}
    for sensitivities in over_ranks:
        for name, (c, size) in sensitivities.items():
            before = total.get(name, (0.0, 0))
            total[name] = (before[0] + c, before[1] + size)
    return total


def reallocate(compressor: ActivationCompressor, sensitivities: Sensitivities, average_bits: float) -> None:
    """Give each tensor the bits that its sensitivity earns; nothing changes where nothing was measured."""
    if sensitivities:
        names = sorted(sensitivities)
        measured = [sensitivities[name] for name in names]
        bits = allocate([c for c, _ in measured], [size for _, size in measured], average_bits)
        compressor.allocation = dict(zip(names, bits, strict=True))


def _squared_distance(one: Sequence[Tensor | None], other: Sequence[Tensor | None]) -> float:
    pairs = [(a, b) for a, b in zip(one, other, strict=True) if a is not None and b is not None]
    total = float(sum(torch.sum((a.float() - b.float()) ** 2) for a, b in pairs))
    return total if math.isfinite(total) else math.inf
