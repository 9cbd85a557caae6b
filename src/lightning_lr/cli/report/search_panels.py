"""The panel of a learning-rate search: the scores of the last race, the Gaussian process's band, the choice."""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes

from lightning_lr.cli.report.record import RunRecord
from lightning_lr.search_picture import draw_on

JOURNAL = "learning_rate_search"


def _searches(record: RunRecord) -> list[dict[str, Any]]:
    return [line for line in record.journals.get(JOURNAL, []) if line.get("event") == "searched" and line.get("heats")]


def has_search(record: RunRecord) -> bool:
    """Whether rates have been tried."""
    return bool(_searches(record))


def draw_search(ax: Axes, record: RunRecord) -> None:
    """Score of every rate by heat, the band over the last heat, interval and choice."""
    draw_on(ax, _searches(record)[-1])
