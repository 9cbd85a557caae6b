"""What an update costs beside the training step, in numbers that no other work on the machine disturbs."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import Cosine, LayerwiseLRDecay, LearningRateSchedule, MethodCallback
from lightning_lr.learning_rate import HyperparameterWriter


class Linears(LightningModule):
    """Fifty tensors in so many groups."""

    def __init__(self, groups: int = 1) -> None:
        super().__init__()
        self.net = nn.Sequential(*[nn.Linear(4, 4) for _ in range(25)])
        self.groups = groups

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()

    def configure_optimizers(self) -> AdamW:
        parameters = list(self.net.parameters())
        return AdamW([{"params": parameters[i :: self.groups]} for i in range(self.groups)], lr=1e-3)


def fit(callbacks: list[Callback], updates: int, groups: int = 1, module: LightningModule | None = None) -> None:
    trainer = Trainer(
        max_steps=updates,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module or Linears(groups), DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=2))


class Calls(Callback):
    """Counts the calls, of Python and of C functions, that the package makes in five updates; the first callback."""

    def __init__(self) -> None:
        self.calls = 0

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        sys.setprofile(self._count if 3 <= batch_idx < 8 else None)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        sys.setprofile(None)

    def _count(self, frame: FrameType, event: str, argument: Any) -> None:
        self.calls += event in ("call", "c_call") and "/lightning_lr/" in frame.f_code.co_filename


def calls_per_update(callbacks: list[Callback], groups: int) -> float:
    counter = Calls()
    try:
        fit([counter, *callbacks], 9, groups)
    finally:
        sys.setprofile(None)
    return counter.calls / 5


# 168 and 7 (Python 3.11, Lightning 2.6.6); 217 and 20 before groups were looked at in whole lists
def test_a_schedule_is_few_calls_an_update_and_fewer_for_each_further_group() -> None:
    one, fifty = (calls_per_update([LearningRateSchedule(Cosine())], groups) for groups in (1, 50))
    assert one <= 180
    assert fifty - one <= 49 * 8


class Counted(dict[str, Any]):
    """A parameter group that counts what is written into it."""

    writes = 0

    def __setitem__(self, key: str, value: Any) -> None:
        type(self).writes += 1
        super().__setitem__(key, value)


def counted_writer(groups: int) -> HyperparameterWriter:
    optimizer = SGD([{"params": [nn.Parameter(torch.zeros(1))]} for _ in range(groups)], lr=1.0)
    optimizer.param_groups = [Counted(group) for group in optimizer.param_groups]
    return HyperparameterWriter(optimizer)


def test_what_is_written_already_is_not_written_again() -> None:
    writer = counted_writer(3)
    writer.set_multiplier("schedule", 0.5)
    writer.set_multiplier("layers", [1.0, 0.5, 0.25])
    Counted.writes = 0
    writer.write()
    assert Counted.writes == 3
    writer.set_multiplier("schedule", 0.5)
    writer.set_multiplier("layers", [1.0, 0.5, 0.25])
    writer.write()
    writer.settle()
    assert Counted.writes == 3
    writer.optimizer.param_groups[1]["lr"] = 4.0  # by hand: one more write, of ours
    writer.write()
    assert Counted.writes == 3 + 1 + 3
    assert writer.effective() == [0.5, 1.0, 0.125]
    writer.remove_multiplier("schedule")
    writer.write()
    assert writer.effective() == [1.0, 2.0, 0.25]


def test_a_transform_is_asked_at_every_write() -> None:
    writer = counted_writer(2)
    decay = 0.1
    writer.set_group_transform("weight_decay", "test", lambda group, scheduled: decay * group)
    writer.write()
    decay = 0.2
    writer.write()
    assert writer.effective("weight_decay") == [0.0, 0.2]


@pytest.mark.parametrize("together", [False, True], ids=["schedule", "with layers"])
def test_an_update_is_one_write_of_each_group(together: bool) -> None:
    class Watched(Linears):
        def configure_optimizers(self) -> AdamW:
            optimizer = super().configure_optimizers()
            optimizer.param_groups = [Counted(group) for group in optimizer.param_groups]
            return optimizer

    counted = []
    for updates in (4, 9):
        Counted.writes = 0
        callbacks: list[MethodCallback] = [LearningRateSchedule(Cosine())]
        if together:
            callbacks.append(LayerwiseLRDecay(0.9, layers=["^net"], no_weight_decay=[]))
        fit(callbacks, updates, 3, Watched(3))
        counted.append(Counted.writes)
    assert counted[1] - counted[0] == 5 * 3
