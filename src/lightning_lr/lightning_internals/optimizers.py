"""What a module's ``configure_optimizers`` returns, and standing around its call."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
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


def optimizers_and_schedulers(module: LightningModule) -> tuple[list[Optimizer], list[Any]]:
    """What ``configure_optimizers`` returns, checked and completed as for every strategy."""
    optimizers, schedulers = _init_optimizers_and_lr_schedulers(module)
    return optimizers, schedulers


Scheduled = tuple[Any, str, int]
"""A scheduler, the interval at which Lightning steps it ("step" or "epoch"), and its frequency."""


def configured_optimizers(returned: Any) -> tuple[list[Optimizer], list[Scheduled]]:
    """What a module's ``configure_optimizers`` returned, in any form that Lightning accepts."""
    if returned is None:
        return [], []
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, dict):
        scheduler = returned.get("lr_scheduler")
        return [returned["optimizer"]], [] if scheduler is None else [_scheduled(scheduler)]
    if len(returned) == 2 and isinstance(returned[0], list):
        optimizers, schedulers = returned
        schedulers = schedulers if isinstance(schedulers, Sequence) else [schedulers]
        return list(optimizers), [_scheduled(scheduler) for scheduler in schedulers]
    parts = [configured_optimizers(part) for part in returned]
    return [o for optimizers, _ in parts for o in optimizers], [s for _, schedulers in parts for s in schedulers]


def _scheduled(scheduler: Any) -> Scheduled:
    if not isinstance(scheduler, dict):
        return scheduler, "epoch", 1
    return scheduler["scheduler"], scheduler.get("interval", "epoch"), scheduler.get("frequency", 1)
