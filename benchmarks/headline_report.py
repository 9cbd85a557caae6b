"""Table and picture of `headline`: what the tuned baseline's accuracy costs each way of training, with the search that
it needs. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._common import Interval, markdown_table, t_interval, write_keeping_findings

Record = dict[str, Any]
TUNED = ("AdamW, tuned", "SGD, tuned")
MARGIN = 0.005
"""How far below the tuned baseline's mean final accuracy the target is, as a share."""
CHANCE = 0.1
BELOW = 0.35
"""How far below the target the picture ends, as a share."""


@dataclass(frozen=True)
class Price:
    """What a search costs before the run that is kept."""

    samples: int = 0
    cpu_seconds: float = 0.0


@dataclass(frozen=True)
class Row:
    """One way to train one model, over its seeds; accuracies as shares, samples and seconds with the search.

    Args:
        model: by name.
        arm: way to train, by name.
        final: test accuracy at the end, with a 95 % interval.
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


def targets(records: Sequence[Record]) -> dict[str, float]:
    """By model, the accuracy to reach: the better tuned baseline's mean at the end, less the margin."""
    finals: dict[tuple[str, str], list[float]] = {}
    for record in records:
        if record["config"]["arm"] in TUNED:
            finals.setdefault(_key(record), []).append(record["test_accuracy"])
    models = {model for model, _ in finals}
    return {model: max(fmean(v) for (of, _), v in finals.items() if of == model) - MARGIN for model in models}


def reached_at(record: Record, target: float, price: Price) -> tuple[float, float] | None:
    """Samples and CPU seconds at the first evaluation that has the target, search included; None for a run that has
    not or that diverged."""
    if record["diverged"]:
        return None
    hits = ((samples, seconds) for samples, seconds, accuracy in record["curve"] if accuracy >= target)
    first = next(hits, None)
    return None if first is None else (first[0] + price.samples, first[1] + price.cpu_seconds)


def rows(searched: Sequence[Record], records: Sequence[Record], arms: Sequence[str]) -> list[Row]:
    """A row for each model and arm with runs, in the order of ``arms``; models without a target are left out."""
    goal, price_of = targets(records), prices(searched, records)
    found = []
    for model in sorted(goal):
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
        final=t_interval([run["test_accuracy"] for run in runs]),
        diverged=sum(run["diverged"] for run in runs),
        price=price if arm in TUNED else Price(max(run["finder_samples"] for run in runs)),
        reached=len(hits),
        samples=fmean(samples for samples, _ in hits) if hits else None,
        cpu_seconds=fmean(seconds for _, seconds in hits) if hits else None,
        learning_rates=(min(rates), max(rates)) if rates else None,
    )


def _key(record: Record) -> tuple[str, str]:
    return record["config"]["model"], record["config"]["arm"]


# ---------------------------------------------------------------------- table
HEADINGS = (
    "arm",
    "lr chosen",
    "final accuracy (%)",
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
    return [
        row.arm,
        rate,
        row.final.text(100),
        str(row.diverged),
        f"{row.reached} of {row.final.count}",
        str(row.price.samples),
        "never" if row.samples is None else f"{row.samples:.0f}",
        "never" if row.cpu_seconds is None else f"{row.cpu_seconds:.1f}",
    ]


def _markdown(picture: str, table: Sequence[Row], searched: Sequence[Record], records: Sequence[Record]) -> str:
    config, goal = records[0]["config"], targets(records)
    grids = {
        arm: sorted({r["config"]["lr"] for r in searched if r["config"]["arm"] == arm}) for arm in dict.fromkeys(TUNED)
    }
    tried = "; ".join(f"{arm.split(',')[0]}: {', '.join(f'{lr:g}' for lr in rates)}" for arm, rates in grids.items())
    seeds = ", ".join(map(str, sorted({record["config"]["seed"] for record in records})))
    images, val_images = config["train_size"], config["val_size"]
    text = f"""# The learning rate is unknown: what does the tuned baseline's accuracy cost?

Made by `python -m benchmarks.headline`. Fashion-MNIST, {images} training images, {config["epochs"]} epochs at batch
{config["batch_size"]}, seeds {seeds}; a small CNN and a small ViT.
What each arm is, and what is counted, is in the module's docstring.
Search: {tried};
one seed, judged on {val_images} validation images; its price is the runs at the rates that lost, since the winner's run
is kept. The target is the better tuned baseline's mean test accuracy at the end, less {100 * MARGIN:g} points. *Samples
until then* is the mean over the runs that reached it, at the first end of an epoch with that accuracy; ± is a 95 %
interval of the mean by Student's distribution (the 10 000 test images alone carry about 0.4 points of noise). CPU
seconds were taken on a machine that was shared with other work: compare them roughly.

![accuracy against samples, search included](./{picture})
"""
    for model in sorted(goal):
        body = [cells(row) for row in table if row.model == model]
        text += f"\n## {model}: target {100 * goal[model]:.2f} %\n\n{markdown_table(HEADINGS, body)}"
    return text


def _absent(records: Sequence[Record], models: Sequence[str], arms: Sequence[str], seeds: Sequence[int]) -> list[str]:
    """Arms with fewer seeds than planned, in words."""
    made = [(*_key(record), record["config"]["seed"]) for record in records]
    counts = {(model, arm): sum((model, arm, seed) in made for seed in seeds) for model in models for arm in arms}
    return [f"{model}, {arm} ({n} of {len(seeds)} seeds)" for (model, arm), n in counts.items() if n < len(seeds)]


# ---------------------------------------------------------------------- picture
STYLES: dict[str, dict[str, Any]] = {
    "AdamW, tuned": {"color": "black", "linewidth": 2.0},
    "SGD, tuned": {"color": "0.5", "linewidth": 2.0},
    "AdaptiveWarmup": {"color": "C3", "linewidth": 2.0},
    "AdaptiveWarmup + BatchSizeRamp": {"color": "C1", "linewidth": 2.0},
    "AdaptiveWarmup + HypergradientDescent": {"color": "C4", "linewidth": 2.0},
    "HypergradientDescent from 1e-5": {"color": "C5", "linewidth": 2.0},
    "LearningRateFinder": {"color": "C2", "linestyle": ":"},
    "AdamW at 1e-3": {"color": "0.3", "linestyle": ":"},
    "Prodigy": {"color": "C0", "linestyle": "--"},
    "DAdaptAdam": {"color": "C9", "linestyle": "--"},
    "ScheduleFreeAdamW": {"color": "C8", "linestyle": "--"},
}


def mean_curve(runs: Sequence[Record], price: Price) -> tuple[list[float], list[float]]:
    """Samples with the search, and the mean accuracy, at every epoch; a run that diverged counts as guessing from
    there on."""
    longest = max((run["curve"] for run in runs), key=len)
    counts = [samples + price.samples for samples, _, _ in longest]

    def accuracy(run: Record, epoch: int) -> float:
        ended = len(run["curve"]) - (1 if run["diverged"] else 0)  # the last point of such a run is of broken weights
        return float(run["curve"][epoch][2]) if epoch < ended else CHANCE

    return counts, [fmean(accuracy(run, epoch) for run in runs) for epoch in range(len(longest))]


def draw(searched: Sequence[Record], records: Sequence[Record], arms: Sequence[str], path: Path) -> None:
    """Mean accuracy over samples with the search, a panel per model."""
    goal, price_of = targets(records), prices(searched, records)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    panels = figure.subplots(1, len(goal), squeeze=False, sharex=True)[0]
    for panel, model in zip(panels, sorted(goal), strict=True):
        for arm in arms:
            runs = [record for record in records if _key(record) == (model, arm) and record["curve"]]
            if runs:
                samples, accuracies = mean_curve(runs, price_of.get((model, arm), Price()))
                style = {"marker": "o", "markersize": 3.5, "linewidth": 1.5, **STYLES[arm]}
                label = arm if max(accuracies) > goal[model] - BELOW else f"{arm} (below the picture)"
                panel.plot(samples, [100 * accuracy for accuracy in accuracies], label=label, **style)
        _dress(panel, model, 100 * goal[model])
    panels[0].set_ylabel("test accuracy (%), mean over seeds")
    handles = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=130)


def _dress(panel: Axes, model: str, target: float) -> None:
    panel.axhline(target, color="black", linewidth=0.8, linestyle=(0, (1, 2)))
    panel.annotate("tuned baseline - 0.5", (0.01, target), xycoords=("axes fraction", "data"), va="bottom", fontsize=8)
    panel.set_title(model)
    panel.set_xscale("log")
    panel.set_ylim(target - 100 * BELOW, target + 4)
    panel.set_xlabel("samples trained on, search included (log scale)")
    panel.grid(alpha=0.25, which="both")


# ---------------------------------------------------------------------- everything
def write(
    target: Path,
    searched: Sequence[Record],
    records: Sequence[Record],
    models: Sequence[str],
    arms: Sequence[str],
    seeds: Sequence[int],
) -> None:
    """Write ``target``.md and .png and print the tables; findings below them, written by hand, are kept.

    Args:
        target: path without a suffix.
        searched: runs of the baselines' grids.
        records: runs that are compared.
        models: of the plan; what is missing is named.
        arms: of the plan, in the order of the table.
        seeds: of the plan.
    """
    table = rows(searched, records, arms)
    if not table:
        print("no tuned baseline has a run yet")
        return
    picture = target.with_suffix(".png")
    draw(searched, records, arms, picture)
    text = _markdown(picture.name, table, searched, records)
    absent = _absent(records, models, arms, seeds)
    if absent:
        text += f"\nOf the grid not run, or not with every seed: {'; '.join(absent)}.\n"
    write_keeping_findings(target.with_suffix(".md"), text)
    for row in table:
        print(row.model, *cells(row), sep=" | ")
    print(f"written: {target.name}.md, {picture.name}")
