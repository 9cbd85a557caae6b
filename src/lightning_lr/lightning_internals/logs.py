"""What is written down: when loggers are due, at which step, and where a journal may be."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.rank_zero import rank_zero_info


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which is to write nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def journal_folder(trainer: Trainer) -> Path | None:
    """Where decisions are written down; ``None`` on other ranks than the first, and where they are not."""
    log_dir = trainer.log_dir  # asks all ranks
    if log_dir is None or not trainer.is_global_zero or is_fast_dev_run(trainer):
        return None
    if "://" in log_dir:
        rank_zero_info(f"lightning_lr: decisions are not written down, since {log_dir} is not a local folder")
        return None
    return Path(log_dir) / "lightning_lr"


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning's ``log_every_n_steps`` is due at this update."""
    return bool(trainer.loggers) and bool(trainer._logger_connector.should_update_logs)


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log at the step number that Lightning uses for this update, and let other callbacks monitor the values."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


@contextmanager
def silent_loggers(trainer: Trainer) -> Iterator[None]:
    """Inside, what is written to the Trainer's loggers goes nowhere."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
