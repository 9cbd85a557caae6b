"""Table and picture of `layerwise`: test accuracy with intervals over seeds, differences to one learning rate for all
layers paired by seed, and the noise that the test sentences alone make. Nothing is trained here."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks._common import Interval, clock, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
Setting = tuple[float, str, bool]
Results = Mapping[Setting, Sequence[Record]]
HEADINGS = (
    "setting",
    "lr of the head (peak)",
    "test accuracy (%)",
    "standard error",
    "difference to one lr for all (points)",
    "train loss, last epoch",
    "CPU s in training steps",
    "seeds",
)


def label(setting: Setting) -> str:
    """A setting in words."""
    decay, schedule, unfreezing = setting
    rates = "one lr for all layers" if decay == 1.0 else f"layer-wise decay {decay:g}"
    return rates + (", slanted triangle" if schedule == "triangle" else "") + (", unfreezing" if unfreezing else "")


def accuracies(records: Sequence[Record]) -> dict[int, float]:
    """Test accuracy by seed."""
    return {record["config"]["seed"]: record["test_acc"] for record in records}


def rows(final: Results) -> list[tuple[Setting, Interval, Interval | None]]:
    """Each setting with its mean accuracy and its difference, paired by seed, to the first."""
    reference, *_ = final
    return [
        (
            setting,
            t_interval(list(accuracies(records).values())),
            None if setting == reference else paired_interval(accuracies(records), accuracies(final[reference])),
        )
        for setting, records in final.items()
    ]


def standard_error(values: Sequence[float]) -> float:
    """Of the mean over seeds, NaN for one."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def binomial_error(accuracy: float, sentences: int) -> float:
    """Standard error of one accuracy by the choice of the test sentences alone: sqrt(p (1 - p) / n)."""
    return math.sqrt(accuracy * (1 - accuracy) / sentences)


def cells(final: Results) -> list[list[str]]:
    """The table in words."""
    result = []
    for setting, mean, difference in rows(final):
        records = final[setting]
        result.append(
            [
                label(setting),
                f"{records[0]['config']['lr']:g}",
                mean.text(100),
                "-" if len(records) == 1 else f"{100 * standard_error(list(accuracies(records).values())):.2f}",
                "reference" if difference is None else difference.text(100, sign=True),
                f"{statistics.fmean(record['train_losses'][-1] for record in records):.3f}",
                f"{statistics.fmean(sum(record['epoch_seconds']) for record in records):.1f}",
                str(len(records)),
            ]
        )
    return result


def tuning_cells(tuned: Results, final: Results) -> list[list[str]]:
    """Validation accuracy of every rate that was tried."""
    result = []
    for setting, records in tuned.items():
        taken = final[setting][0]["config"]["lr"]
        by_rate = sorted(records, key=lambda record: record["config"]["lr"])
        result.append(
            [
                label(setting),
                ", ".join(f"{r['config']['lr']:g}: {100 * r['val_acc']:.1f}" for r in by_rate),
                f"{taken:g}",
            ]
        )
    return result


def _markdown(picture: str, tuned: Results, final: Results) -> str:
    every = {str(r["config"]): r for results in (tuned, final) for records in results.values() for r in records}
    reference = next(iter(final.values()))
    config = reference[0]["config"]
    mean = statistics.fmean(accuracies(reference).values())
    noise = 100 * binomial_error(mean, config["test_size"])
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in r["environment"].items()) for r in every.values())
    return f"""# Layer-wise learning rates, a slanted triangle and gradual unfreezing, on a small fine-tuning

Made by `python -m benchmarks.layerwise`. all-MiniLM-L6-v2 with a linear head, {config["train_size"]} sentences of
Rotten Tomatoes, {config["epochs"]} epochs of {reference[0]["updates"] // config["epochs"]} updates, AdamW (weight decay
{config["weight_decay"]:g}), batch {config["batch_size"]}, at most {config["max_length"]} tokens, {config["precision"]}.
Learning rates constant but where the slanted triangle is named (one tenth climb, then down to 1/32). Unfreezing: the
head, then layers 3 to 5 with it, then everything, an epoch each.

± is a 95 % interval of the mean by Student's distribution over the seeds (training sentences, head, dropout, order);
differences are paired by seed. All runs are tested on the same {config["test_size"]} sentences. Another draw of as many
test sentences alone would move a single accuracy by a standard error of {noise:.2f} points (binomial); a difference of
two settings moves by less, since both are tested on the same ones.

![accuracy of each setting]({picture})

{markdown_table(HEADINGS, cells(final))}
## The learning rates

The best accuracy on {config["val_size"]} validation sentences, one run at each rate with a seed of its own; such an
accuracy has a binomial standard error of {100 * binomial_error(mean, config["val_size"]):.1f} points,
so neighbouring rates are hardly told apart. A triangle's peak is twice the rate of its decay. Each rate stands with
its validation accuracy (%).

{markdown_table(("setting", "tried", "taken"), tuning_cells(tuned, final))}
{len(every)} runs, {clock(sum(record["cpu_seconds"] for record in every.values()))} of CPU time on one thread,
{clock(sum(record["seconds"] for record in every.values()))} on the clock of a shared machine. Made with:

{"".join(f"- {machine}{chr(10)}" for machine in machines)}"""


def draw(tuned: Results, final: Results, path: Path) -> None:
    """Left the accuracy of every setting over its seeds, right the validation accuracy of every rate tried."""
    figure = Figure(figsize=(12, 5.2), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.15, 1))
    table = rows(final)
    left.axvline(100 * table[0][1].mean, color="0.6", linewidth=0.8, linestyle=":")
    for place, (setting, mean, _) in enumerate(table):
        colour = f"C{place}"
        width = 0.0 if math.isnan(mean.half_width) else 100 * mean.half_width
        left.errorbar(100 * mean.mean, place, xerr=width, marker="o", color=colour, capsize=3, markersize=7)
        singles = [100 * value for value in accuracies(final[setting]).values()]
        left.plot(singles, [place + 0.22] * len(singles), "|", color=colour, markersize=8)
        if setting in tuned:
            by_rate = sorted(tuned[setting], key=lambda record: record["config"]["lr"])
            tried = {record["config"]["lr"]: 100 * record["val_acc"] for record in by_rate}
            right.plot(list(tried), list(tried.values()), marker=".", color=colour)
            taken = final[setting][0]["config"]["lr"]
            right.plot([taken], [tried[taken]], "o", color=colour, markersize=9, markerfacecolor="none")
    left.set_yticks(range(len(table)), [label(setting).replace(", ", ",\n") for setting, *_ in table])
    left.invert_yaxis()
    left.set_xlabel("test accuracy (%): mean with 95 % interval, single seeds below")
    left.grid(axis="x", alpha=0.25)
    right.set_xscale("log", base=2)
    rates = sorted({record["config"]["lr"] for records in tuned.values() for record in records})
    right.set_xticks(rates, [f"{rate:g}" for rate in rates], rotation=45)
    right.minorticks_off()
    right.set_xlabel("learning rate of the head (circle: taken; colours as left)")
    right.set_ylabel("validation accuracy (%)")
    right.grid(alpha=0.25)
    figure.savefig(path, dpi=130)


def write(target: Path, tuned: Results, final: Results) -> None:
    """Write ``target``.md and .png and print the table; findings below the tables, written by hand, are kept."""
    picture = target.with_suffix(".png")
    draw(tuned, final, picture)
    path = target.with_suffix(".md")
    write_keeping_findings(path, _markdown(picture.name, tuned, final))
    table = Table("setting", "lr", "accuracy (%)", "difference (points)", "seeds", box=None, padding=(0, 2, 0, 0))
    for setting, rate, accuracy, _, difference, *_, seeds in cells(final):
        table.add_row(setting, rate, accuracy, difference, seeds)
    Console().print(table, "")
    print(f"written: {path.name}, {picture.name}")
