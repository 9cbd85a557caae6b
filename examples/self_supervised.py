"""BYOL: a network that predicts what a slowly moving average of itself makes of another view of the same image."""

import copy
from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class BYOL(LightningModule):
    """Learns representations without labels; logs train_loss.

    Args:
        pixels: Pixels of an image.
        width: Of the encoder's hidden layers.
        momentum: What the average keeps of itself at every update.
        noise: Standard deviation of the pixels' noise between two views.
        lr: Learning rate of AdamW.

    Source: Grill et al. 2020, arXiv:2006.07733.
    """

    def __init__(
        self, pixels: int = 64, width: int = 64, momentum: float = 0.99, noise: float = 0.3, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.momentum, self.noise, self.lr = momentum, noise, lr
        self.encoder = nn.Sequential(
            nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)
        )
        self.predictor = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))
        self.average = copy.deepcopy(self.encoder).requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        codes: Tensor = self.encoder(images.flatten(1))
        return codes

    def view(self, images: Tensor) -> Tensor:
        return images + self.noise * torch.randn_like(images)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images = batch[0].flatten(1)
        first, second = self.view(images), self.view(images)
        loss = self._distance(first, second) + self._distance(second, first)
        self.log("train_loss", loss)
        return loss

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            for slow, fast in zip(self.average.parameters(), self.encoder.parameters(), strict=True):
                slow.lerp_(fast, 1 - self.momentum)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        learned = [*self.encoder.parameters(), *self.predictor.parameters()]
        return torch.optim.AdamW(learned, lr=self.lr)

    def _distance(self, view: Tensor, other: Tensor) -> Tensor:
        predicted = F.normalize(self.predictor(self.encoder(view)), dim=1)
        return 2 - 2 * (predicted * F.normalize(self.average(other), dim=1)).sum(1).mean()
