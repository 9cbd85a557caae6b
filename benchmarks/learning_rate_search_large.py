"""The tasks of `headline` as `learning_rate_search` trains them: 256 updates, or four times as many.

MiniLM is fine-tuned on every sentence that is not in the validation or test data, in one pass with batches of 25, and
not on the 384 of `headline`: with so few, the seeds differ by more than the ways to train.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from benchmarks import headline
from benchmarks.headline_arms import Arm
from benchmarks.headline_run import train
from benchmarks.headline_tasks import TASKS

SIZES: dict[str, dict[str, int]] = {"MiniLM": {"train_size": 6398, "val_size": 1066, "batch_size": 25, "epochs": 1}}
"""Where they are others than those of `headline`."""


def train_large(
    task: str, arm: Arm, lr: float, seed: int, data_dir: str | None, times: int = 1, looks: bool = True
) -> dict[str, Any]:
    """One run.

    Args:
        task: its name.
        arm: how it is trained.
        lr: the rate that the arm is given.
        seed: of weights and batches.
        data_dir: folder of Fashion-MNIST.
        times: how many times the data, and so the updates, there are.
        looks: whether the test data are looked at; else the validation data.
    """
    config = replace(headline.config_of(TASKS[task], "AdamW, tuned", lr, seed), **SIZES.get(task, {}))
    config = replace(config, train_size=config.train_size * times)
    return train(config, data_dir, arm, validates=not looks)


def points(task: str, record: dict[str, Any], which: str) -> float:
    """A metric in points, larger for better: accuracy in percent, bits negative; 0 where it was not looked at."""
    metric = TASKS[task].metric
    value = record[f"{which}_{metric.name}"]
    return 0.0 if value is None else float(metric.key(value) * metric.scale)
