"""A copy of the module that is made while it trains, or a pickle, is one of the module as the user wrote it.

What a method puts in the place of the module's own methods belongs to the module that trains. A copy that took it along
would act on the original: an optimizer made of a copy would hold the original's parameters.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim.lr_scheduler import ConstantLR

from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    CriticalBatchSize,
    GhostBatchNorm,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateSchedule,
    LearningRateSearch,
    NormalizedWeightDecay,
    StepRamp,
)
from lightning_lr.patching import override_on_instance
from tests.support.toy import quiet

pytestmark = pytest.mark.filterwarnings("ignore")

CALLBACKS: dict[str, Callable[[], Callback]] = {
    "schedule": partial(LearningRateSchedule, Constant()),
    "layerwise": partial(LayerwiseLRDecay, 0.5),
    "unfreezing": GradualUnfreezing,
    "ghosts": partial(GhostBatchNorm, 2),
    "hypergradient": HypergradientDescent,
    "noise scale": GradientNoiseScale,
    "critical batch": partial(CriticalBatchSize, at=(0.1,), budget=1.0),
    "search": partial(LearningRateSearch, budget=1.0),
    "ramp": partial(BatchSizeRamp, StepRamp([1], factor=2)),
    "compression": partial(ActivationCompression, bits=8),
    "warm-up": partial(AdaptiveWarmup, restore_best=True),
    "decay": NormalizedWeightDecay,
}


class Layered(LightningModule):
    """Blocks with batch norm and a head."""

    def __init__(self, scheduled: bool = False) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh()) for _ in range(3))
        self.head = nn.Linear(4, 1)
        self.scheduled = scheduled

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        result: Tensor = self.head(x)
        return result

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return (self(batch) - 1).square().mean()

    def train_dataloader(self) -> Any:
        data = torch.randn(64, 4, generator=torch.Generator().manual_seed(0))
        return torch.utils.data.DataLoader(data, batch_size=4)  # type: ignore[arg-type]

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        return ([optimizer], [ConstantLR(optimizer)]) if self.scheduled else optimizer


class Copies(Callback):
    """Does something with the module once, at the start of the second epoch."""

    def __init__(self, act: Callable[[Trainer, LightningModule], Any]) -> None:
        self.act = act
        self.found: Any = None

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch == 1:
            self.found = self.act(trainer, pl_module)


def _train(act: Callable[[Trainer, LightningModule], Any], *callbacks: Callback, **arguments: Any) -> Any:
    torch.manual_seed(0)
    module, copies = Layered(arguments.pop("scheduled", False)), Copies(act)
    Trainer(**quiet(callbacks=[*callbacks, copies], max_epochs=2, **arguments)).fit(module)
    return copies.found


def _belongs_to_itself(trainer: Trainer, module: LightningModule) -> None:
    twin = copy.deepcopy(module)
    own, others = set(map(id, twin.parameters())), set(map(id, module.parameters()))
    made = [id(p) for group in twin.configure_optimizers().param_groups for p in group["params"]]  # type: ignore
    assert own.issuperset(made)
    assert not others.intersection(made)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.fill_(0.0)
    gradients = [p.grad for p in module.parameters()]
    loss = twin.training_step(torch.ones(8, 4), 0)
    assert float(loss.detach()) == 1.0  # type: ignore[union-attr]  # of weights that are 0, whatever the original's are
    loss.backward()  # type: ignore[union-attr]
    assert all(p.grad is before for p, before in zip(module.parameters(), gradients, strict=True))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_copy_made_in_a_run_acts_on_itself(name: str) -> None:
    _train(_belongs_to_itself, CALLBACKS[name]())


def test_a_copy_made_in_a_checkpointed_run_acts_on_itself() -> None:
    _train(_belongs_to_itself, strategy="checkpointed")


def _fit_a_copy(trainer: Trainer, module: LightningModule) -> tuple[bool, bool]:
    twin = copy.deepcopy(module)
    before = [p.detach().clone() for p in module.parameters()]
    Trainer(**quiet(max_epochs=1)).fit(twin)
    unchanged = all(torch.equal(p, b) for p, b in zip(module.parameters(), before, strict=True))
    trained = all(not torch.equal(p, b) for p, b in zip(twin.head.parameters(), before[-2:], strict=True))  # type: ignore
    return unchanged, trained


@pytest.mark.parametrize("name", ["layerwise", "critical batch"])
def test_a_copy_that_is_trained_by_another_trainer_leaves_the_run_alone(name: str) -> None:
    assert _train(_fit_a_copy, CALLBACKS[name]()) == (True, True)


def _pickled(trainer: Trainer, module: LightningModule) -> bool:
    loaded = pickle.loads(pickle.dumps(module))
    assert not set(map(id, loaded.parameters())).intersection(map(id, module.parameters()))
    x = torch.randn(8, 4)
    module.eval()
    loaded.eval()
    same = torch.equal(module(x), loaded(x))
    module.train()
    made = loaded.configure_optimizers()
    return same and {id(p) for group in made.param_groups for p in group["params"]} == set(map(id, loaded.parameters()))


@pytest.mark.parametrize("name", CALLBACKS)
def test_a_module_can_be_pickled_in_a_run(name: str) -> None:
    assert _train(_pickled, CALLBACKS[name]())


def test_a_module_can_be_pickled_in_a_checkpointed_run() -> None:
    assert _train(_pickled, strategy="checkpointed")


def _schedulers(trainer: Trainer, module: LightningModule) -> list[Any]:
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    scheduler.step()
    return [scheduler, copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler))]


def test_a_scheduler_that_is_copied_in_a_run_is_an_ordinary_one() -> None:
    original, *copies = _train(_schedulers, CALLBACKS["schedule"](), scheduled=True)
    for scheduler in copies:
        assert type(scheduler) is ConstantLR
        assert scheduler.optimizer is not original.optimizer
        assert scheduler.last_epoch == 2
        scheduler.step()
        assert scheduler.last_epoch == 3
    assert type(original) is ConstantLR


class Named:
    """Has a method, which may be replaced."""

    def __init__(self, name: str) -> None:
        self.name = name

    def who(self) -> str:
        return self.name


def test_what_the_user_put_in_the_place_of_a_method_goes_with_a_copy() -> None:
    first = Named("first")
    first.who = _shouted.__get__(first)  # type: ignore[method-assign]
    undo = override_on_instance(first, "who", lambda: "ours")
    assert first.who() == "ours"
    second = copy.deepcopy(first)
    second.name = "second"
    assert second.who() == "SECOND"
    undo()
    assert first.who() == "FIRST"
    first.who = partial(str, "theirs")  # type: ignore[method-assign]
    override_on_instance(first, "who", lambda: "ours")
    assert pickle.loads(pickle.dumps(first)).who() == "theirs"


def _shouted(self: Named) -> str:
    return self.name.upper()


def test_a_copy_of_a_replaced_method_alone_is_the_method() -> None:
    first = Named("first")
    override_on_instance(first, "who", lambda: "ours")
    assert copy.deepcopy(vars(first)["who"])() == "first"
