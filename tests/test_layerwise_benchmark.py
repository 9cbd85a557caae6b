"""The fine-tuning benchmark: what is run when, and what its report says. Nothing is trained here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from benchmarks import _experiment, layerwise, layerwise_report
from benchmarks._experiment import Experiment, facts
from benchmarks.layerwise import Config, Protocol, Setting, best_learning_rate, next_runs, tuning

PROTOCOL = Protocol()
UNIFORM, *OTHERS = PROTOCOL.settings


def record_of(config: Config, accuracy: float) -> dict[str, Any]:
    tunes = config.seed == PROTOCOL.tuning_seed
    return {
        "config": facts(config),
        "val_acc" if tunes else "test_acc": accuracy,
        "train_losses": [0.7, 0.6, 0.5],
        "epoch_seconds": [1.0, 2.0, 3.0],
        "updates": 48,
        "seconds": 4.0,
        "cpu_seconds": 2.0,
        "environment": {"torch": "x"},
    }


def untrained(folder: Path) -> Experiment[Config]:
    """Runs that are written by hand."""
    return Experiment(folder, layerwise.train, lambda config: 0.0)


def make(configs: list[Config], experiment: Experiment[Config], accuracy: Any) -> None:
    for config in configs:
        experiment.store.save(config.name, record_of(config, accuracy(config)))


def optimum(best: dict[Setting, float]) -> Any:
    """Validation accuracy that falls with the distance of the rate from the best one."""
    return lambda config: 0.8 - 0.01 * abs(math.log2(config.lr / best.get(config.setting, 1e-4)))


def test_settings_are_those_of_the_issue_and_names_are_unique() -> None:
    assert UNIFORM == (1.0, "constant", False)
    assert {setting[0] for setting in PROTOCOL.settings} == {1.0, 0.9, 0.8, 0.65}
    assert len(PROTOCOL.seeds) >= 5
    assert PROTOCOL.tuning_seed not in PROTOCOL.seeds
    configs = [Config(*s, lr, seed) for s in PROTOCOL.settings for lr in (1e-4, 2e-4) for seed in (0, 1)]
    assert len({config.name for config in configs}) == len(configs)


def test_tuning_comes_first_then_seed_by_seed(tmp_path: Path) -> None:
    experiment = untrained(tmp_path)
    runs = next_runs(PROTOCOL, experiment)
    assert {config.seed for config in runs} == {PROTOCOL.tuning_seed}
    assert [config.lr for config in runs if config.setting == UNIFORM] == [2.5e-5, 5e-5, 1e-4, 2e-4]
    assert [config.lr for config in runs if config.setting == OTHERS[0]] == [5e-5, 1e-4, 2e-4]
    assert {config.schedule for config in runs} == {"constant"}, "the triangle's peak follows from the constant rate"
    assert len(runs) == len(set(runs)) == 4 + 3 * 3
    make(runs, experiment, optimum({}))
    runs = next_runs(PROTOCOL, experiment)
    assert [config.seed for config in runs] == [seed for seed in PROTOCOL.seeds for _ in PROTOCOL.settings]
    assert {(config.schedule, config.lr) for config in runs} == {("constant", 1e-4), ("triangle", 2e-4)}
    make(runs[:10], experiment, optimum({}))
    assert next_runs(PROTOCOL, experiment) == runs[10:]


@pytest.mark.parametrize(
    ("best", "tried"),
    [
        (4e-4, [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]),  # one beyond the best shows that it is
        (1e-2, [5e-5, 1e-4, 2e-4, 4e-4, 8e-4]),  # two further rates at most
        (1e-5, [1.25e-5, 2.5e-5, 5e-5, 1e-4, 2e-4]),
        (1e-4, [5e-5, 1e-4, 2e-4]),
    ],
)
def test_grid_is_extended_beyond_an_end_that_is_best(best: float, tried: list[float], tmp_path: Path) -> None:
    experiment, setting = untrained(tmp_path), OTHERS[1]
    for _ in range(4):
        records, missing = tuning(setting, PROTOCOL, experiment)
        make(missing, experiment, optimum({setting: best}))
    assert not missing
    assert sorted(record["config"]["lr"] for record in records) == tried
    assert best_learning_rate(records) == min(tried, key=lambda rate: abs(math.log2(rate / best)))


def test_report_pairs_by_seed_and_states_the_noise_of_the_test_sentences(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(config: Config) -> dict[str, Any]:
        accuracy = optimum({})(config)
        if config.seed != PROTOCOL.tuning_seed:
            accuracy = 0.75 + 0.01 * config.seed + (0.02 if config.setting == OTHERS[0] else 0.0)
        return record_of(config, accuracy)

    monkeypatch.setattr(layerwise, "train", train)
    monkeypatch.setattr(_experiment, "quiet_process", lambda: None)
    layerwise.main(["--results", str(tmp_path / "runs"), "--runs", "10"])
    assert "not tuned yet" in capsys.readouterr().out
    assert not (tmp_path / "layerwise.md").exists()
    layerwise.main(["--results", str(tmp_path / "runs")])
    text = (tmp_path / "layerwise.md").read_text()
    # seeds 1 .. 5: mean 78 %, s = sqrt(2.5) points, standard error 0.71, times t(0.975, 4) = 2.776
    assert "| one lr for all layers | 0.0001 | 78.00 ± 1.96 | 0.71 | reference | 0.500 | 6.0 | 5 |" in text
    assert "| layer-wise decay 0.8 | 0.0001 | 80.00 ± 1.96 | 0.71 | +2.00 ± 0.00 | 0.500 | 6.0 | 5 |" in text
    assert "| layer-wise decay 0.8, slanted triangle, unfreezing |" in text
    noise = 100 * math.sqrt(0.78 * 0.22 / Config(*UNIFORM, 1e-4, 1).test_size)
    assert f"a single accuracy by a standard error of {noise:.2f} points" in text
    assert (tmp_path / "layerwise.png").stat().st_size > 10_000


def test_binomial_error_is_that_of_a_share() -> None:
    assert layerwise_report.binomial_error(0.5, 100) == 0.05
