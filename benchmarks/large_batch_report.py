"""Table and picture of `large_batch`: test accuracy of each optimizer at each batch size, its tuned learning rate, and
what leaving biases and normalisation without decay changes. Nothing is trained here."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from rich.console import Console
from rich.markdown import Markdown

from benchmarks._common import Interval, clock, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
Cell = tuple[str, int, bool]
"""Optimizer, batch size, whether biases and normalisation decay."""


def by_cell(records: Iterable[Record]) -> dict[Cell, dict[int, Record]]:
    """Records by cell and seed."""
    cells: dict[Cell, dict[int, Record]] = {}
    for record in records:
        config = record["config"]
        cell = config["optimizer"], config["batch_size"], config["bias_decay"]
        cells.setdefault(cell, {})[config["seed"]] = record
    return cells


def accuracy(runs: Mapping[int, Record]) -> Interval:
    """Mean test accuracy over seeds, with a 95 % interval."""
    return t_interval([run["test_accuracy"] for run in runs.values()])


def with_standard_error(runs: Mapping[int, Record]) -> str:
    """``mean ± standard error`` in per cent, and how many runs diverged."""
    values = [100 * run["test_accuracy"] for run in runs.values()]
    error = f" ± {statistics.stdev(values) / len(values) ** 0.5:.2f}" if len(values) > 1 else ""
    diverged = sum(run["diverged"] for run in runs.values())
    return f"{statistics.fmean(values):.2f}{error}" + (f" ({diverged} diverged)" if diverged else "")


def accuracy_table(records: Sequence[Record]) -> str:
    """A row for each optimizer, a column for each batch size."""
    cells = by_cell(records)
    sizes = sorted({size for _, size, _ in cells})
    body = []
    for optimizer in dict.fromkeys(name for name, _, decay in cells if decay):
        row = [optimizer]
        for size in sizes:
            runs = cells.get((optimizer, size, True))
            lr = "" if runs is None else f" (lr {next(iter(runs.values()))['config']['lr']:g})"
            row.append("-" if runs is None else with_standard_error(runs) + lr)
        body.append(row)
    return markdown_table(("optimizer", *(f"batch {size}" for size in sizes)), body)


def bias_decay_table(records: Sequence[Record]) -> str:
    """Differences paired by seed: without decay of biases and normalisation, minus with it."""
    cells = by_cell(records)
    body = []
    for (optimizer, size, decay), runs in cells.items():
        decayed = cells.get((optimizer, size, True), {})
        if decay or not runs.keys() & decayed.keys():
            continue
        texts = [
            with_standard_error(runs),
            with_standard_error({seed: decayed[seed] for seed in runs if seed in decayed}),
        ]
        pair = [{s: run["test_accuracy"] for s, run in some.items()} for some in (runs, decayed)]
        body.append([optimizer, str(size), *texts, paired_interval(*pair).text(100, sign=True)])
    headings = ("optimizer", "batch", "no bias decay (%)", "decay of all (%)", "difference (points, 95 % interval)")
    return markdown_table(headings, body)


def draw(records: Sequence[Record], path: Path) -> None:
    """Test accuracy against batch size."""
    cells = by_cell(records)
    figure = Figure(figsize=(8, 5), layout="constrained")
    panel = figure.subplots()
    sizes = sorted({size for _, size, _ in cells})
    names = list(dict.fromkeys(name for name, _, decay in cells if decay))
    for place, name in enumerate(names):
        points = [(size, cells[name, size, True]) for size in sizes if (name, size, True) in cells]
        shift = 2 ** (0.1 * (place - (len(names) - 1) / 2))
        x = [size * shift for size, _ in points]
        tuned = "linear" not in name
        panel.plot(
            x,
            [100 * accuracy(runs).mean for _, runs in points],
            "-o" if tuned else "--s",
            color=f"C{place}",
            label=name,
        )
        for at, (_, runs) in zip(x, points, strict=True):
            panel.plot(
                [at] * len(runs), [100 * r["test_accuracy"] for r in runs.values()], ".", color=f"C{place}", ms=5
            )
    panel.set_xscale("log", base=2)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("batch size (samples per update)")
    panel.set_ylabel("test accuracy (%): mean and single seeds")
    panel.grid(alpha=0.25)
    panel.legend(frameon=False)
    figure.savefig(path, dpi=130)


def _markdown(picture: str, records: Sequence[Record], tuning: Sequence[Record], open_cells: Sequence[str]) -> str:
    config = records[0]["config"]
    everything = list({str(record["config"]): record for record in [*records, *tuning]}.values())
    machines = dict.fromkeys(", ".join(f"{k} {v}" for k, v in record["environment"].items()) for record in everything)
    by_size = {record["config"]["batch_size"]: record["updates"] for record in records if not record["diverged"]}
    updates = ", ".join(f"{count} at batch {size}" for size, count in sorted(by_size.items()))
    seeds = len({record["config"]["seed"] for record in records})
    return f"""# Large batches: SGD, LARS, LAMB, AdamW and AdamP, each tuned at each batch size

Made by `python -m benchmarks.large_batch`. Fashion-MNIST, {config["train_size"]} training images, {config["epochs"]}
epochs for every batch size (updates: {updates}); network: {config["network"]}. A cosine after a
gradual warm-up over the first fifth. The learning rate is the best of one grid, 1 and 3 times powers of ten, by
accuracy on {config["val_size"]} validation images with seed 0, found by walking to the better neighbour until both are
worse. *{"SGD, linear scaling"}* is not tuned: the best rate of the smallest batch times k.

± is the standard error over up to {seeds} seeds (initialisation and sample order), seed 0 being the one that the
rate was tuned with.

![accuracy against batch size]({picture})

## Test accuracy (%)

{accuracy_table(records)}{_unfinished(open_cells)}
## No bias decay

The same rates, without decay of biases and normalisation; differences paired by seed.

{bias_decay_table(records)}
{len(everything)} runs, {clock(sum(record["cpu_seconds"] for record in everything))} of CPU time on one thread,
{clock(sum(record["seconds"] for record in everything))} on the clock of a shared machine. Made with:

{"".join(f"- {machine}{chr(10)}" for machine in machines)}"""


def _unfinished(cells: Sequence[str]) -> str:
    return f"\nNot finished: {', '.join(cells)} (a neighbour of the best rate so far was not tried).\n" if cells else ""


def write(target: Path, records: Sequence[Record], tuning: Sequence[Record], open_cells: Sequence[str]) -> None:
    """Write ``target``.md and .png and print the tables; findings below them, written by hand, are kept."""
    picture = target.with_suffix(".png")
    draw(records, picture)
    path = target.with_suffix(".md")
    write_keeping_findings(path, _markdown(picture.name, records, tuning, open_cells))
    Console().print(Markdown(accuracy_table(records)), _unfinished(open_cells), Markdown(bias_decay_table(records)))
    print(f"written: {path.name}, {picture.name}")
