"""A ramp keeps what loader and Trainer say: `drop_last`, reloading, `val_check_interval`, what a mean is over."""

from __future__ import annotations

import warnings
from contextlib import suppress
from itertools import accumulate
from typing import Any

import lightning
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import lr_scheduler as sched
from torch.utils.data import DataLoader, Dataset, TensorDataset

from lightning_lr import (
    AdaptiveRamp,
    BatchSizeRamp,
    Cosine,
    CurveRamp,
    GradientNoiseScale,
    LearningRateSchedule,
    Polynomial,
    RampPlan,
    StepRamp,
)
from lightning_lr.batch_size import ValidationInterval
from tests.support.toy import Probe, Toy, data, fit, quiet, weights

pytestmark = pytest.mark.filterwarnings("ignore")


class Read(Callback):
    """How many samples each micro-batch of each epoch has."""

    def __init__(self) -> None:
        self.sizes: dict[int, list[int]] = {}

    def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        self.sizes.setdefault(trainer.current_epoch, []).append(len(batch[0]))


def ramp(**arguments: Any) -> BatchSizeRamp:
    return BatchSizeRamp(**{"schedule": StepRamp([1, 2], factor=2), "max_batch_size": 16, **arguments})


# ---------------------------------------------------------------------- drop_last
@pytest.mark.parametrize(("limit", "first"), [(1.0, 8), (3, 3)])
def test_a_batch_that_is_not_full_is_left_out_as_without_the_ramp(limit: float, first: int) -> None:
    read = Read()
    _, trainer = fit([ramp(), read], loader=DataLoader(data(33), batch_size=4, drop_last=True),
                     limit_train_batches=limit)  # fmt: skip
    full = first * 4
    assert read.sizes == {0: [4] * first, 1: [8] * (full // 8), 2: [16] * (full // 16)} or limit == 3
    assert min(size for sizes in read.sizes.values() for size in sizes) >= 4
    assert trainer.global_step == sum(map(len, read.sizes.values()))


def test_a_curve_under_drop_last_ends_with_the_last_update() -> None:
    module, progress = Toy(), []

    class Watch(Callback):
        def on_before_optimizer_step(self, trainer: Trainer, *args: Any) -> None:
            progress.append(callback._run.clock.progress)  # type: ignore[union-attr]

    callback = BatchSizeRamp(CurveRamp(Polynomial(power=1.0, floor=0.1)), max_batch_size=20)
    read = Read()
    fit([callback, Watch(), read], module=module, loader=DataLoader(data(49), batch_size=5, drop_last=True))
    assert min(size for sizes in read.sizes.values() for size in sizes) >= 5
    assert progress == sorted(progress)
    assert progress[-1] == 1.0
    assert progress[-2] < 1.0


def test_batch_norm_trains_under_drop_last() -> None:
    class Normed(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8))  # type: ignore[assignment]

    module, _ = fit([ramp()], module=Normed(), loader=DataLoader(data(49), batch_size=8, drop_last=True))
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize(("samples", "lone"), [(36, True), (40, False), (37, False)])
def test_a_lone_sample_that_grown_batches_leave_over_is_said_before_training(samples: int, lone: bool) -> None:
    module = Toy()
    module.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False))  # type: ignore[assignment]
    grows = ramp(schedule=StepRamp([1], factor=1.25))  # 4, then 5; of 37 samples the loader itself leaves one
    with warnings.catch_warnings(record=True) as said, suppress(ValueError):
        warnings.simplefilter("always")
        fit([grows], module=module, loader=DataLoader(data(samples), batch_size=4), max_epochs=2)
    found = [str(one.message) for one in said if "has one sample" in str(one.message)]
    assert [text.partition(" has")[0] for text in found] == ["BatchSizeRamp: micro-batch 7 of epoch 1"] * lone


def lone_samples_said(module: Toy, callbacks: list[Callback], *loaders: Any, **arguments: Any) -> list[str]:
    module.body = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8, affine=False))  # type: ignore[assignment]
    with warnings.catch_warnings(record=True) as said, suppress(ValueError):
        warnings.simplefilter("always")
        Trainer(**quiet(callbacks=callbacks, **arguments)).fit(module, *loaders)
    return [text.partition(" has")[0] for one in said if "has one sample" in (text := str(one.message))]


@pytest.mark.parametrize(("samples", "lone"), [(71, True), (72, False), (73, False)])
def test_a_lone_sample_that_a_measured_growth_leaves_over_is_said_when_it_grows(samples: int, lone: bool) -> None:
    """8, then 10 in micro-batches of 5; of 71 samples the epochs after it leave one, of 73 the loader itself does."""
    always = AdaptiveRamp(ratio=1e-9, growth=1.25, check_every=6)
    grows = BatchSizeRamp(always, max_batch_size=10, max_micro_batch_size=5)
    loader = DataLoader(data(samples), batch_size=8)
    said = lone_samples_said(Toy(), [GradientNoiseScale(), grows], loader, max_epochs=2)
    assert [growth.batch_size for growth in grows._growth.growths] == [10]
    assert said == ["BatchSizeRamp: micro-batch 14 of epoch 1"] * lone


def test_a_lone_sample_of_a_reloaded_loader_is_said() -> None:
    grows = ramp(schedule=StepRamp([1], factor=1.25))
    said = lone_samples_said(Reloads([40, 40, 31]), [grows], max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert said == ["BatchSizeRamp: micro-batch 3 of epoch 2"]


def test_the_plan_without_a_trainer_drops_the_same() -> None:
    plan = RampPlan(StepRamp([1, 2], factor=2), 35, 4, max_epochs=4, max_batch_size=16, drop_last=True)
    read = Read()
    _, trainer = fit([ramp(), read], loader=DataLoader(data(35), batch_size=4, drop_last=True), max_epochs=4)
    assert trainer.global_step == plan.total_updates
    assert sum(map(sum, read.sizes.values())) == plan.total_samples


@pytest.mark.parametrize("limit", [0.1, 0.5, 0.03])
@pytest.mark.parametrize("reload", [0, 1])
def test_a_share_of_the_batches_is_taken_once(limit: float, reload: int) -> None:
    """Of 64 batches a tenth are 6; a tenth of these, which Lightning took again, are none, and it refused."""
    read = Read()
    fit([ramp(), read], loader=DataLoader(data(64), batch_size=1), limit_train_batches=limit,
        reload_dataloaders_every_n_epochs=reload)  # fmt: skip
    assert {epoch: sum(sizes) for epoch, sizes in read.sizes.items()} == dict.fromkeys(range(3), int(64 * limit))


# ---------------------------------------------------------------------- reloading
class Reloads(Toy):
    """A loader of another size in every epoch."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self.sizes = sizes

    def train_dataloader(self) -> Any:
        return DataLoader(data(self.sizes[self.trainer.current_epoch]), batch_size=8)


@pytest.mark.parametrize("sizes", [[24, 32, 40], [8, 16, 24], [24, 16, 8]], ids=str)
@pytest.mark.parametrize("schedule", [StepRamp([1, 2], factor=2), CurveRamp(Cosine(floor=0.3))], ids=["steps", "curve"])
def test_reloaded_loaders_of_other_sizes_are_read_whole(sizes: list[int], schedule: Any) -> None:
    read = Read()
    trainer = Trainer(**quiet(callbacks=[ramp(schedule=schedule), read], max_epochs=3, max_steps=-1,
                              reload_dataloaders_every_n_epochs=1))  # fmt: skip
    trainer.fit(Reloads(sizes))
    assert {epoch: sum(read) for epoch, read in read.sizes.items()} == dict(enumerate(sizes))
    assert read.sizes[0][0] == 8


# ---------------------------------------------------------------------- validation
class Validations(Callback):
    """Samples read in the run before each validation."""

    def __init__(self) -> None:
        self.read, self.at = 0, []  # type: ignore[var-annotated]

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.read += len(batch[0])

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.at.append(self.read)


@pytest.mark.parametrize("every", [1, None])
def test_a_whole_interval_validates_as_often_by_samples_as_without_the_ramp(every: int | None) -> None:
    arguments: dict[str, Any] = {
        "loader": DataLoader(data(64), batch_size=4), "validation": DataLoader(data(8), batch_size=8),
        "num_sanity_val_steps": 0, "val_check_interval": 8, "check_val_every_n_epoch": every, "max_epochs": 5,
    }  # fmt: skip
    bare, ramped = Validations(), Validations()
    fit([bare], **arguments)
    fit([BatchSizeRamp(StepRamp([2, 4], factor=4), max_batch_size=64), ramped], **arguments)
    assert bare.at == list(range(32, 321, 32))
    # one micro-batch of 64 samples passes two multiples of the interval, and is followed by one validation
    assert ramped.at == [*range(32, 257, 32), 320]


@pytest.mark.parametrize("share", [0.25, 0.3, 0.5, 0.07])
@pytest.mark.parametrize("limit", [1.0, 0.5])
def test_a_share_of_an_epoch_validates_as_often_by_samples_as_without_the_ramp(share: float, limit: float) -> None:
    arguments: dict[str, Any] = {
        "validation": DataLoader(data(8), batch_size=8), "num_sanity_val_steps": 0, "val_check_interval": share,
        "limit_train_batches": limit, "max_epochs": 5,
    }  # fmt: skip
    bare, ramped, sizes = Validations(), Validations(), Read()
    fit([bare], loader=DataLoader(data(52), batch_size=4), **arguments)
    loader = DataLoader(data(52), batch_size=4)
    _, trainer = fit([BatchSizeRamp(StepRamp([1, 3], factor=2), max_batch_size=64), ramped, sizes], loader=loader,
                     **arguments)  # fmt: skip
    assert trainer.val_check_interval == share
    batches = int(13 * limit)
    every, epoch = 4 * max(1, int(batches * share)), 4 * batches
    multiples = [e * epoch + at for e in range(5) for at in range(every, epoch + 1, every)]
    assert bare.at == multiples
    # after the first micro-batch with which a multiple is read; one that passes two is followed by one validation
    ends = [*accumulate(size for e in range(5) for size in sizes.sizes[e])]
    assert ramped.at == sorted({min(end for end in ends if end >= at) for at in multiples})


@pytest.mark.skipif(lightning.__version__ < "2.6", reason="an interval by time came with Lightning 2.6")
def test_validation_by_time_is_left_to_lightning() -> None:
    seen, read = Validations(), Read()
    fit([ramp(), seen, read], loader=DataLoader(data(64), batch_size=4), validation=DataLoader(data(8), batch_size=8),
        num_sanity_val_steps=0, val_check_interval="01:00:00:00")  # fmt: skip
    assert [sum(sizes) for sizes in read.sizes.values()] == [64, 64, 64]
    assert seen.at == []  # not after a day yet


def test_a_share_of_an_epoch_of_a_reloaded_loader_is_that_of_the_new_one() -> None:
    seen = Validations()
    trainer = Trainer(**quiet(callbacks=[BatchSizeRamp(CurveRamp(Cosine(floor=1.0))), seen], num_sanity_val_steps=0,
                              val_check_interval=0.5, reload_dataloaders_every_n_epochs=1, max_epochs=3))  # fmt: skip
    trainer.fit(Reloads([32, 64, 16]), val_dataloaders=DataLoader(data(8), batch_size=8))
    assert seen.at == [16, 32, 64, 96, 104, 112]


def test_a_run_resumed_where_an_epoch_has_fewer_batches_than_the_interval_goes_on(tmp_path: Any) -> None:
    from lightning.pytorch.callbacks import ModelCheckpoint

    def run(*callbacks: Callback, **more: Any) -> Validations:
        seen = Validations()
        fit([BatchSizeRamp(StepRamp([1], factor=4), max_batch_size=64), seen, *callbacks],
            loader=DataLoader(data(64), batch_size=4), validation=DataLoader(data(8), batch_size=8),
            num_sanity_val_steps=0, val_check_interval=8, **more)  # fmt: skip
        return seen

    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    whole = run(save, enable_checkpointing=True)
    assert whole.at == [32, 64, 96, 128, 160, 192]
    assert run(ckpt_path=str(tmp_path / "epoch=1.ckpt")).at == [32, 64]


def test_an_interval_longer_than_an_epoch_is_refused_as_without_the_ramp() -> None:
    with pytest.raises(ValueError, match="val_check_interval"):
        fit([ramp()], validation=DataLoader(data(8), batch_size=8), val_check_interval=7)


def test_the_interval_is_a_number_that_knows_where_to_validate() -> None:
    interval = ValidationInterval(4, in_epoch=10).in_windows([8, 8, 16, 8], batch_size=4, earlier=10, counted=20)
    assert interval == 4
    # batches read: 12, 14, 18, 20
    assert [20 + index + 1 for index in range(4) if (20 + index + 1) % interval == 0] == [21, 23, 24]


# ---------------------------------------------------------------------- what a mean is over
class Padded(Dataset[Any]):
    """Sequences of 1 to 6 numbers, padded by zeros; the first entry tells how many there are."""

    def __init__(self, size: int = 24) -> None:
        generator = torch.Generator().manual_seed(5)
        self.lengths = torch.randint(1, 7, (size,), generator=generator)
        self.values = torch.randn(size, 6, generator=generator, dtype=torch.float64)

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return self.values[index], self.lengths[index]


class OverTokens(LightningModule):
    """Its loss is a mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1)).double()

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        values, lengths = batch
        mask = torch.arange(6) < lengths[:, None]
        return ((self.net(values.unsqueeze(-1)).squeeze(-1) - values.sin()) ** 2 * mask).sum() / mask.sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def tokens(batch: Any) -> int:
    return int(batch[1].sum())


def test_a_mean_over_tokens_is_exact_in_windows_of_any_micro_batch() -> None:
    def run(limit: int | None, count: Any) -> Tensor:
        module, _ = fit([ramp(max_micro_batch_size=limit, count_samples=count)], module=OverTokens(),
                        loader=DataLoader(Padded(), batch_size=8), gradient_clip_val=0.1)  # fmt: skip
        return weights(module)

    whole = run(None, None)
    assert torch.allclose(run(None, tokens), whole, rtol=1e-12, atol=0)
    assert torch.allclose(run(3, tokens), whole, rtol=1e-12, atol=0)
    assert (run(3, None) - whole).abs().max() > 1e-4, "a mean over samples is another one"


# ---------------------------------------------------------------------- a ramp that never grows
def test_a_ramp_that_never_grows_changes_nothing_beside_any_scheduler() -> None:
    def scheduled(module: LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)
        return [optimizer], [sched.ExponentialLR(optimizer, 0.5)]

    neutral = BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))
    ours, bare = Probe(), Probe()
    module, _ = fit([neutral, ours], module=Toy(scheduled))
    plain, _ = fit([bare], module=Toy(scheduled))
    assert ours.series == bare.series
    assert torch.equal(weights(module), weights(plain))
    fit([BatchSizeRamp(CurveRamp(Cosine(floor=1.0))), LearningRateSchedule(Cosine())])


@pytest.mark.parametrize("nothing", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}], ids=str)
def test_a_run_of_no_update_returns_as_lightning_does(nothing: dict[str, Any]) -> None:
    module, _ = fit([ramp()], **nothing)
    assert torch.equal(weights(module), weights(Toy()))


def test_fewer_samples_than_a_batch_under_drop_last_make_no_update() -> None:
    _, trainer = fit([ramp()], loader=DataLoader(data(3), batch_size=8, drop_last=True))
    assert trainer.global_step == 0


def test_tensor_datasets_are_what_they_were() -> None:
    """The loader is given back as it was."""
    loader = DataLoader(TensorDataset(torch.zeros(9, 6), torch.zeros(9, 1)), batch_size=4, drop_last=True)
    sampler = loader.batch_sampler
    _, trainer = fit([ramp()], loader=loader, val_check_interval=2, validation=DataLoader(data(8), batch_size=8))
    assert loader.batch_sampler is sampler
    assert type(trainer.val_check_interval) is int
