"""A run whose loss tells a warm-up where to switch: V-shaped in the log of the learning rate, whatever is learned."""

from __future__ import annotations

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor, nn

from lightning_lr import AdaptiveWarmup, BatchSizeRamp, Cosine, CurveRamp
from tests.support.toy import Probe, Toy, fit

EPOCHS = 12
UPDATES = 6 * EPOCHS
OPTIMUM = 0.02


class Valley(Toy):
    """Its loss is V-shaped in the log of its own learning rate, whatever it learns; a gradient is there all the same.

    The smallest loss is at ``OPTIMUM``, so where the warm-up has to switch is known. ``bad`` updates (by the number of
    those made before) have another loss.
    """

    def __init__(self, configure: Any = None, bad: dict[int, float] | None = None, poison: bool = False) -> None:
        super().__init__(configure)
        self.bad = bad or {}
        self.poison = poison
        self.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen += 1
        lr = max(float(group["lr"]) for group in self.trainer.optimizers[0].param_groups)
        step = self.trainer.global_step
        wave = 0.02 * math.sin(12.9898 * step)  # stands for noise; the same in every process
        value = 1.0 + 0.5 * abs(math.log10(lr / OPTIMUM)) + wave
        regression = nn.functional.mse_loss(self(x), y)
        loss = regression - regression.detach() + self.bad.get(step, value)
        # what a diverged step leaves behind in reality: a gradient that is not finite either
        return loss * float("nan") if self.poison and step in self.bad else loss


def warmup(**arguments: Any) -> AdaptiveWarmup:
    return AdaptiveWarmup(**{"min_lr": 1e-3, "max_lr": 1.0, "patience": 2, **arguments})


def after_warmup() -> BatchSizeRamp:
    return BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=24, begin="after_warmup")


def valley_run(callbacks: list[Callback], module: LightningModule | None = None, **arguments: Any) -> Probe:
    probe = Probe()
    fit([*callbacks, probe], module=module or Valley(), **{"max_epochs": EPOCHS, **arguments})
    return probe


def climb(update: int, updates: int = UPDATES, low: float = 1e-3, high: float = 1.0, share: float = 0.5) -> float:
    """AutoWU's climb (section 3): exponential in the updates."""
    return low * (high / low) ** (update / updates / share)


class Record(AdaptiveWarmup):
    """Writes down the losses that reach the machine."""

    def start(self, *arguments: Any) -> None:
        super().start(*arguments)
        assert self.machine is not None
        self.losses: list[float] = []
        observe = self.machine.observe

        def recorded(lr: float, loss: Tensor | float) -> None:
            self.losses.append(float(loss))
            observe(lr, loss)

        self.machine.observe = recorded  # type: ignore[method-assign]


class Means(Toy):
    """The loss of a micro-batch is the mean of its targets: known, and no function of the weights."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        prediction = self(x)
        return (prediction - prediction.detach()).mean() + y.mean()
