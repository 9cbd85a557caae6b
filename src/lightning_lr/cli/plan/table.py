"""A plan in the terminal: what holds for the whole run, and a row for each of its parts.

A later method adds its lines by ``MethodCallback.summary``, its rows by ``MethodCallback.phases``, and what is worth a
column by appending a :class:`Column` to :data:`COLUMNS`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_lr.cli.plan.model import Addendum, Plan, PlanRow
from lightning_lr.cli.plan.time import duration
from lightning_lr.cli.terminal import summary_block


@dataclass(frozen=True)
class Column:
    """A column of the table.

    Args:
        heading: with the unit; a function of the plan.
        cell: what stands in a row; ``None`` leaves the column out of a table in which no row has it.
        right: whether the cells are numbers.
    """

    heading: Callable[[Plan], str]
    cell: Callable[[PlanRow], str | None]
    right: bool = True


def plan_title(plan: Plan, name: str) -> str:
    """What is planned, in one line: the highest learning rate, the batches, the length.

    Args:
        plan: the run.
        name: what it is called.
    """
    peak = max(value for values in plan.lr for value in values)
    sizes = sorted({row.batch_size for row in plan.rows if row.batch_size is not None})
    batch = f", batch {sizes[0]:,}" + (f" to {sizes[-1]:,}" if len(sizes) > 1 else "") if sizes else ""
    rate = "lr x" if plan.relative else "lr up to"
    return f"Plan of {name}: {rate} {peak:.4g}{batch}, {plan.shape.total_units:,} {plan.unit}"


def _range(first: float, last: float, decimals: int = 0) -> str:
    return f"{first:,.{decimals}f} - {last:,.{decimals}f}"


def _batch(row: PlanRow) -> str:
    size, micro, accumulation = row.batch
    total = "" if size is None else f"{size:,} = "
    return f"{total}{'?' if micro is None else f'{micro:,}'} x {accumulation} x {row.world_size}"


def _batches(row: PlanRow) -> str:
    last = row.batch_last
    grows = last is not None and last.size is not None and last.size != row.batch.size
    return _batch(row) + (f" -> {last.size:,}" if last is not None and grows else "")


def _lr(pick: Callable[..., float]) -> Callable[[PlanRow], str]:
    def cell(row: PlanRow) -> str:
        return f"{pick(row.lr_first):.4g} -> {pick(row.lr_last):.4g}"

    return cell


COLUMNS: list[Column] = [
    Column(lambda plan: "phase", lambda row: ", ".join(row.phases) or "whole run", right=False),
    Column(lambda plan: "epochs", lambda row: None if row.epochs is None else _range(*row.epochs, decimals=2)),
    Column(lambda plan: "updates", lambda row: f"{row.updates[1] - row.updates[0]:,}"),
    Column(lambda plan: plan.unit, lambda row: f"{row.units[1] - row.units[0]:,}"),
    Column(lambda plan: "batch = micro x acc. x devices", _batches),
    Column(
        lambda plan: "noise scale",
        lambda row: None if row.noise_scale is None else "{:.4g} -> {:.4g}".format(*row.noise_scale),
    ),
    Column(lambda plan: "time", lambda row: None if row.seconds is None else duration(row.seconds)),
]
"""What each row shows, before the learning rates."""


def _lr_columns(plan: Plan) -> list[Column]:
    name = "factor on lr" if plan.relative else "lr"
    if len(plan.groups) == 1:
        return [Column(lambda plan: f"{name}, first -> last update", _lr(max))]
    if len(plan.groups) <= 3:
        return [_group_column(f"{name} {group}", index) for index, group in enumerate(plan.groups)]
    return [
        Column(lambda plan: f"highest {name} of {len(plan.groups)} groups", _lr(max)),
        Column(lambda plan: f"lowest {name}", _lr(min)),
    ]


def _group_column(heading: str, index: int) -> Column:
    return Column(lambda plan: heading, _lr(lambda values: values[index]))


def run_summary(plan: Plan) -> dict[str, str]:
    """What holds for the whole run, by heading: its size, and what each callback adds to it."""
    shape, last = plan.shape, plan.rows[-1]
    summary = {}
    if shape.epoch.total_units is not None:
        summary[f"{plan.unit} per epoch"] = f"{shape.epoch.total_units:,}" + _short_batch(plan)
    epochs = "" if last.epochs is None else f" in {last.epochs[1]:.4g} epochs"
    ends = f", ended by max_steps={shape.max_updates}" if shape.total_updates == shape.max_updates else ""
    summary["run"] = f"{shape.total_updates:,} updates, {shape.total_units:,} {plan.unit}{epochs}{ends}"
    batches = dict.fromkeys(_batch(row) for row in plan.rows)
    summary["batch"] = "; ".join(batches) + "  (micro-batch x accumulation x devices)"
    return summary | plan.summary


def picture_lines(plan: Plan) -> list[str]:
    """What stands below the title of a picture: the summary, one line each, and the notes."""
    lines = [f"{heading}: {fact.splitlines()[0]}" for heading, fact in run_summary(plan).items()]
    return [*lines, *(f"note: {note}" for note in plan.notes)]


def _short_batch(plan: Plan) -> str:
    epoch = plan.shape.epoch
    assert epoch.micro_batches is not None
    last = epoch.units(epoch.micro_batches - 1) // epoch.world_size
    if epoch.micro_batch_size is None or last == epoch.micro_batch_size:
        return ""
    return f" (the last micro-batch of an epoch has {last} of {epoch.micro_batch_size})"


def plan_table(plan: Plan, title: str) -> RenderableType:
    """The plan as something that rich prints."""
    columns = [column for column in COLUMNS if any(column.cell(row) is not None for row in plan.rows)]
    columns += _lr_columns(plan)
    table = Table(header_style="bold", padding=(0, 1))
    for column in columns:
        table.add_column(column.heading(plan), justify="right" if column.right else "left")
    for row in plan.rows:
        table.add_row(*(Text(column.cell(row) or "") for column in columns))
    notes = [Text(f"note: {note}", style="yellow") for note in plan.notes]
    further = [part for addendum in plan.addenda for part in _addendum(addendum)]
    return Group(Text(title, style="bold"), Text(), summary_block(run_summary(plan)), Text(), table, *notes, *further)


def _addendum(addendum: Addendum) -> list[RenderableType]:
    table = Table(header_style="bold", padding=(0, 1))
    for index, heading in enumerate(addendum.headings):
        table.add_column(heading, justify="right" if index else "left")
    for row in addendum.rows:
        table.add_row(*(Text(cell) for cell in row))
    return [Text(), Text(addendum.title, style="bold"), table, *(Text(line) for line in addendum.below)]
