"""One run of `headline`: a task trained in one way, watched at equal distances."""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from torch import nn
from torch.optim import Optimizer

from benchmarks._common import environment
from benchmarks.headline_arms import ARMS, TUNED, Arm
from benchmarks.headline_data import rows_of
from benchmarks.headline_tasks import TASKS, Counting, Metric
from benchmarks.linear_scaling import WatchLoss
from lightning_lr import AdaptiveWarmup

TUNING_SEED = 0


@dataclass(frozen=True)
class Config:
    """One run. The number of ``parameters`` tells results of another version of the network apart."""

    model: str
    arm: str
    lr: float
    seed: int
    epochs: int
    train_size: int
    val_size: int
    batch_size: int
    parameters: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        model, arm = (text.replace(", ", "-").replace(" + ", "-").replace(" ", "-") for text in (self.model, self.arm))
        size = f"{TASKS[self.model].sample}{self.train_size}"
        return f"{model}_{arm}_lr{self.lr:g}_{size}_epochs{self.epochs}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.model}, {self.arm}{f' {self.lr:g}' if self.arm in TUNED else ''}, seed {self.seed}"


@functools.cache
def parameters_of(model: str) -> int:
    """Numbers that a task's network learns."""
    return TASKS[model].parameters or sum(parameter.numel() for parameter in TASKS[model].network().parameters())


class Curve(Callback):
    """Samples, CPU seconds and the metric on the test data at equal distances; the clock stands still meanwhile.

    Args:
        data: with the test data.
        metric: what is measured.
        every: samples between two points.
        evaluates: whether the test data are looked at; a search has no business there, its values are 0.
    """

    def __init__(self, data: Any, metric: Metric, every: int, evaluates: bool) -> None:
        self.data, self.metric, self.every, self.evaluates = data, metric, every, evaluates
        self.points: list[tuple[int, float, float]] = []
        self._begin, self._first = time.process_time(), 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Counting)
        self._first = pl_module.samples  # those of the learning rate finder

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        assert isinstance(pl_module, Counting)
        if pl_module.samples - self._first >= (len(self.points) + 1) * self.every:
            self._note(trainer, pl_module)

    def _note(self, trainer: Trainer, module: Counting) -> None:
        spent = time.process_time() - self._begin
        held_out, value = self.data.test_set, 0.0
        if self.evaluates:
            value = evaluated(module, held_out, trainer.optimizers[0], self.data.train_set, self.metric)
        self.points.append((module.samples, round(spent, 3), value))
        self._begin = time.process_time() - spent


@torch.no_grad()
def evaluated(module: LightningModule, held_out: Any, optimizer: Optimizer, train_set: Any, metric: Metric) -> float:
    """The mean of the metric, at the weights that the optimizer means to be used; guessing where it is not finite."""
    averages = hasattr(optimizer, "eval") and hasattr(optimizer, "train")  # Schedule-Free
    if averages:
        optimizer.eval()
        if any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
            module.train()
            for first in range(0, min(50 * 128, len(train_set)), 128):
                module(rows_of(train_set, first, first + 128)[0])
    module.eval()
    total, count = 0.0, 0
    for first in range(0, len(held_out), 1000):
        inputs, labels = rows_of(held_out, first, first + 1000)
        each = metric.each(module(inputs), labels)
        total, count = total + float(each.sum()), count + each.numel()
    module.train()
    if averages:
        optimizer.train()
    return total / count if math.isfinite(total) else metric.guess


def train(
    config: Config,
    data_dir: str | None,
    arm: Arm | None = None,
    watch: Sequence[Callback] = (),
    validates: bool | None = None,
) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the value of guessing.

    Args:
        config: the run.
        data_dir: folder of Fashion-MNIST, if not in a usual place.
        arm: in the place of the one that ``config`` names.
        watch: further callbacks.
        validates: whether the validation data are looked at instead of the test data; None: in a search.
    """
    arm, task = arm or ARMS[config.arm], TASKS[config.model]
    metric = task.metric
    validates = config.seed == TUNING_SEED if validates is None else validates
    data: Any = task.data(config.batch_size, config.train_size, config.val_size, data_dir)
    seed_everything(config.seed, verbose=False)
    module = task.module(task.network(), lr=config.lr)
    module.make_optimizer = arm.optimizer
    every = config.epochs * config.train_size // task.points
    methods, losses = arm.callbacks(), WatchLoss()
    curve = Curve(data, metric, every, not validates)
    climbs = any(isinstance(method, AdaptiveWarmup) for method in methods)  # it acts on a divergence itself
    quiet: dict[str, Any] = {
        "accelerator": "cpu",
        "deterministic": True,
        "limit_val_batches": 0,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    diverged, found_lr = False, None
    with tempfile.TemporaryDirectory() as folder:
        quiet["default_root_dir"] = folder
        if arm.reading:
            finder = Tuner(Trainer(max_epochs=config.epochs, **quiet)).lr_find(module, data)
            found_lr = arm.reading(finder) if finder else None
            module.lr = found_lr or config.lr
        searched = module.samples
        callbacks = [*methods, curve, *watch, *([] if climbs else [losses])]
        trainer = Trainer(max_epochs=config.epochs, callbacks=callbacks, **quiet)
        try:
            trainer.fit(module, data)
        except RuntimeError as error:
            if "AdaptiveWarmup" not in str(error):
                raise
            diverged = True
    diverged = diverged or losses.diverged
    validated = metric.guess if validates else None
    if validates and not diverged:
        validated = evaluated(module, data.val_set, trainer.optimizers[0], data.train_set, metric)
    warmup = next((method.machine for method in methods if isinstance(method, AdaptiveWarmup)), None)
    return {
        "config": asdict(config),
        "curve": curve.points,
        f"val_{metric.name}": validated,
        f"test_{metric.name}": metric.guess if diverged else curve.points[-1][2],
        "diverged": diverged,
        "samples": module.samples,
        "finder_samples": searched,
        "found_lr": found_lr,
        "peak_lr": warmup.peak_lr if warmup else None,
        "switched_at": warmup.switched_at if warmup else None,
        "updates": trainer.global_step,
        "cpu_seconds": curve.points[-1][1] if curve.points else 0.0,
        "environment": environment(),
    }
