"""How much the initial learning rate matters, with and without hypergradient descent.

    python -m benchmarks.hypergradient [--data-dir FOLDER] [--dry-run] [--full] [--jobs 2] [--models logistic mlp cnn]
    python -m benchmarks.hypergradient --cost

The method runs in a plain training loop, for speed; that the callback makes the same updates is for the tests.
Fashion-MNIST, batch 128, weight decay 1e-4, no schedule: logistic regression, an MLP (784-128-128-10) and the small CNN
(batch norm), each with SGD, heavy-ball momentum 0.9 and Adam, from initial learning rates 1e-6 .. 1e-1. Measured: the
updates until the loss on 1000 validation images is at a target, and the test accuracy at the end. The target of a model
is fixed before anything is compared: the loss that plain SGD at its best fixed rate of the grid has after
``TARGET_UPDATE`` updates (the lowest over the grid of the means over seeds). Where that rate is a noisy one, this is
luck, so that the ratios are also given for a range of losses. Evaluations become rarer as the run goes
on, by 5 % from one to the next, so that is how exact a number of updates is.

One JSON per run in ``benchmarks/results/hypergradient/``: a run whose file exists is not made again, so that the
benchmark can be stopped and continued. Tables and pictures are written beside that folder. ``--full``: three times the
updates, all methods and initial rates for the CNN, 5 seeds; not measured. ``--cost`` measures time and memory of a step
instead, see ``hypergradient_cost``. By default the MLP has one seed, and the CNN one seed, four initial rates and one
rule, for a machine that is shared.

The default hyper_lr of the normalized rule was chosen on other data (scikit-learn's digits, logistic regression and an
MLP, of 0.05 to 1); those of the two other rules are from the literature and were not tuned.

Baydin et al. 2018, arXiv 1703.04782.
"""

from __future__ import annotations

import argparse
import functools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks import hypergradient_cost, hypergradient_report
from benchmarks._common import RESULTS, environment
from benchmarks._experiment import Experiment, facts
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN
from lightning_lr.hypergradient import HYPER_LR, AlignmentEstimator, FactorLearner, RuleName

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
CPU_SECONDS_PER_UPDATE = {"logistic": 1.5e-3, "mlp": 5e-3, "cnn": 30e-3}  # measured, beside other work


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        name: of the files with tables and pictures.
        updates: length of a run, by model.
        seeds: of initialisation and sample order, by model.
        arms: what is compared, by model.
        rates: initial rates, by model.
        train_size: images; 10 000 others are for validation.
    """

    name: str
    updates: dict[str, int]
    seeds: dict[str, tuple[int, ...]]
    arms: dict[str, tuple[str, ...]]
    rates: dict[str, tuple[float, ...]]
    train_size: int


DEFAULT = Protocol(
    "hypergradient",
    {"logistic": 700, "mlp": 500, "cnn": 400},
    {"logistic": (0, 1, 2), "mlp": (0,), "cnn": (0,)},
    {"logistic": tuple(ARMS), "mlp": tuple(ARMS), "cnn": ("fixed", "normalized, wide")},
    {"logistic": LEARNING_RATES, "mlp": LEARNING_RATES, "cnn": (1e-6, 1e-3, 1e-2, 1e-1)},
    train_size=40_000,
)
FULL = Protocol(
    "hypergradient_full",
    {"logistic": 2100, "mlp": 2100, "cnn": 1200},
    dict.fromkeys(MODELS, (0, 1, 2, 3, 4)),
    dict.fromkeys(MODELS, tuple(ARMS)),
    dict.fromkeys(MODELS, LEARNING_RATES),
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
        for lr in _rates(protocol, model, optimizer, arm)
    ]


def _rates(protocol: Protocol, model: str, optimizer: str, arm: str) -> tuple[float, ...]:
    beyond = BEYOND if (model, optimizer, arm) == ("logistic", "sgd", "fixed") else ()
    return protocol.rates[model] + beyond


def _config(protocol: Protocol, model: str, optimizer: str, lr: float, arm: str, seed: int) -> Config:
    chosen = ARMS[arm]
    rule, (low, high) = chosen if chosen is not None else (None, (1.0, 1.0))
    hyper_lr = None if rule is None else HYPER_LR[rule]["adam" if optimizer == "adam" else "sgd"]
    return Config(
        model, optimizer, lr, arm, hyper_lr, low, high, seed, protocol.updates[model], protocol.train_size
    )  # fmt: skip


# ---------------------------------------------------------------------- one run
def optimizer_of(module: nn.Module, name: str, lr: float) -> torch.optim.Optimizer:
    """One of three optimizers, at a constant learning rate."""
    if name == "adam":
        return torch.optim.Adam(module.parameters(), lr, weight_decay=WEIGHT_DECAY)
    return torch.optim.SGD(module.parameters(), lr, 0.9 if name == "momentum" else 0.0, weight_decay=WEIGHT_DECAY)


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


class Method:
    """What ``HypergradientDescent`` does at each update."""

    def __init__(self, optimizer: torch.optim.Optimizer, config: Config) -> None:
        chosen = ARMS[config.arm]
        assert chosen is not None
        self.optimizer, self.lr = optimizer, config.lr
        self.estimator = AlignmentEstimator(optimizer)
        bounds = (config.low, config.high)
        self.learner = FactorLearner(chosen[0], config.hyper_lr, self.estimator.family, "group", bounds)

    def before_step(self) -> bool:
        """Refine the learning rate; whether the gradient is one."""
        alignments = self.estimator.measure()
        if not math.isfinite(alignments[0].gradient):
            return False
        (factor,) = self.learner.refine(alignments, [self.lr], [self.lr])
        self.optimizer.param_groups[0]["lr"] = self.lr * factor
        self.estimator.before_step([self.lr * factor])
        self.learner.applied(alignments, [self.lr])
        return True


class Data(NamedTuple):
    """Normalised images and labels in memory."""

    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]


@functools.cache
def _data(data_dir: str | None, train_size: int) -> Data:
    module = FashionMNISTDataModule(BATCH, data_dir, train_size=train_size, val_size=10_000)
    module.prepare_data()
    module.setup()
    parts = (module.train_set, len(module.train_set)), (module.val_set, 1000), (module.test_set, len(module.test_set))
    return Data(*(images.__getitems__(list(range(count))) for images, count in parts))


def batches(train: tuple[Tensor, Tensor], updates: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Whole batches, shuffled anew in each epoch."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = train
    order = torch.empty(0, dtype=torch.long)
    for _ in range(updates):
        if len(order) < BATCH:
            order = torch.randperm(len(labels), generator=generator)
        chosen, order = order[:BATCH], order[BATCH:]
        yield images[chosen], labels[chosen]


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    cpu_begin = time.process_time()
    data = _data(data_dir, config.train_size)
    torch.manual_seed(config.seed)
    module = network(config.model)
    optimizer = optimizer_of(module, config.optimizer, config.lr)
    method = None if ARMS[config.arm] is None else Method(optimizer, config)
    due, curve, diverged = set(evaluation_updates(config.updates)), [], False
    for update, (images, labels) in enumerate(batches(data.train, config.updates, config.seed), start=1):
        optimizer.zero_grad()
        loss = F.cross_entropy(module(images), labels)
        loss.backward()  # type: ignore[no-untyped-call]
        if not math.isfinite(loss.item()) or (method is not None and not method.before_step()):
            diverged = True
            break
        optimizer.step()
        if update in due:
            module.eval()
            with torch.no_grad():
                evaluated = F.cross_entropy(module(data.val[0]), data.val[1]).item()
            module.train()
            if math.isfinite(evaluated):
                curve.append((update, evaluated))
    return {
        "config": facts(config),
        "curve": curve,
        "diverged": diverged,
        "test_accuracy": 0.1 if diverged else _accuracy(module, data.test),
        "final_lr": float(optimizer.param_groups[0]["lr"]),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


@torch.no_grad()
def _accuracy(module: nn.Module, test: tuple[Tensor, Tensor]) -> float:
    module.eval()
    parts = zip(test[0].split(1000), test[1].split(1000), strict=True)
    return sum(int((module(images).argmax(1) == labels).sum()) for images, labels in parts) / len(test[1])


# ---------------------------------------------------------------------- the command
def seconds(config: Config) -> float:
    """CPU time of a run."""
    return CPU_SECONDS_PER_UPDATE[config.model] * config.updates


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
    made = functools.partial(train, data_dir=options.data_dir)
    experiment = Experiment[Config](options.results, made, seconds, options.jobs)
    if options.dry_run:
        experiment.show(configs(protocol, options.models))
        return
    experiment.make(configs(protocol, options.models), "hypergradient")
    records = experiment.records(configs(protocol))
    hypergradient_report.write(options.results.parent / protocol.name, records, TARGET_UPDATE, LEARNING_RATES)


if __name__ == "__main__":
    main()
