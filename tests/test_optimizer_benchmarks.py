"""What decides the published numbers of the optimizers: the walk to the best rate, the cells, the parameter lists."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import _experiment, large_batch, large_batch_report, optimizers
from benchmarks._experiment import Experiment
from benchmarks.large_batch import DEFAULT, FULL, GRID, OPTIMIZERS, SCALED, START, Bench, Config


def test_the_grid_is_one_and_three_times_powers_of_ten() -> None:
    assert GRID == (1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
    assert set(START.values()) <= set(GRID)


@pytest.mark.parametrize("protocol", [DEFAULT, FULL])
def test_no_update_has_a_smaller_batch(protocol: large_batch.Protocol) -> None:
    assert all(protocol.train_size % size == 0 for size in protocol.batch_sizes)
    assert protocol.train_size + protocol.val_size <= 60_000


@pytest.mark.parametrize("start", [0, 2, 5, 9])
def test_the_walk_ends_where_both_neighbours_are_worse(start: int) -> None:
    asked: list[int] = []

    def score(index: int) -> float:
        asked.append(index)
        return -abs(index - 4)

    assert large_batch.walk(score, start, 10) == 4
    assert {3, 4, 5} <= set(asked)
    assert len(asked) == len(set(asked)), "every rate once"


def test_the_walk_stays_on_the_grid() -> None:
    assert large_batch.walk(lambda index: float(index), 1, 3) == 2
    assert large_batch.walk(lambda index: -float(index), 1, 3) == 0


def record_of(config: Config) -> dict[str, Any]:
    best = {"SGD": 0.3, "LARS": 30.0, "LAMB": 0.03, "AdamW": 0.01, "AdamP": 0.003, SCALED: 1.0}[config.optimizer]
    steps = abs(GRID.index(config.lr) - GRID.index(best))
    accuracy = 0.9 - 0.05 * steps - 0.001 * config.seed - (0.0 if config.bias_decay else 0.01)
    return {
        "config": asdict(config),
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "final_train_loss": 0.5,
        "diverged": False,
        "updates": 10,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "environment": {"torch": "x"},
    }


def untrained(folder: Path, made: list[Config], frozen: bool = False) -> Bench:
    """Runs whose records are written down without training."""

    def train(config: Config) -> dict[str, Any]:
        made.append(config)
        return record_of(config)

    return Bench(DEFAULT, Experiment(folder / "large_batch", train, lambda config: 0.0, frozen=frozen))


def test_every_cell_is_tuned_and_then_run_with_every_seed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_experiment, "quiet_process", lambda: None)
    made: list[Config] = []
    bench = untrained(tmp_path, made)
    records = bench.all()
    assert len({config.name for config in made}) == len(made), "nothing is made twice"
    cells = large_batch_report.by_cell(records)
    tuned = {cell: runs for cell, runs in cells.items() if cell[0] != SCALED}
    assert len(tuned) == len(OPTIMIZERS) * (len(DEFAULT.batch_sizes) + len(DEFAULT.without_bias_decay))
    assert all(sorted(runs) == [0, 1, 2] for runs in cells.values())
    assert {run["config"]["lr"] for cell, runs in tuned.items() for run in runs.values() if cell[0] == "LARS"} == {30.0}
    before = len(made)
    assert untrained(tmp_path, made).all() == records
    assert len(made) == before, "what exists is not made again"

    found, tuning, open_cells = untrained(tmp_path, made, frozen=True).existing()
    assert sorted(str(run) for run in found) == sorted(map(str, records))
    assert {str(run) for run in tuning} >= {str(run) for run in bench.tuning}
    assert open_cells == []

    large_batch_report.write(tmp_path / "large_batch", records, bench.tuning, open_cells)
    text = (tmp_path / "large_batch.md").read_text()
    assert "| LARS | 89.90 ± 0.06 (lr 30) |" in text  # 90.0, 89.9, 89.8: s = 0.1, / sqrt(3)
    assert "-1.00 ± 0.00" in text
    assert (tmp_path / "large_batch.png").exists()


def test_a_report_of_what_exists_says_which_cells_are_not_tuned(tmp_path: Path) -> None:
    bench = untrained(tmp_path, [], frozen=True)
    for lr in (0.1, 0.3):
        bench.experiment.store.save(bench.config("SGD", 256, lr, 0).name, record_of(bench.config("SGD", 256, lr, 0)))
    records, tuning, open_cells = bench.existing()
    assert [run["config"]["lr"] for run in records] == [0.3]
    assert len(tuning) == 2
    assert open_cells == ["SGD at batch 256"]
    large_batch_report.write(tmp_path / "large_batch", records, tuning, open_cells)
    assert "Not finished: SGD at batch 256" in (tmp_path / "large_batch.md").read_text()


def test_bias_decay_is_switched_off_by_groups() -> None:
    def groups(bias_decay: bool) -> list[tuple[int, float]]:
        config = Config("AdamW", 256, 0.1, bias_decay, 0, 5, 256, 256, 256, "perceptron")
        optimizer = large_batch._Trained(large_batch.perceptron(), config).configure_optimizers()
        return [(len(group["params"]), group["weight_decay"]) for group in optimizer.param_groups]

    assert groups(True) == [(8, 0.01)]
    assert groups(False) == [(3, 0.01), (5, 0.0)]


def test_parameter_lists_have_the_published_sizes() -> None:
    sizes = {name: sum(torch.Size(shape).numel() for shape in shapes()) for name, shapes in optimizers.LISTS.items()}
    assert sizes == {"ResNet-50": 25_557_032, "transformer": 33_360_000}  # MiniLM-L12-H384: 21.3 M without its words


def test_ours_is_compared_with_the_better_peer_round_by_round() -> None:
    times = {"ours": [(1.0, 2.0), (2.0, 2.0)], "timm": [(4.0, 9.0), (8.0, 9.0)], "pytorch_optimizer": [(9.0, 8.0)] * 2}
    found = optimizers.ratio(times, optimizers.PEERS, 0)
    assert found is not None
    assert found["median"] == 4.0
    assert optimizers.ratio(times, optimizers.PEERS, 1)["median"] == 4.0  # type: ignore[index]
    assert optimizers.ratio({"ours": [(1.0, 1.0)]}, optimizers.PEERS, 0) is None
