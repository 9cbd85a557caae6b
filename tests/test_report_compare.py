"""Several runs compared: real tiny runs of every kind, their seconds, and that picture and terminal say the same."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

from lightning_lr.cli import main
from lightning_lr.cli.figure import COLORS, Panel
from lightning_lr.cli.report import comparison_picture
from lightning_lr.cli.report.comparison import AXES, Comparison, compare
from lightning_lr.cli.report.comparison_picture import comparison_figure
from lightning_lr.cli.report.comparison_summary import row_of
from lightning_lr.cli.report.differences import differences, flattened, names_of
from lightning_lr.cli.report.record import MetricSeries, RunRecord, read_run
from lightning_lr.journal import Journal, read_journal
from lightning_lr.stopwatch import Stopwatch, seconds_at

pytestmark = [pytest.mark.filterwarnings("ignore::UserWarning"), pytest.mark.filterwarnings("ignore:.*LeafSpec")]


class Line(LightningModule):
    def __init__(self, lr: float = 0.1) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 1)
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        loss = self.layer(batch[0]).square().mean()
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.layer(batch[0]).square().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)


class Numbers(LightningDataModule):
    def train_dataloader(self) -> DataLoader[tuple[Tensor, ...]]:
        x = torch.randn(40, 3, generator=torch.Generator().manual_seed(0))
        return DataLoader(TensorDataset(x), batch_size=8)

    val_dataloader = train_dataloader


SCHEDULE = {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine"}}}
RAMP = {
    "class_path": "BatchSizeRamp",
    "init_args": {
        "schedule": {"class_path": "StepRamp", "init_args": {"milestones": [1], "factor": 2.0}},
        "max_batch_size": 16,
    },
}
QUIET = {"accelerator": "cpu", "log_every_n_steps": 1, "enable_checkpointing": False}
QUIET |= {"enable_progress_bar": False, "enable_model_summary": False}


def fit(root: Path, name: str, lr: float, callbacks: list[Any], epochs: int = 3) -> Path:
    logger = {"class_path": "CSVLogger", "init_args": {"save_dir": str(root), "name": name, "version": 0}}
    content = {
        "seed_everything": 3,
        "trainer": {**QUIET, "max_epochs": epochs, "logger": logger, "callbacks": callbacks},
        "model": {"class_path": f"{__name__}.Line", "init_args": {"lr": lr}},
        "data": {"class_path": f"{__name__}.Numbers"},
    }
    (root / f"{name}.yaml").write_text(yaml.safe_dump(content))
    assert main(["fit", "--config", str(root / f"{name}.yaml")]) == 0
    return root / name / "version_0"


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A schedule, a ramp, no callback of ours but our command line, and plain Lightning."""
    root = tmp_path_factory.mktemp("compared")
    found = {
        "schedule": fit(root, "schedule", 0.1, [SCHEDULE]),
        "ramp": fit(root, "ramp", 0.03, [RAMP]),
        "bare": fit(root, "bare", 0.1, [], epochs=2),
    }
    torch.manual_seed(0)
    trainer = Trainer(**QUIET, max_epochs=4, logger=CSVLogger(root, "plain", 0))
    trainer.fit(Line(0.05), datamodule=Numbers())
    return {**found, "plain": root / "plain" / "version_0"}


@pytest.fixture(scope="module")
def four(runs: dict[str, Path]) -> Comparison:
    return compare([read_run(path) for path in runs.values()])


def write(directory: Path, header: str, *rows: str) -> Path:
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "metrics.csv").write_text("\n".join([header, *rows]) + "\n")
    return directory


def record(name: str, **metrics: list[float]) -> RunRecord:
    return RunRecord(Path("/runs") / name, {n: MetricSeries(list(range(len(v))), v) for n, v in metrics.items()})


# ---------------------------------------------------------------------- seconds
class Clock:
    def __init__(self) -> None:
        self.time = 100.0

    def __call__(self) -> float:
        return self.time


def test_seconds_go_on_after_a_resume_without_the_pause_and_the_lost_work(tmp_path: Path) -> None:
    clock, journal = Clock(), Journal(tmp_path / "seconds.jsonl")
    watch = Stopwatch(journal, 0, clock)
    for update in (10, 20, 30):
        clock.time += 10.0
        watch.note(update)
    watch.note(30)  # again, at the end of the run
    clock.time += 1000.0  # stopped; then resumed at update 25
    watch = Stopwatch(journal, 25, clock)
    clock.time += 2.0
    watch.note(30)
    lines = [(r["update"], r["seconds"], r["since"]) for r in read_journal(journal.path)]
    assert lines == [(10, 10.0, 0), (20, 20.0, 0), (30, 27.0, 0)]

    begun_again = Stopwatch(journal, 0, clock)  # in the same place, from the beginning
    clock.time += 3.0
    begun_again.note(10)
    assert [(r["update"], r["seconds"]) for r in read_journal(journal.path)] == [(10, 3.0)]

    elsewhere = Journal(tmp_path / "other" / "seconds.jsonl")
    watch = Stopwatch(elsewhere, 25, clock)
    clock.time += 4.0
    watch.note(30)
    assert [(r["seconds"], r["since"]) for r in read_journal(elsewhere.path)] == [(4.0, 25)]


def test_seconds_between_and_beyond_what_is_known() -> None:
    known = [(0.0, 0.0), (10.0, 5.0), (20.0, 25.0)]
    assert seconds_at([0, 5, 10, 15, 20, 99], known) == [0.0, 2.5, 5.0, 15.0, 25.0, 25.0]


@pytest.mark.parametrize("name", ["schedule", "ramp", "bare"])
def test_every_run_of_our_command_line_and_callbacks_is_timed(name: str, runs: dict[str, Path]) -> None:
    timing = read_run(runs[name]).timing
    assert timing is not None
    updates, seconds = zip(*timing.known, strict=True)
    last = {"schedule": 15, "ramp": 5 + 3 + 3, "bare": 10}[name]
    assert updates == tuple(range(1, last + 1))
    assert seconds[0] > 0
    assert list(seconds) == sorted(seconds)
    assert timing.since == 0


def test_a_plain_run_is_not_timed(runs: dict[str, Path]) -> None:
    assert read_run(runs["plain"]).timing is None
    assert not (runs["plain"] / "lightning_lr").exists()


def test_tensorboard_dates_are_seconds_of_training(tmp_path: Path) -> None:
    began = time.time()
    for session, (first, pause) in enumerate([(0, 0.0), (20, 5000.0)]):  # the second was resumed at update 20
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tensorboard.summary.writer.event_file_writer.time.time", lambda at=began + pause: at)
            writer = SummaryWriter(str(tmp_path), filename_suffix=f".{session}")
            for step in range(first, first + 40, 10):
                writer.add_scalar("train_loss", 1.0, step + 9, walltime=began + pause + step - first + 10)
            writer.close()
    timing = read_run(tmp_path).timing
    assert timing is not None
    # its first event is of update 30, so it is taken to have resumed at 29: at most one logging interval too much
    assert timing.at([10, 20, 30, 60]) == pytest.approx([10.0, 20.0, 29.0 + 10, 29.0 + 40])


# ---------------------------------------------------------------------- what differs
def test_what_differs_is_told_by_the_shortest_clear_name(runs: dict[str, Path]) -> None:
    records = {name: read_run(path) for name, path in runs.items()}
    told = differences([records["schedule"], records["ramp"], records["bare"]])
    assert told == [
        "lr=0.1, LearningRateSchedule, max_epochs=3",
        "lr=0.03, BatchSizeRamp, max_epochs=3",
        "lr=0.1, max_epochs=2",
    ]
    assert differences([records["schedule"], records["schedule"]]) == ["", ""]
    # plain Lightning writes no config.yaml; then what the callbacks decided is what is known
    told = differences([records["schedule"], records["plain"]])
    assert told == ["LearningRateSchedule", "no LearningRateSchedule"]


def test_configurations_are_compared_place_by_place() -> None:
    def model(cls: str, **args: Any) -> dict[str, Any]:
        return {
            "model": {"class_path": f"a.b.{cls}", "init_args": args},
            "trainer": {"logger": {"save_dir": str(args)}},
        }

    assert flattened(model("Net", lr=0.1, wide=True)) == {
        ("model",): "Net",
        ("model", "lr"): 0.1,
        ("model", "wide"): True,
    }
    twice = {"callbacks": [{"class_path": "x.A"}, {"class_path": "x.A", "init_args": {"n": 2}}]}
    assert flattened(twice) == {
        ("callbacks", "[A]"): "A",
        ("callbacks", "[A 2]"): "A",
        ("callbacks", "[A 2]", "n"): 2,
    }


def told_of(tmp_path: Path, *contents: object) -> list[str]:
    records = []
    for number, content in enumerate(contents):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "config.yaml").write_text(yaml.safe_dump(content))
        records.append(RunRecord(tmp_path / f"{number}", {}))
    return differences(records)


def test_classes_instead_of_their_arguments_and_names_that_end_alike(tmp_path: Path) -> None:
    nets = [{"class_path": "Net", "init_args": {"lr": 1, "depth": d}} for d in (2, 3)]
    vit = {"class_path": "ViT", "init_args": {"lr": 1, "heads": 4}}
    told = told_of(
        tmp_path,
        {"model": nets[0], "trainer": {"default_root_dir": "a"}},
        {"model": nets[1], "trainer": {"default_root_dir": "b"}},
        {"model": vit},
    )
    assert told == ["model=Net, depth=2", "model=Net, depth=3", "model=ViT"]


def test_names_that_end_alike_say_more_of_their_place(tmp_path: Path) -> None:
    told = told_of(tmp_path, {"body": {"lr": 1}, "head": {"lr": 2}}, {"body": {"lr": 3}, "head": {"lr": 4}})
    assert told == ["body.lr=1, head.lr=2", "body.lr=3, head.lr=4"]


@pytest.mark.parametrize("without", [[{"class_path": "A"}], [], None])
def test_one_has_what_the_other_has_not(without: object, tmp_path: Path) -> None:
    both = [*(without or []), {"class_path": "x.B", "init_args": {"n": 1}}]  # type: ignore[misc]
    assert told_of(tmp_path, {"c": without}, {"c": both}) == ["no B", "B"]


def test_runs_are_named_by_the_part_of_the_path_that_tells_them_apart() -> None:
    assert names_of([Path("/r/a/version_0"), Path("/r/b/version_0")]) == ["a", "b"]
    assert names_of([Path("/r/a/version_0"), Path("/r/a/version_1")]) == ["version_0", "version_1"]
    assert names_of([Path("/r/a/version_0"), Path("/r/b/version_1")]) == ["a/version_0", "b/version_1"]
    assert names_of([Path("/r/a"), Path("/r/a/b")]) == ["a", "a/b"]


# ---------------------------------------------------------------------- what is compared
def test_the_price_of_the_worst_run_s_best(four: Comparison, runs: dict[str, Path]) -> None:
    assert (four.metric, four.higher) == ("val_loss", False)
    bests = {run.name: min(read_run(runs[run.name]).metrics["val_loss"].values) for run in four.runs}
    assert four.target == max(bests.values())
    for run in four.runs:
        assert run.best is not None
        assert run.best.value == bests[run.name]
        series = read_run(runs[run.name]).metrics["val_loss"]
        first = next(s for s, v in zip(series.steps, series.values, strict=True) if v <= four.target)
        reached = run.reached(four.target)
        assert reached is not None
        assert reached.updates == first + 1
        assert (reached.samples is None) == (run.name in ("bare", "plain"))
        assert (reached.seconds is None) == (run.name == "plain")
    ramp = next(run for run in four.runs if run.name == "ramp")
    assert [point.updates for point in ramp.points] == [5, 8, 11]
    assert [point.samples for point in ramp.points] == [40, 80, 120]


def drawn(figure: Figure, name: str) -> list[tuple[list[float], list[float]]]:
    """The lines of a run: in the panels of samples, updates and seconds, then the small ones; empty where absent."""
    found = []
    for ax in figure.axes:
        lines = [line for line in ax.lines if line.get_label() == name]
        assert len(lines) <= 1
        xy = lines[0].get_data() if lines else ([], [])
        found.append(([float(x) for x in xy[0]], [float(y) for y in xy[1]]))
    return found


def test_picture_terminal_and_runs_say_the_same(
    four: Comparison, runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figure = comparison_figure(four)
    labels = [ax.get_xlabel().partition("\n") for ax in figure.axes[:3]]
    assert [axis for axis, _, _ in labels] == ["samples", "updates", "seconds (training)"]
    for run in four.runs:
        metrics = read_run(runs[run.name])
        for axis, (x, y) in zip(AXES, drawn(figure, run.name), strict=False):
            known = [p.spent(axis) for p in run.points]
            assert x == ([] if known[0] is None else known)
            assert y == ([] if known[0] is None else metrics.metrics["val_loss"].values)
    # a ring at what each paid, on the line of the target or better
    rings = [
        [float(line.get_xdata()[0]) for line in ax.lines if line.get_marker() == "o"]  # type: ignore[index]
        for ax in figure.axes[:3]
    ]
    paid = [[r.spent(axis) for run in four.runs if (r := run.reached(four.target))] for axis in AXES]
    assert rings == [[spent for spent in of_axis if spent is not None] for of_axis in paid]
    assert [len(ring) for ring in rings] == [2, 4, 3]

    assert main(["report", *map(str, runs.values()), "--out", str(tmp_path / "c.png")]) == 0
    printed = capsys.readouterr().out
    assert (tmp_path / "c.png").stat().st_size > 20_000
    written = [text.get_text() for text in figure.texts]
    for fact in (four.headline, four.target_line, *(f"note: {note}" for note in four.notes)):
        assert fact in written
        assert fact in " ".join(printed.split("\n"))
    table = [line.strip("│").split("│") for line in printed.splitlines() if line.startswith("│")]
    for run in four.runs:
        *row, differs = row_of(run, four).values()
        start = next(number for number, cells in enumerate(table) if cells[0].strip() == run.name)
        assert [cell.strip() for cell in table[start][:-1]] == row
        wrapped = [table[start], *itertools.takewhile(lambda cells: not cells[0].strip(), table[start + 1 :])]
        assert " ".join(cells[-1].strip() for cells in wrapped) == differs
        at = written.index(run.name)
        assert written[at : at + len(row)] == row
        assert differs.startswith(written[at + len(row)].removesuffix("\u2026"))
    assert "samples of bare, plain are not known: only runs with a callback of lightning_lr log them" in four.notes
    assert [unknown for _, _, unknown in labels] == ["not known of bare and plain", "", "not known of plain"]


def test_small_panels_show_rate_and_batch(four: Comparison, monkeypatch: pytest.MonkeyPatch) -> None:
    figure = comparison_figure(four)
    labels = [ax.get_ylabel() for ax in figure.axes]
    assert labels == ["val_loss", "", "", "learning rate", "batch size"]
    at, sizes = drawn(figure, "ramp")[4]
    assert list(dict.fromkeys(sizes)) == [8.0, 16.0]  # the epoch's last batch of 8 is a part of one
    assert [x for x, size in zip(at, sizes, strict=True) if size == 8.0][-1] == at[sizes.index(16.0)], "a step"
    assert drawn(figure, "schedule")[3][1] == read_run_lr(four, "schedule")
    assert drawn(figure, "plain")[3:] == [([], []), ([], [])]
    added = Panel[Comparison]("bits", lambda c: True, lambda ax, c: None)
    absent = Panel[Comparison]("absent", lambda c: False, lambda ax, c: None)
    monkeypatch.setattr(comparison_picture, "SMALL", [*comparison_picture.SMALL, absent, added])
    assert [ax.get_ylabel() for ax in comparison_figure(four).axes][3:] == ["learning rate", "batch size", "bits"]


def read_run_lr(comparison: Comparison, name: str) -> list[float]:
    (run,) = (run for run in comparison.runs if run.name == name)
    return run.record.metrics["lr/group_0"].values


def test_scores_before_losses_and_what_most_runs_have() -> None:
    a, b, c = record("a", val_acc=[0.5], val_loss=[1.0]), record("b", val_acc=[0.6]), record("c", val_loss=[2.0])
    assert compare([a, b]).metric == "val_acc"
    assert compare([a, c]).metric == "val_loss"
    comparison = compare([a, b, c], metric="val_acc")
    assert comparison.higher
    assert comparison.target == 0.5
    assert row_of(comparison.runs[2], comparison)["best"] == "-"
    assert "c has no val_acc (it has val_loss)" in comparison.notes
    comparison_figure(comparison)


def test_values_that_are_not_numbers_are_gaps_and_said() -> None:
    comparison = compare([record("a", val_acc=[0.5, math.nan, 0.7]), record("b", val_acc=[0.4, 0.9, math.inf])])
    assert comparison.target == 0.7
    assert [run.reached(0.7).updates for run in comparison.runs] == [3, 2]  # type: ignore[union-attr]
    assert "a: 1 of 3 values of val_acc are not finite; drawn as gaps" in comparison.notes
    assert math.isnan(drawn(comparison_figure(comparison), "a")[1][1][1])


def test_a_run_that_diverged_is_compared_too() -> None:
    comparison = compare([record("a", train_loss=[2.0, 1.0]), record("b", train_loss=[math.nan, math.inf])])
    assert comparison.target == 1.0
    assert "b: no value of train_loss is finite" in comparison.notes
    comparison_figure(comparison)


def test_a_target_may_be_out_of_reach() -> None:
    comparison = compare([record("a", val_acc=[0.5, 0.7]), record("b", val_acc=[0.9])], target=0.8)
    assert row_of(comparison.runs[0], comparison)["updates"] == "not reached"
    assert comparison.target_line == "target 0.8 (as given)"
    comparison_figure(comparison)


def test_a_resume_elsewhere_leaves_its_seconds_unknown_and_a_run_that_goes_on_is_said(tmp_path: Path) -> None:
    begun = {"update": 40, "event": "start", "facts": {}, "counts": "samples", "total": 800, "total_updates": 100}
    for name, since in (("a", 40), ("b", 0)):
        run = write(tmp_path / name, "step,val_acc,samples_seen", "49,0.5,400", "59,0.6,480")
        (run / "lightning_lr").mkdir()
        (run / "lightning_lr" / "schedule.jsonl").write_text(json.dumps(begun) + "\n")
        lines = [{"update": 60, "event": "logged", "seconds": 12.0, "since": since}]
        (run / "lightning_lr" / "seconds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    comparison = compare([read_run(tmp_path / "a"), read_run(tmp_path / "b")])
    assert [run.points[1].seconds for run in comparison.runs] == [None, 12.0]
    assert "seconds of a are not known: those before its resume at update 40 lie elsewhere" in comparison.notes
    assert any("60 of 100 updates" in note for note in comparison.notes)


def test_a_training_loss_logged_often_is_compared_by_its_running_mean() -> None:
    noise = np.random.default_rng(0).normal(0, 0.5, 400)
    falling = [float(v) for v in 2 - np.linspace(0, 1, 400) + noise]
    comparison = compare([record("a", train_loss=falling), record("b", train_loss=falling[:300])])
    assert comparison.runs[0].best is not None
    assert comparison.runs[0].best.value > min(falling) + 0.5  # one lucky batch is no result
    assert "train_loss is a running mean over a fortieth of the logged values" in comparison.notes


# ---------------------------------------------------------------------- refusals
def refused(capsys: pytest.CaptureFixture[str], *words: str | Path) -> str:
    assert main(["report", *map(str, words)]) == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    return error


def test_refusals_say_what_was_given_and_what_to_do(
    runs: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = runs["schedule"], runs["ramp"]
    said = refused(capsys, a, b, "--metric", "val_los")
    assert "--metric val_los is in none of the runs; did you mean 'val_loss'?" in said
    assert "schedule: train_loss, val_loss; ramp:" in said
    assert f"{a} was given twice" in refused(capsys, a, b, a)
    assert "--metric and --target compare runs; give two" in refused(capsys, a, "--metric", "val_loss", "--target", "1")
    assert str(tmp_path / "none") in refused(capsys, a, tmp_path / "none")
    odd = [write(tmp_path / name, "step,quality", "0,1.0") for name in ("x", "y")]
    said = refused(capsys, *odd)
    assert "--metric NAME --better higher|lower (x: quality; y: quality)" in said
    assert "add --better higher or lower" in refused(capsys, *odd, "--metric", "quality")
    assert main(["report", *map(str, odd), "--metric", "quality", "--better", "lower"]) == 0
    lost = [write(tmp_path / f"nan_{name}", "step,val_loss", "0,nan") for name in ("x", "y")]
    assert "no value of val_loss is finite in any of nan_x, nan_y" in refused(capsys, *lost)


# ---------------------------------------------------------------------- colours
def test_colours_are_told_apart_by_colour_blind_readers() -> None:
    # Machado, Oliveira and Fernandes (2009), severity 1, on linear RGB
    deutan = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    protan = [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]

    def lab(color: str, seen: list[list[float]]) -> Any:
        rgb = np.array(matplotlib.colors.to_rgb(color))
        linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
        xyz = np.array(to_xyz) @ np.clip(np.array(seen) @ linear, 0, 1) / [0.95047, 1, 1.08883]
        f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
        return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])

    for seen in (deutan, protan):
        for one, other in itertools.combinations(COLORS, 2):
            # a CIE 1976 distance of 2.3 is just noticeable; thin lines need several times that
            assert np.linalg.norm(lab(one, seen) - lab(other, seen)) > 15, (one, other)
