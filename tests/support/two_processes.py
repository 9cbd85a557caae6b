"""Two processes on gloo for many cases: one process group, started once, works through a list of functions."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from benchmarks._processes import spawn

WORLD = 2


class _Attached(LightningEnvironment):
    """The processes exist already, and so does their process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def ddp(make: Callable[..., Strategy] | None = None, **arguments: Any) -> dict[str, Any]:
    """Trainer arguments that join the running process group, with DDP or another strategy over several devices."""
    strategy = (make or DDPStrategy)(cluster_environment=_Attached(), process_group_backend="gloo")
    return {"accelerator": "cpu", "devices": WORLD, "strategy": strategy, **arguments}


def fsdp2() -> dict[str, Any]:
    """Trainer arguments that join the running process group with FSDP2; the module shards itself by `shard`."""
    strategy = ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1, process_group_backend="gloo")
    strategy.cluster_environment = _Attached()
    return {"accelerator": "cpu", "devices": WORLD, "strategy": strategy}


def shard(module: Any, *parts: nn.Module) -> None:
    """Called by ``configure_model``: FSDP2 as Lightning asks for it. A second ``fit`` finds the module sharded."""
    assert module.device_mesh is not None
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        for part in parts:
            fully_shard(part, mesh=module.device_mesh["data_parallel"])


def _work(rank: int, port: int, cases: Sequence[tuple[str, Callable[[], Any]]], out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    results = {}
    for name, case in cases:
        try:
            results[name] = case()
        except Exception as error:
            results[name] = error
        torch.distributed.barrier()
    torch.save(results, Path(out) / f"{rank}.pt")
    torch.distributed.destroy_process_group()


def run_in_two_processes(cases: Sequence[tuple[str, Callable[[], Any]]], out: Path) -> list[dict[str, Any]]:
    """Run named functions (picklable, module level) on two ranks; returns what each rank's functions returned."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_work, (port, list(cases), str(out)), nprocs=WORLD)
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(WORLD)]
