"""How far a learning rate carries over to larger batches, with and without batch normalisation.

    python -m benchmarks.linear_scaling [--data-dir FOLDER] [--dry-run] [--full] [--jobs 2]

Fashion-MNIST, the small CNN, SGD with Nesterov momentum 0.9 and weight decay 5e-4, cosine decay, the same number of
samples for every batch size. The batch is a true larger one, without accumulation: batch normalisation sees all of it.
The learning rate is tuned at batch 128, for each model, on validation images; the larger batches use it scaled
linearly, by the square root, or not at all, with a gradual warm-up or without. One JSON per run in
``benchmarks/results/linear_scaling/``: a run whose file exists is not made again, so the benchmark can be stopped and
continued. A table and a picture are written beside that folder and printed.

The default (batches 128, 256, 1024 and 4096, 40 960 images, 4 epochs, 3 seeds; 120 runs) took 27 minutes of CPU time on
one thread, 40 minutes on the clock of two shared cores. ``--full`` (six batch sizes, 57 344 images, 10 epochs, 5 seeds;
300 runs) is estimated, not measured: 4 to 5 hours. Numbers repeat exactly with the same versions on the same kind of
processor; elsewhere they differ as other seeds do, since rounding grows over a run.

Krizhevsky 2014, arXiv 1404.5997; Goyal et al. 2017, arXiv 1706.02677.
"""

from __future__ import annotations

import functools
import math
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import fmean
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer, seed_everything

from benchmarks import linear_scaling_report as report
from benchmarks._common import RESULTS, command_line, environment
from benchmarks._experiment import Experiment, facts
from benchmarks._training import quiet_trainer
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN
from lightning_lr import Cosine, LearningRateScaling, LearningRateSchedule
from lightning_lr.scaling import Rule

REFERENCE_BATCH = 128
MODELS = ("batch norm", "no norm")
RULES = ("linear", "sqrt", "none")
WIDTH = 8
CHANCE = 0.1
CPU_SECONDS_PER_IMAGE, CPU_SECONDS_AROUND = 85e-6, 1.0  # measured, see the docstring
FOLDER = RESULTS / "linear_scaling"


@dataclass(frozen=True)
class Protocol:
    """What is compared; every training size is a multiple of every batch size, so that no update has a smaller batch.

    Args:
        name: of the files with the table and the picture.
        batch_sizes: samples per update, the reference first.
        learning_rates: the grid that is tried at the reference batch.
        train_size: images; validation takes ``val_size`` others.
        val_size: images.
        epochs: length of a run.
        warmup_epochs: length of the climb to the scaled rate, where there is one.
        seeds: of initialisation and sample order.
    """

    name: str
    batch_sizes: tuple[int, ...]
    learning_rates: tuple[float, ...]
    train_size: int
    val_size: int
    epochs: int
    warmup_epochs: float
    seeds: tuple[int, ...]


DEFAULT = Protocol(
    name="linear_scaling",
    batch_sizes=(128, 256, 1024, 4096),
    learning_rates=(0.0125, 0.025, 0.05, 0.1, 0.2),
    train_size=40_960,
    val_size=10_000,
    epochs=4,
    warmup_epochs=1.0,
    seeds=(0, 1, 2),
)
FULL = Protocol(
    name="linear_scaling_full",
    batch_sizes=(128, 256, 512, 1024, 2048, 4096),
    learning_rates=DEFAULT.learning_rates,
    train_size=57_344,
    val_size=2_656,
    epochs=10,
    warmup_epochs=2.0,
    seeds=(0, 1, 2, 3, 4),
)


@dataclass(frozen=True)
class Config:
    """One run. ``lr`` is that of the reference batch; ``warmup_epochs`` 0 is none. The number of ``parameters`` tells
    results of another version of the network apart."""

    model: str
    batch_size: int
    lr: float
    rule: str
    warmup_epochs: float
    seed: int
    epochs: int
    train_size: int
    val_size: int
    parameters: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return (
            f"{self.model.replace(' ', '-')}_batch{self.batch_size}_lr{self.lr:g}_{self.rule}"
            f"_warmup{self.warmup_epochs:g}_images{self.train_size}_epochs{self.epochs}_seed{self.seed}"
        )

    @property
    def label(self) -> str:
        """The run in words."""
        climb = f" warm-up {self.warmup_epochs:g}" if self.warmup_epochs else ""
        return f"{self.model}, batch {self.batch_size}, lr {self.lr:g}, {self.rule}{climb}, seed {self.seed}"

    def canonical(self) -> Config:
        """The same run under one name: at the reference batch no rule does anything, without a rule no warm-up."""
        rule = "none" if self.batch_size == REFERENCE_BATCH else self.rule
        return replace(self, rule=rule, warmup_epochs=0.0 if rule == "none" else self.warmup_epochs)


# ---------------------------------------------------------------------- the grid
def reference_configs(protocol: Protocol) -> list[Config]:
    """The runs that tune the learning rate at the reference batch."""
    return [
        _config(protocol, model, REFERENCE_BATCH, lr, "none", 0.0, seed)
        for seed in protocol.seeds
        for model in MODELS
        for lr in protocol.learning_rates
    ]


def scaled_configs(protocol: Protocol, best_lr: dict[str, float]) -> list[Config]:
    """Every batch size, rule and warm-up at the tuned rates, once each; seed by seed, so that stopping early loses
    seeds and not batch sizes."""
    every = (
        _config(protocol, model, batch_size, best_lr[model], rule, warmup_epochs, seed).canonical()
        for seed in protocol.seeds
        for model in MODELS
        for batch_size in protocol.batch_sizes
        for rule in RULES
        for warmup_epochs in (protocol.warmup_epochs, 0.0)
    )
    return list(dict.fromkeys(every))


def best_learning_rates(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each model the rate with the best mean validation accuracy at the reference batch."""
    means: dict[str, dict[float, float]] = {}
    for model in MODELS:
        by_lr: dict[float, list[float]] = {}
        for record in records:
            if record["config"]["model"] == model:
                by_lr.setdefault(record["config"]["lr"], []).append(record["val_accuracy"])
        means[model] = {lr: fmean(values) for lr, values in by_lr.items()}
    return {model: max(by_lr, key=by_lr.__getitem__) for model, by_lr in means.items()}


def _config(
    protocol: Protocol, model: str, batch_size: int, lr: float, rule: str, warmup_epochs: float, seed: int
) -> Config:
    return Config(
        model=model,
        batch_size=batch_size,
        lr=lr,
        rule=rule,
        warmup_epochs=warmup_epochs,
        seed=seed,
        epochs=protocol.epochs,
        train_size=protocol.train_size,
        val_size=protocol.val_size,
        parameters=_parameters(model),
    )


def _network(model: str) -> SmallCNN:
    return SmallCNN(WIDTH, batch_norm=model == "batch norm")


@functools.cache
def _parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in _network(model).parameters())


# ---------------------------------------------------------------------- one run
class WatchLoss(Callback):
    """Keeps the losses of the last epoch; stops a run whose loss is no longer finite."""

    def __init__(self) -> None:
        self.diverged = False
        self.last_epoch: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_epoch = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.last_epoch.append(outputs["loss"].item())
        if not math.isfinite(self.last_epoch[-1]):
            self.diverged = trainer.should_stop = True


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seed_everything(config.seed, verbose=False)
    module = Classifier(_network(config.model), lr=config.lr)
    data = FashionMNISTDataModule(config.batch_size, data_dir, train_size=config.train_size, val_size=config.val_size)
    watch = WatchLoss()
    callbacks: list[Callback] = [LearningRateSchedule(Cosine()), watch]
    if config.rule != "none":
        rule = cast(Rule, config.rule)
        callbacks.append(LearningRateScaling(REFERENCE_BATCH, rule, config.warmup_epochs))
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(folder, callbacks, max_epochs=config.epochs, limit_val_batches=0)
        trainer.fit(module, data)
        reached = [CHANCE, CHANCE] if watch.diverged else accuracies(module, data)
    return {
        "config": facts(config),
        "val_accuracy": reached[0],
        "test_accuracy": reached[1],
        "final_train_loss": None if watch.diverged else fmean(watch.last_epoch),
        "diverged": watch.diverged,
        "updates": trainer.global_step,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


def accuracies(module: Classifier, data: FashionMNISTDataModule) -> list[float]:
    """On the validation and on the test images, in batches of one size whatever the training batch."""
    data.batch_size = 1000
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    evaluator = Trainer(accelerator="cpu", deterministic=True, enable_checkpointing=False, **quiet)
    validated = evaluator.validate(module, data, verbose=False)[0]["val_acc"]
    return [validated, evaluator.test(module, data, verbose=False)[0]["test_acc"]]


# ---------------------------------------------------------------------- the command
def seconds(config: Config) -> float:
    """CPU time of a run."""
    return CPU_SECONDS_PER_IMAGE * config.epochs * config.train_size + CPU_SECONDS_AROUND


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "all sizes, all images, 10 epochs, 5 seeds: hours", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    experiment = Experiment[Config].from_options(options, train, seconds)
    reference = reference_configs(protocol)
    if options.dry_run:
        tuned = experiment.records(reference)
        middle = dict.fromkeys(MODELS, protocol.learning_rates[len(protocol.learning_rates) // 2])
        best_lr = best_learning_rates(tuned) if len(tuned) == len(reference) else middle
        experiment.show([*reference, *scaled_configs(protocol, best_lr)])
        return
    tuned = experiment.make(reference, "tuning at the reference batch")
    best_lr = best_learning_rates(tuned)
    print("\n".join(f"{model}: best lr at batch {REFERENCE_BATCH} is {lr:g}" for model, lr in best_lr.items()))
    scaled = experiment.make(scaled_configs(protocol, best_lr), "larger batches")
    report.write(options.results.parent / protocol.name, tuned, scaled)


if __name__ == "__main__":
    main()
