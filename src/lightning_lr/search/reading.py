"""From the scores of a heat to a rate: the minimum of a Gaussian process over the log learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_lr.gaussian_process import SMALLEST_NOISE, Posterior, log_evidence
from lightning_lr.search.race import Trial

LENGTHSCALES = (0.5, 0.7, 1.0, 1.4)
"""In decades: a loss after its own decay has one wide minimum."""

SIGNAL_VARIANCES = (0.5, 5.0)
"""Of standardised scores."""

NOISE_RATIOS = (0.5, 1.0, 2.0)
"""Noise variances tried, over the one that the paired differences suggest."""

CAP = 2.0
"""A score is taken for at most so many times as far above the best one as the second best is. What matters beyond the
edge of stability is where it lies; how bad it gets would bend the fit."""

GRID = 201


@dataclass(frozen=True)
class Choice:
    """What a race has chosen.

    Args:
        rate: the rate.
        low: lowest rate whose score may as well be the best, within one standard deviation of the difference.
        high: highest such rate.
        posterior: the smoothed score over the log rate; ``None`` where there were fewer than three rates.
    """

    rate: float
    low: float
    high: float
    posterior: Posterior | None


def read(trials: Sequence[Trial]) -> Choice:
    """Choose a rate from the scores of one heat.

    Args:
        trials: at least one of them with a finite score.

    Raises:
        ValueError: where every one diverged.
    """
    trials = sorted(trials, key=lambda trial: trial.rate)
    finite = [trial for trial in trials if math.isfinite(trial.score)]
    if not finite:
        raise ValueError(f"read: all of {len(trials)} rates diverged; try lower ones")
    best = min(finite, key=lambda trial: trial.score)
    if len(trials) < 3:
        return Choice(best.rate, trials[0].rate, trials[-1].rate, None)
    scores = _capped(trials, best)
    centre, scale = scores.mean(), scores.std()
    if not float(scale) > 1e-12 * max(abs(best.score), 1e-300):
        return Choice(best.rate, trials[0].rate, trials[-1].rate, None)
    posterior = _fit(
        torch.tensor([math.log(trial.rate) for trial in trials], dtype=torch.float64),
        (scores - centre) / scale,
        _paired_noise(finite, best) / float(scale) ** 2,
    )
    posterior = Posterior(
        posterior.log_lr, posterior.weights, centre + scale * posterior.means, scale**2 * posterior.covariances
    )
    low, high = _interval(posterior)
    return Choice(math.exp(posterior.argmin), low, high, posterior)


# ---------------------------------------------------------------------- inside
def _capped(trials: Sequence[Trial], best: Trial) -> Tensor:
    above = sorted(t.score - best.score for t in trials if math.isfinite(t.score) and t is not best)
    gap = next((gap for gap in above if gap > 0.0), None)
    if gap is None:  # the others have all diverged
        gap = max(abs(best.score), 1e-300)
    return torch.tensor([min(t.score, best.score + CAP * gap) for t in trials], dtype=torch.float64)


def _paired_noise(finite: Sequence[Trial], best: Trial) -> float:
    """Variance of a score's difference to the best one's, over the batches that both were scored on."""
    variances = []
    for trial in finite:
        if trial is not best and len(trial.scores) == len(best.scores) > 1:
            differences = torch.tensor(trial.scores, dtype=torch.float64) - torch.tensor(best.scores).double()
            variances.append(float(differences.var()) / len(differences))
    return min(variances, default=0.0)


def _fit(inputs: Tensor, targets: Tensor, noise: float) -> Posterior:
    from lightning_lr.gaussian_process.model import predicted  # GPyTorch: not where it is only imported

    points = torch.linspace(float(inputs[0]), float(inputs[-1]), GRID, dtype=torch.float64)
    rows = [
        (decades * math.log(10.0), signal, max(SMALLEST_NOISE, ratio * noise))
        for decades in LENGTHSCALES
        for signal in SIGNAL_VARIANCES
        for ratio in NOISE_RATIOS
    ]
    hyperparameters = torch.tensor(rows, dtype=torch.float64)
    weights = torch.softmax(log_evidence(inputs, targets, hyperparameters), 0)
    kept = weights.topk(6).indices.sort().values
    mean, covariance = predicted(inputs, targets, hyperparameters[kept], points)
    return Posterior(points, weights[kept] / weights[kept].sum(), mean, covariance)


def _interval(posterior: Posterior) -> tuple[float, float]:
    mean, lowest = posterior.mean, int(posterior.mean.argmin())
    weights, cov = posterior.weights, posterior.covariances
    variance = cov.diagonal(dim1=1, dim2=2) + cov[:, lowest, lowest].unsqueeze(1) - 2.0 * cov[:, :, lowest]
    difference = posterior.means - posterior.means[:, lowest : lowest + 1]
    spread = (weights @ (variance.clamp_min(0.0) + (difference - (mean - mean[lowest])) ** 2)).sqrt()
    as_good = (mean - mean[lowest] <= spread).nonzero().flatten()
    return math.exp(float(posterior.log_lr[as_good[0]])), math.exp(float(posterior.log_lr[as_good[-1]]))
