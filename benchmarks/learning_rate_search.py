"""How far from a tuned learning rate does a search before training end, and at what price?

    python -m benchmarks.learning_rate_search [--data-dir FOLDER] [--dry-run] [--report] [--jobs 2]

`LearningRateSearch` with AdamW and with SGD (Nesterov momentum) on the tasks of `headline`, at their length of 256
updates (MiniLM: 96), against the tuned rates of `headline`: the best of five on validation data, seed 0. The price is
on top of the run: the race's updates as a share of the run's, where a grid of five costs four more runs.

The race's constants (the length of its warm-up, how cautiously the minimum is read) were chosen on CNN, ViT and byte
LM, seed 1. Tasks that had no say, named here before their first run: GRU (digits, read row by row), MLP (Friedman's
first regression problem), autoencoder (digits, noise removed), and MiniLM. The first three are defined in
`learning_rate_search_tasks`, with a grid of five that is moved on where the best rate is at its edge.

One JSON per run in ``benchmarks/results/learning_rate_search/``: a run whose file exists is not made again.
"""

from __future__ import annotations

import functools
import operator
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks import headline
from benchmarks._common import (
    RESULTS,
    ResultStore,
    command_line,
    environment,
    markdown_table,
    quiet_process,
    run_all,
    write_keeping_findings,
)
from benchmarks.headline_arms import ARMS, Arm
from benchmarks.headline_run import Config as HeadlineConfig
from benchmarks.headline_run import train as headline_train
from benchmarks.headline_tasks import TASKS
from benchmarks.learning_rate_search_picture import Dot, draw
from benchmarks.learning_rate_search_tasks import SMALL, train_small
from lightning_lr import LearningRateSearch

FOLDER = RESULTS / "learning_rate_search"
CHOSEN_ON = ("CNN", "ViT", "byte LM")
JUDGED_ON = ("MiniLM", *SMALL)
GUARD_SEEN_ON = ("MLP", "SGD")
"""A pair on which the guard against a later edge of stability was developed; it no longer judges that."""
BUDGETS = (0.1, 0.25)
OPTIMIZERS = ("AdamW", "SGD")
SEEDS = (1, 2, 3)
TUNING_SEED = 0
GRIDS = {"AdamW": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "SGD": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)}


@dataclass(frozen=True)
class Config:
    """One run. ``budget`` is None for a run at a given rate, ``lr`` None for a search."""

    task: str
    optimizer: str
    seed: int
    budget: float | None = None
    lr: float | None = None

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        how = f"lr{self.lr:g}" if self.budget is None else f"search{self.budget:g}"
        return f"{self.task}_{self.optimizer}_{how}_seed{self.seed}".replace(" ", "-")


# ---------------------------------------------------------------------- runs
def searches(tasks: Sequence[str]) -> list[Config]:
    """Every search, seed by seed, so that stopping early loses seeds."""
    return [Config(t, o, s, budget=b) for s in SEEDS for t in tasks for o in OPTIMIZERS for b in BUDGETS]


def grid(task: str, optimizer: str, store: ResultStore) -> list[Config]:
    """The rates of a grid, moved on for as long as the best one made so far is at its edge."""
    rates = list(GRIDS[optimizer])
    while True:
        configs = [Config(task, optimizer, TUNING_SEED, lr=rate) for rate in sorted(rates)]
        values = {c.lr: value for c in configs if (value := value_of(c, store, "val")) is not None}
        if len(values) < len(configs):
            return configs
        best = max(values, key=lambda rate: values[rate])
        if best == max(rates) and best < 30:
            rates.append(float(f"{best * (3 if f'{best:e}'[0] == '1' else 10 / 3):.0e}"))
        elif best == min(rates) and best > 1e-6:
            rates.append(float(f"{best / (3 if f'{best:e}'[0] == '3' else 10 / 3):.0e}"))
        else:
            return configs


def tuned(task: str, optimizer: str, store: ResultStore) -> float | None:
    """The best rate of a grid whose runs are all there."""
    values = {c.lr: value_of(c, store, "val") for c in grid(task, optimizer, store)}
    return None if None in values.values() else max(values, key=lambda rate: values[rate])  # type: ignore[arg-type,return-value]


def value_of(config: Config, store: ResultStore, which: str) -> float | None:
    """The metric of a run, in points, larger for better; ``which``: val or test."""
    record = store.load(config.name, asdict(config))
    return None if record is None else float(record[which])


def work(config: Config, data_dir: str | None, folder: Path) -> None:
    """Make one run and write it down."""
    quiet_process()
    search = None if config.budget is None else LearningRateSearch(budget=config.budget)
    if config.task in SMALL:
        values = train_small(config.task, config.optimizer, config.seed, config.lr, search)
    else:
        assert search is not None
        values = _train_headline(config, data_dir, search)
    result = search.result if search is not None else None
    record = {
        "config": asdict(config),
        **values,
        "rate": None if search is None else search.rate,
        "interval": None if result is None else [result.low, result.high],
        "price": None if result is None else result.price,
        "warning": None if result is None else result.warning,
        "heats": None
        if result is None
        else [[[t["rate"], len(t["losses"]), _mean(t["scores"])] for t in heat] for heat in result.heats],
        "held": None if result is None else [[t["rate"], t["losses"], _mean(t["scores"])] for t in result.held],
        "chosen_on": list(CHOSEN_ON),
        "environment": environment(),
    }
    ResultStore(folder).save(config.name, record)


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _train_headline(config: Config, data_dir: str | None, search: LearningRateSearch) -> dict[str, Any]:
    task = TASKS[config.task]
    label = f"{config.optimizer}, tuned"
    # an absurd rate of the user's: the search must not need it
    run = headline.config_of(task, label, 1.0, config.seed)
    arm: Arm = replace(ARMS[label], callbacks=lambda: [search])
    record = headline_train(run, data_dir, arm)
    return {"test": points(task.name, record[f"test_{task.metric.name}"]), "val": 0.0, "updates": record["updates"]}


def points(task: str, value: float) -> float:
    """A metric of a headline task in points, larger for better: accuracy in percent, bits negative."""
    metric = TASKS[task].metric
    return metric.key(value) * metric.scale


# ---------------------------------------------------------------------- the report
def tuned_values(task: str, optimizer: str, store: ResultStore) -> list[float]:
    """The test metric of the runs at the tuned rate, in points, by seed."""
    if task in SMALL:
        rate = tuned(task, optimizer, store)
        found = [value_of(Config(task, optimizer, seed, lr=rate), store, "test") for seed in SEEDS] if rate else []
        return [value for value in found if value is not None]
    return headline_values(task, f"{optimizer}, tuned")


@functools.cache
def _headline_records() -> list[dict[str, Any]]:
    protocol, store = headline.DEFAULT, ResultStore(headline.FOLDER)
    best = headline.best_learning_rates(protocol, headline.records_of(headline.search(protocol), store))
    return headline.records_of(headline.compared(protocol, best), store)


def headline_values(task: str, arm: str) -> list[float]:
    """The test metric of an arm of `headline`, in points, by seed."""
    name = TASKS[task].metric.name
    return [
        points(task, record[f"test_{name}"])
        for record in _headline_records()
        if HeadlineConfig(**record["config"]).model == task and record["config"]["arm"] == arm
    ]


OTHERS = ("AdaptiveWarmup", "LearningRateFinder", "LearningRateFinder, per step", "Prodigy", "ScheduleFreeAdamW")
"""Arms of `headline` beside which the searches stand, all of them with AdamW or a relative of it."""


def write(store: ResultStore, target: Path) -> None:
    """Write and print the table of the runs that exist."""
    body: list[list[str]] = []
    for task in (*CHOSEN_ON, *JUDGED_ON):
        for optimizer in OPTIMIZERS:
            line = _line(task, optimizer, store)
            if line is not None:
                body.append(line)
    headings = [
        "task",
        "had a say",
        "optimizer",
        "tuned",
        *(f"search {budget:.0%}: distance (rates; price in runs)" for budget in BUDGETS),
        *(f"{other}: distance" for other in OTHERS),
    ]
    text = (
        "# LearningRateSearch against a tuned rate\n\n"
        "Distance: mean test metric at the tuned rate less that of the arm, over the seeds that exist; points of "
        "accuracy or of explained variance, for the byte LM bits per byte. Positive: worse than tuned. Rates: chosen, "
        "by seed. Price: updates of the race as a share of the run; a grid of five costs 4. `python -m "
        "benchmarks.learning_rate_search --report` prints this from the JSON files beside it.\n\n"
        + markdown_table(headings, body)
        + _summary(store)
    )
    write_keeping_findings(target.with_suffix(".md"), text)
    print(text)
    draw(
        [
            ("tasks on which the search was designed: CNN, ViT, byte LM; AdamW", _dots(store)),
            ("had no say: GRU, MLP,\nautoencoder; both optimizers\n(MLP with SGD: in the guard)", _judged_dots(store)),
        ],
        "How far from a tuned learning rate? Dot: median task; bar: best to worst task",
        target.with_suffix(".png"),
    )


BITS_OF_A_POINT = 0.1
"""Bits per byte that stand for a point, where tasks are put side by side."""

SHORT = {
    "AdaptiveWarmup": "Adaptive\nWarmup",
    "LearningRateFinder": "Lightning's\nfinder",
    "LearningRateFinder, per step": "finder,\nper step",
    "ScheduleFreeAdamW": "Schedule-\nFree",
}


def _dots(store: ResultStore) -> list[Dot]:
    """Every method on the tasks of `headline` that were searched, with AdamW."""

    def distance(task: str, values: Sequence[float]) -> float:
        away = statistics.fmean(tuned_values(task, "AdamW", store)) - statistics.fmean(values)
        return away / BITS_OF_A_POINT if task == "byte LM" else away

    dots = [Dot("grid\nof five", 4.0, [0.0], False)]
    for arm in OTHERS:
        found = [distance(task, headline_values(task, arm)) for task in CHOSEN_ON]
        runs = [r for r in _headline_records() if r["config"]["arm"] == arm and r["config"]["model"] in CHOSEN_ON]
        price = statistics.fmean(r["finder_samples"] / (r["samples"] - r["finder_samples"]) for r in runs)
        dots.append(Dot(SHORT.get(arm, arm), price, found, arm == "AdaptiveWarmup"))
    for budget in BUDGETS:
        by_task = {task: search_records(task, "AdamW", budget, store) for task in CHOSEN_ON}
        found = [distance(task, [r["test"] for r in records]) for task, records in by_task.items() if records]
        if found:
            dots.append(Dot(f"search\n{budget:.0%}", budget, found, True))
    return dots


def _judged_dots(store: ResultStore) -> list[Dot]:
    """The searches on the tasks that had no say, with both optimizers."""
    dots = [Dot("grid\nof five", 4.0, [0.0], False)]
    for budget in BUDGETS:
        found = []
        for task in SMALL:
            for optimizer in OPTIMIZERS:
                reference = tuned_values(task, optimizer, store)
                records = search_records(task, optimizer, budget, store)
                if reference and records:
                    found.append(statistics.fmean(reference) - statistics.fmean(r["test"] for r in records))
        if found:
            dots.append(Dot(f"search\n{budget:.0%}", budget, found, True))
    return dots


def _line(task: str, optimizer: str, store: ResultStore) -> list[str] | None:
    reference = tuned_values(task, optimizer, store)
    if not reference:
        return None
    mean, digits = statistics.fmean(reference), 3 if task == "byte LM" else 2
    cells = []
    for budget in BUDGETS:
        records = search_records(task, optimizer, budget, store)
        if not records:
            cells.append("")
            continue
        distance = mean - statistics.fmean(record["test"] for record in records)
        rates = ", ".join(f"{record['rate']:.2g}" for record in records)
        price = statistics.fmean(record["price"] / record["updates"] for record in records)
        cells.append(f"{distance:+.{digits}f} ({rates}; {price:.2f})")
    for other in OTHERS:
        values = headline_values(task, other) if task in TASKS and optimizer == "AdamW" else []
        cells.append(f"{mean - statistics.fmean(values):+.{digits}f}" if values else "")
    said = "yes" if task in CHOSEN_ON else "in the guard" if (task, optimizer) == GUARD_SEEN_ON else "no"
    return [task, said, optimizer, f"{abs(mean):.{digits}f} ({len(reference)} seeds)", *cells]


def search_records(task: str, optimizer: str, budget: float, store: ResultStore) -> list[dict[str, Any]]:
    """The searches of a pair that exist, by seed."""
    configs = [Config(task, optimizer, seed, budget=budget) for seed in SEEDS]
    return [record for c in configs if (record := store.load(c.name, asdict(c))) is not None]


def _summary(store: ResultStore) -> str:
    lines = []
    for budget in BUDGETS:
        for said, tasks in (("that had a say", CHOSEN_ON), ("that had none (MLP with SGD: in the guard)", JUDGED_ON)):
            distances = []
            for task in tasks:
                for optimizer in OPTIMIZERS:
                    reference = tuned_values(task, optimizer, store)
                    records = search_records(task, optimizer, budget, store)
                    if reference and records and task != "byte LM":
                        mean = statistics.fmean(record["test"] for record in records)
                        distances.append(statistics.fmean(reference) - mean)
            if distances:
                lines.append(
                    f"- search {budget:.0%}, tasks {said}: mean distance {statistics.fmean(distances):+.2f} points, "
                    f"worst {max(distances):+.2f}, over {len(distances)} pairs (byte LM apart)"
                )
    return "\n" + "\n".join(lines) + "\n"


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table."""
    options = command_line(__doc__, "the same as without", FOLDER, arguments)
    store = ResultStore(options.results)
    if not options.report:
        do: Callable[[Config], None] = functools.partial(work, data_dir=options.data_dir, folder=options.results)
        label = operator.attrgetter("name")
        tasks = [*CHOSEN_ON, *SMALL]
        if options.dry_run:
            todo = [c for c in searches(tasks) if store.load(c.name, asdict(c)) is None]
            print("\n".join(c.name for c in todo))
            print(f"{len(todo)} searches, and the grids of {', '.join(SMALL)}")
            return

        def make(configs: list[Config], what: str) -> None:
            run_all(do, [c for c in configs if value_of(c, store, "test") is None], options.jobs, label, what)

        make([c for c in searches(tasks) if c.seed == SEEDS[0]], "searches, first seed")
        for task in SMALL:
            for optimizer in OPTIMIZERS:
                while any(value_of(c, store, "val") is None for c in grid(task, optimizer, store)):
                    make(grid(task, optimizer, store), "grid")
                make([Config(task, optimizer, seed, lr=tuned(task, optimizer, store)) for seed in SEEDS], "tuned")
        make(searches(tasks), "searches")
    write(store, options.results.parent / "learning_rate_search")


if __name__ == "__main__":
    main(sys.argv[1:])
