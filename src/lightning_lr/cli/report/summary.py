"""The summary of a run in words: how far it is, what each metric came to, what was decided.

Which metrics are losses and which are better when they are higher is read off their names, here and nowhere else. The
terminal and the picture both take their sentences from here.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from lightning_lr.cli.printable import cell, printable
from lightning_lr.cli.report.record import ACCUMULATION, BATCH, MICRO, NOISE_SCALES, RunRecord
from lightning_lr.cli.report.series import MetricSeries
from lightning_lr.cli.terminal import summary_block

RESULT = "result"
"""The heading of what the run came to."""

RUN_METRICS = re.compile(
    r"^(lightning_lr/.*|epoch|lr[/-].*|(progress|batch|noise|warmup|search|hypergradient|trust_ratio|compression)/.*)$"
)
"""What is logged about the run itself, not about the model."""

SCORE = re.compile(
    r"(^|[^a-z])(m?acc(uracy)?|top_?\d+|f1|f_?score|au(c|roc|prc)|precision|recall|m?iou|m?ap|dice|r2|bleu|rouge)"
    r"($|[^a-z])",
    re.IGNORECASE,
)
"""Metrics that are better when they are higher."""


def is_loss(name: str) -> bool:
    """Whether a metric is a loss: better when it is lower."""
    return "loss" in name.lower() and not RUN_METRICS.match(name)


def is_score(name: str) -> bool:
    """Whether a metric is better when it is higher."""
    return not is_loss(name) and SCORE.search(name) is not None and not RUN_METRICS.match(name)


def stage_of(name: str) -> str:
    """``train``, ``val`` or ``test``, by the name of a metric."""
    lowered = name.lower()
    return "val" if "val" in lowered else "test" if "test" in lowered else "train"


def model_metrics(record: RunRecord) -> list[str]:
    """The metrics of the model; of a metric logged both per step and per epoch, those of the steps."""
    names = sorted(name for name in record.metrics if not RUN_METRICS.match(name))
    return [n for n in names if not (n.endswith("_epoch") and f"{n.removesuffix('_epoch')}_step" in names)]


def best(name: str, series: MetricSeries) -> tuple[int, float] | None:
    """Step and value of the best finite value; ``None`` where better is not known, or there is none."""
    if not series.finite or not (is_loss(name) or is_score(name)):
        return None
    return (min if is_loss(name) else max)(series.finite, key=lambda point: point[1])


def varies(series: MetricSeries) -> bool:
    """Whether a metric has more than one value, so that one can be the best."""
    return len(set(series.finite.values)) > 1


def main_metrics(records: Sequence[RunRecord]) -> list[str]:
    """The metrics that show how good a model is, most telling first: validation before training, scores before losses.

    Args:
        records: of one run or of several.
    """
    every = sorted({name for record in records for name in model_metrics(record)})
    kinds = [(stage, is_kind) for stage in ("val", "train") for is_kind in (is_score, is_loss)]
    return [name for stage, is_kind in kinds for name in every if is_kind(name) and stage_of(name) == stage]


def result_of(record: RunRecord) -> str:
    """What the run came to, by its most telling metric; empty where there is none."""
    for name in main_metrics([record]):
        series = record.metrics[name]
        top = best(name, series)
        if top is not None:
            at, last = top[0] + 1, series.finite[-1][1]
            if not varies(series):
                return f"{name} {last:.4g}" + (" throughout" if len(series.finite) > 1 else "")
            so_far = "the best of the run" if progress_of(record).finished else "best so far"
            return f"{name} {last:.4g}, " + (f"best {top[1]:.4g} at update {at:,}" if top[1] != last else so_far)
    return ""


def picture_title(name: str, record: RunRecord) -> str:
    """Which run, and what it came to."""
    return f"{name}: {result_of(record) or 'no loss or score yet'}"


@dataclass(frozen=True)
class Progress:
    """How far a run is.

    Args:
        sentence: in words.
        finished: whether everything planned was done; ``None`` where no plan was written down.
    """

    sentence: str
    finished: bool | None


def progress_of(record: RunRecord) -> Progress:
    """How far a run is, as its metrics and journals show it."""
    seen, planned, samples = record.seen_updates, record.planned_updates, record.planned_samples
    total = record.positions([seen - 1])[0] if record.counts_samples and seen else 0.0
    of_samples = f", {total:,.0f} of {samples:,} samples" if samples else f", {total:,.0f} samples" if total else ""
    epochs = record.metrics.get("epoch")
    of_epochs = f", in epoch {epochs.values[-1] + 1:g}" if epochs else ""
    if planned is None:
        return Progress(f"{seen:,} updates{of_samples}{of_epochs} (planned length unknown)", None)
    share = f"{seen:,} of {planned:,} updates{of_samples}{of_epochs}"
    if seen >= planned:
        return Progress(f"{share}: finished", True)
    return Progress(f"{share} ({seen / planned:.0%}): still going, or stopped", False)


def run_lines(record: RunRecord) -> dict[str, str]:
    """What holds for the whole run, by heading."""
    result = result_of(record)
    lines = {RESULT: result} if result else {}
    lines["run"] = progress_of(record).sentence
    if record.timing is not None:
        trained = record.timing.known[-1][0] - record.timing.since
        since = f" since update {record.timing.since:,}" if record.timing.since else ""
        total = record.timing.total
        lines["time"] = (
            f"{rounded_duration(total)} of training{since}, {total / trained:.3g} s per update with validation"
        )
    resumed = sorted({r["update"] for rs in record.journals.values() for r in rs if r["event"] == "start"} - {0})
    if resumed:
        lines["resumed"] = "at update " + ", ".join(map(str, resumed))
        if len(record.parts) > 1:
            lines["resumed"] += f"; in {', '.join(part.name for part in record.parts)}, which are one run"
    if BATCH in record.metrics and not batch_varies(record):
        size = max(record.metrics[BATCH].values)
        made = [record.metrics[name].values[-1] for name in (MICRO, ACCUMULATION) if name in record.metrics]
        world = f" = {made[0]:g} x {made[1]:g} x {size / (made[0] * made[1]):g}" if len(made) == 2 else ""
        lines["batch"] = f"{size:g}{world}" + ("  (micro-batch x accumulation x devices)" if world else "")
    if constant_learning_rate(record):
        lines["learning rate"] = constant_learning_rate(record)
    return lines | record.summary


def drawn_lines(record: RunRecord) -> dict[str, str]:
    """What the picture draws and no other line has in words, by heading: where it began, what it came to."""
    lines = {}
    if BATCH in record.metrics and batch_varies(record):
        sizes = full_batches(record)
        lines["batch"] = f"{sizes[0]:g}, highest {max(sizes):g}, last {sizes[-1]:g} (of the logged updates)"
    for name in (*NOISE_SCALES, "compression/bits"):
        values = [value for _, value in record.metrics[name].finite] if name in record.metrics else []
        if values:
            heading = NOISE_SCALES.get(name, name.replace("/", " "))
            lines[heading] = f"{values[0]:.4g}, highest {max(values):.4g}, last {values[-1]:.4g}"
    for what in ("factor", "cosine"):
        ends = [
            series.finite[-1][1]
            for name, series in record.metrics.items()
            if name.startswith(f"hypergradient/{what}/") and series.finite
        ]
        if ends:
            last = " to ".join(dict.fromkeys(f"{end:.2g}" for end in (min(ends), max(ends))))
            lines[f"hypergradient {what}"] = f"{last} at the last logged update"
    return lines


def constant_learning_rate(record: RunRecord) -> str:
    """The learning rate of each group where none ever changed; else empty."""
    rates = {group: set(record.metrics[name].finite.values) for group, name in record.learning_rates.items()}
    if not rates or any(len(values) != 1 for values in rates.values()):
        return ""
    values_seen = sorted({f"{value:.4g}" for values in rates.values() for value in values}, key=float)
    return " to ".join(dict.fromkeys((values_seen[0], values_seen[-1]))) + " throughout"


def batch_varies(record: RunRecord) -> bool:
    """Whether the batch was changed; the short last one of an epoch does not count."""
    return any(len(set(record.metrics[n].values)) > 1 for n in (MICRO, ACCUMULATION) if n in record.metrics)


def full_batches(record: RunRecord) -> list[float]:
    """The batch of each logged update as if it were full: what is left over at an epoch's end is no change of it."""
    values = record.metrics[BATCH].values
    parts = [record.metrics[name].values for name in (MICRO, ACCUMULATION) if name in record.metrics]
    if [len(part) for part in parts] != [len(values), len(values)]:
        return values
    made = [micro * accumulation for micro, accumulation in zip(*parts, strict=True)]
    devices = max(round(value / product) for value, product in zip(values, made, strict=True))
    return [product * devices for product in made]


def warnings_of(record: RunRecord) -> list[str]:
    """What the reader should not overlook."""
    found = []
    for name in model_metrics(record):
        series = record.metrics[name]
        bad = [step for step, value in zip(series.steps, series.values, strict=True) if value - value != 0.0]
        if bad:
            found.append(
                f"{name} is not finite at {len(bad)} of its {len(series.steps)} logged steps, "
                f"first at update {bad[0] + 1:,}; drawn as a gap"
            )
    if not record.metrics:
        found.append("no metric is logged yet (see trainer.log_every_n_steps)")
    return found


def decisions(record: RunRecord) -> Iterator[str]:
    """What the callbacks decided during the run, in its order; events that come in numbers are counted."""
    events = [(r, name) for name, records in record.journals.items() for r in records if r["event"] != "start"]
    kinds = {(name, r["event"]) for r, name in events}
    count = {kind: sum((name, r["event"]) == kind for r, name in events) for kind in kinds}
    for r, name in sorted(events, key=lambda event: event[0]["update"]):
        if count[name, r["event"]] <= 12:
            yield printable(f"update {r['update']:,}: {_decision(name, r)}")
    for (name, event), number in sorted(count.items()):
        if number > 12:
            yield printable(f"{number:,} x {name} {event}")


def _decision(name: str, record: dict[str, Any]) -> str:
    """One decision in words; of an event that has no words here, its name and its facts."""
    if record["event"] == "searched" and {"rate", "low", "high", "price"} <= record.keys():
        rate, low, high, price = (_fact(record[key]) for key in ("rate", "low", "high", "price"))
        doubt = str(record.get("warning") or "").partition(": ")[2]
        return f"found the learning rate {rate} (interval {low} to {high}) in {price} updates" + (
            f". {doubt}" if doubt else ""
        )
    facts = ", ".join(f"{key}={_fact(value)}" for key, value in record.items() if _is_told(key, value))
    return f"{name} {record['event']}" + (f" ({facts})" if facts else "")


NOT_TOLD = ("update", "event", "total", "total_updates", "per_epoch", "at_epochs")
"""Of an event: where it stands already, and what the run as a whole became, which the lines above tell."""


def _is_told(key: str, value: object) -> bool:
    return key not in NOT_TOLD and value not in ("", None, False) and not isinstance(value, dict | list)


def _fact(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# ---------------------------------------------------------------------- in the terminal
def report_summary(record: RunRecord, title: str) -> RenderableType:
    """The report as something that rich prints."""
    age = rounded_duration(time.time() - record.modified)
    facts = {
        **run_lines(record),
        **drawn_lines(record),
        "metrics": f"{' and '.join(record.sources) or 'none'}, last written {age} ago",
    }
    parts: list[RenderableType] = [cell(title, style="bold"), Text(), summary_block(facts)]
    names = model_metrics(record)
    if names:
        parts += [Text(), _metrics_table(record, names)]
    if record.learning_rates:
        parts += [Text(), _learning_rate_table(record)]
    parts += [cell(line) for line in decisions(record)]
    parts += [cell(f"note: {warning}", style="yellow") for warning in warnings_of(record)]
    return Group(*parts)


def _metrics_table(record: RunRecord, names: list[str]) -> Table:
    table = Table(header_style="bold", padding=(0, 1))
    table.add_column("metric")
    for heading in ("last", "best", "best at update"):
        table.add_column(heading, justify="right")
    for name in names:
        series = record.metrics[name]
        top = best(name, series)
        cells = (f"{top[1]:.4g}", f"{top[0] + 1:,}") if top and varies(series) else ("", "")
        table.add_row(cell(name), f"{series.values[-1]:.4g}", *cells)
    return table


def _learning_rate_table(record: RunRecord) -> Table:
    table = Table(header_style="bold", padding=(0, 1))
    table.add_column("learning rate")
    for heading in ("first logged", "highest", "last"):
        table.add_column(heading, justify="right")
    groups = record.learning_rates
    for group, name in groups.items():
        values = [value for _, value in record.metrics[name].finite]
        if values:
            table.add_row(cell(group), *(f"{value:.4g}" for value in (values[0], max(values), values[-1])))
    return table


def rounded_duration(seconds: float) -> str:
    """Seconds in one unit, as an age is read; :func:`~lightning_lr.cli.plan.time.duration` has two."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(0.0, seconds):.0f} s"
