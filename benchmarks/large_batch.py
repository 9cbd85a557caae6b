"""What large-batch optimizers gain at large batches, each with its learning rate tuned at each batch size.

    python -m benchmarks.large_batch [--data-dir FOLDER] [--dry-run] [--report] [--full] [--jobs 2]

Fashion-MNIST, the same number of samples for every batch size, a cosine after a gradual warm-up over the first fifth.
The default trains a perceptron with batch normalisation on images of 14 x 14 pixels, ``--full`` the small CNN. Compared
are SGD with Nesterov momentum 0.9, LARS, LAMB, AdamW and AdamP. Learning rates come from one grid for all, 1 and 3
times powers of ten. ``--full`` tries all of it (1e-4 to 100) with every seed; the default starts in the middle of the
optimizer's usual range and walks along the grid, one seed, until both neighbours of the best rate are worse; at the
next smaller batch size from where it ended. The best rate on validation images is then run with every seed and weight
decay on all tensors, at some batch sizes also without decay of biases and normalisation (He et al. 2019, "no bias
decay"). Beside the tuned SGD stands SGD with the rate of the smallest batch scaled linearly and a gradual warm-up
(Goyal et al. 2017), untuned.

One JSON per run in ``benchmarks/results/large_batch/``: a run whose file exists is not made again, so the benchmark can
be stopped and continued. A table and a picture are written beside that folder and printed; with ``--report``, at once,
from the runs that exist. The default (about 160 runs) takes about 10 minutes of CPU time on one thread.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, seed_everything
from torch import nn

from benchmarks import large_batch_report as report
from benchmarks._common import RESULTS, clock, command_line, environment
from benchmarks._experiment import Experiment, facts
from benchmarks._training import quiet_trainer
from benchmarks.linear_scaling import CHANCE, WatchLoss, accuracies
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN
from lightning_lr import Cosine, LearningRateScaling, LearningRateSchedule
from lightning_lr.optim import LAMB, LARS

FOLDER = RESULTS / "large_batch"
WARMUP = 0.2
CPU_SECONDS_PER_RUN = 4.0  # of the default
GRID = tuple(float(f"{digit}e{power}") for power in range(-4, 3) for digit in (1, 3))[:-1]  # 1e-4, 3e-4, ... 100
SCALED = "SGD, linear scaling"
OPTIMIZERS: dict[str, Callable[[Any, float], torch.optim.Optimizer]] = {
    "SGD": lambda groups, lr: torch.optim.SGD(groups, lr, momentum=0.9, nesterov=True, weight_decay=5e-4),
    "LARS": lambda groups, lr: LARS(groups, lr, momentum=0.9, weight_decay=5e-4),
    "LAMB": lambda groups, lr: LAMB(groups, lr, weight_decay=0.01),
    "AdamW": lambda groups, lr: torch.optim.AdamW(groups, lr, weight_decay=0.01),
    "AdamP": lambda groups, lr: _adamp()(groups, lr, weight_decay=0.01),
}
START = {"SGD": 0.3, "LARS": 30.0, "LAMB": 0.1, "AdamW": 0.01, "AdamP": 0.01}
"""Where the walk along the grid begins at the largest batch; at others, where it ended at the next larger one."""


def _adamp() -> Any:
    from pytorch_optimizer import AdamP

    return AdamP


def perceptron() -> nn.Module:
    """Two hidden layers of 64 with batch normalisation, on 14 x 14 pixels."""
    layers: list[nn.Module] = [nn.AvgPool2d(2), nn.Flatten()]
    for inputs in (14 * 14, 64):
        layers += [nn.Linear(inputs, 64, bias=False), nn.BatchNorm1d(64), nn.ReLU(inplace=True)]
    return nn.Sequential(*layers, nn.Linear(64, 10))


NETWORKS: dict[str, Callable[[], nn.Module]] = {"perceptron": perceptron, "CNN": lambda: SmallCNN(8)}


@dataclass(frozen=True)
class Protocol:
    """What is compared; every training size is a multiple of every batch size, so that no update has a smaller batch.

    Args:
        name: of the files with the table and the picture.
        batch_sizes: samples per update.
        whole_grid: every rate of the grid is tried, with every seed; else the walk, with the first seed.
        train_size: images; validation takes ``val_size`` others.
        val_size: images.
        epochs: length of a run.
        network: a key of ``NETWORKS``.
        seeds: of initialisation and sample order.
        without_bias_decay: batch sizes that are also run without decay of biases and normalisation.
    """

    name: str
    batch_sizes: tuple[int, ...]
    whole_grid: bool
    train_size: int
    val_size: int
    epochs: int
    network: str
    seeds: tuple[int, ...]
    without_bias_decay: tuple[int, ...]


DEFAULT = Protocol(
    "large_batch", (256, 1024, 4096, 16384), False, 49_152, 10_000, 5, "perceptron", (0, 1, 2), (4096, 256)
)
FULL = Protocol(
    "large_batch_full",
    (256, 1024, 4096, 16384),
    True,
    49_152,
    10_000,
    30,
    "CNN",
    (0, 1, 2, 3, 4),
    (256, 1024, 4096, 16384),
)


@dataclass(frozen=True)
class Config:
    """One run. ``lr`` is the peak's, but for ``SCALED`` that of the smallest batch, ``reference``."""

    optimizer: str
    batch_size: int
    lr: float
    bias_decay: bool
    seed: int
    epochs: int
    train_size: int
    val_size: int
    reference: int
    network: str

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return (
            f"{self.network}_{self.optimizer.replace(', ', '-').replace(' ', '-')}_batch{self.batch_size}_lr{self.lr:g}"
            f"{'' if self.bias_decay else '_no-bias-decay'}_images{self.train_size}_epochs{self.epochs}_seed{self.seed}"
        )

    @property
    def label(self) -> str:
        """The run in words."""
        decay = "" if self.bias_decay else ", no bias decay"
        return f"{self.optimizer}, batch {self.batch_size}, lr {self.lr:g}{decay}, seed {self.seed}"


# ---------------------------------------------------------------------- one run
class _Trained(Classifier):
    """The example's module with another optimizer."""

    def __init__(self, network: nn.Module, config: Config) -> None:
        super().__init__(network)
        self.config = config

    def configure_optimizers(self) -> torch.optim.Optimizer:
        decayed = [p for p in self.parameters() if p.ndim > 1 or self.config.bias_decay]
        others = [p for p in self.parameters() if p.ndim <= 1 and not self.config.bias_decay]
        groups: list[dict[str, Any]] = [{"params": decayed}]
        if others:
            groups.append({"params": others, "weight_decay": 0.0})
        return OPTIMIZERS["SGD" if self.config.optimizer == SCALED else self.config.optimizer](groups, self.config.lr)


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seed_everything(config.seed, verbose=False)
    module = _Trained(NETWORKS[config.network](), config)
    data = FashionMNISTDataModule(config.batch_size, data_dir, train_size=config.train_size, val_size=config.val_size)
    watch = WatchLoss()
    curve = Cosine() if config.optimizer == SCALED else Cosine(warmup=WARMUP)
    callbacks: list[Callback] = [LearningRateSchedule(curve), watch]
    if config.optimizer == SCALED:
        callbacks.append(LearningRateScaling(config.reference, "linear", WARMUP * config.epochs))
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(folder, callbacks, max_epochs=config.epochs, limit_val_batches=0)
        trainer.fit(module, data)
        val_accuracy, test_accuracy = [CHANCE, CHANCE] if watch.diverged else accuracies(module, data)
    return {
        "config": facts(config),
        "val_accuracy": val_accuracy,
        "test_accuracy": test_accuracy,
        "final_train_loss": None if watch.diverged else fmean(watch.last_epoch),
        "diverged": watch.diverged,
        "updates": trainer.global_step,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the grid
class Bench:
    """The runs of a protocol, those that exist and those that are to be made.

    Args:
        protocol: what is compared.
        experiment: makes and loads them.
    """

    def __init__(self, protocol: Protocol, experiment: Experiment[Config]) -> None:
        self.protocol, self.experiment = protocol, experiment
        self.tuning: list[dict[str, Any]] = []
        """Every run that the search for a learning rate has looked at."""

    def config(self, optimizer: str, batch_size: int, lr: float, seed: int, bias_decay: bool = True) -> Config:
        """One run of this protocol."""
        p = self.protocol
        sizes = p.epochs, p.train_size, p.val_size, p.batch_sizes[0]
        return Config(optimizer, batch_size, lr, bias_decay, seed, *sizes, p.network)

    def results(self, configs: Sequence[Config]) -> list[dict[str, Any]]:
        """Records of these runs, made now where they are missing."""
        return self.experiment.make(configs, "runs")

    def best_lr(self, optimizer: str, batch_size: int, start: float) -> float:
        """The rate of the grid with the best validation accuracy."""
        seeds = self.protocol.seeds if self.protocol.whole_grid else self.protocol.seeds[:1]

        def score(index: int) -> float:
            runs = self.results([self.config(optimizer, batch_size, GRID[index], seed) for seed in seeds])
            self.tuning += runs
            return fmean(run["val_accuracy"] for run in runs)

        if self.protocol.whole_grid:
            return GRID[max(range(len(GRID)), key=score)]
        return GRID[walk(score, GRID.index(start), len(GRID))]

    def all(self) -> list[dict[str, Any]]:
        """Every run that the table shows: tuning, then every seed at the best rate, with and without bias decay."""
        p = self.protocol
        best: dict[tuple[str, int], float] = {}
        start = dict(START)
        for batch_size in reversed(p.batch_sizes):  # the question is about large ones, and their runs are short
            for optimizer in OPTIMIZERS:
                start[optimizer] = best[optimizer, batch_size] = self.best_lr(optimizer, batch_size, start[optimizer])
        base = best["SGD", p.batch_sizes[0]]
        scaled = [self.config(SCALED, batch_size, base, seed) for seed in p.seeds for batch_size in p.batch_sizes[1:]]
        tuned = [self.config(*cell, lr, seed) for seed in p.seeds for cell, lr in best.items()]
        without = [
            self.config(*cell, lr, seed, bias_decay=False)
            for batch_size in p.without_bias_decay
            for seed in p.seeds
            for cell, lr in best.items()
            if cell[1] == batch_size
        ]
        return self.results([*tuned, *scaled, *without])

    def existing(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]], list[str]]:
        """What the table can show of a benchmark that is not finished: records at the best rate so far, all of tuning,
        and the cells whose best rate still has a neighbour that was not tried."""
        p, tuning, shown, open_cells = self.protocol, list[dict[str, Any]](), list[dict[str, Any]](), list[str]()
        for size in p.batch_sizes:
            for optimizer in OPTIMIZERS:
                tried = {lr: self.results([self.config(optimizer, size, lr, p.seeds[0])]) for lr in GRID}
                scores = {index: tried[lr][0]["val_accuracy"] for index, lr in enumerate(GRID) if tried[lr]}
                if not scores:
                    continue
                best = max(scores, key=scores.__getitem__)
                if not {max(best - 1, 0), min(best + 1, len(GRID) - 1)} <= scores.keys():
                    open_cells.append(f"{optimizer} at batch {size}")
                tuning += [run for runs in tried.values() for run in runs]
                every = [(seed, decay) for decay in (True, False) for seed in p.seeds]
                shown += self.results([self.config(optimizer, size, GRID[best], *cell) for cell in every])
        base = next((run["config"]["lr"] for run in shown if run["config"]["optimizer"] == "SGD"), 0.0)
        scaled = [self.config(SCALED, size, base, seed) for size in p.batch_sizes[1:] for seed in p.seeds]
        return shown + self.results(scaled), tuning, open_cells


def walk(score: Callable[[int], float], start: int, length: int) -> int:
    """The index with the best score, reached from ``start`` by steps to the better neighbour until both are worse."""
    seen: dict[int, float] = {}

    def known(index: int) -> float:
        if index not in seen:
            seen[index] = score(index)
        return seen[index]

    best = start
    while True:
        neighbours = [index for index in (best - 1, best, best + 1) if 0 <= index < length]
        better = max(neighbours, key=known)
        if known(better) <= known(best):
            return best
        best = better


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "the whole grid with 5 seeds, 30 epochs, 49152 images: days", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    if options.dry_run:
        _show_plan(protocol)
        return
    bench = Bench(protocol, Experiment.from_options(options, train, lambda config: CPU_SECONDS_PER_RUN))
    found = bench.existing() if options.report else (bench.all(), bench.tuning, [])
    report.write(options.results.parent / protocol.name, *found)


def _show_plan(protocol: Protocol) -> None:
    cells = len(OPTIMIZERS) * len(protocol.batch_sizes)
    tuning = cells * (len(GRID) * len(protocol.seeds) if protocol.whole_grid else 4)
    final = cells * (len(protocol.seeds) - 1) + (len(protocol.batch_sizes) - 1) * len(protocol.seeds)
    final += len(OPTIMIZERS) * len(protocol.without_bias_decay) * len(protocol.seeds)
    count = "" if protocol.whole_grid else "about "
    time_needed = "" if protocol.whole_grid else f": about {clock((tuning + final) * CPU_SECONDS_PER_RUN)} on one core"
    print(f"{count}{tuning} runs to tune {cells} cells, {final} at the best rates{time_needed}")


if __name__ == "__main__":
    main()
