"""What our callbacks cost: step time with them attached against the bare Trainer, in turn, in one process.

    python -m benchmarks.overhead

Pairs of short runs of the small CNN (batch 128 of 28 x 28 images), in random order within a pair, each timed from
inside the loop after a few warm-up steps, so that setting up the Trainer does not count. Printed: the median of the
pairs' ratios with a 95 % interval (bootstrap over pairs), of wall time and of this process's CPU time (which other work
on the machine disturbs less). One thread, so that the threads of torch do not wait for each other on a busy machine.
One JSON in ``benchmarks/results/overhead/``.
"""

from __future__ import annotations

import argparse
import json
import logging
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from examples import Classifier, SmallCNN
from lightning_lr import Cosine, LearningRateScaling, LearningRateSchedule

RESULTS = Path(__file__).parent / "results" / "overhead"
WARMUP_STEPS = 5

ARMS: dict[str, Callable[[], list[Callback]]] = {
    "bare again (noise floor)": lambda: [],
    "LearningRateSchedule": lambda: [LearningRateSchedule(Cosine(warmup=0.1))],
    "LearningRateScaling": lambda: [LearningRateScaling(64, warmup_epochs=0.5)],
    "both": lambda: [LearningRateSchedule(Cosine(warmup=0.1)), LearningRateScaling(64, warmup_epochs=0.5)],
}


class Timer(Callback):
    """Wall and CPU time from the end of the warm-up steps to the end of the last step."""

    def __init__(self) -> None:
        self.seconds_per_step = (0.0, 0.0)
        self._start = (0.0, 0.0)

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == WARMUP_STEPS:
            self._start = (time.perf_counter(), time.process_time())

    def on_train_end(self, trainer: Trainer, *args: Any) -> None:
        steps = trainer.global_step - WARMUP_STEPS
        wall, cpu = time.perf_counter() - self._start[0], time.process_time() - self._start[1]
        self.seconds_per_step = (wall / steps, cpu / steps)


def seconds_per_step(callbacks: list[Callback], loader: DataLoader[Any], folder: str | None) -> tuple[float, float]:
    """One short run; returns its mean wall and CPU time per step."""
    timer = Timer()
    torch.manual_seed(0)
    trainer = Trainer(
        max_epochs=1,
        accelerator="auto",
        devices=1,
        callbacks=[*callbacks, timer],
        logger=False if folder is None else CSVLogger(folder),
        default_root_dir=folder or "runs/overhead",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Classifier(SmallCNN(), lr=0.01), loader)
    return timer.seconds_per_step


def median_with_interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """Median and its 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return statistics.median(ratios), medians[50], medians[-51]


def measure(pairs: int, steps: int, with_logger: bool) -> dict[str, Any]:
    """Ratios of every arm against the bare Trainer."""
    data = TensorDataset(torch.randn(128 * steps, 1, 28, 28), torch.randint(10, (128 * steps,)))
    loader = DataLoader(data, batch_size=128)
    order = random.Random(1)
    rows: dict[str, Any] = {}
    with TemporaryDirectory() as folder:
        where = folder if with_logger else None
        seconds_per_step([], loader, where)
        for name, make in ARMS.items():
            ratios: list[tuple[float, float]] = []
            bare_times = []
            for _ in range(pairs):
                runs = {"bare": lambda: [], "ours": make}
                times = {}
                for arm in order.sample(sorted(runs), 2):
                    times[arm] = seconds_per_step(runs[arm](), loader, where)
                ratios.append((times["ours"][0] / times["bare"][0], times["ours"][1] / times["bare"][1]))
                bare_times.append(times["bare"][0])
            rows[name] = {"bare_ms": 1e3 * statistics.median(bare_times)}
            for clock, of_clock in zip(("wall", "cpu"), zip(*ratios, strict=True), strict=True):
                rows[name][clock] = dict(zip(("median", "low", "high"), median_with_interval(of_clock), strict=True))
            logged = "CSVLogger" if with_logger else "no logger"
            intervals = "  ".join(
                f"{clock} {r['median']:.4f} [{r['low']:.4f}, {r['high']:.4f}]"
                for clock, r in rows[name].items()
                if clock != "bare_ms"
            )
            print(f"{name:26s} {logged:9s} {intervals}  (bare {rows[name]['bare_ms']:.2f} ms/step)", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=31, help="pairs of runs per row")
    parser.add_argument("--steps", type=int, default=45, help="updates per run")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    result = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "pairs": arguments.pairs,
        "steps": arguments.steps,
        "no logger": measure(arguments.pairs, arguments.steps, with_logger=False),
        "CSVLogger": measure(arguments.pairs, arguments.steps, with_logger=True),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    name = str(result["device"]).replace(" ", "_")
    (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
