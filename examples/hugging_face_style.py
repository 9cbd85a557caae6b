"""A module as Hugging Face's scripts are turned into one: AdamW, and ``get_linear_schedule_with_warmup`` stepped at
every update. The schedule stays where it is; who attaches another chooses with ``module_scheduler``."""

from typing import Any

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class FineTuned(LightningModule):
    """Trains a network with a schedule of its own; logs train_loss.

    Args:
        pixels: Pixels of an image.
        width: Of the hidden layers.
        num_classes: Number of classes.
        lr: Learning rate at the end of the warm-up.
        warmup: Share of the updates in the warm-up.
        weight_decay: Of AdamW.
    """

    def __init__(
        self,
        pixels: int = 64,
        width: int = 64,
        num_classes: int = 10,
        lr: float = 1e-3,
        warmup: float = 0.1,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        self.lr, self.warmup, self.weight_decay = lr, warmup, weight_decay
        self.network = nn.Sequential(
            nn.Linear(pixels, width), nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images.flatten(1))
        return logits

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        from transformers import get_linear_schedule_with_warmup

        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        updates = int(self.trainer.estimated_stepping_batches)
        scheduler = get_linear_schedule_with_warmup(optimizer, int(self.warmup * updates), updates)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
