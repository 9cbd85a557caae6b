"""A run in the loggers that people look at: pictures, settings, the bar, and a report that begins at any of them."""

from __future__ import annotations

import json
import math
import sqlite3
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger

import lightning_lr as lr
from lightning_lr.cli.report.mlflow_store import read_database, read_folder
from lightning_lr.cli.report.wandb_file import BLOCK, FIRST, FULL, LAST, read_wandb
from tests.support.toy import Toy, data

pytestmark = pytest.mark.filterwarnings("ignore")
UPDATES = 24


def train(loggers: Any, *callbacks: Any, plan: bool = False, module: LightningModule | None = None, **more: Any) -> Any:
    settings = {"max_epochs": 2, "enable_progress_bar": False, "log_every_n_steps": 1, **more}
    trainer = Trainer(
        accelerator="cpu", logger=loggers, enable_checkpointing=False, enable_model_summary=False,
        callbacks=[lr.LearningRateSchedule(lr.Cosine(warmup=0.25)), *callbacks], **settings,
    )  # fmt: skip
    module, loader = module or Toy(), torch.utils.data.DataLoader(data(48), batch_size=4)
    if plan:
        lr.plan(trainer, module, loader)
    trainer.fit(module, loader)
    return trainer


def pictures_in(directory: Path) -> dict[str, tuple[int, int]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(directory), size_guidance={"images": 0})
    events.Reload()
    return {tag: (image.width, image.height) for tag in events.Tags()["images"] for image in events.Images(tag)}


# ---------------------------------------------------------------------- several loggers, in either order
@pytest.mark.parametrize("csv_first", [True, False])
def test_a_report_begins_at_any_of_two_loggers(csv_first: bool, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    both = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "tb")]
    trainer = train(both if csv_first else both[::-1], plan=csv_first)
    reports = [lr.report(trainer), lr.report(tmp_path / "csv"), lr.report(tmp_path / "tb")]
    for report in reports:
        assert report.data.metrics["lr/group_0"].values[0] == pytest.approx(0.05 / 6)
        assert report.data.starts["schedule"]["callback"] == "LearningRateSchedule"
        assert report.data.planned_updates == UPDATES
        assert report.data.timing is not None
    shown = pictures_in(tmp_path / "tb" / "lightning_logs" / "version_0")
    assert set(shown) == {"lightning_lr/report", *(["lightning_lr/plan"] if csv_first else [])}
    assert all(width >= 1000 for width, _ in shown.values())


def test_pictures_can_be_switched_off_and_a_trial_run_sends_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    train(TensorBoardLogger(tmp_path, name="trial"), fast_dev_run=2)
    monkeypatch.setenv("LIGHTNING_LR_PICTURES", "0")
    train(TensorBoardLogger(tmp_path, name="off"))
    assert pictures_in(tmp_path / "off" / "version_0") == {}
    assert not list((tmp_path / "trial").rglob("*.png"))


# ---------------------------------------------------------------------- loggers of other packages
class Recorder(Logger):
    """Without files; notes what is called on its experiment."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []

    name, version, experiment_id, run_id = "experiment", "7", "1", "7"
    save_dir: Any = "somewhere://else"

    def log_metrics(self, *args: Any, **kwargs: Any) -> None: ...

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    @property
    def experiment(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("log_") and name != "upload":
            raise AttributeError(name)
        return lambda *args, **kwargs: self.calls.append((name, args, kwargs))

    def __getitem__(self, name: str) -> Any:
        self.calls.append(("[]", (name,), {}))
        return self


class CometLogger(Recorder): ...


class NeptuneLogger(Recorder): ...


class MLFlowLogger(Recorder): ...


class WandbLogger(Recorder): ...


def pixels_of(value: Any) -> tuple[int, ...]:
    assert value.dtype == np.uint8
    return tuple(value.shape[2:])


def send(kind: type[Recorder]) -> list[tuple[str, tuple[Any, ...], dict[str, Any]]]:
    logger = kind()
    train(logger, plan=True, max_epochs=1)
    return logger.calls


def test_comet_and_neptune_get_the_plan_by_the_documented_calls() -> None:
    ((call, (pixels,), named),) = send(CometLogger)
    assert (call, named, pixels_of(pixels)) == ("log_image", {"name": "lightning_lr/plan", "step": 0}, (3,))
    (place, (upload, (figure,), _)) = send(NeptuneLogger)
    assert place[1] == ("lightning_lr/plan",)
    assert (upload, type(figure).__name__) == ("upload", "Figure")


def test_mlflow_gets_the_plan_by_the_documented_call() -> None:
    ((call, (run, figure, name), _),) = send(MLFlowLogger)
    assert (call, run, type(figure).__name__, name) == ("log_figure", "7", "Figure", "lightning_lr/plan.png")


def test_wandb_gets_both_pictures_by_the_documented_call_from_metrics_kept_by_the_run(tmp_path: Path) -> None:
    logger = WandbLogger()
    logger.__dict__["save_dir"] = str(tmp_path)
    train(logger, plan=True)
    sent = [(call, named["key"], pixels_of(named["images"][0])) for call, _, named in logger.calls]
    assert sent == [("log_image", f"lightning_lr/{name}", (3,)) for name in ("plan", "report")]
    assert "log_metrics" not in vars(logger), "as it was before"
    record = lr.report(tmp_path).data
    assert len(record.metrics["lr/group_0"].steps) == UPDATES
    assert record.sources == ("WandbLogger",)


def test_a_logger_that_refuses_a_picture_is_a_warning_and_training_goes_on() -> None:
    class Refusing(CometLogger):
        def __getattr__(self, name: str) -> Any:
            if name == "log_image":
                raise OSError("quota exceeded")
            return super().__getattr__(name)

    with pytest.warns(UserWarning, match=r"Refusing did not take the picture 'plan' \(quota exceeded\)"):
        trainer = train(Refusing(), plan=True)
    assert trainer.global_step == UPDATES


@pytest.mark.parametrize("package", ["wandb", "mlflow"])
def test_a_real_run_of_wandb_and_mlflow_is_read_back(
    package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = pytest.importorskip(package)
    from lightning.pytorch.loggers import MLFlowLogger, WandbLogger

    monkeypatch.chdir(tmp_path)
    if package == "wandb":
        logger: Any = WandbLogger(save_dir=".", offline=True, project="project")
    else:
        logger = MLFlowLogger("experiment", tracking_uri="sqlite:///mlflow.db")
    train(logger, plan=True, default_root_dir=".")
    if package == "wandb":
        module.finish()
        assert {path.name.split("_")[0] for path in tmp_path.rglob("*.png")} == {"plan", "report"}
        (files,) = tmp_path.glob("wandb/offline-run-*")
        (written,) = files.glob("run-*.wandb")
        until = time.monotonic() + 60  # another process of W&B writes it, which may lag behind finish()
        while not read_wandb(written)[1] and time.monotonic() < until:
            time.sleep(0.2)
    else:
        client = module.MlflowClient("sqlite:///mlflow.db")
        named = {file.path for file in client.list_artifacts(logger.run_id, "lightning_lr")}
        assert named == {"lightning_lr/plan.png", "lightning_lr/report.png"}
        files = tmp_path / "mlflow.db"
    for place in (files, tmp_path):
        record = lr.report(place).data
        assert not [name for name in record.metrics if name.startswith(("plan/", "report/"))], "what a picture is"
        assert record.hyperparameters["LearningRateSchedule/module_scheduler"] == "refuse"
        assert record.sources == (("WandbLogger",) if package == "wandb" else ("MLFlowLogger",))
        assert len(record.metrics["lr/group_0"].steps) == UPDATES
        assert record.starts["schedule"]["callback"] == "LearningRateSchedule"
        assert "Cosine" in str(record.hyperparameters["LearningRateSchedule/curve"])


# ---------------------------------------------------------------------- their files
def varint(value: int) -> bytes:
    out = b""
    while value > 127:
        out, value = out + bytes([value & 127 | 128]), value >> 7
    return out + bytes([value])


def field(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def item(name: str, value: Any) -> bytes:
    return field(2, name.encode()) + field(16, json.dumps(value).encode())


def wandb_file(path: Path, *records: bytes) -> Path:
    log = b":W&B" + struct.pack("<HB", 0xBEE1, 0)
    for record in records:
        rest, first = record, True
        while first or rest:
            room = BLOCK - len(log) % BLOCK
            if room < 7:
                log += bytes(room)
                continue
            piece, rest = rest[: room - 7], rest[room - 7 :]
            kind = (FULL if not rest else FIRST) if first else (LAST if not rest else 3)
            log += struct.pack("<IHB", 0, len(piece), kind) + piece
            first = False
    path.write_bytes(log)
    return path


def test_the_file_of_wandb_is_read_without_wandb(tmp_path: Path) -> None:
    rows = [
        field(2, b"".join(field(1, item(n, v)) for n, v in {"loss": 1.0 / (i + 1), "trainer/global_step": i}.items()))
        for i in range(3000)
    ]
    config = field(5, field(1, item("lr", 0.5)) + field(1, item("_wandb", {})))
    number = field(1, b"acc") + varint(6 << 3 | 1) + struct.pack("<d", 0.25)  # in a field of its type
    typed = field(2, field(1, number) + field(1, item("trainer/global_step", 7)))
    picture = {"trainer/global_step": 9, "lightning_lr/plan/_type": "images/separated", "lightning_lr/plan/width": 1200}
    drawn = field(2, b"".join(field(1, item(name, value)) for name, value in picture.items()))
    path = wandb_file(
        tmp_path / "run-x.wandb", config, *rows, typed, drawn, field(2, field(1, item("video", {"a": 1})))
    )
    assert path.stat().st_size > 3 * BLOCK
    metrics, settings = read_wandb(path)
    assert metrics == {"loss": {i: 1.0 / (i + 1) for i in range(3000)}, "acc": {7: 0.25}}
    assert settings == {"lr": 0.5}
    path.write_bytes(path.read_bytes()[:BLOCK])  # still being written
    half, _ = read_wandb(path)
    assert 0 < len(half["loss"]) < 3000
    path.write_bytes(b"\xff" * 100)
    assert read_wandb(path) == ({}, {})


def test_a_report_begins_at_the_database_of_mlflow_whose_run_it_is(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "m.db") as database:
        database.execute("CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan)")
        database.execute("CREATE TABLE params (key, value, run_uuid)")
        database.execute("INSERT INTO metrics VALUES ('loss', 2.0, 1, 'a', 0, 0)")
    for name, place in (("a", "../../m.db"), ("b", "../../other.db")):
        (tmp_path / name / "lightning_lr").mkdir(parents=True)
        entry = {"logger": "MLFlowLogger", "path": place, "run": name}
        line = json.dumps({"update": 0, "event": "loggers", "loggers": [entry]})
        (tmp_path / name / "lightning_lr" / "loggers.jsonl").write_text(line + "\n")
    record = lr.report(tmp_path / "m.db").data
    assert (record.directory, record.metrics["loss"].values) == (tmp_path / "a", [2.0])


def test_updates_after_the_last_logged_one_count(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    train(TensorBoardLogger(tmp_path), log_every_n_steps=7)
    assert f"{UPDATES} of {UPDATES} updates" in lr.report(tmp_path).table
    assert "finished" in lr.report(tmp_path).table


def test_settings_reach_a_logger_as_plain_values() -> None:
    from lightning_lr.callbacks.resume_checks import hyperparameters_of

    sent = hyperparameters_of([lr.LearningRateScaling(8, warmup_epochs=0.5)])
    assert sent["LearningRateScaling/reference_batch_size"] == 8
    assert sent["LearningRateScaling/lr_rule"] == "linear"
    assert sent["LearningRateScaling/warmup_epochs"] == 0.5
    assert sent["LearningRateScaling/optimizers"] == "None"


def test_the_stores_of_mlflow_are_read_without_mlflow(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / "m.db") as database:
        database.execute("CREATE TABLE metrics (key, value, timestamp, run_uuid, step, is_nan)")
        database.execute("CREATE TABLE params (key, value, run_uuid)")
        rows = [("loss", 2.0, 1, "a", 0, 0), ("loss", 0.0, 2, "a", 1, 1), ("loss", 9.0, 2, "b", 1, 0)]
        database.executemany("INSERT INTO metrics VALUES (?, ?, ?, ?, ?, ?)", rows)
        database.execute("INSERT INTO params VALUES ('lr', '0.5', 'a')")
    metrics, settings = read_database(tmp_path / "m.db", "a")
    assert metrics["loss"][0] == 2.0
    assert math.isnan(metrics["loss"][1])
    assert settings == {"lr": "0.5"}
    (tmp_path / "broken.db").write_bytes(b"no database")
    assert read_database(tmp_path / "broken.db", "a") == read_database(tmp_path / "none.db", "a") == ({}, {})
    (tmp_path / "run" / "metrics" / "lr").mkdir(parents=True)
    (tmp_path / "run" / "metrics" / "lr" / "group_0").write_text("1700 0.1 0\n1701 0.2 5\nhalf\n")
    assert read_folder(tmp_path / "run") == ({"lr/group_0": {0: 0.1, 5: 0.2}}, {})


# ---------------------------------------------------------------------- the progress bar
class Seen(Callback):
    def __init__(self) -> None:
        self.bars: list[dict[str, Any]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self.bars.append(dict(trainer.progress_bar_metrics))


def test_the_bar_shows_rate_batch_and_phase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lr.lightning_internals.progress_bar.SECONDS", 0.0)
    seen = Seen()
    trainer = train(False, seen, enable_progress_bar=True)
    assert {name: seen.bars[0][name] for name in ("lr", "batch", "phase")} == {
        "lr": "0.00833",
        "batch": "4",
        "phase": "warm-up",
    }
    assert seen.bars[-2]["phase"] == "cosine"
    assert "lr" not in trainer.progress_bar_metrics, "afterwards the bar is the module's alone"


def test_a_name_in_the_bar_that_the_module_logs_stays_the_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lightning_lr.lightning_internals.progress_bar.SECONDS", 0.0)

    class Logs(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            self.log("lr", 7.0, prog_bar=True)
            return super().training_step(batch, batch_idx)

    seen = Seen()
    train(False, seen, enable_progress_bar=True, module=Logs())
    assert {bar["lr"] for bar in seen.bars} == {7.0}
    assert seen.bars[0]["batch"] == "4"


def test_without_a_bar_nothing_is_put_there() -> None:
    seen = Seen()
    train(False, seen)
    assert "batch" not in seen.bars[-1]


# ---------------------------------------------------------------------- one line at each decision
def test_a_layer_that_begins_to_train_is_announced_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        train(False, lr.GradualUnfreezing(), max_epochs=3)
    lines = [record.message for record in caplog.records if "GradualUnfreezing" in record.message]
    assert [line.partition(": ")[2].partition(" trains")[0] for line in lines]
    assert [line.split(" on ")[0].rpartition("trains ")[2] for line in lines][:2] == ["from epoch 0", "from epoch 1"]


def test_a_batch_that_grows_is_announced(caplog: pytest.LogCaptureFixture) -> None:
    ramp = lr.BatchSizeRamp(lr.AdaptiveRamp(ratio=1e-6, check_every=4), max_batch_size=16, max_micro_batch_size=2)
    with caplog.at_level("INFO", logger="lightning.pytorch.utilities.rank_zero"):
        trainer = Trainer(
            accelerator="cpu", logger=False, max_epochs=3, enable_progress_bar=False, enable_checkpointing=False,
            enable_model_summary=False, callbacks=[lr.GradientNoiseScale(), ramp],
        )  # fmt: skip
        trainer.fit(Toy(), torch.utils.data.DataLoader(data(48), batch_size=4))
    assert any(
        "BatchSizeRamp: the batch grows from 4 to 8 samples after update 4" in record.message
        and "gradient noise scale is" in record.message
        for record in caplog.records
    ), [record.message for record in caplog.records]
