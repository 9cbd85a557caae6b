"""What one logger of a run wrote: CSVLogger, TensorBoardLogger, WandbLogger or MLFlowLogger, read from its files."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass, field
from operator import lt
from pathlib import Path
from typing import Any

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.report.mlflow_store import read_database, read_folder
from lightning_lr.cli.report.places import Place
from lightning_lr.cli.report.series import MetricSeries
from lightning_lr.cli.report.wandb_file import read_wandb
from lightning_lr.journal import KEPT, LARGEST_UPDATE, read_journal

METRICS_FILE = "metrics.csv"
EVENT_FILES = "events.out.tfevents.*"
WANDB_FILE = "run-*.wandb"
NOT_METRICS = {"step", "hp_metric"}


@dataclass(frozen=True)
class Logged:
    """What one logger of a run wrote."""

    metrics: dict[str, MetricSeries]
    sources: tuple[str, ...] = ()
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    directory: Path | None = None


def logged_at(place: Place) -> Logged:
    """What is at a place, whichever logger wrote it."""
    directory = place.path
    if (directory / METRICS_FILE).is_file():
        metrics = read_csv(directory / METRICS_FILE)
        if metrics:
            return Logged(metrics, ("CSVLogger",), directory=directory)
    if any(directory.glob(EVENT_FILES)):
        return Logged(read_tensorboard(directory), ("TensorBoardLogger",), directory=directory)
    for file in sorted(directory.glob(WANDB_FILE)):
        return _as_logged(read_wandb(file), "WandbLogger")
    if place.run:
        return _as_logged(read_database(directory, place.run), "MLFlowLogger")
    if (directory / "metrics").is_dir():
        return _as_logged(read_folder(directory), "MLFlowLogger")
    return Logged({})


def kept_in(journals: Path) -> Logged:
    """What a run with W&B alone has kept next to its journals: W&B's own file is complete in the end only."""
    metrics: dict[str, dict[int, float]] = {}
    for record in read_journal(journals / f"{KEPT}.jsonl"):
        kept = record.get("metrics")
        for name, value in kept.items() if isinstance(kept, dict) else ():
            number = _number(value)  # a value that is not finite stands there by its name
            if number is not None:
                metrics.setdefault(name, {})[record["update"]] = number
    return _as_logged((metrics, {}), "WandbLogger") if metrics else Logged({})


def _as_logged(read: tuple[dict[str, dict[int, float]], dict[str, Any]], source: str) -> Logged:
    metrics, hyperparameters = read
    kept = {
        name: MetricSeries.of({step: value for step, value in by_step.items() if abs(step) < LARGEST_UPDATE})
        for name, by_step in metrics.items()
        if name not in NOT_METRICS
    }
    return Logged({name: series for name, series in kept.items() if series.steps}, (source,), hyperparameters)


def read_csv(path: Path) -> dict[str, MetricSeries]:
    """The metrics of a ``CSVLogger``; of several values for a step the last counts, as after a resume.

    Args:
        path: its ``metrics.csv``. A last line without its end is being written and is left out.
    """
    found: dict[str, tuple[list[int], list[float]]] = {}
    with path.open(encoding="utf-8", errors="replace") as lines:
        rows = _rows(csv.reader(line for line in lines if line.endswith("\n")))
        names = next(rows, [])
        if "step" not in names:
            return {}
        at = {name: index for index, name in enumerate(names)}  # of two columns of one name the last
        columns = [(name, index) for name, index in at.items() if name not in NOT_METRICS]
        for row in rows:
            step = _number(row[at["step"]]) if at["step"] < len(row) else None
            if step is None or not abs(step) < LARGEST_UPDATE:
                continue
            number, cells = int(step), len(row)
            for name, index in columns:
                cell = row[index] if index < cells else ""
                if not cell:
                    continue
                try:  # a call for each of millions of cells would be half of the time
                    value = float(cell)
                except ValueError:
                    continue
                if name not in found:
                    found[name] = ([], [])
                steps, values = found[name]
                steps.append(number)
                values.append(value)
    return {name: _in_order(*series) for name, series in found.items()}


def _rows(reader: Iterator[list[str]]) -> Iterator[list[str]]:
    """The rows that can be read; one with a cell of megabytes, or a zero byte, is left out."""
    while True:
        try:
            row = next(reader)
        except StopIteration:
            return
        except csv.Error:
            continue
        if row:
            yield row


def _in_order(steps: list[int], values: list[float]) -> MetricSeries:
    """By step; of several values for one the last."""
    if all(map(lt, steps, steps[1:])):  # as good as always, and a dict takes three times the memory
        return MetricSeries(steps, values)
    return MetricSeries.of(dict(zip(steps, values, strict=True)))


def read_tensorboard(directory: Path) -> dict[str, MetricSeries]:
    """The scalars of a ``TensorBoardLogger``.

    Raises:
        ConfigurationError: where tensorboard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError as error:
        raise ConfigurationError(
            f"report: {directory} was written by a TensorBoardLogger, and tensorboard is not installed here; "
            "pip install tensorboard, or train with a CSVLogger"
        ) from error
    events = EventAccumulator(str(directory), size_guidance={"scalars": 0})
    events.Reload()
    names = [name for name in events.Tags()["scalars"] if name not in NOT_METRICS]
    return {name: MetricSeries.of({event.step: float(event.value) for event in events.Scalars(name)}) for name in names}


def _number(cell: Any) -> float | None:
    try:
        return float(cell)
    except (TypeError, ValueError):
        return None
