"""The places at which LR schedulers step, and Lightning's callbacks that write learning rates."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from functools import wraps
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ChainedScheduler, LRScheduler, ReduceLROnPlateau, SequentialLR

from lightning_lr.patching import override_on_instance

Bracket = Callable[[], AbstractContextManager[None]]
SEARCHED = 4
"""How deep a scheduler is looked for: the module, an object of the user's in it, a dict in that, a list in that."""


def bracket_scheduler_steps(module: LightningModule, bracket: Bracket) -> Callable[[], None]:
    """Let every LR scheduler step of Lightning's happen inside ``bracket()``; returns a function that undoes this.

    Lightning steps schedulers at three places that no callback hook encloses, but always through the module's
    ``lr_scheduler_step``. It is shadowed on this one instance, so that a user's override keeps working.
    """
    step = module.lr_scheduler_step

    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            step(*args, **kwargs)

    return override_on_instance(module, "lr_scheduler_step", bracketed)


def schedulers_of(trainer: Trainer, optimizer: Optimizer) -> list[LRScheduler]:
    """The LR schedulers of an optimizer, those included that the user steps by hand, wherever they are kept.

    First those that the Trainer, the module, the callbacks or an object in these keep; then any that is alive, in a
    closure, a local variable or a module of Python's. What a ``gc.freeze()`` has put aside is not among these; it is
    looked through where the optimizer's step shows that some scheduler was made for it, and none is found.
    """
    configured = [config.scheduler for config in trainer.lr_scheduler_configs]
    holders = [*configured, trainer.lightning_module, *trainer.callbacks]  # type: ignore[attr-defined]
    found = _those_of(optimizer, [*kept_schedulers(holders), *_alive()])
    if not found and hasattr(optimizer.step, "_wrapped_by_lr_sched") and gc.get_freeze_count():
        gc.unfreeze()
        try:
            found = _those_of(optimizer, _alive())
        finally:
            gc.freeze()
    return found


def _alive() -> list[LRScheduler]:
    return [thing for thing in gc.get_objects() if issubclass(type(thing), LRScheduler)]


def _those_of(optimizer: Optimizer, schedulers: Iterable[LRScheduler]) -> list[LRScheduler]:
    of_each = {id(scheduler): scheduler for scheduler in schedulers}
    return [scheduler for scheduler in of_each.values() if _steps(scheduler, optimizer)]


def _steps(scheduler: LRScheduler, optimizer: Optimizer) -> bool:
    """Whether it is made for the optimizer, or for a wrapper of it, such as Lightning's."""
    return _is_or_wraps(getattr(scheduler, "optimizer", None), optimizer)


def _is_or_wraps(given: Any, optimizer: Optimizer) -> bool:
    if given is optimizer or getattr(given, "optimizer", None) is optimizer:
        return True
    return given is not None and getattr(given, "param_groups", None) is optimizer.param_groups


def kept_schedulers(holders: Iterable[Any]) -> list[LRScheduler]:
    """The LR schedulers that are attributes of ``holders``, or of what these hold."""
    found: dict[int, LRScheduler] = {}
    seen: set[int] = set()
    for holder in holders:
        for scheduler in _schedulers_in(holder, SEARCHED, seen):
            found[id(scheduler)] = scheduler
    return list(found.values())


def _schedulers_in(holder: Any, depth: int, seen: set[int]) -> Iterator[LRScheduler]:
    if id(holder) in seen or depth < 0:
        return
    seen.add(id(holder))
    if isinstance(holder, LRScheduler):
        yield holder
    elif isinstance(holder, Mapping):
        for value in list(holder.values()):
            yield from _schedulers_in(value, depth - 1, seen)
    elif isinstance(holder, list | tuple | set):
        if len(holder) <= 100:  # a data set is no place for a scheduler
            for value in list(holder):
                yield from _schedulers_in(value, depth - 1, seen)
    elif isinstance(holder, nn.Module):
        for part in holder.modules():
            values = [v for name, v in vars(part).items() if not name.startswith("_") or isinstance(v, LRScheduler)]
            for value in values:
                if not isinstance(value, nn.Module):
                    yield from _schedulers_in(value, depth - 1, seen)
    elif _is_of_the_user(holder):
        for value in list(vars(holder).values()):
            yield from _schedulers_in(value, depth - 1, seen)


def _is_of_the_user(holder: Any) -> bool:
    if isinstance(holder, Tensor | Trainer | Optimizer | type) or not hasattr(holder, "__dict__"):
        return False
    package = type(holder).__module__.partition(".")[0]
    return package not in ("builtins", "torch", "lightning", "lightning_lr", "pytorch_lightning", "numpy", "logging")


def bracket_steps(scheduler: LRScheduler, bracket: Bracket) -> Callable[[], None]:
    """Let every step of a scheduler happen inside ``bracket()``, whoever calls it; returns a function that undoes this.

    It gets a class of its own, since an attribute would be saved in its state.
    """
    own = type(scheduler)
    if hasattr(own, _BRACKETED):
        return lambda: None

    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        with bracket():
            return own.step(self, *args, **kwargs)

    def reduced(self: Any, protocol: Any) -> Any:
        # a copy, or what is pickled, is an ordinary scheduler: the bracket is of the optimizer of this run
        reduction: Any = own.__reduce_ex__(self, max(2, protocol))
        return _new_of, (own,), *reduction[2:]

    names = {
        _BRACKETED: True,
        "step": step,
        "__reduce_ex__": reduced,
        "__module__": own.__module__,
        "__qualname__": own.__qualname__,
        "__doc__": own.__doc__,
    }
    bracketed = type(own.__name__, (own,), names)
    scheduler.__class__ = bracketed

    def undo() -> None:
        if type(scheduler) is bracketed:
            scheduler.__class__ = own

    return undo


def bracket_new_schedulers(optimizer: Optimizer, bracket: Bracket) -> Callable[[], None]:
    """Let the schedulers that are made for an optimizer from now on be made, and stepped, inside ``bracket()``.

    They would take what is in effect for the scheduled values: one that a callback makes at the start of an epoch, say.
    The constructors of torch's classes are replaced as long as any optimizer has a bracket; returns what undoes this.
    """
    undo: list[Callable[[], None]] = []
    _new[id(optimizer)] = (optimizer, bracket, undo)
    if len(_new) == 1:
        _constructors.update({cls: cls.__init__ for cls in _CONSTRUCTED})
        for cls, init in _constructors.items():
            cls.__init__ = _bracketed(init)  # type: ignore[method-assign]

    def undo_all() -> None:
        for act in undo:
            act()
        _new.pop(id(optimizer), None)
        if not _new:
            for cls, init in _constructors.items():
                cls.__init__ = init  # type: ignore[method-assign]
            _constructors.clear()

    return undo_all


def _new_of(kind: type[Any]) -> Any:
    return object.__new__(kind)


_BRACKETED = "_lightning_lr_brackets_step"
_CONSTRUCTED = (LRScheduler, ReduceLROnPlateau, SequentialLR, ChainedScheduler)
"""The others call the first one's constructor."""
_constructors: dict[type[LRScheduler], Callable[..., None]] = {}
_new: dict[int, tuple[Optimizer, Bracket, list[Callable[[], None]]]] = {}


def _bracketed(init: Callable[..., None]) -> Callable[..., None]:
    @wraps(init)
    def bracketed(self: Any, *args: Any, **kwargs: Any) -> None:
        given = args[0] if args else kwargs.get("optimizer", kwargs.get("schedulers"))
        if isinstance(given, list | tuple):  # those of a ChainedScheduler
            given = getattr(given[0], "optimizer", None) if given else None
        for optimizer, bracket, undo in _new.values():
            if _is_or_wraps(given, optimizer):
                with bracket():
                    init(self, *args, **kwargs)
                undo.append(bracket_steps(self, bracket))
                return
        init(self, *args, **kwargs)

    return bracketed


def bracket_lr_writers(trainer: Trainer, bracket: Bracket) -> list[Callable[[], None]]:
    """Let Lightning's callbacks that write learning rates do so inside ``bracket()``; returns what undoes this.

    ``StochasticWeightAveraging`` makes its scheduler and ``BaseFinetuning`` adds and changes groups at the start of an
    epoch, from what they read in the groups. The hook is shadowed on these instances.
    """
    return [
        override_on_instance(callback, "on_train_epoch_start", _inside(bracket, callback.on_train_epoch_start))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging | BaseFinetuning)
    ]


def _inside(bracket: Bracket, hook: Callable[..., None]) -> Callable[..., None]:
    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            hook(*args, **kwargs)

    return bracketed
