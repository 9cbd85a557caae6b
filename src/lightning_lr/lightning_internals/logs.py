"""What is written down: when loggers are due, at which step, and where a journal may be."""

from __future__ import annotations

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.core.saving import save_hparams_to_yaml
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.loggers.logger import DummyLogger
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_lr.journal import ELSEWHERE, LOGGERS, Journal
from lightning_lr.lightning_internals.logger_places import places_of

JOURNALS = "lightning_lr"
"""The folder of the journals in a run's log directory."""

_STARTS: WeakKeyDictionary[Trainer, Path] = WeakKeyDictionary()
"""The directory that was made up for a Trainer whose loggers have none for each run."""


def is_fast_dev_run(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which is to write nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def journal_folder(trainer: Trainer) -> Path | None:
    """Where the decisions of this run are written; ``None`` on ranks above 0 and where the user wants no output.

    No logger (``logger=False``, ``barebones``, ``fast_dev_run``) means no journal. Of several loggers the first with a
    local directory for each run decides (``TensorBoardLogger``, ``CSVLogger``). Where none has one (W&B, MLflow), the
    folder is ``save_dir/name/version``, or a new one for this start where the logger has no version: the journals of
    two runs never share a folder.
    """
    if not trainer.loggers or not trainer.is_global_zero or is_fast_dev_run(trainer):
        return None
    for logger in trainer.loggers:
        directory = getattr(logger, "log_dir", None)
        if isinstance(directory, str | os.PathLike) and "://" not in str(directory):
            return Path(directory) / JOURNALS
    logger = trainer.loggers[0]
    root = logger.save_dir or trainer.default_root_dir
    if "://" in str(root):
        rank_zero_info(f"lightning_lr: decisions are not written down, since {root} is not a local folder")
        return None
    name, version = logger.name, logger.version
    run = Path(str(name or "lightning_logs")) / (f"run_{version}" if isinstance(version, int) else str(version))
    if version in (None, "") or run.is_absolute() or ".." in run.parts:
        now = time.strftime("%Y-%m-%d_%H-%M-%S")
        run = _STARTS.setdefault(
            trainer, Path("lightning_logs") / f"{now}_{os.getpid()}_{time.monotonic_ns() % 10**6:06}"
        )
    return Path(root) / run / JOURNALS


def note_loggers(trainer: Trainer) -> None:
    """Write down where each logger of a run writes, and in every other logger's directory where the journals are.

    A single logger with a directory of its own needs neither: its metrics and the journals lie together.
    """
    folder = journal_folder(trainer)
    if folder is None:
        return
    places = places_of(trainer)
    if [place["path"] for place in places] == [str(folder.parent)]:
        return
    given = [{**place, "path": os.path.relpath(place["path"], folder)} for place in places]
    Journal(folder / f"{LOGGERS}.jsonl").append(0, LOGGERS, loggers=given)
    for place in places:
        other = Path(place["path"])
        if "run" not in place and other != folder.parent:
            pointer = other / JOURNALS / f"{ELSEWHERE}.jsonl"
            Journal(pointer).append(0, ELSEWHERE, journals=os.path.relpath(folder, pointer.parent))


def log_settings(trainer: Trainer, settings: Mapping[str, str | float]) -> None:
    """Send the settings of callbacks to every logger's hyperparameters; a logger that refuses them is a warning."""
    if is_fast_dev_run(trainer):
        return
    for logger in trainer.loggers:
        try:
            logger.log_hyperparams(dict(settings))
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                # it wrote its hparams.yaml before training started, and never writes it twice (2.5.6, 2.6.6)
                save_hparams_to_yaml(os.path.join(logger.log_dir, logger.NAME_HPARAMS_FILE), logger.hparams)
        except Exception as error:  # each logger has errors of its own (MLflow: a changed value after a resume)
            warnings.warn(
                f"lightning_lr: {type(logger).__name__} did not take the callbacks' settings as hyperparameters "
                f"({error}); training goes on",
                stacklevel=2,
            )


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning's ``log_every_n_steps`` is due at this update."""
    return bool(trainer.loggers) and bool(trainer._logger_connector.should_update_logs)


def without_logging(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """A callback's attributes without the ``log`` of its module, which Lightning ties to it anew in every fit."""
    return {name: value for name, value in attributes.items() if name not in ("log", "log_dict")}


def logged_in_this_step(trainer: Trainer) -> dict[str, Any]:
    """What the present ``training_step`` has logged, by name."""
    results = trainer.fit_loop.epoch_loop._results
    return dict(results.metrics(on_step=True)["callback"])


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log at the step number that Lightning uses for this update, and let other callbacks monitor the values.

    Where the user logs a metric of the same name, this one becomes ``lightning_lr/<name>``.
    """
    loops = (trainer.fit_loop.epoch_loop, trainer.fit_loop.epoch_loop.val_loop)
    users = {name for loop in loops for result in loop._results.values() for name in _names_of(result.meta)}
    metrics = {f"lightning_lr/{name}" if name in users else name: value for name, value in metrics.items()}
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


def _names_of(meta: Any) -> tuple[str, ...]:
    """The names under which Lightning logs a value: with both per-step and per-epoch logging it has three."""
    return (meta.name, f"{meta.name}_step", f"{meta.name}_epoch")


@contextmanager
def silent_loggers(trainer: Trainer) -> Iterator[None]:
    """Inside, what is written to the Trainer's loggers goes nowhere."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers
