"""What the benchmarks of the search's readings make of a race and of a table of runs."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from benchmarks import learning_rate_search_plateaus as plateaus
from benchmarks import learning_rate_search_readings as readings
from benchmarks.learning_rate_search_arms import valley
from benchmarks.learning_rate_search_problems import window_means
from lightning_lr.search import Trial


def test_the_peak_phase_is_the_updates_after_the_warm_up_at_half_of_the_peak_or_more() -> None:
    """16 updates: a warm-up of 8, then 1, 7/8, ... of the peak; the updates after the first at the peak are 8 to 12."""
    trial = readings.peak_phase(Trial(0.1, tuple(map(float, range(16))), (9.0,)))
    assert trial.scores == (8.0, 9.0, 10.0, 11.0, 12.0)
    assert readings.peak_phase(Trial(0.1, (1.0, math.inf), ())).scores == ()


def test_a_table_is_read_between_its_rates_over_their_logarithm() -> None:
    assert readings.between([(0.01, 90.0), (0.1, 80.0), (1.0, 20.0)], 0.1 * 10**0.5) == pytest.approx(50.0, abs=1e-9)
    assert readings.between([(0.01, 90.0), (0.1, 80.0)], 1e-4) == 90.0
    assert readings.between([(0.01, 90.0), (0.1, 80.0)], 5.0) == 80.0


def test_a_loss_beyond_the_rates_at_which_it_is_finite_is_infinite() -> None:
    seed = {"runs": [{"rate": 0.1, "losses": [2.0, 1.0]}, {"rate": 1.0, "losses": [3.0, None]}]}
    assert readings.loss_at(seed, 0.1, 2) == 1.0
    assert readings.loss_at(seed, 1.0, 1) == 3.0
    assert readings.loss_at(seed, 1.0, 2) == math.inf


def test_windows_that_a_run_did_not_reach_have_no_mean() -> None:
    assert window_means([1.0, 3.0] * 4 + [math.inf] * 8) == [2.0, *[None] * 7]


def test_the_valley_is_the_middle_third_of_the_longest_fall() -> None:
    """Flat, then 12 falling losses with one bump between them, then an explosion of which the end is left out."""
    falls = [2.0 - 0.1 * n for n in range(6)] + [1.9] + [1.4 - 0.1 * n for n in range(6)]
    losses = [2.0] * 10 + falls + [3.0 + n for n in range(7)]
    finder = SimpleNamespace(results={"loss": losses, "lr": [1e-6 * 10 ** (n / 5) for n in range(len(losses))]})
    # of 30 updates 3 are left out; the fall ends at update 22, its 12 updates begin at 10, of which 4 + 2 are skipped
    assert valley(finder) == pytest.approx(1e-6 * 10 ** ((22 - 12 + 4 + 2) / 5))


def test_lowering_counts_on_the_seeds_that_begin_on_a_plateau_only() -> None:
    found = {"as it is": {"rate": 0.1, "test": 90.0}, "halved": {"rate": 0.05, "test": 94.0}}
    found["half a decade lower"] = {"rate": 0.03, "test": 93.0}
    flat = {"scores": [[[0.001, 2.0], [0.01, 1.9], [0.1, 1.0]]], "found": found}
    steep = {"scores": [[[0.001, 2.0], [0.01, 1.2], [0.1, 1.0]]], "found": found}
    summary = plateaus.summary([flat, steep])
    assert summary["shares"] == pytest.approx([0.1, 0.8], abs=1e-12)
    assert summary["plateaus"] == 1
    assert summary["ahead"]["halved"][0] == 2.0
    assert summary["ahead"]["half a decade lower"][0] == 1.5
