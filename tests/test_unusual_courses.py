"""Runs that take an unusual course: the learning rate of each update is that of its place, wherever the loop is.

The oracle is the place itself, by the Trainer's own counters: epoch e of E and micro-batch b of n give (e + b / n) / E.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import BatchSizeRamp, LearningRateSchedule, Polynomial, StepRamp
from tests.support.toy import quiet

pytestmark = pytest.mark.filterwarnings("ignore")


class Numbers(LightningModule):
    """Writes down the numbered samples of each epoch; the loader may be another in each."""

    def __init__(self, lengths: tuple[int, ...] = (6,), batch_size: int = 1) -> None:
        super().__init__()
        self.weight = nn.Linear(1, 1)
        self.lengths, self.batch_size = lengths, batch_size
        self.seen: dict[int, list[int]] = {}
        self.raises: dict[str, tuple[int, ...]] = {}

    def _raise(self, where: str, *place: int) -> None:
        if self.raises.get(where) == place:
            del self.raises[where]
            raise RuntimeError(where)

    def train_dataloader(self) -> Any:
        length = self.lengths[min(self.trainer.current_epoch, len(self.lengths) - 1)] * self.batch_size
        return DataLoader(TensorDataset(torch.arange(float(length)).unsqueeze(1)), batch_size=self.batch_size)

    def val_dataloader(self) -> Any:
        return DataLoader(TensorDataset(torch.ones(2, 1)))

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self._raise("validation", self.trainer.current_epoch)

    def on_train_epoch_start(self) -> None:
        self._raise("epoch start", self.trainer.current_epoch)

    def on_train_epoch_end(self) -> None:
        self._raise("epoch end", self.trainer.current_epoch)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self._raise("training", self.trainer.current_epoch, batch_idx)
        self.seen.setdefault(self.trainer.current_epoch, []).extend(int(x) for x in batch[0].flatten())
        return self.weight(torch.ones(1, 1)).sum() * 0

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=1.0)


class Places(Callback):
    """Epoch, first micro-batch and learning rate of each update, and the rate that a linear decay has at its place."""

    def __init__(self, epochs: int) -> None:
        self.epochs, self.first = epochs, None  # type: ignore[var-annotated]
        self.rows: list[tuple[int, int]] = []
        self.lr: list[float] = []
        self.right: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first = None

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.first = batch_idx if self.first is None else self.first

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def note(optimizer: Any, args: Any, kwargs: Any) -> None:
            assert self.first is not None
            self.rows.append((trainer.current_epoch, self.first))
            self.lr.append(optimizer.param_groups[0]["lr"])
            place = trainer.current_epoch + self.first / trainer.num_training_batches
            self.right.append(1 - place / self.epochs)
            self.first = None

        self._hook = trainer.optimizers[0].register_step_post_hook(note)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._hook.remove()


def schedule() -> LearningRateSchedule:
    return LearningRateSchedule(Polynomial(power=1.0))


def ramp() -> BatchSizeRamp:
    return BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=16)


def trainer_with(*callbacks: Callback, **arguments: Any) -> Trainer:
    saves = any(isinstance(callback, ModelCheckpoint | OnExceptionCheckpoint) for callback in callbacks)
    arguments = {"max_epochs": 3, "num_sanity_val_steps": 0, "enable_checkpointing": saves, **arguments}
    return Trainer(**quiet(callbacks=list(callbacks), **arguments))


def fails(fit: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"training|validation|epoch"):
        fit()


BROKEN = {
    "training": (1, 3), "validation": (1,), "epoch start": (1,), "epoch end": (1,)
}  # fmt: skip


@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_a_fit_that_failed_goes_on_by_place_in_the_same_trainer(where: str, interval: float) -> None:
    places, module = Places(3), Numbers()
    module.raises[where] = BROKEN[where]
    trainer = trainer_with(schedule(), places, val_check_interval=interval)
    fails(lambda: trainer.fit(module))
    trainer.validate(module, verbose=False)
    trainer.fit(module)
    assert places.lr == pytest.approx(places.right, abs=1e-12)
    assert places.rows[-6:] == [(2, batch) for batch in range(6)]


@pytest.mark.parametrize("where", BROKEN)
def test_a_ramp_that_failed_reads_the_rest_once(where: str) -> None:
    module = Numbers(batch_size=4)
    module.raises[where] = (1, 1) if where == "training" else (1,)
    trainer = trainer_with(ramp())
    fails(lambda: trainer.fit(module))
    module.seen = {}
    trainer.fit(module)
    again = module.seen.get(1, [])
    assert len(set(again)) == len(again)
    assert module.seen[2] == list(range(24))


@pytest.mark.parametrize("where", BROKEN)
@pytest.mark.parametrize("interval", [1.0, 0.5, 2])
@pytest.mark.parametrize("make", [schedule, ramp])
def test_a_checkpoint_of_an_exception_is_gone_on_from_by_place(
    where: str, interval: float, make: Callable[[], Callback], tmp_path: Path
) -> None:
    module = Numbers(batch_size=4)
    module.raises[where] = (1, 1) if where == "training" else (1,)
    save = OnExceptionCheckpoint(tmp_path, "broken")
    fails(lambda: trainer_with(make(), save, val_check_interval=interval).fit(module))
    module, places = Numbers(batch_size=4), Places(3)
    trainer_with(make(), places, val_check_interval=interval).fit(module, ckpt_path=str(tmp_path / "broken.ckpt"))
    assert module.seen[2] == list(range(24))
    if make is schedule:
        assert places.lr == pytest.approx(places.right, abs=1e-12)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_another_accumulation_after_an_exception_inside_an_update(accumulation: int, tmp_path: Path) -> None:
    module = Numbers()
    module.raises["training"] = (1, 3)
    saved = trainer_with(schedule(), OnExceptionCheckpoint(tmp_path, "broken"), accumulate_grad_batches=2)
    fails(lambda: saved.fit(module))
    places = Places(3)
    trainer_with(schedule(), places, accumulate_grad_batches=accumulation).fit(
        Numbers(), ckpt_path=str(tmp_path / "broken.ckpt")
    )
    rows = [row for row in places.rows if row[0] == 2]
    assert rows == [(2, start) for start in range(0, 6, accumulation)]
    assert places.lr[-len(rows) :] == pytest.approx(places.right[-len(rows) :], abs=1e-12)
    assert places.lr == sorted(places.lr, reverse=True)


def test_another_accumulation_scheduler_after_an_epoch(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    trainer_with(schedule(), GradientAccumulationScheduler({0: 1, 1: 2, 2: 4}), save).fit(Numbers())
    places = Places(3)
    trainer_with(schedule(), GradientAccumulationScheduler({0: 3}), places).fit(
        Numbers(), ckpt_path=str(tmp_path / "epoch=0.ckpt")
    )
    assert places.rows == [(1, 0), (1, 3), (2, 0), (2, 3)]
    assert places.lr == pytest.approx(places.right, abs=1e-12)


@pytest.mark.parametrize("lengths", [(4, 0, 4), (4, 4, 8), (3, 7, 2)], ids=str)
def test_reloaded_loaders_also_an_empty_one(lengths: tuple[int, ...]) -> None:
    bare, places = Places(3), Places(3)
    trainer_with(bare, reload_dataloaders_every_n_epochs=1).fit(Numbers(lengths))
    trainer_with(schedule(), places, reload_dataloaders_every_n_epochs=1).fit(Numbers(lengths))
    assert places.rows == bare.rows
    assert places.lr == pytest.approx(places.right, abs=1e-12)


def test_one_object_in_two_trainers_by_turns() -> None:
    shared, first, second = schedule(), Places(4), Places(3)
    module, trainer = Numbers(), trainer_with(shared, first, max_epochs=2)
    trainer.fit(module)
    trainer_with(shared, second).fit(Numbers())
    made, trainer.fit_loop.max_epochs = len(first.rows), 4
    trainer.fit(module)
    assert second.lr == pytest.approx(second.right, abs=1e-12)
    assert first.lr[made:] == pytest.approx(first.right[made:], abs=1e-12)
    assert first.rows[-1] == (3, 5)


def test_a_stop_by_hand_and_a_second_fit() -> None:
    class Stop(Callback):
        asked = False

        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
            if (trainer.current_epoch, batch_idx) == (1, 2) and not self.asked:
                self.asked = trainer.should_stop = True

    places, module = Places(3), Numbers()
    trainer = trainer_with(schedule(), Stop(), places)
    trainer.fit(module)
    trainer.should_stop = False
    trainer.fit(module)
    assert places.lr == pytest.approx(places.right, abs=1e-12)
    assert places.rows[-6:] == [(2, batch) for batch in range(6)]
