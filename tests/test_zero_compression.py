"""`ActivationCompression` under `ZeROStrategy`: DDP's rounding and decisions in stages 1 and 2; 3 is refused."""

from __future__ import annotations

import logging
from functools import partial
from queue import SimpleQueue
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import ActivationCompression
from tests.support.processes import run_in_processes
from tests.support.rounding import rounding_after
from tests.support.two_processes import ddp
from tests.support.zero_runs import needs_deepspeed, watched, zero
from tests.test_activation_compression import Net, WithoutDropout, samples

pytestmark = needs_deepspeed

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

SETTINGS: dict[str, dict[str, Any] | None] = {
    "bare": None,
    "4": {"bits": 4, "group_size": 32},
    "auto": {"bits": "auto", "average_bits": 5.5, "group_size": 32, "probe_every": 4},
    "measured": {"bits": "auto", "group_size": 2**20, "probe_every": 2},  # no tensor has a group
}
ENGINES: dict[str, dict[str, Any]] = {
    "1": {"stage": 1},
    "2": {"stage": 2},
    "2-offload": {"stage": 2, "offload_optimizer": True},
    "3": {"stage": 3},
}
WHOLE = [name for name in ENGINES if name != "3"]


class WithoutNorm(WithoutDropout):
    """Batch norm in bf16 fails under DeepSpeed on CPU, whatever the callbacks."""

    def __init__(self) -> None:
        super().__init__()
        self.body[1] = nn.Identity()


def _run(engine: str | None, settings: str, net: type[Net] = WithoutDropout, **arguments: Any) -> dict[str, Any]:
    """Under DDP without an engine."""
    given = SETTINGS[settings]
    callback = None if given is None else ActivationCompression(**given)
    module, calls = net(), SimpleQueue[int]()  # nothing that a branch would put back
    module.head.register_forward_hook(lambda *_: calls.put(1))
    loader = DataLoader(samples(), batch_size=8, sampler=DistributedSampler(samples(), shuffle=False))
    strategy = ddp() if engine is None else zero(**ENGINES[engine])
    facts = watched([callback] if callback else [], module=module, loader=loader, **strategy, **arguments)
    compression = {} if callback is None else callback.state_dict()["compression"]
    noise = None if callback is None else _rounded(callback.settings.compressor(module, torch.distributed.get_rank()))
    return {**facts, **compression, "steps": module.steps, "calls": calls.qsize(), "noise": noise}


def _rounded(compressor: Any) -> torch.Tensor:
    """The gradient of a sum of squares, which is what was kept."""
    same = torch.linspace(-1, 1, 4096).view(64, 64).requires_grad_()
    with compressor.compressing():
        y = (same * 1).square().sum()
    return torch.autograd.grad(y, same)[0]


def _cases() -> list[tuple[str, Any]]:
    plain = [(f"{name}-ddp", partial(_run, None, name)) for name in SETTINGS]
    engines = [(f"{name}-{engine}", partial(_run, engine, name)) for engine in WHOLE for name in SETTINGS]
    accumulated = [
        (f"accumulated-{engine or 'ddp'}", partial(_run, engine, "auto", accumulate_grad_batches=2))
        for engine in (None, "2")
    ]
    half = [
        (f"bf16-{name}", partial(_run, "2", name, net=WithoutNorm, precision="bf16-mixed")) for name in ("bare", "auto")
    ]
    return [*plain, *engines, *accumulated, *half, ("sharded", partial(_run, "3", "4"))]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: Any) -> Any:
    return run_in_processes(_cases(), tmp_path_factory.mktemp("zero"))


def _got(ran: Any, name: str, rank: int = 0) -> Any:
    assert isinstance(ran[rank][name], dict), ran[rank][name]
    return ran[rank][name]


@pytest.mark.parametrize("engine", WHOLE)
@pytest.mark.parametrize("settings", SETTINGS)
def test_weights_and_decisions_are_those_of_ddp(ran: Any, engine: str, settings: str) -> None:
    got, want = _got(ran, f"{settings}-{engine}"), _got(ran, f"{settings}-ddp")
    assert got["updates"] == want["updates"] > 0
    assert got["steps"] == want["steps"]
    assert got.get("allocation") == want.get("allocation")
    assert (got["weights"] - want["weights"]).abs().max() < rounding_after(got["updates"])
    assert torch.equal(got["weights"], _got(ran, f"{settings}-{engine}", rank=1)["weights"])


@pytest.mark.parametrize("engine", WHOLE)
def test_something_was_rounded_and_measuring_disturbs_nothing(ran: Any, engine: str) -> None:
    bare, rounded, measured = (_got(ran, f"{name}-{engine}") for name in ("bare", "4", "measured"))
    assert 1e-5 < (rounded["weights"] - bare["weights"]).abs().max() < 0.1
    assert measured["calls"] > bare["calls"]
    assert measured["steps"] == bare["steps"]
    assert torch.equal(measured["weights"], bare["weights"])


@pytest.mark.parametrize("engine", WHOLE)
def test_ranks_decide_alike_and_round_differently(ran: Any, engine: str) -> None:
    first, second = (_got(ran, f"auto-{engine}", rank) for rank in (0, 1))
    assert len(set(first["allocation"].values())) > 1
    assert first["allocation"] == second["allocation"]
    assert not torch.equal(first["noise"], second["noise"])


def test_accumulation_and_bf16(ran: Any) -> None:
    got, want = _got(ran, "accumulated-2"), _got(ran, "accumulated-ddp")
    assert got["forwards"] == want["forwards"] > got["updates"]
    assert (got["weights"] - want["weights"]).abs().max() < rounding_after(got["updates"])
    half, bare = _got(ran, "bf16-auto"), _got(ran, "bf16-bare")
    assert half["allocation"] == _got(ran, "bf16-auto", rank=1)["allocation"]
    assert 0 < (half["weights"] - bare["weights"]).abs().max() < 0.1


def test_sharded_parameters_are_refused(ran: Any) -> None:
    assert "ZeROStrategy shards parameters, and gathered ones would be taken for activations" in ran[0]["sharded"]
    assert "ZeRO stage 1 or 2" in ran[0]["sharded"]
