"""What a strategy keeps from us: where parameters and gradients are, and when they can be seen."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from torch.distributed.tensor import DTensor

from lightning_lr.patching import override_on_instance


def why_no_micro_batch_gradients(trainer: Trainer, module: LightningModule) -> str | None:
    """Why no gradient of a single micro-batch on a single device can be seen; ``None`` where it can."""
    strategy = trainer.strategy
    caller = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy) and not hasattr(strategy, "gradient_norm"):
        return f"{caller} shows neither the gradient's norm nor its scale; use lightning_lr.ZeROStrategy"
    if isinstance(strategy, FSDPStrategy) or any(isinstance(p, DTensor) for p in module.parameters()):
        return (
            f"{caller} averages gradients over the devices before they come to the parameters; use DDP or "
            "lightning_lr.ZeROStrategy"
        )
    return None


def why_gradients_hidden(trainer: Trainer) -> str | None:
    """Why what the optimizer will apply cannot be seen before it does; ``None`` where it can."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy) or (
        isinstance(strategy, DeepSpeedStrategy) and not hasattr(strategy, "before_update")
    ):
        return (
            f"{type(strategy).__name__} keeps gradients and optimizer state where they cannot be compared; use DDP, "
            "lightning_lr.ZeROStrategy, or ModelParallelStrategy with fully_shard"
        )
    reason: str | None = getattr(strategy, "in_parts", None)
    return None if reason is None else f"under these settings of {type(strategy).__name__}, {reason}"


def engine_holds_gradients(trainer: Trainer) -> bool:
    """Whether gradients, master weights and optimizer state are in DeepSpeed's buffers, not in the module's tensors."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def holds_whole_parameters(trainer: Trainer) -> bool:
    """Whether every process holds every parameter whole, all the time: one device, DDP, ZeRO up to stage 2."""
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return False
    return not getattr(strategy, "zero_stage_3", False)


def weights_finite(trainer: Trainer, otherwise: Callable[[], bool]) -> bool:
    """Whether the weights are finite, on every rank; ``otherwise`` looks at a module that holds them whole."""
    own = getattr(trainer.strategy, "weights_finite", otherwise)
    return bool(trainer.strategy.reduce_boolean_decision(own()))


def let_accumulation_change(trainer: Trainer) -> Callable[[], None]:
    """Let ``GradientAccumulationScheduler`` work under a DeepSpeed strategy; returns a function that undoes this.

    It refuses every ``DeepSpeedStrategy`` by its class, in ``on_train_start``, which does nothing but check. Its check
    is made all the same, with the Trainer's accumulation and no strategy.
    """
    undo = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            check = callback.on_train_start

            def checked(trainer: Trainer, module: LightningModule, check: Callable[..., None] = check) -> None:
                without = SimpleNamespace(strategy=None, accumulate_grad_batches=trainer.accumulate_grad_batches)
                check(without, module)

            undo.append(override_on_instance(callback, "on_train_start", checked))

    def undo_all() -> None:
        for act in undo:
            act()

    return undo_all
