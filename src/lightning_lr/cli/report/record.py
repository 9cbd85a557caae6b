"""What a run left on disk, or has left so far: the metrics of its loggers and the decisions of our callbacks.

``CSVLogger`` and ``TensorBoardLogger`` are read, whichever wrote, and the journals ``lightning_lr/*.jsonl`` next to
them. The run may still be going: a line that is half written is passed over. No Lightning, no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from lightning_lr.cli.errors import ConfigurationError
from lightning_lr.cli.printable import printable
from lightning_lr.cli.report.logger_files import (
    EVENT_FILES,
    METRICS_FILE,
    WANDB_FILE,
    kept_in,
    logged_at,
)
from lightning_lr.cli.report.places import Place, journal_folder_of, places_of
from lightning_lr.cli.report.series import MetricSeries
from lightning_lr.cli.report.timing import Timing, timing_of_events, timing_of_journal
from lightning_lr.curves import Phase
from lightning_lr.journal import ELSEWHERE, KEPT, LARGEST_UPDATE, LOGGERS, read_journal
from lightning_lr.panels import MetricPanel
from lightning_lr.stopwatch import JOURNAL as SECONDS

JOURNALS = "lightning_lr/*.jsonl"
MARKS = (METRICS_FILE, EVENT_FILES, JOURNALS, WANDB_FILE)
"""What makes a directory that of a run."""

CHANGED_LATER = ("phases", "total", "total_updates")
"""What a callback writes down when training starts and may have to write again when it has decided."""

SAMPLES, UPDATES = "progress/samples", "progress/updates"
BATCH, MICRO, ACCUMULATION = "batch/size", "batch/micro", "batch/accumulation"
NOISE_SCALES = {"noise/scale": "noise scale", "noise/gradient": "gradient noise scale"}
"""What every run with a callback of this package logs about itself."""

NAMES_OF_0_1 = {
    "samples_seen": SAMPLES,
    "updates": UPDATES,
    "batch_size": BATCH,
    "micro_batch_size": MICRO,
    "accumulation": ACCUMULATION,
    "noise_scale": "noise/scale",
    "gradient_noise_scale": "noise/gradient",
}
"""How version 0.1 logged the same, without a group."""

PREFIX = "lightning_lr/"
"""Before a name of this package that the user's module logs too."""


@dataclass(frozen=True)
class RunRecord:
    """One run.

    Args:
        directory: its logger's directory.
        metrics: what was logged, by name.
        journals: the decisions of each callback, by the journal's name.
        sources: where the metrics were read from.
        modified: when something was last written, in seconds since the epoch.
        timing: seconds of training, where they are known.
        hyperparameters: what a logger keeps of them, where it writes no ``hparams.yaml`` (W&B, MLflow).
        parts: the directories of a run that went on in another one, the first one first; its own alone otherwise.
    """

    directory: Path
    metrics: dict[str, MetricSeries]
    journals: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    modified: float = 0.0
    timing: Timing | None = None
    hyperparameters: dict[str, Any] = field(default_factory=dict)
    parts: tuple[Path, ...] = ()

    # ------------------------------------------------------------------ the axis
    @property
    def counts_samples(self) -> bool:
        """Whether it is known how many samples the run had seen; else the axis is updates."""
        return SAMPLES in self.metrics or self.planned_samples is not None

    def positions(self, steps: Sequence[int]) -> list[float]:
        """Samples seen after the update of each of the logger's steps; updates where that is not known.

        Between the steps at which the samples were logged it is interpolated, after the last towards the plan.
        """
        if not self.counts_samples:
            return [step + 1.0 for step in steps]
        at, samples = self._samples_at
        found: list[float] = np.interp(steps, at, samples).tolist()
        return found

    @cached_property
    def _samples_at(self) -> tuple[Any, Any]:
        """Steps at which the samples are known, and their numbers."""
        at, samples = [-1], [0.0]
        if SAMPLES in self.metrics:
            known = self.metrics[SAMPLES].finite
            at, samples = [*at, *known.steps], [*samples, *known.values]
        if self.planned_samples and self.planned_updates and self.planned_updates - 1 > at[-1]:
            at.append(self.planned_updates - 1)
            samples.append(float(self.planned_samples))
        return np.array(at, dtype=np.float64), np.array(samples, dtype=np.float64)

    def points(self, name: str) -> tuple[list[float], list[float]]:
        """Positions and values of a metric; values may hold NaN."""
        series = self.metrics[name]
        return self.positions(series.steps), series.values

    # ------------------------------------------------------------------ what was decided
    @property
    def starts(self) -> dict[str, dict[str, Any]]:
        """What each callback wrote down when training last started, by the journal's name; what a later decision
        changed of it, or a later measurement added to its facts, is as it was last."""
        starts: dict[str, dict[str, Any]] = {}
        for name, records in self.journals.items():
            for record in records:
                if record["event"] == "start":
                    starts[name] = dict(record)
                elif name in starts:
                    starts[name].update({key: record[key] for key in CHANGED_LATER if key in record})
                    if "facts" in record:
                        starts[name]["facts"] = {**starts[name].get("facts", {}), **record["facts"]}
        return starts

    @property
    def summary(self) -> dict[str, str]:
        """What the callbacks decided for the whole run, by heading."""
        return {
            printable(heading): printable(fact, lines=True)
            for start in self.starts.values()
            for heading, fact in start.get("facts", {}).items()
        }

    @property
    def panels(self) -> list[MetricPanel] | None:
        """What the callbacks declared to be drawn; ``None`` where no callback wrote it down (before 0.2)."""
        started = [start for start in self.starts.values() if "callback" in start]
        if not started or any("panels" not in start for start in started):
            return None
        read = [MetricPanel.from_journal(panel) for start in started for panel in _listed(start["panels"])]
        return [panel for panel in read if panel is not None]

    @property
    def phases(self) -> dict[str, tuple[Phase, ...]]:
        """The phases of each callback that has any, as shares of the run."""
        named = {name: start.get("phases", []) for name, start in self.starts.items()}
        return {name: tuple(Phase(printable(n), float(a), float(b)) for n, a, b in p) for name, p in named.items() if p}

    @property
    def per_epoch(self) -> float | None:
        """Samples of an epoch; ``None`` where they were not written down, or the axis is updates."""
        counted = [start.get("per_epoch") for start in self.starts.values() if start.get("counts") == "samples"]
        return next((float(size) for size in counted if size), None) if self.counts_samples else None

    @property
    def edges(self) -> list[float]:
        """Where phases change, on the axis."""
        planned = self.planned_samples if self.counts_samples else self.planned_updates
        shares = {phase.start for phases in self.phases.values() for phase in phases} - {0.0}
        return sorted(share * planned for share in shares) if planned else []

    @property
    def planned_updates(self) -> int | None:
        """Updates that the run was to make."""
        latest = max(self._totals, key=lambda record: record["update"], default=None)
        return None if latest is None else int(latest["total_updates"])

    @property
    def planned_samples(self) -> int | None:
        """Samples that the run was to see."""
        if not any(start.get("counts") == "samples" for start in self.starts.values()):
            return None
        latest = max(self._totals, key=lambda record: record["update"], default=None)
        return None if latest is None else int(latest["total"])

    @property
    def _totals(self) -> list[dict[str, Any]]:
        """How long the run is: written by every callback at the start, and by the one that changes it."""
        return [r for records in self.journals.values() for r in records if "total" in r and "total_updates" in r]

    @property
    def seen_updates(self) -> int:
        """Updates of which there is any trace."""
        steps = [series.steps[-1] + 1 for name, series in self.metrics.items() if not name.startswith("test")]
        logged = [value for _, value in self.metrics[UPDATES].finite[-1:]] if UPDATES in self.metrics else []
        noted = [record["update"] for records in self.journals.values() for record in records]
        timed = [self.timing.known[-1][0]] if self.timing is not None else []
        return int(max([0, *steps, *logged, *noted, *timed]))

    @property
    def now(self) -> float:
        """Where the run is on the axis."""
        return self.positions([self.seen_updates - 1])[0]

    @property
    def learning_rates(self) -> dict[str, str]:
        """The metric of each group's learning rate: this package's, else that of Lightning's monitor."""
        drawn = [name for name, series in self.metrics.items() if series.finite]
        written = {name.removeprefix("lr/"): name for name in drawn if name.startswith("lr/")}
        monitored = (n for n in drawn if n.startswith("lr-") and not n.endswith(("-momentum", "-weight_decay")))
        return written or {name.removeprefix("lr-"): name for name in monitored}

    @property
    def end(self) -> float:
        """Where the axis ends: at the planned end of the run, or where the run is now."""
        planned = self.planned_samples if self.counts_samples else self.planned_updates
        last = max((series.steps[-1] for series in self.metrics.values()), default=0)
        return max(1.0, self.positions([last])[0], float(planned or 0))


# ---------------------------------------------------------------------- reading
def find_run(directory: Path) -> Path:
    """The directory of a run: the given one, or the newest below it.

    Raises:
        ConfigurationError: where there is no run.
    """
    if directory.is_file():
        logged_there = [run for run in _runs_below(directory.parent) if _is_of_database(run, directory)]
        if logged_there:
            return max(logged_there, key=_modified)
    if not directory.is_dir():
        what = "is a file" if directory.exists() else "does not exist"
        raise ConfigurationError(f"report: {directory} {what}; give the directory of a run (a logger's version_N)")
    if _is_run(directory):
        return directory
    below = _runs_below(directory)
    if not below:
        content = "is empty" if not any(directory.iterdir()) else "holds no run"
        raise ConfigurationError(
            f"report: {directory} {content}: neither {METRICS_FILE} (CSVLogger), nor {EVENT_FILES} "
            f"(TensorBoardLogger), nor {WANDB_FILE} (WandbLogger), nor {JOURNALS} (every run with our callbacks; of "
            "MLFlowLogger give its mlflow.db, too), here or below; a run appears with its first logged metric (see "
            "trainer.log_every_n_steps)"
        )
    return max(below, key=_modified)


def _runs_below(directory: Path) -> set[Path]:
    return {_run_of(file) for mark in MARKS for file in directory.rglob(mark)}


def _is_of_database(run: Path, database: Path) -> bool:
    """Whether a run's journals name a database of MLflow as the place of its metrics."""
    return any(p.run and p.path.resolve() == database.resolve() for p in places_of(journal_folder_of(run)))


def read_run(directory: Path) -> RunRecord:
    """Read everything that a run has written so far.

    Args:
        directory: that of the run, as :func:`find_run` gives it.

    Raises:
        ConfigurationError: where only TensorBoard's files are there, and tensorboard is not.
    """
    folder = journal_folder_of(directory)
    own = Place("", directory)
    places = (own, *places_of(folder))
    kept = kept_in(folder)
    logged = next((found for place in places if (found := logged_at(place)).metrics), kept)
    if kept.metrics:
        logged = replace(logged, metrics=kept.metrics)  # W&B's own file may still be incomplete
    journals = {
        printable(path.stem): [well_formed(record) for record in read_journal(path)]
        for path in sorted(folder.glob("*.jsonl"))
        if path.is_file() and path.stem not in (LOGGERS, ELSEWHERE, KEPT)
    }
    timing = timing_of_journal(journals.pop(SECONDS, []))
    if timing is None and "TensorBoardLogger" in logged.sources:
        timing = timing_of_events(logged.directory or directory, EVENT_FILES)
    return RunRecord(
        directory, _named_as_now(logged.metrics), journals, logged.sources, _modified(directory), timing,
        logged.hyperparameters,
    )  # fmt: skip


def _named_as_now(metrics: dict[str, MetricSeries]) -> dict[str, MetricSeries]:
    """The metrics by their present names, printable; of two with one name this package's keeps it."""
    old = SAMPLES not in metrics and "samples_seen" in metrics
    named: dict[str, MetricSeries] = {}
    for name, series in metrics.items():
        if name.startswith(PREFIX):
            name = name.removeprefix(PREFIX)
        elif PREFIX + name in metrics:
            name = f"{name} (of the module)"
        elif old:
            name = NAMES_OF_0_1.get(name, name)
        named[printable(name)] = series
    return named


def well_formed(record: dict[str, Any]) -> dict[str, Any]:
    """A journal's line without the fields that a report reads and that have another type than it needs."""
    kept = {key: value for key, value in record.items() if key not in WELL_FORMED or WELL_FORMED[key](value)}
    return kept | {"event": printable(record["event"])}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < LARGEST_UPDATE


def _are_phases(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(item, list) and len(item) == 3 and _is_number(item[1]) and _is_number(item[2]) for item in value
    )


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and "\0" not in value


WELL_FORMED: dict[str, Callable[[Any], bool]] = {
    "facts": lambda value: isinstance(value, dict),
    "phases": _are_phases,
    "total": _is_number,
    "total_updates": _is_number,
    "per_epoch": lambda value: _is_number(value) and value > 0,
    "counts": _is_text,
    "continues": _is_text,
    "scheduled_lr": lambda value: isinstance(value, dict) and all(map(_is_number, value.values())),
    "seconds": lambda value: _is_number(value) and value >= 0,
    "since": lambda value: _is_number(value) and value >= 0,
}
"""What a field of a journal must be where a report computes with it."""


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_run(directory: Path) -> bool:
    return any(any(directory.glob(mark)) for mark in MARKS)


def _run_of(file: Path) -> Path:
    return file.parent.parent if file.suffix == ".jsonl" else file.parent


def _modified(directory: Path) -> float:
    return max(file.stat().st_mtime for mark in MARKS for file in directory.glob(mark))
