"""Accumulation over iterable data: a window begins where an update begins, and is as long as the plan has it there.

Data sets without a length may end at any micro-batch, and their last micro-batch may be short, so that neither is known
when the losses of a window are divided. Each loss is weighted by its samples, and the gradient is brought to the mean
over exactly the window's samples before the optimizer steps (and before it is clipped).
"""

from __future__ import annotations

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import WindowAccumulation
from lightning_lr.batch_size.streamed_shape import StreamedShape


class StreamedWindows:
    """Sets ``trainer.accumulate_grad_batches`` micro-batch by micro-batch.

    Args:
        shape: the run.
    """

    def __init__(self, shape: StreamedShape) -> None:
        self.shape = shape
        self._end: int | None = None
        self._length = 1

    def resume(self, trainer: Trainer, inside_window: bool) -> None:
        """The loops are restored; what a checkpoint inside a window had accumulated is lost, and a new one begins."""
        _, micro_batch = internals.starting_position(trainer)
        self._end = None
        # Lightning asks whether the micro-batch before was the last of an update
        trainer.accumulate_grad_batches = WindowAccumulation(1, () if inside_window else (micro_batch,))
        self.shape.stand_before(trainer.global_step, micro_batch)

    def begin_epoch(self, trainer: Trainer) -> None:
        """An epoch starts, and with it a window."""
        self._end = None
        self.shape.stand_before(trainer.global_step, 0)

    def begin_micro_batch(self, trainer: Trainer, micro_batch: int) -> None:
        """Set how many micro-batches this one's window has."""
        if self._end is None:
            self._end, _ = self.shape.window(trainer.current_epoch, micro_batch)
            self._length = self._end - micro_batch
            trainer.accumulate_grad_batches = WindowAccumulation(self._length, (micro_batch, self._end))

    def end_update(self, trainer: Trainer) -> None:
        """The micro-batch that just ended was the last of an update."""
        self._end = None
        _, micro_batch = internals.next_position(trainer)
        self.shape.stand_before(trainer.global_step, micro_batch)

    def weight_of(self, samples: int | None) -> float:
        """Weight of a micro-batch's mean loss that has so many samples."""
        return 1.0 if samples is None else samples / self.shape.micro_batch_size

    def correct(self, module: LightningModule, samples: int) -> float:
        """Make the gradients the mean over the ``samples`` of the window, over all devices; returns their factor."""
        scale = self._length * self.shape.micro_batch_size * self.shape.epoch.world_size / samples
        gradients = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
        if scale != 1.0 and gradients:
            torch._foreach_mul_(gradients, scale)
        return scale
