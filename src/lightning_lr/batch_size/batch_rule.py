"""The rule that shares a fall of the noise scale between batch and learning rate, for one update.

The batch takes its part as far as whole samples per device and the cap allow; the learning rate takes exactly the rest,
so that nothing is lost to rounding. The batch is rounded down: rounded up, it would raise the learning rate above the
one that the user tuned, up to twofold with one sample per device. Source: Smith et al. 2018, arXiv:1711.00489, section
2 (the cap: "B_max ~ N / 10, then decay the learning rate"); the square-root form is Seesaw, arXiv:2510.14717.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

LRRule = Literal["linear", "sqrt"]

ROUNDING = 1e-12
"""By how much, relative to it, a whole number may be missed in floating point: 128 / 5**-1 is one ulp above 640."""


@dataclass(frozen=True)
class BatchRule:
    r"""Batch size and learning-rate factor for a fall of the noise scale.

    With B_0 the starting batch, d the fall that is wanted and d_B the batch's part of it::

        B = min(B_0 / d_B, cap)          in whole samples per device, rounded down
        lr factor = d (B / B_0) ** p     p = 1 for "linear", 1 / 2 for "sqrt"

    so that lr / B**p is d times that of the start, whatever B came out as. For p = 1 that is the noise scale
    lr N / (B (1 - m)); for p = 1/2, Adam's counterpart of it: where d halves, lr / sqrt 2 and batch x 2. Where d is at
    most 1 and d_B not below it, the factor is at most 1. Until the next whole sample per device fits, the batch stays
    and the learning rate falls; then both jump back.

    Args:
        start: samples of the first updates, a multiple of ``world_size``.
        cap: largest batch, a multiple of ``world_size`` that is not below ``start``.
        world_size: devices that share a batch equally.
        lr_rule: "linear" for SGD, "sqrt" for Adam and its kin.

    Example:
        >>> rule = BatchRule(start=128, cap=640, world_size=1, lr_rule="linear")
        >>> [(batch := rule.batch_size(decay), rule.lr_factor(decay, batch)) for decay in (1.0, 0.2, 0.1)]
        [(128, 1.0), (640, 1.0), (640, 0.5)]
    """

    start: int
    cap: int
    world_size: int
    lr_rule: LRRule

    @classmethod
    def for_run(
        cls,
        batch_size: int,
        cap: int,
        world_size: int,
        device_samples: int,
        lr_rule: LRRule,
    ) -> BatchRule:
        """Fit batch and cap to the devices: the start is rounded up to whole samples per device, the cap down.

        Neither is above an epoch's samples, since the end of an epoch cuts every batch.
        """
        start = min(-(-batch_size // world_size), device_samples) * world_size
        whole_cap = min(cap // world_size, device_samples) * world_size
        return cls(start, max(start, whole_cap), world_size, lr_rule)

    def batch_size(self, batch_decay: float) -> int:
        """Samples per update, over all devices, where the batch takes a fall to ``batch_decay``.

        A curve that rises above its start shrinks the batch below it, to one sample per device at the least.
        """
        if batch_decay * self.cap <= self.start:  # also where a curve has come down to 0
            return self.cap
        per_device = math.floor(self.start / (batch_decay * self.world_size) * (1.0 + ROUNDING))
        return max(1, per_device) * self.world_size

    def whole(self, batch_size: int) -> int:
        """A batch that was decided on and not read off a path, in whole samples per device: rounded up, to the cap."""
        return min(self.cap, -(-batch_size // self.world_size) * self.world_size)

    def lr_factor(self, decay: float, batch_size: int) -> float:
        """Factor on the learning rate that brings the fall to ``decay`` with a batch of ``batch_size``."""
        growth = batch_size / self.start
        return decay * (growth if self.lr_rule == "linear" else growth**0.5)
