"""The layers of a run as a table in plain text: what a user looks at to see that the right thing is decayed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning_lr.layers.groups import LAYER
from lightning_lr.layers.no_decay import full_shape

HEADINGS = ("layer", "parameters", "no decay", "factor", "lr")


def layer_table(
    groups: Sequence[dict[str, Any]], factor: Callable[[dict[str, Any]], float], rates: Sequence[Any] | None = None
) -> str:
    """One line per layer: its name, parameters (those without weight decay apart), factor, and learning rate.

    Args:
        groups: an optimizer's groups.
        factor: the factor on the learning rate of a group.
        rates: the learning rate of each group that was tuned, which its schedule rises to; by default ``group["lr"]``.
    """
    rows: dict[str, list[dict[str, Any]]] = {}
    if rates is not None:
        groups = [{**group, "lr": rate} for group, rate in zip(groups, rates, strict=True)]
    for group in groups:
        rows.setdefault(str(group.get(LAYER, group.get("name", "all"))), []).append(group)
    lines = [HEADINGS]
    for name, parts in rows.items():
        exempt = [group for group in parts if not group.get("weight_decay")]
        factors = dict.fromkeys(f"{factor(group):.4g}" for group in parts)
        shown = dict.fromkeys(f"{float(group['lr']) * factor(group):.4g}" for group in parts if "lr" in group)
        lines.append((name, f"{_size(parts):,}", f"{_size(exempt):,}", ", ".join(factors), ", ".join(shown)))
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADINGS))]
    return "\n".join(
        "  ".join([line[0].ljust(widths[0]), *(line[i].rjust(widths[i]) for i in range(1, len(HEADINGS)))]).rstrip()
        for line in lines
    )


def _size(groups: Sequence[dict[str, Any]]) -> int:
    total = 0
    for group in groups:
        for parameter in group["params"]:
            size = 1
            for length in full_shape(parameter):
                size *= length
            total += size
    return total
