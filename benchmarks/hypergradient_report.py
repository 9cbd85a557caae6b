"""Tables and pictures of ``hypergradient``: updates to a target and final accuracy by initial learning rate, and how
much is lost against the best fixed rate. Nothing is trained here."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks._common import Interval, markdown_table, t_interval, write_keeping_findings

Record = dict[str, Any]
STYLES = {
    "fixed": ("#4d4d4d", "o-"),
    "additive": ("#e08e1b", "s:"),
    "additive, wide": ("#e08e1b", "s-"),
    "normalized": ("#0b6bb3", "^:"),
    "normalized, wide": ("#0b6bb3", "^-"),
    "multiplicative, wide": ("#2e8b57", "v-"),
}


TARGETS = (0.9, 0.8, 0.7, 0.65, 0.6, 0.55)
"""Validation losses, for the ratios by target."""


@dataclass(frozen=True)
class Cell:
    """One initial learning rate with one method, over its seeds.

    Args:
        updates: to the target; those of a run that does not reach it are its length.
        missed: runs that do not reach the target.
        accuracy: test accuracy at the end, as a share.
        final_lr: mean learning rate of the last update.
    """

    updates: Interval
    missed: int
    accuracy: Interval
    final_lr: float

    @property
    def text(self) -> str:
        """Updates to the target, with ``>`` where a run did not reach it."""
        mark = ">" if self.missed else ""
        return f"{mark}{self.updates.text(digits=0)}"


class Evidence:
    """The records of one protocol.

    Args:
        records: of the runs that were made.
        target_update: update at which the best fixed rate of plain SGD sets a model's target.
        learning_rates: the grid of initial rates.
    """

    def __init__(self, records: Sequence[Record], target_update: int, learning_rates: Sequence[float]) -> None:
        self.learning_rates = tuple(learning_rates)
        self.runs: dict[tuple[str, str, str, float], list[Record]] = {}
        for record in _whole_seeds(records):
            config = record["config"]
            key = (config["model"], config["optimizer"], config["arm"], config["lr"])
            self.runs.setdefault(key, []).append(record)
        made = {key[0] for key in self.runs}
        self.models = [model for model in ("logistic", "mlp", "cnn") if model in made]
        self.targets = {model: self._target(model, target_update) for model in self.models}

    def optimizers(self, model: str) -> list[str]:
        """Those that a model was trained with."""
        made = {key[1] for key in self.runs if key[0] == model}
        return [optimizer for optimizer in ("sgd", "momentum", "adam") if optimizer in made]

    def arms(self, model: str, optimizer: str) -> list[str]:
        """The methods, in the order in which they are shown."""
        made = {key[2] for key in self.runs if key[:2] == (model, optimizer)}
        return [arm for arm in STYLES if arm in made]

    def cell(self, model: str, optimizer: str, arm: str, lr: float) -> Cell | None:
        """One cell of the tables, where there is any run."""
        runs = self.runs.get((model, optimizer, arm, lr))
        if not runs:
            return None
        reached = [reaches(run, self.targets[model]) for run in runs]
        counts = [float(run["config"]["updates"] if n is None else n) for n, run in zip(reached, runs, strict=True)]
        return Cell(
            t_interval(counts),
            sum(n is None for n in reached),
            t_interval([run["test_accuracy"] for run in runs]),
            fmean(run["final_lr"] for run in runs),
        )

    def at_target(self, loss: float) -> Evidence:
        """The same runs, held against another loss."""
        other = copy.copy(self)
        other.targets = dict.fromkeys(self.models, loss)
        return other

    def best_fixed(self, model: str, optimizer: str) -> tuple[float, Cell]:
        """The fixed rate that needs the fewest updates, also of those above the grid."""
        rates = [key[3] for key in self.runs if key[:3] == (model, optimizer, "fixed")]
        cells = {lr: cell for lr in rates if (cell := self.cell(model, optimizer, "fixed", lr)) is not None}
        best = min(cells, key=lambda lr: cells[lr].updates.mean)
        return best, cells[best]

    def worst(self, model: str, optimizer: str, arm: str) -> tuple[float, float, bool]:
        """The initial rate of the grid from which a method needs most, in multiples of the best fixed rate's updates,
        and whether that is only a lower bound."""
        best = self.best_fixed(model, optimizer)[1].updates.mean
        cells = {lr: cell for lr in self.learning_rates if (cell := self.cell(model, optimizer, arm, lr)) is not None}
        lr = max(cells, key=lambda rate: (cells[rate].updates.mean, cells[rate].missed))
        return lr, cells[lr].updates.mean / best, cells[lr].missed > 0

    def _target(self, model: str, target_update: int) -> float:
        losses = []
        for lr in self.learning_rates:
            runs = self.runs.get((model, "sgd", "fixed", lr), [])
            at = [next((loss for update, loss in run["curve"] if update >= target_update), math.inf) for run in runs]
            losses.append(fmean(at) if at else math.inf)
        return min(losses)


def _whole_seeds(records: Sequence[Record]) -> list[Record]:
    """The records of the seeds of a model and optimizer of which every run was made that was made of any seed."""
    made: dict[tuple[str, str], dict[int, list[Record]]] = {}
    for record in records:
        config = record["config"]
        made.setdefault((config["model"], config["optimizer"]), {}).setdefault(config["seed"], []).append(record)
    kept = []
    for by_seed in made.values():
        most = max(len(runs) for runs in by_seed.values())
        kept += [run for runs in by_seed.values() if len(runs) == most and _compares(runs) for run in runs]
    return kept


def _compares(runs: Sequence[Record]) -> bool:
    """Whether all methods have the same initial rates (fixed ones may have more)."""
    rates: dict[str, set[float]] = {}
    for run in runs:
        rates.setdefault(run["config"]["arm"], set()).add(run["config"]["lr"])
    fixed = rates.pop("fixed", set())
    return bool(rates) and all(of_arm <= fixed for of_arm in rates.values()) and len(set(map(len, rates.values()))) == 1


def reaches(record: Record, target: float) -> int | None:
    """The first evaluated update with a loss at or below the target."""
    return next((update for update, loss in record["curve"] if loss <= target), None)


# ---------------------------------------------------------------------- tables
def write(out: Path, records: Sequence[Record], target_update: int, learning_rates: Sequence[float]) -> None:
    """Write ``<out>.md``, ``<out>.png`` and ``<out>_accuracy.png``."""
    if not any(record["config"]["arm"] == "fixed" for record in records):
        print("no run with a fixed learning rate yet: nothing to compare with")
        return
    evidence = Evidence(records, target_update, learning_rates)
    text = "\n".join(_sections(evidence, records))
    out.parent.mkdir(parents=True, exist_ok=True)
    write_keeping_findings(out.with_suffix(".md"), text)
    _draw(evidence, out.with_suffix(".png"), "updates")
    _draw(evidence, out.with_name(f"{out.name}_accuracy.png"), "accuracy")
    print(text)


def _sections(evidence: Evidence, records: Sequence[Record]) -> list[str]:
    environment = records[0]["environment"]
    minutes = sum(record["cpu_seconds"] for record in records) / 60
    text = [
        "# Hypergradient descent from six initial learning rates\n",
        f"`python -m benchmarks.hypergradient`: {len(records)} runs, {minutes:.0f} minutes of CPU time, "
        f"torch {environment['torch']}, {environment['device']}. Means over seeds with 95 % intervals (Student), where "
        "there are several (drawn from three on). `>`: a run did not reach the target in its length, which is counted "
        "instead.\n",
        "## How far from the best fixed rate\n",
        "The worst initial rate of 1e-6 .. 1e-1, in multiples of the updates that the best fixed rate needs (which is "
        "sought, for logistic regression with SGD, also at 0.3 and 1).\n",
        _worst_table(evidence),
    ]
    text.append("## The same by the loss that is asked for: SGD\n")
    text.append(_by_target(evidence))
    for model in evidence.models:
        text.append(f"## {model}: updates to a validation loss of {evidence.targets[model]:.3f}\n")
        text.append(_table(evidence, model, lambda cell: cell.text))
        text.append(f"## {model}: test accuracy at the end, %\n")
        text.append(_table(evidence, model, lambda cell: cell.accuracy.text(100, 1)))
    return text


def _by_target(evidence: Evidence) -> str:
    """How the worst ratio depends on the target, which is one evaluation's luck where the best fixed rate is noisy."""
    body = []
    for model in evidence.models:
        arms = [arm for arm in STYLES if arm in evidence.arms(model, "sgd")]
        for loss in TARGETS:
            other = evidence.at_target(loss)
            best_lr, best = other.best_fixed(model, "sgd")
            row = [model, f"{loss:g}", f"{best_lr:g}: {best.text}"]
            for arm in STYLES:
                lr, ratio, bound = other.worst(model, "sgd", arm) if arm in arms else (math.nan, math.nan, False)
                row.append("" if math.isnan(lr) else f"{'>' if bound else ''}{ratio:.1f} (from {lr:g})")
            body.append(row)
    return markdown_table(["model", "loss", "best fixed rate: updates", *STYLES], body)


def _worst_table(evidence: Evidence) -> str:
    arms = [
        arm
        for arm in STYLES
        if any(arm in evidence.arms(m, o) for m in evidence.models for o in evidence.optimizers(m))
    ]
    body = []
    for model in evidence.models:
        for optimizer in evidence.optimizers(model):
            best_lr, best = evidence.best_fixed(model, optimizer)
            row = [model, optimizer, f"{best_lr:g}: {best.text}"]
            for arm in arms:
                if arm not in evidence.arms(model, optimizer):
                    row.append("")
                    continue
                lr, ratio, bound = evidence.worst(model, optimizer, arm)
                row.append(f"{'>' if bound else ''}{ratio:.1f} (from {lr:g})")
            body.append(row)
    return markdown_table(["model", "optimizer", "best fixed rate: updates", *arms], body)


def _table(evidence: Evidence, model: str, show: Any) -> str:
    arms = [arm for arm in STYLES if any(arm in evidence.arms(model, o) for o in evidence.optimizers(model))]
    body = []
    for optimizer in evidence.optimizers(model):
        for lr in evidence.learning_rates:
            cells = [evidence.cell(model, optimizer, arm, lr) for arm in arms]
            body.append([optimizer, f"{lr:g}", *("" if cell is None else show(cell) for cell in cells)])
    return markdown_table(["optimizer", "initial lr", *arms], body)


# ---------------------------------------------------------------------- pictures
def _draw(evidence: Evidence, path: Path, what: str) -> None:
    rows = len(evidence.models)
    figure = Figure(figsize=(11, 1.0 + 2.6 * rows), layout="constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for row, model in zip(axes, evidence.models, strict=True):
        for ax, optimizer in zip(row, evidence.optimizers(model), strict=False):
            _panel(ax, evidence, model, optimizer, what)
        for ax in row[len(evidence.optimizers(model)) :]:
            ax.set_visible(False)
        row[0].set_ylabel(f"updates to loss {evidence.targets[model]:.2f}" if what == "updates" else "test accuracy, %")
    shown = {label: line for ax in axes.flat for line, label in zip(*ax.get_legend_handles_labels(), strict=True)}
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown), frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def _panel(ax: Axes, evidence: Evidence, model: str, optimizer: str, what: str) -> None:
    for arm in evidence.arms(model, optimizer):
        color, style = STYLES[arm]
        cells = [(lr, cell) for lr in evidence.learning_rates if (cell := evidence.cell(model, optimizer, arm, lr))]
        values = [cell.updates if what == "updates" else cell.accuracy for _, cell in cells]
        scale = 1.0 if what == "updates" else 100.0
        ax.errorbar(
            [lr for lr, _ in cells],
            [value.mean * scale for value in values],
            yerr=[v.half_width * scale if v.count > 2 else 0.0 for v in values],
            fmt=style,
            color=color,
            markersize=4,
            linewidth=1.2,
            elinewidth=0.7,
            label=arm,
        )
        if what == "updates":  # hollow: some seed did not get there
            missed = [(lr, cell.updates.mean) for lr, cell in cells if cell.missed]
            ax.plot(
                [lr for lr, _ in missed],
                [n for _, n in missed],
                style[0],
                color=color,
                markerfacecolor="white",
                markersize=4,
                zorder=3,
            )
    ax.set_xscale("log")
    ax.set_xlabel("initial learning rate")
    if what == "updates":
        ax.set_yscale("log")
    ax.set_title(f"{model}, {optimizer}", fontsize=10)
    ax.grid(alpha=0.25)
    ax.spines[["top", "right"]].set_visible(False)
