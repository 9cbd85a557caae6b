"""What ``plan`` says about activations against what the run does."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_lr.cli import main
from lightning_lr.cli.plan.command import PlanCLI
from lightning_lr.cli.plan.configured_run import PlanOptions, plan_run
from tests.support.toy import data
from tests.test_checkpointed_strategy import Deep

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


class Samples(LightningDataModule):
    def __init__(self, batch_size: int = 40, samples: int = 80) -> None:
        super().__init__()
        self.batch_size, self.samples = batch_size, samples

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(data(self.samples), batch_size=self.batch_size)

    val_dataloader = train_dataloader


class NeedsTrainer(Deep):
    def training_step(self, batch: Any, batch_idx: int) -> Any:
        return super().training_step(batch, batch_idx) * self.trainer.world_size


def write(
    folder: Path, strategy: Any, model: str = "tests.test_checkpointed_strategy.Deep", batch_size: int = 40
) -> str:
    content = {
        "trainer": {
            "accelerator": "cpu", "devices": 1, "max_epochs": 1, "strategy": strategy, "enable_progress_bar": False,
            "enable_model_summary": False, "enable_checkpointing": False,
            "logger": {"class_path": "lightning.pytorch.loggers.CSVLogger", "init_args": {"save_dir": "logs"}},
        },
        "model": {"class_path": model},
        "data": {"class_path": f"{__name__}.Samples", "init_args": {"batch_size": batch_size}},
    }  # fmt: skip
    (folder / "c.yaml").write_text(yaml.safe_dump(content))
    return "c.yaml"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))


def planned(path: str) -> Any:
    configured = PlanCLI(["--config", path])
    return plan_run(configured.settings, configured.model, configured.datamodule, PlanOptions())


@pytest.mark.parametrize(
    ("strategy", "precision"),
    [
        ("checkpointed", "32-true"),
        ({"class_path": "lightning_lr.CheckpointedStrategy", "init_args": {"policy": {"segments": 3}}}, "bf16-mixed"),
    ],
)
def test_planned_bytes_are_those_of_the_run(strategy: Any, precision: str, tmp_path: Path) -> None:
    path = write(tmp_path, strategy)
    configured = PlanCLI(["--config", path, f"--trainer.precision={precision}"])
    fact = plan_run(configured.settings, configured.model, configured.datamodule, PlanOptions()).summary["activations"]
    assert main(["fit", "--config", path, f"--trainer.precision={precision}"]) == 0
    (journal,) = tmp_path.glob("logs/**/checkpointing.jsonl")
    run = json.loads(journal.read_text().splitlines()[0])["facts"]["activations"]
    assert fact.startswith(run), "the same segments, and the same bytes at the peak"
    assert "per device and micro-batch of 40" in fact


def test_plan_prints_it_and_says_where_it_cannot(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--config", write(tmp_path, "checkpointed")]) == 0
    assert "saved activations peak at" in " ".join(capsys.readouterr().out.split())
    assert "activations" not in planned(write(tmp_path, "auto")).summary
    plan = planned(write(tmp_path, "checkpointed", f"{__name__}.NeedsTrainer"))
    assert "activations" not in plan.summary
    assert any("training_step does not work without a Trainer" in note for note in plan.notes)
    plan = planned(write(tmp_path, "checkpointed", batch_size=4))
    assert "per device and micro-batch of 4 " in plan.summary["activations"], "its samples repeat in what is measured"


def test_budget_that_no_plan_reaches_is_refused_by_plan_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init_args = {"policy": {"memory_budget": 100}}
    path = write(tmp_path, {"class_path": "lightning_lr.CheckpointedStrategy", "init_args": init_args})
    assert main(["plan", "--config", path]) == 2
    assert "the least possible for this batch is" in " ".join(capsys.readouterr().err.split())


@pytest.mark.parametrize(("batch_size", "samples"), [(40, 80), (160, 320)])
def test_planned_bytes_of_compression_are_those_of_the_run(batch_size: int, samples: int, tmp_path: Path) -> None:
    path = write(tmp_path, "auto", batch_size=batch_size)
    content = yaml.safe_load(Path(path).read_text())
    content["trainer"]["callbacks"] = [{"class_path": "ActivationCompression", "init_args": {"group_size": 32}}]
    content["data"]["init_args"]["samples"] = samples
    Path(path).write_text(yaml.safe_dump(content))
    fact = planned(path).summary["saved activations"]
    assert f"per device and micro-batch of {batch_size}" in fact
    assert main(["fit", "--config", path]) == 0
    (journal,) = tmp_path.glob("logs/**/compression.jsonl")
    (run,) = [line for line in map(json.loads, journal.read_text().splitlines()) if line["event"] == "saved"]
    assert fact.split(";")[0] == run["facts"]["saved activations"].split(";")[0], "measured whole, or extrapolated"


def test_checkpointed_and_compressed_at_once_is_noted(tmp_path: Path) -> None:
    path = write(tmp_path, "checkpointed")
    content = yaml.safe_load(Path(path).read_text())
    content["trainer"]["callbacks"] = [{"class_path": "ActivationCompression"}]
    Path(path).write_text(yaml.safe_dump(content))
    plan = planned(path)
    assert "saved activations" not in plan.summary
    assert any("without compression" in note for note in plan.notes)
