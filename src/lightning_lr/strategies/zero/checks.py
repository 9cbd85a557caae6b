"""Settings of a module that an engine cannot follow, refused before the engine is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from torch import nn
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals


def check_module(caller: str, module: LightningModule) -> None:
    """Refuse manual optimization, a backward of the module's own, and parameters without dimensions.

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
    numbers = [name for name, parameter in module.named_parameters() if parameter.ndim == 0]
    if numbers:
        raise MisconfigurationException(
            f"{caller}: {', '.join(numbers)} has 0 dimensions, and DeepSpeed sends parameters as vectors of bytes; "
            "make it one of shape (1,), such as nn.Parameter(torch.ones(1)), or use strategy='ddp'"
        )


def check_all_are_given(caller: str, module: nn.Module, optimizer: Optimizer) -> None:
    """Refuse parameters that stage 3 would leave out of its checkpoints: trained ones that no group has.

    Raises:
        MisconfigurationException: with their names and what to do.
    """
    given = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    left = [name for name, p in module.named_parameters() if p.requires_grad and id(p) not in given]
    if left:
        shown = ", ".join(left[:5]) + (f" and {len(left) - 5} more" if len(left) > 5 else "")
        raise MisconfigurationException(
            f"{caller}: {shown}: not frozen, and in no group of the optimizer. DeepSpeed's checkpoints of stage 3 have "
            "what is frozen or in the optimizer, and nothing else; freeze them (requires_grad=False) or give them to "
            "the optimizer"
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
