"""Table and picture of `learning_rate_search`, from the runs that exist."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import Interval, ResultStore, markdown_table, write_keeping_findings
from benchmarks.learning_rate_search_arms import HALVING, OTHERS, VALLEY
from benchmarks.learning_rate_search_picture import Dot, draw
from benchmarks.learning_rate_search_runs import (
    BUDGETS,
    CHOSEN_ON,
    EVERY,
    JUDGED_ON,
    LONG,
    SEEN,
    SHORT,
    LongConfig,
    tuned,
)
from benchmarks.learning_rate_search_values import (
    added,
    arm_records,
    distance,
    distances_of,
    in_points,
    long_distances,
    long_records,
    mean_ranks,
    of_arm,
    over_pairs,
    pairs,
    ranked_tasks,
    search_records,
    tuned_records,
)

NO_SAY = tuple(task for task in JUDGED_ON if task not in SEEN)
GROUPS = (("that had a say", CHOSEN_ON), ("used for choosing later", SEEN), ("that had no say", NO_SAY))


# ---------------------------------------------------------------------- the table
def write(store: ResultStore, target: Path) -> None:
    """Write and print the table of the runs that exist, and draw them."""
    lines = [line for pair in pairs(EVERY) if (line := _line(*pair, store)) is not None]
    headings = ["task", "had a say", "optimizer", "tuned", *(f"{_named(b)}: distance (rates; price)" for b in BUDGETS)]
    text = (
        "# LearningRateSearch against a tuned rate\n\n"
        "Distance: test metric at the tuned rate less that of the arm, mean and 95 % interval over the seeds that both "
        "have; points of accuracy or of explained variance, for the byte LM bits per byte. Positive: worse than tuned. "
        "Rates: lowest and highest of those chosen. Price: updates of the race as a share of the run; a grid of five "
        f"costs 4. The default budget of {SHORT} updates is half of them. `python -m benchmarks.learning_rate_search "
        "--report` prints this from the JSON files beside it.\n\n"
        + markdown_table(headings, lines)
        + _summary(store)
        + _others(store)
        + _added(store)
        + _long(store)
    )
    write_keeping_findings(target.with_suffix(".md"), text)
    print(text)
    draw(
        [
            ("on these tasks the search was designed: CNN, ViT, byte LM", _dots(CHOSEN_ON, store)),
            ("no say: MiniLM, autoencoder, digits; chosen on: GRU, MLP", _dots(JUDGED_ON, store)),
        ],
        "How far from a tuned learning rate? AdamW; dot: mean, bar: best to worst task",
        target.with_suffix(".png"),
    )


def _named(budget: float | str) -> str:
    return "search, default budget" if budget == "auto" else f"search {budget:.0%}"


def _away(task: str, away: Interval) -> str:
    return away.text(digits=3 if task == "byte LM" else 2, sign=True)


def _range(values: Iterable[float]) -> str:
    low, high = (f"{end(list(values)):.2g}" for end in (min, max))
    return low if low == high else f"{low} to {high}"


def _said(task: str) -> str:
    return "yes" if task in CHOSEN_ON else "later" if task in SEEN else "no"


def _line(task: str, optimizer: str, store: ResultStore) -> list[str] | None:
    reference = tuned_records(task, optimizer, store)
    if not reference:
        return None
    cells = []
    for budget in BUDGETS:
        records = search_records(task, optimizer, budget, store)
        away = distance(task, optimizer, records, store)
        cells.append("" if away is None else f"{_away(task, away)} ({_found(list(records.values()))})")
    mean = abs(statistics.fmean(record["test"] for record in reference.values()))
    shown = f"{mean:.{3 if task == 'byte LM' else 2}f} ({len(reference)} seeds)"
    return [task, _said(task), optimizer, shown, *cells]


def _found(records: Sequence[dict[str, Any]]) -> str:
    """The rates of searches, and their mean price in runs."""
    price = statistics.fmean(record["price"] / record["updates"] for record in records)
    return f"{_range([record['rate'] for record in records])}; {price:.2f}"


def _summary(store: ResultStore) -> str:
    lines = []
    for budget in BUDGETS:
        for said, tasks in GROUPS:
            found = distances_of(budget, tasks, store)
            if found:
                lines.append(f"- {_named(budget)}, tasks {said}: {_in_words(found)}")
    ranks = mean_ranks(store)
    if ranks:
        tasks = ranked_tasks(store)
        told = ", ".join(f"{arm} {rank:.1f}" for arm, rank in sorted(ranks.items(), key=lambda item: item[1]))
        words = f"mean rank with AdamW on {', '.join(tasks)} (1: best; the tuned rate costs four runs more)"
        lines.append(f"- {words}: {told}")
    return "\n" + "\n".join(lines) + "\n"


def _in_words(found: dict[tuple[str, str], float]) -> str:
    """Mean and worst of distances by pair, bits as points."""
    (task, optimizer), _ = max(found.items(), key=lambda item: in_points(item[0][0], item[1]))
    worst = in_points(task, found[task, optimizer])
    bits = ", 0.1 bits as a point" if any(task == "byte LM" for task, _ in found) else ""
    return (
        f"{over_pairs(found).text(sign=True)} points over {len(found)} pairs of task and optimizer, worst {worst:+.2f} "
        f"({task}, {optimizer}){bits}"
    )


def _others(store: ResultStore) -> str:
    tasks, rows = list(EVERY), []
    for arm in OTHERS:
        cells = []
        for task in tasks:
            away = distance(task, "AdamW", arm_records(task, arm, store), store)
            cells.append("" if away is None else _away(task, away))
        rows.append([arm, *cells])
    kept = [n for n in range(len(tasks)) if any(row[n + 1] for row in rows)]
    table = markdown_table(["arm", *(tasks[n] for n in kept)], [[row[0], *(row[n + 1] for n in kept)] for row in rows])
    return f"\nOther ways with AdamW, distance to the tuned rate:\n\n{table}"


def _added(store: ResultStore) -> str:
    found = added(store)
    if not found:
        return ""
    rows = [
        [arm, task, ahead.text(sign=True), f"{ahead.count}", f"{price:.2f}"]
        for arm, by_task in found.items()
        for task, (ahead, price) in by_task.items()
    ]
    headings = ["added", "task", "ahead of the search alone", "seeds", "price in runs, both races"]
    return "\nWhat is added to a search at its default budget (AdamW; positive: it helps):\n\n" + markdown_table(
        headings, rows
    )


def _long(store: ResultStore) -> str:
    found = long_distances(EVERY, store)
    if not found:
        return ""
    body = []
    for (task, optimizer), away in found.items():
        records = long_records(task, optimizer, store)
        best = tuned(task, optimizer, store, LongConfig)
        price = statistics.fmean(record["price"] / record["updates"] for record in records.values())
        rates = _range([record["rate"] for record in records.values()])
        body.append([task, _said(task), optimizer, f"{best:g}", _away(task, away), rates, f"{price:.2f}"])
    headings = ["task", "had a say", "optimizer", "tuned rate", "distance", "rates found", "price in runs"]
    means = {pair: away.mean for pair, away in found.items()}
    summary = [
        f"- {LONG} updates, tasks {said}: {_in_words(own)}"
        for said, tasks in GROUPS
        if (own := {pair: away for pair, away in means.items() if pair[0] in tasks})
    ]
    title = f"\n{LONG} updates, default budget, against the best rate of a grid at that length:\n\n"
    return title + markdown_table(headings, body) + "\n" + "\n".join(summary) + "\n"


# ---------------------------------------------------------------------- the picture
SHORT_NAMES = {
    "AdaptiveWarmup": "AdaptiveWarmup",
    "LearningRateFinder": "Lightning's finder",
    "LearningRateFinder, per step": "finder, per step",
    VALLEY: "finder, valley",
    "ScheduleFreeAdamW": "Schedule-Free",
    "DAdaptAdam": "D-Adapt",
    HALVING: "successive halving",
}


def _dots(tasks: Sequence[str], store: ResultStore) -> list[Dot]:
    dots = [Dot("grid of five", 4.0, [0.0], False)]
    for arm in OTHERS:
        found = {task: away for task in tasks if (away := of_arm(arm, task, store)) is not None}
        if found:
            price = statistics.fmean(r["price"] for task in found for r in arm_records(task, arm, store).values())
            away = [in_points(task, value) for task, value in found.items()]
            dots.append(Dot(SHORT_NAMES.get(arm, arm), price, away, arm == "AdaptiveWarmup"))
    for budget in BUDGETS:
        by_pair = distances_of(budget, tasks, store)
        away = [in_points(task, value) for (task, optimizer), value in by_pair.items() if optimizer == "AdamW"]
        if away:
            share = 0.5 if budget == "auto" else float(budget)
            dots.append(Dot(f"search {share:.0%}", share, away, True))
    return dots
