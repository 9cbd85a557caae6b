"""The recipes of `configs/` for LARS, LAMB, AdamP and AdamWR train, on small images in the place of theirs."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_lr.cli import main

CONFIGS = Path(__file__).parents[1] / "configs"
SMALL: dict[str, Any] = {
    "trainer": {
        "accelerator": "cpu",
        "accumulate_grad_batches": 1,
        "max_epochs": 3,
        "log_every_n_steps": 1,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "limit_val_batches": 0,
    },
    "model": {
        "class_path": "examples.Classifier",
        "init_args": {"network": {"class_path": "examples.SmallCNN", "init_args": {"width": 4, "stem_stride": 1}}},
    },
    "data": {"class_path": "examples.DigitsDataModule", "init_args": {"batch_size": 128}},
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("name", "logged"),
    [
        ("lars", {"trust_ratio/0.5", "lr/group_0"}),
        ("lamb", {"trust_ratio/0.5", "lr/group_0"}),
        ("adamp", {"warmup/probability", "lr/group_0"}),
        ("normalized_weight_decay", {"weight_decay/group_0", "lr/group_0"}),
    ],
)
def test_a_recipe_trains_and_logs(name: str, logged: set[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "adamp":
        pytest.importorskip("pytorch_optimizer")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [str(CONFIGS.parent), *sys.path])
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(SMALL))
    assert main(["fit", "--config", str(CONFIGS / f"{name}.yaml"), "--config", "small.yaml"]) == 0
    (metrics,) = (tmp_path / "runs" / name).rglob("metrics.csv")
    lines = metrics.read_text().splitlines()
    header = lines[0].split(",")
    assert logged <= set(header)
    column = header.index("train_loss")
    losses = [float(line.split(",")[column]) for line in lines[1:] if line.split(",")[column]]
    assert min(losses) < 0.97 * losses[0]  # the automatic warm-up goes on until the loss rises again
