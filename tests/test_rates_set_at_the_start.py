"""A module that sets its learning rate in ``on_train_start`` trains as one whose optimizer was made with that rate.

Nothing is trained before it, so that what it sets is no schedule: methods that find a rate of their own, or divide by
the tuned one, go by it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch.optim import AdamW
from torch.utils.data import DataLoader

from lightning_lr import (
    AdaptiveWarmup,
    Constant,
    Cosine,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    LearningRateSearch,
    NormalizedWeightDecay,
)
from tests.support.toy import Toy, data, quiet

pytestmark = pytest.mark.filterwarnings("ignore")
RATE = 0.05

METHODS: dict[str, Callable[[], Callback]] = {
    "warm-up": partial(AdaptiveWarmup, min_lr=1e-3, max_lr=0.1),
    "search": partial(LearningRateSearch, Constant(), budget=1.0),
    "a rate that is known": partial(LearningRateSearch, Constant(), min_lr=0.02, max_lr=0.02),
    "decay": NormalizedWeightDecay,
    "schedule": partial(LearningRateSchedule, Cosine()),
    "scaling": partial(LearningRateScaling, 4, warmup_epochs=1),
    "layers": partial(LayerwiseLRDecay, 0.5),
    "hypergradient": HypergradientDescent,
}


class Steps(Callback):
    """Learning rate and decay of each group, of every update."""

    def __init__(self) -> None:
        self.seen: list[list[tuple[float, float]]] = []

    def on_train_start(self, trainer: Trainer, *_: Any) -> None:
        optimizer = trainer.optimizers[0]
        optimizer.register_step_post_hook(
            lambda *_: self.seen.append([(float(g["lr"]), float(g["weight_decay"])) for g in optimizer.param_groups])
        )


def _steps(callback: Callback, made_with: float, hook: str | None = None, tensor: bool = False) -> list[Any]:
    def configure(module: Any) -> AdamW:
        return AdamW(module.parameters(), lr=torch.tensor(made_with) if tensor else made_with, weight_decay=0.1)

    module, steps = Toy(configure), Steps()
    if hook is not None:

        def set_rates() -> None:
            for group in module.trainer.optimizers[0].param_groups:
                group["lr"] = torch.tensor(RATE) if tensor else RATE

        setattr(module, hook, set_rates)
    torch.manual_seed(0)
    Trainer(**quiet(callbacks=[callback, steps], max_epochs=8)).fit(module, DataLoader(data(48), batch_size=8))
    assert len(steps.seen) > 40
    return steps.seen


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start"])
@pytest.mark.parametrize("name", METHODS)
def test_a_rate_that_is_set_before_training_is_the_optimizers_own(name: str, hook: str) -> None:
    assert _steps(METHODS[name](), 0.01, hook) == _steps(METHODS[name](), RATE)


def test_the_values_are_those_of_the_formulas() -> None:
    climb = _steps(METHODS["warm-up"](), 0.01, "on_train_start")
    assert climb[0][0][0] == pytest.approx(1e-3, rel=1e-6)
    known = _steps(METHODS["a rate that is known"](), 0.01, "on_train_start")
    assert {lr for ((lr, _),) in known} == {0.02}
    decays = _steps(METHODS["decay"](), 0.01, "on_train_start")
    decay = 0.025 * math.sqrt(8 / (8 * 48))  # of batches of 8 in 8 epochs of 48 samples
    assert all(wd * lr == pytest.approx(decay) for ((lr, wd),) in decays)


def test_a_rate_that_is_a_tensor() -> None:
    found = _steps(METHODS["a rate that is known"](), 0.01, "on_train_start", tensor=True)
    assert all(lr == pytest.approx(0.02) for ((lr, _),) in found)
