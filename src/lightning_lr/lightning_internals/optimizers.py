"""What a module's ``configure_optimizers`` returns, and standing around its call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.core.optimizer import (
    _configure_optimizers,
    _init_optimizers_and_lr_schedulers,
    _MockOptimizer,
)
from torch.optim import Optimizer

from lightning_lr.patching import override_on_instance


def around_configure_optimizers(
    module: LightningModule, around: Callable[[Callable[[], Any]], Any]
) -> Callable[[], None]:
    """Have ``around(configure_optimizers)`` called in place of ``configure_optimizers()``; returns an undo function.

    Strategies call the module's method. It is shadowed on this one instance, where ``LightningCLI`` puts its own too.
    """
    configure = module.configure_optimizers
    return override_on_instance(module, "configure_optimizers", lambda: around(configure))


def validates_callbacks() -> bool:
    """Whether the property that asks is read by the Trainer's check that no two callbacks have the same state key."""
    return sys._getframe(2).f_code.co_name == "_validate_callbacks_list"


def has_optimizer(trainer: Trainer) -> bool:
    """Whether ``configure_optimizers`` returned any: Lightning trains with a stand-in where it returned ``None``."""
    return bool(trainer.optimizers) and not isinstance(trainer.optimizers[0], _MockOptimizer)


def optimizers_and_schedulers(module: LightningModule) -> tuple[list[Optimizer], list[Any]]:
    """What ``configure_optimizers`` returns, checked and completed as for every strategy."""
    optimizers, schedulers = _init_optimizers_and_lr_schedulers(module)
    return optimizers, schedulers


Scheduled = tuple[Any, str, int]
"""A scheduler, the interval at which Lightning steps it ("step" or "epoch"), and its frequency."""


def configured_optimizers(returned: Any) -> tuple[list[Optimizer], list[Scheduled]]:
    """What a module's ``configure_optimizers`` returned, in any form that Lightning accepts.

    Raises:
        MisconfigurationException: Lightning's own, for any other form.
    """
    if returned is None:
        return [], []
    optimizers, schedulers, _ = _configure_optimizers(returned)
    scheduled = [_scheduled(scheduler) for scheduler in schedulers]
    return list(optimizers), [one for one in scheduled if one is not None]


def _scheduled(scheduler: Any) -> Scheduled | None:
    if not isinstance(scheduler, dict):
        return scheduler, "epoch", 1
    if scheduler.get("scheduler") is None:  # Lightning refuses it later
        return None
    return scheduler["scheduler"], scheduler.get("interval", "epoch"), scheduler.get("frequency", 1)
