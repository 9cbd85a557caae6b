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
from dataclasses import dataclass

import gpytorch
import torch
from torch import Tensor

from lightning_lr.warmup.history import Block

LENGTHSCALES = (0.1, 0.16, 0.25, 0.4, 0.63, 1.0, 1.6, 2.5)
"""In decades of the learning rate: from the width of a sharp minimum to that of half a warm-up."""

SIGNAL_VARIANCES = (0.5, 5.0)
"""Of standardised losses; a long-scaled function varies more than what is seen of it."""

NOISE_RATIOS = (0.5, 1.0, 2.0)
"""Noise variances tried, over the one that second differences of the blocks suggest."""

NO_SIGNAL_WEIGHT = 0.5
"""Prior probability that the loss does not depend on the learning rate."""

SMALLEST_NOISE = 1e-4
"""Least noise variance of standardised losses, so that a noiseless loss still has a well-conditioned covariance."""

KEPT = 6
"""Models of the grid that predict; the others have next to no weight."""

GRID = 100
"""Learning rates at which the posterior is evaluated."""

FEWEST_BLOCKS = 6
"""Blocks below which there is nothing to smooth."""


class BlockGP(gpytorch.models.ExactGP):  # type: ignore[misc]
    """One exact GP per row of hyperparameters, evaluated as a batch.

    Args:
        inputs: log learning rates, shape (n,).
        targets: standardised losses, shape (n,).
        hyperparameters: lengthscale, signal variance and noise variance of each model, shape (models, 3).
    """

    def __init__(self, inputs: Tensor, targets: Tensor, hyperparameters: Tensor) -> None:
        models = torch.Size([len(hyperparameters)])
        inputs = inputs.reshape(1, -1, 1).expand(*models, -1, -1)
        likelihood = gpytorch.likelihoods.GaussianLikelihood(
            noise_constraint=gpytorch.constraints.GreaterThan(SMALLEST_NOISE / 2), batch_shape=models
        )
        super().__init__(inputs, targets.expand(*models, -1), likelihood)
        self.mean_module = gpytorch.means.ConstantMean(batch_shape=models)
        self.covar_module = gpytorch.kernels.ScaleKernel(
            gpytorch.kernels.RBFKernel(batch_shape=models), batch_shape=models
        )
        self.to(inputs)
        lengthscale, signal, noise = hyperparameters.unbind(1)
        self.covar_module.base_kernel.lengthscale = lengthscale.reshape(-1, 1, 1)
        self.covar_module.outputscale = signal
        likelihood.noise = noise.reshape(-1, 1)

    def forward(self, inputs: Tensor) -> gpytorch.distributions.MultivariateNormal:
        return gpytorch.distributions.MultivariateNormal(self.mean_module(inputs), self.covar_module(inputs))


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
        return float(self.weights @ torch.special.ndtr(ratio))


def fit(blocks: Sequence[Block]) -> Posterior:
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
    if not float(scale) > 1e-12 * float(losses.abs().max()):  # a constant loss, up to rounding, tells nothing
        flat = centre.expand(1, GRID)
        return Posterior(points, torch.ones(1, dtype=torch.float64), flat, torch.zeros(1, GRID, GRID).double())
    targets = (losses - centre) / scale
    # Our own instances of the model are evaluated as they are: exact Cholesky, no gradient, no cached state of others.
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.debug(False):
        hyperparameters, log_prior = _grid(targets)
        log_weights = log_prior + _log_evidence(inputs, targets, hyperparameters)
        kept = log_weights.topk(KEPT).indices.sort().values
        model = BlockGP(inputs, targets, hyperparameters[kept]).eval()
        prediction = model(points.reshape(1, -1, 1).expand(KEPT, -1, -1))
        return Posterior(
            points,
            torch.softmax(log_weights[kept], 0),
            centre + scale * prediction.mean,
            scale**2 * prediction.covariance_matrix,
        )


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


def _log_evidence(inputs: Tensor, targets: Tensor, hyperparameters: Tensor) -> Tensor:
    """Log marginal likelihood of every model, shape (models,): equation 2.30 of Rasmussen & Williams.

    Written out, since of ``ExactMarginalLogLikelihood`` on matrices as small as these nine tenths of the time go into
    wrapping them; that it is the same is tested.
    """
    lengthscale, signal, noise = (column.reshape(-1, 1, 1) for column in hyperparameters.unbind(1))
    distance = inputs.unsqueeze(0) - inputs.unsqueeze(1)
    covariance = signal * torch.exp(-0.5 * (distance / lengthscale) ** 2) + noise * torch.eye(len(inputs)).to(inputs)
    root = torch.linalg.cholesky(covariance)
    whitened = torch.linalg.solve_triangular(root, targets.expand(len(root), -1).unsqueeze(2), upper=False)
    log_det = 2.0 * root.diagonal(dim1=1, dim2=2).log().sum(1)
    evidence: Tensor = -0.5 * (whitened.square().sum((1, 2)) + log_det + len(targets) * math.log(2.0 * math.pi))
    return evidence
