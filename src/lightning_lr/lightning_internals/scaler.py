"""What multiplies the loss, and thereby the gradients: an AMP scaler, or an engine."""

from __future__ import annotations

from lightning.pytorch import Trainer
from torch.optim import Optimizer


def has_loss_scaler(trainer: Trainer) -> bool:
    """Whether an AMP scaler multiplies the loss, and skips an update whose gradients are not finite."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def loss_scale(trainer: Trainer) -> float:
    """What an AMP scaler multiplies the loss by; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def gradient_scale(trainer: Trainer) -> float:
    """What gradients are multiplied by when the backward makes them, be it by an AMP scaler or by an engine."""
    scale = getattr(trainer.strategy, "current_loss_scale", None)
    return loss_scale(trainer) if scale is None else float(scale)


def remaining_loss_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What an AMP scaler's factor in the gradients still is after clipping: 1 but for optimizers that unscale."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
