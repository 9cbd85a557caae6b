"""What the losses of a window are means over, where that is counted in each batch: such as tokens that are not padding.

Lightning averages the micro-batches' means. Where a mean is over ``n_i`` tokens, the gradient of the window's mean is

.. math:: \\frac{\\sum_i n_i \\nabla \\bar\\ell_i}{\\sum_i n_i}

over the micro-batches of all devices. The numbers are not known before the batches are, so each loss is weighted by its
own, and the accumulated gradient is divided by their sum before the optimizer steps (and before it is clipped).
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer


class WindowCount:
    """The counts of one window on this device."""

    def __init__(self) -> None:
        self._sum = 0.0
        self._present = 0.0

    def weigh(self, count: Any) -> float:
        """The weight of the micro-batch that has just been read.

        Raises:
            MisconfigurationException: for a count that is no number from 0.
        """
        self._present = float(count)
        if not self._present >= 0 or self._present == float("inf"):
            raise MisconfigurationException(
                f"BatchSizeRamp: count_samples returned {count!r} for a batch; return what the loss of the batch is a "
                "mean over, a number from 0"
            )
        return self._present

    def add(self) -> None:
        """The micro-batch has a gradient (a ``training_step`` may return none)."""
        self._sum += self._present
        self._present = 0.0

    def correct(self, trainer: Trainer, module: LightningModule) -> float:
        """Make the gradients the mean over all that the window's losses are means over. All ranks call it.

        Returns:
            What the gradients were multiplied by.
        """
        total = torch.tensor(self._sum, dtype=torch.float64)
        if trainer.world_size > 1:
            total = trainer.strategy.reduce(total.to(trainer.strategy.root_device).float(), reduce_op="sum")
        scale = int(trainer.accumulate_grad_batches) * trainer.world_size / float(total) if float(total) > 0 else 1.0
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if gradients and scale != 1.0:
            torch._foreach_mul_(gradients, scale)
        return scale
