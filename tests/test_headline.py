"""The arithmetic of `benchmarks/headline.py`: the target, the price of a search, and when a run is there."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from benchmarks import headline, headline_report
from benchmarks._common import ResultStore
from benchmarks.headline import ARMS, DEFAULT, Config
from benchmarks.headline_report import Price, mean_curve, reached_at, rows, targets

ADAMW, SGD = headline_report.TUNED


def record(arm: str, accuracies: list[float], lr: float = 0.0, seed: int = 1, **more: Any) -> dict[str, Any]:
    """A run with an accuracy after each 1000 samples and 2 CPU seconds."""
    curve = [(1000 * epoch, 2.0 * epoch, accuracy) for epoch, accuracy in enumerate(accuracies, start=1)]
    config = Config("CNN", arm, lr, seed, len(accuracies), 1000, 500, 128, 10)
    made = {
        "config": asdict(config),
        "curve": curve,
        "val_accuracy": accuracies[-1],
        "test_accuracy": accuracies[-1],
        "diverged": False,
        "samples": curve[-1][0],
        "finder_samples": 0,
        "found_lr": None,
        "peak_lr": None,
        "cpu_seconds": curve[-1][1],
    }
    return made | more


SEARCH = [record(ADAMW, [0.5, accuracy], lr, 0) for lr, accuracy in ((0.001, 0.7), (0.01, 0.9), (0.1, 0.1))]
BASELINE = [record(ADAMW, [0.6, final], 0.01, seed) for seed, final in ((1, 0.90), (2, 0.92))]


def test_target_is_of_the_better_baseline_less_half_a_point() -> None:
    worse = [record(SGD, [0.8, 0.85], 0.1)]
    assert targets(BASELINE + worse + [record("Prodigy", [0.9, 0.99])]) == {"CNN": pytest.approx(0.905)}


def test_search_costs_the_rates_that_lost() -> None:
    row = next(row for row in rows(SEARCH, BASELINE, list(ARMS)) if row.arm == ADAMW)
    assert row.price == Price(4000, 8.0)  # three runs of 2000 samples and 4 s, less the winner's
    assert (row.reached, row.final.count) == (1, 2)  # 0.90 is below 0.905
    assert (row.samples, row.cpu_seconds) == (6000, 12.0)
    assert row.final.mean == pytest.approx(0.91)


def test_method_without_a_search_pays_for_its_run_alone_at_the_first_epoch_that_is_there() -> None:
    ours = [record("AdaptiveWarmup", [0.5, 0.905, 0.8], seed=1), record("AdaptiveWarmup", [0.91, 0.2, 0.95], seed=2)]
    row = rows(SEARCH, BASELINE + ours, list(ARMS))[-1]
    assert (row.arm, row.price, row.reached) == ("AdaptiveWarmup", Price(), 2)
    assert (row.samples, row.cpu_seconds) == (1500, 3.0)


def test_run_that_diverges_is_never_there_and_one_below_is_not_either() -> None:
    assert reached_at(record("Prodigy", [0.95, 0.1], diverged=True), 0.9, Price()) is None
    assert reached_at(record("Prodigy", [0.8, 0.89]), 0.9, Price()) is None
    assert reached_at(record("Prodigy", [0.8, 0.9]), 0.9, Price(10, 1.0)) == (2010, 5.0)
    failed = record("Prodigy", [0.95, 0.1], diverged=True)
    row = rows(SEARCH, [*BASELINE, failed], list(ARMS))[-1]
    assert headline_report.cells(row)[3:] == ["1", "0 of 1", "0", "never", "never"]


def test_mean_curve_counts_a_diverged_run_as_guessing() -> None:
    runs = [record("Prodigy", [0.5, 0.7, 0.9]), record("Prodigy", [0.3, 0.2], diverged=True, seed=2)]
    samples, accuracies = mean_curve(runs, Price(500))
    assert samples == [1500, 2500, 3500]
    assert accuracies == pytest.approx([0.4, 0.4, 0.5])


def test_rate_with_the_best_validation_accuracy_wins_once_all_are_there() -> None:
    rates = DEFAULT.grid[ADAMW]
    tried = [record(ADAMW, [0.5 + index / 100], lr, 0) for index, lr in enumerate(rates)]
    assert headline.best_learning_rates(DEFAULT, tried) == {("CNN", ADAMW): rates[-1]}
    assert headline.best_learning_rates(DEFAULT, tried[1:]) == {}


def test_grid_has_every_run_once_and_every_arm_a_style() -> None:
    best = {(model, arm): 0.01 for model in DEFAULT.models for arm in headline_report.TUNED}
    configs = [*headline.search(DEFAULT), *headline.compared(DEFAULT, best)]
    assert len({config.name for config in configs}) == len(configs) == 2 * (2 * 5 + len(ARMS) * 3)
    assert set(headline_report.STYLES) == set(ARMS)
    assert headline.TUNING_SEED not in DEFAULT.seeds


def test_report_is_written_from_the_runs_that_exist_and_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ResultStore(tmp_path / "runs")
    searched = headline.search(DEFAULT)
    for config in searched:
        store.save(config.name, record(config.arm, [0.5, 0.8], config.lr, 0) | {"config": asdict(config)})
    best = headline.best_learning_rates(DEFAULT, headline.records_of(searched, store))
    for config in headline.compared(DEFAULT, best)[:3]:  # CNN, seed 1: both baselines and AdaptiveWarmup
        store.save(config.name, record(config.arm, [0.5, 0.8], config.lr) | {"config": asdict(config)})
    headline.main(["--report", "--results", str(tmp_path / "runs")])
    text = (tmp_path / "headline.md").read_text(encoding="utf-8")
    assert "| AdaptiveWarmup | - | 80.00 | 0 | 1 of 1 | 0 | 2000 | 4.0 |" in text
    assert f"| AdamW, tuned | {DEFAULT.grid[ADAMW][0]:g} | 80.00 | 0 | 1 of 1 | 8000 | 10000 | 20.0 |" in text
    assert "CNN, Prodigy (0 of 3 seeds)" in text
    assert "CNN, AdaptiveWarmup (1 of 3 seeds)" in text
    assert (tmp_path / "headline.png").stat().st_size > 10_000
    assert "written: headline.md" in capsys.readouterr().out
