"""An ordinary `LightningModule` for text: any network that says which token comes next, cross-entropy, AdamW.
Schedules, batch sizes and how the training is spread over processes are left to whoever runs it."""

import math

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

Batch = tuple[Tensor, Tensor]


class LanguageModel(LightningModule):
    """Trains `network` with cross-entropy; logs train_loss and val_loss in nats, val_bits in bits per token.

    Args:
        network: Tokens (batch x length) to logits of the next ones (batch x length x tokens).
        lr: Learning rate of AdamW.
        weight_decay: Of AdamW.
    """

    def __init__(self, network: nn.Module, lr: float = 1e-3, weight_decay: float = 0.1) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.lr, self.weight_decay = lr, weight_decay

    def forward(self, text: Tensor) -> Tensor:
        logits: Tensor = self.network(text)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        loss = self._loss(batch)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        loss = self._loss(batch)
        self.log("val_loss", loss, batch_size=len(batch[0]), sync_dist=True)
        self.log("val_bits", loss / math.log(2), batch_size=len(batch[0]), sync_dist=True, prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay)

    def _loss(self, batch: Batch) -> Tensor:
        text, following = batch
        return F.cross_entropy(self(text).flatten(0, 1).float(), following.flatten())
