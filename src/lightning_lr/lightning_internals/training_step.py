"""The training step: what it takes, what it runs inside, and running one that leaves no trace."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.rank_zero import rank_zero_warn
from torchmetrics import Metric

from lightning_lr.branches import ForkedState
from lightning_lr.lightning_internals.logs import silent_loggers
from lightning_lr.lightning_internals.scaler import loss_scale
from lightning_lr.patching import buffers_put_back, override_on_instance


def training_step_arguments(module: LightningModule, batch: Any) -> tuple[Any, ...]:
    """What ``training_step`` is called with: the index of a batch only where it takes one."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return (batch, 0) if takes_index else (batch,)


def takes_the_iterator(module: LightningModule) -> bool:
    """Whether ``training_step`` fetches its batches itself."""
    return is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)


def is_compiled(module: LightningModule) -> str | None:
    """The name of a part of the module that goes through torch.compile, ``"the module"`` for all of it; None."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return "the module"
    for name, part in module.named_modules():
        # by name: to import the class takes a second
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            return name or "the module"
    return None


def around_training_step(trainer: Trainer, around: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    """Let every ``training_step`` run inside ``around()``; returns a function that undoes this.

    The precision plugin's ``train_step_context`` encloses exactly the training step, also through DDP, and neither
    validation nor the backward; a pair of callback hooks would leak where the step raises. It is shadowed on this one
    plugin.
    """
    inner = trainer.precision_plugin.train_step_context

    @contextmanager
    def enclosed() -> Iterator[None]:
        with inner(), around():
            yield

    return override_on_instance(trainer.precision_plugin, "train_step_context", enclosed)


def detached_training_step(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """The loss of a training step that nobody notices: with its graph, without DDP, and as if it had not happened.

    Random numbers, buffers (the statistics of batch norm), the states of metrics and what the step changes in its
    attributes (counts, lists, tensors, generators) are put back; what is logged is dropped. The plugin's own context is
    entered (autocast), not what :func:`around_training_step` put around it. The loss is scaled as by an AMP scaler, so
    that gradients neither vanish nor overflow.
    """
    context = type(trainer.precision_plugin).train_step_context
    with isolate_rng(), silent_loggers(trainer), _put_back(trainer, module), context(trainer.precision_plugin):
        output = module.training_step(*training_step_arguments(module, batch))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return None if loss is None else loss * loss_scale(trainer)


@contextmanager
def _put_back(trainer: Trainer, module: LightningModule) -> Iterator[None]:
    listeners = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    outside = [trainer, trainer.datamodule, trainer.strategy, *trainer.optimizers, *listeners]  # type: ignore[attr-defined]
    outside.append(getattr(trainer.strategy, "checkpointing", None))  # that the forwards of blocks lead to
    attributes = ForkedState([module], leave_out=[*outside, *module.parameters(), *module.buffers()])
    for gone in attributes.gone:
        rank_zero_warn(
            f"lightning_lr: {gone}, and what a training step that is tried out takes from it is gone for the run; keep "
            "what can be set back in its place (a counter, a list with a position, a generator of random numbers)"
        )
    metrics = [
        (metric, copy.deepcopy(_metric_state(metric))) for metric in module.modules() if isinstance(metric, Metric)
    ]
    undo = [
        override_on_instance(part, name, lambda *args, **kwargs: None)
        for part in module.modules()
        if isinstance(part, LightningModule)
        for name in ("log", "log_dict")
    ]
    try:
        with buffers_put_back(module):
            yield
    finally:
        for put_back in undo:
            put_back()
        attributes.restore()
        for metric, state in metrics:
            vars(metric).update(state)


def _metric_state(metric: Metric) -> dict[str, Any]:
    names = (*metric._defaults, "_computed", "_update_count", "_forward_cache", "_is_synced", "_cache")
    return {name: vars(metric)[name] for name in names if name in vars(metric)}
