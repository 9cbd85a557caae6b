"""Stage 3 with parameters and optimizer state on a disk, where DeepSpeed's async_io operator can be built."""

from __future__ import annotations

import importlib.util
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from toy import Toy, fit
from zero import Watch, needs_deepspeed, run_in_processes, zero


def _buildable() -> bool:
    if importlib.util.find_spec("deepspeed") is None or not (shutil.which("ninja") and shutil.which("c++")):
        return False
    from lightning_lr.strategies import zero_engine

    zero_engine.choose_accelerator()
    from deepspeed.ops.op_builder import AsyncIOBuilder

    return bool(AsyncIOBuilder().is_compatible(verbose=False))


pytestmark = [needs_deepspeed, pytest.mark.slow]  # the operator is compiled at its first use, for minutes
UPDATES = 18  # of the toy, in three epochs


def _fit(folder: Path | None, parameters: bool) -> dict[str, Any]:
    from torch.optim import AdamW

    module = Toy(lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1))
    strategy: dict[str, Any] = {}
    if folder is not None:
        folder.mkdir(exist_ok=True)
        strategy = zero(
            3,
            devices=1,
            offload_optimizer=True,
            offload_optimizer_device="nvme",
            nvme_path=str(folder),
            **({"offload_parameters": True, "offload_params_device": "nvme"} if parameters else {}),
        )
    watch = Watch()
    _, trainer = fit([watch], module=module, **strategy)
    return {**watch.facts(trainer), "files": 0 if folder is None else sum(f.is_file() for f in folder.rglob("*"))}


@pytest.mark.skipif(not _buildable(), reason="ninja, a C++ compiler or libaio's headers are not there")
@pytest.mark.parametrize("parameters", [False, True])
def test_what_is_on_disk_trains_as_what_is_in_memory(parameters: bool, tmp_path: Path) -> None:
    cases = [("nvme", partial(_fit, tmp_path / "nvme", parameters))]
    got = run_in_processes(cases, tmp_path / "out", world=1)[0]["nvme"]
    assert isinstance(got, dict), got
    plain = _fit(None, False)
    assert got["updates"] == plain["updates"] == UPDATES
    assert got["files"] > 0, "something was written to the disk"
    assert (got["weights"] - plain["weights"]).abs().max() < 1e-6
