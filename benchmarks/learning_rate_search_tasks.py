"""Tasks of `learning_rate_search` that had no say in the design of the race: small, from scikit-learn's own data."""

from __future__ import annotations

import functools
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.headline_arms import ARMS
from benchmarks.linear_scaling import WatchLoss
from lightning_lr import Cosine, LearningRateSchedule, LearningRateSearch

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


def _autoencoder() -> nn.Module:
    code = [nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 12), nn.GELU()]
    return nn.Sequential(*code, nn.Linear(12, 32), nn.GELU(), nn.Linear(32, 64))


@functools.cache
def _digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits  # type: ignore[import-untyped]

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    return torch.tensor(data.images, dtype=torch.float32)[order] / 16, torch.tensor(data.target)[order]


def _split(x: Tensor, y: Tensor, first: int, second: int) -> Split:
    parts = (slice(None, first), slice(first, second), slice(second, None))
    train, val, test = (TensorDataset(x[part], y[part]) for part in parts)
    return train, val, test


def _rows() -> Split:
    return _split(*_digits(), 1024, 1400)


def _noisy() -> Split:
    images = _digits()[0].flatten(1)
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(1))
    return _split(images + 0.3 * noise, images, 1024, 1400)


@functools.cache
def _friedman() -> Split:
    from sklearn.datasets import make_friedman1

    x, y = make_friedman1(4096, noise=1.0, random_state=0)
    y = (y - y.mean()) / y.std()
    return _split(torch.tensor(x).float(), torch.tensor(y).float().unsqueeze(1), 2048, 3072)


@dataclass(frozen=True)
class SmallTask:
    """A network, its data, its loss, and a metric in points."""

    network: Callable[[], nn.Module]
    data: Callable[[], Split]
    classifies: bool


SMALL = {
    "GRU": SmallTask(RowReader, _rows, True),
    "MLP": SmallTask(_mlp, _friedman, False),
    "autoencoder": SmallTask(_autoencoder, _noisy, False),
}


class Small(LightningModule):
    """Trains a small task."""

    def __init__(self, task: SmallTask, optimizer: str, lr: float) -> None:
        super().__init__()
        self.net, self.task, self.optimizer, self.lr = task.network(), task, optimizer, lr

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        return F.cross_entropy(self.net(x), y) if self.task.classifies else F.mse_loss(self.net(x), y)

    def configure_optimizers(self) -> Any:
        return ARMS[f"{self.optimizer}, tuned"].optimizer(self.parameters(), self.lr)

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


def train_small(
    name: str, optimizer: str, seed: int, lr: float | None, search: LearningRateSearch | None
) -> dict[str, Any]:
    """One run: at a rate, or after a search (the optimizer's own rate is then 1)."""
    task = SMALL[name]
    train, val, test = task.data()
    seed_everything(seed, verbose=False)
    module = Small(task, optimizer, 1.0 if lr is None else lr)
    method = search if search is not None else LearningRateSchedule(Cosine(warmup=0.05))
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            max_steps=UPDATES,
            max_epochs=-1,
            callbacks=[method, WatchLoss()],
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, DataLoader(train, 32, shuffle=True))
    return {"val": module.points(val), "test": module.points(test), "updates": trainer.global_step}
