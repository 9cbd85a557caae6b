"""The places at which Lightning steps LR schedulers, and its callbacks that write learning rates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging

from lightning_lr.patching import override_on_instance


def bracket_scheduler_steps(
    module: LightningModule, bracket: Callable[[], AbstractContextManager[None]]
) -> Callable[[], None]:
    """Let every step of an LR scheduler happen inside ``bracket()``; returns a function that undoes this.

    Lightning steps schedulers at three places that no callback hook encloses, but always through the module's
    ``lr_scheduler_step``. It is shadowed on this one instance, so that a user's override keeps working.
    """
    step = module.lr_scheduler_step

    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            step(*args, **kwargs)

    return override_on_instance(module, "lr_scheduler_step", bracketed)


def bracket_lr_writers(
    trainer: Trainer, bracket: Callable[[], AbstractContextManager[None]]
) -> list[Callable[[], None]]:
    """Let Lightning's callbacks that write learning rates do so inside ``bracket()``; returns what undoes this.

    ``StochasticWeightAveraging`` makes its scheduler and ``BaseFinetuning`` adds and changes groups at the start of an
    epoch, from what they read in the groups. The hook is shadowed on these instances.
    """
    return [
        override_on_instance(callback, "on_train_epoch_start", _inside(bracket, callback.on_train_epoch_start))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging | BaseFinetuning)
    ]


def _inside(bracket: Callable[[], AbstractContextManager[None]], hook: Callable[..., None]) -> Callable[..., None]:
    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            hook(*args, **kwargs)

    return bracketed
