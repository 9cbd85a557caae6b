"""`LayerwiseLRDecay` in two processes, where parameters are wrapped, sharded, or their optimizer is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from ddp import _Attached, ddp, run_in_two_processes
from deep import FACTORS, NAMES, Deep, adamw
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import ModelParallelStrategy
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import AdamW
from torch.utils.data import DataLoader, DistributedSampler
from toy import Probe, data, fit, weights

from lightning_lr import Cosine, LayerwiseLRDecay, LearningRateSchedule

BATCH = 8


class Sharded(Deep):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        assert self.device_mesh is not None
        mesh = self.device_mesh["data_parallel"]
        for block in self.net.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(self.net, mesh=mesh)


def fsdp2() -> dict[str, Any]:
    strategy = ModelParallelStrategy(
        data_parallel_size=2, tensor_parallel_size=1, save_distributed_checkpoint=False, process_group_backend="gloo"
    )
    strategy.cluster_environment = _Attached()
    return {"accelerator": "cpu", "devices": 2, "strategy": strategy}


def zero_redundancy(module: Any) -> Any:
    """torch's optimizer that keeps its state on one rank per parameter (ZeRO stage 1)."""
    return ZeroRedundancyOptimizer(module.parameters(), AdamW, lr=0.1, weight_decay=0.01)


def methods() -> list[Any]:
    return [LearningRateSchedule(Cosine(floor=0.1)), LayerwiseLRDecay(0.5)]


def _case(name: str) -> dict[str, Any]:
    split = DistributedSampler(data(48), shuffle=False, num_replicas=2, rank=torch.distributed.get_rank())
    loader = DataLoader(data(48), batch_size=BATCH // 2, sampler=split)
    module = Sharded(adamw) if name == "fsdp2" else Deep(zero_redundancy if name == "zero-redundancy" else adamw)
    strategy = fsdp2() if name == "fsdp2" else ddp()
    probe = Probe()
    trained, trainer = fit([*methods(), probe], module=module, loader=loader, **strategy)
    groups = [group["name"] for group in trainer.optimizers[0].param_groups]
    full = get_model_state_dict(trained, options=StateDictOptions(full_state_dict=True))
    shards = sum(p.to_local().numel() if hasattr(p, "to_local") else p.numel() for p in trained.parameters())
    return {"series": probe.series, "groups": groups, "weights": full, "shards": shards}


def _resume(folder: str) -> tuple[list[Any], list[Any], bool]:
    """Lr of each update, uninterrupted and after a resume at update 6 of 18; whether both end with the same weights."""

    def run(*more: Any, **arguments: Any) -> tuple[list[Any], list[Tensor]]:
        split = DistributedSampler(data(48), shuffle=False, num_replicas=2, rank=torch.distributed.get_rank())
        loader = DataLoader(data(48), batch_size=BATCH // 2, sampler=split)
        probe = Probe()
        trained, _ = fit([*methods(), probe, *more], module=Sharded(adamw), loader=loader, **fsdp2(), **arguments)
        return probe.series, [parameter.full_tensor() for parameter in trained.parameters()]

    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    whole, expected = run(save, enable_checkpointing=True)
    rest, weights_ = run(ckpt_path=f"{folder}/step=6.ckpt")
    return whole, rest, all(map(torch.equal, expected, weights_))


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    names = ("ddp", "fsdp2", "zero-redundancy")
    cases: list[tuple[str, Callable[[], Any]]] = [(name, partial(_case, name)) for name in names]
    cases.append(("fsdp2-resume", partial(_resume, str(tmp_path_factory.mktemp("checkpoints")))))
    return run_in_two_processes(cases, tmp_path_factory.mktemp("two"))


def _full(state: dict[str, Tensor], module: Deep) -> Tensor:
    return torch.cat([state[name].double().flatten() for name, _ in module.named_parameters()])


@pytest.mark.parametrize("name", ["ddp", "fsdp2", "zero-redundancy"])
def test_two_processes_equal_one(name: str, two_processes: list[dict[str, Any]]) -> None:
    probe = Probe()
    one, _ = fit([*methods(), probe], module=Deep(adamw), loader=DataLoader(data(48), batch_size=BATCH))
    assert isinstance(one, Deep)
    for row in probe.series:
        assert row == pytest.approx([row[-1] * factor for factor in FACTORS], rel=1e-12)
    for rank, results in enumerate(two_processes):
        result = results[name]
        if isinstance(result, Exception):
            raise result
        assert result["groups"] == NAMES
        assert result["series"] == probe.series
        if name == "fsdp2":
            assert result["shards"] < weights(one).numel(), "each rank holds a part"
            if rank > 0:
                continue  # the full weights are assembled on rank 0
        # means over two ranks are summed in another order; fp32 rounding over 18 updates
        assert (_full(result["weights"], one) - weights(one)).abs().max() < 1e-6


def test_fsdp2_resumes_exactly(two_processes: list[dict[str, Any]]) -> None:
    for rank in two_processes:
        if isinstance(rank["fsdp2-resume"], Exception):
            raise rank["fsdp2-resume"]
        whole, rest, same_weights = rank["fsdp2-resume"]
        assert len(rest) == 12
        assert rest == whole[6:]
        assert same_weights
