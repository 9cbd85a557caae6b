"""The parts of the benchmarks that decide what a published number means: the grid, what is skipped, the intervals."""

from __future__ import annotations

import itertools
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import (
    _common,
    _experiment,
    batch_size_ramp,
    batch_size_ramp_report,
    hypergradient,
    hypergradient_report,
    linear_scaling,
    linear_scaling_report,
)
from benchmarks._common import ResultStore, paired_interval, t_interval
from benchmarks._experiment import Experiment, facts
from benchmarks.linear_scaling import DEFAULT, FULL, MODELS, Config, Protocol, reference_configs, scaled_configs

BEST_LR = dict.fromkeys(MODELS, 0.05)


def record_of(config: Config, accuracy: float) -> dict[str, Any]:
    return {
        "config": facts(config),
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
    store.save(second.name, {"config": facts(second) | {"parameters": 1}})
    assert Experiment(tmp_path, linear_scaling.train, linear_scaling.seconds).missing(configs) == configs[1:]


def test_benchmark_goes_on_where_it_was_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Config] = []

    def train(config: Config, data_dir: str | None) -> dict[str, Any]:
        if len(made) == stop:
            raise KeyboardInterrupt
        made.append(config)
        loss = config.batch_size / 1e5 + (0.1 if config.lr != 0.1 else 0.0)
        return record_of(config, 0.9 - loss + config.seed / 1000)

    stop = 40
    monkeypatch.setattr(linear_scaling, "train", train)
    monkeypatch.setattr(_experiment, "quiet_process", lambda: None)
    with pytest.raises(KeyboardInterrupt):
        linear_scaling.main(["--results", str(tmp_path / "runs")])
    assert not list(tmp_path.glob("*.md"))
    stop = -1
    linear_scaling.main(["--results", str(tmp_path / "runs")])
    assert len(made) == len(set(made)) == 30 + 90
    assert {config.lr for config in made if config.batch_size > 128} == {0.1}  # the best of the grid
    text = (tmp_path / "linear_scaling.md").read_text()
    assert (tmp_path / "linear_scaling.png").stat().st_size > 10_000
    # accuracies 0.89872, 0.89972, 0.90072: s = 0.1 points, times 4.303 / sqrt(3)
    assert "| batch norm | 128 | none | - | 0.1 | 89.97 ± 0.25 | reference | 0.500 | 0 of 3 |" in text
    # seeds shift both alike: the paired difference has no spread
    assert "| no norm | 4096 | linear | 1 | 3.2 | 86.00 ± 0.25 | -3.97 ± 0.00 | 0.500 | 0 of 3 |" in text


def test_dry_run_trains_and_writes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    linear_scaling.main(["--dry-run", "--full", "--results", str(tmp_path / "runs")])
    assert "300 runs, 300 to make" in capsys.readouterr().out
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
    doubted = f"## What was found\n\n{_common.DOUBT}\n\nNothing differs.\n"
    assert write(0.7).endswith(doubted)
    assert write(0.7).endswith(doubted)  # until somebody removes the line


# ---------------------------------------------------------------------- batch size ramp
RAMP_BEST = {"momentum": 0.1, "nesterov": 0.1, "sgd": 1.0, "adam": 1e-3}


def ramp_configs(protocol: batch_size_ramp.Protocol) -> list[batch_size_ramp.Config]:
    best = {optimizer: RAMP_BEST[optimizer] for optimizer in protocol.optimizers}
    return batch_size_ramp.configs(protocol, best)


def ramp_record(config: batch_size_ramp.Config, accuracy: float) -> dict[str, Any]:
    share = config.batch_size / config.train_size
    ends = range(config.train_size, (config.epochs + 1) * config.train_size, config.train_size)
    return {
        "config": facts(config),
        "test_accuracy": accuracy,
        "updates": round(config.epochs / share),
        "diverged": False,
        "seconds": 2.0,
        "cpu_seconds": 1.0,
        "train_curve": {"samples": [1000, ends[-1] - 1000], "updates": [8, 800], "loss": [1.0 + config.seed, 0.5]},
        "epochs": [{"samples": end, "updates": end // 128, "val_accuracy": accuracy, "next_lr": 0.1} for end in ends],
        "environment": {"torch": "x"},
    }


@pytest.mark.parametrize(
    "protocol", [batch_size_ramp.DEFAULT, batch_size_ramp.FULL], ids=lambda protocol: protocol.name
)
def test_ramp_grid_has_every_setting_once_and_pairs_every_seed(protocol: batch_size_ramp.Protocol) -> None:
    configs = ramp_configs(protocol)
    every = dict.fromkeys([*batch_size_ramp.tuning_configs(protocol), *configs])
    assert len({config.name for config in every}) == len(every)
    rows = batch_size_ramp_report.by_setting([ramp_record(config, 0.9) for config in configs])
    decays = [setting for setting in rows if setting.mode == "decay"]
    assert [setting.optimizer for setting in decays] == list(protocol.optimizers)
    for decay in decays:
        trials = protocol.optimizers[decay.optimizer]
        assert all(set(rows[decay._replace(mode=mode)]) == set(trials.seeds) for mode in ("hybrid", "increase"))
        assert set(trials.tuning_seeds) <= set(trials.seeds)
    first = protocol.optimizers[protocol.first_optimizer]
    assert len(first.seeds) >= 5
    assert set(protocol.row_seeds) | set(protocol.sweep_seeds) <= set(first.seeds)
    # beside the schedules: more lr, and more momentum
    others = {setting for setting in rows if setting.mode == "increase"} - {d._replace(mode="increase") for d in decays}
    assert len(others) == 2
    assert all(set(rows[setting]) == set(protocol.row_seeds) for setting in others)
    # the sweep with and without its batch, which share one start
    swept = batch_size_ramp.sweep_configs(protocol)
    assert len(swept) == len(set(swept)) == (2 * len(protocol.sweep) - 1) * len(protocol.sweep_seeds)
    proportional = {round(config.lr / config.batch_size, 9) for config in swept if config.batch_size != 128}
    assert proportional == {round(0.1 / 128, 9)}
    assert all(config.max_batch_size >= config.batch_size for config in swept)


def test_ramp_rows_with_another_start_have_the_noise_scale_of_the_first() -> None:
    configs = {c for c in ramp_configs(batch_size_ramp.DEFAULT) if c.seed == 0 and c.optimizer == "momentum"}
    starts = {(config.lr, config.momentum, config.batch_size) for config in configs}
    assert starts == {
        (0.1, 0.9, 128),
        (0.5, 0.9, 640),
        (0.1, 0.98, 640),
    }  # as in Smith et al.: 5 x lr or 1 / 5 of 1 - m
    assert {round(config.lr / (1 - config.momentum) / config.batch_size, 9) for config in configs} == {1 / 128}


def test_ramp_run_with_a_result_is_skipped_and_one_of_another_ramp_is_not(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first, second, *_ = configs = ramp_configs(batch_size_ramp.DEFAULT)
    store.save(first.name, ramp_record(first, 0.9))
    store.save(second.name, {"config": {**facts(second), "milestones": [3, 7, 9]}})
    assert Experiment(tmp_path, batch_size_ramp.train, batch_size_ramp.seconds).missing(configs) == configs[1:]


@pytest.mark.parametrize(
    ("differences", "verdict"),
    [
        # 90 % half width with 5 seeds: t(0.95, 4) = 2.132 from the printed table, times s / sqrt(5)
        ([0.0, 0.002, -0.002, 0.001, -0.001], "inside"),  # 0 +- 0.15 points
        ([0.0, 0.008, -0.008, 0.004, -0.004], "not shown"),  # 0 +- 0.60
        ([0.004, 0.006, 0.002, 0.005, 0.003], "not shown"),  # 0.4 +- 0.15: the mean alone would pass
        ([-0.01, -0.012, -0.008, -0.011, -0.009], "outside"),  # -1 +- 0.15
    ],
)
def test_equivalence_is_shown_by_the_whole_interval_or_not_at_all(differences: list[float], verdict: str) -> None:
    decay, hybrid = (
        [c for c in ramp_configs(batch_size_ramp.DEFAULT) if c.mode == mode and c.optimizer == "momentum"][:5]
        for mode in ("decay", "hybrid")
    )
    records = [ramp_record(config, 0.9 + 0.01 * config.seed) for config in decay]
    records += [ramp_record(c, 0.9 + 0.01 * c.seed + d) for c, d in zip(hybrid, differences, strict=True)]
    reference, row = batch_size_ramp_report.rows(records)
    assert reference.verdict == "reference"
    assert row.verdict == verdict


def test_one_seed_shows_nothing_and_what_was_not_run_is_named(tmp_path: Path) -> None:
    configs = [c for c in ramp_configs(batch_size_ramp.DEFAULT) if c.seed == 0]
    records = [ramp_record(c, 0.9) for c in configs]
    assert {row.verdict for row in batch_size_ramp_report.rows(records)} == {"reference", "one seed"}
    swept = batch_size_ramp.sweep_configs(batch_size_ramp.DEFAULT)
    tuned = [ramp_record(c, 0.9) for c in batch_size_ramp.tuning_configs(batch_size_ramp.DEFAULT)]
    batch_size_ramp_report.write(
        tmp_path / "ramp", tuned, records, [ramp_record(c, 0.9) for c in swept[:3]], [facts(c) for c in swept[3:]]
    )
    text = (tmp_path / "ramp.md").read_text()
    assert "- sgd, hybrid (lr 1, momentum 0, batch 128) minus decay, 1 seed: +0.00 points; without an interval" in text
    assert "| 0.2 | 256 | 469 | 90.00 | 0.500 | 1 | 0 |" in text
    assert "- momentum, increase, lr 3.2, momentum 0.9, batch 4096: seed 0\n" in text


def test_ramp_report_says_whether_the_runs_were_paired(tmp_path: Path) -> None:
    tuned = [ramp_record(config, 0.9) for config in batch_size_ramp.tuning_configs(batch_size_ramp.DEFAULT)]
    records = [ramp_record(c, 0.9 + 0.001 * c.seed) for c in ramp_configs(batch_size_ramp.DEFAULT)]
    batch_size_ramp_report.write(tmp_path / "ramp", tuned, records)
    assert (tmp_path / "ramp.png").stat().st_size > 10_000
    text = (tmp_path / "ramp.md").read_text()
    assert "have the same training losses to the last digit kept" in text
    assert "- momentum, hybrid (lr 0.1, momentum 0.9, batch 128) minus decay, 10 seeds: +0.00 ± 0.00 points" in text
    records[1]["train_curve"]["loss"][0] += 1e-5
    batch_size_ramp_report.write(tmp_path / "ramp", tuned, records)
    assert "do NOT have the same training losses" in (tmp_path / "ramp.md").read_text()


def test_schedules_of_a_seed_train_alike_until_the_first_milestone_and_grow_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(batch_size_ramp, "FashionMNISTDataModule", TinyImages)
    small = {"epochs": 2, "milestones": (1,), "train_size": 64, "batch_size": 8, "max_batch_size": 48, "seed": 3}
    records = {}
    try:
        for config in ramp_configs(batch_size_ramp.DEFAULT)[:3]:
            config = replace(config, **small, max_micro_batch_size=16, ghost_batch_size=8)
            records[config.mode] = json.loads(json.dumps(batch_size_ramp.train(config, None), allow_nan=False))
    finally:
        torch.use_deterministic_algorithms(False)  # the Trainer leaves it on
    assert {mode: record["updates"] for mode, record in records.items()} == {"decay": 16, "hybrid": 10, "increase": 10}
    assert batch_size_ramp_report.same_until_first_milestone(list(records.values()), "momentum")
    decay, increase = records["decay"]["train_curve"], records["increase"]["train_curve"]
    assert decay["loss"][-1] != increase["loss"][-1]
    # Hardly trained, so near ln 10 = 2.3; what Lightning reports for a micro-batch of an accumulated update is a half
    # of that (24 samples in 2) or a third (40 in 3), and has to be multiplied again.
    assert min(increase["loss"]) > 1.5
    assert [epoch["next_lr"] for epoch in records["increase"]["epochs"]] == [0.1, 0.1]
    assert [epoch["next_lr"] for epoch in records["decay"]["epochs"]] == pytest.approx([0.02, 0.02])


# ---------------------------------------------------------------------- hypergradient
def hyper_record(arm: str, lr: float, curve: list[tuple[int, float]], seed: int = 0) -> dict[str, Any]:
    config = {"model": "logistic", "optimizer": "sgd", "arm": arm, "lr": lr, "seed": seed, "updates": 100}
    return {"config": config, "curve": curve, "test_accuracy": 0.8, "final_lr": lr}


def test_hypergradient_ratio_is_to_the_best_fixed_rate_and_says_where_it_is_a_bound() -> None:
    records = [
        hyper_record("fixed", 0.1, [(10, 0.9), (20, 0.5)]),
        hyper_record("fixed", 0.01, [(10, 1.5), (20, 1.2)]),
        hyper_record("normalized, wide", 0.1, [(10, 0.9), (20, 0.6), (60, 0.5)]),
        hyper_record("normalized, wide", 0.01, [(10, 1.0), (20, 0.8)]),
        hyper_record("fixed", 0.1, [(10, 0.4)], seed=1),  # its seed is not whole
    ]
    evidence = hypergradient_report.Evidence(records, 15, (0.01, 0.1))
    assert evidence.targets == {"logistic": 0.5}
    assert evidence.best_fixed("logistic", "sgd")[0] == 0.1
    assert evidence.worst("logistic", "sgd", "normalized, wide") == (0.01, 5.0, True)
    assert evidence.at_target(0.8).worst("logistic", "sgd", "normalized, wide") == (0.01, 1.0, False)
    cell = evidence.cell("logistic", "sgd", "fixed", 0.1)
    assert cell is not None
    assert (cell.updates.mean, cell.updates.count, cell.missed) == (20.0, 1, 0)


def test_hypergradient_grid_has_every_method_from_every_rate() -> None:
    configs = hypergradient.configs(hypergradient.DEFAULT, ["logistic"])
    assert len({config.name for config in configs}) == len(configs) == 3 * (3 * 6 * 6 + 2)
    assert {config.hyper_lr for config in configs if config.arm == "fixed"} == {None}
    updates = hypergradient.evaluation_updates(700)
    assert updates[0] == 1
    assert updates[-1] == 700
    assert all(b == a + 1 or b <= 1.05 * a for a, b in itertools.pairwise(updates))
