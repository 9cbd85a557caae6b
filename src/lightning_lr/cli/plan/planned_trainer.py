"""A Trainer for ``configure_optimizers`` to look at while a run is planned: of the planned length, and never fitted."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_lr.progress import RunShape

QUIETED = ("lightning.pytorch.utilities.rank_zero", "pytorch_lightning.utilities.rank_zero")


class PlannedTrainer(Trainer):
    """Answers as the Trainer of the planned run would, on one CPU.

    Args:
        shape: the run.
        accumulation: the Trainer's ``accumulate_grad_batches``.
    """

    def __init__(self, shape: RunShape, accumulation: int) -> None:
        super().__init__(
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            max_epochs=-1 if shape.max_epochs is None else shape.max_epochs,
            max_steps=-1 if shape.max_updates is None else shape.max_updates,
            accumulate_grad_batches=accumulation,
        )
        self._shape = shape

    @property
    def estimated_stepping_batches(self) -> int | float:
        return self._shape.total_updates if self._shape.has_length else math.inf

    @property
    def num_training_batches(self) -> int | float:
        batches = self._shape.epoch.micro_batches
        return math.inf if batches is None else batches

    @property
    def world_size(self) -> int:
        return self._shape.epoch.world_size

    @property
    def num_devices(self) -> int:
        return self._shape.epoch.world_size


@contextmanager
def planned_trainer(
    model: LightningModule, data: LightningDataModule | None, shape: RunShape, accumulation: int
) -> Iterator[None]:
    """Inside, the module (and the data module) have the Trainer of the planned run."""
    loggers = [logging.getLogger(name) for name in QUIETED]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        trainer: Any = PlannedTrainer(shape, accumulation)
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    trainer.datamodule = data
    holders: list[Any] = [model] if data is None else [model, data]
    before = [vars(holder).get("_trainer" if holder is model else "trainer") for holder in holders]
    for holder in holders:
        holder.trainer = trainer
    try:
        yield
    finally:
        for holder, value in zip(holders, before, strict=True):
            holder.trainer = value
