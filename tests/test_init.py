"""``lightning-lr init``: the file that it writes trains, and nothing is overwritten."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule
from torch import nn
from torch.utils.data import DataLoader

from lightning_lr.cli import main
from lightning_lr.cli.init import CHOICES
from lightning_lr.cli.report.record import find_run, read_run
from tests.support.toy import data as samples

pytestmark = pytest.mark.filterwarnings("ignore")


class Regression(LightningModule):
    """A user's module, with a scheduler of its own."""

    def __init__(self, width: int = 8, lr: float = 0.01, sizes: list[int] | None = None, bias: bool = True) -> None:
        super().__init__()
        self.lr = lr
        self.net = nn.Sequential(
            nn.Linear(6, width, bias=bias), nn.ReLU(), nn.Linear(width, width), nn.Linear(width, 1)
        )

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = nn.functional.mse_loss(self.net(batch[0]), batch[1])
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr)
        return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)]


class Samples(LightningDataModule):
    """A user's data, whose path has no default."""

    def __init__(self, path: str, batch_size: int = 8) -> None:
        super().__init__()
        self.batch_size = batch_size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(samples(240), batch_size=self.batch_size)


MODEL, DATA = f"{__name__}.Regression", f"{__name__}.Samples"


@pytest.mark.parametrize("problem", CHOICES)
def test_what_is_written_trains(problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "--model", MODEL, "--data", DATA, "--for", problem, "--out", "c.yaml"]) == 0
    text = Path("c.yaml").read_text(encoding="utf-8")
    assert "path:  # no default: give str" in text
    Path("c.yaml").write_text(text.replace("path:  # no default: give str", "path: here"), encoding="utf-8")
    on_cpu = ["--trainer.accelerator", "cpu", "--trainer.log_every_n_steps", "1", "--trainer.max_epochs", "2"]
    quiet = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
    assert main(["fit", "--config", "c.yaml", *on_cpu, *quiet, "--trainer.enable_checkpointing", "false"]) == 0
    run = read_run(find_run(Path("runs/regression")))
    assert run.metrics["progress/updates"].values[-1] == 60
    (started,) = run.starts.values()
    assert f"class_path: {started['callback']}" in CHOICES[problem][1]


def test_the_other_problems_are_comments_and_the_defaults_are_the_constructors(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "c.yaml"
    assert main(["init", "--model", MODEL, "--data", DATA, "--out", str(out)]) == 0
    text = out.read_text(encoding="utf-8")
    read = yaml.safe_load(text)
    (callback,) = read["trainer"]["callbacks"]
    assert callback["class_path"] == "LearningRateSchedule"
    assert callback["init_args"]["module_scheduler"] == "replace", "configure_optimizers has one of its own"
    assert read["model"] == {"class_path": MODEL, "init_args": {"width": 8, "lr": 0.01, "bias": True}}
    assert read["data"] == {"class_path": DATA, "init_args": {"path": None, "batch_size": 8}}
    for callback in ("LearningRateSearch", "LearningRateScaling", "LayerwiseLRDecay"):
        assert f"# - class_path: {callback}" in text


def test_a_file_that_exists_stays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "c.yaml"
    out.write_text("mine", encoding="utf-8")
    assert main(["init", "--model", MODEL, "--out", str(out)]) == 2
    assert f"{out} exists; give another file (--out)" in capsys.readouterr().err
    assert out.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--model", f"{__name__}.Regresion"], f"did you mean '{__name__}.Regression'?"),
        (["--model", "tests.test_inti.Regression"], "did you mean 'tests.test_init'?"),
        (["--model", "Regression"], "give package.module.Class"),
        (["--model", DATA], "is no LightningModule of lightning.pytorch; it belongs at --data"),
        (["--model", MODEL, "--data", MODEL], "is no LightningDataModule of lightning.pytorch; it belongs at --model"),
        (["--model", "torch.nn.Linear"], "is no LightningModule"),
    ],
)
def test_a_wrong_path_is_named_with_the_nearest(
    options: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(["init", *options, "--out", str(tmp_path / "c.yaml")]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c.yaml").exists()
