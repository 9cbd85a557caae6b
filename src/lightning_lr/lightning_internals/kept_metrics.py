"""The metrics of a run whose loggers leave no file that could be read while it goes on.

W&B's own file is written when its buffer is full, or in the end: a report of a run that is still going, or has just
ended, would find nothing in it. Such a run keeps its metrics next to the journals, in ``logged.jsonl``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from lightning_lr.journal import KEPT, Journal
from lightning_lr.lightning_internals.logger_places import is_of
from lightning_lr.lightning_internals.logs import journal_folder
from lightning_lr.patching import override_on_instance


def keep_metrics(trainer: Trainer) -> list[Callable[[], None]]:
    """Keep what is logged to W&B, where no other logger writes a file here; returns what undoes it."""
    folder = journal_folder(trainer)
    if folder is None or any(not is_of(logger, "WandbLogger") for logger in trainer.loggers):
        return []
    return [_kept(trainer.loggers[0], folder)]


def _kept(logger: Any, folder: Path) -> Callable[[], None]:
    journal, log = Journal(folder / f"{KEPT}.jsonl"), logger.log_metrics

    def log_and_keep(metrics: Mapping[str, Any], step: int | None = None) -> None:
        log(metrics, step)
        numbers = {name: float(value) for name, value in metrics.items() if isinstance(value, int | float)}
        if numbers and step is not None:
            journal.append(step, KEPT, metrics=numbers)

    return override_on_instance(logger, "log_metrics", log_and_keep)
