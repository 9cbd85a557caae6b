"""An ordinary `LightningModule` for classification: any network, cross-entropy, SGD at a constant rate.
Schedules, warm-ups and batch sizes are left to whoever attaches them."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torchmetrics.classification import MulticlassAccuracy

Batch = tuple[Tensor, Tensor]


class Classifier(LightningModule):
    """Trains `network` with cross-entropy; logs train_loss, val_loss, val_acc, test_loss and test_acc.

    In YAML a LightningCLI `optimizer:` key takes the place of the optimizer below.

    Args:
        network: Inputs (images, token ids) to logits (batch x num_classes).
        lr: Learning rate of SGD.
        momentum: Of SGD, in Nesterov's form unless it is 0.
        weight_decay: L2 coefficient of SGD.
        num_classes: Number of classes.
    """

    def __init__(
        self,
        network: nn.Module,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        num_classes: int = 10,
    ) -> None:
        super().__init__()
        self.save_hyperparameters(ignore=["network"])
        self.network = network
        self.lr, self.momentum, self.weight_decay = lr, momentum, weight_decay
        self.val_acc = MulticlassAccuracy(num_classes, average="micro")
        self.test_acc = MulticlassAccuracy(num_classes, average="micro")

    def forward(self, inputs: Tensor) -> Tensor:
        logits: Tensor = self.network(inputs)
        return logits

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        inputs, labels = batch
        loss = F.cross_entropy(self(inputs), labels)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "val", self.val_acc)

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self._evaluate(batch, "test", self.test_acc)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(
            self.parameters(),
            lr=self.lr,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            nesterov=self.momentum > 0,
        )

    def _evaluate(self, batch: Batch, stage: str, accuracy: MulticlassAccuracy) -> None:
        inputs, labels = batch
        logits = self(inputs)
        accuracy.update(logits, labels)
        self.log(f"{stage}_loss", F.cross_entropy(logits, labels), batch_size=len(labels), sync_dist=True)
        self.log(f"{stage}_acc", accuracy, prog_bar=True)
