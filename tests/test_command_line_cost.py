"""What `report` of a long run and `plan` cost, beside what Lightning's own import does."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import command_line
from lightning_lr.cli.report.record import read_run
from lightning_lr.cli.report.series import MetricSeries, Pairs


@pytest.mark.slow
def test_a_report_of_200_000_updates_and_a_plan_stay_cheap() -> None:
    found = command_line.measure(3, 200_000)
    imported, plan, report = (found[name] for name in ("import lightning_lr", "plan", "report"))
    # on an idle core the imports take some 3 s, so that a share of them is steady on a busy one: 0.35 measured
    assert report["cpu_s"] - imported["cpu_s"] <= 0.7 * imported["cpu_s"]
    assert report["mb"] - imported["mb"] <= 300
    assert plan["of import lightning"] <= 1.7


def test_pairs_of_a_series_are_those_that_are_finite_and_none_are_made() -> None:
    whole = MetricSeries([1, 2, 5], [0.5, 0.25, 0.125])
    assert whole.finite.values is whole.values
    assert whole.finite is whole.finite
    gap = MetricSeries([1, 2, 5], [0.5, float("nan"), 0.125])
    assert list(gap.finite) == [(1, 0.5), (5, 0.125)]
    assert gap.finite[-1] == (5, 0.125)
    assert list(whole.finite[-2:]) == [(2, 0.25), (5, 0.125)]
    assert not MetricSeries([3], [float("inf")]).finite
    assert isinstance(gap.finite, Pairs)


def test_positions_are_interpolated_between_logged_samples_and_towards_the_plan(tmp_path: Path) -> None:
    record = read_run(command_line.write_run(tmp_path / "run", 10))
    assert record.positions([-1, 0, 4, 9]) == [0.0, 128.0, 640.0, 1280.0]
    assert record.seen_updates == 10
    assert record.points("lr/group_0")[1][0] == 1e-3
