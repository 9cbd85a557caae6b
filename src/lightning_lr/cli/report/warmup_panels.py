"""The panel of an adaptive warm-up: the loss against the log learning rate, how it was smoothed, and the switch.

Read from the journal of ``AdaptiveWarmup``: the losses of every update of the climb, the posterior of the last test,
the probability of each.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from lightning_lr.cli.figure import COLORS
from lightning_lr.cli.report.record import RunRecord

JOURNAL = "adaptive_warmup"
RAW, SMOOTH, CHOSEN, PROBABLE = "#5d636e", COLORS[0], COLORS[1], COLORS[3]


def _tests(record: RunRecord) -> list[dict[str, Any]]:
    return [r for r in record.journals.get(JOURNAL, []) if "picture" in r]


def warmup_rates(record: RunRecord) -> dict[int, float]:
    """The learning rate of every update that the warm-up's tests read, by the logger's step."""
    rates: dict[int, float] = {}
    for test in _tests(record):
        read = [float(value) for value in test["read"]["lr"]]
        first = int(test["update"]) - len(read) + 1
        rates |= {first + i: rate for i, rate in enumerate(read) if first + i >= 0}
    return rates


def has_warmup(record: RunRecord) -> bool:
    """Whether a warm-up has been tested."""
    return bool(_tests(record))


def draw_warmup(ax: Axes, record: RunRecord) -> None:
    """Raw loss, posterior mean and 95 % band over the learning rate; probability of a rise; switch and chosen lr."""
    tests = _tests(record)
    last = tests[-1]
    lr = [float(value) for test in tests for value in test["read"]["lr"]]
    loss = [float(value) for test in tests for value in test["read"]["loss"]]
    ax.set_xscale("log")
    ax.plot(lr, loss, ".", color=RAW, markersize=4, alpha=0.6, label="loss of each update", rasterized=True)
    posterior = last["picture"].get("posterior")
    if posterior is not None:
        at = posterior["lr"]
        ax.fill_between(
            at, posterior["low"], posterior["high"], color=SMOOTH, alpha=0.2, linewidth=0, label="95 % band"
        )
        ax.plot(at, posterior["mean"], color=SMOOTH, label="smoothed loss")
    _limit(ax, loss, posterior)
    _draw_probability(ax, tests)
    if last["action"] != "continue":
        ax.axvline(last["reached_lr"], color="#555555", linewidth=1.2, linestyle=":")
        ax.axvline(last["lr"], color=CHOSEN, linewidth=1.4)
        ax.plot(
            [], [], color="#555555", linewidth=1.2, linestyle=":", label=f"{last['event']} at {last['reached_lr']:.3g}"
        )
        ax.plot([], [], color=CHOSEN, linewidth=1.4, label=f"chosen {last['lr']:.3g}")
    ax.plot([], [], color=PROBABLE, linewidth=1.2, drawstyle="steps-post", label="probability of a rise (right)")
    ax.set_xlabel("learning rate of the warm-up")
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1.0), ncols=6, fontsize=8.5, borderaxespad=0.2, columnspacing=1.2)


def _draw_probability(ax: Axes, tests: list[dict[str, Any]]) -> None:
    right = ax.twinx()
    right.plot(
        [test["reached_lr"] for test in tests], [test["probability"] for test in tests],
        color=PROBABLE, linewidth=1.2, marker="o", markersize=2.5,
    )  # fmt: skip
    right.set_ylim(-0.02, 1.02)
    right.set_ylabel("probability", color=PROBABLE)
    right.grid(False)
    right.tick_params(colors=PROBABLE, labelsize=8)
    for spine in right.spines.values():
        spine.set_visible(False)


def _limit(ax: Axes, loss: list[float], posterior: dict[str, Any] | None) -> None:
    """Show the bulk of the losses and the band; a spike or a divergence may leave the panel at the top."""
    finite = [value for value in loss if math.isfinite(value)]
    if not finite:
        return
    low, high = np.quantile(finite, (0.002, 0.99))
    if posterior is not None:
        low, high = min(low, *posterior["low"]), max(high, *posterior["mean"])
    room = 0.08 * (high - low) or 0.1 * abs(high) or 1.0
    ax.set_ylim(low - room, high + room)
