"""What a report says of a run: from both loggers, half written, still going, foreign, or not there."""

from __future__ import annotations

import builtins
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import Cosine, LearningRateScaling, LearningRateSchedule
from lightning_lr.cli import main
from lightning_lr.cli.figure import Panel
from lightning_lr.cli.report import picture as report_picture
from lightning_lr.cli.report.logger_files import read_csv, read_tensorboard
from lightning_lr.cli.report.metric_panels import declared_panels
from lightning_lr.cli.report.record import MetricSeries, RunRecord, find_run, read_run
from lightning_lr.cli.report.summary import (
    batch_varies,
    best,
    decisions,
    is_loss,
    is_score,
    progress_of,
    run_lines,
    warnings_of,
)

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


class Model(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean())
        self.log("val_acc", 1.0 - 0.5 ** (self.current_epoch + 1))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.layer.weight], "lr": 0.1}, {"params": [self.layer.bias], "lr": 0.2}]
        return torch.optim.SGD(groups, lr=0.1)


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 15 + 8 updates over 3 epochs of 60 samples, written by both loggers into one place."""
    root = tmp_path_factory.mktemp("runs")
    loggers = [CSVLogger(root, "both", 0), TensorBoardLogger(root, "both", 0)]
    loader = DataLoader(TensorDataset(torch.randn(60, 3)), batch_size=8)
    callbacks = [
        LearningRateSchedule(Cosine(warmup=0.1)),
        LearningRateScaling(8),
        GradientAccumulationScheduler({2: 2}),
    ]
    trainer = Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=loggers,
        log_every_n_steps=1,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(0)
    trainer.fit(Model(), loader, loader)
    return root / "both" / "version_0"


def write(directory: Path, header: str, *rows: str, end: str = "\n") -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.csv").write_text("\n".join([header, *rows]) + end)
    return directory


def start(**facts: Any) -> dict[str, Any]:
    known = {"update": 0, "event": "start", "facts": {"schedule": "Cosine()"}, "counts": "samples", "total": 800}
    return {**known, "total_updates": 100, "samples_seen": 0, "phases": [["cosine", 0.0, 1.0]], **facts}


def journal(directory: Path, *records: dict[str, Any]) -> None:
    (directory / "lightning_lr").mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    (directory / "lightning_lr" / "schedule.jsonl").write_text(text)


# ---------------------------------------------------------------------- reading
def test_both_loggers_tell_the_same(run_dir: Path) -> None:
    table = read_csv(run_dir / "metrics.csv")
    events = read_tensorboard(run_dir)
    assert set(table) == set(events)
    assert {"train_loss", "val_loss", "val_acc", "lr/group_0", "lr/group_1", "progress/samples", "batch/size"} <= set(
        table
    )
    for name, series in table.items():
        assert events[name].steps == series.steps
        # an event file holds float32: 24 bits
        assert events[name].values == pytest.approx(series.values, rel=2**-23)


def test_rows_of_one_step_are_merged_and_of_two_values_the_later_counts(tmp_path: Path) -> None:
    run = write(tmp_path, "epoch,step,train_loss,val_loss", "0,0,3.0,", "0,1,2.0,", "0,1,,5.0", "0,2,1.0,", "0,1,2.5,")
    metrics = read_csv(run / "metrics.csv")
    assert metrics["train_loss"] == MetricSeries([0, 1, 2], [3.0, 2.5, 1.0])  # a resumed run logged step 1 again
    assert metrics["val_loss"] == MetricSeries([1], [5.0])


def test_a_line_that_is_being_written_is_left_out(tmp_path: Path) -> None:
    run = write(tmp_path, "epoch,step,train_loss", "0,0,3.0", "0,1,2.0", "0,2,1.2", end="")  # of 1.25, say
    assert read_csv(run / "metrics.csv")["train_loss"] == MetricSeries([0, 1], [3.0, 2.0])
    journal(run, start())
    with (run / "lightning_lr" / "schedule.jsonl").open("a") as file:
        file.write('{"update": 60, "event": "swi')
    assert [record["event"] for record in read_run(run).journals["schedule"]] == ["start"]


def test_samples_are_interpolated_between_logged_steps_and_towards_the_plan(tmp_path: Path) -> None:
    run = write(tmp_path, "step,samples_seen,val_loss", "9,80,", "14,,1.0", "19,160,", "59,,0.5")
    journal(run, start())
    assert read_run(run).points("val_loss")[0] == pytest.approx([120.0, 480.0])  # 8 samples an update throughout
    without = RunRecord(run, {"loss": MetricSeries([0, 9], [1.0, 0.5])})
    assert without.points("loss")[0] == [1.0, 10.0]
    assert not without.counts_samples


def test_the_newest_run_below_is_taken_and_named(
    run_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for age, version in enumerate(("version_2", "version_0", "version_1")):
        run = write(tmp_path / "logs" / version, "step,train_loss", f"0,{age}.0")
        os.utime(run / "metrics.csv", (1e9 - age, 1e9 - age))
    assert find_run(tmp_path).name == "version_2"
    assert find_run(tmp_path / "logs" / "version_1").name == "version_1"
    assert main(["report", str(tmp_path)]) == 0
    printed = "".join(capsys.readouterr().out.split("\n"))
    assert f"{tmp_path / 'logs' / 'version_2'} (the newest run below {tmp_path})" in printed


@pytest.mark.parametrize("kind", ["missing", "empty", "foreign", "file"])
def test_a_directory_without_a_run_is_said(kind: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "somewhere"
    if kind == "file":
        target.touch()
    elif kind != "missing":
        target.mkdir()
    if kind == "foreign":
        (target / "photo.png").touch()
    assert main(["report", str(target), "--out", str(tmp_path / "report.png")]) == 2
    error = capsys.readouterr().err
    said = {"missing": "does not exist", "empty": "is empty", "foreign": "holds no run", "file": "is a file"}[kind]
    assert str(target) in error
    assert said in error
    assert "Traceback" not in error
    assert not (tmp_path / "report.png").exists()


def test_without_tensorboard_the_error_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "events.out.tfevents.1.host").touch()
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("tensorboard"):
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    assert main(["report", str(tmp_path)]) == 2
    assert "pip install tensorboard" in capsys.readouterr().err


# ---------------------------------------------------------------------- what is said
def test_the_summary_has_length_metrics_learning_rates_and_decisions(
    run_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = read_run(run_dir)
    assert main(["report", str(run_dir)]) == 0
    out = capsys.readouterr().out
    assert "20 of 20 updates, 180 of 180 samples, in epoch 3: finished" in out
    assert "Cosine(warmup=0.1, floor=0.0)" in out
    assert "linear: lr x 1 for batch 8" in out

    def cells(name: str) -> list[str]:
        (line,) = (line for line in out.splitlines() if line.startswith("│") and line.split()[1] == name)
        return line.replace("│", " ").split()[1:]

    loss = record.metrics["val_loss"].values
    assert cells("val_acc") == ["0.875", "0.875", "20"]
    assert cells("val_loss") == [f"{loss[-1]:.4g}", f"{min(loss):.4g}", f"{[8, 16, 20][loss.index(min(loss))]}"]
    rates = record.metrics["lr/group_1"].values
    assert cells("group_1") == [f"{rates[0]:.4g}", f"{max(rates):.4g}", f"{rates[-1]:.4g}"]
    assert max(rates) == 0.2


def test_a_run_that_is_still_going_says_how_far_it_is(tmp_path: Path) -> None:
    run = write(tmp_path, "epoch,step,train_loss,samples_seen,updates", "0,9,2.0,80,10", "1,29,1.0,240,30")
    journal(run, start(), {"update": 12, "event": "switched", "probability": 0.97})
    record = read_run(run)
    assert progress_of(record).finished is False
    assert progress_of(record).sentence == (
        "30 of 100 updates, 240 of 800 samples, in epoch 2 (30%): still going, or stopped"
    )
    assert list(decisions(record)) == ["update 12: schedule switched (probability=0.97)"]
    assert record.end == 800


def test_a_search_is_told_in_words(tmp_path: Path) -> None:
    run = write(tmp_path, "epoch,step,train_loss,samples_seen,updates", "0,9,2.0,80,10", "1,29,1.0,240,30")
    found = {"rate": 0.00161, "low": 0.001, "high": 0.01, "price": 32.3, "at": 0.0, "heats": [], "total_updates": 100}
    searched = {"update": 0, "event": "searched", **found, "warning": "LearningRateSearch: short schedules"}
    journal(run, start(), searched)
    (line,) = decisions(read_run(run))
    assert line == (
        "update 0: found the learning rate 0.00161 (interval 0.001 to 0.01) in 32.3 updates. short schedules"
    )


def test_a_resumed_run_says_where(tmp_path: Path) -> None:
    run = write(tmp_path, "step,train_loss", "99,1.0")
    journal(run, start(), start(update=40, total=900))
    record = read_run(run)
    assert run_lines(record)["resumed"] == "at update 40"
    assert record.planned_samples == 900
    assert progress_of(record).finished is True


def test_losses_that_are_not_numbers_are_said_and_count_as_no_best(tmp_path: Path) -> None:
    run = write(tmp_path, "step,train_loss", "0,2.0", "1,nan", "2,inf", "3,1.0", "4,nan")
    record = read_run(run)
    assert warnings_of(record) == [
        "train_loss is not finite at 3 of its 5 logged steps, first at update 2; drawn as a gap"
    ]
    assert best("train_loss", record.metrics["train_loss"]) == (3, 1.0)
    assert main(["report", str(run), "--out", str(tmp_path / "r.png")]) == 0


def test_names_tell_which_way_is_better() -> None:
    assert [n for n in ("val_loss", "train/loss_step", "LOSS", "lr/loss_head", "epoch") if is_loss(n)] == [
        "val_loss",
        "train/loss_step",
        "LOSS",
    ]
    scores = ["val_acc", "test/accuracy", "top5", "val_f1", "AUROC", "mAP"]
    others = ["acceleration", "train_loss", "perplexity", "accumulation", "precisely"]
    assert [name for name in scores + others if is_score(name)] == scores


def test_a_run_without_our_callbacks_is_reported_over_updates(tmp_path: Path) -> None:
    trainer = Trainer(
        max_epochs=2,
        accelerator="cpu",
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.randn(24, 3)), batch_size=8)
    trainer.fit(Model(), loader, loader)
    record = read_run(find_run(tmp_path))
    assert progress_of(record).finished is None
    assert not record.counts_samples
    assert record.points("train_loss")[0] == [1, 2, 3, 4, 5, 6]
    assert set(record.learning_rates) == {"SGD/pg1", "SGD/pg2"}


# ---------------------------------------------------------------------- the picture
def test_the_picture_has_a_panel_for_what_the_run_has(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = read_run(run_dir)
    assert batch_varies(record)  # the accumulation grew
    panels = [*report_picture.PANELS, *declared_panels(replace(record, journals={}))]
    without = [panel.label for panel in panels if not panel.has(record)]
    assert without == [  # no ramp, nothing measured, nothing compressed, no hypergradient, no warm-up
        "noise scale",
        "loss after a\nshort schedule",
        "loss of the\nadaptive warm-up",
        "compressed\nactivations",
        "critical batch\n(samples)",
        "hypergradient\nfactor",
        "cosine of gradient\nand last update",
    ]
    assert declared_panels(record) == []  # the journals name every callback of the run, and none declares a panel
    measured = read_run(
        write(tmp_path / "ramp", "step,progress/updates,noise/scale,noise/gradient", "0,1,12.0,", "1,2,6.0,300.0")
    )
    assert [panel.label for panel in report_picture.PANELS if panel.has(measured)] == ["noise scale"]
    report_picture.save_report_picture(measured, "Report", tmp_path / "ramp.png")
    only_loss = read_run(write(tmp_path / "loss", "step,train_loss,batch/size,batch/micro", "0,2.0,8,8", "1,1.0,3,8"))
    assert [panel.label for panel in report_picture.PANELS if panel.has(only_loss)] == ["loss"]

    drawn: list[RunRecord] = []
    added = Panel[RunRecord]("bits", lambda record: True, lambda ax, record: drawn.append(record))
    monkeypatch.setattr(report_picture, "PANELS", [*report_picture.PANELS, added])
    report_picture.save_report_picture(record, "Report", tmp_path / "report.png")
    assert drawn == [record]
    assert (tmp_path / "report.png").read_bytes()[16:20] == (1200).to_bytes(4, "big")


def test_bits_and_ratio_of_compression_are_drawn_over_the_run(tmp_path: Path) -> None:
    header = "step,progress/samples,compression/bits,compression/ratio"
    record = read_run(write(tmp_path, header, "0,8,4.0,7.4", "1,16,3.5,8.1", "2,24,,"))
    (panel,) = (panel for panel in declared_panels(record) if panel.has(record))
    ax = Figure().add_subplot()
    panel.draw(ax, record)
    assert [list(line.get_ydata())[:2] for line in ax.lines[:2]] == [[4.0, 3.5], [7.4, 8.1]]
    report_picture.save_report_picture(record, "Report", tmp_path / "r.png")
    only_bits = read_run(write(tmp_path / "bits", "step,samples_seen,compression/bits", "0,8,4.0"))
    assert not panel.has(only_bits)


def test_a_measurement_made_later_is_among_the_facts(tmp_path: Path) -> None:
    write(tmp_path, "step,train_loss", "0,1.0")
    later = {"update": 1, "event": "saved", "facts": {"saved activations": "5 bytes"}}
    journal(tmp_path, start(facts={"activations": "at 4 bits"}), later)
    assert read_run(tmp_path).summary == {"activations": "at 4 bits", "saved activations": "5 bytes"}


def test_scores_are_drawn_over_updates_too_when_the_batch_changes(run_dir: Path) -> None:
    record = read_run(run_dir)
    panel = next(panel for panel in report_picture.PANELS if panel.draw is report_picture.draw_scores_by_updates)
    ax = Figure().add_subplot()
    assert panel.has(record)
    panel.draw(ax, record)
    assert ax.get_xlabel() == "updates"
    drawn = [list(line.get_xdata()) for line in ax.lines if len(line.get_xdata()) > 1]
    assert drawn == [[8.0, 16.0, 20.0]]  # 60 samples in batches of 8, of 16 in the last epoch
    same = replace(record, metrics={**record.metrics, "batch/accumulation": MetricSeries([0, 1], [1.0, 1.0])})
    assert batch_varies(record)
    assert not panel.has(same), "with one batch size the axis of samples says it all"


def test_a_long_running_run_of_many_groups_is_drawn(tmp_path: Path) -> None:
    groups = range(12)
    header = "epoch,step,train_loss,val_loss,samples_seen,updates," + ",".join(f"lr/block_{g}" for g in groups)
    rows = []
    for step in range(0, 800, 4):
        loss = "nan" if 300 < step < 320 else f"{2 * math.exp(-step / 200)}"
        rates = ",".join(f"{0.1 * 0.8**g}" for g in groups)
        rows.append(f"0,{step},{loss},,{8 * (step + 1)},{step + 1},{rates}")
        if step % 100 == 0:
            rows.append(f"0,{step},,1.5,,," + "," * 11)
    run = write(tmp_path, header, *rows)
    journal(run, start(total=8 * 1000, total_updates=1000))
    assert main(["report", str(run), "--out", str(tmp_path / "deep" / "r.png")]) == 0
    assert (tmp_path / "deep" / "r.png").stat().st_size > 20_000


def test_a_picture_of_nothing_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    journal(tmp_path, start())
    assert main(["report", str(tmp_path)]) == 0
    assert "no metric is logged yet" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "r.png")]) == 2
    assert "no metrics to draw yet" in capsys.readouterr().err
    run = write(tmp_path, "step,train_loss", "0,1.0")
    assert main(["report", str(run), "--out", str(tmp_path / "r.hologram")]) == 2
    assert "r.hologram" in capsys.readouterr().err
