"""Distillation: a student learns from labels and from a teacher, two losses and one optimizer, whose gradients are
added by two backwards under manual optimization."""

import torch
from lightning import LightningModule
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812


class Distillation(LightningModule):
    """Trains a student; logs label_loss and teacher_loss.

    Args:
        pixels: Pixels of an image.
        width: Of the student's hidden layers; the teacher's are four times as wide.
        num_classes: Number of classes.
        temperature: Of the teacher's and the student's softmax in the second loss.
        lr: Learning rate of AdamW.

    Source: Hinton, Vinyals & Dean 2015, arXiv:1503.02531.
    """

    def __init__(
        self, pixels: int = 64, width: int = 32, num_classes: int = 10, temperature: float = 2.0, lr: float = 1e-3
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.temperature, self.lr = temperature, lr
        self.student = _network(pixels, width, num_classes)
        self.teacher = _network(pixels, 4 * width, num_classes).requires_grad_(False)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch[0].flatten(1), batch[1]
        optimizer = self.optimizers()
        with torch.no_grad():
            told = (self.teacher(images) / self.temperature).log_softmax(1)
        optimizer.zero_grad()  # type: ignore[union-attr]
        label_loss = F.cross_entropy(self.student(images), labels)
        self.manual_backward(label_loss)
        thought = (self.student(images) / self.temperature).log_softmax(1)
        teacher_loss = self.temperature**2 * F.kl_div(thought, told, reduction="batchmean", log_target=True)
        self.manual_backward(teacher_loss)
        optimizer.step()  # type: ignore[union-attr]
        self.log_dict({"label_loss": label_loss, "teacher_loss": teacher_loss})
        return label_loss.detach() + teacher_loss.detach()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.student.parameters(), lr=self.lr)


def _network(pixels: int, width: int, num_classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(pixels, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, num_classes)
    )
