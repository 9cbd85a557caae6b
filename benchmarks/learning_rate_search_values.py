"""How far what `learning_rate_search` has run ends from a tuned rate: paired over seeds, by task and optimizer."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks._common import Interval, ResultStore, paired_interval, t_interval
from benchmarks.learning_rate_search_arms import FOLLOWED, OTHERS, TWICE, ArmConfig
from benchmarks.learning_rate_search_runs import (
    EVERY,
    Config,
    LongConfig,
    optimizers_of,
    seeds_of,
    tuned,
)
from benchmarks.learning_rate_search_tasks import SMALL

Records = dict[int, dict[str, Any]]
"""By seed."""

BITS_OF_A_POINT = 0.1
"""Bits per byte that stand for a point, where tasks are put side by side."""


# ---------------------------------------------------------------------- runs that exist
def _existing(configs: Iterable[Any], store: ResultStore) -> Records:
    return {c.seed: record for c in configs if (record := store.load(c.name, asdict(c))) is not None}


def tuned_records(task: str, optimizer: str, store: ResultStore, kind: type[Config | LongConfig] = Config) -> Records:
    """The runs at the tuned rate."""
    rate = tuned(task, optimizer, store, kind)
    return {} if rate is None else _existing((kind(task, optimizer, s, lr=rate) for s in seeds_of(task)), store)


def search_records(task: str, optimizer: str, budget: float | str, store: ResultStore) -> Records:
    """The searches of a pair."""
    return _existing((Config(task, optimizer, seed, budget=budget) for seed in seeds_of(task)), store)


def long_records(task: str, optimizer: str, store: ResultStore) -> Records:
    """The searches of a pair at 1 024 updates."""
    return _existing((LongConfig(task, optimizer, seed) for seed in seeds_of(task)), store)


def arm_records(task: str, arm: str, store: ResultStore) -> Records:
    """The runs of another way on a task: test metric in points, price in runs."""
    return _existing((ArmConfig(task, arm, seed) for seed in seeds_of(task)), store)


# ---------------------------------------------------------------------- distances
def behind(reference: Mapping[int, Any], records: Mapping[int, Any]) -> Interval | None:
    """How far runs are behind others of the same seeds, in the task's unit; None where they have no seed in common."""
    if not reference.keys() & records.keys():
        return None
    return paired_interval(
        {seed: record["test"] for seed, record in reference.items()},
        {seed: record["test"] for seed, record in records.items()},
    )


def distance(task: str, optimizer: str, records: Records, store: ResultStore) -> Interval | None:
    """How far runs of 256 updates are behind the tuned rate, in the task's unit."""
    return behind(tuned_records(task, optimizer, store), records)


def in_points(task: str, away: float) -> float:
    """A distance as points: 0.1 bits per byte stand for one."""
    return away / BITS_OF_A_POINT if task == "byte LM" else away


def pairs(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Tasks with their optimizers."""
    return [(task, optimizer) for task in tasks for optimizer in optimizers_of(task)]


def distances_of(budget: float | str, tasks: Sequence[str], store: ResultStore) -> dict[tuple[str, str], float]:
    """Mean distances of the searches to the tuned rate by pair, in the tasks' units."""
    every = {pair: distance(*pair, search_records(*pair, budget, store), store) for pair in pairs(tasks)}
    return {pair: away.mean for pair, away in every.items() if away is not None}


def long_distances(tasks: Sequence[str], store: ResultStore) -> dict[tuple[str, str], Interval]:
    """The same at 1 024 updates, with the intervals over seeds."""
    every = {pair: behind(tuned_records(*pair, store, LongConfig), long_records(*pair, store)) for pair in pairs(tasks)}
    return {pair: away for pair, away in every.items() if away is not None}


def over_pairs(found: Mapping[tuple[str, str], float]) -> Interval:
    """Mean distance in points over pairs of task and optimizer, with its interval."""
    return t_interval([in_points(task, away) for (task, _), away in found.items()])


def of_arm(arm: str, task: str, store: ResultStore) -> float | None:
    """Mean distance of an arm with AdamW, ``"search"`` for the search at its default budget."""
    records = search_records(task, "AdamW", "auto", store) if arm == "search" else arm_records(task, arm, store)
    away = distance(task, "AdamW", records, store)
    return None if away is None else away.mean


def ranked_tasks(store: ResultStore) -> list[str]:
    """Tasks on which every arm has run with AdamW."""
    tasks = [task for task in EVERY if "AdamW" in optimizers_of(task)]
    return [task for task in tasks if all(of_arm(arm, task, store) is not None for arm in ("search", *OTHERS))]


def mean_ranks(store: ResultStore) -> dict[str, float]:
    """Every arm's mean rank over the tasks on which all have run."""
    ranks: dict[str, list[float]] = {}
    for task in ranked_tasks(store):
        away = {arm: float(of_arm(arm, task, store) or 0.0) for arm in ("search", *OTHERS)}
        away["tuned"] = 0.0
        for arm, value in away.items():
            better = sum(other < value for other in away.values())
            equal = sum(other == value for other in away.values())
            ranks.setdefault(arm, []).append(better + (equal + 1) / 2)
    return {arm: statistics.fmean(values) for arm, values in ranks.items()}


def added(store: ResultStore) -> dict[str, dict[str, tuple[Interval, float]]]:
    """What is added to a search, by task: how far it is *ahead* of the search alone, seed by seed, and its price."""
    found: dict[str, dict[str, tuple[Interval, float]]] = {}
    for arm in (FOLLOWED, *TWICE):
        for task in SMALL:
            records = arm_records(task, arm, store)
            ahead = behind(records, search_records(task, "AdamW", "auto", store))
            if ahead is not None:
                price = statistics.fmean(record["price"] for record in records.values())
                found.setdefault(arm, {})[task] = (ahead, price)
    return found
