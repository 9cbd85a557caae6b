"""Where each logger of a run writes on this machine, so that a report finds it from any of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

SQLITE, FILE = "sqlite:///", "file:"


def places_of(trainer: Trainer) -> list[dict[str, str]]:
    """For each logger that writes here: its class, its directory or database, and the run's name in it."""
    found = []
    for logger in trainer.loggers:
        place = _place(logger)
        if place is not None and "://" not in place["path"]:
            found.append({"logger": type(logger).__name__, **place})
    return found


def is_of(logger: Any, name: str) -> bool:
    """Whether a logger is of Lightning's class of this name; the classes of optional packages are not imported."""
    return any(kind.__name__ == name for kind in type(logger).__mro__)


def _place(logger: Any) -> dict[str, str] | None:
    directory = getattr(logger, "log_dir", None)
    if isinstance(directory, str | os.PathLike):
        return {"path": str(directory)}
    if is_of(logger, "WandbLogger"):
        files = getattr(logger.experiment, "dir", None)  # .../offline-run-DATE-ID/files; none where it is disabled
        return {"path": str(Path(files).parent)} if isinstance(files, str) else None
    if is_of(logger, "MLFlowLogger"):
        store = str(getattr(logger, "_tracking_uri", ""))
        if store.startswith(SQLITE):
            return {"path": store.removeprefix(SQLITE), "run": str(logger.run_id)}
        if store.startswith(FILE):
            return {"path": str(Path(store.removeprefix(FILE)) / str(logger.experiment_id) / str(logger.run_id))}
    return None
