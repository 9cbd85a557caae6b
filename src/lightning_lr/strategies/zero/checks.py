"""What a Trainer or a module asks for and an engine cannot do, refused before the engine is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import GradClipAlgorithmType

from lightning_lr import lightning_internals as internals


def check_trainer(caller: str, trainer: Trainer, module: LightningModule) -> None:
    """Refuse manual optimization and gradients clipped by value.

    Raises:
        MisconfigurationException: says what was given, what is allowed and what to do.
    """
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{caller}: {type(module).__name__} uses manual optimization (automatic_optimization=False), where the "
            "engine is not told which backward ends an update; use automatic optimization, or strategy='ddp'"
        )
    if trainer.gradient_clip_algorithm == GradClipAlgorithmType.VALUE:
        raise MisconfigurationException(
            f"{caller}: got gradient_clip_algorithm='value' (gradient_clip_val={trainer.gradient_clip_val}), and the "
            "engine clips the norm of the whole gradient; use gradient_clip_algorithm='norm', or strategy='ddp'"
        )


def exactly_one(caller: str, configure: Callable[[], Any]) -> Any:
    """What ``configure_optimizers`` returns, refused unless there is one optimizer.

    Raises:
        MisconfigurationException: for none or several.
    """
    returned = configure()
    count = len(internals.configured_optimizers(returned)[0])
    if count != 1:
        raise MisconfigurationException(
            f"{caller}: configure_optimizers returned {count} optimizers, and an engine has one; "
            "return exactly one (its parameter groups may have different settings), or use strategy='ddp'"
        )
    return returned
