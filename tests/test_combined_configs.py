"""The recipes of `configs/` that combine several methods parse, plan and train, on small data for theirs."""

from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_lr.cli import main
from tests.support.zero_runs import needs_deepspeed

CONFIGS = Path(__file__).parents[1] / "configs"
CNN = {"class_path": "examples.SmallCNN", "init_args": {"width": 4, "stem_stride": 1}}
VIT = {"class_path": "examples.ViT", "init_args": {"image_size": 8, "patch": 4, "dim": 16, "depth": 2}}
RESNET = {"class_path": "examples.ResNet", "init_args": {"depth": 8}}


def small(network: dict[str, Any]) -> dict[str, Any]:
    """What stands in the place of a recipe's model and data."""
    return {
        "trainer": {
            "accelerator": "cpu",
            "max_epochs": 3,
            "log_every_n_steps": 1,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "limit_val_batches": 0,
        },
        "model": {"class_path": "examples.Classifier", "init_args": {"network": network, "num_classes": 10}},
        "data": {"class_path": "examples.DigitsDataModule", "init_args": {"batch_size": 64}},
    }


def trained(name: str, network: dict[str, Any], folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[dict[str, str]]:
    """Plan and fit a recipe; what it logged at each update."""
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", [str(CONFIGS.parent), *sys.path])
    config = small(network)
    recipe = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    callbacks = [c for c in recipe["trainer"]["callbacks"] if c["class_path"] != "ModelCheckpoint"]
    config["trainer"]["callbacks"] = callbacks
    (folder / "small.yaml").write_text(yaml.safe_dump(config))
    both = ["--config", str(CONFIGS / f"{name}.yaml"), "--config", "small.yaml"]
    assert main(["plan", *both, "--dataset-size", "1437", "--out", "plan.png"]) == 0
    assert (folder / "plan.png").stat().st_size > 1000
    assert main(["fit", *both]) == 0
    (metrics,) = (folder / "runs" / name).rglob("metrics.csv")
    with metrics.open() as lines:
        return [row for row in csv.DictReader(lines) if row.get("progress/updates")]


def numbers(rows: list[dict[str, str]], key: str) -> list[float]:
    return [float(row[key]) for row in rows if row.get(key)]


@pytest.mark.filterwarnings("ignore")
def test_finetuning_with_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = trained("finetune_everything", VIT, tmp_path, monkeypatch)
    groups = sorted(key for key in rows[0] if key.startswith("lr/"))
    assert len(groups) > 4, "split by layer"
    lrs = [numbers(rows, group) for group in groups]
    ratios = {round(min(update) / max(update), 6) for update in zip(*lrs, strict=True)}
    assert ratios == {round(0.8**3, 6)}, "three layers below the head, at every update"
    top = [max(update) for update in zip(*lrs, strict=True)]
    assert max(top) <= 0.001
    assert top.index(max(top)) == pytest.approx(0.1 * len(top), abs=1), "a slanted triangle"
    assert sorted(set(numbers(rows, "unfrozen_layers"))) == [1, 2, 3]
    assert set(numbers(rows, "compression/bits")) == {8}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("name", "network"), [("large_batch_from_scratch", CNN), ("everything", RESNET)])
def test_a_warm_up_and_then_a_growing_batch(
    name: str, network: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = trained(name, network, tmp_path, monkeypatch)
    switched = numbers(rows, "warmup/switched")
    assert switched == sorted(switched)
    assert {0.0, 1.0} == set(switched)
    batch = numbers(rows, "batch/size")
    before = batch[: switched.index(1.0)]
    assert len(set(before[:10])) == 1
    assert max(batch) > 1.5 * batch[0]
    assert "trust_ratio/0.5" in rows[0]
    factors = [numbers(rows, key) for key in rows[0] if key.startswith("hypergradient/factor/")]
    assert bool(factors) == (name == "everything")
    for factor in factors:
        assert set(factor[: switched.index(1.0)]) == {1.0}, "it waits for the switch"


@pytest.mark.filterwarnings("ignore")
def test_an_unknown_learning_rate_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = trained("unknown_lr", CNN, tmp_path, monkeypatch)
    factors = numbers(rows, "hypergradient/factor/group_0")
    assert factors[-1] > 5
    assert max(numbers(rows, "lr/group_0")) > 5e-5


@needs_deepspeed
@pytest.mark.slow
def test_a_model_too_big_for_the_device(tmp_path: Path) -> None:
    """ZeRO 2, every block computed again and rates by layer: the real engine, in two processes, as it is typed."""
    size = ["--model.network.init_args.dim", "32", "--model.network.init_args.heads", "2",
            "--model.network.init_args.context", "32", "--data.context", "32", "--data.max_bytes", "60000",
            "--trainer.max_steps", "12", "--trainer.log_every_n_steps", "1", "--trainer.val_check_interval", "6",
            "--trainer.limit_val_batches", "2", "--trainer.enable_progress_bar", "false"]  # fmt: skip
    paths = [str(CONFIGS.parent / "src"), str(CONFIGS.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}

    def typed(command: str, *more: str) -> str:
        words = [sys.executable, "-m", "lightning_lr.cli", command, "--config", str(CONFIGS / "too_big.yaml"), *size]
        done = subprocess.run(
            [*words, *more], cwd=tmp_path, env=environ, check=False, capture_output=True, text=True, timeout=1800
        )
        assert done.returncode == 0, done.stderr[-3000:]
        return done.stdout

    planned = " ".join(typed("plan", "--device-memory", "24GB").split())
    assert "32 = 16 x 1 x 2" in planned
    assert "6 of 6 blocks are computed again, in 6 segments" in planned
    assert "first to fit 24.0 GB" in planned
    typed("fit")
    folder = tmp_path / "runs" / "too_big" / "version_0"
    (journal,) = folder.glob("lightning_lr/checkpointing.jsonl")
    assert "6 of 6 blocks are computed again" in json.loads(journal.read_text().splitlines()[0])["facts"]["activations"]
    with (folder / "metrics.csv").open() as lines:
        rows = [row for row in csv.DictReader(lines) if row.get("progress/updates")]
    lrs = [numbers(rows, key) for key in rows[0] if key.startswith("lr/")]
    assert len(lrs) == 15
    assert len(rows) == 12
    ratios = {round(min(update) / max(update), 6) for update in zip(*lrs, strict=True)}
    assert ratios == {round(0.8**7, 6)}, "seven layers below the head, at every update"
    top = [max(update) for update in zip(*lrs, strict=True)]
    assert max(top) == pytest.approx(0.002, rel=0.1)
    assert top[-1] < 0.1 * max(top), "a cosine over the run"
