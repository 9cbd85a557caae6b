"""Where the writer and the clock stand in Lightning's loop: what others see, what is saved, what is left behind."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import SGD
from torch.optim import lr_scheduler as sched
from torch.utils.data import BatchSampler, DataLoader, SequentialSampler

from lightning_lr import (
    BatchSizeRamp,
    Constant,
    Cosine,
    CosineRestarts,
    LearningRateScaling,
    LearningRateSchedule,
    Polynomial,
    StepRamp,
)
from lightning_lr.journal import read_journal
from tests.support.toy import Probe, ResumableLoader, Stream, Toy, data, fit, two_groups, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


class Remember(Logger):
    """A logger that keeps everything in memory."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = "remember"
    version = 0

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        assert step is not None
        self.rows.append((step, dict(metrics)))

    def series(self, name: str) -> list[float]:
        return [float(metrics[name]) for _, metrics in self.rows if name in metrics]


def scheduled_by(make: Callable[[SGD], Any], **config: Any) -> Callable[[LightningModule], Any]:
    """A user's configure_optimizers with a scheduler in Lightning's dictionary form."""

    def configure(module: LightningModule) -> Any:
        optimizer = SGD(module.parameters(), lr=0.05, momentum=0.9)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": make(optimizer), **config}}

    return configure


USER_SCHEDULERS = {
    "chainable, per step": scheduled_by(lambda o: sched.ExponentialLR(o, 0.9), interval="step"),
    "chainable, per epoch": scheduled_by(lambda o: sched.StepLR(o, 1, 0.5), interval="epoch"),
    "closed form, per step": scheduled_by(lambda o: sched.OneCycleLR(o, 0.1, total_steps=20), interval="step"),
    "plateau, per epoch": scheduled_by(
        lambda o: sched.ReduceLROnPlateau(o, patience=0, factor=0.5), monitor="val_loss", interval="epoch"
    ),
    "plateau, per step": scheduled_by(
        lambda o: sched.ReduceLROnPlateau(o, patience=1, factor=0.5), monitor="train_loss", interval="step"
    ),
}
schedulers = pytest.mark.parametrize("configure", USER_SCHEDULERS.values(), ids=USER_SCHEDULERS.keys())


# ---------------------------------------------------------------------- what others see
@schedulers
def test_scheduler_in_the_loop_sees_what_it_would_see_without_us(configure: Any, tmp_path: Path) -> None:
    validation = DataLoader(data(16), batch_size=16)
    series: dict[str, list[Any]] = {}
    for name, callbacks in {"bare": [], "ours": [LearningRateScaling(8, warmup_epochs=0)]}.items():
        states: list[Any] = []

        class After(Callback):
            def on_train_batch_end(self, trainer: Trainer, *args: Any, states: list[Any] = states) -> None:
                states.append(trainer.lr_scheduler_configs[0].scheduler.state_dict())

        # k = 1, but written and bracketed at every update
        fit([*callbacks, After()], module=Toy(configure), validation=validation)
        series[name] = [repr(state) for state in states]
    assert len(series["bare"]) == 18
    assert series["ours"] == series["bare"]


def test_learning_rate_monitor_logs_the_effective_value() -> None:
    logger, probe = Remember(), Probe()
    monitor = LearningRateMonitor(logging_interval="step")
    # before and after ours in the Trainer's order
    fit(
        [monitor, LearningRateSchedule(Cosine(warmup=0.3)), probe],
        module=Toy(two_groups),
        logger=logger,
        log_every_n_steps=1,
    )
    assert logger.series("lr-SGD/body") == [row[0] for row in probe.series]
    assert logger.series("lr-SGD/head") == [row[1] for row in probe.series]


def test_logged_names_and_values() -> None:
    logger, probe = Remember(), Probe()
    loader = DataLoader(data(50), batch_size=8)
    fit(
        [LearningRateSchedule(Polynomial()), LearningRateScaling(16), probe],
        module=Toy(two_groups), loader=loader, accumulate_grad_batches=2, logger=logger, log_every_n_steps=1,
        max_epochs=2,
    )  # fmt: skip
    assert logger.series("lr/body") == [row[0] for row in probe.series]
    assert logger.series("lr/head") == [row[1] for row in probe.series]
    assert logger.series("progress/updates") == list(range(1, 9))
    assert logger.series("progress/samples") == [16, 32, 48, 50, 66, 82, 98, 100]
    assert logger.series("batch/size") == [16, 16, 16, 2, 16, 16, 16, 2]
    assert set(logger.series("batch/accumulation")) == {2}
    assert set(logger.series("batch/micro")) == {8}


def test_log_every_n_steps_is_kept() -> None:
    logger = Remember()
    fit([LearningRateSchedule(Constant())], logger=logger, log_every_n_steps=5)
    assert logger.series("progress/updates") == [5, 10, 15]


def test_steps_that_the_scaler_skips_are_not_mistaken_for_updates_of_the_weights() -> None:
    # a scale so large that the first gradients overflow in fp16; it is halved until they do not
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**26, growth_interval=1000)
    probe, logger = Probe(), Remember()
    made: list[int] = []

    class Which(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if len(probe.series) > len(made):
                made.append(trainer.global_step - 1)

    module, _ = fit(
        [LearningRateSchedule(Cosine()), probe, Which()],
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        logger=logger,
        log_every_n_steps=1,
    )
    assert 0 < len(made) < 18, "the case is what it says"
    # the samples were consumed, so the curve is where it would be without AMP
    expected = [0.05 * (1 + math.cos(math.pi * u / 18)) / 2 for u in range(18)]
    assert probe.first == pytest.approx([expected[u] for u in made], rel=1e-12)
    assert logger.series("lr/group_0") == probe.first, "what was not used is not logged as used"
    assert torch.isfinite(weights(module)).all()


def test_accumulation_that_changes_between_epochs() -> None:
    probe = Probe()
    fit(
        [GradientAccumulationScheduler({0: 1, 1: 2}), LearningRateSchedule(Cosine(warmup=0.5)), probe],
        max_epochs=2,
    )
    # 6 updates of 8, then 3 of 16; 96 samples, climb over 48
    climb = [(u + 1) / 6 for u in range(6)]
    fall = [(1 + math.cos(math.pi * u / 3)) / 2 for u in range(3)]
    assert probe.first == pytest.approx([0.05 * f for f in climb + fall], rel=1e-12)


# ---------------------------------------------------------------------- what is saved
@schedulers
@pytest.mark.parametrize("at", [1, 6, 7, 13])
def test_checkpoint_resumes_to_the_scheduled_values_without_us(configure: Any, at: int, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    validation = DataLoader(data(16), batch_size=16)
    arguments: dict[str, Any] = {"validation": validation, "enable_checkpointing": True}
    fit(
        [LearningRateScaling(4, warmup_epochs=1), save],
        module=Toy(configure), loader=ResumableLoader(data(), 8), **arguments,
    )  # fmt: skip
    checkpoint = torch.load(tmp_path / f"step={at}.ckpt", weights_only=True)  # plain types only
    [group] = checkpoint["optimizer_states"][0]["param_groups"]
    [scheduler] = checkpoint["lr_schedulers"]
    assert group["lr"] == scheduler["_last_lr"][0]

    resumed = Probe()
    fit([resumed], module=Toy(configure), loader=ResumableLoader(data(), 8), validation=validation,
        ckpt_path=str(tmp_path / f"step={at}.ckpt"))  # fmt: skip
    if "best" in scheduler:
        return  # a plateau scheduler follows the loss, which is another one without our factor; next test
    bare = Probe()
    fit([bare], module=Toy(configure), loader=ResumableLoader(data(), 8), validation=validation)
    assert resumed.series == bare.series[at:]


@schedulers
@pytest.mark.parametrize("part", ["around the epochs", pytest.param("the others", marks=pytest.mark.slow)])
def test_resumed_at_any_update_it_is_bare_lightning_with_twice_the_lr(
    configure: Any, part: str, tmp_path: Path
) -> None:
    """The factor is exactly 2, so a bare run at lr 0.1 is the oracle, bit for bit.

    Also for plateau schedulers, whose step Lightning itself loses in a resume: it comes after the checkpoint.
    """

    def doubled(module: LightningModule) -> Any:
        out = configure(module)
        [scheduler], [group] = [out["lr_scheduler"]["scheduler"]], out["optimizer"].param_groups
        group["lr"] *= 2
        if not isinstance(scheduler, sched.ReduceLROnPlateau):
            scheduler.base_lrs = [2 * lr for lr in scheduler.base_lrs]
        if isinstance(scheduler, sched.OneCycleLR):
            for key in ("initial_lr", "max_lr", "min_lr"):
                group[key] *= 2
        return out

    def run(callbacks: list[Callback], make: Any, ckpt_path: str | None = None) -> tuple[list[Any], torch.Tensor]:
        probe = Probe()
        module, _ = fit(
            [probe, *callbacks], module=Toy(make), loader=ResumableLoader(data(), 8), ckpt_path=ckpt_path,
            validation=DataLoader(data(16), batch_size=16), enable_checkpointing=True,
        )  # fmt: skip
        return probe.series, weights(module)

    def save(folder: str) -> ModelCheckpoint:
        return ModelCheckpoint(tmp_path / folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)

    ours = run([LearningRateScaling(4, warmup_epochs=0), save("ours")], configure)
    bare = run([save("bare")], doubled)
    assert ours[0] == bare[0]
    assert torch.equal(ours[1], bare[1])
    around = {1, 6, 7, 11, 17}  # six updates an epoch
    for at in around if part == "around the epochs" else set(range(1, 18)) - around:
        resumed = run([LearningRateScaling(4, warmup_epochs=0)], configure, str(tmp_path / "ours" / f"step={at}.ckpt"))
        oracle = run([], doubled, str(tmp_path / "bare" / f"step={at}.ckpt"))
        assert resumed[0] == oracle[0], at
        assert torch.equal(resumed[1], oracle[1]), at


def test_a_checkpoint_without_our_state_goes_on_at_the_right_place(tmp_path: Path) -> None:
    """The first epochs were trained without us, the rest with a curve."""
    fit([ModelCheckpoint(tmp_path, filename="bare", every_n_train_steps=9)], loader=ResumableLoader(data(), 8),
        enable_checkpointing=True, max_steps=9, max_epochs=-1)  # fmt: skip
    probe = Probe()
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], loader=ResumableLoader(data(), 8),
        ckpt_path=str(tmp_path / "bare.ckpt"))  # fmt: skip
    assert probe.first == pytest.approx([0.05 * (1 - u / 18) for u in range(9, 18)], rel=1e-12)


def test_a_larger_max_epochs_stretches_the_curve(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True)
    fit([LearningRateSchedule(Polynomial(power=1.0)), save], enable_checkpointing=True, max_epochs=2)
    probe = Probe()
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], ckpt_path=str(tmp_path / "epoch=1.ckpt"), max_epochs=4)
    assert probe.first == pytest.approx([0.05 * (1 - u / 24) for u in range(12, 24)], rel=1e-12)


def test_checkpoint_written_by_a_callback_that_comes_before_ours(tmp_path: Path) -> None:
    """Lightning calls it in on_train_batch_end, when ours have not been called for this micro-batch."""

    class Early(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def run(*before: Callback, **arguments: Any) -> tuple[list[Any], torch.Tensor]:
        probe = Probe()
        module, _ = fit([*before, LearningRateSchedule(Cosine(warmup=0.4)), probe],
                        loader=ResumableLoader(data(50), 8), **arguments)  # fmt: skip
        return probe.series, weights(module)

    series, final = run(Early())
    for at in (1, 6, 8, 14, 20):
        resumed_series, resumed_final = run(ckpt_path=str(tmp_path / f"{at}.ckpt"))
        assert resumed_series == series[at:], at
        assert torch.equal(resumed_final, final), at


def test_a_crash_leaves_a_checkpoint_with_scheduled_values(tmp_path: Path) -> None:
    class Crash(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == 10:
                raise RuntimeError("crash")

    module = Toy()
    with pytest.raises(RuntimeError, match="crash"):
        fit([LearningRateSchedule(Cosine()), Crash(), OnExceptionCheckpoint(tmp_path, "crash")], module=module,
            enable_checkpointing=True)  # fmt: skip
    checkpoint = torch.load(tmp_path / "crash.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    assert checkpoint["callbacks"]["LearningRateSchedule"]["clock"]["updates"] == 10
    assert "lr_scheduler_step" not in vars(module)


# ---------------------------------------------------------------------- what is left behind
def test_second_fit_starts_clean_with_and_without_us() -> None:
    module = Toy(scheduled_by(lambda o: sched.ExponentialLR(o, 0.9), interval="step"))
    scaling = LearningRateScaling(4, warmup_epochs=1)
    series = []
    for callbacks in ([scaling], [scaling], []):
        probe = Probe()
        _, trainer = fit([*callbacks, probe], module=module)
        assert "lr_scheduler_step" not in vars(module)
        assert len(trainer.optimizers[0]._optimizer_step_post_hooks) == 0
        assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.05 * 0.9**18), "the scheduled value"
        series.append(probe.first)
    assert series[0] == series[1], "a fresh Trainer starts the clock anew"
    assert series[2] == pytest.approx([0.05 * 0.9**u for u in range(18)])


def test_the_same_trainer_goes_on_where_it_stopped() -> None:
    schedule, probe = LearningRateSchedule(Polynomial(power=1.0)), Probe()
    loader = DataLoader(data(), batch_size=8)
    module, trainer = fit([schedule, probe], loader=loader, max_epochs=2)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader)
    assert probe.first[12:] == pytest.approx([0.05 * (1 - u / 24) for u in range(12, 24)], rel=1e-12)


def test_a_users_own_lr_scheduler_step_is_kept_and_called() -> None:
    class Own(Toy):
        calls = 0

        def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
            self.calls += 1
            scheduler.step()

    module = Own(scheduled_by(lambda o: sched.ExponentialLR(o, 0.9), interval="step"))
    probe = Probe()
    fit([LearningRateScaling(4, warmup_epochs=0), probe], module=module)
    assert module.calls == 18
    assert probe.first == pytest.approx([2 * 0.05 * 0.9**u for u in range(18)])
    assert "lr_scheduler_step" not in vars(module)


def test_validate_and_test_alone_do_nothing() -> None:
    trainer = Trainer(accelerator="cpu", logger=False, callbacks=[LearningRateSchedule(Cosine())], barebones=False,
                      enable_progress_bar=False, enable_checkpointing=False)  # fmt: skip
    trainer.validate(Toy(), DataLoader(data(16), batch_size=8), verbose=False)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningRateSchedule(Cosine()),
        lambda: LearningRateScaling(4, warmup_epochs=5),
        lambda: BatchSizeRamp(StepRamp([60, 120, 160])),
    ],
)
def test_fast_dev_run_of_a_long_configuration_runs_and_leaves_no_trace(make: Any, tmp_path: Path) -> None:
    fit([make()], fast_dev_run=True, default_root_dir=tmp_path, max_epochs=200)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------------- how samples are counted
class Ragged(BatchSampler):
    """A batch sampler of the user's own: 4, 8, 12 samples."""

    def __init__(self) -> None:
        super().__init__(SequentialSampler(data(24)), 8, False)

    def __iter__(self) -> Iterator[list[int]]:
        yield from (list(range(4)), list(range(4, 12)), list(range(12, 24)))

    def __len__(self) -> int:
        return 3


def test_batch_sampler_of_ones_own_counts_micro_batches_as_progress_and_samples_as_samples() -> None:
    logger, probe = Remember(), Probe()
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], loader=DataLoader(data(24), batch_sampler=Ragged()),
        max_epochs=2, logger=logger, log_every_n_steps=1)  # fmt: skip
    assert probe.first == pytest.approx([0.05 * (1 - u / 6) for u in range(6)], rel=1e-12)
    assert logger.series("progress/samples") == [4, 12, 24, 28, 36, 48]
    assert logger.series("batch/size") == [4, 8, 12, 4, 8, 12]
    with pytest.raises(MisconfigurationException, match="give the global batch as batch_size"):
        fit([LearningRateScaling(4)], loader=DataLoader(data(24), batch_sampler=Ragged()))


class Wrapped:
    """A batch in which nothing tells its size."""

    def __init__(self, rows: list[Any]) -> None:
        self.x, self.y = torch.stack([x for x, _ in rows]), torch.stack([y for _, y in rows])


class OfWrapped(Toy):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return torch.nn.functional.mse_loss(self(batch.x), batch.y)


def test_function_of_the_user_counts_what_no_sampler_tells() -> None:
    logger = Remember()
    loader = DataLoader(Stream(20), batch_size=8, collate_fn=Wrapped)
    schedule = LearningRateSchedule(Constant(), count_samples=lambda batch: 10 * len(batch.x))
    fit([schedule], module=OfWrapped(), loader=loader, max_steps=6, max_epochs=-1, logger=logger, log_every_n_steps=1)
    assert logger.series("progress/samples") == [80, 160, 200, 280, 360, 400]


def test_curve_ends_with_max_steps_though_a_stream_has_ragged_ends() -> None:
    probe = Probe()
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], loader=DataLoader(Stream(20), batch_size=8),
        max_steps=9, max_epochs=-1)  # fmt: skip
    # 8, 8, 4, 8, 8, 4, 8, 8, 4: an update is a ninth of the run, however small
    assert probe.first == pytest.approx([0.05 * (1 - u / 9) for u in range(9)], rel=1e-12)


def test_limit_train_batches_and_drop_last() -> None:
    probe = Probe()
    loader = DataLoader(data(50), batch_size=8, drop_last=True)
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], loader=loader, limit_train_batches=4)
    assert probe.first == pytest.approx([0.05 * (1 - u / 12) for u in range(12)], rel=1e-12)


def test_iterable_with_an_integer_limit_has_a_length() -> None:
    probe = Probe()
    fit([LearningRateSchedule(Polynomial(power=1.0)), probe], loader=DataLoader(Stream(48), batch_size=8),
        limit_train_batches=4)  # fmt: skip
    assert probe.first == pytest.approx([0.05 * (1 - u / 12) for u in range(12)], rel=1e-12)


# ---------------------------------------------------------------------- scaling
def test_linear_scaling_climbs_by_equal_steps_to_k_times_the_lr() -> None:
    """Goyal et al. 2017: lr 0.1 for 256; here 0.05 for 4, batch 8 of two micro-batches, one epoch of climb."""
    probe = Probe()
    fit([LearningRateScaling(2, warmup_epochs=2), probe], loader=DataLoader(data(48), batch_size=4),
        accumulate_grad_batches=2)  # fmt: skip
    climb = [0.05 * (1 + 3 * (u + 1) / 12) for u in range(12)]
    assert probe.first == pytest.approx(climb + [0.2] * 6, rel=1e-12)


def test_a_smaller_batch_scales_down_at_once() -> None:
    probe = Probe()
    fit([LearningRateScaling(16, warmup_epochs=1), probe])
    assert set(probe.first) == {0.025}


def test_square_root_scaling_changes_adam_and_gives_it_back() -> None:
    def adam(module: LightningModule) -> Any:
        return torch.optim.AdamW(module.parameters(), lr=0.01, betas=(0.9, 0.99), eps=1e-8)

    probe = Probe("lr", "betas", "eps")
    _, trainer = fit([LearningRateScaling(2, lr_rule="sqrt", warmup_epochs=0), probe], module=Toy(adam))
    assert len({repr(row) for row in probe.series}) == 1
    [(lr, betas, eps)] = probe.series[0]
    # Malladi et al. 2022 with k = 4: lr x 2, 1 - 4 (1 - beta), eps / 2
    assert lr == pytest.approx(0.02)
    assert betas == pytest.approx((0.6, 0.96))
    assert eps == pytest.approx(5e-9)
    group = trainer.optimizers[0].param_groups[0]
    assert (group["lr"], group["betas"], group["eps"]) == (0.01, (0.9, 0.99), 1e-8)


# ---------------------------------------------------------------------- refusals
class NoOptimizer(Toy):
    def configure_optimizers(self) -> None:
        return None


def _two_optimizers(module: LightningModule) -> Any:
    return [SGD(module.parameters(), lr=0.1), SGD(module.parameters(), lr=0.1)]


class TwoOptimizers(Toy):
    def __init__(self) -> None:
        super().__init__(_two_optimizers)


def _adam(module: LightningModule) -> Any:
    return torch.optim.Adam(module.parameters(), betas=(0.9, 0.999))


REFUSED: dict[str, tuple[Callable[[], list[Callback]], dict[str, Any], str]] = {
    "two optimizers": (lambda: [LearningRateSchedule(Cosine())], {"module": TwoOptimizers}, "multiple optimizers"),
    "a user's scheduler that decays": (
        lambda: [LearningRateSchedule(Cosine())],
        {"module": lambda: Toy(USER_SCHEDULERS["chainable, per step"])},
        "also returns a ExponentialLR.*Remove the scheduler, or choose with the argument module_scheduler: 'replace'"),
    "no optimizer": (
        lambda: [LearningRateSchedule(Cosine())], {"module": lambda: Toy(lambda module: [])}, "returned no optimizer"),
    "no learning rate": (
        lambda: [LearningRateSchedule(Cosine())], {"module": NoOptimizer}, "returned no optimizer"),
    "no end": (
        lambda: [LearningRateSchedule(Cosine())], {"loader": lambda: DataLoader(Stream(48), batch_size=8)},
        "LearningRateSchedule: max_epochs=3 counts epochs, and the train dataloader has no length"),
    "no end, either": (
        lambda: [LearningRateSchedule(Cosine())], {"max_epochs": lambda: -1},
        "LearningRateSchedule: max_epochs=-1 has no end; set max_epochs, max_steps or max_time"),
    "warm-up longer than the run": (
        lambda: [LearningRateScaling(4)], {}, "got warmup_epochs=5, but the run has only 3 epochs"),
    "square root out of a beta's range": (
        lambda: [LearningRateScaling(1, lr_rule="sqrt", warmup_epochs=0)],
        {"module": lambda: Toy(_adam), "loader": lambda: DataLoader(data(), batch_size=16)},
        r"beta=0\.9 into -0\.6 at k=16.*k <= 10"),
    "different counters": (
        lambda: [LearningRateSchedule(Cosine(), count_samples=len), LearningRateScaling(8, count_samples=id)], {},
        "different count_samples"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_at_setup_nothing_trained(case: str, tmp_path: Path) -> None:
    make, arguments, message = REFUSED[case]
    arguments = {name: value() for name, value in arguments.items()}
    module = arguments.pop("module", None) or Toy()
    before = weights(module)
    save = ModelCheckpoint(tmp_path, every_n_train_steps=1)
    with pytest.raises((MisconfigurationException, RuntimeError), match=message):
        fit([*make(), save], module=module, enable_checkpointing=True, default_root_dir=tmp_path, **arguments)
    assert torch.equal(weights(module), before)
    assert not list(tmp_path.iterdir())
    assert "lr_scheduler_step" not in vars(module)
    assert not hasattr(module, "_optimizer")


@pytest.mark.parametrize(
    "scheduler",
    [lambda o: sched.LinearLR(o, 0.1, 1.0, 6), lambda o: sched.ConstantLR(o, 0.5, 3)],
    ids=["LinearLR up", "ConstantLR"],
)
def test_a_users_warm_up_may_stay_beside_a_curve(scheduler: Any) -> None:
    ours, bare = Probe(), Probe()
    configure = scheduled_by(scheduler, interval="step")
    fit([LearningRateSchedule(Polynomial(power=1.0)), ours], module=Toy(configure))
    fit([bare], module=Toy(configure))
    assert ours.first == pytest.approx([lr * (1 - u / 18) for u, lr in enumerate(bare.first)], rel=1e-12)


def test_constant_curve_may_stand_beside_a_users_scheduler() -> None:
    probe = Probe()
    fit([LearningRateSchedule(Constant(warmup=1 / 3)), probe], module=Toy(USER_SCHEDULERS["chainable, per step"]))
    assert probe.first == pytest.approx([0.05 * 0.9**u * min(1, (u + 1) / 6) for u in range(18)], rel=1e-12)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference_batch_size": 0}, "reference_batch_size=0"),
        ({"reference_batch_size": 2.5}, r"reference_batch_size=2\.5"),
        ({"rule": "cubic"}, "rule='cubic'; allowed are"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1"),
        ({"warmup_epochs": math.nan}, "warmup_epochs=nan"),
        ({"batch_size": -4}, "batch_size=-4"),
    ],
)
def test_bad_scaling_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LearningRateScaling(**arguments)


def test_a_schedule_needs_a_curve() -> None:
    with pytest.raises(TypeError, match="give a Curve"):
        LearningRateSchedule(lambda progress: 1.0)  # type: ignore[arg-type]


# ---------------------------------------------------------------------- the journal
def test_decisions_are_written_and_a_resume_truncates_them(tmp_path: Path) -> None:
    def run(**arguments: Any) -> None:
        logger = CSVLogger(tmp_path, name="", version="run")
        fit(
            [LearningRateSchedule(CosineRestarts(first_cycle=0.5, cycle_growth=1.0)),
             LearningRateScaling(4, warmup_epochs=1), *arguments.pop("callbacks", [])],
            module=Toy(two_groups), loader=ResumableLoader(data(), 8), logger=logger, **arguments,
        )  # fmt: skip

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    run(callbacks=[save], enable_checkpointing=True)
    files = sorted(path.name for path in (tmp_path / "run" / "lightning_lr").iterdir())
    assert files == ["linear_scaling.jsonl", "schedule.jsonl", "seconds.jsonl"]
    [start] = read_journal(tmp_path / "run" / "lightning_lr" / "schedule.jsonl")
    assert (start["update"], start["event"], start["callback"]) == (0, "start", "LearningRateSchedule")
    assert (start["total"], start["total_updates"], start["counts"]) == (144, 18, "samples")
    assert start["scheduled_lr"] == {"body": 0.02, "head": 0.1}
    assert [phase[0] for phase in start["phases"]] == ["cycle 1", "cycle 2"]
    [scaling] = read_journal(tmp_path / "run" / "lightning_lr" / "linear_scaling.jsonl")
    assert scaling["facts"]["scaling"] == "linear: lr x 2 for batch 8 = 2 x 4 after 1 epochs of gradual warm-up"
    # twice resumed at update 7: the second truncates what the first wrote there
    for _ in range(2):
        run(ckpt_path=str(tmp_path / "step=7.ckpt"))
        starts = read_journal(tmp_path / "run" / "lightning_lr" / "schedule.jsonl")
        assert [record["update"] for record in starts] == [0, 7]
        seconds = read_journal(tmp_path / "run" / "lightning_lr" / "seconds.jsonl")
        updates = [record["update"] for record in seconds]
        assert updates == sorted(set(updates))
        assert updates[-1] == 18
        assert [record["seconds"] for record in seconds] == sorted(record["seconds"] for record in seconds)
        assert {record["since"] for record in seconds} == {0}
        assert starts[1]["samples_seen"] == 56


def test_a_line_that_a_crash_cut_short_is_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text('{"update": 1, "event": "a"}\n{"update": 2, "ev')
    assert [record["update"] for record in read_journal(path)] == [1]
