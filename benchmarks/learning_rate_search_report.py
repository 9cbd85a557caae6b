"""Table and picture of `learning_rate_search`, from the runs that exist."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks import headline
from benchmarks._common import ResultStore, markdown_table, t_interval, write_keeping_findings
from benchmarks.headline_run import Config as HeadlineConfig
from benchmarks.headline_tasks import TASKS
from benchmarks.learning_rate_search_arms import HALVING, OF_HEADLINE, OTHERS, ArmConfig
from benchmarks.learning_rate_search_picture import Dot, draw
from benchmarks.learning_rate_search_runs import (
    BEST_OF_LONG,
    BUDGETS,
    CHOSEN_ON,
    JUDGED_ON,
    LONG,
    SEEDS,
    SEEN,
    SHORT,
    Config,
    LongConfig,
    optimizers_of,
    points,
    tuned,
    value_of,
)
from benchmarks.learning_rate_search_tasks import SMALL

BITS_OF_A_POINT = 0.1
"""Bits per byte that stand for a point, where tasks are put side by side."""

WITH_ADAMW = [task for task in SMALL if "AdamW" in optimizers_of(task)]


# ---------------------------------------------------------------------- distances
def tuned_values(task: str, optimizer: str, store: ResultStore) -> list[float]:
    """The test metric of the runs at the tuned rate, in points, by seed."""
    if task in SMALL:
        rate = tuned(task, optimizer, store)
        found = [value_of(Config(task, optimizer, seed, lr=rate), store, "test") for seed in SEEDS] if rate else []
        return [value for value in found if value is not None]
    return headline_values(task, f"{optimizer}, tuned")


@functools.cache
def headline_records() -> list[dict[str, Any]]:
    """The runs of `headline` that are compared."""
    protocol, store = headline.DEFAULT, ResultStore(headline.FOLDER)
    best = headline.best_learning_rates(protocol, headline.records_of(headline.search(protocol), store))
    return headline.records_of(headline.compared(protocol, best), store)


def headline_values(task: str, arm: str) -> list[float]:
    """The test metric of an arm of `headline`, in points, by seed."""
    name = TASKS[task].metric.name
    return [
        points(task, record[f"test_{name}"])
        for record in headline_records()
        if HeadlineConfig(**record["config"]).model == task and record["config"]["arm"] == arm
    ]


def search_records(task: str, optimizer: str, budget: float | str, store: ResultStore) -> list[dict[str, Any]]:
    """The searches of a pair that exist, by seed."""
    configs = [Config(task, optimizer, seed, budget=budget) for seed in SEEDS]
    return [record for c in configs if (record := store.load(c.name, asdict(c))) is not None]


def arm_records(task: str, arm: str, store: ResultStore) -> list[dict[str, Any]]:
    """The runs of another way on a task, by seed: test metric in points, price in runs."""
    if task in TASKS and arm in OF_HEADLINE:
        name = TASKS[task].metric.name
        return [
            {
                "test": points(task, r[f"test_{name}"]),
                "price": r["finder_samples"] / (r["samples"] - r["finder_samples"]),
            }
            for r in headline_records()
            if r["config"]["arm"] == arm and r["config"]["model"] == task
        ]
    configs = [ArmConfig(task, arm, seed) for seed in SEEDS]
    return [record for c in configs if (record := store.load(c.name, asdict(c))) is not None]


def distance(task: str, optimizer: str, values: Sequence[float], store: ResultStore) -> float | None:
    """How far a mean is behind the tuned rate's, in the task's unit; None where one of the two is missing."""
    reference = tuned_values(task, optimizer, store)
    return statistics.fmean(reference) - statistics.fmean(values) if reference and values else None


def in_points(task: str, away: float) -> float:
    """A distance as points: 0.1 bits per byte stand for one."""
    return away / BITS_OF_A_POINT if task == "byte LM" else away


def pairs(tasks: Sequence[str]) -> list[tuple[str, str]]:
    """Tasks with their optimizers."""
    return [(task, optimizer) for task in tasks for optimizer in optimizers_of(task)]


# ---------------------------------------------------------------------- the table
def write(store: ResultStore, target: Path) -> None:
    """Write and print the table of the runs that exist, and draw them."""
    body = [line for pair in pairs((*CHOSEN_ON, *JUDGED_ON)) if (line := _line(*pair, store)) is not None]
    headings = [
        "task",
        "had a say",
        "optimizer",
        "tuned",
        *(f"{_named(budget)}: distance (rates; price in runs)" for budget in BUDGETS),
        *(f"{other}: distance" for other in OTHERS),
    ]
    text = (
        "# LearningRateSearch against a tuned rate\n\n"
        "Distance: mean test metric at the tuned rate less that of the arm, over the seeds that exist; points of "
        "accuracy or of explained variance, for the byte LM bits per byte. Positive: worse than tuned. Rates: chosen, "
        "by seed. Price: updates of the race as a share of the run; a grid of five costs 4. The default budget of "
        f"{SHORT} updates is half of them. `python -m benchmarks.learning_rate_search --report` prints this from the "
        "JSON files beside it.\n\n" + markdown_table(headings, body) + _summary(store) + _long(store)
    )
    write_keeping_findings(target.with_suffix(".md"), text)
    print(text)
    draw(
        [
            ("on these tasks the search was designed: CNN, ViT, byte LM", _dots(CHOSEN_ON, store)),
            (
                "GRU, MLP (used for choosing), autoencoder, digits (no say)",
                _dots([t for t in SMALL if t != "ResNet"], store),
            ),
        ],
        "How far from a tuned learning rate? AdamW; dot: mean, bar: best to worst task",
        target.with_suffix(".png"),
    )


def _named(budget: float | str) -> str:
    return "search, default budget" if budget == "auto" else f"search {budget:.0%}"


def _line(task: str, optimizer: str, store: ResultStore) -> list[str] | None:
    reference = tuned_values(task, optimizer, store)
    if not reference:
        return None
    digits = 3 if task == "byte LM" else 2
    cells = []
    for budget in BUDGETS:
        records = search_records(task, optimizer, budget, store)
        away = distance(task, optimizer, [record["test"] for record in records], store)
        if away is None:
            cells.append("")
            continue
        rates = ", ".join(f"{record['rate']:.2g}" for record in records)
        price = statistics.fmean(record["price"] / record["updates"] for record in records)
        cells.append(f"{away:+.{digits}f} ({rates}; {price:.2f})")
    for other in OTHERS:
        records = arm_records(task, other, store) if optimizer == "AdamW" else []
        away = distance(task, optimizer, [record["test"] for record in records], store)
        cells.append("" if away is None else f"{away:+.{digits}f}")
    said = "yes" if task in CHOSEN_ON else "in the guard" if task in SEEN else "no"
    return [task, said, optimizer, f"{abs(statistics.fmean(reference)):.{digits}f} ({len(reference)} seeds)", *cells]


def distances_of(budget: float | str, tasks: Sequence[str], store: ResultStore) -> dict[tuple[str, str], float]:
    """Distances of the searches to the tuned rate by pair, in the tasks' units."""
    found = {}
    for task, optimizer in pairs(tasks):
        values = [record["test"] for record in search_records(task, optimizer, budget, store)]
        away = distance(task, optimizer, values, store)
        if away is not None:
            found[task, optimizer] = away
    return found


def _summary(store: ResultStore) -> str:
    lines = []
    unseen = tuple(task for task in JUDGED_ON if task not in SEEN)
    groups = (("that had a say", CHOSEN_ON), ("seen for the guard", SEEN), ("that had none", unseen))
    for budget in BUDGETS:
        for said, tasks in groups:
            by_pair = distances_of(budget, tasks, store)
            in_accuracy = [away for (task, _), away in by_pair.items() if task != "byte LM"]
            in_bits = [away for (task, _), away in by_pair.items() if task == "byte LM"]
            if in_accuracy:
                bits = f"; byte LM {statistics.fmean(in_bits):+.3f} bits, worst {max(in_bits):+.3f}" if in_bits else ""
                lines.append(
                    f"- {_named(budget)}, tasks {said}: mean distance {statistics.fmean(in_accuracy):+.2f} points, "
                    f"worst {max(in_accuracy):+.2f}, over {len(in_accuracy)} pairs{bits}"
                )
    ranks = mean_ranks(store)
    if ranks:
        tasks = ", ".join(ranked_tasks(store))
        told = ", ".join(f"{arm} {rank:.1f}" for arm, rank in sorted(ranks.items(), key=lambda item: item[1]))
        lines.append(f"- mean rank with AdamW on {tasks} (1: best; the tuned rate costs four runs more): {told}")
    return "\n" + "\n".join(lines) + "\n"


def _distance_of_arm(arm: str, task: str, store: ResultStore) -> float | None:
    records = search_records(task, "AdamW", "auto", store) if arm == "search" else arm_records(task, arm, store)
    return distance(task, "AdamW", [record["test"] for record in records], store)


def ranked_tasks(store: ResultStore) -> list[str]:
    """Tasks on which every arm has run with AdamW."""
    tasks = [t for t in (*CHOSEN_ON, *SMALL) if "AdamW" in optimizers_of(t)]
    return [t for t in tasks if all(_distance_of_arm(arm, t, store) is not None for arm in ("search", *OTHERS))]


def mean_ranks(store: ResultStore) -> dict[str, float]:
    """Every arm's mean rank over the tasks on which all have run."""
    ranks: dict[str, list[float]] = {}
    for task in ranked_tasks(store):
        away = {arm: float(_distance_of_arm(arm, task, store) or 0.0) for arm in ("search", *OTHERS)}
        away["tuned"] = 0.0
        for arm, value in away.items():
            better = sum(other < value for other in away.values())
            equal = sum(other == value for other in away.values())
            ranks.setdefault(arm, []).append(better + (equal + 1) / 2)
    return {arm: statistics.fmean(values) for arm, values in ranks.items()}


def long_distances(store: ResultStore) -> dict[tuple[str, str], tuple[float, list[float], float]]:
    """At 1 024 updates, by pair: distance over the seeds that both have, the rates chosen, the price in runs."""
    found = {}
    for (task, optimizer), best in BEST_OF_LONG.items():
        away, rates, prices = [], [], []
        for seed in SEEDS:
            both = [LongConfig(task, optimizer, seed, lr) for lr in (best, None)]
            reference, search = (store.load(c.name, asdict(c)) for c in both)
            if reference is not None and search is not None:
                away.append(reference["test"] - search["test"])
                rates.append(search["rate"])
                prices.append(search["price"] / search["updates"])
        if away:
            found[task, optimizer] = (statistics.fmean(away), rates, statistics.fmean(prices))
    return found


def _long(store: ResultStore) -> str:
    found = long_distances(store)
    if not found:
        return ""
    body = [
        [
            task,
            optimizer,
            f"{BEST_OF_LONG[task, optimizer]:g}",
            f"{away:+.{3 if task == 'byte LM' else 2}f}",
            ", ".join(f"{rate:.2g}" for rate in rates),
            f"{price:.2f}",
        ]
        for (task, optimizer), (away, rates, price) in found.items()
    ]
    headings = ["task", "optimizer", "tuned rate", "distance", "rates found", "price in runs"]
    return f"\n{LONG} updates, default budget, against the best rate of five at that length:\n\n" + markdown_table(
        headings, body
    )


# ---------------------------------------------------------------------- the picture
SHORT_NAMES = {
    "AdaptiveWarmup": "AdaptiveWarmup",
    "LearningRateFinder": "Lightning's finder",
    "LearningRateFinder, per step": "finder, per step",
    "ScheduleFreeAdamW": "Schedule-Free",
    "DAdaptAdam": "D-Adapt",
    HALVING: "successive halving",
}


def _dots(tasks: Sequence[str], store: ResultStore) -> list[Dot]:
    dots = [Dot("grid of five", 4.0, [0.0], False)]
    for arm in OTHERS:
        away, prices = [], []
        for task in tasks:
            records = arm_records(task, arm, store)
            found = distance(task, "AdamW", [record["test"] for record in records], store)
            if found is not None:
                away.append(in_points(task, found))
                prices += [record["price"] for record in records]
        if away:
            dots.append(Dot(SHORT_NAMES.get(arm, arm), statistics.fmean(prices), away, arm == "AdaptiveWarmup"))
    for budget in BUDGETS:
        by_pair = distances_of(budget, tasks, store)
        away = [in_points(task, value) for (task, optimizer), value in by_pair.items() if optimizer == "AdamW"]
        if away:
            share = 0.5 if budget == "auto" else float(budget)
            dots.append(Dot(f"search {share:.0%}", share, away, True))
    return dots


def interval_over_pairs(budget: float | str, tasks: Sequence[str], store: ResultStore) -> tuple[float, float]:
    """Mean distance in points over pairs, and the half width of its 95 % interval."""
    found = distances_of(budget, tasks, store)
    interval = t_interval([in_points(task, away) for (task, _), away in found.items()])
    return interval.mean, interval.half_width
