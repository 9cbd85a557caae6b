"""DDP and FSDP2 in two processes on gloo; `zero_runs` has the same for DeepSpeed's engine."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from tests.support.processes import Attached, Cases, run_in_processes

WORLD = 2


def ddp(make: Callable[..., Strategy] | None = None, **arguments: Any) -> dict[str, Any]:
    """Trainer arguments that join the running process group, with DDP or another strategy over several devices."""
    strategy = (make or DDPStrategy)(cluster_environment=Attached(), process_group_backend="gloo")
    return {"accelerator": "cpu", "devices": WORLD, "strategy": strategy, **arguments}


def fsdp2() -> dict[str, Any]:
    """Trainer arguments that join the running process group with FSDP2; the module shards itself by `shard`."""
    strategy = ModelParallelStrategy(data_parallel_size=WORLD, tensor_parallel_size=1, process_group_backend="gloo")
    strategy.cluster_environment = Attached()
    return {"accelerator": "cpu", "devices": WORLD, "strategy": strategy}


def shard(module: Any, *parts: nn.Module) -> None:
    """Called by ``configure_model``: FSDP2 as Lightning asks for it. A second ``fit`` finds the module sharded."""
    assert module.device_mesh is not None
    if not any(isinstance(parameter, DTensor) for parameter in module.parameters()):
        for part in parts:
            fully_shard(part, mesh=module.device_mesh["data_parallel"])


def run_in_two_processes(cases: Cases, out: Path) -> list[dict[str, Any]]:
    """Run named functions (picklable, module level) on two ranks; what each rank's functions returned or raised."""
    return run_in_processes(cases, out, WORLD, errors_as_text=False)
