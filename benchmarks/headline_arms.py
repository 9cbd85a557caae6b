"""The ways to train that `headline` compares, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback
from torch.optim import Optimizer

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    CurveRamp,
    HypergradientDescent,
    LearningRateSchedule,
)

TUNED = ("AdamW, tuned", "SGD, tuned")
WEIGHT_DECAY = 0.01


@dataclass(frozen=True)
class Arm:
    """A way to train.

    Args:
        optimizer: from parameters and learning rate.
        lr: where it begins, or has its peak; 0 where the search says.
        callbacks: methods, new ones for each run.
        reading: where Lightning's learning rate finder goes first, what is taken from it.
    """

    optimizer: Callable[[Any, float], Optimizer]
    lr: float
    callbacks: Callable[[], list[Callback]]
    reading: Callable[[Any], float | None] | None = None


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


def suggestion(finder: Any) -> float | None:
    """What Lightning says itself: since 2.5.3 the steepest fall of the smoothed loss by the learning rate."""
    rate: float | None = finder.suggestion()
    return rate


def steepest_per_step(finder: Any) -> float | None:
    """The steepest fall of the smoothed loss per step of the sweep, so by the logarithm of the rate: what Lightning
    said before 2.5.3, with the same samples left out at either end."""
    losses, rates = torch.tensor(finder.results["loss"][10:-1]), finder.results["lr"][10:-1]
    if len(losses) < 2:
        return None
    falls = torch.gradient(losses.nan_to_num(nan=float("inf"), posinf=float("inf")))[0]
    return float(rates[int(falls.nan_to_num(nan=float("inf")).argmin())])


SHORT_CLIMB: dict[str, Any] = {"min_lr": 1e-4, "max_lr": 0.3, "max_warmup": 0.25}
"""Chosen by `headline_why`."""

ARMS: dict[str, Arm] = {
    "AdamW, tuned": Arm(_adamw, 0.0, _warmup_cosine),
    "SGD, tuned": Arm(_sgd, 0.0, _warmup_cosine),
    "AdaptiveWarmup": Arm(_adamw, 1.0, lambda: [AdaptiveWarmup(restore_best=True)]),
    "AdaptiveWarmup, short climb": Arm(_adamw, 1.0, lambda: [AdaptiveWarmup(restore_best=True, **SHORT_CLIMB)]),
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
    "LearningRateFinder": Arm(_adamw, 1e-3, _warmup_cosine, suggestion),
    "LearningRateFinder, per step": Arm(_adamw, 1e-3, _warmup_cosine, steepest_per_step),
    "AdamW at 1e-3": Arm(_adamw, 1e-3, _warmup_cosine),
    "Prodigy": Arm(_of_pytorch_optimizer("Prodigy"), 1.0, _cosine),
    "DAdaptAdam": Arm(_of_pytorch_optimizer("DAdaptAdam"), 1.0, _cosine),
    "ScheduleFreeAdamW": Arm(_of_pytorch_optimizer("ScheduleFreeAdamW"), 0.0025, list),
}
assert set(TUNED) <= set(ARMS)
