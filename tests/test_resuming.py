"""What a user meets who stops a run and goes on with it: directories, journals, configurations, signals.

Kills by the dozen are in ``python -m benchmarks.faults`` and ``python -m benchmarks.faults_everything``; what a
checkpoint must hold is in `test_faults.py`.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning
import pytest
import torch
import yaml
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_lr import BatchSizeRamp, Cosine, GradientNoiseScale, HypergradientDescent, LearningRateSchedule, StepRamp
from lightning_lr.cli import main
from lightning_lr.cli.report.record import RunRecord, find_run, read_run
from lightning_lr.cli.report.resumed_run import read_whole_run
from lightning_lr.journal import CONTINUES, read_journal
from tests.support.toy import ResumableLoader, data, fit, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
ROOT = Path(__file__).parents[1]
LIMIT = 900.0


class StoppedError(Exception):
    """In the place of whatever ends a run."""


class StopsAt(Callback):
    """Ends a run as a crash would, without a word to the loop."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        if trainer.global_step == self.update:
            raise StoppedError


def methods() -> list[Callback]:
    return [
        BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=32, max_micro_batch_size=16),
        HypergradientDescent(rule="normalized"),
    ]


def logged_run(folder: Path, *more: Callback, make: Any = methods, **arguments: Any) -> LightningModule:
    """A run that logs every update and saves every third, in a directory of its own below ``folder``."""
    save = ModelCheckpoint(folder, filename="last", enable_version_counter=False, every_n_train_steps=3)
    logger = CSVLogger(folder, name="logs", version=arguments.pop("version", None))
    return fit([*make(), *more, save], loader=arguments.pop("loader", None) or ResumableLoader(data(), 8), max_epochs=4,
               logger=logger, log_every_n_steps=1, enable_checkpointing=True, **arguments)[0]  # fmt: skip


def record(folder: Path, version: int) -> RunRecord:
    return read_whole_run(folder / "logs" / f"version_{version}")


def decided(run: RunRecord) -> dict[str, Any]:
    return {name: [r for r in records if r["event"] != "start"] for name, records in run.journals.items()}


# ---------------------------------------------------------------------- one run in several directories
def test_a_run_that_went_on_elsewhere_is_read_as_the_one_run_that_it_is(tmp_path: Path) -> None:
    whole = logged_run(tmp_path / "whole")
    here, last = tmp_path / "here", str(tmp_path / "here" / "last.ckpt")
    for stop, ckpt in ((8, None), (13, last)):
        with pytest.raises(StoppedError):
            logged_run(here, StopsAt(stop), ckpt_path=ckpt)
    resumed = logged_run(here, ckpt_path=last)
    assert torch.equal(weights(resumed), weights(whole))

    expected, found = record(tmp_path / "whole", 0), record(here, 2)
    assert [part.name for part in found.parts] == ["version_0", "version_1", "version_2"]
    assert expected.parts == (expected.directory,)
    assert found.metrics == expected.metrics, "each value of each step, once"
    assert decided(found) == decided(expected)
    assert len(decided(expected)["hypergradient"]) > 5, "there was something to compare"
    assert found.timing is not None
    assert found.timing.since == 0
    assert [at for at, _ in found.timing.known] == [at for at, _ in expected.timing.known]  # type: ignore[union-attr]
    assert list(found.timing.known) == sorted(found.timing.known)
    assert len(read_run(here / "logs" / "version_2").metrics["progress/updates"].steps) < len(
        found.metrics["progress/updates"].steps
    )


def test_an_attempt_that_never_saved_is_no_part_of_the_run(tmp_path: Path) -> None:
    last = str(tmp_path / "last.ckpt")
    for stop, ckpt in ((7, None), (8, last)):  # the second one ends before it has saved
        with pytest.raises(StoppedError):
            logged_run(tmp_path, StopsAt(stop), ckpt_path=ckpt)
    logged_run(tmp_path, ckpt_path=last)
    assert [part.name for part in record(tmp_path, 2).parts] == ["version_0", "version_2"]


def test_directories_that_were_moved_together_are_still_one_run(tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        logged_run(tmp_path / "here", StopsAt(8))
    logged_run(tmp_path / "here", ckpt_path=str(tmp_path / "here" / "last.ckpt"))
    (tmp_path / "here").rename(tmp_path / "there")
    assert [part.name for part in record(tmp_path / "there", 1).parts] == ["version_0", "version_1"]


def test_a_part_that_is_gone_or_points_to_itself_is_left_out(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "version_1" / "lightning_lr"
    folder.mkdir(parents=True)
    for pointer in ("../version_0", ".", "../version_1"):
        line = {"update": 6, "event": "start", "facts": {}, CONTINUES: pointer}
        (folder / "schedule.jsonl").write_text(json.dumps(line) + "\n")
        assert [part.name for part in record(tmp_path, 1).parts] == ["version_1"]


def test_the_report_says_which_directories_are_one_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(StoppedError):
        logged_run(tmp_path, StopsAt(8))
    logged_run(tmp_path, ckpt_path=str(tmp_path / "last.ckpt"))
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.png")]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "at update 6; in version_0, version_1, which are one run" in said
    assert "batch 8, highest 32, last 32" in said


# ---------------------------------------------------------------------- journals that were tampered with
@pytest.mark.parametrize("harm", ["cut", "deleted", "folder deleted", "garbage"])
def test_a_resume_does_not_need_the_journals(harm: str, tmp_path: Path) -> None:
    """They are for people: what a resume needs is in the checkpoint."""
    whole = logged_run(tmp_path / "whole")
    here = tmp_path / "here"
    with pytest.raises(StoppedError):
        logged_run(here, StopsAt(8), version="one")
    journals = here / "logs" / "one" / "lightning_lr"
    path = journals / "hypergradient.jsonl"
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-20])
    elif harm == "deleted":
        path.unlink()
    elif harm == "folder deleted":
        for file in journals.iterdir():
            file.unlink()
        journals.rmdir()
    else:
        path.write_bytes(b"\xff\xfe\x00 not json\n" + path.read_bytes())
    resumed = logged_run(here, version="one", ckpt_path=str(here / "last.ckpt"))
    assert torch.equal(weights(resumed), weights(whole))
    lines = read_journal(path)
    assert [line["update"] for line in lines if line["event"] == "start"][-1] == 6
    after = [line for line in lines if line["event"] != "start" and line["update"] >= 6]
    expected = read_journal(tmp_path / "whole" / "logs" / "version_0" / "lightning_lr" / "hypergradient.jsonl")
    assert after == [line for line in expected if line["event"] != "start" and line["update"] >= 6]


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_log_directory_that_is_read_only_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "logs" / "one" / "lightning_lr"
    folder.mkdir(parents=True)
    folder.chmod(0o500)
    with pytest.raises(OSError, match=r"journal of lightning_lr.*lightning_lr"):
        logged_run(tmp_path, version="one")


def test_a_journal_that_is_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "logs" / "one").mkdir(parents=True)
    (tmp_path / "logs" / "one" / "lightning_lr").write_text("a file")
    with pytest.warns(UserWarning, match=r"the journal .*seconds\.jsonl cannot be written"):
        logged_run(tmp_path, version="one")


def test_a_clock_that_jumps_changes_nothing_but_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = logged_run(tmp_path / "whole")
    here = tmp_path / "here"
    with pytest.raises(StoppedError):
        logged_run(here, StopsAt(8))
    monkeypatch.setattr(time, "time", lambda: 1000.0)  # 1970
    resumed = logged_run(here, ckpt_path=str(here / "last.ckpt"))
    assert torch.equal(weights(resumed), weights(whole))
    known = record(here, 1).timing.known  # type: ignore[union-attr]
    assert all(before <= after for (_, before), (_, after) in pairwise(known))


# ---------------------------------------------------------------------- checkpoints that were tampered with
@pytest.mark.parametrize("share", [0.0, 0.5, 0.999])
def test_half_a_checkpoint_is_refused_and_trains_nothing(share: float, tmp_path: Path) -> None:
    with pytest.raises(StoppedError):
        logged_run(tmp_path, StopsAt(8))
    last = tmp_path / "last.ckpt"
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])

    class Never(Callback):
        def on_train_start(self, *_: Any) -> None:
            raise AssertionError("trained from half a checkpoint")

    with pytest.raises(Exception) as error:  # noqa: PT011  # torch has one for each place where a file can end
        logged_run(tmp_path, Never(), ckpt_path=str(last))
    assert not isinstance(error.value, AssertionError)


# ---------------------------------------------------------------------- the command line
CONFIG: dict[str, Any] = {
    "seed_everything": 1,
    "trainer": {
        "accelerator": "cpu",
        "max_epochs": 4,
        "log_every_n_steps": 1,
        "limit_val_batches": 0,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "runs", "name": "one"}},
        "callbacks": [
            {
                "class_path": "BatchSizeRamp",
                "init_args": {
                    "schedule": {"class_path": "StepRamp", "init_args": {"milestones": [1], "factor": 2}},
                    "max_micro_batch_size": 256,
                },
            },
            {"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.8}},
            {
                "class_path": "ModelCheckpoint",
                "init_args": {
                    "dirpath": "runs/one",
                    "filename": "last",
                    "enable_version_counter": False,
                    "save_on_exception": True,
                },
            },
        ],
    },
    "model": {
        "class_path": "examples.Classifier",
        "init_args": {"network": {"class_path": "examples.SmallCNN", "init_args": {"width": 4, "stem_stride": 1}}},
    },
    "data": {"class_path": "examples.DigitsDataModule", "init_args": {"batch_size": 64}},
}


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    return tmp_path


def test_the_same_line_starts_and_goes_on(configured: Path) -> None:
    line = ["fit", "--config", "config.yaml", "--ckpt_path", "last"]
    assert main([*line, "--trainer.max_epochs", "2"]) == 0
    first = torch.load("runs/one/last.ckpt", weights_only=True)
    assert main(line) == 0
    second = torch.load("runs/one/last.ckpt", weights_only=True)
    assert (first["epoch"], second["epoch"]) == (1, 3)
    assert sorted(path.name for path in Path("runs/one").glob("*.ckpt")) == ["last.ckpt"]
    assert len(read_whole_run(find_run(Path("runs/one"))).parts) == 2


@pytest.mark.skipif(
    lightning.__version__.startswith("2.5"),
    reason="the command line of Lightning 2.5 takes no checkpoint file of a module that saved its hyperparameters",
)
def test_a_fixed_log_directory_takes_a_resume_and_refuses_a_new_run(
    configured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["fit", "--config", "config.yaml", "--trainer.logger.init_args.version", "here"]
    assert main([*fixed, "--trainer.max_epochs", "2"]) == 0
    assert main(fixed) == 2
    assert "--ckpt_path" in capsys.readouterr().err
    assert main([*fixed, "--ckpt_path", "runs/one/last.ckpt"]) == 0
    saved = yaml.safe_load(Path("runs/one/here/config.yaml").read_text())
    assert saved["trainer"]["max_epochs"] == 4, "the configuration with which the run went on"
    starts = [r["update"] for r in read_journal(Path("runs/one/here/lightning_lr/layerwise.jsonl"))]
    assert starts[0] == 0
    assert len(starts) == 2


def test_a_checkpoint_that_is_not_there_is_named(configured: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fit", "--config", "config.yaml", "--ckpt_path", "runs/one/nothing.ckpt"]) == 2
    assert "nothing.ckpt" in capsys.readouterr().err
    assert not list(configured.rglob("*.jsonl"))


@pytest.mark.parametrize(("share", "given"), [(0.0, "last"), (0.5, "runs/one/last.ckpt"), (0.999, "last")])
def test_half_a_checkpoint_is_named(
    share: float, given: str, configured: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    line = ["fit", "--config", "config.yaml", "--trainer.max_epochs", "2"]
    assert main(line) == 0
    last = Path("runs/one/last.ckpt")
    last.write_bytes(last.read_bytes()[: int(share * last.stat().st_size)])
    assert main([*line, "--ckpt_path", "last"]) == 2
    assert re.search(
        r"last\.ckpt is no whole checkpoint \([\d,]+ bytes .*go on from an earlier", capsys.readouterr().err
    )
    assert not Path("runs/one/version_1/config.yaml").exists()


def test_a_checkpoint_of_an_exception_records_the_run_that_it_ends(tmp_path: Path) -> None:
    """``ModelCheckpoint`` saves it after our callbacks have left the run; ``report`` would read the last part alone."""

    class Stops(Callback):
        def on_train_batch_start(self, trainer: Any, *_: Any) -> None:
            if trainer.global_step == 4:
                raise RuntimeError("stopped")

    save = ModelCheckpoint(tmp_path, filename="stopped", save_on_exception=True, every_n_epochs=100)
    logger = CSVLogger(tmp_path)
    with pytest.raises(RuntimeError, match="stopped"):
        fit(
            [LearningRateSchedule(Cosine()), GradientNoiseScale(), Stops(), save],
            logger=logger,
            enable_checkpointing=True,
        )
    checkpoint = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    assert Path(checkpoint["lightning_lr"]["journals"]).parent == Path(logger.log_dir).resolve()


@pytest.mark.slow
@pytest.mark.parametrize("world", [1, 2])
def test_sigterm_to_the_command_saves_and_the_same_line_goes_on(world: int, configured: Path) -> None:
    """A scheduler of a cluster sends it to every process of a job, some time before it kills."""
    line = [sys.executable, "-m", "lightning_lr.cli", "fit", "--config", "config.yaml", "--ckpt_path", "last",
            "--trainer.devices", str(world), "--trainer.max_epochs", "40"]  # fmt: skip
    paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    environ = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OMP_NUM_THREADS": "1"}
    with Path("said.txt").open("wb") as said:
        process = subprocess.Popen(line, env=environ, stdout=said, stderr=said, start_new_session=True)
    try:
        seconds = Path("runs/one/version_0/lightning_lr/seconds.jsonl")
        begin = time.monotonic()
        while not seconds.exists() or len(read_journal(seconds)) < 30:
            assert process.poll() is None, Path("said.txt").read_text()
            assert time.monotonic() - begin < LIMIT
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGTERM)
        assert process.wait(LIMIT) == 128 + signal.SIGTERM, Path("said.txt").read_text()
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    stopped = torch.load("runs/one/last.ckpt", weights_only=True)
    assert stopped["global_step"] >= 30
    more = ["--trainer.max_epochs", str(stopped["epoch"] + 2), "--trainer.devices", str(world)]
    assert subprocess.run([*line, *more], env=environ, check=False, capture_output=True, timeout=LIMIT).returncode == 0
    assert torch.load("runs/one/last.ckpt", weights_only=True)["epoch"] == stopped["epoch"] + 1
    parts = read_whole_run(find_run(Path("runs/one"))).parts
    assert [part.name for part in parts] == ["version_0", "version_1"]


def test_a_second_schedule_after_a_first_run_points_to_no_earlier_one(tmp_path: Path) -> None:
    """Only a run that goes on points back; one that starts from the beginning does not."""
    schedule = lambda: [LearningRateSchedule(Cosine())]  # noqa: E731
    logged_run(tmp_path, make=schedule)
    logged_run(tmp_path, make=schedule)
    assert [part.name for part in record(tmp_path, 1).parts] == ["version_1"]
