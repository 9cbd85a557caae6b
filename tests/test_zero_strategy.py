"""`ZeROStrategy` against DDP: accumulation that changes and clipping; the rest is in the gauntlet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from torch.utils.data import DataLoader, DistributedSampler

from tests.support.processes import run_in_processes
from tests.support.rounding import rounding, rounding_after
from tests.support.toy import Toy, data, two_groups
from tests.support.two_processes import ddp
from tests.support.zero_runs import needs_deepspeed, watched, zero

pytestmark = needs_deepspeed

STAGES = (1, 2, 3)
SAMPLES, GLOBAL_BATCH, EPOCHS = 40, 8, 4  # 5 updates an epoch, 20 in all


def _adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def _loader(batch: int, samples: int = SAMPLES, ranks: int = 2) -> DataLoader[Any]:
    """Ranks deal 0, 2, 4 .. and 1, 3, 5 .., so that the global batches are those of one process."""
    rank = torch.distributed.get_rank() if torch.distributed.is_initialized() else 0
    sampler = DistributedSampler(data(samples), num_replicas=ranks, rank=rank, shuffle=False)
    return DataLoader(data(samples), batch_size=batch, sampler=sampler)


def _fit(
    stage: int | None,
    configure: Any = None,
    batch: int = GLOBAL_BATCH // 2,
    samples: int = SAMPLES,
    callbacks: Sequence[Callable[[], Callback]] = (),
    engine: dict[str, Any] | None = None,
    **arguments: Any,
) -> dict[str, Any]:
    """Under DDP without a stage."""
    strategy = ddp() if stage is None else zero(stage, **(engine or {}))
    arguments.setdefault("max_epochs", EPOCHS)
    made = [make() for make in callbacks]
    return watched(made, module=Toy(configure), loader=_loader(batch, samples), **strategy, **arguments)


RAGGED = 40  # samples: 10 micro-batches of 2 x 2, so that windows of 3 leave one


def _scheduler() -> GradientAccumulationScheduler:
    return GradientAccumulationScheduler({0: 1, 1: 3, 2: 2})


def _cases() -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for stage in (None, *STAGES):
        cases.append(
            (
                f"scheduler-{stage}",
                partial(_fit, stage, two_groups, batch=2, samples=RAGGED, callbacks=[_scheduler], max_epochs=3),
            )
        )
        cases.append((f"clip-{stage}", partial(_fit, stage, two_groups, gradient_clip_val=0.1)))
    return cases


@pytest.fixture(scope="module")
def ran(tmp_path_factory: Any) -> Any:
    return run_in_processes(_cases(), tmp_path_factory.mktemp("zero"))


def _got(ran: Any, name: str) -> Any:
    assert isinstance(ran[0][name], dict), ran[0][name]
    return ran[0][name]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("case", ["scheduler", "clip"])
def test_updates_hooks_and_gradient_norms_are_those_of_ddp(ran: Any, stage: int, case: str) -> None:
    got, want = _got(ran, f"{case}-{stage}"), _got(ran, f"{case}-None")
    assert got["updates"] == want["updates"] == got["hooks"] == want["hooks"]
    assert got["norms"] == pytest.approx(
        want["norms"], rel=rounding(16 * 20)
    )  # gradients of 16 terms, by the end a twentieth of them
    assert got["lrs"] == want["lrs"]
    assert (got["weights"] - want["weights"]).abs().max() < rounding_after(got["updates"])
