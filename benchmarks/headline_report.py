"""Table of `headline`: what the tuned baseline's quality costs each way of training, with the search that it needs.
Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks import headline_picture as picture
from benchmarks._common import Interval, markdown_table, t_interval, write_keeping_findings
from benchmarks.headline_arms import TUNED
from benchmarks.headline_tasks import TASKS, Metric, Task

Record = dict[str, Any]
SAID = ("AdaptiveWarmup", "LearningRateFinder, per step")
"""Arms of which the picture's title tells: ours at its defaults, and the best of the others."""


@dataclass(frozen=True)
class Price:
    """What a search costs before the run that is kept."""

    samples: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to train one model, over its seeds; samples and seconds with the search.

    Args:
        model: by name.
        arm: way to train, by name.
        final: the metric on the test data at the end, with a 95 % interval.
        diverged: runs that ended with a loss that is not finite.
        price: of the search, in ``samples`` and ``cpu_seconds`` already.
        reached: runs that got to the target and did not diverge.
        samples: until the target, the mean of those runs; None where there is none.
        cpu_seconds: the same.
        learning_rates: smallest and largest of those that a search or a warm-up chose; None where there is none.
    """

    model: str
    arm: str
    final: Interval
    diverged: int
    price: Price
    reached: int
    samples: float | None
    cpu_seconds: float | None
    learning_rates: tuple[float, float] | None


def prices(searched: Sequence[Record], records: Sequence[Record]) -> dict[tuple[str, str], Price]:
    """By model and baseline, the runs of the grid at the other rates: the winner's own is kept."""
    best = {_key(record): record["config"]["lr"] for record in records if record["config"]["arm"] in TUNED}
    return {
        key: Price(
            sum(r["samples"] for r in searched if _key(r) == key and r["config"]["lr"] != lr),
            sum(r["cpu_seconds"] for r in searched if _key(r) == key and r["config"]["lr"] != lr),
        )
        for key, lr in best.items()
    }


def metric_of(record: Record) -> Metric:
    """What the record's task measures."""
    return TASKS[record["config"]["model"]].metric


def final(record: Record) -> float:
    """The metric on the test data at the end."""
    return float(record[f"test_{metric_of(record).name}"])


def targets(records: Sequence[Record]) -> dict[str, float]:
    """By model, the value to reach: the better tuned baseline's mean at the end, worse by the metric's margin."""
    finals: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["config"]["arm"] in TUNED:
            finals.setdefault(_key(record), []).append(final(record))
    found = {}
    for model in TASKS:
        means = [fmean(values) for (of, _), values in finals.items() if of == model]
        if means:
            metric = TASKS[model].metric
            found[model] = metric.worse_by_margin(max(means, key=metric.key))
    return found


def reached_at(record: Record, target: float, price: Price) -> tuple[float, float] | None:
    """Samples and CPU seconds at the first evaluation that has the target, search included; None for a run that has
    not or that diverged."""
    if record["diverged"]:
        return None
    metric = metric_of(record)
    hits = ((samples, seconds) for samples, seconds, value in record["curve"] if metric.better(value, target))
    first = next(hits, None)
    return None if first is None else (first[0] + price.samples, first[1] + price.cpu_seconds)


def rows(searched: Sequence[Record], records: Sequence[Record], arms: Sequence[str]) -> list[Row]:
    """A row for each model and arm with runs, in the order of ``arms``; models without a target are left out."""
    goal, price_of = targets(records), prices(searched, records)
    found = []
    for model in goal:
        for arm in arms:
            runs = [record for record in records if _key(record) == (model, arm)]
            if runs:
                found.append(_row(model, arm, runs, goal[model], price_of.get((model, arm), Price())))
    return found


def _row(model: str, arm: str, runs: Sequence[Record], target: float, price: Price) -> Row:
    hits = [hit for hit in (reached_at(run, target, price) for run in runs) if hit is not None]
    chosen = [run["config"]["lr"] if arm in TUNED else run["found_lr"] or run["peak_lr"] for run in runs]
    rates = [lr for lr in chosen if lr is not None]
    return Row(
        model,
        arm,
        final=t_interval([final(run) for run in runs]),
        diverged=sum(run["diverged"] for run in runs),
        price=price if arm in TUNED else Price(max(run["finder_samples"] for run in runs)),
        reached=len(hits),
        samples=fmean(samples for samples, _ in hits) if hits else None,
        cpu_seconds=fmean(seconds for _, seconds in hits) if hits else None,
        learning_rates=(min(rates), max(rates)) if rates else None,
    )


def _key(record: Record) -> tuple[str, str]:
    return record["config"]["model"], record["config"]["arm"]


def mean_curve(runs: Sequence[Record], price: Price) -> tuple[list[float], list[float]]:
    """Samples with the search, and the mean of the metric, at every evaluation; a run that diverged counts as guessing
    from there on."""
    longest = max((run["curve"] for run in runs), key=len)
    counts = [float(samples + price.samples) for samples, _, _ in longest]

    def value(run: Record, point: int) -> float:
        ended = len(run["curve"]) - (1 if run["diverged"] else 0)  # the last point of such a run is of broken weights
        return float(run["curve"][point][2]) if point < ended else metric_of(run).guess

    return counts, [fmean(value(run, point) for run in runs) for point in range(len(longest))]


def summary(table: Sequence[Row]) -> str:
    """The result in three lines: how far from the searched rate a run without a search ends, above 0 where better."""
    lines = ["How a run without a search ends, against AdamW with the best of five rates (+ is better)"]
    for arm in SAID:
        gaps = []
        for model in dict.fromkeys(row.model for row in table):
            metric = TASKS[model].metric
            of = {row.arm: row.final.mean for row in table if row.model == model}
            if {TUNED[0], arm} <= of.keys():
                gap = metric.scale * (metric.key(of[arm]) - metric.key(of[TUNED[0]]))
                gaps.append(f"{model} {gap:+.{metric.digits - 1}f} {'points' if metric.unit == '%' else metric.unit}")
        if gaps:
            lines.append(f"{arm}: {', '.join(gaps)}".replace("-", "\N{MINUS SIGN}"))
    return "\n".join(lines)


# ---------------------------------------------------------------------- table
def headings(metric: Metric) -> tuple[str, ...]:
    """Of the columns."""
    return (
        "arm",
        "lr chosen",
        f"{metric.heading} at the end",
        "diverged",
        "reached the target",
        "search (samples)",
        "samples until then, search included",
        "CPU s until then, search included",
    )


def cells(row: Row) -> list[str]:
    """A row in words, in the order of the headings."""
    low, high = row.learning_rates or (None, None)
    rate = "-" if low is None else f"{low:.2g}" if low == high else f"{low:.2g} to {high:.2g}"
    metric = TASKS[row.model].metric
    return [
        row.arm,
        rate,
        row.final.text(metric.scale, metric.digits),
        str(row.diverged),
        f"{row.reached} of {row.final.count}",
        str(row.price.samples),
        "never" if row.samples is None else f"{row.samples:.0f}",
        "never" if row.cpu_seconds is None else f"{row.cpu_seconds:.1f}",
    ]


def _markdown(image: str, table: Sequence[Row], searched: Sequence[Record], records: Sequence[Record]) -> str:
    goal = targets(records)
    seeds = ", ".join(map(str, sorted({record["config"]["seed"] for record in records})))
    text = f"""# The learning rate is unknown: what does the tuned baseline's quality cost?

Made by `python -m benchmarks.headline`; what each task and arm is, and what is counted, is in the modules' docstrings.
Seeds {seeds}. The search has one seed and is judged on validation data; its price is the runs at the rates that lost,
since the winner's run is kept. The target is the better tuned baseline's mean at the end, less the margin. *Samples
until then* is the mean over the runs that reached it, at the first evaluation with that value; ± is a 95 % interval of
the mean by Student's distribution. CPU seconds were taken on machines that were shared with other work: compare them
roughly, within one task.

![quality against samples, search included](./{image})
"""
    for model, target in goal.items():
        text += _section(TASKS[model], target, [row for row in table if row.model == model], searched, records)
    return text


def _section(
    task: Task, target: float, table: Sequence[Row], searched: Sequence[Record], records: Sequence[Record]
) -> str:
    metric, config = task.metric, next(r["config"] for r in records if r["config"]["model"] == task.name)
    tried = "; ".join(
        f"{arm.split(',')[0]}: {', '.join(f'{lr:g}' for lr in rates)}" for arm, rates in task.grid.items()
    )
    margin = f"{metric.margin * metric.scale:g} {'points' if metric.unit == '%' else metric.unit}"
    epochs = "one epoch" if config["epochs"] == 1 else f"{config['epochs']} epochs"
    return (
        f"\n## {task.name}: target {metric.scale * target:.{metric.digits}f} {metric.unit}\n\n"
        f"{task.words[0].upper()}{task.words[1:]}: {config['train_size']} {task.sample}, {epochs} at batch "
        f"{config['batch_size']}; margin {margin}. "
        f"Search: {tried}; judged on {config['val_size']} {task.sample}.\n\n"
        f"{markdown_table(headings(metric), [cells(row) for row in table])}"
    )


def _absent(records: Sequence[Record], models: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Arms with fewer seeds than planned, in words."""
    made = [(*_key(record), record["config"]["seed"]) for record in records]
    counts = {(model, arm): sum((model, arm, seed) in made for seed in seeds) for model in models for arm in arms}
    return [f"{model}, {arm} ({n} of {len(seeds)} seeds)" for (model, arm), n in counts.items() if n < len(seeds)]


# ---------------------------------------------------------------------- everything
def write(
    target: Path,
    searched: Sequence[Record],
    records: Sequence[Record],
    tasks: Sequence[Task],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Write ``target``.md and .png and print the tables; findings below them, written by hand, are kept.

    Args:
        target: path without a suffix.
        searched: runs of the baselines' grids.
        records: runs that are compared.
        tasks: of the plan; what is missing is named.
        arms: of the plan, in the order of the table.
        seeds: of the plan.
    """
    table = rows(searched, records, arms)
    if not table:
        print("no tuned baseline has a run yet")
        return
    image, goal, price_of = target.with_suffix(".png"), targets(records), prices(searched, records)
    panels = []
    for model in goal:
        lines = []
        for row in (row for row in table if row.model == model):
            runs = [record for record in records if _key(record) == (model, row.arm)]
            samples, values = mean_curve(runs, price_of.get((model, row.arm), Price()))
            lines.append(picture.Line(row.arm, samples, values, row.final))
        panels.append(picture.Panel(model, TASKS[model].metric, goal[model], lines))
    # half a comparison misleads: a task that lacks arms is in the table alone, unless there is nothing else to draw
    whole = [panel for panel in panels if len(panel.lines) == len(arms)] or panels
    drawn = {panel.title for panel in whole}
    picture.draw(whole, summary([row for row in table if row.model in drawn]), image)
    text = _markdown(image.name, table, searched, records)
    absent = _absent(records, [task.name for task in tasks], arms, seeds)
    if absent:
        text += f"\nOf the grid not run, or not with every seed: {'; '.join(absent)}.\n"
    write_keeping_findings(target.with_suffix(".md"), text)
    for row in table:
        print(row.model, *cells(row), sep=" | ")
    print(f"written: {target.name}.md, {image.name}")
