"""`BatchSizeRamp` beside batch norm, other methods of ours, and arguments of the Trainer that change the data."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from torch import nn

from lightning_lr import BatchSizeRamp, GhostBatchNorm, LearningRateScaling, StepRamp
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.test_batch_size_ramp import EPOCHS, RAMPS, SAMPLES, Wide, loader, plan, ramp

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Normed(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(self.norm(x))


@pytest.mark.parametrize(
    ("callbacks", "module", "warned"),
    [
        ([BatchSizeRamp(StepRamp([1]), 40)], Normed, True),
        ([BatchSizeRamp(StepRamp([1]), 40), GhostBatchNorm(8)], Normed, False),
        ([BatchSizeRamp(StepRamp([1]), 40, 8)], Normed, False),  # accumulation alone grows
        ([BatchSizeRamp(StepRamp([1]), 40)], Toy, False),
    ],
    ids=["grows", "ghosts", "accumulation", "no batch norm"],
)
def test_batch_norm_over_a_growing_micro_batch_is_warned_of(callbacks: Any, module: Any, warned: bool) -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(callbacks, module=module())
    assert any("attach GhostBatchNorm" in str(warning.message) for warning in caught) is warned


def test_learning_rate_scaling_takes_the_starting_batch_and_does_not_follow_the_ramp() -> None:
    arguments = RAMPS["steps, then accumulation"]
    alone, both = Probe(), Probe()
    fit([ramp(arguments), alone], module=Wide(), loader=loader(), max_epochs=EPOCHS)
    fit([LearningRateScaling(2, warmup_epochs=0), ramp(arguments), both], module=Wide(), loader=loader(),
        max_epochs=EPOCHS)  # fmt: skip
    assert both.first == pytest.approx([2 * lr for lr in alone.first], rel=1e-12)


def test_overfit_batches_ramps_over_the_few_samples() -> None:
    arguments = RAMPS["steps, micro-batch grows"]
    module, trainer = fit([ramp(arguments)], module=Wide(), loader=loader(shuffle=True), max_epochs=EPOCHS,
                          overfit_batches=6)  # fmt: skip
    assert isinstance(module, Wide)
    first = data(SAMPLES, dtype=torch.float64).tensors[0][:24, 0].tolist()
    assert [x for batch in module.seen for x in batch] == first * EPOCHS
    assert trainer.global_step == plan(arguments, dataset_size=24).total_updates


def test_resume_with_persistent_workers_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    class Everywhere(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx}.ckpt")

    arguments = RAMPS["steps within epochs"]
    torch.manual_seed(5)
    whole, trainer = fit([Everywhere(), ramp(arguments)], module=Wide(), loader=loader(2, shuffle=True),
                         max_epochs=EPOCHS)  # fmt: skip
    assert isinstance(whole, Wide)
    for at in (1, 7, trainer.fit_loop.total_batch_idx // 2, trainer.fit_loop.total_batch_idx - 1):
        torch.manual_seed(99)
        resumed, _ = fit([ramp(arguments)], module=Wide(), loader=loader(2, shuffle=True), max_epochs=EPOCHS,
                         ckpt_path=str(tmp_path / f"{at}.ckpt"))  # fmt: skip
        assert isinstance(resumed, Wide)
        assert resumed.seen == whole.seen[-len(resumed.seen) :], at
        assert torch.equal(weights(resumed), weights(whole)), at
