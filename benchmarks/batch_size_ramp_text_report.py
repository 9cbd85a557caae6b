"""Table and picture of `batch_size_ramp_text`: validation bits per byte with intervals over seeds, differences to
"decay" paired by seed. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from matplotlib.figure import Figure

from benchmarks._common import Interval, clock, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
MARGIN = 0.02
"""Largest difference in bits per byte that still counts as the same; fixed before the runs."""
CONFIDENCE = 0.90
HEADINGS = (
    "schedule",
    "updates",
    "validation bits per byte",
    "difference to decay, 90 %",
    "within ±0.02?",
    "training loss, last epoch (nats)",
    "CPU time (s)",
    "seeds",
)
STYLES: dict[str, dict[str, Any]] = {
    "decay": {"color": "C0", "linewidth": 2.4},
    "hybrid": {"color": "C1", "linewidth": 1.4},
    "increase": {"color": "C2", "linewidth": 1.8, "linestyle": (0, (4, 2))},
    "increase, linear": {"color": "C3", "linewidth": 1.4, "linestyle": ":"},
}


def bits(record: Record) -> float:
    """Validation bits per byte after the last epoch; 8, those of guessing, for a run that diverged."""
    return 8.0 if record["diverged"] else float(record["epochs"][-1]["val_bits"])


def verdict(difference: Interval) -> str:
    """Whether a difference has been shown to be within the margin, or beyond it, or neither."""
    low, high = difference.mean - difference.half_width, difference.mean + difference.half_width
    if low > -MARGIN and high < MARGIN:
        return "inside"
    return "outside" if high < -MARGIN or low > MARGIN else "not shown"


def by_schedule(records: Sequence[Record]) -> dict[str, dict[int, Record]]:
    """Records by schedule and seed, in the order given."""
    groups: dict[str, dict[int, Record]] = {}
    for record in records:
        groups.setdefault(record["config"]["schedule"], {})[record["config"]["seed"]] = record
    return groups


def rows(records: Sequence[Record]) -> list[list[str]]:
    """A row in words for each schedule."""
    groups = by_schedule(records)
    reference = {seed: bits(record) for seed, record in groups["decay"].items()}
    table = []
    for schedule, runs in groups.items():
        values = {seed: bits(record) for seed, record in runs.items()}
        difference = None if schedule == "decay" else paired_interval(values, reference, CONFIDENCE)
        table.append(
            [
                schedule,
                f"{max(run['updates'] for run in runs.values()):,}",
                t_interval(list(values.values())).text(digits=3),
                "-" if difference is None else difference.text(digits=3, sign=True),
                "reference" if difference is None else verdict(difference),
                f"{fmean(map(_last_loss, runs.values())):.3f}",
                f"{fmean(run['cpu_seconds'] for run in runs.values()):.0f}",
                str(len(runs)),
            ]
        )
    return table


def write(target: Path, tuned: Sequence[Record], records: Sequence[Record], full: bool) -> None:
    """Write ``target``.md and its picture and print the table; findings written by hand are kept."""
    _draw(records, target.with_suffix(".png"))
    table = markdown_table(HEADINGS, rows(records))
    write_keeping_findings(target.with_suffix(".md"), _markdown(target, tuned, records, table, full))
    print(table)


def _last_loss(record: Record) -> float:
    config, curve = record["config"], record["train_curve"]
    begin = (config["epochs"] - 1) * config["train_size"]
    return fmean(loss for x, loss in zip(curve["samples"], curve["loss"], strict=True) if x > begin)


def _markdown(target: Path, tuned: Sequence[Record], records: Sequence[Record], table: str, full: bool) -> str:
    config = records[0]["config"]
    everything = {str(record["config"]): record for record in [*tuned, *records]}.values()
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["environment"].items()) for record in everything)
    milestones = " and ".join(map(str, config["milestones"]))
    tuning = [[f"{r['config']['lr']:g}", f"{bits(r):.3f}", str(r["config"]["seed"])] for r in tuned]
    return f"""# Growing the batch against decaying the learning rate: bytes of Python source, Adam

Made by `python -m benchmarks.batch_size_ramp_text{" --full" if full else ""}`. A GRU of {config["hidden"]} units
predicts the next byte: {config["train_size"]} sequences of {config["bytes"]} bytes from the standard library of Python,
{config["epochs"]} epochs, first batch {config["batch_size"]}; validation on {config["val_size"]} sequences of other
files. At epochs {milestones} the noise scale falls by {config["factor"]}; the batch grows to
{config["train_size"] // 10} sequences, a tenth of the training set, in micro-batches of at most 256. Adam at a first
learning rate of {config["lr"]:g}. *increase* and *hybrid* follow the square-root rule (batch x 5, lr / sqrt 5),
*increase, linear* leaves the learning rate as it is where the batch grows.

±: of bits, the 95 % interval of the mean by Student's distribution; of a difference, paired by seed, the 90 % interval.
*Inside*: the whole interval lies inside ±{MARGIN:g} bits per byte, the margin that was fixed before the runs.

![bits per byte]({target.name}.png)

{table}
## The learning rate of decay

Taken is the rate with the fewest validation bits; the other schedules use it too.

{markdown_table(("lr", "validation bits per byte", "seed"), tuning)}
{len(everything)} runs, {clock(sum(record["cpu_seconds"] for record in everything))} of CPU time on one thread.
Text with the checksum {config["text"]}. Made with:

{"".join(f"- {machine}{chr(10)}" for machine in machines)}"""


def _draw(records: Sequence[Record], path: Path) -> None:
    figure = Figure(figsize=(11, 7), layout="constrained")
    panels = figure.subplots(2, 2, sharey="row", sharex="col")
    config = records[0]["config"]
    groups = by_schedule(records)
    for schedule, by_seed in groups.items():
        runs = list(by_seed.values())
        for column, unit in enumerate(("samples", "updates")):
            scale = 1000 if unit == "samples" else 1
            curves, epochs = [run["train_curve"] for run in runs], [run["epochs"] for run in runs]
            _band(panels[0, column], [x / scale for x in curves[0][unit]], [c["loss"] for c in curves], schedule, "")
            values = [[epoch["val_bits"] for epoch in run] for run in epochs]
            _band(panels[1, column], [epoch[unit] / scale for epoch in epochs[0]], values, schedule, "o")
    for panel in panels[:, 0]:
        for milestone in config["milestones"]:
            panel.axvline(milestone * config["train_size"] / 1000, color="0.6", linewidth=0.8, linestyle=":")
    panels[0, 0].set_title("sample for sample")
    panels[0, 1].set_title("update for update")
    panels[0, 0].set_ylabel("training loss (nats)")
    panels[0, 0].set_yscale("log")
    panels[1, 0].set_ylabel("validation (bits per byte)")
    panels[1, 0].set_xlabel(f"sequences seen (thousands; an epoch has {config['train_size'] / 1000:g})")
    panels[1, 1].set_xlabel("updates")
    for panel in panels.flat:
        panel.grid(alpha=0.25, which="both")
    handles, labels = panels[0, 0].get_legend_handles_labels()
    seeds = max(len(runs) for runs in groups.values())
    title = f"mean and standard deviation over {seeds} seeds; dotted: the noise scale falls by {config['factor']}"
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, title=title)
    figure.savefig(path, dpi=130)


def _band(panel: Any, x: Sequence[float], curves: Sequence[Sequence[float]], schedule: str, marker: str) -> None:
    points = list(zip(*curves, strict=True))
    means = [fmean(point) for point in points]
    spreads = [stdev(point) if len(point) > 1 else 0.0 for point in points]
    low = [mean - spread for mean, spread in zip(means, spreads, strict=True)]
    high = [mean + spread for mean, spread in zip(means, spreads, strict=True)]
    style = STYLES[schedule]
    panel.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0)
    panel.plot(x, means, **style, marker=marker, markersize=3.5, label=schedule)
