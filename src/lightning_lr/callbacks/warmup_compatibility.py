"""What an adaptive warm-up cannot be combined with, and why."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.base import members_of
from lightning_lr.warmup import WarmupSettings


def check_keeping(settings: WarmupSettings, trainer: Trainer) -> None:
    """Refuse to keep a copy of parameters that are not whole.

    Raises:
        MisconfigurationException: names the strategy.
    """
    whole = isinstance(trainer.strategy, DDPStrategy | SingleDeviceStrategy)
    whole = whole and not internals.engine_holds_gradients(trainer)
    if settings.keeps and not whole:
        setting = "restore_best=True" if settings.restore_best else "on_divergence='rollback'"
        raise MisconfigurationException(
            f"AdaptiveWarmup: {setting} copies whole parameters, which {type(trainer.strategy).__name__} may spread "
            "over devices; use on_divergence='switch' without restore_best, or DDP"
        )


def check_from_the_start(trainer: Trainer) -> None:
    """Refuse to resume a run without the losses of its climb.

    Raises:
        MisconfigurationException: with the step.
    """
    if trainer.global_step > 0:
        raise MisconfigurationException(
            f"AdaptiveWarmup: training goes on at step {trainer.global_step} from a checkpoint that was made "
            "without it, so the losses of its climb are not known; train from the start, or load the weights alone"
        )


def check_ramp(settings: WarmupSettings, trainer: Trainer) -> None:
    """Refuse a decay together with a ramp, which takes its place.

    Raises:
        MisconfigurationException: with what to set on either.
    """
    if settings.decay.decays and any(other.changes_batch for other in members_of(trainer)):
        raise MisconfigurationException(
            f"AdaptiveWarmup: BatchSizeRamp is attached too, and decay={settings.decay} would lower the "
            "learning rate as well; set decay=Constant() here and begin='after_warmup' there"
        )


def largest_lr(rates: Iterable[Any]) -> float:
    """The largest of the groups' learning rates, to which the others keep their ratio.

    Raises:
        MisconfigurationException: where all are 0.
    """
    largest = max(map(float, rates))
    if not largest > 0.0:
        raise MisconfigurationException(
            "AdaptiveWarmup: every parameter group has a learning rate of 0, so their ratio is not known; give the "
            "optimizer one above 0 (its size does not matter)"
        )
    return largest
