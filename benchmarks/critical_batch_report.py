"""The table and the picture of `critical_batch`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks._common import markdown_table, paired_interval, t_interval, write_keeping_findings
from benchmarks.headline_tasks import TASKS

MARGINS = {"CNN": 0.005, "byte LM": 0.02}
"""What is called equal, fixed before the runs: accuracy, and bits per byte."""

HEADINGS = (
    "task", "arm", "updates", "fewer than fixed (%)", "with the branches (%)", "metric", "behind fixed, 90 %",
    "within the margin?", "seeds",
)  # fmt: skip


def by_arm(records: Sequence[dict[str, Any]], task: str) -> dict[str, dict[int, dict[str, Any]]]:
    """Records of a task by arm and seed, in the order of the arms."""
    found: dict[str, dict[int, dict[str, Any]]] = {}
    for record in records:
        if record["config"]["task"] == task:
            found.setdefault(record["config"]["arm"], {})[record["config"]["seed"]] = record
    return found


def behind(task: str, own: dict[int, dict[str, Any]], fixed: dict[int, dict[str, Any]]) -> Any:
    """How far an arm is behind "fixed", paired by seed, in the metric; above 0 is worse."""
    sign = -1.0 if TASKS[task].metric.higher else 1.0
    return paired_interval(
        {seed: sign * record["value"] for seed, record in own.items()},
        {seed: sign * record["value"] for seed, record in fixed.items()},
        0.9,
    )


def updates_saved(own: dict[int, dict[str, Any]], fixed: dict[int, dict[str, Any]], with_branches: bool) -> float:
    """Share of the updates of "fixed" that an arm does without, over common seeds."""
    seeds = sorted(own.keys() & fixed.keys())
    made = [own[s]["updates"] + (own[s]["branch_updates"] if with_branches else 0.0) for s in seeds]
    return 1.0 - fmean(made) / fmean(fixed[s]["updates"] for s in seeds)


def _verdict(difference: Any, margin: float) -> str:
    if difference.count < 2:
        return "-"
    high, low = difference.mean + difference.half_width, difference.mean - difference.half_width
    return "within" if high <= margin else ("worse" if low > margin else "not shown")


def _lines(records: Sequence[dict[str, Any]]) -> list[list[str]]:
    lines = []
    for task in MARGINS:
        metric, arms = TASKS[task].metric, by_arm(records, task)
        for arm, own in arms.items():
            difference = behind(task, own, arms["fixed"])
            reference = arm == "fixed"
            lines.append(
                [
                    task,
                    arm,
                    f"{fmean(record['updates'] for record in own.values()):.0f}",
                    "-" if reference else f"{100 * updates_saved(own, arms['fixed'], False):.0f}",
                    f"{100 * updates_saved(own, arms['fixed'], True):.0f}" if arm == "branches" else "-",
                    f"{t_interval([r['value'] for r in own.values()]).text(metric.scale, metric.digits)} {metric.unit}",
                    "reference" if reference else difference.text(metric.scale, metric.digits, sign=True),
                    "reference" if reference else _verdict(difference, MARGINS[task]),
                    str(len(own)),
                ]
            )
    return lines


def _measured(records: Sequence[dict[str, Any]]) -> str:
    rows = []
    for record in records:
        for each in record["measured"]:
            critical = each["multiple"] * each["present"]
            rows.append(
                [
                    record["config"]["task"],
                    str(record["config"]["seed"]),
                    f"{each['at']:.0%}",
                    str(each["present"]),
                    f"{'at least ' if not each['bounded'] else ''}{critical}" if critical else "not measured",
                ]
            )
    return markdown_table(("task", "seed", "at", "batch", "critical batch"), rows)


def write(target: Path, tuned: Sequence[dict[str, Any]], records: Sequence[dict[str, Any]]) -> None:
    """Write the table and the picture."""
    seeds = sorted({record["config"]["seed"] for record in records})
    text = f"""# The critical batch by branches: updates saved at an equal result

Made by `python -m benchmarks.critical_batch`. AdamW, square-root rule, warm-up of 5 %; every run of a task sees as many
samples. *fixed*: the first batch under a cosine; *fixed x k*: a batch k times as large from the start, the rate raised
by the rule; *curve*: `CurveRamp`; *noise scale*: `AdaptiveRamp()`; *branches*: `AdaptiveRamp(measure="branches")` under
the cosine of *fixed*. Ramps grow to 16 times the first batch at most. The rate is tuned for *fixed* with seed 0.

Behind fixed: above 0 is worse, paired by seed. The margin, fixed before the runs, is 0.5 points of accuracy and 0.02
bits: *within*, the whole interval is; *worse*, none of it is. Merrill et al. report 43 % fewer updates at a slightly
better loss. Seeds {", ".join(map(str, seeds))}; the rule of the branches was chosen with seeds 1 and 100.

![loss against updates](critical_batch.png)

{markdown_table(HEADINGS, _lines(records))}
## What the branches measured

{_measured(records)}
## The learning rate of fixed

{markdown_table(("task", "lr", "validation"), [_tuning(record) for record in tuned])}
{sum(r["cpu_seconds"] for r in [*tuned, *records]) / 60:.0f} minutes of CPU time on one thread. Made with:

{_environments([*tuned, *records])}"""
    write_keeping_findings(target.with_suffix(".md"), text)
    if records:
        draw(target.with_suffix(".png"), records)
    print(text)


def _tuning(record: dict[str, Any]) -> list[str]:
    metric = TASKS[record["config"]["task"]].metric
    value = f"{record['value'] * metric.scale:.{metric.digits}f} {metric.unit}"
    return [record["config"]["task"], f"{record['config']['lr']:g}", value]


def _environments(records: Sequence[dict[str, Any]]) -> str:
    lines = {", ".join(f"{name} {value}" for name, value in record["environment"].items()) for record in records}
    return "\n".join(f"- {line}" for line in sorted(lines)) + "\n"


def draw(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Result against updates made, one mark per arm with its range over seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(MARGINS), figsize=(9.0, 3.6), layout="constrained")
    marks = {"curve": "s", "noise scale": "^", "branches": "D"}
    for ax, task in zip(axes, MARGINS, strict=True):
        metric, arms = TASKS[task].metric, by_arm(records, task)
        fixed = [(fmean(r["updates"] for r in arms[a].values()), a) for a in arms if a.startswith("fixed")]
        line = [(x, metric.scale * fmean(r["value"] for r in arms[a].values())) for x, a in sorted(fixed)]
        ax.plot(*zip(*line, strict=True), "-", color="0.7", zorder=1)
        for arm, own in arms.items():
            values = [metric.scale * record["value"] for record in own.values()]
            x, y = fmean(record["updates"] for record in own.values()), fmean(values)
            is_fixed = arm.startswith("fixed")
            error = [[y - min(values)], [max(values) - y]]
            color = "0.45" if is_fixed else {"curve": "C0", "noise scale": "C1", "branches": "C3"}[arm]
            ax.errorbar(x, y, error, fmt=marks.get(arm, "o"), color=color, label=None if is_fixed else arm, capsize=2)
            if is_fixed:
                ax.annotate(arm, (x, y), xytext=(4, -11), textcoords="offset points", fontsize=7, color="0.35")
        ax.set_xscale("log")
        ticks = sorted(x for x, _ in fixed)
        ax.set_xticks(ticks, [f"{tick:.0f}" for tick in ticks], minor=False)
        ax.set_xticks([], minor=True)
        ax.set_title(task, fontsize=10)
        ax.set_xlabel("updates of the run")
        ax.set_ylabel(metric.heading)
        if not metric.higher:
            ax.invert_yaxis()
    axes[0].legend(fontsize=8, loc="lower right")
    figure.savefig(path, dpi=130)
    plt.close(figure)
