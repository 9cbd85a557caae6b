"""The tasks of `headline`: network, data, what is measured and how long a run is. What all have in common, the
training, is in `headline_run`."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from lightning import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

from benchmarks.headline_data import CONTEXT, LENGTH, MiniLMTop, images, sentences, texts
from examples.classifier import Classifier
from examples.language_model import LanguageModel
from examples.models import GPT, SmallCNN, ViT


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
"""The margin is what `batch_size_ramp_text` calls equal."""


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
        parameters: numbers that the network learns; None: they are counted. Known for a network that cannot be made
            without packages that a report does not need.
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
    parameters: int | None = None


def _grid(adamw: tuple[float, ...], sgd: tuple[float, ...]) -> dict[str, tuple[float, ...]]:
    return {"AdamW, tuned": adamw, "SGD, tuned": sgd}


TEN = _accuracy(10, margin=0.005, window=13.0)
_ON_IMAGES = Task(
    name="CNN",
    words="a small CNN on Fashion-MNIST",
    network=lambda: SmallCNN(4),
    module=CountingClassifier,
    data=images,
    metric=TEN,
    sample="images",
    grid=_grid((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
    train_size=4096,
    val_size=5000,
    epochs=8,
    batch_size=128,
    points=8,
    cpu_seconds=4.2,
)
_ALL = (
    _ON_IMAGES,
    replace(
        _ON_IMAGES,
        name="ViT",
        words="a small ViT on Fashion-MNIST",
        network=lambda: ViT(patch=14, dim=32, depth=2, heads=2),
        cpu_seconds=3.8,
    ),
    Task(
        name="byte LM",
        words=f"a GPT of two layers that predicts the next byte of Python source, {CONTEXT} bytes at a time",
        network=lambda: GPT(dim=48, depth=2, heads=4, context=CONTEXT),
        module=CountingLanguageModel,
        data=texts,
        metric=BITS,
        sample="texts",
        grid=_grid((1e-3, 3e-3, 1e-2, 3e-2, 1e-1), (1e-2, 3e-2, 1e-1, 3e-1, 1.0)),
        train_size=2048,
        val_size=256,
        epochs=1,
        batch_size=8,
        points=8,
        cpu_seconds=6.0,
    ),
    Task(
        name="MiniLM",
        words=f"the last layer and a head of the pretrained MiniLM, fine-tuned on film reviews of {LENGTH} tokens",
        network=MiniLMTop,
        module=functools.partial(CountingClassifier, num_classes=2),
        data=sentences,
        metric=_accuracy(2, margin=0.01, window=15.0),
        sample="sentences",
        grid=_grid((1e-4, 3e-4, 1e-3, 3e-3, 1e-2), (3e-3, 1e-2, 3e-2, 1e-1, 3e-1)),
        train_size=384,
        val_size=400,
        epochs=2,
        batch_size=8,
        points=4,
        cpu_seconds=6.0,
        parameters=1_775_234,
    ),
)
TASKS = {task.name: task for task in _ALL}
