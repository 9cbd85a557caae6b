"""The gauntlet's column for manual optimization with two optimizers: every row runs right, or is refused and why."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

from lightning_lr import CheckpointedStrategy, LayerwiseLRDecay
from tests.support.gauntlet import ROWS, Row
from tests.support.manual import Steps
from tests.support.toy import Toy, fit, weights

REFUSED = {
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
    return made


class OneByLightning(Toy):
    """Body and head are groups of one optimizer."""

    def __init__(self, row: Row) -> None:
        super().__init__()
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
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
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
