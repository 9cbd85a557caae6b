"""The loss over the log learning rate, smoothed: a Gaussian process whose hyperparameters are averaged, not picked.

Between the raw losses of a warm-up and the decision to end it. The model is the field's plainest (constant mean, scaled
RBF kernel, Gaussian likelihood: Rasmussen & Williams 2006, chapters 2 and 5; AutoWU, Kim et al. 2021, arXiv:2107.05855,
fits one to the loss per step). The hyperparameters are a closed grid, weighted by marginal likelihood: nothing to
converge, no random numbers, and a stretch of noise is answered with the doubt it deserves, since a model in which the
loss does not depend on the learning rate at all is one of those averaged. Targets are standardised, so that the unit of
the loss changes nothing. Pure torch and GPyTorch, usable alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_lr.gaussian_process.evidence import log_evidence
from lightning_lr.gaussian_process.posterior import FEWEST_BLOCKS, SMALLEST_NOISE, Posterior
from lightning_lr.warmup.history import LossBlock

LENGTHSCALES = (0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5)
"""In decades of the learning rate: from the width of a sharp minimum to that of half a warm-up."""

SIGNAL_VARIANCES = (0.5, 5.0)
"""Of standardised losses; a long-scaled function varies more than what is seen of it."""

NOISE_RATIOS = (0.5, 1.0, 2.0)
"""Noise variances tried, over the one that second differences of the blocks suggest."""

NO_SIGNAL_WEIGHT = 0.5
"""Prior probability that the loss does not depend on the learning rate."""

KEPT = 6
"""Models of the grid that predict; the others have next to no weight."""

GRID = 100
"""Learning rates at which the posterior is evaluated."""


def fit(blocks: Sequence[LossBlock]) -> Posterior:
    r"""Smooth a history of losses over the log learning rate x.

    .. math::
        y = f(x) + \epsilon, \quad f \sim GP(m, s^2 e^{-(x-x')^2 / 2 l^2}), \quad \epsilon \sim N(0, \sigma^2)

    averaged over a grid of :math:`(l, s^2, \sigma^2)` and of :math:`s^2 = 0`, weighted by marginal likelihood.

    Args:
        blocks: block averages of the loss, from :meth:`LossHistory.blocks`.

    Returns:
        The posterior of f from the lowest learning rate of a block to the highest.

    Raises:
        ValueError: for fewer than 6 blocks, or blocks of one learning rate only.

    Source: Rasmussen & Williams 2006, equations 2.25, 2.26 and 2.30.
    """
    if len(blocks) < FEWEST_BLOCKS:
        raise ValueError(f"fit: got {len(blocks)} blocks; give at least {FEWEST_BLOCKS}, of one update or more each")
    blocks = sorted(blocks, key=lambda block: block.log_lr)
    inputs = torch.tensor([block.log_lr for block in blocks], dtype=torch.float64)
    losses = torch.tensor([block.loss for block in blocks], dtype=torch.float64)
    if inputs[0] == inputs[-1]:
        raise ValueError("fit: all blocks have one and the same learning rate; give the blocks of a warm-up")
    points = torch.linspace(float(inputs[0]), float(inputs[-1]), GRID, dtype=torch.float64)
    centre, scale = losses.mean(), losses.std()
    if not float(scale) > 1e-12 * float(losses.abs().max()):  # a constant loss, up to rounding, shows nothing
        flat = centre.expand(1, GRID)
        return Posterior(points, torch.ones(1, dtype=torch.float64), flat, torch.zeros(1, GRID, GRID).double())
    targets = (losses - centre) / scale
    from lightning_lr.gaussian_process.model import predicted  # GPyTorch: not where it is only imported

    with torch.no_grad():
        hyperparameters, log_prior = _grid(targets)
        log_weights = log_prior + log_evidence(inputs, targets, hyperparameters)
        kept = log_weights.topk(KEPT).indices.sort().values
        mean, covariance = predicted(inputs, targets, hyperparameters[kept], points)
        return Posterior(points, torch.softmax(log_weights[kept], 0), centre + scale * mean, scale**2 * covariance)


def _grid(targets: Tensor) -> tuple[Tensor, Tensor]:
    """Hyperparameters of every model, and the log of its prior weight."""
    bend = targets[:-2] - 2.0 * targets[1:-1] + targets[2:]
    noise = float((bend**2).mean()) / 6.0
    scales = [decades * math.log(10.0) for decades in LENGTHSCALES]
    noises = [max(SMALLEST_NOISE, ratio * noise) for ratio in NOISE_RATIOS]
    rows = [(scale, signal, sigma) for scale in scales for signal in SIGNAL_VARIANCES for sigma in noises]
    prior = [math.log((1.0 - NO_SIGNAL_WEIGHT) / len(rows))] * len(rows)
    rows.append((1.0, 1e-10, 1.0))
    prior.append(math.log(NO_SIGNAL_WEIGHT))
    return torch.tensor(rows, dtype=torch.float64), torch.tensor(prior, dtype=torch.float64)
