"""What ``plan`` and ``report`` cost before and besides what Lightning's import costs: CPU seconds and memory.

    python -m benchmarks.command_line [--rounds 5] [--rows 200000]

Each in a process of its own, in turn: ``import lightning``, ``import lightning_lr``, ``lightning-lr plan`` of a
configuration of ``configs/``, ``lightning-lr report`` with a picture of a run of so many logged updates in ten columns.
CPU time of the process (another's work disturbs it less), and its largest resident memory. One JSON file in
``benchmarks/results/command_line.json``.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._common import RESULTS, environment

ROOT = Path(__file__).parent.parent
CONFIG = "configs/digits.yaml"


def write_run(folder: Path, rows: int) -> Path:
    """What a run of ``rows`` logged updates leaves with a ``CSVLogger`` and a schedule."""
    journals = folder / "lightning_lr"
    journals.mkdir(parents=True)
    names = ["batch/accumulation", "batch/micro", "batch/size", "epoch", "lr/group_0", "progress/samples",
             "progress/updates", "step", "train/loss", "val/loss"]  # fmt: skip
    with (folder / "metrics.csv").open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(names)
        for update in range(rows):
            share = update / rows
            rate, loss = 5e-4 * (1 + math.cos(math.pi * share)), math.exp(-share) + 0.1 * math.sin(update)
            lines.writerow([1, 128, 128, update // 1000, rate, 128 * (update + 1), update + 1, update, loss, ""])
            if update % 1000 == 999:
                lines.writerow([*[""] * 3, update // 1000, *[""] * 3, update, "", math.exp(-share)])
    start = {
        "update": 0, "event": "start", "callback": "LearningRateSchedule", "counts": "samples", "samples_seen": 0,
        "scheduled_lr": {"group_0": 1e-3}, "panels": [], "facts": {"schedule": "Cosine()"},
        "phases": [["Cosine", 0.0, 1.0]], "total": 128 * rows, "total_updates": rows, "per_epoch": 128_000,
    }  # fmt: skip
    (journals / "schedule.jsonl").write_text(json.dumps(start) + "\n", encoding="utf-8")
    return folder


SMALL = """
import json, os, subprocess, sys
process = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
_, status, used = os.wait4(process.pid, 0)
print(json.dumps([os.waitstatus_to_exitcode(status), used.ru_utime + used.ru_stime, used.ru_maxrss / 1024]))
"""
"""Starts a command: its largest memory would be at least that of a large process that starts it."""


def cost(words: Sequence[str]) -> tuple[float, float]:
    """CPU seconds and largest MB of a process.

    Raises:
        RuntimeError: where it fails.
    """
    given = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "src"), str(ROOT)]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-I", "-S", "-c", SMALL, sys.executable, *words]
    said = subprocess.run(command, cwd=ROOT, env=given, capture_output=True, text=True, check=True).stdout
    code, seconds, megabytes = json.loads(said)
    if code:
        raise RuntimeError(f"{' '.join(words)} ended with {code}")
    return seconds, megabytes


def measure(rounds: int, rows: int) -> dict[str, Any]:
    """Medians over rounds, and those of each round's ratio to ``import lightning``."""
    with TemporaryDirectory() as folder:
        run, picture = write_run(Path(folder) / "run", rows), str(Path(folder) / "report.png")
        commands = {
            "import lightning": ["-c", "import lightning"],
            "import lightning_lr": ["-c", "import lightning_lr"],
            "plan": ["-m", "lightning_lr_command", "plan", "--config", CONFIG],
            "report": ["-m", "lightning_lr_command", "report", str(run), "--out", picture],
        }
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
        for _ in range(rounds):
            for name, words in commands.items():
                found[name].append(cost(words))
    base = [seconds for seconds, _ in found["import lightning"]]
    return {
        name: {
            "cpu_s": round(statistics.median(seconds for seconds, _ in costs), 2),
            "of import lightning": round(
                statistics.median(seconds / b for (seconds, _), b in zip(costs, base, strict=True)), 3
            ),
            "mb": round(max(mb for _, mb in costs)),
        }
        for name, costs in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=200_000)
    arguments = parser.parse_args()
    record = {
        "environment": environment(),
        "config": vars(arguments),
        "load": os.getloadavg()[0],
        "found": measure(arguments.rounds, arguments.rows),
    }
    path = RESULTS / "command_line.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(record["found"], indent=1))


if __name__ == "__main__":
    main()
