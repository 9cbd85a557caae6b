"""Updates that the run does not notice: Lightning's own optimization of a batch, with nobody to hear of it.

What decides how an update is made is used as it is: the strategy's and the precision plugin's steps, accumulation,
gradient clipping, and the module's ``training_step``, ``backward``, ``optimizer_step`` and
``configure_gradient_clipping``. What only listens is silent: callbacks, loggers, the profiler, ``self.log``, hooks
that were registered for after the optimizer's step. Lightning's learning rate finder runs the whole fit loop instead,
and restores a checkpoint: it resets loaders, moves the loop's counters and the random generators, and does not see
what the module keeps outside of its ``state_dict``.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Protocol

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.trainer import call
from torch import Tensor

from lightning_lr.branches import ForkedState
from lightning_lr.lightning_internals.loaders import batch_on_device
from lightning_lr.lightning_internals.logs import silent_loggers
from lightning_lr.lightning_internals.updates import unheard
from lightning_lr.patching import override_on_instance


class UnnoticedUpdates:
    """Makes updates inside :func:`unnoticed`.

    Args:
        trainer: in training, before the first micro-batch of an update.
        module: its module.
    """

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer, self._module = trainer, module
        self._accumulates = False
        self._micro_batch = 0
        self._size_of: Callable[[Any], int | None] | None = None
        self.weight = 1.0
        """Factor on the loss of the present micro-batch, on top of Lightning's division by the accumulation."""

    def weigh_by(self, size_of: Callable[[Any], int | None] | None) -> None:
        """From here on, an update has the mean over all of its samples, where micro-batches differ in size."""
        self._size_of = size_of

    def begin(self) -> None:
        """The next update is the first of a branch."""
        self._micro_batch = 0
        loop = self._trainer.fit_loop.epoch_loop.automatic_optimization
        loop.optim_progress = copy.deepcopy(self._progress)

    def update(self, micro_batches: Sequence[Any]) -> Tensor | None:
        """Make one update from as many micro-batches as it accumulates; the mean of their losses on this device."""
        trainer = self._trainer
        loop = trainer.fit_loop.epoch_loop
        losses, weights = [], self._weights(micro_batches)
        for index, raw in enumerate(micro_batches):
            self.weight = weights[index]
            self._accumulates = index + 1 < len(micro_batches)
            arguments = loop._build_kwargs(OrderedDict(), self._on_device(raw), self._micro_batch)
            result = loop.automatic_optimization.run(trainer.optimizers[0], self._micro_batch, arguments)
            self._micro_batch += 1
            if result.get("loss") is not None:  # which Lightning has divided by the accumulation
                losses.append(result["loss"].detach().float() * (self.weight * int(trainer.accumulate_grad_batches)))
        return torch.stack(losses).mean() if losses else None

    def loss(self, micro_batch: Any) -> Tensor | None:
        """The loss of a micro-batch on this device, without an update."""
        trainer = self._trainer
        arguments = trainer.fit_loop.epoch_loop._build_kwargs(
            OrderedDict(), self._on_device(micro_batch), self._micro_batch
        )
        with torch.no_grad():
            output = call._call_strategy_hook(trainer, "training_step", *arguments.values())
        loss = output.get("loss") if isinstance(output, dict) else output
        for part in self._module.modules():  # FSDP2 reshards its root after a backward, and there is none
            reshard = getattr(part, "reshard", None)
            if callable(reshard) and hasattr(part, "unshard"):
                reshard()
        return None if loss is None else loss.detach().float()

    # ------------------------------------------------------------------ inside
    def _weights(self, micro_batches: Sequence[Any]) -> list[float]:
        sizes = [None if self._size_of is None else self._size_of(raw) for raw in micro_batches]
        known = [float(size) for size in sizes if size]
        if len(known) < len(sizes) or len(set(known)) == 1:
            return [1.0] * len(sizes)
        return [size * len(known) / sum(known) for size in known]

    def _on_device(self, raw: Any) -> Any:
        # a training step may write into its batch, and the next branch trains on the same one
        return batch_on_device(self._trainer, copy.deepcopy(raw))

    def _enter(self, around: ExitStack) -> None:
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop
        self._progress = loop.automatic_optimization.optim_progress

        def put_back() -> None:
            loop.automatic_optimization.optim_progress = self._progress

        around.callback(put_back)
        for where in (trainer.fit_loop, loop):
            around.callback(override_on_instance(where, "_should_accumulate", lambda: self._accumulates))


class _Weigh(Callback):
    """The only callback that a branch has."""

    def __init__(self, updates: UnnoticedUpdates) -> None:
        self._updates = updates

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        if self._updates.weight != 1.0:  # in place: what this hook returns is not used
            loss.mul_(self._updates.weight)


@contextmanager
def unnoticed(trainer: Trainer, module: LightningModule) -> Iterator[UnnoticedUpdates]:
    """Inside, updates can be made of which nothing that listens hears; what they change is the caller's to restore."""
    updates = UnnoticedUpdates(trainer, module)
    with ExitStack() as around:
        around.enter_context(silent_loggers(trainer))
        for name, silent in (("callbacks", [_Weigh(updates)]), ("profiler", PassThroughProfiler())):
            _replace(around, trainer, name, silent)
        around.callback(setattr, trainer, "should_stop", trainer.should_stop)
        engine = getattr(trainer.strategy, "unnoticed", None)  # of a strategy whose engine makes the updates
        if engine is not None:
            around.enter_context(engine())
        for optimizer in trainer.optimizers:
            _replace(around, optimizer, "_optimizer_step_post_hooks", OrderedDict())
            around.enter_context(unheard(optimizer))
        for part in module.modules():
            if isinstance(part, LightningModule):
                for name in ("log", "log_dict"):
                    around.callback(override_on_instance(part, name, _log_nothing))
        updates._enter(around)
        yield updates


def why_no_branches(trainer: Trainer, module: LightningModule) -> str | None:
    """Why this run cannot be forked, for the sentence "... because <reason>; <what to do>"; ``None`` where it can."""
    from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy

    from lightning_lr.lightning_internals.training_step import takes_the_iterator

    strategy = trainer.strategy
    if isinstance(strategy, DeepSpeedStrategy):
        if not hasattr(strategy, "fork"):
            return (
                f"{type(strategy).__name__} keeps weights, gradients and optimizer state in buffers of an engine that "
                "it does not let us put back; use ZeROStrategy, or make it with one device or DDP, and train with what "
                "it finds"
            )
        reason: str | None = getattr(strategy, "why_not_forked", None)
        if reason is not None:
            return f"{type(strategy).__name__}'s engine cannot be put back to the bit: {reason}"
    if isinstance(strategy, FSDPStrategy):
        return (
            "FSDPStrategy keeps the weights in flat shards that cannot be put back to the bit; use "
            "ModelParallelStrategy with fully_shard, or search with DDP"
        )
    if takes_the_iterator(module):
        return "training_step takes the iterator of the loader itself (dataloader_iter); let it take a batch"
    return None


# ---------------------------------------------------------------------- inside
def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass


def _replace(around: ExitStack, holder: Any, name: str, value: Any) -> None:
    around.callback(setattr, holder, name, getattr(holder, name))
    setattr(holder, name, value)


class ForkedParts(Protocol):
    """What a strategy remembers that no walk over module and optimizer finds."""

    leave_out: list[Any]
    copied_bytes: int

    def restore(self) -> None:
        """Put it back."""


def forked_by_strategy(trainer: Trainer) -> ForkedParts | None:
    """What the strategy's engine trains, remembered; ``None`` where parameters and optimizer are all there is."""
    fork = getattr(trainer.strategy, "fork", None)
    parts: ForkedParts | None = None if fork is None else fork()
    return parts


def scaler_of(trainer: Trainer) -> Any:
    """The AMP scaler, or ``None``."""
    return getattr(trainer.precision_plugin, "scaler", None)


@contextmanager
def borrowed(trainer: Trainer, callbacks: Sequence[Any]) -> Iterator[None]:
    """Inside, a ``fit`` of this Trainer has these callbacks alone, logs nothing and leaves no trace in the Trainer."""
    parts = [
        trainer,
        trainer.state,
        trainer.strategy,
        trainer.strategy.precision_plugin,
        *(value for name, value in vars(trainer).items() if name.endswith("_connector")),
        *(loop for loop in (trainer.validate_loop, trainer.test_loop, trainer.predict_loop)),
    ]
    before = ForkedState(parts, leave_out=[trainer.fit_loop], tensors=False)
    try:
        old = trainer.fit_loop
        trainer.fit_loop = type(old)(trainer, min_epochs=old.min_epochs, max_epochs=old.max_epochs)
        trainer.fit_loop.epoch_loop = type(old.epoch_loop)(
            trainer, min_steps=old.epoch_loop.min_steps, max_steps=old.epoch_loop.max_steps
        )
        trainer.callbacks = list(callbacks)  # type: ignore[attr-defined]
        trainer.loggers = []
        trainer.profiler = PassThroughProfiler()  # type: ignore[attr-defined]
        trainer.num_sanity_val_steps = 0
        trainer.limit_val_batches = 0
        yield
    finally:
        before.restore()
