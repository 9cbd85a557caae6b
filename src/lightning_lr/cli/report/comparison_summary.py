"""The comparison of several runs in words: a row per run, which the terminal prints and the picture shows as well."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_lr.cli.printable import cell
from lightning_lr.cli.report.comparison import AXES, ComparedRun, Comparison

NOT_REACHED, NOT_KNOWN = "not reached", "?"


def row_of(run: ComparedRun, comparison: Comparison) -> dict[str, str]:
    """The summary of a run, by heading: its best and last value, and what it had spent when it reached the target."""
    row = {"run": run.name, "best": "-", "last": "-"}
    if run.best is not None and run.last is not None:
        row |= {"best": f"{run.best.value:.4g}", "last": f"{run.last.value:.4g}"}
    reached = run.reached(comparison.target)
    for axis in AXES:
        spent = None if reached is None else reached.spent(axis)
        row[axis] = NOT_REACHED if reached is None else NOT_KNOWN if spent is None else amount(spent)
    return row | {"what differs": run.differs or "nothing that is written down"}


def amount(value: float) -> str:
    """Samples, updates or seconds: whole where there are many."""
    return f"{value:,.0f}" if value >= 100 or value == int(value) else f"{value:.3g}"


def comparison_summary(comparison: Comparison) -> RenderableType:
    """The comparison as something that rich prints."""
    table = Table(header_style="bold", padding=(0, 1))
    table.add_column("run", overflow="fold")
    for heading in ("best", "last", *(f"{axis} to target" for axis in AXES)):
        table.add_column(heading, justify="right")
    table.add_column("what differs", overflow="fold")
    for run in comparison.runs:
        table.add_row(*map(cell, row_of(run, comparison).values()))
    parts: list[RenderableType] = [
        cell(comparison.headline, style="bold"),
        cell(comparison.target_line),
        Text(),
        table,
    ]
    parts += [cell(f"note: {note}", style="yellow") for note in comparison.notes]
    return Group(*parts)
