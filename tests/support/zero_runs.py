"""The real DeepSpeed engine in two processes of gloo, and what is recorded of a run under it."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from lightning_lr import ZeROStrategy
from lightning_lr import lightning_internals as internals
from tests.support.processes import Attached
from tests.support.toy import fit

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)"
)


def zero(stage: int, devices: int = 2, **arguments: Any) -> dict[str, Any]:
    """Trainer arguments that join the running process group with a ``ZeROStrategy``."""
    strategy = ZeROStrategy(
        stage=stage,  # type: ignore[arg-type]
        cluster_environment=Attached(),
        process_group_backend="gloo",
        logging_level=logging.ERROR,
        **arguments,
    )
    return {"accelerator": "cpu", "devices": devices, "strategy": strategy}


@contextmanager
def whole(module: torch.nn.Module) -> Iterator[None]:
    """Inside, parameters are whole on every rank."""
    shards = [p for p in module.parameters() if hasattr(p, "ds_id")]
    if not shards:
        yield
        return
    import deepspeed

    with deepspeed.zero.GatheredParameters(shards):
        yield


def whole_weights(module: torch.nn.Module) -> torch.Tensor:
    with whole(module):
        return torch.cat([assembled(p.detach()).double().flatten().clone() for p in module.parameters()])


def assembled(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of FSDP2 put together from its pieces; any other as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


class Watch(Callback):
    """What a run did: calls of hooks, gradient norms and learning rates of the updates, weights at the end."""

    def __init__(self) -> None:
        self.hooks = 0
        self.norms: list[float] = []
        self.lrs: list[list[float]] = []
        self.weights = torch.empty(0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def made() -> None:
            self.lrs.append([float(group["lr"]) for group in trainer.optimizers[0].param_groups])
            if isinstance(trainer.strategy, ZeROStrategy):
                self.norms.append(trainer.strategy.gradient_norm or 0.0)

        self._undo = internals.after_optimizer_step(trainer, trainer.optimizers[0], made)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.hooks += 1
        if not isinstance(trainer.strategy, ZeROStrategy):
            gradients = [assembled(p.grad).flatten() for p in pl_module.parameters() if p.grad is not None]
            self.norms.append(float(torch.cat(gradients).norm()))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.weights = whole_weights(pl_module)
        self._undo()

    def facts(self, trainer: Trainer) -> dict[str, Any]:
        return {
            "hooks": self.hooks,
            "norms": self.norms,
            "lrs": self.lrs,
            "weights": self.weights,
            "updates": trainer.global_step,
        }


def watched(callbacks: Sequence[Callback] = (), **arguments: Any) -> dict[str, Any]:
    """A fit of the toy, and what it did."""
    watch = Watch()
    _, trainer = fit([*callbacks, watch], **arguments)
    return watch.facts(trainer)
