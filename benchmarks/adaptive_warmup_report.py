"""Table and picture of `adaptive_warmup`: ours against the best of six learning rates, paired by seed, and what either
cost. Nothing is trained here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

from benchmarks._common import Interval, markdown_table, paired_interval, t_interval, write_keeping_findings

Record = dict[str, Any]
CONFIDENCE = 0.9
MARGIN = 0.3
"""Points that ours may be behind the tuned baseline."""

OURS, PLAIN = "restored", "plain"


class Cell(NamedTuple):
    """What is compared: one model, optimizer and batch size."""

    model: str
    optimizer: str
    batch_size: int


@dataclass(frozen=True)
class Row:
    """Ours, with ``restore_best`` or without, against the tuned baseline; accuracies as shares."""

    cell: Cell
    variant: str
    updates: int
    baseline_lr: float
    at_the_edge: bool
    chosen_lr: tuple[float, float]
    switched_at: tuple[float, float]
    baseline: Interval
    ours: Interval
    difference: Interval
    seconds: float
    tuning_seconds: float

    @property
    def verdict(self) -> str:
        """Whether ours is within the margin, as far as the interval tells."""
        low, high = (100 * (self.difference.mean + sign * self.difference.half_width) for sign in (-1, 1))
        if low >= -MARGIN:
            return "yes"
        return "no" if high < -MARGIN else "open"


def rows(tried: Sequence[Record], tuned: Sequence[Record], adaptive: Sequence[Record]) -> list[Row]:
    """A row for each cell and variant of which all is there, in the order of the runs."""
    found = []
    for cell in dict.fromkeys(_cell(record) for record in adaptive):
        grid = {r["config"]["lr"]: r for r in tried if _cell(r) == cell}
        best = {r["config"]["seed"]: r for r in tuned if _cell(r) == cell}
        for variant in (OURS, PLAIN):
            ours = {r["config"]["seed"]: r for r in adaptive if _cell(r) == cell and _variant(r) == variant}
            if len(ours.keys() & best.keys()) >= 2:
                found.append(_row(cell, variant, grid, best, ours))
    return sorted(
        found, key=lambda row: (row.cell.optimizer != "AdamW", *row.cell[:2], row.variant == PLAIN, row.cell[2])
    )


def _row(cell: Cell, variant: str, grid: dict[float, Record], best: dict[int, Record], ours: dict[int, Record]) -> Row:
    lr = next(iter(best.values()))["config"]["lr"]
    rates = [run["peak_lr"] for run in ours.values()]
    switches = [run["switched_at"] for run in ours.values()]
    theirs, accuracies = ({seed: run["test_accuracy"] for seed, run in runs.items()} for runs in (best, ours))
    return Row(
        cell,
        variant,
        updates=next(iter(ours.values()))["updates"],
        baseline_lr=lr,
        at_the_edge=lr in (min(grid), max(grid)),
        chosen_lr=(min(rates), max(rates)),
        switched_at=(min(switches), max(switches)),
        baseline=t_interval(list(theirs.values()), CONFIDENCE),
        ours=t_interval(list(accuracies.values()), CONFIDENCE),
        difference=paired_interval(accuracies, theirs, CONFIDENCE),
        seconds=fmean(run["cpu_seconds"] for run in ours.values()),
        tuning_seconds=sum(run["cpu_seconds"] for run in grid.values()),
    )


def _cell(record: Record) -> Cell:
    return Cell(*(record["config"][name] for name in Cell._fields))


def _variant(record: Record) -> str:
    return OURS if record["config"]["restore_best"] else PLAIN


# ---------------------------------------------------------------------- table
HEADINGS = (
    "model",
    "optimizer",
    "batch",
    "updates",
    "tuned lr",
    "lr that ours chose",
    "switch (share of the run)",
    "tuned baseline (%)",
    "ours (%)",
    "ours - baseline (points)",
    "within 0.3?",
    "CPU s: ours, tuning",
)


def cells(row: Row) -> list[str]:
    """A row in words, in the order of the headings."""
    return [
        row.cell.model,
        row.cell.optimizer,
        str(row.cell.batch_size),
        str(row.updates),
        f"{row.baseline_lr:g}" + (" (edge)" if row.at_the_edge else ""),
        "{:.2g} to {:.2g}".format(*row.chosen_lr),
        "{:.2f} to {:.2f}".format(*row.switched_at),
        row.baseline.text(100),
        row.ours.text(100),
        row.difference.text(100, sign=True),
        row.verdict,
        f"{row.seconds:.0f}, {row.tuning_seconds:.0f}",
    ]


def _markdown(
    picture: str, table: Sequence[Row], tried: Sequence[Record], tuned: Sequence[Record], adaptive: Sequence[Record]
) -> str:
    config = adaptive[0]["config"]
    restored = [row for row in table if row.variant == OURS]
    plain = [row for row in table if row.variant == PLAIN]
    seeds = sorted({record["config"]["seed"] for record in adaptive})
    parameters = {record["config"]["model"]: record["config"]["parameters"] for record in adaptive}
    sizes = ", ".join(f"{model} {count} parameters" for model, count in parameters.items())
    ours = [record for record in adaptive if _variant(record) == OURS]
    spent = {
        f"tuning, {len(tried)} runs": sum(r["cpu_seconds"] for r in tried),
        f"the best baseline with {len(seeds)} seeds, {len(tuned)} runs": sum(r["cpu_seconds"] for r in tuned),
        f"ours, {len(ours)} runs": sum(r["cpu_seconds"] for r in ours),
    }
    text = f"""# An adaptive warm-up against six tuned learning rates

Made by `python -m benchmarks.adaptive_warmup`. Fashion-MNIST, {config["train_size"]} training images,
{config["epochs"]} epochs for every batch size, true batches without accumulation. {sizes}.
Baseline: linear warm-up over 5 % of the run, cosine to zero; the best of six learning rates half a decade apart, by
validation accuracy with seed 0, for each row. Ours: `AdaptiveWarmup(on_divergence="rollback", restore_best=True)`,
min_lr, max_lr and everything else at their defaults in every row, one run per seed.
Compared are seeds {", ".join(map(str, seeds))}, paired; ± is a 90 % interval of the mean by Student's distribution.
The 10 000 test images alone carry about 0.27 points of binomial noise. *Within 0.3?* asks whether ours is at least as
good as the baseline minus 0.3 points: the whole interval (*yes*), none of it (*no*), or it cannot be said (*open*).
*Edge*: the best learning rate was the lowest or highest tried.

![difference to the tuned baseline](./{picture})

## Test accuracy

{markdown_table(HEADINGS, [cells(row) for row in restored])}"""
    if plain:
        text += f"""
## The same without `restore_best`

{markdown_table(HEADINGS, [cells(row) for row in plain])}"""
    text += "\n## Cost\n\n" + markdown_table(
        ("what", "CPU seconds"), [[name, f"{seconds:.0f}"] for name, seconds in spent.items()]
    )
    return text


# ---------------------------------------------------------------------- picture
COLOURS = {"AdamW": "C0", "LAMB": "C1", "AdamP": "C2"}


def draw(table: Sequence[Row], path: Path) -> None:
    """Differences to the tuned baseline over the batch size, a panel per model; without ``restore_best`` in grey."""
    models = sorted({row.cell.model for row in table})
    figure = Figure(figsize=(10, 4.6), layout="constrained")
    panels = figure.subplots(1, len(models), sharex=True, sharey=True, squeeze=False)[0]
    every = sorted({row.cell.batch_size for row in table})
    for panel, model in zip(panels, models, strict=True):
        _draw_panel(panel, [row for row in table if row.cell.model == model], every)
        panel.set_title(model)
    panels[0].set_ylabel("ours minus tuned baseline (points):\nmean and 90 % interval, paired seeds")
    found = {
        label: handle for panel in panels for handle, label in zip(*panel.get_legend_handles_labels(), strict=True)
    }
    figure.legend(found.values(), found.keys(), loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=130)


def _draw_panel(panel: Axes, table: Sequence[Row], sizes: Sequence[int]) -> None:
    panel.axhspan(-MARGIN, MARGIN, color="0.88", linewidth=0, label="± 0.3 points")
    panel.axhline(0.0, color="0.5", linewidth=0.8)
    lines = list(dict.fromkeys((row.cell.optimizer, row.variant) for row in table))
    for place, (optimizer, variant) in enumerate(lines):
        of_line = [row for row in table if (row.cell.optimizer, row.variant) == (optimizer, variant)]
        shift = 2 ** (0.22 * (place - (len(lines) - 1) / 2))  # side by side
        colour = COLOURS[optimizer] if variant == OURS else "0.55"
        panel.errorbar(
            [row.cell.batch_size * shift for row in of_line],
            [100 * row.difference.mean for row in of_line],
            [100 * row.difference.half_width for row in of_line],
            color=colour, linestyle="-" if len(of_line) > 1 else "none", marker="o" if variant == OURS else "s",
            markersize=5.5, linewidth=1.2, elinewidth=1.2, capsize=3,
            label=optimizer if variant == OURS else f"{optimizer}, without restore_best",
        )  # fmt: skip
    panel.set_xscale("log", base=2)
    panel.set_xlim(sizes[0] / 1.5, sizes[-1] * 1.5)
    panel.set_xticks(sizes, [str(size) for size in sizes])
    panel.minorticks_off()
    panel.set_xlabel("batch size (samples per update)")
    panel.grid(alpha=0.25)


# ---------------------------------------------------------------------- everything
def write(
    target: Path,
    tried: Sequence[Record],
    tuned: Sequence[Record],
    adaptive: Sequence[Record],
    planned: Sequence[tuple[str, str, int]],
) -> None:
    """Write ``target``.md and .png and print the table; findings below the tables, written by hand, are kept.

    Args:
        target: path without a suffix.
        tried: runs of the tuning.
        tuned: runs of the best learning rates.
        adaptive: runs of ours.
        planned: model, optimizer and batch size of every cell of the grid; what is missing is named.
    """
    table = rows(tried, tuned, adaptive)
    if not table:
        print("no cell is complete yet")
        return
    picture = target.with_suffix(".png")
    draw(table, picture)
    text = _markdown(picture.name, table, tried, tuned, adaptive)
    absent = [cell for cell in planned if Cell(*cell) not in {row.cell for row in table if row.variant == OURS}]
    if absent:
        names = "; ".join(f"{model}, {optimizer}, batch {size}" for model, optimizer, size in absent)
        text += f"\nOf the grid not run, or not completely: {names}.\n"
    write_keeping_findings(target.with_suffix(".md"), text)
    shown = Table(*("variant", *HEADINGS), box=None, padding=(0, 2, 0, 0))
    for row in table:
        shown.add_row(row.variant, *cells(row))
    Console(width=200).print(shown)
    print(f"written: {target.name}.md, {picture.name}")
