"""`GradientNoiseScale` under manual optimization: what it finds in the same gradients under automatic optimization."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_lr import GradientNoiseScale
from tests.support.manual import Rivals
from tests.support.toy import Toy, data, fit
from tests.support.two_processes import ddp, run_in_two_processes
from tests.test_zero_strategy import _loader

K = 4


class Values(Callback):
    """What is known after each batch."""

    def __init__(self, noise: GradientNoiseScale) -> None:
        self.noise = noise
        self.seen: list[float | None] = []

    def on_train_batch_end(self, *args: Any) -> None:
        self.seen.append(self.noise.estimator.value)


class ByHand(Toy):
    """Accumulates over ``k`` batches, and steps with what there is at the end of an epoch."""

    def __init__(self, style: str = "plain", k: int = K, lr: float = 0.05) -> None:
        super().__init__(lambda module: torch.optim.SGD(module.parameters(), lr=lr))
        self.automatic_optimization = False
        self.style, self.k = style, k

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        optimizer = self.optimizers()
        loss = super().training_step(batch, batch_idx)
        if self.style == "derives":
            _derive(loss, self)
        if self.style == "in parts":
            self.manual_backward(0.3 * loss / self.k, retain_graph=True)
            self.manual_backward(0.7 * loss / self.k)
        elif self.style == "not divided":
            self.manual_backward(loss)
        elif self.style == "raw":
            (loss / self.k).backward()
        else:
            self.manual_backward(loss / self.k)
        if self.style == "derives":
            _derive(super().training_step(batch, batch_idx), self)
        if self.style == "clips early":
            nn.utils.clip_grad_norm_(self.parameters(), 1e-3)
        if (batch_idx + 1) % self.k == 0 or self.trainer.is_last_batch:
            self.update(optimizer)
        return loss

    def update(self, optimizer: Any) -> None:
        if self.style == "clipped":
            self.clip_gradients(optimizer, gradient_clip_val=1e3, gradient_clip_algorithm="norm")
            self.clip_gradients(optimizer, gradient_clip_val=1e3, gradient_clip_algorithm="value")
        (optimizer.optimizer if self.style == "raw optimizer" else optimizer).step()
        if self.style == "zeroes":
            optimizer.zero_grad(set_to_none=False)
        elif self.style == "drops by hand":
            for parameter in self.parameters():
                parameter.grad = None
        elif self.style == "zeroes by hand":
            for parameter in self.parameters():
                assert parameter.grad is not None
                parameter.grad.zero_()
        elif self.style == "by the module":
            self.zero_grad()
        else:
            optimizer.zero_grad()


STYLES = (
    *("plain", "in parts", "not divided", "clipped", "raw optimizer", "zeroes", "drops by hand", "zeroes by hand"),
    *("by the module", "derives"),
)


def _derive(loss: Tensor, module: nn.Module) -> None:
    """A derivative with respect to the parameters that no update uses: an adaptive weight of a loss, for example."""
    torch.autograd.grad(loss.square(), list(module.parameters()), retain_graph=True)


def sgd(module: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.05)


def measured(module: Any, samples: int = 48, batch: int = 4, every: int = 1, **arguments: Any) -> list[float | None]:
    noise = GradientNoiseScale(every=every)
    values = Values(noise)
    fit([noise, values], module=module, loader=DataLoader(data(samples), batch_size=batch), **arguments)
    return values.seen


def same(got: list[float | None], want: list[float | None]) -> None:
    assert len(got) == len(want)
    for one, other in zip(got, want, strict=True):
        assert (one is None) == (other is None)
        # the gradients are float32, and are added in parts: the difference of two norms loses four digits of seven
        assert one is None or other is None or one == other or one == pytest.approx(other, rel=1e-3)


@functools.cache
def by_lightning(samples: int, every: int) -> list[float | None]:
    return measured(Toy(sgd), samples, every=every, accumulate_grad_batches=K)


@pytest.mark.parametrize(
    ("style", "samples", "every"),
    # a short last batch; full windows; a window of 2 batches
    [*((style, 45, 1) for style in STYLES), ("plain", 48, 1), ("plain", 40, 1), ("drops by hand", 45, 2)],
)
def test_accumulation_by_hand_shows_what_lightnings_does(style: str, samples: int, every: int) -> None:
    want = by_lightning(samples, every)
    got = measured(ByHand(style, lr=0.05 / K if style == "not divided" else 0.05), samples, every=every)
    assert sum(value is not None for value in want) > 20
    same(got, want)


@pytest.mark.parametrize(
    ("style", "k", "told"),
    [
        ("plain", 1, "one batch in an update there is one gradient"),
        ("raw", K, "the last backward before the step was not manual_backward"),
        ("clips early", K, "or a gradient was changed between two backwards"),
    ],
)
def test_what_cannot_be_measured_is_said_once(style: str, k: int, told: str) -> None:
    with pytest.warns(UserWarning, match=told) as caught:
        assert set(measured(ByHand(style, k))) == {None}
    assert sum(told in str(one.message) for one in caught) == 1


def test_one_of_several_optimizers_has_to_be_named() -> None:
    with pytest.raises(MisconfigurationException, match=r"name the one to measure, such as optimizers=\[0\]"):
        fit([GradientNoiseScale()], module=Rivals())


# ---------------------------------------------------------------------- several devices
def _measured(make: Callable[[], Any]) -> list[float | None]:
    noise = GradientNoiseScale()
    values = Values(noise)
    fit([noise, values], module=make(), loader=_loader(4), **ddp())
    return values.seen


def _judged(style: str) -> list[float | None]:
    noise = GradientNoiseScale(optimizers=[1])
    values = Values(noise)
    unused = partial(DDPStrategy, find_unused_parameters=True)
    fit([noise, values], module=Rivals(style), loader=_loader(4), **ddp(unused))
    return values.seen


def test_gradients_of_another_networks_loss_count_for_nothing(tmp_path: Any) -> None:
    """The maker's loss leaves gradients in the judge, which its zero_grad drops; a toggled judge gets none."""
    styles = ("plain", "toggled", "clipped")
    for rank in run_in_two_processes([(style, partial(_judged, style)) for style in styles], tmp_path):
        for style in styles:
            assert not isinstance(rank[style], Exception), rank[style]
            assert all(value is not None for value in rank[style])
            if style != "clipped":
                same(rank[style], rank["plain"])


def test_one_batch_of_each_of_two_devices_is_enough(tmp_path: Any) -> None:
    cases = [("automatic", partial(_measured, partial(Toy, sgd)))]
    for style in ("plain", "in parts", "clipped"):
        cases.append((style, partial(_measured, partial(ByHand, style, 1))))
    for rank in run_in_two_processes(cases, tmp_path):
        assert all(value is not None for value in rank["automatic"])
        for style in ("plain", "in parts", "clipped"):
            assert not isinstance(rank[style], Exception), rank[style]
            same(rank[style], rank["automatic"])


def test_a_known_noise_is_found() -> None:
    """One weight, the gradient of each sample is w - x: G = w, tr(Sigma) = Var(x), at a learning rate of 0."""

    class Mean(ByHand):
        def __init__(self) -> None:
            super().__init__(lr=0.0)
            self.w = nn.Parameter(torch.ones(1))

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD([self.w], lr=0.0)

        def forward(self, x: Tensor) -> Tensor:
            return self.w.expand(len(x), 1)

    generator = torch.Generator().manual_seed(1)
    x = 3 * torch.randn(8_000, 1, generator=generator)  # mse's gradient is 2 (w - x): |G|^2 = 4, tr(Sigma) = 36
    noise = GradientNoiseScale(smoothing=0.999)
    fit([noise], module=Mean(), loader=DataLoader(list(zip(x, x, strict=True)), batch_size=8), max_epochs=1)
    # 250 updates of 32 samples: the standard deviation of the estimate is about 0.7
    assert noise.estimator.value == pytest.approx(9.0, abs=2.0)
    assert math.isfinite(noise.estimator.value or math.nan)
