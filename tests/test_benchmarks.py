"""The parts of the benchmarks that decide what a published number means: the grid, what is skipped, the intervals."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import linear_scaling, linear_scaling_report
from benchmarks._common import ResultStore, paired_interval, t_interval
from benchmarks.linear_scaling import DEFAULT, FULL, MODELS, Config, Protocol, reference_configs, scaled_configs

BEST_LR = dict.fromkeys(MODELS, 0.05)


def record_of(config: Config, accuracy: float) -> dict[str, Any]:
    return {
        "config": asdict(config),
        "val_accuracy": accuracy,
        "test_accuracy": accuracy,
        "final_train_loss": 0.5,
        "diverged": False,
        "updates": 1,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "environment": {"torch": "x"},
    }


# ---------------------------------------------------------------------- intervals
@pytest.mark.parametrize(
    ("values", "mean", "half_width"),
    [
        # half width = t(0.975, n - 1) s / sqrt(n), t from the printed table: 12.706, 4.303 and 2.776
        ([1.0, 3.0], 2.0, 12.706 * math.sqrt(2) / math.sqrt(2)),
        ([1.0, 2.0, 3.0], 2.0, 4.303 * 1.0 / math.sqrt(3)),
        ([0.0, 1.0, 2.0, 3.0, 4.0], 2.0, 2.776 * math.sqrt(2.5) / math.sqrt(5)),
    ],
)
def test_interval_is_students(values: list[float], mean: float, half_width: float) -> None:
    interval = t_interval(values)
    assert interval.mean == mean
    assert interval.half_width == pytest.approx(half_width, rel=2e-4)  # the table has four digits


def test_one_value_has_no_interval_and_none_is_an_error() -> None:
    assert math.isnan(t_interval([0.5]).half_width)
    with pytest.raises(ValueError, match="no values"):
        t_interval([])


def test_paired_interval_takes_the_differences_of_common_seeds() -> None:
    interval = paired_interval({0: 0.5, 1: 0.9, 7: 0.0}, {0: 0.4, 1: 0.6, 3: 1.0})
    assert interval.count == 2
    assert interval.mean == pytest.approx(0.2)
    assert interval.half_width == pytest.approx(12.706 * 0.1, rel=2e-4)  # s / sqrt(2) of 0.1 and 0.3 is 0.1


# ---------------------------------------------------------------------- the grid
@pytest.mark.parametrize("protocol", [DEFAULT, FULL], ids=lambda protocol: protocol.name)
def test_grid_has_every_setting_once(protocol: Protocol) -> None:
    configs = scaled_configs(protocol, BEST_LR)
    larger = len(protocol.batch_sizes) - 1
    # per larger batch: two rules with and without warm-up, and no rule; one reference
    assert len(configs) == len(MODELS) * (1 + 5 * larger) * len(protocol.seeds)
    every = [*reference_configs(protocol), *(c for c in configs if c.batch_size != linear_scaling.REFERENCE_BATCH)]
    assert len({config.name for config in every}) == len(every)
    assert {c for c in configs if c.batch_size == linear_scaling.REFERENCE_BATCH} <= set(reference_configs(protocol))


@pytest.mark.parametrize("protocol", [DEFAULT, FULL], ids=lambda protocol: protocol.name)
def test_no_update_has_a_smaller_batch(protocol: Protocol) -> None:
    assert all(protocol.train_size % batch_size == 0 for batch_size in protocol.batch_sizes)
    assert protocol.train_size + protocol.val_size <= 60_000


# ---------------------------------------------------------------------- what is made again
def test_run_with_a_result_is_skipped_and_one_of_another_network_is_not(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first, second, *_ = configs = reference_configs(DEFAULT)
    store.save(first.name, record_of(first, 0.9))
    store.save(second.name, {"config": asdict(second) | {"parameters": 1}})
    assert linear_scaling.missing(configs, store) == configs[1:]


def test_benchmark_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Config] = []

    def work(config: Config, data_dir: str | None, folder: Path) -> None:
        if len(made) == 40:
            raise KeyboardInterrupt
        made.append(config)
        loss = config.batch_size / 1e5 + (0.1 if config.lr != 0.1 else 0.0)
        ResultStore(folder).save(config.name, record_of(config, 0.9 - loss + config.seed / 1000))

    monkeypatch.setattr(linear_scaling, "work", work)
    with pytest.raises(KeyboardInterrupt):
        linear_scaling.main(["--results", str(tmp_path / "runs")])
    assert not list(tmp_path.glob("*.md"))
    monkeypatch.setattr(linear_scaling, "work", lambda *args, **kwargs: work_on(made, work, *args, **kwargs))
    linear_scaling.main(["--results", str(tmp_path / "runs")])
    assert len(made) == len(set(made)) == 30 + 90
    assert {config.lr for config in made if config.batch_size > 128} == {0.1}  # the best of the grid
    text = (tmp_path / "linear_scaling.md").read_text()
    assert (tmp_path / "linear_scaling.png").stat().st_size > 10_000
    # accuracies 0.89872, 0.89972, 0.90072: s = 0.1 points, times 4.303 / sqrt(3)
    assert "| batch norm | 128 | none | - | 0.1 | 89.97 ± 0.25 | reference | 0.500 | 0 of 3 |" in text
    # seeds shift both alike: the paired difference has no spread
    assert "| no norm | 4096 | linear | 1 | 3.2 | 86.00 ± 0.25 | -3.97 ± 0.00 | 0.500 | 0 of 3 |" in text


def work_on(made: list[Config], work: Any, *args: Any, **kwargs: Any) -> None:
    """`work` after the interruption."""
    stop, made[:] = made[:], []
    work(*args, **kwargs)
    made[:0] = stop


def test_dry_run_trains_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear_scaling.main(["--dry-run", "--full", "--results", str(tmp_path / "runs")])
    assert "50 + 250 runs, 50 + 250 to make" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- results
class TinyImages(LightningDataModule):
    def __init__(self, batch_size: int, *args: Any, **kwargs: Any) -> None:
        super().__init__()
        self.batch_size = batch_size
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(64, 1, 28, 28, generator=generator)
        self.images = TensorDataset(images, torch.randint(10, (64,), generator=generator))

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.images, self.batch_size, shuffle=True)

    val_dataloader = test_dataloader = train_dataloader


@pytest.mark.parametrize(("lr", "diverged"), [(0.01, False), (1e30, True)])
def test_infinite_loss_is_a_result_with_the_accuracy_of_guessing(
    lr: float, diverged: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(linear_scaling, "FashionMNISTDataModule", TinyImages)
    config = Config("no norm", 16, lr, "none", 0.0, 0, epochs=2, train_size=64, val_size=64, parameters=0)
    try:
        record = json.loads(json.dumps(linear_scaling.train(config, None), allow_nan=False))
    finally:
        torch.use_deterministic_algorithms(False)  # the Trainer leaves it on
    assert record["diverged"] is diverged
    assert (record["test_accuracy"] == 0.1 and record["final_train_loss"] is None) is diverged
    assert (record["updates"] < 8) is diverged


def test_findings_are_kept_and_doubted_once_the_numbers_change(tmp_path: Path) -> None:
    protocol = Protocol("x", (128, 256), (0.1,), 40_960, 10_000, 4, 1.0, (0, 1))
    tuned, scaled = reference_configs(protocol), scaled_configs(protocol, dict.fromkeys(MODELS, 0.1))

    def write(accuracy: float) -> str:
        records = [[record_of(config, accuracy) for config in configs] for configs in (tuned, scaled)]
        linear_scaling_report.write(tmp_path / "x", *records)
        return (tmp_path / "x.md").read_text()

    write(0.8)
    path = tmp_path / "x.md"
    path.write_text(path.read_text().replace("To be written.", "Nothing differs."))
    assert write(0.8).endswith("## What was found\n\nNothing differs.\n")
    doubted = f"## What was found\n\n{linear_scaling_report.DOUBT}\n\nNothing differs.\n"
    assert write(0.7).endswith(doubted)
    assert write(0.7).endswith(doubted)  # until somebody removes the line
