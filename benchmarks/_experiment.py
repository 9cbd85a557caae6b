"""What every benchmark of training runs does: make the runs that are missing, keep one file each, print the plan.

A benchmark brings its question: a frozen dataclass of settings with a ``name`` and a ``label``, a function that trains
one run, and the stages in which runs are made, where a later one may need what an earlier one found (a tuned learning
rate). Its ``main`` reads

    experiment = Experiment.from_options(options, train, seconds)
    tuned = experiment.make(tuning_configs(), "tuning")
    records = experiment.make(configs(best_learning_rate(tuned)), "arms")
    report.write(folder, tuned, records)
"""

from __future__ import annotations

import argparse
import functools
import json
import operator
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from benchmarks._common import ResultStore, clock, quiet_process, run_all

Record = dict[str, Any]


class Run(Protocol):
    """The settings of one run: a frozen dataclass of what JSON can hold."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """A file name that no other run has."""

    @property
    def label(self) -> str:
        """The run in words."""


RunT = TypeVar("RunT", bound=Run)


def facts(run: Run) -> Record:
    """All settings of a run as its JSON file has them."""
    written: Record = json.loads(json.dumps(asdict(run)))
    return written


def existing(store: ResultStore, runs: Iterable[Run]) -> list[Record]:
    """The records of the runs that exist, in the order given."""
    loaded = (store.load(run.name, facts(run)) for run in runs)
    return [record for record in loaded if record is not None]


@dataclass(frozen=True)
class Work:
    """Makes one run and writes it down; picklable, so that it can work in a process of its own."""

    folder: Path
    train: Callable[[Any], Record]

    def __call__(self, run: Run) -> None:
        quiet_process()
        ResultStore(self.folder).save(run.name, self.train(run))


class Experiment(Generic[RunT]):
    """The runs of a benchmark, those that exist and those to be made.

    Args:
        folder: one JSON file per run; a run whose file has the same settings is not made again.
        train: picklable; settings to a record, which holds them under ``"config"``.
        seconds: CPU time that a run is expected to take.
        jobs: processes, of one thread each.
        frozen: make no run, take those that exist.
    """

    def __init__(
        self,
        folder: Path,
        train: Callable[[RunT], Record],
        seconds: Callable[[RunT], float],
        jobs: int = 1,
        frozen: bool = False,
    ) -> None:
        self.store = ResultStore(folder)
        self.seconds = seconds
        self.jobs = jobs
        self.frozen = frozen
        self._work = Work(folder, train)

    @classmethod
    def from_options(
        cls, options: argparse.Namespace, train: Callable[..., Record], seconds: Callable[[RunT], float]
    ) -> Experiment[RunT]:
        """As the options of :func:`benchmarks._common.command_line` say; ``train`` takes their ``data_dir``."""
        made = functools.partial(train, data_dir=options.data_dir)
        return cls(options.results, made, seconds, options.jobs, options.report)

    def records(self, runs: Iterable[RunT]) -> list[Record]:
        """Of the runs that exist, in the order given."""
        return existing(self.store, runs)

    def missing(self, runs: Iterable[RunT]) -> list[RunT]:
        """The runs that do not exist, each once."""
        return [run for run in dict.fromkeys(runs) if self.store.load(run.name, facts(run)) is None]

    def make(self, runs: Iterable[RunT], title: str) -> list[Record]:
        """Make what is missing, with a line after each run, and return the records of all."""
        wanted = list(runs)
        if not self.frozen:
            run_all(self._work, self.missing(wanted), self.jobs, operator.attrgetter("label"), title)
        return self.records(wanted)

    def show(self, runs: Iterable[RunT]) -> None:
        """Print every run, which of them exist, and how long the others will take."""
        every = list(dict.fromkeys(runs))
        to_make = set(self.missing(every))
        for run in every:
            print(run.label + ("" if run in to_make else "  (done)"))
        spent = clock(sum(map(self.seconds, to_make)))
        print(f"{len(every)} runs, {len(to_make)} to make: about {spent} on one idle core")
