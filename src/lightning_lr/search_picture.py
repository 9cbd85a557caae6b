"""A search in one picture: scores by heat, the Gaussian process's band over the last, the choice.

On the ground floor, since ``report`` draws it from a journal and imports neither the search nor torch for it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw(facts: dict[str, Any]) -> Figure:
    """A figure of its own, without touching pyplot's state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6.4, 4.0), layout="constrained")
    draw_on(figure.add_subplot(), facts)
    return figure


def draw_on(axes: Axes, facts: dict[str, Any]) -> None:
    """Draw the ``facts`` of a search, as a journal holds them, on axes that exist."""
    for index, heat in enumerate(facts["heats"]):
        pairs = sorted(
            (trial["rate"], sum(trial["scores"]) / len(trial["scores"])) for trial in heat if trial["scores"]
        )
        length = max((len(trial["losses"]) for trial in heat), default=0)
        last = index == len(facts["heats"]) - 1
        axes.plot(
            [rate for rate, _ in pairs],
            [score for _, score in pairs],
            marker="o",
            linestyle="none" if last and facts["band"] else ":",
            color=f"C{index}",
            label=f"{length} updates",
        )
        for trial in heat:
            if not trial["scores"]:
                axes.axvline(trial["rate"], color=f"C{index}", linestyle=":", alpha=0.4)
    if facts["band"]:
        band, color = facts["band"], f"C{len(facts['heats']) - 1}"
        axes.plot(band["lr"], band["mean"], color=color)
        low = [m - s for m, s in zip(band["mean"], band["sd"], strict=True)]
        high = [m + s for m, s in zip(band["mean"], band["sd"], strict=True)]
        axes.fill_between(band["lr"], low, high, color=color, alpha=0.2, linewidth=0)
    _draw_held(axes, facts.get("held", []))
    axes.axvspan(facts["low"], facts["high"], color="0.5", alpha=0.12, linewidth=0)
    axes.axvline(facts["rate"], color="black", linewidth=1, label=f"chosen: {facts['rate']:.3g}")
    axes.set_xscale("log")
    axes.set_xlabel("learning rate (dotted lines: diverged)")
    axes.set_ylabel("loss after a short schedule")
    finite = [s for heat in facts["heats"] for t in heat for s in t["scores"] if math.isfinite(s)]
    if finite:
        axes.margins(y=0.1)
    axes.legend(fontsize="small")


def _draw_held(axes: Axes, held: list[dict[str, Any]]) -> None:
    """The guard's rates: stable ones at the loss that they ended with, a line where one exploded."""
    stable = [(trial["rate"], sum(trial["scores"]) / len(trial["scores"])) for trial in held if trial["scores"]]
    if stable:
        rates, ends = zip(*stable, strict=True)
        axes.plot(rates, ends, linestyle="none", marker="^", color="0.3", label="held without a decay: stable")
    exploded = [trial["rate"] for trial in held if not trial["scores"]]
    for index, rate in enumerate(exploded):
        label = "held without a decay: exploded" if index == 0 else None
        axes.axvline(rate, color="0.3", linestyle="--", linewidth=1, label=label)
