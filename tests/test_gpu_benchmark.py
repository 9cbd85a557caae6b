"""The script for a GPU runs, at toy size on the CPU, and goes on where it was stopped."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import gpu


def test_every_part_runs_at_toy_size_and_is_not_measured_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "METHODS", ("HypergradientDescent",))
    monkeypatch.setattr(gpu.torch.cuda, "is_available", lambda: False)
    found = gpu.measure(list(gpu.PARTS), gpu.TOY, tmp_path, 60.0)
    assert set(found) == set(gpu.PARTS)
    for kind in ("resnet50", "gpt"):
        row = found["steps"]["found"][kind]["rows"]["HypergradientDescent"]
        assert row["ratio"]["median"] > 0
        planned = found["checkpointing"]["found"][kind]["planned"]
        assert 0 < planned["checkpointed"] <= planned["plain"]
    assert all(found["compression"]["found"][f"{bits} bits"]["equal"] for bits in (2, 4, 8))
    monkeypatch.setattr(gpu, "PARTS", dict.fromkeys(gpu.PARTS))
    assert gpu.measure(list(gpu.PARTS), gpu.TOY, tmp_path, 60.0) == found


def test_no_part_is_begun_when_the_time_is_up(tmp_path: Path) -> None:
    assert gpu.measure(["optimizers"], gpu.TOY, tmp_path, -1.0) == {}
