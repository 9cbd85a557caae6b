"""The moments of an update that no callback hook tells: gradients as they will be applied, and the update made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_lr.patching import override_on_instance


def after_gradient_clipping(module: LightningModule, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` when the gradients are what the optimizer will apply; returns a function that undoes this.

    Lightning clips after ``on_before_optimizer_step`` and calls no hook between that and the step itself, but always
    calls the module's ``configure_gradient_clipping``, clipping or not, once an AMP scaler has unscaled. It is shadowed
    on this one instance, so that a user's override keeps working.
    """
    clip = module.configure_gradient_clipping

    def clipped(*args: Any, **kwargs: Any) -> None:
        clip(*args, **kwargs)
        act()

    return override_on_instance(module, "configure_gradient_clipping", clipped)


def before_optimizer_step(trainer: Trainer, module: LightningModule, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` when the optimizer's groups hold what it will apply; returns a function that undoes this.

    A strategy whose engine clips in its own step says by ``before_update`` when that is done; elsewhere see
    :func:`after_gradient_clipping`.
    """
    clipped = getattr(trainer.strategy, "before_update", None)
    if clipped is None:
        return after_gradient_clipping(module, act)
    undo: Callable[[], None] = clipped(act)
    return undo


def after_optimizer_step(trainer: Trainer, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` after each update that was made, not where a scaler skipped it; returns a function that undoes this.

    A strategy whose engine steps the optimizer in parts says by ``after_update`` when the whole update is made.
    """
    whole = getattr(trainer.strategy, "after_update", None)
    if whole is not None:
        undo: Callable[[], None] = whole(act)
        return undo
    return trainer.optimizers[0].register_step_post_hook(lambda optimizer, args, kwargs: act()).remove


def with_gradient_norm(trainer: Trainer, act: Callable[[float | None], None]) -> Callable[[], None] | None:
    """Call ``act`` after each update with the norm of its whole gradient before clipping, which the engine has taken.

    Returns a function that undoes this, or ``None`` where there is no engine: the parameters have their gradients.
    """
    strategy = trainer.strategy
    if not hasattr(strategy, "gradient_norm"):
        return None
    undo: Callable[[], None] = strategy.after_update(lambda: act(strategy.gradient_norm))  # type: ignore[attr-defined]
    return undo
