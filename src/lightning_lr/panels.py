"""What a callback asks ``report`` to draw of the metrics that it logs: plain data, which the run's journal keeps.

A report reads a run's directory alone, so a callback defined outside the package is drawn without its class.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True)
class MetricPanel:
    """One panel of a report: logged metrics over the run. A run without the metrics has no such panel.

    Args:
        label: the vertical axis, with its unit.
        metrics: names as logged. One that ends with ``/`` stands for all that begin with it, a line each: the groups.
        units: text behind the last value of each metric, in the order of ``metrics``.
        reference: where a horizontal line is drawn, such as 1.0 for a factor.
        log_scale: whether the vertical axis is logarithmic.
        limits: lowest and highest value of the axis; ``None`` for what the values need.
        height: in inches.

    Example::

        MetricPanel("temperature", ("softmax/temperature",), reference=1.0)
    """

    label: str
    metrics: tuple[str, ...]
    units: tuple[str, ...] = ()
    reference: float | None = None
    log_scale: bool = False
    limits: tuple[float | None, float | None] | None = None
    height: float = 1.6

    @classmethod
    def from_journal(cls, saved: Any) -> MetricPanel | None:
        """The panel that was written down as JSON, without what another version knew in addition; ``None`` for a line
        that was damaged on disk."""
        if not isinstance(saved, Mapping) or not isinstance(saved.get("metrics"), list):
            return None
        known = {field.name for field in fields(cls)}
        given: dict[str, Any] = {}
        for name, value in saved.items():
            if name in known:
                given[name] = tuple(value) if isinstance(value, list) else value
        return cls(**given) if "label" in given else None
