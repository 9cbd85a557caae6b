"""What smoothing a history of losses comes to."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST_BLOCKS = 6
"""Blocks below which there is nothing to smooth."""

SMALLEST_NOISE = 1e-4
"""Least noise variance of standardised losses, so that a noiseless loss still has a well-conditioned covariance."""


@dataclass(frozen=True)
class Posterior:
    """The smoothed loss on a grid of log learning rates: a mixture of Gaussian processes.

    Args:
        log_lr: natural log learning rates, ascending, shape (points,).
        weights: posterior weight of each model, shape (models,).
        means: of each model, in the unit of the loss, shape (models, points).
        covariances: of each model, in its square, shape (models, points, points).
    """

    log_lr: Tensor
    weights: Tensor
    means: Tensor
    covariances: Tensor

    @property
    def mean(self) -> Tensor:
        """Mean of the smoothed loss, shape (points,)."""
        return self.weights @ self.means

    @property
    def sd(self) -> Tensor:
        """Standard deviation of the smoothed loss, shape (points,): within the models and between them."""
        spread = self.means - self.mean
        return (self.weights @ (self.covariances.diagonal(dim1=1, dim2=2).clamp_min(0.0) + spread**2)).sqrt()

    @property
    def argmin(self) -> float:
        """Log learning rate at the lowest mean, between grid points by a parabola through three of them."""
        mean = self.mean
        index = int(mean.argmin())
        if not 0 < index < len(mean) - 1:
            return float(self.log_lr[index])
        left, centre, right = mean[index - 1 : index + 2].tolist()
        bend = left - 2.0 * centre + right
        shift = 0.5 * (left - right) / bend if bend > 0.0 else 0.0
        return float(self.log_lr[index]) + shift * float(self.log_lr[1] - self.log_lr[0])

    def mean_at(self, log_lr: float) -> float:
        """Mean of the smoothed loss at the nearest point of the grid."""
        return float(self.mean[int((self.log_lr - log_lr).abs().argmin())])

    def probability_above(self, point: int, earlier: int) -> float:
        """Probability that the smoothed loss is higher at one grid point than at another, by their joint posterior."""
        difference = self.means[:, point] - self.means[:, earlier]
        cov = self.covariances
        variance = cov[:, point, point] + cov[:, earlier, earlier] - 2.0 * cov[:, point, earlier]
        # rounding can leave a difference that is certain with a variance of -0
        ratio = difference / variance.clamp_min(torch.finfo(variance.dtype).tiny).sqrt()
        return min(1.0, float(self.weights @ torch.special.ndtr(ratio)))  # the weights add up to 1 but for rounding
