"""`LearningRateScaling` by the batch that updates really have, and the square-root rule up to its limit."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_lr import BatchSizeRamp, LearningRateScaling, NormalizedWeightDecay, StepRamp, scaling
from lightning_lr.progress import EpochShape, RunShape
from tests.support.toy import Probe, Stream, Toy, data, fit

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
LR = 0.05
REAL = [
    # samples, loader batch, accumulation, other arguments of the Trainer, reference, k
    (60, 10, 8, {}, 10, 6.0),  # an epoch shorter than the accumulation
    (100, 128, 1, {}, 32, 3.125),  # a loader's batch above its data
    (25, 10, 4, {}, 10, 2.5),
    (100, 10, 8, {"limit_train_batches": 3}, 10, 3.0),
    (61, 8, 3, {}, 8, 3.0),  # a cut window at the end of an epoch keeps the k of a whole one
    (64, 8, 2, {}, 4, 4.0),
]


@pytest.mark.parametrize(("samples", "batch", "accumulation", "others", "reference", "k"), REAL)
def test_k_is_that_of_the_samples_an_update_has(
    samples: int, batch: int, accumulation: int, others: dict[str, Any], reference: int, k: float
) -> None:
    probe = Probe()
    loader = DataLoader(data(samples), batch_size=batch)
    scale = LearningRateScaling(reference, warmup_epochs=1)
    fit([scale, probe], loader=loader, accumulate_grad_batches=accumulation, max_epochs=3, **others)
    assert probe.first[-1] == pytest.approx(LR * k, rel=1e-12)


def test_k_with_a_last_batch_that_is_dropped() -> None:
    probe = Probe()
    loader = DataLoader(data(29), batch_size=10, drop_last=True)
    fit([LearningRateScaling(10, warmup_epochs=0), probe], loader=loader, accumulate_grad_batches=8, max_epochs=2)
    assert probe.first[-1] == pytest.approx(LR * 2.0, rel=1e-12)


def test_k_beside_a_ramp_whose_first_batch_is_more_than_the_data() -> None:
    probe = Probe()
    loader = DataLoader(data(100), batch_size=128)
    ramp = BatchSizeRamp(StepRamp([1], mode="decay"), max_batch_size=128)
    fit([LearningRateScaling(32, warmup_epochs=0), ramp, probe], loader=loader, max_epochs=2)
    assert probe.first == pytest.approx([LR * 3.125, LR * 3.125 / 5], rel=1e-12)


def test_k_over_iterable_data_of_known_and_unknown_length() -> None:
    for arguments, k in (({"limit_train_batches": 3, "max_epochs": 2}, 3.0), ({"max_steps": 2, "max_epochs": -1}, 4.0)):
        probe = Probe()
        loader = DataLoader(Stream(80), batch_size=10)
        fit([LearningRateScaling(10, warmup_epochs=0), probe], loader=loader, accumulate_grad_batches=4, **arguments)
        assert probe.first[-1] == pytest.approx(LR * k, rel=1e-12)


@pytest.mark.parametrize(("samples", "batch", "accumulation", "others", "reference", "k"), REAL)
def test_the_decay_is_that_of_the_samples_an_update_has(
    samples: int, batch: int, accumulation: int, others: dict[str, Any], reference: int, k: float
) -> None:
    probe = Probe("weight_decay")
    module = Toy(lambda m: torch.optim.AdamW(m.parameters(), lr=LR, weight_decay=0.1))
    loader = DataLoader(data(samples), batch_size=batch)
    fit([NormalizedWeightDecay(0.03), probe], module=module, loader=loader, accumulate_grad_batches=accumulation,
        max_epochs=3, **others)  # fmt: skip
    total = 3 * min(samples, batch * others.get("limit_train_batches", 1000))
    wanted = 0.03 * math.sqrt(k * reference / total) / LR
    assert probe.first == pytest.approx([wanted] * len(probe.first), rel=1e-12)


def test_accumulation_that_changes_with_the_epoch_is_met_by_the_first_epoch() -> None:
    shape = RunShape(EpochShape(6, 10, 60), lambda epoch: 8 if epoch == 0 else 2, max_epochs=3)
    assert shape.batch_size == 60
    assert shape.batch_at(0, 0) == (60, 10, 6)
    assert shape.batch_at(1, 4) == (20, 10, 2)


LIMITS = [(0.9, 10), (0.8, 5), (0.95, 20), (0.98, 50), (0.99, 100), (0.995, 200), (0.999, 1000)]


@pytest.mark.parametrize(("beta", "k"), LIMITS)
def test_the_square_root_rule_takes_the_largest_k_that_its_message_allows(beta: float, k: int) -> None:
    assert scaling.scaled_betas((beta, 0.9999), k) == (0.0, pytest.approx(1 - k * 1e-4, rel=1e-9))
    with pytest.raises(ValueError, match=rf"beta={beta:g} .* it holds for k <= {k} with this beta"):
        scaling.scaled_betas((beta, 0.9999), k * 1.001)
    assert scaling.scaled_betas((beta, 0.9999), k * 0.999)[0] > 0


def test_what_the_message_prints_is_taken_for_any_beta() -> None:
    for beta in (0.93, 0.87, 0.9123, 1 - 1 / 3):
        with pytest.raises(ValueError, match="it holds for k <= ") as told:
            scaling.scaled_betas((beta, 0.99999), 100)
        limit = float(str(told.value).split("k <= ")[1].split(" ")[0])
        assert scaling.scaled_betas((beta, 0.99999), limit)[0] == 0.0


def test_adam_at_the_limit_trains() -> None:
    probe = Probe("lr", "betas", "eps")
    module = Toy(lambda m: torch.optim.AdamW(m.parameters(), lr=LR, betas=(0.95, 0.999)))
    scale = LearningRateScaling(2, lr_rule="sqrt", warmup_epochs=0)
    fit([scale, probe], module=module, loader=DataLoader(data(80), batch_size=40), max_epochs=1)
    lr, betas, eps = probe.series[-1][0]
    assert lr == pytest.approx(LR * math.sqrt(20), rel=1e-12)
    assert betas == (0.0, pytest.approx(0.98, rel=1e-12))
    assert eps == pytest.approx(1e-8 / math.sqrt(20), rel=1e-12)
