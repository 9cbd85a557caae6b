"""What a run writes, and where: nothing where the user wants nothing, and never into another run's place."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import Cosine, GradientNoiseScale, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.cli.report.differences import differences
from lightning_lr.cli.report.record import find_run, read_run


class Module(LightningModule):
    def __init__(self, log: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.names = log

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        for name in self.names:
            self.log(name, 7.0)
        return self.layer(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Remote(Logger):
    """A logger of a service: it has a directory of its own, but none for each run that Lightning knows of."""

    def __init__(self, save_dir: Path | str | None, name: str | None = None, version: Any = None) -> None:
        super().__init__()
        self._save_dir, self._name, self._version = save_dir, name, version
        self.rows: list[dict[str, float]] = []
        self.hyperparameters: dict[str, Any] = {}

    @property
    def save_dir(self) -> str | None:
        return None if self._save_dir is None else str(self._save_dir)

    @property
    def name(self) -> str | None:
        return self._name

    @property
    def version(self) -> Any:
        return self._version

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append(dict(metrics))

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self.hyperparameters.update(params)


def fit(logger: Any, root: Path, module: Module | None = None, callbacks: list[Any] | None = None, **more: Any) -> None:
    quiet = {} if more.get("barebones") else {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = Trainer(
        max_epochs=1, accelerator="cpu", logger=logger, default_root_dir=root,
        callbacks=callbacks or [LearningRateSchedule(Cosine())], **{"enable_checkpointing": False, **quiet, **more},
    )  # fmt: skip
    if not more.get("barebones"):
        trainer.log_every_n_steps = 1
    trainer.fit(module or Module(), DataLoader(TensorDataset(torch.ones(8, 3)), batch_size=2))


def files(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*") if path.is_file())


# ---------------------------------------------------------------------- nothing
@pytest.mark.parametrize("settings", [{"logger": False}, {"barebones": True}, {"fast_dev_run": True}], ids=str)
def test_a_run_without_output_writes_no_file(
    settings: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    fit(settings.pop("logger", None), tmp_path / "root", **settings)
    assert files(tmp_path) == []


def test_a_journal_that_cannot_be_written_is_one_warning_and_training_goes_on(tmp_path: Path) -> None:
    (tmp_path / "logs" / "r" / "v").mkdir(parents=True)
    (tmp_path / "logs" / "r" / "v" / "lightning_lr").write_text("a file in the way")
    module = Module()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        fit(Remote(tmp_path / "logs", "r", "v"), tmp_path, module, [LearningRateSchedule(Cosine())])
    assert module.trainer.global_step == 4
    told = [str(w.message) for w in seen if "cannot be written" in str(w.message)]
    assert len(told) == len({text.split(" cannot")[0] for text in told}), "once for each journal"
    assert any("schedule.jsonl" in text for text in told)


# ---------------------------------------------------------------------- a place for each run
def journals(root: Path) -> list[str]:
    return [name for name in files(root) if name.endswith("schedule.jsonl")]


@pytest.mark.parametrize("named", [(None, None), ("project", None), ("project", "id")], ids=str)
def test_two_runs_of_a_logger_without_a_directory_keep_their_journals(
    named: tuple[str | None, str | None], tmp_path: Path
) -> None:
    for seed in range(2):
        name, version = named
        fit(Remote(tmp_path, name, version and f"{version}{seed}"), tmp_path / "root")
    found = journals(tmp_path)
    assert len(found) == 2
    for journal in found:
        assert len((tmp_path / journal).read_text().splitlines()) == 1


@pytest.mark.parametrize("first", ["remote", "csv"])
def test_of_several_loggers_the_one_with_a_directory_for_each_run_has_the_journals(first: str, tmp_path: Path) -> None:
    csv, remote = CSVLogger(tmp_path / "csv"), Remote(tmp_path / "remote")
    fit([remote, csv] if first == "remote" else [csv, remote], tmp_path)
    assert journals(tmp_path) == ["csv/lightning_logs/version_0/lightning_lr/schedule.jsonl"]
    record = read_run(find_run(tmp_path / "csv"))
    assert record.metrics["lr/group_0"].values[0] == 0.1
    assert "schedule" in record.journals


@pytest.mark.parametrize("version", ["../../up", "/etc", "a/../../../b"])
def test_a_logger_cannot_place_the_journals_outside_its_directory(version: str, tmp_path: Path) -> None:
    fit(Remote(tmp_path / "in", "name", version), tmp_path / "in")
    assert len(journals(tmp_path / "in")) == 1
    assert journals(tmp_path) == [f"in/{name}" for name in journals(tmp_path / "in")]


# ---------------------------------------------------------------------- names
def test_names_are_grouped_by_topic(tmp_path: Path) -> None:
    remote = Remote(tmp_path)
    fit(remote, tmp_path, accumulate_grad_batches=2, callbacks=[GradientNoiseScale()])
    assert set(remote.rows[0]) - {"epoch"} == {
        "lr/group_0", "progress/samples", "progress/updates", "batch/size", "batch/micro", "batch/accumulation",
        "noise/gradient",
    }  # fmt: skip


def test_a_metric_of_the_users_keeps_its_name_and_value(tmp_path: Path) -> None:
    users = ("batch_size", "updates", "batch/size", "lr/group_0")
    module = Module(users)
    fit(CSVLogger(tmp_path), tmp_path, module)
    assert {name: float(module.trainer.callback_metrics[name]) for name in users} == dict.fromkeys(users, 7.0)
    record = read_run(find_run(tmp_path))
    assert record.metrics["batch_size"].values == record.metrics["updates"].values == [7.0] * 4
    assert record.metrics["batch/size (of the module)"].values == [7.0] * 4
    assert record.metrics["batch/size"].values == [2.0] * 4
    assert record.metrics["lr/group_0"].values[0] == 0.1


def test_a_run_of_version_0_1_is_read_by_its_old_names(tmp_path: Path) -> None:
    header = "step,samples_seen,updates,batch_size,micro_batch_size,accumulation,noise_scale,gradient_noise_scale"
    (tmp_path / "metrics.csv").write_text(f"{header}\n0,8,1,8,4,2,5.0,6.0\n")
    assert set(read_run(tmp_path).metrics) == {
        "progress/samples", "progress/updates", "batch/size", "batch/micro", "batch/accumulation", "noise/scale",
        "noise/gradient",
    }  # fmt: skip


# ---------------------------------------------------------------------- settings
def test_settings_of_every_callback_are_hyperparameters_of_every_logger(tmp_path: Path) -> None:
    csv, board, remote = CSVLogger(tmp_path / "c"), TensorBoardLogger(tmp_path / "t"), Remote(tmp_path / "r")
    callbacks = [LearningRateSchedule(Cosine(warmup=0.1)), LayerwiseLRDecay(0.5, layers=["layer"])]
    fit([csv, board, remote], tmp_path, callbacks=callbacks)
    expected = {"LearningRateSchedule/curve": "Cosine(warmup=0.1, floor=0)", "LayerwiseLRDecay/decay": 0.5}
    assert expected.items() <= remote.hyperparameters.items()
    for logger in (csv, board):
        written = yaml.safe_load((Path(logger.log_dir) / "hparams.yaml").read_text())  # type: ignore[arg-type]
        assert expected.items() <= written.items()


def test_a_logger_that_refuses_the_settings_does_not_end_the_run(tmp_path: Path) -> None:
    class Refusing(Remote):
        def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
            raise RuntimeError("changing param values is not allowed")

    module = Module()
    with pytest.warns(UserWarning, match=r"Refusing did not take .* \(changing param values is not allowed\)"):
        fit(Refusing(tmp_path), tmp_path, module)
    assert module.trainer.global_step == 4


def test_runs_of_a_python_trainer_differ_by_their_callbacks_and_settings(tmp_path: Path) -> None:
    runs = {
        "short": [LearningRateSchedule(Cosine(warmup=0.1))],
        "long": [LearningRateSchedule(Cosine(warmup=0.2))],
        "noise": [LearningRateSchedule(Cosine(warmup=0.1)), GradientNoiseScale()],
    }
    for name, callbacks in runs.items():
        fit(CSVLogger(tmp_path, name=name), tmp_path, callbacks=callbacks, accumulate_grad_batches=2)
    told = differences([read_run(tmp_path / name / "version_0") for name in runs])
    assert told == [
        "curve=Cosine(warmup=0.1, floor=0)",
        "curve=Cosine(warmup=0.2, floor=0)",
        "GradientNoiseScale, curve=Cosine(warmup=0.1, floor=0)",
    ]


def test_the_journal_of_a_run_is_whole_json(tmp_path: Path) -> None:
    fit(CSVLogger(tmp_path), tmp_path)
    (start,) = (tmp_path / journals(tmp_path)[0]).read_text().splitlines()
    assert json.loads(start)["callback"] == "LearningRateSchedule"
