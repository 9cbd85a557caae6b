"""The tasks of `headline`: network, data, what is measured and how long a run is. What every task has in common, the
training, is in `headline_run`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer
from torch.utils.data import DataLoader, TensorDataset

from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule, PythonSourceDataModule, RottenTomatoesDataModule
from examples.language_model import LanguageModel
from examples.models import GPT, MiniLM, SmallCNN, ViT


# ---------------------------------------------------------------------- what is measured
@dataclass(frozen=True)
class Metric:
    """What is measured on held-out data: the mean of a number per prediction.

    Args:
        name: ``val_<name>`` and ``test_<name>`` are its keys in a record.
        each: from logits (... x classes) and labels (...) to the numbers.
        higher: whether more is better.
        guess: what guessing has; a run that diverged is given it.
        margin: how far from the tuned baseline's mean the target is, on the worse side.
        scale: from the number to the unit that is printed.
        unit: that unit.
        digits: printed after the point.
        heading: the metric with its unit.
        window: how far below the target the picture goes, in that unit.
    """

    name: str
    each: Callable[[Tensor, Tensor], Tensor]
    higher: bool
    guess: float
    margin: float
    scale: float
    unit: str
    digits: int
    heading: str
    window: float

    def key(self, value: float) -> float:
        """A number that is larger for a better value."""
        return value if self.higher else -value

    def better(self, value: float, other: float) -> bool:
        """Whether ``value`` is as good as ``other`` or better."""
        return self.key(value) >= self.key(other)

    def worse_by_margin(self, value: float) -> float:
        """The target that follows from the tuned baseline's ``value``."""
        return value - self.margin if self.higher else value + self.margin


def _right(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.argmax(-1) == labels).double()


def _bits(logits: Tensor, labels: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, -2).double(), labels.flatten(), reduction="none") / math.log(2)


def _accuracy(classes: int, margin: float, window: float) -> Metric:
    return Metric("accuracy", _right, True, 1 / classes, margin, 100, "%", 2, "accuracy (%)", window)


BITS = Metric("bits", _bits, False, 8.0, 0.02, 1, "bits", 3, "bits per byte", 1.0)


# ---------------------------------------------------------------------- modules that count
class Counting(LightningModule):
    """Takes an optimizer of choice; counts the samples that it is trained on, by whomever.

    The optimizer is no argument of ``__init__``: as a hyperparameter it would be in the checkpoint from which the
    learning rate finder restores the weights, and torch refuses to load a function.
    """

    make_optimizer: Callable[[Any, float], Optimizer]
    lr: float
    samples = 0

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.samples += len(batch[1])
        loss: Tensor = super().training_step(batch, batch_idx)  # type: ignore[assignment]
        return loss

    def configure_optimizers(self) -> Optimizer:
        return self.make_optimizer([p for p in self.parameters() if p.requires_grad], self.lr)


class CountingClassifier(Counting, Classifier):
    """The example's classifier."""


class CountingLanguageModel(Counting, LanguageModel):
    """The example's language model."""


# ---------------------------------------------------------------------- data
class Held(LightningDataModule):
    """Three data sets that are in memory already; a batch is drawn from the first one anew in every epoch."""

    def __init__(self, batch_size: int, train_set: Any, val_set: Any, test_set: Any) -> None:
        super().__init__()
        self.batch_size, self.train_set, self.val_set, self.test_set = batch_size, train_set, val_set, test_set

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)


def rows_of(dataset: Any, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of some samples, as one batch."""
    indices = list(range(first, min(last, len(dataset))))
    inputs, labels = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else dataset[indices]
    return inputs, labels


class Images(FashionMNISTDataModule):
    """Fashion-MNIST, read and checked once per process."""

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str | None = None) -> None:
        read = _read(self.data_dir, self.train_size, self.val_size)
        self.train_set, self.val_set, self.test_set = read.train_set, read.val_set, read.test_set


@functools.cache
def _read(data_dir: Any, train_size: int | None, val_size: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, data_dir, train_size=train_size, val_size=val_size)
    data.prepare_data()
    data.setup()
    return data


def images(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Fashion-MNIST with its 10 000 test images."""
    data = Images(batch_size, data_dir, train_size=train_size, val_size=val_size)
    data.setup()
    return data


CONTEXT, SOURCE_BYTES = 64, 2_000_000


@functools.cache
def _texts(train_size: int, val_size: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    source = PythonSourceDataModule(1, CONTEXT, SOURCE_BYTES)
    source.setup()
    held_out = source.val_set.tensors

    def some(tensors: tuple[Tensor, ...], count: int, seed: int) -> TensorDataset:
        chosen = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(seed))[:count]
        return TensorDataset(*(tensor[chosen] for tensor in tensors))

    half = len(held_out[0]) // 2
    val, test = (some(tuple(t[part] for t in held_out), val_size, 1) for part in (slice(half), slice(half, None)))
    return some(source.train_set.tensors, train_size, 0), val, test


def texts(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Pieces of the Python standard library; as many for the test as for validation, from other modules."""
    return Held(batch_size, *_texts(train_size, val_size))


TUNED_LAYERS, LENGTH = 1, 20


@functools.cache
def _half_read(train_size: int, val_size: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """What the frozen layers make of the sentences: (sentences x LENGTH x width), 0 where there is no token."""
    source = RottenTomatoesDataModule(1, LENGTH, train_size=train_size, val_size=val_size, test_size=val_size)
    source.setup()
    encoder = MiniLM().eval().encoder
    encoder.encoder.layer = encoder.encoder.layer[:-TUNED_LAYERS]

    @torch.no_grad()
    def read(sentences: Any) -> TensorDataset:
        padded = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
        for row, ids in zip(padded, sentences.tokens, strict=True):
            row[: len(ids)] = ids
        parts = []
        for tokens in padded.split(64):
            mask = (tokens != 0).long()
            parts.append(encoder(input_ids=tokens, attention_mask=mask).last_hidden_state * mask.unsqueeze(2))
        return TensorDataset(torch.cat(parts), sentences.labels)

    return read(source.train_set), read(source.val_set), read(source.test_set)


def sentences(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Film reviews as MiniLM's frozen layers leave them; as many for the test as for validation."""
    return Held(batch_size, *_half_read(train_size, val_size))


class MiniLMTop(nn.Module):
    """The last layers of the pretrained MiniLM, the mean over a sentence's tokens and a linear head.

    The layers below are frozen, so that what they make of a sentence is computed once: on one core a run of the whole
    network takes minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = MiniLM()
        self.layers = whole.encoder.encoder.layer[-TUNED_LAYERS:]
        self.dropout, self.classifier = whole.dropout, whole.classifier

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (batch x 2) of the frozen layers' output (batch x length x width), 0 where there is no token."""
        real = (hidden != 0).any(dim=2)
        for layer in self.layers:
            made = layer(hidden, real[:, None, None, :].expand(-1, 1, hidden.shape[1], -1))
            hidden = made[0] if isinstance(made, tuple) else made
        weights = real / real.sum(dim=1, keepdim=True)
        logits: Tensor = self.classifier(self.dropout((hidden * weights.unsqueeze(2)).sum(dim=1)))
        return logits


# ---------------------------------------------------------------------- the tasks
@dataclass(frozen=True)
class Task:
    """A model, its data and the length of a run.

    Args:
        name: of the task; ``model`` in the results.
        words: what it is, for the table.
        network: a new one.
        module: trains it.
        data: from batch size, training and validation samples, and the folder of Fashion-MNIST.
        metric: what is measured.
        sample: what a sample is called.
        grid: learning rates of the search, by arm.
        train_size: samples.
        val_size: samples of which the search judges.
        epochs: length of a run.
        batch_size: samples.
        points: evaluations on the test data in a run, at equal distances.
        cpu_seconds: of a run, without methods; measured.
    """

    name: str
    words: str
    network: Callable[[], nn.Module]
    module: Callable[..., Counting]
    data: Callable[[int, int, int, str | None], LightningDataModule]
    metric: Metric
    sample: str
    grid: dict[str, tuple[float, ...]]
    train_size: int
    val_size: int
    epochs: int
    batch_size: int
    points: int
    cpu_seconds: float


def _grid(adamw: tuple[float, ...], sgd: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    return {"AdamW, tuned": adamw, "SGD, tuned": sgd}


IMAGE_GRID = _grid((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-2, 1e-1, 3e-1, 1.0))
TEN = _accuracy(10, 0.005, 13.0)
TASKS: dict[str, Task] = {
    task.name: task
    for task in (
        Task("CNN", "a small CNN on Fashion-MNIST", lambda: SmallCNN(4), CountingClassifier, images, TEN, "images",
             IMAGE_GRID, 4096, 5000, 8, 128, 8, 4.2),
        Task("ViT", "a small ViT on Fashion-MNIST", lambda: ViT(patch=14, dim=32, depth=2, heads=2),
             CountingClassifier, images, TEN, "images", IMAGE_GRID, 4096, 5000, 8, 128, 8, 3.8),
        Task("byte LM", f"a GPT of two layers that predicts the next byte of Python source, {CONTEXT} bytes at a time",
             lambda: GPT(dim=48, depth=2, heads=4, context=CONTEXT), CountingLanguageModel, texts, BITS, "texts",
             _grid((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-2, 1e-1, 3e-1, 1.0)), 2048, 256, 1, 8, 8, 6.0),
        Task("MiniLM", f"the last layer and a head of the pretrained MiniLM, fine-tuned on film reviews of {LENGTH} "
             "tokens", MiniLMTop, functools.partial(CountingClassifier, num_classes=2), sentences,
             _accuracy(2, 0.005, 15.0), "sentences", _grid((3e-5, 1e-4, 3e-4, 1e-3, 3e-3), (3e-3, 1e-2, 3e-2, 1e-1,
             3e-1)), 384, 400, 2, 8, 4, 9.0),
    )
}  # fmt: skip
