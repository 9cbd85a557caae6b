"""The script for a GPU runs, at toy size on the CPU, and goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import gpu

ALONE = ("compiled", "offload")
"""Parts that need a compiler and DeepSpeed's engine: in a process of their own, and slow."""


def test_every_part_runs_at_toy_size_and_is_not_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "METHODS", ("HypergradientDescent",))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    parts = [part for part in gpu.PARTS if part not in ALONE]
    found = gpu.measure(parts, gpu.TOY, tmp_path, 60.0)
    assert list(found) == parts
    for kind in ("resnet50", "gpt"):
        row = found["steps"]["found"][kind]["rows"]["HypergradientDescent"]
        assert row["ratio"]["median"] > 0
        planned = found["checkpointing"]["found"][kind]["planned"]
        assert 0 < planned["checkpointed"] <= planned["plain"]
    assert all(found["compression"]["found"][f"{bits} bits"]["equal"] for bits in (2, 4, 8))
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(gpu.PARTS))
    assert gpu.measure(parts, gpu.TOY, tmp_path, 60.0) == found


@pytest.mark.slow
def test_compiled_steps_and_offloading_run_at_toy_size(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "benchmarks.gpu", "--toy", "--only", *ALONE, "--out", str(tmp_path)]
    without_gpu = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}
    ran = subprocess.run(words, env=without_gpu, capture_output=True, text=True, check=False)
    compiled, offloaded = (tmp_path / "toy" / f"{part}.json" for part in ALONE)
    assert ran.returncode == 0, ran.stderr
    rows = json.loads(compiled.read_text())["found"]
    # gradients in single precision, another order of sums
    for eager, fused in zip(rows["eager"], rows["compiled"], strict=True):
        assert fused == pytest.approx(eager, rel=1e-3, abs=1e-12)
    assert json.loads(offloaded.read_text())["found"]["largest"]["updates"] == 2


def test_no_part_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    assert gpu.measure(["optimizers"], gpu.TOY, tmp_path, -1.0) == {}
