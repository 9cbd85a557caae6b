"""Gaussian processes with given hyperparameters, by GPyTorch; the one file that imports it."""

from __future__ import annotations

import gpytorch
import torch
from torch import Tensor

from lightning_lr.gaussian_process.posterior import SMALLEST_NOISE


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


def predicted(inputs: Tensor, targets: Tensor, hyperparameters: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the function at ``points``, by each model.

    Args:
        inputs: log learning rates, shape (n,).
        targets: standardised losses, shape (n,).
        hyperparameters: shape (models, 3), as of :class:`BlockGP`.
        points: log learning rates, shape (points,).

    Returns:
        Shapes (models, points) and (models, points, points).
    """
    # Our own instances of the model are evaluated as they are: exact Cholesky, no gradient, no cached state of others.
    with torch.no_grad(), gpytorch.settings.fast_computations(False, False, False), gpytorch.settings.debug(False):
        model = BlockGP(inputs, targets, hyperparameters).eval()
        prediction = model(points.reshape(1, -1, 1).expand(len(hyperparameters), -1, -1))
        return prediction.mean, prediction.covariance_matrix
