"""`BatchSizeRamp` in Lightning's loop: exact means, right totals, exact resume."""

from __future__ import annotations

from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, SequentialSampler

from lightning_lr import AdaptiveRamp, Cosine, GradientNoiseScale, LearningRateSchedule
from lightning_lr.batch_size import CurveRamp, RampPlan, StepRamp
from lightning_lr.callbacks import BatchSizeRamp, total_updates
from tests.support.toy import Probe, Stream, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RAMPS: dict[str, dict[str, Any]] = {
    "steps, micro-batch grows": {"schedule": StepRamp([1, 2], factor=2.0)},
    "steps, then accumulation": {"schedule": StepRamp([1, 2], factor=3.0), "max_micro_batch_size": 5},
    "steps within epochs": {"schedule": StepRamp([0.4, 1.7, 2.2], factor=1.7), "max_micro_batch_size": 4},
    "capped": {"schedule": StepRamp([1, 2], factor=4.0), "max_batch_size": 10, "max_micro_batch_size": 4},
    "curve": {"schedule": CurveRamp(Cosine(warmup=0.1)), "max_batch_size": 25, "max_micro_batch_size": 7},
    "square root": {"schedule": CurveRamp(Cosine()), "max_batch_size": 20, "lr_rule": "sqrt"},
}
ramps = pytest.mark.parametrize("arguments", RAMPS.values(), ids=RAMPS.keys())
SAMPLES, EPOCHS, START = 53, 3, 4


def ramp(arguments: dict[str, Any]) -> BatchSizeRamp:
    return BatchSizeRamp(**{"max_batch_size": SAMPLES, **arguments})


def plan(arguments: dict[str, Any], **run: Any) -> RampPlan:
    run = {"dataset_size": SAMPLES, "batch_size": START, "max_epochs": EPOCHS, **run}
    return RampPlan(**{"max_batch_size": SAMPLES, **arguments}, **run)


class Wide(Toy):
    """The toy in fp64, that records which samples it saw."""

    def __init__(self, configure: Any = None) -> None:
        super().__init__(configure)
        self.double()
        self.seen: list[list[float]] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        self.seen.append(batch[0][:, 0].tolist())
        return super().training_step(batch, batch_idx)


def loader(workers: int = 0, batch_size: int = START, shuffle: bool = False, samples: int = SAMPLES) -> DataLoader[Any]:
    return DataLoader(data(samples, dtype=torch.float64), batch_size=batch_size, num_workers=workers, shuffle=shuffle,
                      persistent_workers=workers > 0)  # fmt: skip


def by_hand(planned: RampPlan, updates: int | None = None, samples: int = SAMPLES) -> torch.Tensor:
    """The same training as a plain loop over the plan's windows, each gradient the mean over its samples."""
    module = Wide()
    optimizer = module.configure_optimizers()
    x, y = data(samples, dtype=torch.float64).tensors
    done = 0
    for epoch in range(EPOCHS):
        for window in planned.windows(epoch):
            if done == updates:
                break
            rows = slice(window.start, window.start + window.size)
            optimizer.param_groups[0]["lr"] = 0.05 * window.lr_factor
            optimizer.zero_grad()
            torch.nn.functional.mse_loss(module(x[rows]), y[rows]).backward()
            optimizer.step()
            done += 1
    return weights(module)


@ramps
@pytest.mark.parametrize("workers", [0, 2])
def test_every_gradient_is_the_mean_over_exactly_its_samples(arguments: dict[str, Any], workers: int) -> None:
    planned, probe = plan(arguments), Probe()
    module, trainer = fit([ramp(arguments), probe], module=Wide(), loader=loader(workers), max_epochs=EPOCHS)
    assert trainer.global_step == planned.total_updates == len(probe.series)
    windows = [window for epoch in range(EPOCHS) for window in planned.windows(epoch)]
    assert probe.first == pytest.approx([0.05 * window.lr_factor for window in windows], rel=1e-12)
    assert isinstance(module, Wide)
    assert [len(batch) for batch in module.seen] == [size for window in windows for size in window.micro_sizes]
    epoch = data(SAMPLES, dtype=torch.float64).tensors[0][:, 0].tolist()
    assert [x for batch in module.seen for x in batch] == epoch * EPOCHS, "every sample of an epoch once"
    # fp64; sums in another order
    assert torch.allclose(weights(module), by_hand(planned), rtol=1e-11, atol=0)
    assert trainer.accumulate_grad_batches == 1


def test_a_constant_ramp_is_the_bare_run_to_the_bit() -> None:
    bare, _ = fit([], module=Wide(), loader=loader(), max_epochs=2)
    ours, _ = fit([BatchSizeRamp(CurveRamp(_Flat()))], module=Wide(), loader=loader(), max_epochs=2)
    assert torch.equal(weights(bare), weights(ours))


class _Flat(Cosine):
    """A curve that never falls."""

    def __init__(self) -> None:
        super().__init__(floor=1.0)


class Totals(Callback):
    def __init__(self) -> None:
        self.batches: list[Any] = []
        self.validations: list[int] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.is_last_batch:
            self.batches.append(trainer.num_training_batches)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.validations.append(trainer.global_step)


@ramps
@pytest.mark.parametrize("interval", [1.0, 0.5])
def test_totals_and_validation_are_those_of_the_grown_epochs(arguments: dict[str, Any], interval: float) -> None:
    """P5: with the batch sampler changed alone, validation silently never runs in grown epochs."""
    planned, totals = plan(arguments), Totals()
    fit([ramp(arguments), totals], module=Wide(), loader=loader(), max_epochs=EPOCHS, val_check_interval=interval,
        validation=loader(batch_size=53))  # fmt: skip
    per_epoch = [len(planned.windows(epoch).micro_sizes) for epoch in range(EPOCHS)]
    assert totals.batches == per_epoch
    bare = loader()
    every, due = max(1, int(len(bare) * interval)), 0
    for epoch in range(EPOCHS):  # in batches of the loader's own size; its last is short
        read = [samples / bare.batch_size for samples in accumulate(planned.windows(epoch).micro_sizes)]
        read[-1] = len(bare)
        due += len({next(i for i, batches in enumerate(read) if batches >= at)
                    for at in range(every, len(bare) + 1, every)})  # fmt: skip
    assert len(totals.validations) == due


@ramps
@pytest.mark.parametrize("shuffle", [False, True])
def test_resume_at_any_micro_batch_equals_the_uninterrupted_run(
    arguments: dict[str, Any], shuffle: bool, tmp_path: Path
) -> None:
    class Everywhere(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx}.ckpt")

    torch.manual_seed(5)
    probe = Probe()
    whole, trainer = fit([Everywhere(), ramp(arguments), probe], module=Wide(), loader=loader(shuffle=shuffle),
                         max_epochs=EPOCHS)  # fmt: skip
    assert isinstance(whole, Wide)
    micro_batches = trainer.fit_loop.total_batch_idx + 1
    every = range(micro_batches - 1)
    for at in every[:: -(-micro_batches // (11 if shuffle else 5))]:  # some, over all epochs
        torch.manual_seed(99)  # another process has another seed; the order is in the checkpoint
        resumed_probe = Probe()
        resumed, _ = fit([ramp(arguments), resumed_probe], module=Wide(), loader=loader(shuffle=shuffle),
                         max_epochs=EPOCHS, ckpt_path=str(tmp_path / f"{at}.ckpt"))  # fmt: skip
        assert isinstance(resumed, Wide)
        rest = len(resumed.seen)
        assert resumed.seen == whole.seen[-rest:], at
        assert rest >= micro_batches - at - 1, "a window that was interrupted is run again as a whole"
        assert resumed_probe.series == probe.series[-len(resumed_probe.series) :], at
        assert torch.equal(weights(resumed), weights(whole)), at


@ramps
def test_max_steps(arguments: dict[str, Any]) -> None:
    planned = plan(arguments, max_epochs=None, max_updates=11)
    module, trainer = fit([ramp(arguments)], module=Wide(), loader=loader(), max_epochs=-1, max_steps=11)
    assert trainer.global_step == 11
    assert torch.allclose(weights(module), by_hand(planned, updates=11), rtol=1e-11, atol=0)


@pytest.mark.parametrize("ask", [total_updates, lambda trainer: trainer.estimated_stepping_batches])
def test_a_loader_that_configure_optimizers_asks_for_is_taken_over_and_resumes(ask: Any, tmp_path: Path) -> None:
    """P4, P13: the loader is then made before the loops are restored."""
    answers: list[int] = []

    def configure(module: LightningModule) -> Any:
        answers.append(ask(module.trainer))
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    arguments = RAMPS["steps within epochs"]
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, trainer = fit([ramp(arguments), save], module=Wide(configure), loader=loader(shuffle=True),
                         max_epochs=EPOCHS, enable_checkpointing=True)  # fmt: skip
    if ask is total_updates:
        assert answers == [trainer.global_step]
    for at in (3, 9, 16):
        resumed, _ = fit([ramp(arguments)], module=Wide(configure), loader=loader(shuffle=True), max_epochs=EPOCHS,
                         ckpt_path=str(tmp_path / f"step={at}.ckpt"))  # fmt: skip
        assert torch.equal(weights(resumed), weights(whole)), at


def test_limit_train_batches_shortens_the_epoch_by_samples() -> None:
    arguments = RAMPS["steps, then accumulation"]
    module, _ = fit([ramp(arguments)], module=Wide(), loader=loader(), max_epochs=EPOCHS, limit_train_batches=6)
    assert isinstance(module, Wide)
    epoch = data(SAMPLES, dtype=torch.float64).tensors[0][:24, 0].tolist()
    assert [x for batch in module.seen for x in batch] == epoch * EPOCHS


def test_noise_scale_and_batch_size_are_logged() -> None:
    from tests.test_lightning_loop import Remember

    logger = Remember()
    fit([BatchSizeRamp(StepRamp([1, 2], factor=2.0), max_batch_size=8)], loader=DataLoader(data(48), batch_size=4),
        logger=logger, log_every_n_steps=1)  # fmt: skip
    batch, lr, noise = (logger.series(name) for name in ("batch/size", "lr/group_0", "noise/scale"))
    assert batch == [4] * 12 + [8] * 12
    assert logger.series("batch/micro") == batch
    assert set(logger.series("batch/accumulation")) == {1}
    assert lr == pytest.approx([0.05] * 18 + [0.025] * 6)
    assert noise == pytest.approx([lr / 0.1 * (48 / b - 1) for lr, b in zip(lr, batch, strict=True)])


def test_a_curve_stays_right_beside_nothing_but_the_ramp() -> None:
    with pytest.raises(MisconfigurationException, match="both lower the learning rate"):
        fit([LearningRateSchedule(Cosine()), BatchSizeRamp(StepRamp([1]))])


def adaptive(**arguments: Any) -> list[Callback]:
    # a scale that any measurement passes: grows at every check, up to the cap
    schedule = AdaptiveRamp(ratio=1e-9, growth=2.0, check_every=arguments.pop("check_every", 5))
    return [GradientNoiseScale(), BatchSizeRamp(schedule, max_batch_size=16, max_micro_batch_size=2)]


@pytest.mark.parametrize("workers", [0, 2])
def test_adaptive_ramp_grows_within_an_epoch_and_uses_every_sample_once(workers: int) -> None:
    totals = Totals()
    module, trainer = fit([*adaptive(), totals], module=Wide(), loader=loader(workers), max_epochs=EPOCHS,
                          validation=loader(batch_size=53))  # fmt: skip
    assert isinstance(module, Wide)
    epoch = data(SAMPLES, dtype=torch.float64).tensors[0][:, 0].tolist()
    assert [x for batch in module.seen for x in batch] == epoch * EPOCHS
    ramp = next(callback for callback in trainer.callbacks if isinstance(callback, BatchSizeRamp))
    assert [growth.batch_size for growth in ramp._growth.growths] == [8, 16]
    assert len(totals.validations) == EPOCHS, "the epoch's new length is known to the validation interval"


def test_adaptive_ramp_resumes_with_its_decisions(tmp_path: Path) -> None:
    class Everywhere(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.fit_loop.total_batch_idx}.ckpt")

    probe = Probe()
    # check at the sixth update: the measurements are those of the checkpoint
    whole, trainer = fit([*adaptive(check_every=6), probe, Everywhere()], module=Wide(), loader=loader(),
                         max_epochs=EPOCHS)  # fmt: skip
    assert isinstance(whole, Wide)
    for at in range(0, trainer.fit_loop.total_batch_idx, 5):
        resumed, _ = fit([*adaptive(check_every=6)], module=Wide(), loader=loader(), max_epochs=EPOCHS,
                         ckpt_path=str(tmp_path / f"{at}.ckpt"))  # fmt: skip
        assert isinstance(resumed, Wide)
        assert resumed.seen == whole.seen[-len(resumed.seen) :], at
        assert torch.equal(weights(resumed), weights(whole)), at


class OwnBatches(BatchSampler):
    """A user's own."""


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "accumulation": ({}, {"accumulate_grad_batches": 2}, "leave it at 1"),
    "accumulation schedule": ({}, {"extra": GradientAccumulationScheduler({0: 2})}, "keep one"),
    "cap below the start": ({"max_batch_size": 2}, {}, "max_batch_size=2"),
    "milestone past the end": ({"schedule": StepRamp([1, 5])}, {}, r"milestones \[5.0\] are not before the end"),
    "batch sampler of one's own": (
        {}, {"loader": DataLoader(data(), batch_sampler=OwnBatches(SequentialSampler(data()), 4, False))},
        "has a batch sampler of its own"),
    "adaptive without measurements": ({"schedule": AdaptiveRamp()}, {}, "attach GradientNoiseScale too"),
    "adaptive with nothing to compare": (
        {"schedule": AdaptiveRamp()}, {"extra": GradientNoiseScale()}, "give a max_micro_batch_size below 8"),
    "adaptive without epochs": (
        {"schedule": AdaptiveRamp()}, {"extra": GradientNoiseScale(), "max_steps": 5}, "end it by max_epochs"),
    "time alone": ({}, {"max_epochs": -1, "max_time": "00:00:01:00"},
                   "^BatchSizeRamp: the batches are planned over epochs or updates, and max_time alone tells neither"),
    "time alone over a stream": (
        {}, {"max_epochs": -1, "max_time": "00:00:01:00", "loader": DataLoader(Stream(48), batch_size=4)},
        "^BatchSizeRamp: the batches are planned over epochs or updates, and max_time alone tells neither"),
    "loader of another kind": ({}, {"loader": [data()[:4]] * 3, "max_steps": 5}, "use a DataLoader"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case: str) -> None:
    arguments, run, message = REFUSED[case]
    run = dict(run)
    extra = [run.pop("extra")] if "extra" in run else []
    module = Toy()
    before = weights(module)
    with pytest.raises(MisconfigurationException, match=message):
        fit([BatchSizeRamp(**{"schedule": StepRamp([1, 2]), **arguments}), *extra], module=module, **run)
    assert torch.equal(weights(module), before)


def test_second_fit_without_the_ramp_is_bare() -> None:
    shared, module = loader(), Wide()
    fit([ramp(RAMPS["capped"])], module=module, loader=shared, max_epochs=EPOCHS)
    after, _ = fit([], module=Wide(), loader=loader(), max_epochs=1)
    again, trainer = fit([], module=Wide(), loader=shared, max_epochs=1)
    assert type(shared.batch_sampler) is BatchSampler
    assert trainer.global_step == 14
    assert torch.equal(weights(after), weights(again))


def test_the_same_callback_starts_anew_in_a_second_fit() -> None:
    callbacks = adaptive()
    seen = []
    for _ in range(2):
        module, _ = fit(callbacks, module=Wide(), loader=loader(), max_epochs=EPOCHS)
        assert isinstance(module, Wide)
        seen.append([len(batch) for batch in module.seen])
    assert seen[0] == seen[1]


class TwoLoaders(Wide):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return super().training_step(batch["a"], batch_idx)


def test_several_loaders_are_refused() -> None:
    with pytest.raises(MisconfigurationException, match="got 2 train dataloaders"):
        fit([ramp(RAMPS["capped"])], module=TwoLoaders(), loader={"a": loader(), "b": loader()}, max_epochs=EPOCHS)


# ---------------------------------------------------------------------- two processes
def _two(arguments: dict[str, Any], ckpt: str | None, save: str | None) -> Any:
    dataset = data(SAMPLES + 1, dtype=torch.float64)
    shared = DataLoader(dataset, batch_size=START // 2, sampler=DistributedSampler(dataset, shuffle=False))
    probe = Probe()
    callbacks: list[Callback] = [ramp(arguments), probe]
    if save:
        callbacks.append(ModelCheckpoint(save, filename="{step}", every_n_train_steps=1, save_top_k=-1))
    module, _ = fit(callbacks, module=Wide(), loader=shared, max_epochs=EPOCHS, ckpt_path=ckpt,
                    enable_checkpointing=bool(save), **ddp())  # fmt: skip
    return weights(module), probe.series


def test_two_processes_equal_one_and_resume(tmp_path: Path) -> None:
    cases = []
    for name, arguments in RAMPS.items():
        arguments = {**arguments, "max_batch_size": arguments.get("max_batch_size", SAMPLES) // 2 * 2}
        cases.append((name, partial(_two, arguments, None, str(tmp_path / name))))
        cases.append((name + " resumed", partial(_two, arguments, str(tmp_path / name / "step=9.ckpt"), None)))
    ranks = run_in_two_processes(cases, tmp_path)
    for name, arguments in RAMPS.items():
        for rank in ranks:
            for result in (rank[name], rank[name + " resumed"]):
                if isinstance(result, Exception):
                    raise result
            two, series = rank[name]
            resumed, resumed_series = rank[name + " resumed"]
            assert torch.equal(two, resumed)
            assert resumed_series == series[9:]
        # one process with the same global batches: the plan by hand, its windows over all devices
        even = {**arguments, "max_batch_size": arguments.get("max_batch_size", SAMPLES) // 2 * 2}
        planned = plan(even, dataset_size=SAMPLES + 1, world_size=2)
        assert len(series) == planned.total_updates
        assert torch.allclose(two, by_hand(planned, samples=SAMPLES + 1), rtol=1e-11, atol=0)
