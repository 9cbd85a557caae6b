"""The real DeepSpeed engine in processes of gloo: one group for many cases, ended without the interpreter's exit.

gloo's threads can abort a process that exits as Python does (``terminate called without an active exception``), after
everything is done: results go to a file, the ranks wait for each other, and then leave by ``os._exit``.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.tensor import DTensor

from benchmarks._processes import spawn
from lightning_lr import ZeROStrategy
from lightning_lr import lightning_internals as internals
from tests.support.toy import fit
from tests.support.two_processes import _Attached

Cases = Sequence[tuple[str, Callable[[], Any]]]

needs_deepspeed = pytest.mark.skipif(
    importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed (extra: deepspeed)"
)


def zero(stage: int, devices: int = 2, **arguments: Any) -> dict[str, Any]:
    """Trainer arguments that join the running process group with a ``ZeROStrategy``."""
    strategy = ZeROStrategy(
        stage=stage,  # type: ignore[arg-type]
        cluster_environment=_Attached(),
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

        self._undo = internals.after_optimizer_step(trainer, made)

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


def _work(rank: int, world: int, port: int, cases: Cases, out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    os.environ.update(WORLD_SIZE=str(world), RANK=str(rank), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    results: dict[str, Any] = {}
    for name, case in cases:
        try:
            results[name] = case()
        except Exception as error:
            results[name] = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
        torch.distributed.barrier()
    torch.save(results, Path(out) / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)


def run_in_processes(cases: Cases, out: Path, world: int = 2) -> list[dict[str, Any]]:
    """Run named functions (picklable, module level) on ``world`` ranks; what each returned, or its error as text."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_work, (world, port, list(cases), str(out)), nprocs=world)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(world)]
