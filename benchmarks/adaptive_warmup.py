"""Does an adaptive warm-up, in one run, reach what six tuned learning rates reach?

    python -m benchmarks.adaptive_warmup [--data-dir FOLDER] [--dry-run] [--full] [--jobs 2]

Fashion-MNIST, a small CNN and a small ViT, the same number of epochs for every batch size (true large batches, without
accumulation). The baseline is a linear warm-up over 5 % of the run and a cosine, its learning rate tuned on validation
images with one seed out of six (half a decade apart), for each model, optimizer and batch size. ``AdaptiveWarmup`` has
one setting for everything: its defaults, with ``restore_best`` and a rollback if the loss diverges; without
``restore_best`` it is run at batch 2048 (the ViT also at 512). The best baseline and ours are trained with the same
three other seeds; what is compared is the difference in test accuracy, seed by seed.

One JSON per run in ``benchmarks/results/adaptive_warmup/``: a run whose file exists is not made again, so the benchmark
can be stopped and continued. A table and a picture are written beside that folder and printed.

The default grid is made for two CPU cores: {images:,} images, {epochs} epochs, AdamW at batch 128, 512, 2048 and (CNN
only, where {few} updates remain) 8192; LAMB and AdamP for the CNN at batch 512. ``--full`` has 50 000 images, 30
epochs, every batch size, model and optimizer and five seeds: estimated, not measured, at 7 hours of CPU time.

Kim et al. 2021, arXiv:2107.05855.
"""

from __future__ import annotations

import functools
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from pathlib import Path
from typing import Any

from lightning import Callback, seed_everything
from torch import nn
from torch.optim import AdamW, Optimizer

from benchmarks import adaptive_warmup_report as report
from benchmarks._common import RESULTS, command_line, environment
from benchmarks._experiment import Experiment, facts
from benchmarks._training import quiet_trainer
from benchmarks.linear_scaling import CHANCE, WatchLoss, accuracies
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN, ViT
from lightning_lr import AdaptiveWarmup, Cosine, LearningRateSchedule

FOLDER = RESULTS / "adaptive_warmup"
WEIGHT_DECAY = 0.01
WARMUP = 0.05
TUNING_SEED = 0
HALF_DECADES = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1)
LEARNING_RATES = {"AdamW": HALF_DECADES, "AdamP": HALF_DECADES, "LAMB": tuple(10 * lr for lr in HALF_DECADES)}
CPU_SECONDS_PER_IMAGE = {"CNN": 55e-6, "ViT": 45e-6}  # measured
CPU_SECONDS_AROUND = 1.5

NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN": lambda: SmallCNN(4),
    "ViT": lambda: ViT(patch=14, dim=32, depth=2, heads=2),
}


@dataclass(frozen=True)
class Cell:
    """What is compared: one model, optimizer and batch size."""

    model: str
    optimizer: str
    batch_size: int


@dataclass(frozen=True)
class Protocol:
    """What is compared, and for how long.

    Args:
        name: of the files with the table and the picture.
        cells: models, optimizers and batch sizes.
        train_size: images; validation takes ``val_size`` others.
        val_size: images.
        epochs: length of a run.
        seeds: of the runs that are compared; the learning rate is tuned with another one.
        plain: cells in which ours is also run without ``restore_best``.
    """

    name: str
    cells: tuple[Cell, ...]
    train_size: int
    val_size: int
    epochs: int
    seeds: tuple[int, ...]
    plain: tuple[Cell, ...] = ()


DEFAULT = Protocol(
    name="adaptive_warmup",
    cells=(
        *(Cell("CNN", "AdamW", size) for size in (128, 512, 2048, 8192)),
        *(Cell("ViT", "AdamW", size) for size in (128, 512, 2048)),
        *(Cell("CNN", optimizer, 512) for optimizer in ("LAMB", "AdamP")),
    ),
    train_size=16_384,
    val_size=10_000,
    epochs=16,
    seeds=(1, 2, 3),
    plain=(*(Cell(model, "AdamW", 2048) for model in NETWORKS), Cell("ViT", "AdamW", 512)),
)
FULL = Protocol(
    name="adaptive_warmup_full",
    cells=tuple(
        Cell(model, optimizer, size)
        for optimizer in LEARNING_RATES
        for model in NETWORKS
        for size in (128, 512, 2048, 8192)
    ),
    train_size=50_000,
    val_size=10_000,
    epochs=30,
    seeds=(1, 2, 3, 4, 5),
)
__doc__ = (__doc__ or "").format(
    images=DEFAULT.train_size, epochs=DEFAULT.epochs, few=-(-DEFAULT.train_size // 8192) * DEFAULT.epochs
)


@dataclass(frozen=True)
class Config:
    """One run; ``lr`` 0 is ours, which needs none. ``restore_best`` is of ours. The number of ``parameters`` tells
    results of another version of the network apart."""

    model: str
    optimizer: str
    batch_size: int
    lr: float
    seed: int
    epochs: int
    train_size: int
    val_size: int
    parameters: int
    restore_best: bool = False

    @property
    def cell(self) -> Cell:
        """What this is a run of."""
        return Cell(self.model, self.optimizer, self.batch_size)

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        method = f"lr{self.lr:g}" if self.lr else "restored" if self.restore_best else "adaptive"
        return (
            f"{self.model}_{self.optimizer}_batch{self.batch_size}_{method}"
            f"_images{self.train_size}_epochs{self.epochs}_seed{self.seed}"
        )

    @property
    def label(self) -> str:
        """The run in words."""
        method = f"lr {self.lr:g}" if self.lr else f"adaptive warm-up{', restored' if self.restore_best else ''}"
        return f"{self.model}, {self.optimizer}, batch {self.batch_size}, {method}, seed {self.seed}"


# ---------------------------------------------------------------------- the grid
def ours(protocol: Protocol) -> list[Config]:
    """One run per cell and seed."""
    return [_config(protocol, cell, 0.0, seed, restore=True) for cell in protocol.cells for seed in protocol.seeds]


def plain(protocol: Protocol) -> list[Config]:
    """The same without ``restore_best``, where that is compared."""
    return [_config(protocol, cell, 0.0, seed) for cell in protocol.plain for seed in protocol.seeds]


def tuning(protocol: Protocol) -> list[Config]:
    """Six learning rates per cell."""
    return [
        _config(protocol, cell, lr, TUNING_SEED) for cell in protocol.cells for lr in LEARNING_RATES[cell.optimizer]
    ]


def tuned(protocol: Protocol, best_lr: dict[Cell, float]) -> list[Config]:
    """The best one with the seeds that are compared."""
    return [_config(protocol, cell, lr, seed) for cell, lr in best_lr.items() for seed in protocol.seeds]


def best_learning_rates(records: Sequence[dict[str, Any]]) -> dict[Cell, float]:
    """For each cell whose tuning is complete, the learning rate with the best validation accuracy."""
    found: dict[Cell, dict[float, float]] = {}
    for record in records:
        config = Config(**record["config"])
        found.setdefault(config.cell, {})[config.lr] = record["val_accuracy"]
    complete = {cell: by_lr for cell, by_lr in found.items() if len(by_lr) == len(LEARNING_RATES[cell.optimizer])}
    return {cell: max(by_lr, key=by_lr.__getitem__) for cell, by_lr in complete.items()}


def _config(protocol: Protocol, cell: Cell, lr: float, seed: int, restore: bool = False) -> Config:
    return Config(
        **asdict(cell),
        lr=lr,
        seed=seed,
        epochs=protocol.epochs,
        train_size=protocol.train_size,
        val_size=protocol.val_size,
        parameters=_parameters(cell.model),
        restore_best=restore,
    )


@functools.cache
def _parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in NETWORKS[model]().parameters())


# ---------------------------------------------------------------------- one run
class AdaptiveClassifier(Classifier):
    """The example's classifier with an optimizer for large batches.

    Args:
        network: images to logits.
        optimizer: by name.
        lr: its learning rate.
    """

    def __init__(self, network: nn.Module, optimizer: str, lr: float) -> None:
        super().__init__(network, lr=lr)
        self.optimizer_name = optimizer

    def configure_optimizers(self) -> Optimizer:
        if self.optimizer_name == "AdamW":
            return AdamW(self.parameters(), lr=self.lr, weight_decay=WEIGHT_DECAY)
        import pytorch_optimizer

        kind = {"LAMB": pytorch_optimizer.Lamb, "AdamP": pytorch_optimizer.AdamP}[self.optimizer_name]
        return kind(self.parameters(), lr=self.lr, weight_decay=WEIGHT_DECAY)  # type: ignore[no-any-return]


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seed_everything(config.seed, verbose=False)
    module = AdaptiveClassifier(NETWORKS[config.model](), config.optimizer, config.lr or 1.0)
    data = FashionMNISTDataModule(config.batch_size, data_dir, train_size=config.train_size, val_size=config.val_size)
    watch, warmup = WatchLoss(), AdaptiveWarmup(on_divergence="rollback", restore_best=config.restore_best)
    method: Callback = LearningRateSchedule(Cosine(warmup=WARMUP)) if config.lr else warmup
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(
            folder, [method] if config.lr == 0 else [method, watch], max_epochs=config.epochs, limit_val_batches=0
        )
        trainer.fit(module, data)
        reached = [CHANCE, CHANCE] if watch.diverged else accuracies(module, data)
    machine = warmup.machine
    return {
        "config": facts(config),
        "val_accuracy": reached[0],
        "test_accuracy": reached[1],
        "diverged": watch.diverged,
        "updates": trainer.global_step,
        "reason": machine.reason if machine else None,
        "switched_at": machine.switched_at if machine else None,
        "peak_lr": machine.peak_lr if machine else config.lr,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the command
def seconds(config: Config) -> float:
    """CPU time of a run."""
    return CPU_SECONDS_PER_IMAGE[config.model] * config.epochs * config.train_size + CPU_SECONDS_AROUND


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "every size, model and optimizer, 30 epochs, 5 seeds: 7 hours", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    experiment = Experiment[Config].from_options(options, train, seconds)
    if options.dry_run:
        middle = {cell: LEARNING_RATES[cell.optimizer][2] for cell in protocol.cells}
        best_lr = middle | best_learning_rates(experiment.records(tuning(protocol)))
        experiment.show([*ours(protocol), *tuning(protocol), *plain(protocol), *tuned(protocol, best_lr)])
        return
    for cell in protocol.cells:  # cell by cell, so that stopping early loses cells and not seeds
        part = replace(protocol, cells=(cell,), plain=tuple(c for c in protocol.plain if c == cell))
        experiment.make([*ours(part), *tuning(part), *plain(part)], "adaptive, and tuning")
        best_lr = best_learning_rates(experiment.records(tuning(part)))
        experiment.make(tuned(part, best_lr), "the tuned baseline")
    write(protocol, experiment, options.results.parent / protocol.name)


def write(protocol: Protocol, experiment: Experiment[Config], out: Path) -> None:
    """Write and print the table and the picture of the runs that exist."""
    tried = experiment.records(tuning(protocol))
    compared = experiment.records(tuned(protocol, best_learning_rates(tried)))
    adaptive = experiment.records([*ours(protocol), *plain(protocol)])
    report.write(out, tried, compared, adaptive, list(map(astuple, protocol.cells)))


if __name__ == "__main__":
    main()
