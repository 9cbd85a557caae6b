"""What a picture shows: steps as steps, coincident lines apart, whole names, and a page that shows its values."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

import lightning_lr as lr
from lightning_lr.cli import main
from lightning_lr.cli.lines import DASH, stepped, told_apart
from lightning_lr.cli.page import POINTS, page, values_of
from lightning_lr.cli.report.comparison import compare, listed
from lightning_lr.cli.report.comparison_picture import _cut_inside, comparison_figure
from lightning_lr.cli.report.record import RunRecord, read_run
from lightning_lr.cli.report.series import MetricSeries
from lightning_lr.cli.report.summary import result_of
from lightning_lr.cli.report.warmup_panels import warmup_rates


# ---------------------------------------------------------------------- lines
@pytest.mark.parametrize(
    ("values", "edges", "causes", "expected"),
    [
        ([8, 8, 16, 16], [], [], [(0, 8), (10, 8), (10, 8), (10, 16), (20, 16), (30, 16)]),
        ([8, 8, 16, 16], [13.0], [], [(0, 8), (10, 8), (13, 8), (13, 16), (20, 16), (30, 16)]),
        ([4, 3, 2, 1], [], [], [(0, 4), (10, 3), (20, 2), (30, 1)]),  # a curve
        ([0.5, 0.9, 1, 1], [12.0], [], [(0, 0.5), (10, 0.9), (20, 1), (30, 1)]),  # a warm-up arrives
        ([1, 9, 2, 1.9], [15.0], [], [(0, 1), (10, 9), (15, 9), (15, 2), (20, 2), (30, 1.9)]),  # a switch
        ([4, 3.9, 1.9, 1.8], [], [8, 8, 16, 16], [(0, 4), (10, 3.9), (10, 3.9), (10, 1.9), (20, 1.9), (30, 1.8)]),
    ],
)
def test_a_step_is_drawn_as_a_step_and_a_curve_as_a_curve(
    values: Any, edges: Any, causes: Any, expected: list[tuple[float, float]]
) -> None:
    x, y = stepped([0, 10, 20, 30], values, edges, causes)
    assert list(zip(x, y, strict=True)) == expected


def test_lines_that_coincide_are_dashed_in_turn_above_the_longest() -> None:
    curve = ([0.0, 1.0, 2.0], [1.0, 0.5, 0.1])
    assert told_apart([curve, ([0.0, 1.0, 2.0], [1.0, 0.5, 0.2])]) == [{}, {}]
    first, other, second = told_apart([curve, ([0.0], [7.0]), curve])
    assert (first, other) == ({}, {})
    assert second["linestyle"] == (DASH, (DASH, DASH))
    constant = told_apart([([0.0, 100.0 * i], [8.0, 8.0]) for i in (1, 3, 2)])  # of different lengths
    assert constant[1] == {}
    assert [constant[i]["linestyle"][0] for i in (0, 2)] == [DASH, 2 * DASH]


def test_the_climb_of_a_warm_up_is_drawn_to_its_highest_rate() -> None:
    tests = [
        {"update": 2, "event": "test", "picture": {}, "read": {"lr": [1e-3, 2e-3, 4e-3], "loss": [1, 1, 1]}},
        {"update": 4, "event": "switch", "picture": {}, "read": {"lr": [8e-3, 1.6e-2], "loss": [1, 1]}},
    ]
    record = RunRecord(Path(), {"lr/group_0": MetricSeries([0, 3], [1e-3, 8e-3])}, {"adaptive_warmup": tests})
    assert warmup_rates(record) == {0: 1e-3, 1: 2e-3, 2: 4e-3, 3: 8e-3, 4: 1.6e-2}


# ---------------------------------------------------------------------- words
def finished(loss: list[float], planned: int) -> RunRecord:
    start = {"update": 0, "event": "start", "callback": "X", "total": planned, "total_updates": planned}
    steps = list(range(len(loss)))
    updates = MetricSeries(steps, [step + 1.0 for step in steps])
    return RunRecord(Path("run"), {"val_loss": MetricSeries(steps, loss), "progress/updates": updates}, {"x": [start]})


def test_best_is_said_of_what_varies_and_rightly_of_a_finished_run() -> None:
    assert result_of(finished([1.0, 0.5], 2)) == "val_loss 0.5, the best of the run"
    assert result_of(finished([1.0, 0.5], 9)) == "val_loss 0.5, best so far"
    assert result_of(finished([0.5, 1.0], 2)) == "val_loss 1, best 0.5 at update 1"
    assert result_of(finished([0.5, 0.5], 2)) == "val_loss 0.5 throughout"
    assert result_of(finished([0.5], 9)) == "val_loss 0.5"


def test_many_names_are_counted_and_long_ones_keep_their_ends() -> None:
    assert listed(["a", "b", "c"]) == "a and b and c"
    assert listed(["a", "b", "c", "d", "e"]) == "a, b and 3 others"
    assert _cut_inside("a_run_with_a_long_name_cosine_12", 16) == "a_run\u2026_cosine_12"
    assert len(_cut_inside("x" * 99, 24)) == 24


def journaled(folder: Path, name: str, loss: list[float], per_epoch: int | None = 4) -> Path:
    run = folder / name
    (run / "lightning_lr").mkdir(parents=True)
    start = {
        "update": 0, "event": "start", "callback": "LearningRateSchedule", "counts": "samples", "total": 8 * len(loss),
        "total_updates": len(loss), "per_epoch": per_epoch, "facts": {"schedule": f"Cosine({name})"},
    }  # fmt: skip
    (run / "lightning_lr" / "schedule.jsonl").write_text(json.dumps(start) + "\n")
    rows = [f"{i},{value},{0.1 / (i + 1)},{8 * (i + 1)},{i + 1},8" for i, value in enumerate(loss)]
    head = "step,val_loss,lr/group_0,progress/samples,progress/updates,batch/size"
    (run / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    return run


def test_nothing_of_a_comparison_of_ten_runs_leaves_the_picture_or_overlaps(tmp_path: Path) -> None:
    runs = [journaled(tmp_path, f"a_run_with_a_rather_long_name_number_{i}", [1.0, 0.5 + i / 99]) for i in range(10)]
    figure = comparison_figure(compare([read_run(run) for run in runs]))
    FigureCanvasAgg(figure).draw()
    boxes = [(text.get_text(), text.get_window_extent()) for text in figure.texts if text.get_text()]
    width, height = figure.get_size_inches() * figure.dpi
    for text, box in boxes:
        assert 0 <= box.x0 < box.x1 <= width, text
        assert 0 <= box.y0 < box.y1 <= height, text
    for i, (text, box) in enumerate(boxes):
        for other, beside in boxes[:i]:
            assert not (box.x0 < beside.x1 and beside.x0 < box.x1 and box.y0 < beside.y1 and beside.y0 < box.y1), (
                text,
                other,
            )


def test_a_report_has_an_axis_of_epochs(tmp_path: Path) -> None:
    figure = lr.report(journaled(tmp_path, "run", [3.0, 2.0, 1.0], per_epoch=8)).figure
    assert figure is not None
    (epochs,) = [child for ax in figure.axes for child in ax.child_axes]
    assert epochs.get_xlabel() == "epochs"
    assert epochs.get_xlim() == pytest.approx((0, 3))


# ---------------------------------------------------------------------- the page
def drawn(points: int = 3) -> Figure:
    figure = Figure(figsize=(4, 2), dpi=100)
    FigureCanvasAgg(figure)
    ax = figure.add_axes((0.1, 0.2, 0.8, 0.7))
    ax.plot([i / 1 for i in range(points)], [float(i * i) for i in range(points)], label="loss", color="#0072b2")
    ax.plot([0, 1], [math.nan, 1.0], label="a </script> name")
    ax.plot([0, 1], [0, 1])  # has no name
    ax.set_xlim(0, points - 1)
    ax.set_xlabel("samples seen")
    return figure


def test_a_page_knows_the_values_of_each_line_where_they_are() -> None:
    (panel,) = values_of(drawn())
    assert panel["x"] == "samples seen"
    left, top, right, bottom = panel["box"]
    assert (left, top, right, bottom) == pytest.approx((28.8, 14.4, 259.2, 115.2))  # of 288 x 144 points
    loss, other = panel["lines"]
    assert (loss["name"], loss["color"], loss["y"]) == ("loss", "#0072b2", ["0", "1", "4"])
    assert loss["at"] == pytest.approx([left, (left + right) / 2, right], abs=0.01)
    assert other["y"] == ["1"]


def test_of_a_long_line_every_so_many_points_are_kept_and_the_last() -> None:
    (panel,) = values_of(drawn(10 * POINTS))
    assert len(panel["lines"][0]["y"]) <= POINTS + 1
    assert panel["lines"][0]["x"][-1] == f"{10 * POINTS - 1:,}"


def test_a_page_needs_no_network_and_names_are_data() -> None:
    text = page("a <title>", drawn(), "<b>table</b>")
    assert "http" not in text.replace("http://www.w3.org", "")
    assert "a &lt;title&gt;" in text
    assert "</script> name" not in text
    values = re.search(r'id="values">(.*?)</script>', text, re.DOTALL)
    assert values is not None
    assert json.loads(values[1])[0]["lines"][1]["name"] == "a </script> name"
    assert text.count("<svg") == text.count("</svg>") == 1
    assert "<script" not in page("t", None, "table")


def test_the_commands_write_pages(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = journaled(tmp_path, "one", [1.0, 0.5]), journaled(tmp_path, "two", [1.0, 0.6])
    out = tmp_path / "report.html"
    assert main(["report", str(one), "--out", str(out)]) == 0
    assert '"name": "val_loss"' in out.read_text(encoding="utf-8")
    assert main(["report", str(one), str(two), "--out", str(out)]) == 0
    assert '"name": "two"' in out.read_text(encoding="utf-8")
    boring = "lightning.pytorch.demos.boring_classes.BoringModel"
    schedule = ["--trainer.callbacks", "GradualUnfreezing", "--trainer.max_epochs", "2"]
    assert main(["plan", "--model", boring, *schedule, "--out", str(out)]) == 0
    assert '"name": ' in out.read_text(encoding="utf-8")
