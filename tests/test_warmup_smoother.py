"""The history, the smoother and the switch test of the adaptive warm-up, each alone.

The Gaussian process is held to scikit-learn's, which knows nothing of GPyTorch: 1e-6 relative, as scikit-learn adds a
jitter of its own choosing only where told to, and both work in float64 by Cholesky.
"""

from __future__ import annotations

import json
import math
import time
from typing import Any

import gpytorch
import pytest
import torch
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel
from torch import Tensor

from lightning_lr.gaussian_process.evidence import log_evidence
from lightning_lr.gaussian_process.model import BlockGP
from lightning_lr.warmup import LossBlock, LossHistory, Posterior, SwitchTest, fit, look
from lightning_lr.warmup.history import noise_of
from lightning_lr.warmup.switch import picture, safe_lr


def noise(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def log_grid(n: int, low: float = -5.0, high: float = -1.5) -> Tensor:
    return torch.logspace(low, high, n, dtype=torch.float64)


def history_of(lr: Tensor, loss: Tensor, capacity: int = 64) -> LossHistory:
    history = LossHistory(capacity)
    history.extend(lr.tolist(), loss)
    return history


def valley(lr: Tensor, at: float = -2.0) -> Tensor:
    """A smooth valley with its floor at lr 10**at."""
    return 1.0 + (lr.log10() - at) ** 2


# ---------------------------------------------------------------------- history
def test_a_block_is_the_mean_of_its_updates() -> None:
    lr, loss = log_grid(64 * 4), 3.0 + noise(64 * 4)
    blocks = history_of(lr, loss).blocks()
    width = blocks[0].count
    chunks = loss.split(width)
    assert [block.loss for block in blocks] == pytest.approx([float(chunk.mean()) for chunk in chunks], rel=1e-12)
    logs = [float(chunk.log().mean()) for chunk in lr.split(width)]
    assert [block.log_lr for block in blocks] == pytest.approx(logs, rel=1e-12)
    squares = [float(((chunk - chunk.mean()) ** 2).sum()) for chunk in chunks]
    assert [block.squares for block in blocks] == pytest.approx(squares, rel=1e-9)


def test_the_noise_of_one_update_is_measured_within_the_blocks() -> None:
    # 0.5 +- 2 %: 5000 deviations know a standard deviation to 1 %
    blocks = history_of(log_grid(5000), 1e3 + 0.5 * noise(5000)).blocks()
    assert noise_of(blocks) == pytest.approx(0.5, rel=0.03)
    assert noise_of([LossBlock(1, 0.0, 2.0)]) == 0.0


@pytest.mark.parametrize("chunk", [1, 7, 94, 5000])
def test_memory_is_bounded_and_does_not_depend_on_the_chunks(chunk: int) -> None:
    lr, loss = log_grid(5000).tolist(), (2.0 + noise(5000)).tolist()
    history, whole = LossHistory(), LossHistory()
    for start in range(0, 5000, chunk):
        history.extend(lr[start : start + chunk], loss[start : start + chunk])
    whole.extend(lr, loss)
    assert history.state_dict() == whole.state_dict()
    assert len(history.blocks()) <= 64
    assert sum(block.count for block in history.blocks()) == 5000


def test_the_state_of_a_long_warmup_is_no_larger() -> None:
    def size(updates: int) -> int:
        return len(json.dumps(history_of(log_grid(updates), 2.0 + noise(updates)).state_dict()))

    assert size(50_000) < 1.25 * size(1000)  # 64 blocks and 24 losses; the digits of the counts differ


@pytest.mark.parametrize("updates", [6, 63, 64, 65, 100, 129, 1000, 4999])
def test_all_blocks_carry_about_the_same_noise(updates: int) -> None:
    blocks = history_of(log_grid(updates), noise(updates)).blocks()
    width = blocks[0].count
    assert sum(block.count for block in blocks) == updates
    assert {block.count for block in blocks[:-1]} == {width}
    assert 0.5 * width <= blocks[-1].count <= 1.5 * width


def test_a_spike_is_replaced_and_counted() -> None:
    lr, loss = log_grid(1000), 2.0 + 0.1 * noise(1000)
    spiky = loss.clone()
    spiky[[300, 301, 700]] += 50 * 0.1
    history = history_of(lr, spiky)
    assert history.spikes == 3 + history_of(lr, loss).spikes
    difference = max(abs(a.loss - b.loss) for a, b in zip(history.blocks(), history_of(lr, loss).blocks(), strict=True))
    # a loss of at most 3 sd gives way to a median: two of them in one block of 16
    assert 0.0 < difference < 2 * 3 * 0.1 / 16


def test_a_rise_that_stays_is_no_spike() -> None:
    loss = torch.cat([torch.ones(500), 100.0 * torch.ones(500)]).double() + 0.1 * noise(1000)
    history = history_of(log_grid(1000), loss)
    assert history.spikes <= 2  # Gaussian tails
    assert history.blocks()[-1].loss == pytest.approx(100.0, rel=1e-2)


def test_losses_that_are_not_finite_are_counted_and_not_averaged() -> None:
    loss = 2.0 + 0.1 * noise(100)
    loss[10], loss[50], loss[99] = math.nan, math.inf, -math.inf
    history = history_of(log_grid(100), loss)
    assert (history.observed, history.non_finite) == (100, 3)
    assert sum(block.count for block in history.blocks()) == 97
    assert all(math.isfinite(block.loss) for block in history.blocks())


@pytest.mark.parametrize("cut", [3, 30, 64, 1000, 1999])
def test_a_resumed_history_is_the_same(cut: int) -> None:
    lr, loss = log_grid(2000).tolist(), noise(2000).tolist()
    first, resumed, whole = LossHistory(), LossHistory(), LossHistory()
    first.extend(lr[:cut], loss[:cut])
    resumed.load_state_dict(json.loads(json.dumps(first.state_dict())))
    resumed.extend(lr[cut:], loss[cut:])
    whole.extend(lr, loss)
    assert resumed.blocks() == whole.blocks()


# ---------------------------------------------------------------------- the Gaussian process
def sklearn_process(lengthscale: float, signal: float, sigma: float) -> GaussianProcessRegressor:
    kernel = ConstantKernel(signal) * RBF(lengthscale) + WhiteKernel(sigma)
    return GaussianProcessRegressor(kernel, optimizer=None, alpha=0.0)


def test_marginal_likelihood_is_that_of_scikit_learn() -> None:
    inputs = log_grid(40).log()
    targets = noise(40)
    rows = [(0.5, 0.5, 0.3), (2.0, 5.0, 1.0), (5.0, 1.0, 0.01)]
    evidence = log_evidence(inputs, targets, torch.tensor(rows, dtype=torch.float64))
    expected = [
        sklearn_process(*row).fit(inputs.reshape(-1, 1).numpy(), targets.numpy()).log_marginal_likelihood_value_
        for row in rows
    ]
    assert evidence.tolist() == pytest.approx(expected, rel=1e-6)


def test_marginal_likelihood_is_that_of_gpytorch() -> None:
    inputs, targets = log_grid(40).log(), noise(40)
    rows = torch.tensor([(0.5, 0.5, 0.3), (2.0, 5.0, 1.0), (5.0, 1.0, 0.01)], dtype=torch.float64)
    model = BlockGP(inputs, targets, rows).train()
    evidence = gpytorch.mlls.ExactMarginalLogLikelihood(model.likelihood, model)
    with gpytorch.settings.fast_computations(False, False, False):
        per_target = evidence(model(*model.train_inputs), model.train_targets)
    # softplus parameters and their inverse, in double precision
    assert log_evidence(inputs, targets, rows).tolist() == pytest.approx((40 * per_target).tolist(), rel=1e-9)


def test_prediction_is_that_of_scikit_learn() -> None:
    inputs, targets = log_grid(30).log(), noise(30)
    points = torch.linspace(float(inputs[0]), float(inputs[-1]), 11, dtype=torch.float64)
    rows = [(1.0, 0.5, 0.3), (2.0, 5.0, 1.0)]
    with torch.no_grad():
        model = BlockGP(inputs, targets, torch.tensor(rows, dtype=torch.float64)).eval()
        prediction = model(points.reshape(1, -1, 1).expand(2, -1, -1))
    for index, row in enumerate(rows):
        oracle = sklearn_process(*row).fit(inputs.reshape(-1, 1).numpy(), targets.numpy())
        mean, covariance = oracle.predict(points.reshape(-1, 1).numpy(), return_cov=True)
        covariance -= row[2] * torch.eye(11).numpy()  # scikit-learn predicts the noisy loss
        assert prediction.mean[index].numpy() == pytest.approx(mean, rel=1e-6, abs=1e-8)
        assert prediction.covariance_matrix[index].numpy() == pytest.approx(covariance, rel=1e-5, abs=1e-8)


def test_posterior_finds_a_smooth_minimum_and_its_band_covers_the_truth() -> None:
    lr = log_grid(4000, -5.0, -1.0)
    inside = []
    for seed in range(5):
        posterior = fit(history_of(lr, valley(lr) + 0.3 * noise(4000, seed)).blocks())
        assert math.exp(posterior.argmin) == pytest.approx(1e-2, rel=0.1)
        truth = valley(posterior.log_lr.exp())
        inside.append(((posterior.mean - truth).abs() < 1.96 * posterior.sd).double().mean())
    # 95 % on average over functions of the prior; one function, correlated points and 5 seeds leave it at 80 % or more
    assert float(torch.stack(inside).mean()) >= 0.8


@pytest.mark.parametrize("factor", [1e-3, 0.37, 10.0, 1e3])
@pytest.mark.parametrize("shift", [0.0, -50.0])
def test_the_unit_of_the_loss_changes_nothing(factor: float, shift: float) -> None:
    lr = log_grid(2000, -5.0, -1.5)
    loss = valley(lr) + 0.3 * noise(2000)
    plain = look(history_of(lr, loss).blocks(), 1.0)
    other = look(history_of(lr, factor * (loss + shift)).blocks(), 1.0)
    assert other.best_lr == pytest.approx(plain.best_lr, rel=1e-6)
    assert other.probability == pytest.approx(plain.probability, abs=1e-6)


def test_fitting_is_deterministic_and_leaves_the_random_state_alone() -> None:
    blocks = history_of(log_grid(500), noise(500)).blocks()
    before = torch.get_rng_state()
    first, second = fit(blocks), fit(blocks)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.mean, second.mean)
    assert torch.equal(first.covariances, second.covariances)
    assert first.mean.dtype == torch.float64


def test_a_constant_loss_tells_nothing() -> None:
    test = look(history_of(log_grid(200), torch.full((200,), 0.1)).blocks(), 1.0)
    assert test.probability == 0.5
    assert test.posterior is not None
    assert test.posterior.mean.tolist() == pytest.approx([0.1] * len(test.posterior.log_lr), rel=1e-6)


def test_what_cannot_be_smoothed_is_refused() -> None:
    with pytest.raises(ValueError, match="got 5 blocks; give at least 6"):
        fit([LossBlock(1, float(i), 0.0) for i in range(5)])
    with pytest.raises(ValueError, match="one and the same learning rate"):
        fit([LossBlock(1, 0.0, float(i)) for i in range(8)])
    for capacity in (7, 6, 64.0):
        with pytest.raises(ValueError, match=r"capacity=.* is not allowed; give an even number of at least 8"):
            LossHistory(capacity)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="got 2 learning rates for 1 losses"):
        LossHistory().extend([1.0, 2.0], [1.0])


def test_a_test_of_5000_updates_is_cheap() -> None:
    """The issue allows 50 ms on one core, for reading all 5000 losses as well (about 30 were measured); here 150."""
    lr, loss = log_grid(5000), valley(log_grid(5000)) + noise(5000)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        times = []
        for _ in range(5):
            start = time.process_time()
            look(history_of(lr, loss).blocks(), 1.0)
            times.append(time.process_time() - start)
    finally:
        torch.set_num_threads(threads)
    assert min(times) < 0.15


# ---------------------------------------------------------------------- the mixture and the test
def two_models() -> Posterior:
    means = torch.tensor([[0.0, 1.0, 3.0], [0.0, 2.0, 1.0]], dtype=torch.float64)
    covariances = torch.stack([torch.eye(3) * 0.5, torch.eye(3) + 0.5]).double()
    return Posterior(torch.tensor([0.0, 1.0, 2.0]).double(), torch.tensor([0.25, 0.75]).double(), means, covariances)


def test_mean_band_and_probability_of_a_mixture() -> None:
    posterior = two_models()
    draws = torch.Generator().manual_seed(0)
    n = 400_000
    picked = (torch.rand(n, generator=draws, dtype=torch.float64) < 0.75).long()
    factors = torch.linalg.cholesky(posterior.covariances)
    unit = torch.randn(n, 3, 1, generator=draws, dtype=torch.float64)
    samples = posterior.means[picked] + (factors[picked] @ unit).squeeze(2)
    # four standard errors of a mean over 400 000 draws with sd below 2
    assert posterior.mean.tolist() == pytest.approx(samples.mean(0).tolist(), abs=4 * 2 / n**0.5)
    assert posterior.sd.tolist() == pytest.approx(samples.std(0).tolist(), rel=0.01)
    above = float((samples[:, 2] > samples[:, 0]).double().mean())
    assert posterior.probability_above(2, 0) == pytest.approx(above, abs=4 * 0.5 / n**0.5)
    assert posterior.probability_above(0, 2) == pytest.approx(1.0 - above, abs=4 * 0.5 / n**0.5)


def test_a_certain_rise_has_a_probability_of_one_whatever_the_weights_add_up_to() -> None:
    """Ten times 0.1 may be above 1 by a rounding, in an order of sums that depends on the processor."""
    grid, points = torch.tensor([0.0, 1.0], dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    for weights in (torch.full((10,), 0.1, dtype=torch.float64), torch.tensor([0.7, 0.3 + 1e-15], dtype=torch.float64)):
        means = torch.tensor([[0.0, 1e6]], dtype=torch.float64).expand(len(weights), 2)
        posterior = Posterior(grid, weights, means, points.expand(len(weights), 2, 2))
        assert 1.0 - 1e-15 <= posterior.probability_above(1, 0) <= 1.0


def test_argmin_lies_between_the_points_of_the_grid() -> None:
    points = torch.linspace(0.0, 1.0, 6, dtype=torch.float64)
    parabola = ((points - 0.47) ** 2).unsqueeze(0)
    weights = torch.ones(1, dtype=torch.float64)
    assert Posterior(points, weights, parabola, torch.zeros(1, 6, 6)).argmin == pytest.approx(0.47, rel=1e-9)
    falling = (1.0 - points).unsqueeze(0)
    assert Posterior(points, weights, falling, torch.zeros(1, 6, 6)).argmin == 1.0


def test_probability_follows_the_valley() -> None:
    """Near 0 while the loss falls, near 1 when it has risen; on the way down the first learning rate was worse."""
    lr = log_grid(3000, -5.0, -1.0)
    loss = valley(lr) + 0.1 * noise(3000)
    down = look(history_of(lr[:2000], loss[:2000]).blocks(), 1.0)
    up = look(history_of(lr, loss).blocks(), 1.0)
    assert down.probability < 0.05 < 0.95 < up.probability
    assert min(down.fell, up.fell) > 0.95
    assert down.best_lr == pytest.approx(float(lr[1999]), rel=0.1)


def test_noise_is_answered_with_doubt() -> None:
    """Without the model that knows no signal, 8 of these 12 looks are further than 0.2 from even odds; with it none."""
    lr = log_grid(1600, -5.0, -2.0)
    doubts = [abs(look(history_of(lr, noise(1600, seed)).blocks(), 1.0).probability - 0.5) for seed in range(12)]
    assert max(doubts) < 0.2


def test_too_little_to_smooth_gives_the_lowest_block() -> None:
    test = look(
        [LossBlock(1, math.log(1e-5), 3.0), LossBlock(1, math.log(2e-5), 2.0), LossBlock(1, math.log(3e-5), 2.5)], 1.0
    )
    assert (test.probability, test.posterior) == (0.0, None)
    assert test.best_lr == pytest.approx(2e-5)
    assert look([], 1e-4).best_lr == 1e-4


def test_after_a_divergence_half_the_learning_rate_is_the_most() -> None:
    def best(lr: float) -> SwitchTest:
        return SwitchTest(0.0, 0.0, lr, None)

    assert safe_lr(best(0.1), reached_lr=0.12, min_lr=1e-5) == pytest.approx(0.06)
    assert safe_lr(best(0.01), reached_lr=0.12, min_lr=1e-5) == pytest.approx(0.01)
    assert safe_lr(best(1e-5), reached_lr=1.1e-5, min_lr=1e-5) == pytest.approx(1e-5)


def test_the_picture_is_plain_and_holds_the_band() -> None:
    blocks = history_of(log_grid(300), noise(300)).blocks()
    posterior = fit(blocks)
    drawn: dict[str, Any] = json.loads(json.dumps(picture(blocks, posterior)))
    assert drawn["blocks"]["loss"] == pytest.approx([block.loss for block in blocks], rel=1e-6)
    width = torch.tensor(drawn["posterior"]["high"]) - torch.tensor(drawn["posterior"]["low"])
    assert width.tolist() == pytest.approx((2 * 1.96 * posterior.sd).tolist(), rel=1e-4)
    assert "posterior" not in picture(blocks[:2], None)
