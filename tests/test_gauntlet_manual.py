"""The gauntlet's column for manual optimization with two optimizers: every row runs right, or is refused and why."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

import lightning_lr
from lightning_lr import (
    BatchSizeRamp,
    CheckpointedStrategy,
    GhostBatchNorm,
    GradientNoiseScale,
    LayerwiseLRDecay,
    MethodCallback,
    StepRamp,
)
from tests.support.gauntlet import ROWS, Row
from tests.support.manual import Steps
from tests.support.toy import Toy, fit, weights

OTHERS = [
    Row("ghost-batch-norm", lambda: [GhostBatchNorm(4)], lambda: [], None, []),
    Row("noise-scale", lambda: [GradientNoiseScale()], lambda: [], None, []),
    Row(
        "ramp-by-the-batch",
        lambda: [BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=32)],
        lambda: [],
        None,
        [],
    ),
    Row("bare", lambda: [], lambda: [], None, []),
]
"""What changes no learning rate, and so has no row in the gauntlet."""
REFUSED = {
    "critical-batch-and-schedule": "branches make updates that the run does not notice",
    "search": "returned 2 optimizers, and the race finds one learning rate",
    "compression-auto": "under manual optimization the updates are made in it",
}


def made_like(optimizer: Optimizer, params: Any) -> Optimizer:
    allowed = inspect.signature(type(optimizer).__init__).parameters
    settings = {name: value for name, value in optimizer.defaults.items() if name in allowed}
    return type(optimizer)(params, **settings)


def callbacks(row: Row) -> list[Any]:
    made = row.make()
    for callback in made:
        if isinstance(callback, LayerwiseLRDecay) and callback.layers == "auto":
            callback.layers = ["body", "head"]  # else each optimizer's layers are those of its own part
        if isinstance(callback, GradientNoiseScale):
            callback.optimizers = [0]  # one has to be named
    return made


class OneByLightning(Toy):
    """Body and head are groups of one optimizer."""

    def __init__(self, row: Row) -> None:
        super().__init__()
        if row.name == "ghost-batch-norm":
            self.body = nn.Sequential(self.body, nn.BatchNorm1d(8))
        self.like = Toy(row.configure).configure_optimizers()

    def configure_optimizers(self) -> Any:
        return made_like(self.like, [{"params": list(part.parameters())} for part in (self.body, self.head)])


class TwoByHand(OneByLightning):
    """Body and head have an optimizer each, stepped by hand."""

    def __init__(self, row: Row) -> None:
        super().__init__(row)
        self.automatic_optimization = False

    def configure_optimizers(self) -> Any:
        return [made_like(self.like, list(part.parameters())) for part in (self.body, self.head)]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        body, head = self.optimizers()
        body.zero_grad()
        head.zero_grad()
        loss = super().training_step(batch, batch_idx)
        self.manual_backward(loss)
        body.step()
        head.step()
        return loss


@pytest.mark.filterwarnings("ignore:.*repeated blocks", "ignore:AdaptiveWarmup")
@pytest.mark.parametrize("row", [*ROWS, *OTHERS], ids=lambda row: row.name)
def test_two_optimizers_by_hand_are_two_groups_of_one(row: Row) -> None:
    def trained(module: Toy) -> tuple[torch.Tensor, Steps]:
        steps = Steps()
        strategy = {} if row.policy is None else {"strategy": CheckpointedStrategy(row.policy)}
        fit([*callbacks(row), steps], module=module, **strategy)
        return weights(module), steps

    if row.name in REFUSED:
        with pytest.raises(MisconfigurationException, match=REFUSED[row.name]):
            trained(TwoByHand(row))
        return
    one, wanted = trained(OneByLightning(row))
    two, got = trained(TwoByHand(row))
    assert len(got.of[0]) == len(got.of[1]) == len(wanted.of[0]) > 0
    for update, lrs in enumerate(wanted.of[0]):
        assert [*got.of[0][update], *got.of[1][update]] == lrs, update
    assert torch.equal(two, one)
    if row.name == "ghost-batch-norm":
        assert not torch.equal(one, trained_bare()), "ghosts are at work"


def trained_bare() -> torch.Tensor:
    row = OTHERS[0]
    module = OneByLightning(row)
    fit([], module=module)
    return weights(module)


def test_every_method_is_tried() -> None:
    """Every callback of the package stands in a row here, in one of the gauntlet, or is refused."""
    tried = {type(callback) for row in [*ROWS, *OTHERS] for callback in row.make()}
    ours = {
        thing
        for name in lightning_lr.__all__
        if isinstance(thing := getattr(lightning_lr, name), type) and issubclass(thing, MethodCallback)
    }
    assert ours - {MethodCallback} <= tried
