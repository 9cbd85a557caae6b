"""``max_micro_batch_size="auto"``: the largest micro-batch that fits on every device, tried before training.

A copy of module and optimizer takes two training steps on the largest micro-batch that the plan would ever use, on half
of it where memory runs out, and so on, until it fits on all devices. The copy is thrown away, so weights,
buffers, optimizer state, metrics and the module's own attributes are out of reach; random state is put back, loggers
and ``self.log`` are silent. The copy costs the memory of the weights once more, which is left over in training as room
for what varies from batch to batch. Nothing is gathered or reduced while a device may run out of memory: the copy is
not wrapped for DDP, and ``SyncBatchNorm`` is local in it.
"""

from __future__ import annotations

import copy
from contextlib import ExitStack
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.memory import garbage_collection_cuda, is_oom_error
from lightning.pytorch.utilities.seed import isolate_rng
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.base import members_of
from lightning_lr.learning_rate import stand_still

CALLER = 'BatchSizeRamp(max_micro_batch_size="auto")'


def largest_micro_batch(trainer: Trainer, module: LightningModule, loader: DataLoader[Any], largest: int) -> int:
    """Return the first of largest, largest / 2, ... (rounded up) samples that every device can train on.

    Args:
        trainer: where training is about to start; every process calls this.
        module: its module, which is left as it is.
        loader: the training loader, whose data set and ``collate_fn`` make the batches: its first samples.
        largest: samples to begin with.

    Raises:
        MisconfigurationException: where a single sample does not fit, the strategy shards the module, or the module
            cannot be copied.
    """
    whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
    if not whole or internals.engine_holds_gradients(trainer):
        raise MisconfigurationException(
            f"{CALLER}: {type(trainer.strategy).__name__} may shard the module, and a copy of it cannot be tried; give "
            "a number of samples"
        )
    tried = [largest]
    with isolate_rng(), internals.silent_loggers(trainer):
        samples = _samples(loader.dataset, largest)
        trial = _Trial(trainer, module)
        while not trainer.strategy.reduce_boolean_decision(trial.fits(loader, samples[: tried[-1]])):
            if tried[-1] == 1:
                raise MisconfigurationException(
                    f"{CALLER}: not even one sample fits (tried {', '.join(map(str, tried))}); use a smaller model, "
                    "lower precision or activation checkpointing"
                )
            tried.append(-(-tried[-1] // 2))
        del trial
    garbage_collection_cuda()
    rank_zero_info(f"{CALLER}: micro-batches of at most {tried[-1]} samples (tried {', '.join(map(str, tried))})")
    return tried[-1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that a device has run out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or is_oom_error(error)


class _Trial:
    """Copies of module and optimizer that train, with a learning rate of 0, where nobody sees it."""

    def __init__(self, trainer: Trainer, module: LightningModule) -> None:
        self._trainer = trainer
        # what the module may refer to and what is no part of it
        outside = [trainer, trainer.datamodule, *trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
        memo = {id(thing): thing for thing in outside if thing is not None}
        try:
            self._module = copy.deepcopy(module, memo)
            self._optimizer = _copied(trainer.optimizers[0], memo)
        except Exception as error:
            raise MisconfigurationException(
                f"{CALLER}: {type(module).__name__} and its optimizer could not be copied to be tried ({error}); give "
                "a number of samples"
            ) from error
        for part in self._module.modules():
            if isinstance(part, LightningModule):
                part.trainer = trainer
                part.__dict__["log"] = part.__dict__["log_dict"] = _log_nothing
            if isinstance(part, nn.SyncBatchNorm):
                part.__class__ = _LocalBatchNorm  # type: ignore[assignment]
        stand_still(self._optimizer)

    def fits(self, loader: DataLoader[Any], samples: list[Any]) -> bool:
        """Whether this device can train on ``samples``."""
        try:
            assert loader.collate_fn is not None
            batch = internals.batch_on_device(self._trainer, loader.collate_fn(samples))
            for _ in range(2):  # at the second, gradients and the optimizer's state are there, as in training
                self._optimizer.step(lambda: self._loss(batch))
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            return False
        finally:
            self._module.zero_grad(set_to_none=True)
            batch = None
            garbage_collection_cuda()
        return True

    def _loss(self, batch: Any) -> float:
        with torch.enable_grad():
            with self._trainer.precision_plugin.train_step_context(), ExitStack() as around:
                for member in members_of(self._trainer):
                    around.enter_context(member.dry_run_context(self._module, batch))
                output = self._module.training_step(*internals.training_step_arguments(self._module, batch))
            loss: Any = output["loss"] if isinstance(output, dict) else output
            if loss is None:  # the module skips this batch
                return 0.0
            self._module.backward(loss)
        return float(loss.detach())


class _LocalBatchNorm(nn.modules.batchnorm._BatchNorm):
    """``SyncBatchNorm`` without the other devices."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass


def _samples(dataset: Any, count: int) -> list[Any]:
    """The first samples of a data set, from the start again where it has fewer."""
    indices = [index % len(dataset) for index in range(count)]
    if hasattr(dataset, "__getitems__"):  # as torch's own fetcher asks
        return list(dataset.__getitems__(indices))
    return [dataset[index] for index in indices]


def _copied(optimizer: Optimizer, memo: dict[int, Any]) -> Optimizer:
    """A copy over the copied parameters, without hooks and without the counters that LR schedulers put around it."""
    # by its attributes: torch's own deepcopy leaves out those of LBFGS and of optimizers with attributes of their own
    attributes = {
        name: value for name, value in vars(optimizer).items() if name != "step" and not name.startswith("_optimizer_")
    }
    clone: Optimizer = object.__new__(type(optimizer))
    clone.__setstate__(copy.deepcopy(attributes, memo))
    return clone


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    pass
