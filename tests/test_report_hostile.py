"""``report`` reads any file: what a run wrote is data, whatever bytes, names and shapes it holds."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

import lightning_lr as lr
from lightning_lr.cli import main
from lightning_lr.cli.printable import printable
from lightning_lr.cli.report.record import read_run

HEADER = "epoch,step,train_loss,lr/0,progress/samples\n"


def made(directory: Path, rows: str = "", header: str = HEADER, journal: bool = True) -> Path:
    """A run of 20 updates, with ``rows`` after its own."""
    (directory / "lightning_lr").mkdir(parents=True)
    own = "".join(f"0,{i},{1 / (i + 1)},0.1,{(i + 1) * 8}\n" for i in range(20))
    (directory / "metrics.csv").write_text(header + own + rows, encoding="utf-8")
    if journal:
        start = {
            "update": 0, "event": "start", "callback": "LearningRateSchedule", "counts": "samples", "facts": {},
            "phases": [["decay", 0.0, 1.0]], "total": 160, "total_updates": 20,
        }  # fmt: skip
        (directory / "lightning_lr" / "schedule.jsonl").write_text(json.dumps(start) + "\n", encoding="utf-8")
    return directory


def reported(capsys: pytest.CaptureFixture[str], *directories: Path, out: Path | None = None) -> str:
    words = ["report", *map(str, directories), *(["--out", str(out)] if out else [])]
    assert main(words) == 0, capsys.readouterr().err
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "row",
    [
        b"0,20,\xff\xfe,0.1,170\n",
        b"0,20,\x00\x00,0.1,170\n",
        b"0,20," + b"9" * 200_000 + b",0.1,170\n",
        b"0,1e300,1,1,1\n0,inf,1,1,1\n0,-inf,1,1,1\n0,nan,1,1,1\n",
        b"1,21,0.5,3\n1,22\n1,23,0.6,3,4,5,6,7\n",
    ],
    ids=["not UTF-8", "zero bytes", "200 000 digits", "steps beyond all numbers", "other columns"],
)
def test_a_damaged_row_is_left_out_and_the_rest_is_read(
    row: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    with (run / "metrics.csv").open("ab") as file:
        file.write(row)
    assert "train_loss" in reported(capsys, run, out=tmp_path / "r.png")
    loss = read_run(run).metrics["train_loss"]
    assert loss.values[:20] == [1 / (i + 1) for i in range(20)]


LINES = [
    '{"update": 3}',
    '{"update": 3, "event": {}}',
    '{"update": true, "event": "start"}',
    '{"update": -5, "event": "start", "total": -1, "total_updates": -3}',
    '{"update": %s, "event": "x"}' % ("9" * 400),
    '{"update": 1, "event": "x", "v": %s}' % ("1" * 5000),
    '{"update": 1, "event": %s}' % ("[" * 100_000 + "]" * 100_000),
    '{"update": 0, "event": "start", "facts": [1], "phases": [], "total": 160, "total_updates": 20}',
    '{"update": 0, "event": "start", "facts": {}, "phases": [[1, 2]], "total": 160, "total_updates": 20}',
    '{"update": 0, "event": "start", "facts": {}, "phases": {"a": 1}, "total": 160, "total_updates": 20}',
    '{"update": 1, "event": "x", "total": null, "total_updates": null}',
    '{"update": 1, "event": "x", "total": "NaN", "total_updates": "NaN"}',
    '{"update": 1, "event": "x", "total": NaN, "total_updates": NaN}',
    '{"update": 1, "event": "x", "total": Infinity, "total_updates": Infinity}',
    '{"update": 0, "event": "start", "continues": "a\\u0000b", "facts": {}, "phases": []}',
    '{"update": 0, "event": "start", "continues": 7, "callback": {}, "counts": []}',
]


@pytest.mark.parametrize("name", ["schedule", "adaptive_warmup", "seconds"])
def test_a_journal_line_of_another_shape_is_no_obstacle(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    journal = run / "lightning_lr" / f"{name}.jsonl"
    before = journal.read_text(encoding="utf-8") if journal.exists() else ""
    for line in LINES:
        journal.write_text(f"{before}{line}\n", encoding="utf-8")
        assert "20 of 20 updates" in reported(capsys, run), line
    journal.write_text(before + "\n".join(LINES) + "\n", encoding="utf-8")
    reported(capsys, run, made(tmp_path / "other"), out=tmp_path / "c.png")


@pytest.mark.parametrize("seconds", ["abc", None, -5, "NaN", [1], {"a": 1}, float("inf")])
def test_seconds_that_are_no_seconds_are_left_out(
    seconds: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    lines = [
        {"update": 1, "event": "logged", "seconds": seconds, "since": 0},
        {"update": 2, "event": "logged", "seconds": 3.0, "since": seconds},
    ]
    (run / "lightning_lr" / "seconds.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert "3 s of training" in reported(capsys, run)


def test_damage_in_what_a_panel_reads_costs_that_panel_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run")
    start = {"update": 0, "event": "start", "callback": "AdaptiveWarmup", "total": 160, "total_updates": 20}
    lines = [start, {"update": 3, "event": "test", "posterior": 7, "lr": "x", "block": [[]], "mean": {}, "update_": 1}]
    (run / "lightning_lr" / "adaptive_warmup.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    reported(capsys, run, out=tmp_path / "r.png")
    assert (tmp_path / "r.png").stat().st_size > 10_000


def test_a_healthy_run_has_no_panel_that_was_not_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "not drawn" not in reported(capsys, made(tmp_path / "run"), out=tmp_path / "r.png")


def test_learning_rates_and_losses_that_are_all_nan_leave_a_picture(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = made(tmp_path / "run", header="", journal=False)
    rows = "".join(f"0,{i},nan,nan\n" for i in range(5))
    (run / "metrics.csv").write_text("epoch,step,train_loss,lr/0\n" + rows)
    printed = reported(capsys, run, out=tmp_path / "r.png")
    assert "train_loss is not finite at 5 of its 5 logged steps" in printed
    assert "not drawn" not in printed


# ---------------------------------------------------------------------- text is data
def named(directory: Path, *names: str) -> Path:
    directory.mkdir(parents=True)
    rows = "".join(f"{i},{','.join('0.5' for _ in names)}\n" for i in range(5))
    (directory / "metrics.csv").write_text(f"step,{','.join(names)}\n{rows}", encoding="utf-8")
    return directory


def test_brackets_in_names_are_shown_and_not_read_as_markup(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ("val_acc[cat]", "val_acc[dog]", "loss[/bold]", "lr/body[decay]", "lr/body[no_decay]")
    printed = reported(capsys, named(tmp_path / "sweep" / "[lr=0.1]", *names), out=tmp_path / "r.png")
    for name in names:
        assert name.removeprefix("lr/") in printed
    other = named(tmp_path / "sweep" / "run[/x]", *names)
    printed = reported(capsys, tmp_path / "sweep" / "[lr=0.1]", other, out=tmp_path / "c.png")
    assert "[lr=0.1]" in printed
    assert "run[/x]" in printed


@pytest.mark.parametrize("name", ["loss\x1b[2J", "loss\x1b]0;owned\x07", "loss\u202eabc", "loss\x9b2J", "loss\x85"])
def test_control_characters_of_a_run_are_shown_and_do_not_reach_the_terminal(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = named(tmp_path / "run", name, "lr/0")
    (run / "lightning_lr").mkdir()
    event = {"update": 3, "event": f"grown {name}", "why": name}
    start = {"update": 0, "event": "start", "callback": name, "facts": {name: name}, "phases": [[name, 0.0, 1.0]]}
    text = "".join(json.dumps(line) + "\n" for line in (start, event))
    (run / "lightning_lr" / "x.jsonl").write_text(text)
    printed = reported(capsys, run, out=tmp_path / "r.png")
    assert printable(name) in printed
    assert not {c for c in printed if not c.isprintable() and c != "\n"}
    printed = reported(capsys, run, named(tmp_path / "other", name))
    assert not {c for c in printed if not c.isprintable() and c != "\n"}


def test_dollars_in_a_name_are_dollars_in_the_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = named(tmp_path / "run", r"loss$\frac{1}{$", "loss $x", "lr/$a^{$", "lr/b")
    assert "not drawn" not in reported(capsys, run, out=tmp_path / "r.png")
    reported(capsys, run, named(tmp_path / "b", r"loss$\frac{1}{$"), out=tmp_path / "c.png")


def test_configurations_in_any_encoding_are_passed_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [made(tmp_path / name) for name in ("a", "b")]
    (runs[0] / "config.yaml").write_bytes(b"\xff\xfe\x00")
    (runs[1] / "config.yaml").write_text("a: !!python/object/apply:os.system ['touch PWNED']\n")
    (runs[1] / "hparams.yaml").write_text("a: &x [*x]\n")
    reported(capsys, *runs)
    assert not Path("PWNED").exists()


def test_a_pipe_in_the_place_of_a_journal_is_not_waited_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = made(tmp_path / "run")
    os.mkfifo(run / "lightning_lr" / "x.jsonl")
    signal.alarm(60)
    try:
        assert "train_loss" in reported(capsys, run)
    finally:
        signal.alarm(0)


def test_no_label_of_a_picture_is_unread_mathtext(tmp_path: Path) -> None:
    header = "step,train_loss,val_acc,lr/0,progress/samples\n"
    rows = "".join(f"{i},{10.0 ** -(i / 3)},{i / 20},{10.0 ** -(i / 3)},{8 * i}\n" for i in range(20))
    runs = []
    for name in ("a", "b"):
        run = named(tmp_path / name, "x")
        (run / "metrics.csv").write_text(header + rows, encoding="utf-8")
        runs.append(run)
    for figure in (lr.report(runs[0]).figure, lr.report(*runs).figure):
        assert figure is not None
        figure.canvas.draw()
        assert [ax for ax in figure.axes if ax.get_yscale() == "log"]
        labels = [label.get_text() for ax in figure.axes for label in (*ax.get_yticklabels(), *ax.get_xticklabels())]
        labels += [label.get_text() for ax in figure.axes for label in ax.get_yticklabels(minor=True)]
        assert not [label for label in labels if "$" in label or "mathdefault" in label]
