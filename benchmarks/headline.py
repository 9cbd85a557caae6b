"""A model and data that nobody has tuned, the learning rate unknown: what does the tuned baseline's accuracy cost?

    python -m benchmarks.headline [--data-dir FOLDER] [--dry-run] [--report] [--full] [--jobs 2]

Fashion-MNIST, batch {batch_size}, a small CNN and a small ViT. The baselines are AdamW and SGD with Nesterov momentum,
a linear warm-up over 5 % of the run and a cosine, the learning rate the best of five on validation images, one seed.
The grids were moved up by half a decade once the best rate had been their highest, for the CNN with AdamW and the ViT
with SGD. The search is counted in the baseline's favour: the winner's run is the product, so that only the other rates
are the price of it. Against them stand, in one run without a search: our methods with AdamW, Lightning's learning rate
finder (its samples are counted), AdamW at torch's default rate, and the tuning-free optimizers of pytorch_optimizer
at their defaults (there is no DoG in it). Prodigy and D-Adaptation have the cosine that their authors recommend; for
Schedule-Free, batch norm's statistics are taken anew before each evaluation, as its authors say.

After each epoch the accuracy on the 10 000 test images is noted with the samples and the CPU seconds of training until
then (evaluation left out, the learning rate finder and every method's own work included). A run that diverges has the
accuracy of guessing. The answer is the samples until half a point below the mean final accuracy of the better of the
two tuned baselines, search included.

One JSON per run in ``benchmarks/results/headline/``: a run whose file exists is not made again, so the benchmark can be
stopped and continued. A table and a picture are written beside that folder; with ``--report``, at once, from the runs
that exist. The default ({images} images, {epochs} epochs, seeds {seeds}) is made for one CPU core. ``--full``: 50 000
images, 20 epochs, 5 seeds: not made. The byte language model and the fine-tuning of MiniLM that belong to it are not
written yet.
"""

from __future__ import annotations

import functools
import math
import operator
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import headline_report as report
from benchmarks._common import RESULTS, ResultStore, clock, command_line, environment, quiet_process, run_all
from benchmarks.headline_report import TUNED
from benchmarks.linear_scaling import CHANCE, WatchLoss
from examples.classifier import Batch, Classifier
from examples.data import FashionMNISTDataModule
from examples.models import SmallCNN, ViT
from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    CurveRamp,
    HypergradientDescent,
    LearningRateSchedule,
)

FOLDER = RESULTS / "headline"
TUNING_SEED = 0
WEIGHT_DECAY = 0.01
CPU_SECONDS_PER_IMAGE = {"CNN": 65e-6, "ViT": 55e-6}  # training and evaluation, without methods; measured
CPU_SECONDS_AROUND = 2.0
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "CNN": lambda: SmallCNN(4),
    "ViT": lambda: ViT(patch=14, dim=32, depth=2, heads=2),
}


# ---------------------------------------------------------------------- what is compared
@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        optimizer: from parameters and learning rate.
        lr: where it begins, or has its peak; 0 where the search says.
        callbacks: methods, new ones for each run.
        finder: whether Lightning's learning rate finder goes first.
    """

    optimizer: Callable[[Any, float], Optimizer]
    lr: float
    callbacks: Callable[[], list[Callback]]
    finder: bool = False


def _adamw(parameters: Any, lr: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr, weight_decay=WEIGHT_DECAY)


def _sgd(parameters: Any, lr: float) -> Optimizer:
    return torch.optim.SGD(parameters, lr, momentum=0.9, nesterov=True, weight_decay=5e-4)


def _of_pytorch_optimizer(name: str) -> Callable[[Any, float], Optimizer]:
    def make(parameters: Any, lr: float) -> Optimizer:
        import pytorch_optimizer

        optimizer: Optimizer = getattr(pytorch_optimizer, name)(parameters)  # every default, its lr included
        return optimizer

    return make


def _warmup_cosine() -> list[Callback]:
    return [LearningRateSchedule(Cosine(warmup=0.05))]


def _cosine() -> list[Callback]:
    return [LearningRateSchedule(Cosine())]


def _hypergradient() -> HypergradientDescent:
    return HypergradientDescent(rule="normalized", bounds=(1e-6, 1e6))


ARMS: dict[str, Arm] = {
    "AdamW, tuned": Arm(_adamw, 0.0, _warmup_cosine),
    "SGD, tuned": Arm(_sgd, 0.0, _warmup_cosine),
    "AdaptiveWarmup": Arm(_adamw, 1.0, lambda: [AdaptiveWarmup(restore_best=True)]),
    "AdaptiveWarmup + BatchSizeRamp": Arm(
        _adamw,
        1.0,
        lambda: [
            AdaptiveWarmup(decay=Constant(), restore_best=True),
            BatchSizeRamp(CurveRamp(Cosine()), lr_rule="sqrt", begin="after_warmup"),
        ],
    ),
    "AdaptiveWarmup + HypergradientDescent": Arm(
        _adamw, 1.0, lambda: [AdaptiveWarmup(restore_best=True), _hypergradient()]
    ),
    "HypergradientDescent from 1e-5": Arm(_adamw, 1e-5, lambda: [*_cosine(), _hypergradient()]),
    "LearningRateFinder": Arm(_adamw, 1e-3, _warmup_cosine, finder=True),
    "AdamW at 1e-3": Arm(_adamw, 1e-3, _warmup_cosine),
    "Prodigy": Arm(_of_pytorch_optimizer("Prodigy"), 1.0, _cosine),
    "DAdaptAdam": Arm(_of_pytorch_optimizer("DAdaptAdam"), 1.0, _cosine),
    "ScheduleFreeAdamW": Arm(_of_pytorch_optimizer("ScheduleFreeAdamW"), 0.0025, list),
}
assert set(TUNED) <= set(ARMS)


@dataclass(frozen=True)
class Protocol:
    """What is compared, and for how long.

    Args:
        name: of the files with the table and the picture.
        models: by name.
        grid: learning rates of the search, by arm.
        train_size: images.
        val_size: images of which the search judges.
        epochs: length of a run.
        batch_size: samples.
        seeds: of the runs that are compared; the search has another one.
    """

    name: str
    models: tuple[str, ...]
    grid: dict[str, tuple[float, ...]]
    train_size: int
    val_size: int
    epochs: int
    batch_size: int
    seeds: tuple[int, ...]


DEFAULT = Protocol(
    name="headline",
    models=("CNN", "ViT"),
    grid={"AdamW, tuned": (1e-3, 3e-3, 1e-2, 3e-2, 1e-1), "SGD, tuned": (1e-2, 3e-2, 1e-1, 3e-1, 1.0)},
    train_size=4096,
    val_size=5000,
    epochs=8,
    batch_size=128,
    seeds=(1, 2, 3),
)
FULL = Protocol("headline_full", DEFAULT.models, DEFAULT.grid, 50_000, 5000, 20, 128, (1, 2, 3, 4, 5))
__doc__ = (__doc__ or "").format(
    batch_size=DEFAULT.batch_size,
    images=DEFAULT.train_size,
    epochs=DEFAULT.epochs,
    seeds=", ".join(map(str, DEFAULT.seeds)),
)


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
        arm = self.arm.replace(", ", "-").replace(" + ", "-").replace(" ", "-")
        return f"{self.model}_{arm}_lr{self.lr:g}_images{self.train_size}_epochs{self.epochs}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.model}, {self.arm}{f' {self.lr:g}' if self.arm in TUNED else ''}, seed {self.seed}"


# ---------------------------------------------------------------------- the grid
def search(protocol: Protocol) -> list[Config]:
    """Every rate of the baselines' grids."""
    return [
        _config(protocol, model, arm, lr, TUNING_SEED)
        for model in protocol.models
        for arm, rates in protocol.grid.items()
        for lr in rates
    ]


def compared(protocol: Protocol, best_lr: dict[tuple[str, str], float]) -> list[Config]:
    """Every arm with every seed, seed by seed, so that stopping early loses seeds; baselines at the best rates."""
    return [
        _config(protocol, model, name, best_lr.get((model, name), arm.lr), seed)
        for seed in protocol.seeds
        for model in protocol.models
        for name, arm in ARMS.items()
        if name not in TUNED or (model, name) in best_lr
    ]


def best_learning_rates(protocol: Protocol, records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """For each model and baseline whose search is complete, the rate with the best validation accuracy."""
    found: dict[tuple[str, str], dict[float, float]] = {}
    for record in records:
        config = record["config"]
        found.setdefault((config["model"], config["arm"]), {})[config["lr"]] = record["val_accuracy"]
    complete = {key: by_lr for key, by_lr in found.items() if len(by_lr) == len(protocol.grid[key[1]])}
    return {key: max(by_lr, key=by_lr.__getitem__) for key, by_lr in complete.items()}


def records_of(configs: Sequence[Config], store: ResultStore) -> list[dict[str, Any]]:
    """The results that exist."""
    loaded = (store.load(config.name, asdict(config)) for config in configs)
    return [record for record in loaded if record is not None]


def missing(configs: Sequence[Config], store: ResultStore) -> list[Config]:
    """Those that have no result yet."""
    return [config for config in configs if store.load(config.name, asdict(config)) is None]


def _config(protocol: Protocol, model: str, arm: str, lr: float, seed: int) -> Config:
    p = protocol
    return Config(model, arm, lr, seed, p.epochs, p.train_size, p.val_size, p.batch_size, _parameters(model))


@functools.cache
def _parameters(model: str) -> int:
    return sum(parameter.numel() for parameter in NETWORKS[model]().parameters())


# ---------------------------------------------------------------------- one run
class CountingClassifier(Classifier):
    """The example's classifier with an optimizer of choice; counts the samples that it is trained on, by whomever.

    The optimizer is no argument of ``__init__``: as a hyperparameter it would be in the checkpoint from which the
    learning rate finder restores the weights, and torch refuses to load a function.
    """

    make_optimizer: Callable[[Any, float], Optimizer]
    samples = 0

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.samples += len(batch[1])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer(self.parameters(), self.lr)


class Images(FashionMNISTDataModule):
    """Fashion-MNIST, read and checked once per process."""

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str | None = None) -> None:
        read = _read(self.data_dir, self.train_size, self.val_size)
        self.train_set, self.val_set, self.test_set = read.train_set, read.val_set, read.test_set


@functools.cache
def _read(data_dir: str | None, train_size: int, val_size: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, data_dir, train_size=train_size, val_size=val_size)
    data.prepare_data()
    data.setup()
    return data


class Curve(Callback):
    """Samples, CPU seconds and test accuracy at the end of every epoch; the clock stands still meanwhile.

    Args:
        data: with the test images.
        evaluates: whether the test images are looked at; a search has no business there, its accuracies are 0.
    """

    def __init__(self, data: Images, evaluates: bool) -> None:
        self.data, self.evaluates, self.points = data, evaluates, list[tuple[int, float, float]]()
        self._begin = time.process_time()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, CountingClassifier)
        spent = time.process_time() - self._begin
        accuracy = evaluated(pl_module, self.data.test_set, trainer.optimizers[0], self.data) if self.evaluates else 0.0
        self.points.append((pl_module.samples, round(spent, 3), accuracy))
        self._begin = time.process_time() - spent


@torch.no_grad()
def evaluated(module: Classifier, images: Any, optimizer: Optimizer, data: Images) -> float:
    """Share of the images that are told right, at the weights that the optimizer means to be used."""
    averages = hasattr(optimizer, "eval") and hasattr(optimizer, "train")  # Schedule-Free
    if averages:
        optimizer.eval()
        if any(isinstance(layer, nn.BatchNorm2d) for layer in module.modules()):
            module.train()
            for first in range(0, min(50 * 128, len(data.train_set)), 128):
                module(data.train_set.__getitems__(list(range(first, first + 128)))[0])
    module.eval()
    right = 0
    for first in range(0, len(images), 1000):
        inputs, labels = images.__getitems__(list(range(first, min(first + 1000, len(images)))))
        right += int((module(inputs).argmax(1) == labels).sum())
    module.train()
    if averages:
        optimizer.train()
    return right / len(images)


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; a loss that is no longer finite is a result, with the accuracy of guessing."""
    arm = ARMS[config.arm]
    data = Images(config.batch_size, data_dir, train_size=config.train_size, val_size=config.val_size)
    data.setup()
    seed_everything(config.seed, verbose=False)
    module = CountingClassifier(NETWORKS[config.model](), lr=config.lr)
    module.make_optimizer = arm.optimizer
    methods, curve, watch = arm.callbacks(), Curve(data, config.seed != TUNING_SEED), WatchLoss()
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
        if arm.finder:
            finder = Tuner(Trainer(max_epochs=config.epochs, **quiet)).lr_find(module, data)
            found_lr = finder.suggestion() if finder else None
            module.lr = found_lr or config.lr
        searched = module.samples
        trainer = Trainer(max_epochs=config.epochs, callbacks=[*methods, curve, *([] if climbs else [watch])], **quiet)
        try:
            trainer.fit(module, data)
        except RuntimeError as error:
            if "AdaptiveWarmup" not in str(error):
                raise
            diverged = True
    diverged = diverged or watch.diverged
    val_accuracy = CHANCE if diverged else evaluated(module, data.val_set, trainer.optimizers[0], data)
    warmup = next((method.machine for method in methods if isinstance(method, AdaptiveWarmup)), None)
    return {
        "config": asdict(config),
        "curve": curve.points,
        "val_accuracy": val_accuracy,
        "test_accuracy": CHANCE if diverged else curve.points[-1][2],
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


def work(config: Config, data_dir: str | None, folder: Path) -> None:
    """Make one run and write it down; in a process of its own where there are several."""
    quiet_process()
    ResultStore(folder).save(config.name, train(config, data_dir))


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "50 000 images, 20 epochs, 5 seeds: hours, not measured", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    store = ResultStore(options.results)
    if options.dry_run:
        _show_plan(protocol, store)
        return
    if not options.report:
        do = functools.partial(work, data_dir=options.data_dir, folder=options.results)
        label = operator.attrgetter("label")
        run_all(do, missing(search(protocol), store), options.jobs, label, "search")
        best_lr = best_learning_rates(protocol, records_of(search(protocol), store))
        run_all(do, missing(compared(protocol, best_lr), store), options.jobs, label, "compared")
    write(protocol, store, options.results.parent / protocol.name)


def write(protocol: Protocol, store: ResultStore, target: Path) -> None:
    """Write and print the table and the picture of the runs that exist."""
    searched = records_of(search(protocol), store)
    wanted = compared(protocol, best_learning_rates(protocol, searched))
    report.write(target, searched, records_of(wanted, store), protocol.models, tuple(ARMS), protocol.seeds)


def _show_plan(protocol: Protocol, store: ResultStore) -> None:
    again = dict.fromkeys(((model, arm) for model in protocol.models for arm in TUNED), -1.0)  # not known yet
    again.update(best_learning_rates(protocol, records_of(search(protocol), store)))
    todo = missing([*search(protocol), *compared(protocol, again)], store)
    print("\n".join(config.label for config in todo))
    images = protocol.epochs * protocol.train_size
    seconds = sum(CPU_SECONDS_PER_IMAGE[config.model] * images + CPU_SECONDS_AROUND for config in todo)
    print(f"{len(todo)} runs to make: about {clock(math.ceil(seconds))} on one idle core")


if __name__ == "__main__":
    main(sys.argv[1:])
