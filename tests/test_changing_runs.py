"""Runs that change on the way, or are driven in ways that nobody plans for: the share of the budget at every update.

Every case trains and returns the progress before each update that was made, and what it should have been, by hand.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable
from fractions import Fraction as Share
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint, Timer
from lightning.pytorch.callbacks import timer as lightning_timer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_lr import (
    AdaptiveRamp,
    BatchSizeRamp,
    Constant,
    Cosine,
    CurveRamp,
    GhostBatchNorm,
    GradientNoiseScale,
    LearningRateScaling,
    LearningRateSchedule,
    Polynomial,
)
from tests.support.random_loops import Places, Ticking
from tests.support.toy import Probe, Stream, Toy, data, fit, quiet
from tests.test_run_places import EACH, _normed_adamw

pytestmark = pytest.mark.filterwarnings("ignore")

Found = tuple[list[float], list[Share]]
CASES: dict[str, Callable[[Path], Found]] = {}


def case(function: Callable[[Path], Found]) -> Callable[[Path], Found]:
    CASES[function.__name__] = function
    return function


@pytest.mark.parametrize("name", CASES)  # filled below, before pytest collects
def test_progress_is_the_share_of_the_budget(name: str, tmp_path: Path) -> None:
    found, expected = CASES[name](tmp_path)
    assert found == pytest.approx([float(share) for share in expected], abs=1e-12)


def loader(samples: int = 48, batch_size: int = 8, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(data(samples), batch_size=batch_size, **arguments)


def even(epochs: int, batches: int, accumulation: int = 1, first: int = 0) -> list[Share]:
    """Before each update of a run whose epochs are alike."""
    return [
        Share(epoch * batches + i, epochs * batches)
        for epoch in range(first, epochs)
        for i in range(0, batches, accumulation)
    ]


def steps(of: int, first: int = 0) -> list[Share]:
    return [Share(i, of) for i in range(first, of)]


class Sizes(LightningDataModule):
    """Another number of samples in each epoch; the last holds for all after it."""

    def __init__(self, *sizes: int) -> None:
        super().__init__()
        self.sizes = sizes

    def train_dataloader(self) -> Any:
        assert self.trainer is not None
        return loader(self.sizes[min(self.trainer.current_epoch, len(self.sizes) - 1)])


class Do(Callback):
    """Does something in a hook, at its n-th call where a number is given."""

    def __init__(self, hook: str, what: Callable[[Trainer], Any], at: int | None = None) -> None:
        self.calls = 0

        def called(trainer: Trainer, *args: Any) -> None:
            self.calls += 1
            if at is None or self.calls == at:
                what(trainer)

        setattr(self, hook, called)


def train(*callbacks: Callback, module: LightningModule | None = None, data: Any = None, **arguments: Any) -> Any:
    """A fit that writes down its places first of all; the Trainer, the module and the places."""
    places = Places()
    trainer = Trainer(**quiet(callbacks=[places, *callbacks], **arguments))
    module = module or Toy()
    _fit(trainer, module, data)
    return trainer, module, places


def _fit(trainer: Trainer, module: LightningModule, data: Any = None, **arguments: Any) -> None:
    if isinstance(data, LightningDataModule):
        trainer.fit(module, datamodule=data, **arguments)
    else:
        trainer.fit(module, data if data is not None else loader(), **arguments)


def set_epochs(epochs: int) -> Callable[[Trainer], None]:
    return lambda trainer: setattr(trainer.fit_loop, "max_epochs", epochs)


def set_steps(count: int) -> Callable[[Trainer], None]:
    return lambda trainer: setattr(trainer.fit_loop.epoch_loop, "max_steps", count)


def stop(trainer: Trainer) -> None:
    trainer.should_stop = True


# ---------------------------------------------------------------------- loaders that change between epochs
@case
def a_datamodule_with_fewer_samples_in_each_epoch(folder: Path) -> Found:
    _, _, places = train(data=Sizes(48, 24, 8), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    return places.updates, [*even(3, 6)[:6], *even(3, 3)[3:6], Share(2, 3)]


@case
def a_datamodule_reloaded_every_second_epoch(folder: Path) -> Found:
    _, _, places = train(data=Sizes(48, 48, 24), max_epochs=4, reload_dataloaders_every_n_epochs=2)
    return places.updates, [*even(4, 6)[:12], *even(4, 3, first=2)]


@case
def other_sizes_under_accumulation(folder: Path) -> Found:
    _, _, places = train(
        data=Sizes(48, 24, 72), max_epochs=3, reload_dataloaders_every_n_epochs=1, accumulate_grad_batches=4
    )
    return places.updates, [*even(3, 6, 4)[:2], Share(1, 3), *even(3, 9, 4, first=2)]


@case
def a_reloaded_loader_that_is_empty_ends_the_run(folder: Path) -> Found:
    trainer, _, places = train(data=Sizes(48, 0, 48), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert trainer.current_epoch == 2
    return places.updates, even(3, 6)[:6]


@case
def a_limit_set_between_two_fits(folder: Path) -> Found:
    trainer, module, places = train(max_epochs=2)
    trainer.limit_train_batches, trainer.fit_loop.max_epochs = 3, 4
    _fit(trainer, module)
    return places.updates, [*even(2, 6), *even(4, 3, first=2)]


@case
def another_batch_size_in_the_second_fit(folder: Path) -> Found:
    trainer, module, places = train(max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    _fit(trainer, module, loader(batch_size=4))
    return places.updates, [*even(2, 6), *even(4, 12, first=2)]


# ---------------------------------------------------------------------- limits
@case
def overfit_batches(folder: Path) -> Found:
    _, _, places = train(data=loader(shuffle=True), max_epochs=3, overfit_batches=2)
    return places.updates, even(3, 2)


@case
def a_share_of_overfit_batches(folder: Path) -> Found:
    _, _, places = train(max_epochs=2, overfit_batches=0.5)
    return places.updates, even(2, 3)


@case
def half_of_the_batches_and_all_after_a_resume(folder: Path) -> Found:
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    train(save, max_epochs=4, limit_train_batches=0.5, enable_checkpointing=True)
    places = Places()
    fit([places], max_epochs=4, limit_train_batches=1.0, ckpt_path=str(folder / "epoch=1.ckpt"))
    return places.updates, even(4, 6, first=2)


@case
def other_data_after_a_resume(folder: Path) -> Found:
    """Shorter epochs (the rest was once at rate 0), and longer ones (the curve once never came to its end)."""
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    train(save, max_epochs=3, enable_checkpointing=True)
    shorter, longer = Places(), Places()
    fit([shorter], loader=loader(24), ckpt_path=str(folder / "epoch=1.ckpt"))
    fit([longer], loader=loader(192), ckpt_path=str(folder / "epoch=1.ckpt"))
    return shorter.updates + longer.updates, [*even(3, 3, first=2), *even(3, 24, first=2)]


@case
def both_limits_at_the_same_update(folder: Path) -> Found:
    _, _, places = train(max_epochs=3, max_steps=18)
    return places.updates, even(3, 6)


@case
def more_accumulation_than_an_epoch_has(folder: Path) -> Found:
    _, _, places = train(max_epochs=3, accumulate_grad_batches=100)
    return places.updates, steps(3)


@case
def a_share_as_validation_interval_under_accumulation(folder: Path) -> Found:
    places = Places()
    fit([places], validation=loader(16), max_epochs=2, accumulate_grad_batches=4, val_check_interval=0.5)
    return places.updates, even(2, 6, 4)


@case
def a_validation_interval_over_epochs(folder: Path) -> Found:
    places = Places()
    fit([places], validation=loader(16), max_epochs=2, accumulate_grad_batches=5, val_check_interval=4,
        check_val_every_n_epoch=None)  # fmt: skip
    return places.updates, even(2, 6, 5)


# ---------------------------------------------------------------------- limits that move while training
@case
def more_epochs_from_the_end_of_the_last(folder: Path) -> Found:
    _, _, places = train(Do("on_train_epoch_end", set_epochs(4), at=2), max_epochs=2)
    return places.updates, [*even(2, 6), *even(4, 6, first=2)]


@case
def more_epochs_from_inside_an_epoch(folder: Path) -> Found:
    _, _, places = train(Do("on_train_batch_end", set_epochs(4), at=3), max_epochs=2)
    return places.updates, [*even(2, 6)[:3], *even(4, 6)[3:]]


@case
def more_steps_from_inside_an_epoch(folder: Path) -> Found:
    _, _, places = train(Do("on_train_batch_end", set_steps(20), at=3), max_steps=10)
    return places.updates, [*steps(10)[:3], *steps(20, first=3)]


@case
def fewer_epochs_from_the_start_of_one(folder: Path) -> Found:
    _, _, places = train(Do("on_train_epoch_start", set_epochs(3), at=2), max_epochs=6)
    return places.updates, [*even(6, 6)[:6], *even(3, 6, first=1)]


@case
def fewer_epochs_by_a_hook_of_the_module(folder: Path) -> Found:
    class Module(Toy):
        def on_train_epoch_start(self) -> None:
            if self.current_epoch == 1:
                self.trainer.fit_loop.max_epochs = 3

    _, _, places = train(module=Module(), max_epochs=6)
    return places.updates, [*even(6, 6)[:6], *even(3, 6, first=1)]


@case
def accumulation_set_by_a_callback(folder: Path) -> Found:
    def more(trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    _, _, places = train(Do("on_train_epoch_start", more), max_epochs=3)
    assert places.widths == pytest.approx([1 / 18] * 6 + [2 / 18] * 3 + [3 / 18] * 2, rel=1e-12)
    return places.updates, [*even(3, 6)[:6], *even(3, 6, 2)[3:6], *even(3, 6, 3)[4:]]


@case
def accumulation_set_by_a_callback_under_max_steps(folder: Path) -> Found:
    def more(trainer: Trainer) -> None:
        trainer.accumulate_grad_batches = 1 + trainer.current_epoch

    _, _, places = train(Do("on_train_epoch_start", more), max_steps=10)
    return places.updates, steps(10)


@case
def epochs_counted_before_the_first_fit(folder: Path) -> Found:
    places = Places()
    trainer = Trainer(**quiet(callbacks=[places], max_epochs=4))
    trainer.fit_loop.epoch_progress.current.processed = trainer.fit_loop.epoch_progress.current.completed = 2
    _fit(trainer, Toy())
    return places.updates, even(4, 6, first=2)


# ---------------------------------------------------------------------- ends that come early
@case
def stopped_inside_an_epoch_before_min_epochs(folder: Path) -> Found:
    _, _, places = train(Do("on_train_batch_end", stop, at=2), max_epochs=4, min_epochs=2)
    return places.updates, even(4, 6)[:12]


@case
def stopped_inside_an_epoch_before_min_steps(folder: Path) -> Found:
    _, _, places = train(Do("on_train_batch_end", stop, at=2), max_epochs=4, min_steps=9)
    return places.updates, even(4, 6)[:9]


@case
def stopped_inside_a_window(folder: Path) -> Found:
    _, _, places = train(Do("on_train_batch_end", stop, at=2), max_epochs=4, accumulate_grad_batches=3)
    return places.updates, []


@case
def stopped_inside_an_epoch_and_fitted_again(folder: Path) -> Found:
    """Lightning takes the epoch in which it was stopped for done."""
    trainer, module, places = train(Do("on_train_batch_end", stop, at=8), max_epochs=3)
    _fit(trainer, module)
    return places.updates, [*even(3, 6)[:8], *even(3, 6, first=2)]


@case
def an_epoch_ended_by_stop_iteration(folder: Path) -> Found:
    class Module(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if batch_idx == 4:
                raise StopIteration
            return super().training_step(batch, batch_idx)

    _, _, places = train(module=Module(), max_epochs=2)
    return places.updates, [Share(6 * epoch + i, 12) for epoch in (0, 1) for i in range(4)]


@case
def an_error_in_validation_and_a_second_fit(folder: Path) -> Found:
    class Module(Toy):
        calls = 0

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.calls += 1
            if self.calls == 7:
                raise RuntimeError

    places = Places()
    trainer = Trainer(**quiet(callbacks=[places], max_epochs=3, val_check_interval=0.5, num_sanity_val_steps=0))
    module = Module()
    with pytest.raises(RuntimeError):
        trainer.fit(module, loader(), loader(16))
    trainer.fit(module, loader(), loader(16))
    return places.updates, [*even(3, 6)[:12], *even(3, 6, first=1)]


@case
def a_timer_that_looks_at_the_end_of_epochs(folder: Path) -> Found:
    class AtEnds(Ticking):
        def __init__(self, seconds: int) -> None:
            Timer.__init__(self, {"seconds": seconds}, interval="epoch")
            self._ticks = 0.0

    places = Places()
    fit([AtEnds(10), places], max_epochs=-1)
    return places.updates, [min(Share(1), Share(i, 10)) for i in range(12)]


@case
def time_that_ends_before_the_epochs(folder: Path) -> Found:
    places = Places()
    fit([Ticking(8), places], max_epochs=4)
    return places.updates, steps(8)


@case
def time_in_a_second_fit(folder: Path) -> Found:
    """Lightning goes by the end of the first fit in the second, whose time would never be over."""
    now = [0.0]

    def tick(trainer: Trainer) -> None:
        now[0] += 1
        assert now[0] < 200, "endless"

    class Time:
        monotonic = staticmethod(lambda: now[0])

    real, lightning_timer.time = lightning_timer.time, Time  # type: ignore[assignment]
    try:
        trainer, module, places = train(Do("on_train_batch_start", tick), max_epochs=-1, max_time={"seconds": 9})
        now[0] += 100
        next(one for one in trainer.callbacks if isinstance(one, Timer))._duration = 12
        _fit(trainer, module)
    finally:
        lightning_timer.time = real
    return places.updates, [*steps(9), *steps(12)]


# ---------------------------------------------------------------------- steps and loaders of unusual kinds
@case
def updates_that_the_module_leaves_out(folder: Path) -> Found:
    """Lightning counts an update for each of its calls, whether the module steps or not."""

    class Module(Toy):
        def optimizer_step(self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Any = None) -> None:
            optimizer.step(closure=optimizer_closure) if batch_idx % 2 else optimizer_closure()

    _, _, by_epochs = train(module=Module(), max_epochs=2)
    _, _, by_steps = train(module=Module(), max_steps=6)
    return by_epochs.updates + by_steps.updates, [*even(2, 6)[1::2], *steps(6)[1::2]]


@case
def a_step_that_reads_the_loader_itself(folder: Path) -> Found:
    class Module(Toy):
        def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
            (x, y), _, _ = next(dataloader_iter)
            return torch.nn.functional.mse_loss(self(x), y)

    _, _, places = train(module=Module(), max_epochs=2)
    return places.updates, even(2, 6)


@case
def loaders_in_a_nest(folder: Path) -> Found:
    class Module(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return super().training_step(batch[0], batch_idx) + super().training_step(batch[1]["x"], batch_idx)

    _, _, places = train(module=Module(), data=[loader(16), {"x": loader()}], max_epochs=2, accumulate_grad_batches=4)
    return places.updates, even(2, 6, 4)


@case
def a_loader_of_ones_own(folder: Path) -> Found:
    class Own:
        def __len__(self) -> int:
            return 5

        def __iter__(self) -> Any:
            return iter(list(loader())[:5])

    _, _, places = train(data=Own(), max_epochs=2)
    return places.updates, even(2, 5)


@case
def batches_that_the_data_set_makes(folder: Path) -> Found:
    _, _, places = train(data=DataLoader([tuple(batch) for batch in loader()], batch_size=None), max_epochs=2)  # type: ignore[arg-type]
    return places.updates, even(2, 6)


# ---------------------------------------------------------------------- checkpoints
@case
def back_to_a_checkpoint_in_the_same_trainer(folder: Path) -> Found:
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    trainer, module, places = train(save, max_epochs=3, enable_checkpointing=True)
    _fit(trainer, module, ckpt_path=str(folder / "epoch=0.ckpt"))
    return places.updates, [*even(3, 6), *even(3, 6, first=1)]


@case
def the_last_checkpoint(folder: Path) -> Found:
    def save() -> ModelCheckpoint:
        return ModelCheckpoint(folder, save_last=True, every_n_train_steps=4)

    train(save(), max_epochs=1, enable_checkpointing=True)
    saved = torch.load(folder / "last.ckpt", weights_only=False)["global_step"]
    assert saved in (4, 6)  # of 2.6, and of 2.5, which saves at the end of the epoch once more
    places = Places()
    fit([places, save()], max_epochs=3, enable_checkpointing=True, ckpt_path="last")
    return places.updates, even(3, 6)[saved:]


@case
def the_checkpoint_of_a_cluster(folder: Path) -> Found:
    trainer, _, _ = train(Do("on_train_batch_end", stop, at=8), max_epochs=3)
    trainer.save_checkpoint(folder / "hpc_ckpt_1.ckpt")
    places = Places()
    fit([places], max_epochs=3, default_root_dir=folder, ckpt_path="hpc")
    return places.updates, even(3, 6, first=2)


@pytest.mark.parametrize("at", range(1, 11))
def test_scheduled_accumulation_goes_on_inside_an_epoch(at: int, tmp_path: Path) -> None:
    """Lightning's scheduler sets it when an epoch starts, and a resume inside one would make updates of 1 batch."""

    def gradual() -> GradientAccumulationScheduler:
        return GradientAccumulationScheduler({0: 1, 1: 2, 2: 4})

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    _, _, whole = train(gradual(), save, max_epochs=3, enable_checkpointing=True)
    assert whole.updates == pytest.approx(
        [float(s) for s in [*even(3, 6)[:6], *even(3, 6, 2)[3:6], *even(3, 6, 4)[4:]]]
    )
    places = Places()
    fit([gradual(), places], max_epochs=3, ckpt_path=str(tmp_path / f"step={at}.ckpt"))
    assert (places.updates, places.widths) == (whole.updates[at:], whole.widths[at:])


def test_a_warmup_of_a_run_that_time_ends_begins_with_its_first_update() -> None:
    """How long an update takes is known when its gradient is complete, and not before."""

    class Halves(Ticking):
        """Half of a second is over when a gradient is complete."""

        half = 0.0

        def time_elapsed(self, stage: Any = "train") -> float:
            return super().time_elapsed() + self.half

        def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.half = 0.5

        def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
            self.half = 0.0
            super().on_train_batch_end(trainer, *args, **kwargs)

    probe = Probe()
    fit([Halves(20), probe, LearningRateSchedule(Constant(warmup=0.5))], max_epochs=-1)
    expected = [0.05 * min(1, seconds / 10) for seconds in [0.5, *range(2, 21)]]
    assert probe.first == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("at", [None, 3, 6, 8])
def test_scaling_goes_on_with_the_batch_that_the_run_began_with(at: int | None, tmp_path: Path) -> None:
    """A reloaded loader of another batch size changes it in neither run; another loader at the resume does."""

    class Others(Sizes):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            return loader(48, self.sizes[self.trainer.current_epoch])

    def trained(data: Others, *more: Callback, reload: int = 1, **arguments: Any) -> list[float]:
        probe = Probe()
        trainer = Trainer(
            **quiet(
                callbacks=[LearningRateScaling(4, warmup_epochs=0), probe, *more], max_epochs=3,
                reload_dataloaders_every_n_epochs=reload, enable_checkpointing=bool(more),
            )
        )  # fmt: skip
        trainer.fit(Toy(), datamodule=data, **arguments)
        return [rate / 0.05 for rate in probe.first]

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = trained(Others(8, 16, 24), save)
    assert whole == pytest.approx([2.0] * (6 + 3 + 2), rel=1e-12)
    if at is not None:
        ckpt = str(tmp_path / f"step={at}.ckpt")
        assert trained(Others(8, 16, 24), ckpt_path=ckpt) == whole[at:]
        if at == 6:
            others = trained(Others(12, 12, 12), reload=0, ckpt_path=ckpt)
            assert others == pytest.approx([3.0] * 8, rel=1e-12)


def test_optimizers_that_are_replaced_while_training_are_refused() -> None:
    def replace(trainer: Trainer) -> None:
        trainer.strategy.setup_optimizers(trainer)

    with pytest.raises(MisconfigurationException, match="optimizer 0 of the Trainer was replaced"):
        train(LearningRateSchedule(Polynomial()), Do("on_train_epoch_start", replace, at=2), max_epochs=3)


@pytest.mark.parametrize("harm", [{"samples_seen": float("nan")}, {"window_samples": -8}, {"batch_size": "8"}, None])
def test_a_place_in_a_checkpoint_that_is_none_is_refused_by_name(harm: dict[str, Any] | None, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    train(LearningRateSchedule(Polynomial()), save, max_epochs=2, enable_checkpointing=True)
    path = tmp_path / "epoch=0.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    state = checkpoint["callbacks"]["LearningRateSchedule"]
    state["clock"].update(harm) if harm is not None else state.pop("clock")
    torch.save(checkpoint, path)
    name = "no clock" if harm is None else f"clock.{next(iter(harm))}"
    with pytest.raises(
        MisconfigurationException, match=f"LearningRateSchedule: its state in the checkpoint has {name}"
    ):
        fit([LearningRateSchedule(Polynomial())], max_epochs=2, ckpt_path=str(path))


def test_an_epoch_without_a_length_is_refused_in_words() -> None:
    class Turns(LightningDataModule):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            return loader() if self.trainer.current_epoch == 0 else DataLoader(Stream(32), batch_size=8)

    with pytest.raises(MisconfigurationException, match="max_epochs=2 counts epochs, and the train dataloader has no"):
        train(LearningRateSchedule(Polynomial()), data=Turns(), max_epochs=2, reload_dataloaders_every_n_epochs=1)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_end", "on_before_optimizer_step"])
def test_callbacks_can_be_pickled_inside_a_fit(name: str, hook: str) -> None:
    copies: list[bytes] = []
    callbacks = EACH[name]()

    def trained(callbacks: list[Callback], *more: Callback) -> list[Any]:
        probe, arguments = Probe(), {"accumulate_grad_batches": 2} if name == "noise scale" else {}
        fit([*callbacks, probe, *more], module=_normed_adamw(), max_epochs=3, **arguments)
        return probe.series

    first = trained(callbacks, Do(hook, lambda trainer: copies.append(pickle.dumps(callbacks)), at=1))
    again = pickle.loads(copies[0])
    assert len(copies[0]) < 5000, "a copy without the module and the Trainer"
    assert not isinstance(again[0], GhostBatchNorm) or "log" not in vars(again[0])
    assert trained(again) == first


@pytest.mark.parametrize("name", ["none of ours", "schedule", "ramp"])
def test_a_validation_that_was_interrupted_at_the_end_of_an_epoch_goes_on(name: str, tmp_path: Path) -> None:
    class Module(Toy):
        def __init__(self, fails: bool) -> None:
            super().__init__()
            self.fails, self.ran = fails, list[tuple[int, int]]()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.ran.append((self.current_epoch, len(batch[0])))
            return super().training_step(batch, batch_idx)

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            if self.fails and batch_idx == 1:
                raise RuntimeError
            self.ran.append((-1, batch_idx))

        def on_train_epoch_end(self) -> None:
            self.ran.append((-2, self.current_epoch))

    def trained(fails: bool, **arguments: Any) -> list[tuple[int, int]]:
        ours: dict[str, Callable[[], Callback]] = {
            "schedule": lambda: LearningRateSchedule(Polynomial()),
            "ramp": lambda: BatchSizeRamp(CurveRamp(Cosine(floor=1.0))),
        }
        callbacks = [OnExceptionCheckpoint(tmp_path), *([ours[name]()] if name in ours else [])]
        module = Module(fails)
        trainer = Trainer(**quiet(callbacks=callbacks, max_epochs=2, num_sanity_val_steps=0, enable_checkpointing=True))
        trainer.fit(module, loader(16), loader(16), **arguments)
        return module.ran

    with pytest.raises(RuntimeError):
        trained(True)
    again = trained(False, ckpt_path=str(tmp_path / "on_exception.ckpt"))
    # the batch that is left (Lightning counts it from 0), the end of that epoch, and the next one
    assert again == [(-1, 0), (-2, 0), (1, 8), (1, 8), (-1, 0), (-1, 1), (-2, 1)]


# ---------------------------------------------------------------------- a ramp whose run changes
class Batches(Toy):
    """Writes down the samples of each update, by epoch."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[int, int]] = []
        self.open = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.open += len(batch[0])
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.made.append((self.trainer.current_epoch, self.open))
        self.open = 0


def ramped(*callbacks: Callback, data: Any = None, **arguments: Any) -> tuple[list[tuple[int, int]], list[float]]:
    """Epoch and samples of each update under a cosine ramp, and the learning rates."""
    module, probe = Batches(), Probe()
    ramp = BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=24, max_micro_batch_size=8)
    trainer = Trainer(**quiet(callbacks=[ramp, probe, *callbacks], **arguments))
    _fit(trainer, module, data)
    return module.made, probe.first


def test_a_ramp_follows_an_end_that_is_moved_between_epochs() -> None:
    long = ramped(max_epochs=4)
    made, rates = ramped(Do("on_train_epoch_end", set_epochs(4), at=2), max_epochs=2)
    assert made[-5:] == long[0][-5:] == [(2, 16), (2, 21), (2, 11), (3, 24), (3, 24)]
    assert rates[-5:] == pytest.approx(long[1][-5:], rel=1e-12)
    assert [sum(n for at, n in made if at == epoch) for epoch in range(4)] == [48] * 4


def test_a_ramp_whose_end_is_moved_inside_an_epoch_says_when_it_follows() -> None:
    with pytest.warns(UserWarning, match="end of the run has been changed inside an epoch.*from the next epoch on"):
        made, rates = ramped(Do("on_train_batch_end", set_epochs(4), at=3), max_epochs=2)
    assert [sum(n for at, n in made if at == epoch) for epoch in range(4)] == [48] * 4
    long = ramped(max_epochs=4)
    assert (made[-5:], rates[-5:]) == (long[0][-5:], pytest.approx(long[1][-5:], rel=1e-12))


def test_an_empty_loader_ends_a_run_under_a_ramp() -> None:
    made, _ = ramped(data=Sizes(48, 0, 48), max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert sum(n for _, n in made) == 48


@pytest.mark.parametrize("sizes", [(48, 48, 8), (48, 8, 48)])
def test_an_adaptive_ramp_reads_fewer_samples_than_the_batch_it_has_grown_to(sizes: tuple[int, ...]) -> None:
    class Fours(Sizes):
        def train_dataloader(self) -> Any:
            assert self.trainer is not None
            return loader(self.sizes[self.trainer.current_epoch], 4)

    module = Batches()
    ramp = BatchSizeRamp(AdaptiveRamp(ratio=1e-9, check_every=2), max_batch_size=16, max_micro_batch_size=2)
    trainer = Trainer(
        **quiet(callbacks=[ramp, GradientNoiseScale()], max_epochs=3, reload_dataloaders_every_n_epochs=1)
    )
    trainer.fit(module, datamodule=Fours(*sizes))
    assert [sum(n for at, n in module.made if at == epoch) for epoch in range(3)] == list(sizes)
    assert max(n for _, n in module.made) == 16
