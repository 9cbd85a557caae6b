"""Whether growing the batch gives what decaying the learning rate gives, sample for sample, in fewer updates.

    python -m benchmarks.batch_size_ramp [--data-dir FOLDER] [--dry-run] [--full] [--report] [--jobs 2]

Fashion-MNIST, a ResNet of depth 8 with ghost batch norm, and the three schedules of Smith et al. at the same
milestones: the noise scale falls by 5 at each, by the learning rate ("decay"), by the batch once and then the learning
rate ("hybrid"), or by the batch up to a tenth of the training set and then the learning rate ("increase"). Runs of one
seed have the same initial weights and the same order of samples. The learning rate is tuned for "decay", on validation
images, and kept. With momentum there are further rows: two start with five times the batch, one with five times the
learning rate, one with momentum 0.98; and a sweep of the initial learning rate, with the batch in proportion to it and
with the batch as it is. Adam has the square-root rule: lr / sqrt(batch) falls by 5 at each milestone.

Equivalence has to be shown: the 90 % interval of the difference in test accuracy to "decay", paired by seed, has to be
inside +-0.5 points. One JSON per run in ``benchmarks/results/batch_size_ramp/``: a run whose file exists is not made
again, so the benchmark can be stopped and continued. A table and a picture are written beside that folder.

By default 12 000 images and 10 epochs, about 100 runs of 45 seconds of one core: momentum with 10 seeds, Nesterov and
Adam with 5, SGD with 3, the sweep with 1. ``--full`` is for a night: all images, and more seeds. Text is in
`benchmarks.batch_size_ramp_text`.

Smith, Kindermans, Ying & Le 2018, arXiv 1711.00489.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any, Literal

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from benchmarks import batch_size_ramp_report as report
from benchmarks._common import RESULTS, command_line, environment
from benchmarks._experiment import Experiment, facts
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import ResNet
from lightning_lr import BatchSizeRamp, GhostBatchNorm, StepRamp, scaled_batch_size
from lightning_lr.batch_size import LRRule

Mode = Literal["decay", "hybrid", "increase"]
MODES: tuple[Mode, ...] = ("decay", "hybrid", "increase")
MOMENTA = {"sgd": 0.0, "momentum": 0.9, "nesterov": 0.9, "adam": 0.9}
BATCH_SIZE, GHOST_BATCH_SIZE, MAX_MICRO_BATCH_SIZE = 128, 128, 640
FACTOR, HIGH_MOMENTUM = 5, 0.98
CHANCE, CURVE_POINTS = 0.1, 60
CPU_SECONDS_PER_IMAGE, CPU_SECONDS_AROUND = 350e-6, 3.0  # measured
FOLDER = RESULTS / "batch_size_ramp"


@dataclass(frozen=True)
class Trials:
    """What is tried with one optimizer.

    Args:
        learning_rates: the grid that is tried with "decay".
        tuning_seeds: of the runs that try the grid, the first of ``seeds``.
        seeds: of initialisation and sample order, for the three schedules.
    """

    learning_rates: tuple[float, ...]
    tuning_seeds: tuple[int, ...]
    seeds: tuple[int, ...]


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        name: of the files with the table and the picture.
        optimizers: what is tried with each.
        row_seeds: of the rows that start with more learning rate or momentum, the first of the first optimizer's.
        sweep: initial learning rates of further rows, with the first optimizer; the first goes with ``BATCH_SIZE``.
        sweep_seeds: likewise of the sweep.
        train_size: images; the batch grows to a tenth of them.
        val_size: other images, for the choice of the learning rate and for the curves.
        epochs: length of a run.
        milestones: epochs at which the noise scale falls.
    """

    name: str
    optimizers: dict[str, Trials]
    row_seeds: tuple[int, ...]
    sweep: tuple[float, ...]
    sweep_seeds: tuple[int, ...]
    train_size: int
    val_size: int
    epochs: int
    milestones: tuple[int, ...]

    @property
    def first_optimizer(self) -> str:
        """The optimizer of the rows with another start."""
        return next(iter(self.optimizers))


SWEEP = (0.1, 0.2, 0.4, 0.8, 1.6, 3.2)
DEFAULT = Protocol(
    name="batch_size_ramp",
    optimizers={
        "momentum": Trials((0.05, 0.1, 0.2, 0.4), (0, 1), tuple(range(10))),
        "nesterov": Trials((0.1, 0.2, 0.4), (0,), tuple(range(5))),
        "adam": Trials((1e-3, 2e-3, 4e-3), (0,), tuple(range(5))),
        "sgd": Trials((0.5, 1.0, 2.0), (0,), tuple(range(3))),
    },
    row_seeds=tuple(range(5)),
    sweep=SWEEP,
    sweep_seeds=(0,),
    train_size=12_000,
    val_size=5_000,
    epochs=10,
    milestones=(4, 7, 9),
)
FULL = Protocol(
    name="batch_size_ramp_full",
    optimizers={
        "momentum": Trials((0.05, 0.1, 0.2, 0.4), (0, 1), tuple(range(10))),
        "nesterov": Trials((0.05, 0.1, 0.2, 0.4), (0, 1), tuple(range(10))),
        "adam": Trials((5e-4, 1e-3, 2e-3, 4e-3), (0, 1), tuple(range(10))),
        "sgd": Trials((0.25, 0.5, 1.0, 2.0), (0, 1), tuple(range(10))),
    },
    row_seeds=tuple(range(5)),
    sweep=SWEEP,
    sweep_seeds=tuple(range(5)),
    train_size=55_000,
    val_size=5_000,
    epochs=10,
    milestones=(4, 7, 9),
)


@dataclass(frozen=True)
class Config:
    """One run; ``lr``, ``momentum`` and ``batch_size`` are those at its start. The number of ``parameters`` tells
    results of another version of the network apart."""

    optimizer: str
    mode: Mode
    lr: float
    momentum: float
    batch_size: int
    seed: int
    epochs: int
    milestones: tuple[int, ...]
    factor: int
    train_size: int
    val_size: int
    max_batch_size: int
    max_micro_batch_size: int
    ghost_batch_size: int
    parameters: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return (
            f"{self.optimizer}_{self.mode}_batch{self.batch_size}_lr{self.lr:g}_momentum{self.momentum:g}"
            f"_images{self.train_size}_epochs{self.epochs}_seed{self.seed}"
        )

    @property
    def label(self) -> str:
        """The run in words."""
        start = f"batch {self.batch_size}, lr {self.lr:g}, momentum {self.momentum:g}"
        return f"{self.optimizer}, {self.mode}, {start}, seed {self.seed}"

    @property
    def lr_rule(self) -> LRRule:
        """What keeps the path where the batch grows: lr / batch, for Adam lr / sqrt(batch)."""
        return "sqrt" if self.optimizer == "adam" else "linear"


# ---------------------------------------------------------------------- the grid
def tuning_configs(protocol: Protocol) -> list[Config]:
    """The runs of "decay" that choose the learning rate of each optimizer."""
    return [
        _config(protocol, optimizer, "decay", lr, seed)
        for optimizer, trials in protocol.optimizers.items()
        for seed in trials.tuning_seeds
        for lr in trials.learning_rates
    ]


def configs(protocol: Protocol, best_lr: dict[str, float]) -> list[Config]:
    """Every run at the tuned rates, once each; seed by seed, so that stopping early loses seeds and not rows."""
    every: list[Config] = []
    for seed in sorted({seed for trials in protocol.optimizers.values() for seed in trials.seeds}):
        for optimizer, lr in best_lr.items():
            if seed in protocol.optimizers[optimizer].seeds:
                every += [_config(protocol, optimizer, mode, lr, seed) for mode in MODES]
        if seed in protocol.row_seeds:
            every += _rows_with_another_start(protocol, best_lr[protocol.first_optimizer], seed)
    return list(dict.fromkeys(every))


def sweep_configs(protocol: Protocol) -> list[Config]:
    """Runs of "increase" over initial learning rates: with the batch in proportion, and with the batch as it is."""
    optimizer, momentum = protocol.first_optimizer, MOMENTA[protocol.first_optimizer]
    every = []
    for seed in protocol.sweep_seeds:
        for lr in protocol.sweep:
            in_proportion = scaled_batch_size(BATCH_SIZE, protocol.sweep[0], momentum, lr, momentum)
            every += [_config(protocol, optimizer, "increase", lr, seed, size) for size in (in_proportion, BATCH_SIZE)]
    return list(dict.fromkeys(every))


def best_learning_rates(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each optimizer the rate with the best mean validation accuracy after the last epoch."""
    means: dict[str, dict[float, list[float]]] = {}
    for record in records:
        by_lr = means.setdefault(record["config"]["optimizer"], {})
        by_lr.setdefault(record["config"]["lr"], []).append(report.last_val_accuracy(record))
    return {
        optimizer: max(by_lr, key=lambda lr, by_lr=by_lr: fmean(by_lr[lr]))  # type: ignore[misc]
        for optimizer, by_lr in means.items()
    }


def _rows_with_another_start(protocol: Protocol, lr: float, seed: int) -> list[Config]:
    """More learning rate, or more momentum, with the batch in proportion to lr / (1 - m)."""
    make = functools.partial(_config, protocol, protocol.first_optimizer, "increase", seed=seed)
    momentum = MOMENTA[protocol.first_optimizer]
    by_lr = scaled_batch_size(BATCH_SIZE, lr, momentum, FACTOR * lr, momentum)
    by_momentum = scaled_batch_size(BATCH_SIZE, lr, momentum, lr, HIGH_MOMENTUM)
    return [
        make(FACTOR * lr, batch_size=by_lr),
        make(lr, batch_size=by_momentum, momentum=HIGH_MOMENTUM),
    ]


def _config(
    protocol: Protocol,
    optimizer: str,
    mode: Mode,
    lr: float,
    seed: int,
    batch_size: int = BATCH_SIZE,
    momentum: float | None = None,
) -> Config:
    return Config(
        optimizer=optimizer,
        mode=mode,
        lr=lr,
        momentum=MOMENTA[optimizer] if momentum is None else momentum,
        batch_size=batch_size,
        seed=seed,
        epochs=protocol.epochs,
        milestones=protocol.milestones,
        factor=FACTOR,
        train_size=protocol.train_size,
        val_size=protocol.val_size,
        max_batch_size=max(protocol.train_size // 10, batch_size),
        max_micro_batch_size=MAX_MICRO_BATCH_SIZE,
        ghost_batch_size=GHOST_BATCH_SIZE,
        parameters=_parameters(),
    )


@functools.cache
def _parameters() -> int:
    return sum(parameter.numel() for parameter in ResNet(depth=8).parameters())


# ---------------------------------------------------------------------- one run
class AnyOptimizer(Classifier):
    """The example's classifier with the four optimizers of the paper, all with the same L2 coefficient."""

    def __init__(self, network: torch.nn.Module, optimizer: str, lr: float, momentum: float) -> None:
        super().__init__(network, lr, momentum)
        self.optimizer = optimizer

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            betas = (self.momentum, 0.999)
            return torch.optim.Adam(self.parameters(), self.lr, betas, weight_decay=self.weight_decay)
        return torch.optim.SGD(
            self.parameters(),
            self.lr,
            self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.optimizer == "nesterov",
        )


class Watch(Callback):
    """Keeps the training loss by samples, validation accuracy and learning rate by epoch; stops a run whose loss is no
    longer finite.

    Args:
        samples: of the whole run.
        points: stretches of the run, equal in samples; the curve has the mean loss of each.
    """

    def __init__(self, samples: int, points: int) -> None:
        self.diverged = False
        self.samples_seen = 0
        self.epochs: list[dict[str, float]] = []
        self._stretch = samples / points
        self._sums = [[0.0, 0.0, 0.0] for _ in range(points)]  # loss x samples, samples, updates so far

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        size = len(batch[1])
        loss = outputs["loss"].item() * int(trainer.accumulate_grad_batches)  # Lightning has divided it
        if not math.isfinite(loss):
            self.diverged = trainer.should_stop = True
            return
        # a batch counts for the stretch that has its middle
        sums = self._sums[min(int((self.samples_seen + size / 2) / self._stretch), len(self._sums) - 1)]
        self.samples_seen += size
        sums[0] += loss * size
        sums[1] += size
        sums[2] = trainer.global_step

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epochs.append(
            {
                "samples": self.samples_seen,
                "updates": trainer.global_step,
                "val_accuracy": trainer.callback_metrics["val_acc"].item(),
                "next_lr": trainer.optimizers[0].param_groups[0]["lr"],  # the writer has moved on already
            }
        )

    @property
    def curve(self) -> dict[str, list[float]]:
        """Mean training loss of each stretch, at its middle in samples and at the updates that its last batch had."""
        points = [(index, *sums) for index, sums in enumerate(self._sums) if sums[1]]
        return {
            "samples": [round((index + 0.5) * self._stretch) for index, *_ in points],
            "updates": [updates for *_, updates in points],
            "loss": [round(total / samples, 5) for _, total, samples, _ in points],
        }


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seed_everything(config.seed, verbose=False)
    module = AnyOptimizer(ResNet(depth=8), config.optimizer, config.lr, config.momentum)
    data = FashionMNISTDataModule(config.batch_size, data_dir, train_size=config.train_size, val_size=config.val_size)
    watch = Watch(config.epochs * config.train_size, CURVE_POINTS)
    schedule = StepRamp(config.milestones, config.factor, config.mode)
    ramp = BatchSizeRamp(schedule, config.max_batch_size, config.max_micro_batch_size, config.lr_rule)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_checkpointing": False}
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=config.epochs,
            callbacks=[ramp, GhostBatchNorm(config.ghost_batch_size), watch],
            deterministic=True,
            num_sanity_val_steps=0,
            enable_model_summary=False,
            default_root_dir=folder,
            **quiet,
        )
        trainer.fit(module, data)
    fit_seconds, fit_cpu_seconds = time.perf_counter() - begin, time.process_time() - cpu_begin
    accuracy = CHANCE
    if not watch.diverged:
        data.batch_size = 1000
        evaluator = Trainer(accelerator="cpu", deterministic=True, **quiet)
        accuracy = evaluator.test(module, data, verbose=False)[0]["test_acc"]
    return {
        "config": facts(config),
        "test_accuracy": accuracy,
        "updates": trainer.global_step,
        "diverged": watch.diverged,
        "seconds": round(fit_seconds, 2),
        "cpu_seconds": round(fit_cpu_seconds, 2),
        "train_curve": watch.curve,
        "epochs": watch.epochs,
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the command
def seconds(config: Config) -> float:
    """CPU time of a run."""
    return CPU_SECONDS_PER_IMAGE * config.epochs * config.train_size + CPU_SECONDS_AROUND


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "all images, and more seeds: a night", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    experiment = Experiment[Config].from_options(options, train, seconds)
    tuning, swept = tuning_configs(protocol), sweep_configs(protocol)
    if options.dry_run:
        second = {optimizer: trials.learning_rates[1] for optimizer, trials in protocol.optimizers.items()}
        best_lr = second if experiment.missing(tuning) else best_learning_rates(experiment.records(tuning))
        experiment.show([*tuning, *configs(protocol, best_lr), *swept])
        return
    tuned = experiment.make(tuning, 'tuning of "decay"')
    best_lr = best_learning_rates(tuned)
    print("\n".join(f"{optimizer}: best lr is {lr:g}" for optimizer, lr in best_lr.items()), flush=True)
    every = configs(protocol, best_lr)
    compared = experiment.make(every, "schedules")
    sweep = experiment.make(swept, "sweep of the learning rate")
    left_out = [facts(config) for config in experiment.missing([*every, *swept])]
    report.write(options.results.parent / protocol.name, tuned, compared, sweep, left_out)


if __name__ == "__main__":
    main()
