"""Tasks of `learning_rate_search` that had no say in the design of the race: small, from scikit-learn's own data."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.tuner import Tuner
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.headline_arms import ARMS
from benchmarks.linear_scaling import WatchLoss
from examples.models import ResNet
from lightning_lr import Cosine, LearningRateSchedule, LearningRateSearch
from lightning_lr.optim import LAMB

UPDATES = 256
Split = tuple[TensorDataset, TensorDataset, TensorDataset]


class RowReader(nn.Module):
    """A GRU that reads an image of digits row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.gru, self.head = nn.GRU(8, 32, batch_first=True), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch x 10) of images (batch x 8 x 8)."""
        out: Tensor = self.head(self.gru(x)[0][:, -1])
        return out


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1))


def _normed_mlp() -> nn.Module:
    first = [nn.Linear(64, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Dropout(0.2)]
    return nn.Sequential(nn.Flatten(), *first, nn.Linear(128, 128), nn.BatchNorm1d(128), nn.ReLU(), nn.Linear(128, 10))


def _residual() -> nn.Module:
    return nn.Sequential(nn.Unflatten(1, (1, 8)), ResNet(depth=8, width=8, stem_stride=1))


def _autoencoder() -> nn.Module:
    code = [nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 12), nn.GELU()]
    return nn.Sequential(*code, nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 64))


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


def split(x: Tensor, y: Tensor, first: int, second: int) -> Split:
    parts = (slice(None, first), slice(first, second), slice(second, None))
    train, val, test = (TensorDataset(x[part], y[part]) for part in parts)
    return train, val, test


def digit_rows() -> Split:
    return split(*_digits(), 1024, 1400)


def _noisy() -> Split:
    images = _digits()[0].flatten(1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return split(images + 0.3 * noise, images, 1024, 1400)


@functools.cache
def _friedman() -> Split:
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(4096, noise=1.0, random_state=0)
    y = (y - y.mean()) / y.std()
    return split(torch.tensor(x).float(), torch.tensor(y).float().unsqueeze(1), 2048, 3072)


@dataclass(frozen=True)
class SmallTask:
    """A network, its data, its loss, a metric in points, and the optimizers that it is trained with."""

    network: Callable[[], nn.Module]
    data: Callable[[], Split]
    classifies: bool
    optimizers: tuple[str, ...] = ("AdamW", "SGD")


SMALL = {
    "GRU": SmallTask(RowReader, digit_rows, True),
    "MLP": SmallTask(_mlp, _friedman, False),
    "autoencoder": SmallTask(_autoencoder, _noisy, False),
    "digits": SmallTask(_normed_mlp, digit_rows, True),
    "ResNet": SmallTask(_residual, digit_rows, True, ("LAMB",)),
}


class Small(LightningModule):
    """Trains a small task."""

    def __init__(self, task: SmallTask, make: Callable[[Any, float], Optimizer], lr: float) -> None:
        super().__init__()
        self.net, self.task, self.make, self.lr = task.network(), task, make, lr
        self.made = 0
        """Training steps, those of a learning rate finder included."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.made += 1
        return F.cross_entropy(self.net(x), y) if self.task.classifies else F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters(), self.lr)

    @torch.no_grad()
    def points(self, data: TensorDataset) -> float:
        """Accuracy, or explained variance, in percent; 0 where the network is broken."""
        self.eval()
        x, y = data.tensors
        out = self.net(x)
        if self.task.classifies:
            return 100 * float((out.argmax(1) == y).double().mean())
        explained = 100 * (1 - float((out - y).square().mean()) / float((y - y.mean(0)).square().mean()))
        return max(0.0, explained) if torch.isfinite(out).all() else 0.0


def optimizer_of(name: str) -> Callable[[Any, float], Optimizer]:
    """How an optimizer is made from parameters and a learning rate."""
    if name == "LAMB":
        return lambda parameters, lr: LAMB(parameters, lr, weight_decay=0.01)
    return ARMS[f"{name}, tuned"].optimizer


def train_small(
    name: str,
    optimizer: str,
    seed: int,
    lr: float | None,
    search: LearningRateSearch | None,
    updates: int = UPDATES,
) -> dict[str, Any]:
    """One run: at a rate, or after a search (the optimizer's own rate is then 1)."""
    method: Callback = search if search is not None else LearningRateSchedule(Cosine(warmup=0.05))
    peak = 1.0 if lr is None else lr
    return train_small_with(name, optimizer_of(optimizer), seed, peak, [method], updates=updates)


def train_small_with(
    name: str,
    make: Callable[[Any, float], Optimizer],
    seed: int,
    lr: float,
    methods: list[Callback],
    reading: Callable[[Any], float | None] | None = None,
    updates: int = UPDATES,
) -> dict[str, Any]:
    """One run of a small task; ``reading``: of Lightning's finder, which then goes first."""
    train, val, test = SMALL[name].data()
    seed_everything(seed, verbose=False)
    module = Small(SMALL[name], make, lr)
    loader = DataLoader(train, 32, shuffle=True)
    found = None
    with tempfile.TemporaryDirectory() as folder:
        quiet: dict[str, Any] = {
            "max_steps": updates,
            "max_epochs": -1,
            "accelerator": "cpu",
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "default_root_dir": folder,
        }
        if reading is not None:
            finder = Tuner(Trainer(**quiet)).lr_find(module, loader)
            found = reading(finder) if finder else None
            module.lr = found or lr
        before = module.made
        trainer = Trainer(callbacks=[*methods, WatchLoss()], **quiet)
        trainer.fit(module, loader)
    optimizer: Any = trainer.optimizers[0]
    if hasattr(optimizer, "eval"):  # Schedule-Free and DoG: at the averaged weights
        optimizer.eval()
        _new_statistics(module, train)
    return {
        "val": module.points(val),
        "test": module.points(test),
        "updates": trainer.global_step,
        "made": module.made,
        "finder": before,
        "found": found,
    }


@torch.no_grad()
def _new_statistics(module: Small, train: TensorDataset) -> None:
    """Batch norm's statistics, anew for averaged weights."""
    if any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in module.modules()):
        module.train()
        for part in train.tensors[0].split(32):
            module.net(part)
