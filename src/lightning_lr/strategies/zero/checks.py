"""Settings of a module that an engine cannot follow, refused before the engine is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule

from lightning_lr import lightning_internals as internals


def check_module(caller: str, module: LightningModule) -> None:
    """Refuse manual optimization and a backward of the module's own.

    Raises:
        MisconfigurationException: with what was given, what is allowed and what to do.
    """
    if not module.automatic_optimization:
        raise MisconfigurationException(
            f"{caller}: {type(module).__name__} uses manual optimization (automatic_optimization=False), where the "
            "engine does not know which backward ends an update; use automatic optimization, or strategy='ddp'"
        )
    if type(module).backward is not LightningModule.backward:
        raise MisconfigurationException(
            f"{caller}: {type(module).__name__} overrides backward, and the engine makes its own; change the loss in "
            "training_step, gradients in on_before_optimizer_step, or use strategy='ddp'"
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
