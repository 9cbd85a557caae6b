"""A run that was stopped and went on, each time into another directory of its logger: read as the one run that it is.

Loggers give every start a directory of its own (``version_1`` after ``version_0``), and ``start`` lines of journals
record which one a run continues. Of the earlier part counts what came before the place where the later one began.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from lightning_lr.cli.report.places import journal_folder_of
from lightning_lr.cli.report.record import RunRecord, read_run
from lightning_lr.cli.report.series import MetricSeries
from lightning_lr.cli.report.timing import Timing
from lightning_lr.journal import CONTINUES


def read_whole_run(directory: Path) -> RunRecord:
    """Everything that a run has written so far, into this directory and into those that it continues.

    Args:
        directory: where the run wrote last, as :func:`~lightning_lr.cli.report.record.find_run` gives it.

    Raises:
        ConfigurationError: where only TensorBoard's files are there, and tensorboard is not.
    """
    parts, seen = [read_run(directory)], {directory.resolve()}
    while (before := _continues(parts[0])) is not None and before not in seen and before.is_dir():
        seen.add(before)
        parts.insert(0, read_run(before))
    whole = parts[0]
    for part in parts[1:]:
        whole = _joined(whole, part)
    return replace(whole, parts=tuple(part.directory for part in parts))


def began_at(record: RunRecord) -> int:
    """Updates that were made before the first line of a run's journals."""
    return min((r["update"] for rs in record.journals.values() for r in rs if r["event"] == "start"), default=0)


def _continues(record: RunRecord) -> Path | None:
    """The directory that the first start of a run points back to."""
    for records in record.journals.values():
        first: dict[str, Any] = next((r for r in records if r["event"] == "start"), {})
        if CONTINUES in first:
            return (journal_folder_of(record.directory).parent / str(first[CONTINUES])).resolve()
    return None


def _joined(earlier: RunRecord, later: RunRecord) -> RunRecord:
    began = began_at(later)
    names = [*earlier.metrics, *(name for name in later.metrics if name not in earlier.metrics)]
    journals = [*earlier.journals, *(name for name in later.journals if name not in earlier.journals)]
    return replace(
        later,
        metrics={n: s for n in names if (s := _series(earlier.metrics.get(n), later.metrics.get(n), began)).steps},
        journals={
            name: [
                *(r for r in earlier.journals.get(name, []) if r["update"] < began),
                *later.journals.get(name, []),
            ]
            for name in journals
        },
        sources=tuple(dict.fromkeys((*earlier.sources, *later.sources))),
        timing=_timing(earlier.timing, later.timing, began),
    )


def _series(earlier: MetricSeries | None, later: MetricSeries | None, began: int) -> MetricSeries:
    """A metric of both parts. Step ``began`` is the first of the later part in training, and of a validation after the
    last update of the earlier one, which is not made again: the earlier value counts where the later part has none."""
    by_step = {} if earlier is None else dict(zip(earlier.steps, earlier.values, strict=True))
    by_step = {step: value for step, value in by_step.items() if step <= began}
    by_step |= {} if later is None else dict(zip(later.steps, later.values, strict=True))
    return MetricSeries(sorted(by_step), [by_step[step] for step in sorted(by_step)])


def _timing(earlier: Timing | None, later: Timing | None, began: int) -> Timing | None:
    """Seconds go on from those at which the restored update was made; the pause and the lost work do not count."""
    if earlier is None or later is None:
        return later
    base = earlier.at([began])[0]
    before = [(at, seconds) for at, seconds in earlier.known if at <= began]
    after = [(at, base + seconds) for at, seconds in later.known if at > began]
    return Timing((*before, *after), earlier.since) if before or after else later
