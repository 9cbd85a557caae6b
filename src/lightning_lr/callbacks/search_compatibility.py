"""What a search for the learning rate cannot be combined with, and why."""

from __future__ import annotations

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals


def check_branches(trainer: Trainer, module: LightningModule) -> None:
    """Refuse a run that cannot be forked.

    Raises:
        MisconfigurationException: with the reason, and what to do.
    """
    reason = internals.why_no_branches(trainer, module)
    if reason is not None:
        raise MisconfigurationException(f"LearningRateSearch: the run cannot be forked, since {reason}")


def largest_lr(optimizer: Optimizer) -> float:
    """The largest learning rate of the groups, to which the others keep their ratio.

    Raises:
        MisconfigurationException: where all are 0.
    """
    largest = max(float(group.get("initial_lr", group["lr"])) for group in optimizer.param_groups)
    if not largest > 0.0:
        raise MisconfigurationException(
            "LearningRateSearch: every parameter group has a learning rate of 0, so their ratio is not known; give the "
            "optimizer one above 0 (its size does not matter)"
        )
    return largest
