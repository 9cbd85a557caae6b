"""`LayerwiseLRDecay` in two processes, where blocks are to be found in a model that is sharded, or its optimizer is."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.optim import AdamW
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import Cosine, LayerwiseLRDecay, LearningRateSchedule
from tests.support.layered_net import FACTORS, NAMES, Deep, adamw
from tests.support.rounding import rounding_after
from tests.support.toy import Probe, data, fit, weights
from tests.support.two_processes import ddp, fsdp2, run_in_two_processes, shard

BATCH = 8


class Sharded(Deep):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        shard(self, *self.net.blocks, self.net)


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


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases: list[tuple[str, Callable[[], Any]]] = [(name, partial(_case, name)) for name in ("fsdp2", "zero-redundancy")]
    return run_in_two_processes(cases, tmp_path_factory.mktemp("two"))


def _full(state: dict[str, Tensor], module: Deep) -> Tensor:
    return torch.cat([state[name].double().flatten() for name, _ in module.named_parameters()])


@pytest.mark.parametrize("name", ["fsdp2", "zero-redundancy"])
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
        # means over two ranks are summed in another order
        assert (_full(result["weights"], one) - weights(one)).abs().max() < rounding_after(18)
