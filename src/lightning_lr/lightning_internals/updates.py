"""The moments of an update for which there is no callback hook: directly before the step, and the update made."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer

_UNHEARD: WeakSet[Optimizer] = WeakSet()
"""The optimizers that make updates of a branch."""


HOOKS_OF_AN_UPDATE = (
    *("on_train_batch_start", "on_before_zero_grad", "on_before_backward", "on_after_backward"),
    *("on_before_optimizer_step", "on_train_batch_end"),
)
"""Of a callback; Lightning calls each of them at every update, whether it does anything or not."""


def leave_out(callback: Callback, hooks: Iterable[str]) -> Callable[[], None]:
    """Let a Trainer pass over hooks of this one callback; returns a function that undoes this.

    Lightning (2.5.6, 2.6.6) calls what is callable, which costs a microsecond or two where nothing is done.
    """
    own = vars(callback)
    left_out = [hook for hook in hooks if hook not in own]
    own.update(dict.fromkeys(left_out))

    def undo() -> None:
        for hook in left_out:
            if own.get(hook, undo) is None:
                del own[hook]

    return undo


def before_optimizer_step(
    trainer: Trainer, optimizer: Optimizer, act: Callable[[], None], in_branches: bool = False
) -> Callable[[], None]:
    """Call ``act`` directly before ``optimizer`` makes an update; returns a function that undoes this.

    Gradients are complete then, unscaled and clipped, and no hook of the user's comes in between: where the closure
    with training step, hooks and clipping runs inside ``optimizer.step``, ``act`` follows the closure. It makes no
    difference who calls ``step``: Lightning's loop, an AMP scaler (not for an update that it skips), or the user under
    manual optimization. (LBFGS evaluates its closure several times, and ``act`` follows each.)

    A strategy whose engine clips in its own step calls back through ``before_update`` when that is done.

    Args:
        trainer: of the optimizer.
        optimizer: whose updates are meant.
        act: what to do before each.
        in_branches: whether also before those of a branch, which are nobody else's business: for what decides how an
            update is made.
    """
    clipped = getattr(trainer.strategy, "before_update", None)
    if clipped is not None:
        undo: Callable[[], None] = clipped(act)
        return undo

    def before_step(_: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if optimizer in _UNHEARD and not in_branches:
            return None
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            act()
            return None

        def closed() -> Any:
            loss = closure()
            act()
            return loss

        if len(args) > 1:
            return (args[0], closed, *args[2:]), kwargs
        return args, {**kwargs, "closure": closed}

    return optimizer.register_step_pre_hook(before_step).remove


@contextmanager
def unheard(optimizer: Optimizer) -> Iterator[None]:
    """Inside, the updates are those of a branch: :func:`before_optimizer_step` calls only what belongs to them."""
    _UNHEARD.add(optimizer)
    try:
        yield
    finally:
        _UNHEARD.discard(optimizer)


def after_optimizer_step(trainer: Trainer, optimizer: Optimizer, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` after each update that was made, not where a scaler skipped it; returns a function that undoes this.

    A strategy whose engine steps the optimizer in parts calls back through ``after_update`` after the whole update.
    """
    whole = getattr(trainer.strategy, "after_update", None)
    if whole is not None:
        undo: Callable[[], None] = whole(act)
        return undo
    return optimizer.register_step_post_hook(lambda optimizer, args, kwargs: act()).remove


def after_state_dict(optimizer: Optimizer, act: Callable[[dict[str, Any]], None]) -> Callable[[], None]:
    """Call ``act`` with each state that the optimizer returns; returns a function that undoes this.

    A wrapper that leaves out torch's constructor (Lookahead of pytorch_optimizer) has no such hooks; its state stays as
    it is.
    """
    if not hasattr(optimizer, "_optimizer_state_dict_post_hooks"):
        return lambda: None
    return optimizer.register_state_dict_post_hook(lambda _, state: act(state)).remove


def with_gradient_norm(trainer: Trainer, act: Callable[[float | None], None]) -> Callable[[], None] | None:
    """Call ``act`` after each update with the norm of its whole gradient before clipping, which the engine has taken.

    Returns a function that undoes this, or ``None`` where there is no engine: the parameters have their gradients.
    """
    strategy = trainer.strategy
    if not hasattr(strategy, "gradient_norm"):
        return None
    undo: Callable[[], None] = strategy.after_update(lambda: act(strategy.gradient_norm))  # type: ignore[attr-defined]
    return undo
