"""Noise scales: the paper's formulas, and the measured one on problems whose gradient noise is known in closed form.

Tolerances: 10 % for one run of 500 updates with the default smoothing, as issue 3 asks; the averages remember about 40
updates, which is 4 % of noise here. Unbiasedness is held to four standard errors of the mean that is formed.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_lr.batch_size import (
    GradientNoiseEstimator,
    WindowContents,
    momentum_transient,
    noise_scale,
    scaled_batch_size,
    squared_norms,
)


@pytest.mark.parametrize(
    "tensor",
    [
        torch.randn(3, generator=torch.Generator().manual_seed(0)),
        torch.randn(300, 257, generator=torch.Generator().manual_seed(0)),
        torch.randn(40, 50, generator=torch.Generator().manual_seed(0)).t(),
        torch.randn(2, 3, 4, 5).to(memory_format=torch.channels_last),
        torch.randn(70, dtype=torch.float64),
        torch.randn(70).bfloat16(),
        torch.randn(70, dtype=torch.complex64),
        torch.ones(5)[2].requires_grad_(),
        torch.zeros(0, 4),
    ],
    ids=lambda tensor: f"{tuple(tensor.shape)} {tensor.dtype} {'' if tensor.is_contiguous() else 'turned'}",
)
def test_squared_norms_of_tensors_of_every_kind(tensor: Tensor) -> None:
    wide = tensor.detach().to(torch.complex128 if tensor.is_complex() else torch.float64)
    expected = wide.abs().square().sum().item()
    found = squared_norms.squared_norm([tensor], torch.device("cpu"))
    assert (found.dtype, found.shape) == (torch.float64, ())
    # sums of up to 2^15 numbers in single precision
    assert found.item() == pytest.approx(expected, rel=2e-7 if tensor.dtype != torch.float64 else 1e-14)


def test_squared_norms_of_several_backwards_are_added_up_for_each_parameter() -> None:
    first, second, third = (torch.zeros(1) for _ in range(3))
    norms = squared_norms.SquaredNorms(torch.device("cpu"))
    for scale in (1.0, 10.0):  # twice the same parameters
        norms.add(first, torch.tensor([1.0, 2.0]))
        norms.add(second, torch.tensor([3.0], dtype=torch.float64))
        norms.close(scale)
    norms.add(third, torch.tensor([2.0]))
    norms.add(first, torch.tensor([1.0]))
    norms.close(100.0)
    assert {id(p) for p in norms.parameters} == {id(first), id(second), id(third)}
    assert norms.total([first]).item() == 5 * 11 + 100
    assert norms.total([second, third]).item() == 9 * 11 + 400
    assert norms.total([first, second, third]).item() == 55 + 100 + 99 + 400
    assert norms.total([]).item() == 0.0


@pytest.mark.parametrize(
    ("lr", "momentum", "batch_size", "expected"),
    [(0.1, 0.9, 128, 389.625), (0.5, 0.9, 640, 385.625), (0.5, 0.98, 3200, 365.625)],
)
def test_noise_scale_of_the_papers_three_starts(lr: float, momentum: float, batch_size: int, expected: float) -> None:
    assert noise_scale(lr, momentum, batch_size, 50_000) == pytest.approx(expected, rel=1e-12)
    assert lr * 50_000 / (batch_size * (1 - momentum)) == pytest.approx(390.625, rel=1e-12)


def test_a_batch_of_all_the_data_has_no_noise() -> None:
    assert noise_scale(0.1, 0.9, 100, 100) == 0.0
    assert noise_scale(0.1, 0.9, 200, 100) == 0.0


def test_batch_scales_with_the_effective_learning_rate() -> None:
    assert scaled_batch_size(128, 0.1, 0.9, 0.5, 0.9) == 640
    assert scaled_batch_size(640, 0.5, 0.9, 0.5, 0.98) == 3200
    assert scaled_batch_size(128, 0.1, 0.9, 0.5, 0.98) == 3200
    assert scaled_batch_size(8192, 3.0, 0.9, 3.0, 0.975) == 32_768
    assert scaled_batch_size(1, 1.0, 0.0, 0.01, 0.0) == 1


def test_momentum_takes_batches_to_catch_up() -> None:
    assert momentum_transient(3200, 50_000, 0.98) == pytest.approx(3.2)
    assert momentum_transient(128, 50_000, 0.9) == pytest.approx(0.0256)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: noise_scale(0.1, 1.0, 128, 1000), r"noise_scale: momentum=1\.0 is not allowed; give a number in \[0"),
        (lambda: noise_scale(0.1, 0.9, 0, 1000), "batch_size=0 is not allowed"),
        (lambda: momentum_transient(1, 0, 0.9), "momentum_transient: dataset_size=0"),
        (lambda: scaled_batch_size(128, 0.0, 0.9, 0.5, 0.9), r"lr=0\.0 is not allowed; give a learning rate above 0"),
        (lambda: scaled_batch_size(128, 0.1, 0.9, 0.5, -0.1), r"new_momentum=-0\.1"),
        (lambda: GradientNoiseEstimator(smoothing=1.0), r"smoothing=1\.0 is not allowed"),
        (lambda: GradientNoiseEstimator().update(1.0, 1.0, 8, 8), "small_batch=8 and big_batch=8 are not two"),
        (lambda: GradientNoiseEstimator().update(1.0, 1.0, 0, 8), "small_batch=0"),
    ],
)
def test_bad_input_is_refused(call: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


class LinearGaussian:
    """Least squares on Gaussian inputs: sample gradient (x.d - e) x with x ~ N(0, I_n), e ~ N(0, s^2).

    G = d and E|g|^2 = (n + 2)|d|^2 + n s^2 (Isserlis), so tr(Sigma) = (n + 1)|d|^2 + n s^2.
    """

    def __init__(self, features: int = 100, noise: float = 1.0, seed: int = 0) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.gradient = torch.ones(features, dtype=torch.float64) / math.sqrt(features)
        self.noise = noise
        self.variance = (features + 1) + features * noise**2
        self.noise_scale = self.variance  # |G|^2 = 1

    def sample_gradients(self, samples: int) -> Tensor:
        x = torch.randn(samples, len(self.gradient), dtype=torch.float64, generator=self.generator)
        residual = x @ self.gradient - self.noise * torch.randn(samples, dtype=torch.float64, generator=self.generator)
        return residual[:, None] * x


def squared_norm(gradient: Tensor) -> float:
    return float(gradient.square().sum())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_estimate_is_within_ten_percent_after_500_updates(seed: int) -> None:
    problem = LinearGaussian(seed=seed)
    estimator = GradientNoiseEstimator()
    for _ in range(500):
        micro = problem.sample_gradients(256).view(8, 32, -1).mean(dim=1)  # 8 micro-batches, or ranks, of 32
        small = sum(map(squared_norm, micro)) / 8
        estimator.update(small, squared_norm(micro.mean(dim=0)), 32, 256)
    assert estimator.value == pytest.approx(problem.noise_scale, rel=0.1)
    assert estimator.variance == pytest.approx(problem.variance, rel=0.1)
    assert estimator.squared_gradient == pytest.approx(1.0, rel=0.1)


def test_both_estimates_are_unbiased_for_a_batch_that_ramps() -> None:
    problem = LinearGaussian(features=20)
    squared, variance = [], []
    for step in range(2000):
        batches = 2 + step % 7
        micro = problem.sample_gradients(16 * batches).view(batches, 16, -1).mean(dim=1)
        one = GradientNoiseEstimator(smoothing=0.0)
        one.update(squared_norm(micro[0]), squared_norm(micro.mean(dim=0)), 16, 16 * batches)
        squared.append(one.squared_gradient)
        variance.append(one.variance)
    for found, exact in ((squared, 1.0), (variance, problem.variance)):
        values = torch.tensor(found, dtype=torch.float64)
        assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(len(values))


def test_averages_are_corrected_for_their_start_at_zero() -> None:
    estimator = GradientNoiseEstimator(smoothing=0.9)
    assert estimator.value is None
    for updates in range(1, 4):
        estimator.update(2.0 + 1 / 4, 2.0 + 1 / 16, 4, 16)  # |G|^2 = 2, tr = 1, exactly
        assert estimator.updates == updates
        assert estimator.squared_gradient == pytest.approx(2.0, rel=1e-12)
        assert estimator.value == pytest.approx(0.5, rel=1e-12)


def test_what_cannot_be_told_is_said() -> None:
    lost = GradientNoiseEstimator()
    lost.update(4.0, 0.5, 2, 16)  # |G|^2 comes to 0: all noise
    assert lost.value == math.inf
    clean = GradientNoiseEstimator()
    clean.update(1.0, 1.1, 2, 16)  # the larger batch has the larger norm: no noise shows
    assert clean.value == 0.0
    nothing = GradientNoiseEstimator()
    nothing.update(0.0, 0.0, 2, 16)
    assert nothing.value is None


def test_an_overflow_is_left_out() -> None:
    estimator = GradientNoiseEstimator()
    estimator.update(2.25, 2.0625, 4, 16)
    before = estimator.state_dict()
    estimator.update(math.inf, 2.0, 4, 16)
    estimator.update(2.0, math.nan, 4, 16)
    assert estimator.state_dict() == before


def test_state_is_plain_and_continues() -> None:
    problem = LinearGaussian(features=5)
    norms = [
        (squared_norm(g[:8].mean(dim=0)), squared_norm(g.mean(dim=0)))
        for g in (problem.sample_gradients(64) for _ in range(20))
    ]
    whole, first, second = GradientNoiseEstimator(), GradientNoiseEstimator(), GradientNoiseEstimator()
    for small, big in norms:
        whole.update(small, big, 8, 64)
    for small, big in norms[:11]:
        first.update(small, big, 8, 64)
    state = first.state_dict()
    assert all(type(value) in (int, float) for value in state.values())
    second.load_state_dict(state)
    for small, big in norms[11:]:
        second.update(small, big, 8, 64)
    assert second.value == whole.value


@pytest.mark.parametrize(
    ("sizes", "weights", "small", "big"),
    [
        ((16, 16, 16, 16), (1 / 4,) * 4, 16.0, 64.0),
        ((16, 16), (1 / 8,) * 2, 16.0, 32.0),  # a short window, divided by the nominal 8
        ((32, 32, 32, 4), (1 / 4,) * 4, 4 / (3 / 32 + 1 / 4), 16 / (3 / 32 + 1 / 4)),
        ((4, 3, 3), (0.4, 0.3, 0.3), 36 / 11, 10.0),  # a ramp's: each loss weighted by its samples
        ((3, 3, 2, 2), (0.3, 0.3, 0.2, 0.2), 2.4, 10.0),
    ],
)
def test_a_window_tells_the_two_batch_sizes_that_it_really_compares(
    sizes: tuple[int, ...], weights: tuple[float, ...], small: float, big: float
) -> None:
    window = WindowContents()
    for size, weight in zip(sizes, weights, strict=True):
        window.add(size, weight)
    assert window.is_comparable
    assert window.small_batch == pytest.approx(small, rel=1e-12)
    assert window.big_batch == pytest.approx(big, rel=1e-12)
    assert window.weight == pytest.approx(sum(weights), rel=1e-12)
    for devices in (2, 4):  # all alike: as noisy as one device's over as many times the samples
        together = WindowContents.over_devices(window.sums(), devices)
        assert together.small_batch == pytest.approx(small, rel=1e-12)
        assert together.big_batch == pytest.approx(devices * big, rel=1e-12)


def test_one_gradient_or_an_unknown_size_is_not_comparable() -> None:
    one, unknown = WindowContents(), WindowContents()
    assert not one.is_comparable
    one.add(8, 1.0)
    assert not one.is_comparable
    assert WindowContents.over_devices(one.sums(), 2).is_comparable
    unknown.add(8, 0.5)
    unknown.add(math.nan, 0.5)
    assert not unknown.is_comparable


@pytest.mark.parametrize(
    ("sizes", "weights"),
    [((32, 32, 32, 4), (1 / 4,) * 4), ((4, 3, 3), (0.4, 0.3, 0.3)), ((5, 1), (1 / 8,) * 2)],
)
def test_both_estimates_are_unbiased_for_unequal_micro_batches(
    sizes: tuple[int, ...], weights: tuple[float, ...]
) -> None:
    problem = LinearGaussian(features=20)
    squared, variance = [], []
    for _ in range(600):
        gradients = [problem.sample_gradients(size).mean(dim=0) for size in sizes]
        window = WindowContents()
        for size, weight in zip(sizes, weights, strict=True):
            window.add(size, weight)
        accumulated = sum(weight * gradient for weight, gradient in zip(weights, gradients, strict=True))
        small = sum(map(squared_norm, gradients)) / len(sizes)
        one = GradientNoiseEstimator(smoothing=0.0)
        one.update(small, squared_norm(accumulated) / window.weight**2, window.small_batch, window.big_batch)  # type: ignore[arg-type]
        squared.append(one.squared_gradient)
        variance.append(one.variance)
    for found, exact in ((squared, 1.0), (variance, problem.variance)):
        values = torch.tensor(found, dtype=torch.float64)
        assert abs(float(values.mean()) - exact) < 4 * float(values.std()) / math.sqrt(len(values))
