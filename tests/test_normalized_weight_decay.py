"""The paper's decay, in torch's semantics, at every update: with restarts, ramps, several groups and multipliers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import pytorch_optimizer
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_lr import (
    BatchSizeRamp,
    Constant,
    Cosine,
    CosineRestarts,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    StepRamp,
)
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.optim import LAMB, LARS
from lightning_lr.weight_decay import decays_apart_from_step, normalized_weight_decay, torch_weight_decay
from tests.support.toy import Probe, Stream, Toy, data, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def adamw(module: LightningModule) -> torch.optim.Optimizer:
    assert isinstance(module, Toy)
    groups = [
        {"params": module.body.parameters(), "lr": 0.002},
        {"params": module.head.weight, "lr": 0.01},
        {"params": module.head.bias, "lr": 0.01, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, weight_decay=1.0)


def decays(*callbacks: Any, configure: Any = adamw, **arguments: Any) -> list[list[list[float]]]:
    """[lr, weight decay] of every group at every update."""
    probe = Probe("lr", "weight_decay")
    fit([*callbacks, probe], module=Toy(configure), **arguments)
    return probe.series


def test_the_paper_and_its_repository_in_numbers() -> None:
    # CIFAR-10 with 50 000 images, batch 128: 1.265e-4 for 100 epochs, 3.27e-5 for 1500; torch's 0.1265 at lr 1e-3
    assert normalized_weight_decay(0.025, 128, 50_000 * 100) == pytest.approx(1.265e-4, rel=1e-3)
    assert normalized_weight_decay(0.025, 128, 50_000 * 1500) == pytest.approx(3.27e-5, rel=2e-3)
    assert torch_weight_decay(1.265e-4, 1e-3) == pytest.approx(0.1265)
    assert torch_weight_decay(1.0, 0.0) == 0.0


def test_every_group_decays_by_the_same_share_whatever_its_learning_rate() -> None:
    expected = 0.3 * math.sqrt(8 / (48 * 3))
    for body, head, bias in decays(NormalizedWeightDecay(0.3)):
        assert body == [0.002, pytest.approx(expected / 0.002, rel=1e-12)]
        assert head == [0.01, pytest.approx(expected / 0.01, rel=1e-12)]
        assert bias == [0.01, 0.0], "0 stays 0"


def test_the_schedule_scales_the_decay_and_the_base_learning_rate_does_not() -> None:
    callbacks = [NormalizedWeightDecay(0.3), LearningRateSchedule(Cosine()), LearningRateScaling(2, warmup_epochs=1)]
    expected = 0.3 * math.sqrt(8 / (48 * 3))
    series = decays(*callbacks)
    assert series[-1][0][0] != series[0][0][0]
    for update, row in enumerate(series):
        eta = (1 + math.cos(math.pi * update / 18)) / 2
        for lr, decay in row[:2]:
            assert lr * decay == pytest.approx(expected * eta, rel=1e-12)


@pytest.mark.parametrize("cycle_growth", [1.0, 2.0])
def test_a_restart_begins_with_the_decay_of_its_own_cycle(cycle_growth: float) -> None:
    curve = CosineRestarts(first_cycle=1 / 6, cycle_growth=cycle_growth)
    series = decays(NormalizedWeightDecay(0.3), LearningRateSchedule(curve))
    cycle, start = 3, 0  # updates of 18
    for update, row in enumerate(series):
        if update == start + cycle:
            start, cycle = update, round(cycle * cycle_growth)
        assert row[1][1] == pytest.approx(0.3 * math.sqrt(1 / cycle) / 0.01, rel=1e-9), update
    assert len({row[1][1] for row in series}) == (1 if cycle_growth == 1 else 3)


class Base(MethodCallback):
    """A base learning rate that moves at the third update, of the first group alone."""

    name, lr_role = "moves", "base"

    def factor(self, clock: Any) -> tuple[float, ...]:
        return (1.0 if clock.updates < 2 else 0.5, *[1.0] * 3)[: len(self._run.writer.optimizer.param_groups)]


def test_it_follows_a_base_rate_the_users_decay_and_the_groups_where_they_change() -> None:
    class Writes(Toy):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
            optimizer = self.trainer.optimizers[0]
            if self.trainer.global_step == 4:
                optimizer.param_groups[1]["weight_decay"] = 0.0
            if self.trainer.global_step == 6:
                more = torch.nn.Parameter(torch.ones(1))
                optimizer.add_param_group({"params": [more], "lr": 0.1, "weight_decay": 0.7})

    probe = Probe("lr", "weight_decay")
    fit([Base(), NormalizedWeightDecay(0.3), probe], module=Writes(adamw), max_epochs=2)
    expected = 0.3 * math.sqrt(8 / (48 * 2))
    for update, row in enumerate(probe.series):
        own = [expected / (0.002 if update < 2 else 0.001), expected / 0.01 if update < 4 else 0.0, 0.0, 0.7]
        assert [decay for _, decay in row] == pytest.approx(own[: len(row)], rel=1e-12), update
        assert len(row) == (4 if update >= 6 else 3)
    assert len(probe.series) == 12


def test_the_decay_follows_a_growing_batch() -> None:
    ramp = BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=32)
    series = decays(NormalizedWeightDecay(0.3), ramp, loader=DataLoader(data(64), batch_size=8))
    batches = [8] * 8 + [16] * 4 + [32] * 2
    assert [row[1][1] for row in series] == pytest.approx([0.3 * math.sqrt(b / 192) / 0.01 for b in batches])
    assert {row[1][0] for row in series} == {0.01}


@pytest.mark.parametrize("samples", [48, 50])
def test_a_short_last_batch_changes_nothing(samples: int) -> None:
    series = decays(NormalizedWeightDecay(0.3), loader=DataLoader(data(samples), batch_size=8), max_epochs=2)
    (decay,) = {row[1][1] for row in series}
    assert decay == pytest.approx(0.3 * math.sqrt(8 / (samples * 2)) / 0.01)


def test_a_users_own_scheduler_is_the_schedule() -> None:
    def configure(module: LightningModule) -> Any:
        optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 6, 0.5)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    series = decays(NormalizedWeightDecay(0.3), configure=configure)
    expected = 0.3 * math.sqrt(8 / (48 * 3))
    for update, ((lr, decay),) in enumerate(series):
        assert lr == pytest.approx(0.01 * 0.5 ** (update // 6))
        assert lr * decay == pytest.approx(expected * 0.5 ** (update // 6))


def test_an_iterable_and_unknown_batch_sizes_count_micro_batches() -> None:
    stream = decays(
        NormalizedWeightDecay(0.3), loader=DataLoader(Stream(48), batch_size=8), max_steps=12, max_epochs=-1
    )
    own = DataLoader(data(), batch_sampler=[[0, 1, 2], [3, 4, 5, 6], [7]])
    unknown = decays(NormalizedWeightDecay(0.3), loader=own, max_epochs=4)
    for series in (stream, unknown):
        assert [row[1][1] for row in series] == pytest.approx([0.3 * math.sqrt(1 / 12) / 0.01] * 12)


def test_a_checkpoint_holds_the_users_own_weight_decay(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="end", save_top_k=-1)
    fit([NormalizedWeightDecay(0.3), save], module=Toy(adamw), enable_checkpointing=True, max_epochs=1)
    saved = torch.load(tmp_path / "end.ckpt", weights_only=False)["optimizer_states"][0]["param_groups"]
    assert [group["weight_decay"] for group in saved] == [1.0, 1.0, 0.0]


def test_the_decay_and_trust_ratios_are_logged(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    fit([NormalizedWeightDecay(0.3)], module=Toy(adamw), logger=logger, log_every_n_steps=1, max_epochs=1)
    lines = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    assert "weight_decay/group_1" in lines[0].split(",")
    logger = CSVLogger(tmp_path)
    callbacks: list[Any] = [LearningRateSchedule(Constant())]
    fit(callbacks, module=Toy(lambda m: LAMB(m.parameters(), 0.01)), logger=logger, log_every_n_steps=1, max_epochs=1)
    header = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"trust_ratio/0", "trust_ratio/0.1", "trust_ratio/0.5", "trust_ratio/0.9", "trust_ratio/1"} <= set(header)


class ChoosesTheBase(MethodCallback):
    name = "chooses_the_base"
    lr_role = "finder"

    def factor(self, clock: Any) -> float:
        return 1.0


def _warm_restarts(module: LightningModule) -> Any:
    optimizer = torch.optim.AdamW(module.parameters(), lr=0.01)
    return [optimizer], [torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 2)]


@pytest.mark.parametrize(
    ("configure", "says"),
    [
        (
            lambda m: torch.optim.SGD(m.parameters(), 0.1, 0.9, weight_decay=0.1),
            "SGD .parameter group 0. does not subtract",
        ),
        (lambda m: torch.optim.Adam(m.parameters(), 0.1, weight_decay=0.1), "Adam .parameter group 0. does not"),
        (lambda m: LAMB(m.parameters(), 0.1), "LAMB .parameter group 0. does not subtract"),
        (lambda m: LARS(m.parameters(), 0.1, weight_decay=0.1), "LARS .parameter group 0. does not subtract"),
        (lambda m: torch.optim.AdamW(m.parameters(), 0.1, weight_decay=0), "every parameter group has weight_decay=0"),
        (_warm_restarts, "CosineRestarts"),
    ],
)
def test_what_has_no_such_decay_is_refused(configure: Callable[[LightningModule], Any], says: str) -> None:
    with pytest.raises(MisconfigurationException, match=says):
        decays(NormalizedWeightDecay(), configure=configure)


@pytest.mark.parametrize(
    ("make", "apart"),
    [
        (lambda p: torch.optim.AdamW(p, fused=True), True),
        (lambda p: torch.optim.Adam(p, decoupled_weight_decay=True), True),
        (lambda p: torch.optim.Muon(p), True),
        (lambda p: pytorch_optimizer.Lion(p), True),
        (lambda p: pytorch_optimizer.AdaBelief(p, fixed_decay=True), False),
        (lambda p: pytorch_optimizer.Prodigy(p), False),
        (lambda p: torch.optim.NAdam(p, weight_decay=0.1), False),
        (lambda p: torch.optim.SGD(p, 0.1), True),  # without momentum L2 is the same as a decay
        (lambda p: torch.optim.SGD(p, 0.1, momentum=0.5), False),
        (lambda p: torch.optim.Adafactor(p), False),
        (lambda p: torch.optim.LBFGS(p), False),
    ],
)
def test_whether_the_decay_is_apart_from_the_step_is_tried_out(make: Callable[[Any], Any], apart: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(3, 2))
    optimizer = make([weight])
    before = torch.random.get_rng_state()
    assert decays_apart_from_step(optimizer, optimizer.param_groups[0]) == apart
    assert torch.equal(weight, torch.ones(3, 2))
    assert not optimizer.state.get(weight)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_muon_decays_by_the_norm() -> None:
    """As AdamW's: torch multiplies a Muon's decay by its learning rate too."""
    logged = decays(NormalizedWeightDecay(), configure=lambda m: torch.optim.Muon(_matrices(m), 0.1))
    assert logged == decays(NormalizedWeightDecay(), configure=lambda m: torch.optim.AdamW(_matrices(m), 0.1))


def _matrices(module: LightningModule) -> list[torch.nn.Parameter]:
    return [p for p in module.parameters() if p.ndim == 2]


def test_beside_a_method_that_chooses_the_base_learning_rate_it_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="chooses the base learning rate during the run"):
        decays(NormalizedWeightDecay(), ChoosesTheBase())


def test_adam_that_says_it_is_decoupled_is_taken() -> None:
    def configure(module: LightningModule) -> Any:
        return torch.optim.Adam(module.parameters(), lr=0.01, weight_decay=1.0, decoupled_weight_decay=True)

    assert decays(NormalizedWeightDecay(0.3), configure=configure)[0][0][1] != 1.0


@pytest.mark.parametrize("norm", [-0.1, float("nan"), float("inf")])
def test_a_norm_is_a_finite_number_from_zero(norm: float) -> None:
    with pytest.raises(ValueError, match="norm="):
        NormalizedWeightDecay(norm)
