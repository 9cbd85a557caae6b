"""The rule that shares a fall of the noise scale between batch and learning rate, for one update.

The batch takes what it is asked to, as far as whole samples per device and the cap allow; the learning rate takes
exactly the rest, so that nothing is lost to rounding. Source: Smith et al. 2018, arXiv:1711.00489, section 2 (the cap:
"B_max ~ N / 10, then decay the learning rate"); the square-root form is Seesaw, arXiv:2510.14717.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_lr.curves import SNAP

LRRule = Literal["linear", "sqrt"]


@dataclass(frozen=True)
class BatchRule:
    r"""Batch size and learning-rate factor for a fall of the noise scale.

    With B_0 the starting batch, d the fall that is wanted and d_B the batch's part of it::

        B = min(B_0 / d_B, cap)          in whole samples per device, rounded up
        lr factor = d (B / B_0) ** p     p = 1 for "linear", 1 / 2 for "sqrt"

    so that lr / B**p is d times that of the start, whatever B came out as. For p = 1 that is the noise scale
    lr N / (B (1 - m)); for p = 1/2, Adam's counterpart of it: where d halves, lr / sqrt 2 and batch x 2.

    Args:
        start: samples of the first updates, a multiple of ``world_size``.
        cap: largest batch, a multiple of ``world_size`` that is not below ``start``.
        world_size: devices that share a batch equally.
        lr_rule: "linear" for SGD, "sqrt" for Adam and its kin.
        round_down: whether a batch is rounded down, where its units are large: rounded up by as much as a micro-batch,
            it would ask for a learning rate above the one at the start.
    """

    start: int
    cap: int
    world_size: int
    lr_rule: LRRule
    round_down: bool = False

    @classmethod
    def for_run(
        cls,
        batch_size: int,
        cap: int,
        world_size: int,
        device_samples: int,
        lr_rule: LRRule,
        round_down: bool = False,
    ) -> BatchRule:
        """Fit batch and cap to the devices: the start is rounded up to whole samples per device, the cap down.

        A batch above an epoch's samples would only be cut short, at a learning rate for the whole of it: the cap is
        not above them either, unless the start is.
        """
        start = -(-batch_size // world_size) * world_size
        whole_cap = min(cap // world_size, device_samples) * world_size
        return cls(start, max(start, whole_cap), world_size, lr_rule, round_down)

    def batch_size(self, batch_decay: float) -> int:
        """Samples per update, over all devices, where the batch is to take a fall to ``batch_decay``."""
        if batch_decay * self.cap <= self.start:  # also where a curve has come down to 0
            return self.cap
        if self.round_down:
            return max(self.start, int(self.start / batch_decay + SNAP) // self.world_size * self.world_size)
        per_device = -(-int(self.start / batch_decay + 0.5) // self.world_size)
        return min(self.cap, per_device * self.world_size)

    def lr_factor(self, decay: float, batch_size: int) -> float:
        """Factor on the learning rate that brings the fall to ``decay`` with a batch of ``batch_size``."""
        growth = batch_size / self.start
        return decay * (growth if self.lr_rule == "linear" else growth**0.5)
