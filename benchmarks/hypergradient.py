"""How much the initial learning rate matters, with and without hypergradient descent.

    python -m benchmarks.hypergradient [--data-dir FOLDER] [--dry-run] [--full] [--jobs 2] [--models logistic mlp cnn]
    python -m benchmarks.hypergradient --cost

Fashion-MNIST, batch 128, weight decay 1e-4, no schedule: logistic regression, an MLP (784-128-128-10) and the small CNN
(batch norm), each with SGD, heavy-ball momentum 0.9 and Adam, from initial learning rates 1e-6 .. 1e-1. Measured: the
updates until the loss on 1000 validation images is at a target, and the test accuracy at the end. The target of a model
is fixed before anything is compared: the loss that plain SGD at its best fixed rate of the grid has after
``TARGET_UPDATE`` updates (the lowest over the grid of the means over seeds). Evaluations become rarer as the run goes
on, by 5 % from one to the next, so that is how exact a number of updates is.

One JSON per run in ``benchmarks/results/hypergradient/``: a run whose file exists is not made again, so the benchmark can be
stopped and continued. Tables and pictures are written beside that folder. ``--full``: three times the updates, all
methods for the CNN, 5 seeds; estimated, not measured. ``--cost`` measures time and memory of a step instead, see
``hypergradient_cost``.

The default hyper_lr of the normalized rule was chosen on other data (scikit-learn's digits, logistic regression and an
MLP, of 0.05 to 1); those of the two other rules are the paper's and were not tuned.

Baydin et al. 2018, arXiv 1703.04782.
"""

from __future__ import annotations

import argparse
import functools
import math
import operator
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import hypergradient_cost, hypergradient_report
from benchmarks._common import RESULTS, ResultStore, clock, environment, quiet_process, run_all
from examples.data import FashionMNISTDataModule
from examples.data.images import image_loader
from examples.models import SmallCNN
from lightning_lr import HypergradientDescent
from lightning_lr.hypergradient import HYPER_LR, RuleName

FOLDER = RESULTS / "hypergradient"
MODELS = ("logistic", "mlp", "cnn")
OPTIMIZERS = ("sgd", "momentum", "adam")
LEARNING_RATES = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1)
BEYOND = (0.3, 1.0)
"""Fixed rates above the grid, for the best fixed rate of logistic regression with SGD."""
BATCH, WEIGHT_DECAY = 128, 1e-4
TARGET_UPDATE = 150
DEFAULT_BOUNDS, WIDE_BOUNDS = (1e-3, 1e3), (1e-6, 1e6)
ARMS: dict[str, tuple[RuleName, tuple[float, float]] | None] = {
    "fixed": None,
    "additive": ("additive", DEFAULT_BOUNDS),
    "additive, wide": ("additive", WIDE_BOUNDS),
    "normalized": ("normalized", DEFAULT_BOUNDS),
    "normalized, wide": ("normalized", WIDE_BOUNDS),
    "multiplicative, wide": ("multiplicative", WIDE_BOUNDS),
}
CPU_SECONDS_PER_UPDATE = {"logistic": 3e-3, "mlp": 6e-3, "cnn": 21e-3}  # measured


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        name: of the files with tables and pictures.
        updates: length of a run, by model.
        seeds: of initialisation and sample order, by model.
        arms: what is compared, by model.
        train_size: images; 10 000 others are for validation.
    """

    name: str
    updates: dict[str, int]
    seeds: dict[str, tuple[int, ...]]
    arms: dict[str, tuple[str, ...]]
    train_size: int


SOME_ARMS = ("fixed", "additive, wide", "normalized, wide", "multiplicative, wide")
DEFAULT = Protocol(
    "hypergradient",
    {"logistic": 700, "mlp": 500, "cnn": 400},
    {"logistic": (0, 1, 2), "mlp": (0, 1, 2), "cnn": (0,)},
    {"logistic": tuple(ARMS), "mlp": tuple(ARMS), "cnn": SOME_ARMS},
    train_size=40_000,
)
FULL = Protocol(
    "hypergradient_full",
    {"logistic": 2100, "mlp": 2100, "cnn": 1200},
    dict.fromkeys(MODELS, (0, 1, 2, 3, 4)),
    dict.fromkeys(MODELS, tuple(ARMS)),
    train_size=50_000,
)


@dataclass(frozen=True)
class Config:
    """One run; ``hyper_lr`` and ``bounds`` tell results of other defaults apart."""

    model: str
    optimizer: str
    lr: float
    arm: str
    hyper_lr: float | None
    low: float
    high: float
    seed: int
    updates: int
    train_size: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        arm = self.arm.replace(", ", "-")
        return f"{self.model}_{self.optimizer}_lr{self.lr:g}_{arm}_updates{self.updates}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.model}, {self.optimizer}, lr {self.lr:g}, {self.arm}, seed {self.seed}"


def configs(protocol: Protocol, models: Sequence[str] = MODELS) -> list[Config]:
    """The grid, seed by seed, so that stopping early loses seeds and nothing else."""
    return [
        _config(protocol, model, optimizer, lr, arm, seed)
        for seed in sorted({seed for model in models for seed in protocol.seeds[model]})
        for model in models
        if seed in protocol.seeds[model]
        for optimizer in OPTIMIZERS
        for arm in protocol.arms[model]
        for lr in (*LEARNING_RATES, *(BEYOND if (model, optimizer, arm) == ("logistic", "sgd", "fixed") else ()))
    ]


def _config(protocol: Protocol, model: str, optimizer: str, lr: float, arm: str, seed: int) -> Config:
    chosen = ARMS[arm]
    rule, (low, high) = chosen if chosen is not None else (None, (1.0, 1.0))
    hyper_lr = None if rule is None else HYPER_LR[rule]["adam" if optimizer == "adam" else "sgd"]
    return Config(
        model, optimizer, lr, arm, hyper_lr, low, high, seed, protocol.updates[model], protocol.train_size
    )  # fmt: skip


def missing(wanted: Sequence[Config], store: ResultStore) -> list[Config]:
    """Those that have no result yet."""
    return [config for config in wanted if store.load(config.name, asdict(config)) is None]


# ---------------------------------------------------------------------- one run
class Module(LightningModule):
    """A network, cross-entropy and one of three optimizers."""

    def __init__(self, network: nn.Module, optimizer: str, lr: float) -> None:
        super().__init__()
        self.network, self.optimizer, self.lr = network, optimizer, lr

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        if self.optimizer == "adam":
            return torch.optim.Adam(self.parameters(), self.lr, weight_decay=WEIGHT_DECAY)
        momentum = 0.9 if self.optimizer == "momentum" else 0.0
        return torch.optim.SGD(self.parameters(), self.lr, momentum, weight_decay=WEIGHT_DECAY)


def network(model: str) -> nn.Module:
    """The network of a model's name."""
    if model == "logistic":
        return nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    if model == "mlp":
        hidden = [nn.Linear(784, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU()]
        return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(128, 10))
    return SmallCNN(width=8)


def evaluation_updates(updates: int) -> list[int]:
    """Updates after which the loss is evaluated: each at most 5 % later than the one before, or the next."""
    found = [1]
    while found[-1] < updates:
        found.append(min(updates, max(found[-1] + 1, int(found[-1] * 1.05))))
    return found


class Watch(Callback):
    """Evaluates the loss on validation images now and then; stops a run whose loss is not finite."""

    def __init__(self, images: Tensor, labels: Tensor, updates: int) -> None:
        self.images, self.labels = images, labels
        self.due = set(evaluation_updates(updates))
        self.curve: list[tuple[int, float]] = []
        self.diverged = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not math.isfinite(outputs["loss"].item()):
            self.diverged = trainer.should_stop = True
        elif trainer.global_step in self.due:
            pl_module.eval()
            with torch.no_grad():
                loss = F.cross_entropy(pl_module.network(self.images), self.labels).item()
            pl_module.train()
            if math.isfinite(loss):
                self.curve.append((trainer.global_step, loss))


@functools.cache
def _data(data_dir: str | None, train_size: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(BATCH, data_dir, train_size=train_size, val_size=10_000)
    data.prepare_data()
    data.setup()
    return data


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    cpu_begin = time.process_time()
    seed_everything(config.seed, verbose=False)
    data = _data(data_dir, config.train_size)
    module = Module(network(config.model), config.optimizer, config.lr)
    watch = Watch(*data.val_set.__getitems__(list(range(1000))), config.updates)
    callbacks: list[Callback] = [watch]
    chosen = ARMS[config.arm]
    hypergradient = None
    if chosen is not None:
        hypergradient = HypergradientDescent(config.hyper_lr, chosen[0], bounds=(config.low, config.high))
        callbacks.append(hypergradient)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_steps=config.updates,
            max_epochs=-1,
            callbacks=callbacks,
            deterministic=True,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        try:
            trainer.fit(module, image_loader(data.train_set, BATCH, 0, shuffle=True))
        except RuntimeError as error:  # our own: ten gradients in a row were not finite
            if "not finite" not in str(error):
                raise
            watch.diverged = True
    state = None if hypergradient is None else hypergradient.state_dict()["hypergradient"]
    return {
        "config": asdict(config),
        "curve": watch.curve,
        "diverged": watch.diverged,
        "test_accuracy": 0.1 if watch.diverged else _accuracy(module, data),
        "final_lr": config.lr * (1.0 if state is None else state["learner"]["factors"][0]),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


@torch.no_grad()
def _accuracy(module: Module, data: FashionMNISTDataModule) -> float:
    module.eval()
    right = sum(
        int((module.network(images).argmax(1) == labels).sum()) for images, labels in image_loader(data.test_set, 1000, 0)
    )
    return right / len(data.test_set)


def work(config: Config, data_dir: str | None, folder: Path) -> None:
    """Make one run and write it down; in a process of its own where there are several."""
    quiet_process()
    ResultStore(folder).save(config.name, train(config, data_dir))


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print tables and pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the files of Fashion-MNIST, if not in a usual place")
    parser.add_argument("--full", action="store_true", help="all methods everywhere, 3 x the updates, 5 seeds: hours")
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS, help="make the runs of these only")
    parser.add_argument("--dry-run", action="store_true", help="print the grid and how long it would take")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the runs' files")
    parser.add_argument("--cost", action="store_true", help="measure time and memory of a step instead")
    options = parser.parse_args(arguments)
    if options.cost:
        hypergradient_cost.main(options.results.parent / "hypergradient_cost")
        return
    protocol = FULL if options.full else DEFAULT
    store = ResultStore(options.results)
    to_make = missing(configs(protocol, options.models), store)
    seconds = sum(CPU_SECONDS_PER_UPDATE[config.model] * config.updates for config in to_make)
    print(f"{len(to_make)} runs to make: about {clock(seconds)} of one idle core", flush=True)
    if options.dry_run:
        print("\n".join(config.label for config in to_make))
        return
    do = functools.partial(work, data_dir=options.data_dir, folder=options.results)
    run_all(do, to_make, options.jobs, operator.attrgetter("label"), "hypergradient")
    found = (store.load(config.name, asdict(config)) for config in configs(protocol))
    records = [record for record in found if record is not None]
    hypergradient_report.write(options.results.parent / protocol.name, records, TARGET_UPDATE, LEARNING_RATES)


if __name__ == "__main__":
    main()
