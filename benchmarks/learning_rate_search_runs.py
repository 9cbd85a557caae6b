"""The runs of `learning_rate_search`: what is searched, at which rates, how one is made and written down."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from benchmarks._common import (
    RESULTS,
    ResultStore,
    environment,
    quiet_process,
)
from benchmarks.headline_arms import ARMS, Arm
from benchmarks.headline_tasks import TASKS
from benchmarks.learning_rate_search_arms import FOLLOWED, OTHERS, TWICE, ArmConfig, run_arm
from benchmarks.learning_rate_search_large import points, train_large
from benchmarks.learning_rate_search_tasks import SMALL, UPDATES, train_small
from lightning_lr import LearningRateSearch

FOLDER = RESULTS / "learning_rate_search"
CHOSEN_ON = ("CNN", "ViT", "byte LM")
JUDGED_ON = ("MiniLM", *SMALL)
SEEN = ("GRU", "MLP")
"""Tasks on which the guard failed, so that it was made stricter (on an LSTM that was made up for it). Later the number
of rates in a heat, the floor of the caution and the guard's steps were chosen on them and on six tasks made up for it.
They no longer judge. How an earlier version and one that was given up did on the others was seen, too."""
DESIGNED_ON = (*CHOSEN_ON, *SEEN)
BUDGETS: tuple[float | str, ...] = (0.1, 0.25, "auto")
OPTIMIZERS = ("AdamW", "SGD")
SEEDS, FEWER = tuple(range(1, 11)), 5
"""Of the small tasks the first ones; of the others, of other budgets and of other arms, the second of them."""
TUNING_SEED = 0
_FROM_1E_3 = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
GRIDS = {"AdamW": _FROM_1E_3, "SGD": (1e-2, 3e-2, 1e-1, 3e-1, 1.0), "LAMB": _FROM_1E_3}
SHORT, LONG = UPDATES, 4 * UPDATES
EVERY = (*CHOSEN_ON, *JUDGED_ON)
MADE_LONG = (*CHOSEN_ON, *SMALL)
"""Tasks that are trained for 1 024 updates, too."""


@dataclass(frozen=True)
class Config:
    """One run. ``budget`` is None for a run at a given rate, ``lr`` None for a search."""

    task: str
    optimizer: str
    seed: int
    budget: float | str | None = None
    lr: float | None = None

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        how = f"lr{self.lr:g}" if self.budget is None else f"search{self.budget}"
        return f"{self.task}_{self.optimizer}_{how}_seed{self.seed}".replace(" ", "-")


@dataclass(frozen=True)
class LongConfig:
    """One run of 1 024 updates; ``lr`` None for a search at the default budget."""

    task: str
    optimizer: str
    seed: int
    lr: float | None = None

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        how = "search" if self.lr is None else f"lr{self.lr:g}"
        return f"{self.task}_{self.optimizer}_{LONG}_{how}_seed{self.seed}".replace(" ", "-")


RunT = TypeVar("RunT", Config, LongConfig)


# ---------------------------------------------------------------------- runs
def searches(tasks: Sequence[str]) -> list[Config]:
    """Every search, budget by budget and seed by seed, so that stopping early loses seeds of a smaller budget."""
    return [
        Config(task, optimizer, seed, budget=budget)
        for budget in reversed(BUDGETS)
        for seed in SEEDS
        for task in tasks
        for optimizer in optimizers_of(task)
        if seed in (seeds_of(task) if budget == "auto" else SEEDS[:FEWER])
    ]


def seeds_of(task: str) -> tuple[int, ...]:
    """The seeds of a task: more where a run takes a second."""
    return SEEDS if task in SMALL else SEEDS[:FEWER]


def optimizers_of(task: str) -> tuple[str, ...]:
    """The optimizers that a task is trained with."""
    return SMALL[task].optimizers if task in SMALL else OPTIMIZERS


def grid(task: str, optimizer: str, store: ResultStore, kind: type[RunT] = Config) -> list[RunT]:  # type: ignore[assignment]
    """The rates of a grid, moved on for as long as the best one made so far is at its edge."""
    rates = list(TASKS[task].grid[f"{optimizer}, tuned"] if task in TASKS else GRIDS[optimizer])
    while True:
        configs = [kind(task, optimizer, TUNING_SEED, lr=rate) for rate in sorted(rates)]
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


def tuned(task: str, optimizer: str, store: ResultStore, kind: type[Config | LongConfig] = Config) -> float | None:
    """The best rate of a grid whose runs are all there."""
    values = {c.lr: value_of(c, store, "val") for c in grid(task, optimizer, store, kind)}
    return None if None in values.values() else max(values, key=lambda rate: values[rate])  # type: ignore[arg-type,return-value]


def value_of(config: Config | LongConfig, store: ResultStore, which: str) -> float | None:
    """The metric of a run, in points, larger for better; ``which``: val or test."""
    record = store.load(config.name, asdict(config))
    return None if record is None else float(record[which])


def work(config: Config | LongConfig | ArmConfig, data_dir: str | None, folder: Path) -> None:
    """Make one run and write it down."""
    quiet_process()
    store = ResultStore(folder)
    if isinstance(config, ArmConfig):
        values = run_arm(config, data_dir)
        store.save(config.name, {"config": asdict(config), **values, "environment": environment()})
        return
    search = None
    if config.lr is None:
        search = LearningRateSearch(budget=getattr(config, "budget", "auto"))
    if config.task in SMALL:
        updates = LONG if isinstance(config, LongConfig) else SHORT
        values = train_small(config.task, config.optimizer, config.seed, config.lr, search, updates)
    else:
        values = _train_large(config, data_dir, search)
    record = {"config": asdict(config), **values, **_found(search), "environment": environment()}
    store.save(config.name, record)


def _found(search: LearningRateSearch | None) -> dict[str, Any]:
    """What is kept of a search."""
    result = search.result if search is not None else None
    if search is None or result is None:
        return {"rate": None, "price": None, "chosen_on": list(DESIGNED_ON)}
    return {
        "rate": search.rate,
        "interval": [result.low, result.high],
        "price": result.price,
        "warning": result.warning,
        "heats": [[[t["rate"], len(t["losses"]), _mean(t["scores"])] for t in heat] for heat in result.heats],
        "held": [
            [t["rate"], [loss if math.isfinite(loss) else None for loss in t["losses"]], _mean(t["scores"])]
            for t in result.held
        ],
        "chosen_on": list(DESIGNED_ON),
    }


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _train_large(
    config: Config | LongConfig, data_dir: str | None, search: LearningRateSearch | None
) -> dict[str, Any]:
    label = f"{config.optimizer}, tuned"
    arm: Arm = ARMS[label] if search is None else replace(ARMS[label], callbacks=lambda: [search])
    # an absurd rate of the user's: the search must not need it
    rate = 1.0 if config.lr is None else config.lr
    times = LONG // SHORT if isinstance(config, LongConfig) else 1
    record = train_large(config.task, arm, rate, config.seed, data_dir, times, looks=config.seed != TUNING_SEED)
    return {
        "test": points(config.task, record, "test"),
        "val": points(config.task, record, "val"),
        "updates": record["updates"],
        "cpu_seconds": record["cpu_seconds"],
    }


def arms() -> list[ArmConfig]:
    """The other ways with AdamW, and on the small tasks what may be added to a search, seed by seed."""
    tasks = [task for task in EVERY if "AdamW" in optimizers_of(task)]
    ways = [(t, a) for t in tasks for a in (*OTHERS, *((FOLLOWED, *TWICE) if t in SMALL else ()))]
    return [ArmConfig(task, arm, seed) for seed in SEEDS[:FEWER] for task, arm in ways]


def long_runs(tasks: Sequence[str], store: ResultStore) -> list[LongConfig]:
    """At 1 024 updates: the tuned rate, where it is known, and the search, seed by seed."""
    pairs = [(task, optimizer) for task in tasks for optimizer in optimizers_of(task)]
    best = {pair: tuned(*pair, store, LongConfig) for pair in pairs}
    return [
        LongConfig(task, optimizer, seed, lr)
        for seed in SEEDS[:FEWER]
        for (task, optimizer), rate in best.items()
        if rate is not None
        for lr in (rate, None)
    ]
