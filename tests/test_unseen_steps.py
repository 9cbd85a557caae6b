"""Updates that no ``step`` of an optimizer makes (SAM's two halves by hand): what cannot follow them says so."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import SGD, Optimizer

from lightning_lr import AdaptiveWarmup, GradientNoiseScale, HypergradientDescent, LearningRateSchedule, Polynomial
from tests.support.toy import Toy, fit

UNSEEN = "no optimizer of configure_optimizers has made a step"


class SAM(Optimizer):
    """Sharpness-aware minimization as it is mostly written: an optimizer inside of another."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})
        self.inner = SGD(self.param_groups, lr=lr)
        self.param_groups = self.inner.param_groups
        self.rates: list[float] = []

    @torch.no_grad()
    def first_step(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            self.state[parameter]["before"] = parameter.clone()
            parameter.add_(parameter.grad, alpha=0.05)
        self.zero_grad()

    @torch.no_grad()
    def second_step(self) -> None:
        for parameter in (p for group in self.param_groups for p in group["params"]):
            parameter.copy_(self.state[parameter]["before"])
        self.rates.append(float(self.param_groups[0]["lr"]))
        self.inner.step()
        self.zero_grad()

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
            self.first_step()
            closure()
        self.second_step()
        return loss


class Sharp(Toy):
    def __init__(self, by_step: bool) -> None:
        super().__init__(lambda module: SAM(module.parameters(), 0.1))
        self.automatic_optimization = False
        self.by_step = by_step

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer: Any = self.optimizers()

        def closure() -> Tensor:
            loss = super(Sharp, self).training_step(batch, batch_idx)
            self.manual_backward(loss)
            return loss

        if self.by_step:
            loss: Tensor = optimizer.step(closure)
            return loss
        loss = closure()
        optimizer.first_step()
        closure()
        optimizer.second_step()
        return loss


def _run(callback: Any, by_step: bool, epochs: int = 4) -> tuple[list[float], list[str]]:
    module = Sharp(by_step)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        _, trainer = fit([callback], module=module, max_epochs=epochs)
    optimizer: Any = trainer.optimizers[0]
    return optimizer.rates, [str(warning.message) for warning in caught if UNSEEN in str(warning.message)]


@pytest.mark.parametrize("epochs", [1, 4])
@pytest.mark.parametrize("make", [lambda: LearningRateSchedule(Polynomial()), HypergradientDescent, GradientNoiseScale])
def test_updates_that_nobody_sees_are_warned_of_once(make: Any, epochs: int) -> None:
    assert len(_run(make(), by_step=False, epochs=epochs)[1]) == 1
    assert _run(make(), by_step=True, epochs=epochs)[1] == []


def test_a_schedule_follows_the_batches_all_the_same() -> None:
    rates, _ = _run(LearningRateSchedule(Polynomial(power=1)), by_step=False)
    assert rates == pytest.approx([0.1 * (1 - update / len(rates)) for update in range(len(rates))])
    assert rates == _run(LearningRateSchedule(Polynomial(power=1)), by_step=True)[0]


def test_a_climb_that_nothing_would_end_is_refused() -> None:
    def warmup() -> AdaptiveWarmup:
        return AdaptiveWarmup(min_lr=1e-3, max_lr=1.0, patience=1, check_every=2)

    with pytest.raises(MisconfigurationException, match="of the run has been trained, and no optimizer that climbs"):
        _run(warmup(), by_step=False, epochs=8)
    rates, told = _run(warmup(), by_step=True, epochs=8)
    assert told == []
    assert rates[-1] < max(rates), "it has decayed"
