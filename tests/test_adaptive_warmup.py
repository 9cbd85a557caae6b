"""`AdaptiveWarmup` in a Trainer: what it writes, resumes, shares between ranks, does about a divergence and refuses.

The course of a warm-up itself (when to switch, to which learning rate) is tested without a Trainer in
``test_warmup_machine.py``.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from matplotlib.figure import Figure
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    Polynomial,
    StepRamp,
)
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.cli.plan.epoch import epoch_of
from lightning_lr.cli.plan.walk import make_plan
from lightning_lr.cli.report.picture import save_report_picture
from lightning_lr.cli.report.record import read_run
from lightning_lr.cli.report.warmup_panels import draw_warmup
from lightning_lr.journal import read_journal
from lightning_lr.progress import RunShape, SampleClock
from tests.support.rounding import rounding
from tests.support.toy import Probe, ResumableLoader, Stream, Toy, data, fit, two_groups, weights
from tests.support.two_processes import ddp, run_in_two_processes
from tests.support.valley_loss import (
    EPOCHS,
    OPTIMUM,
    UPDATES,
    Means,
    Record,
    Valley,
    after_warmup,
    climb,
    valley_run,
    warmup,
)

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# ---------------------------------------------------------------------- the course
def test_it_climbs_switches_after_the_minimum_and_decays_from_it_to_the_end() -> None:
    callback = warmup()
    probe = valley_run([callback])
    machine = callback.machine
    assert machine is not None
    assert machine.reason == "switch"
    assert machine.switched_at is not None
    assert machine.peak_lr == pytest.approx(OPTIMUM, rel=0.35)  # 12 updates a decade, one block each
    switch = round(machine.switched_at * UPDATES)
    assert probe.first[:switch] == pytest.approx([climb(t) for t in range(switch)], rel=1e-12)
    assert probe.first[switch - 1] > machine.peak_lr, "it has gone past the minimum"
    shares = [(t - switch) / (UPDATES - switch) for t in range(switch, UPDATES)]
    cosine = [machine.peak_lr * (1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert probe.first[switch:] == pytest.approx(cosine, rel=1e-9)


def test_groups_keep_their_ratio_and_the_largest_has_the_learning_rate_of_the_warmup() -> None:
    one = valley_run([warmup()])
    two = valley_run([warmup()], Valley(two_groups))
    assert [row[1] for row in two.series] == pytest.approx(one.first, rel=1e-12)  # 0.1 is the larger of 0.02 and 0.1
    assert [row[0] for row in two.series] == pytest.approx([lr / 5 for lr in one.first], rel=1e-12)


@pytest.mark.parametrize("first", [True, False])
def test_layerwise_factors_multiply_on_top(first: bool) -> None:
    alone = valley_run([warmup()])
    layerwise = LayerwiseLRDecay(decay=0.5, layers=["body", "head"])
    both = valley_run([layerwise, warmup()] if first else [warmup(), layerwise])
    assert [row[1] for row in both.series] == pytest.approx(alone.first, rel=1e-12)
    assert [row[0] for row in both.series] == pytest.approx([lr / 2 for lr in alone.first], rel=1e-12)


def test_constant_decay_holds_the_chosen_learning_rate() -> None:
    callback = warmup(decay=Constant())
    probe = valley_run([callback])
    assert callback.machine is not None
    assert probe.first[-1] == pytest.approx(callback.machine.peak_lr)


def test_iterable_data_with_max_steps() -> None:
    probe = valley_run([warmup()], loader=DataLoader(Stream(48), batch_size=8), max_steps=UPDATES, max_epochs=-1)
    assert probe.first == pytest.approx(valley_run([warmup()]).first, rel=1e-9)


def test_second_fit_starts_a_new_warmup_and_the_optimizer_is_given_back() -> None:
    callback = warmup()
    first, second = valley_run([callback]), valley_run([callback])
    assert second.series == first.series
    module, trainer = fit([callback], module=Valley(), max_epochs=EPOCHS)
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.05]
    assert "lr_scheduler_step" not in vars(module)


def test_fast_dev_run_of_a_long_configuration_runs() -> None:
    fit([warmup()], module=Valley(), fast_dev_run=1)


# ---------------------------------------------------------------------- one loss per update
def test_loss_of_an_update_is_the_mean_over_its_micro_batches() -> None:
    _, y = data(44).tensors  # 5 windows of 8 in 4s, and one of a single micro-batch, at the end of each epoch
    expected = [float(y[start : start + 8].mean()) for start in range(0, 44, 8)]
    callback = Record(1e-6, 1e-5, max_warmup=0.9, confidence=1 - 1e-12)
    loader = DataLoader(data(44), batch_size=4)
    fit([callback], module=Means(), loader=loader, max_epochs=2, accumulate_grad_batches=2)
    assert callback.losses[:6] == pytest.approx(expected, abs=rounding(16))


def test_accumulation_that_changes_between_epochs() -> None:
    _, y = data(48).tensors
    callback = Record(1e-6, 1e-5, max_warmup=0.9, confidence=1 - 1e-12)
    schedule = GradientAccumulationScheduler({0: 1, 1: 4})
    fit([callback, schedule], module=Means(), loader=DataLoader(data(48), batch_size=4), max_epochs=3)
    expected = [float(y[s : s + 4].mean()) for s in range(0, 48, 4)] + [
        float(y[s : s + 16].mean()) for s in (0, 16, 32)
    ]
    assert callback.losses[:15] == pytest.approx(expected, abs=rounding(16))


def test_skipped_training_steps_have_no_loss() -> None:
    class Sometimes(Valley):
        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return None if batch_idx == 2 else super().training_step(batch, batch_idx)

    callback = Record(1e-3, 1.0, patience=2)
    valley_run([callback], Sometimes())
    assert callback.machine is not None
    assert callback.machine.reason is not None
    assert callback.machine.history.observed == len(callback.losses)


def test_updates_that_the_amp_scaler_skips_do_not_count() -> None:
    class Overflow(Callback):
        """The scaler sees an overflow in the gradients of two updates, whose losses are as good as any."""

        def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
            self.updates += 1
            for state in scaler._per_optimizer_states.values():
                for found in state["found_inf_per_device"].values():
                    found.fill_(float(self.updates in (3, 7)))

        updates = 0

    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    callback = Record(1e-4, 1e-2, confidence=1 - 1e-12)
    fit([callback, Overflow()], max_epochs=EPOCHS, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert len(callback.losses) == UPDATES // 2 - 2


# ---------------------------------------------------------------------- resuming
def test_resume_in_every_phase_equals_the_uninterrupted_run(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole_callback, probe = warmup(check_every=4, on_divergence="rollback"), Probe()
    whole, _ = fit(
        [whole_callback, probe, save],
        module=Valley(), loader=ResumableLoader(data(50), 8), enable_checkpointing=True, max_epochs=8,
    )  # fmt: skip
    machine = whole_callback.machine
    assert machine is not None
    assert machine.switched_at is not None
    switch = round(machine.switched_at * 8 * 50 / 8)
    assert machine.reason == "switch"
    assert 15 < switch < 50
    for update in (1, 7, 8, 9, 11, switch - 1, switch, switch + 1, 55):
        again, callback = Probe(), warmup(check_every=4, on_divergence="rollback")
        resumed, _ = fit(
            [callback, again],
            module=Valley(), loader=ResumableLoader(data(50), 8), max_epochs=8,
            ckpt_path=str(tmp_path / f"step={update}.ckpt"),
        )  # fmt: skip
        assert again.series == probe.series[update:], update
        assert torch.equal(weights(resumed), weights(whole)), update
        assert callback.machine is not None
        assert callback.machine.state_dict() == machine.state_dict(), update


def test_checkpoint_holds_the_scheduled_lr_and_loads_with_weights_only(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=9, save_top_k=-1)
    fit([warmup(on_divergence="rollback"), save], module=Valley(), enable_checkpointing=True, max_epochs=EPOCHS)
    checkpoint = torch.load(tmp_path / "step=9.ckpt", weights_only=True)
    assert checkpoint["optimizer_states"][0]["param_groups"][0]["lr"] == 0.05
    late = torch.load(tmp_path / "step=72.ckpt", weights_only=True)
    state = next(s for name, s in late["callbacks"].items() if "AdaptiveWarmup" in name)
    assert state["warmup"]["snapshot"] is None, "no copy of the weights after the switch"


class First(MethodCallback):
    """Of ours, and before the warm-up in the Trainer's list; does nothing."""

    name = "first"

    def factor(self, clock: SampleClock) -> float:
        return 1.0


def test_a_checkpoint_without_the_warmup_cannot_be_continued_with_it(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=6, save_top_k=-1)
    fit([save], module=Valley(), enable_checkpointing=True, max_epochs=2)
    for callbacks in ([warmup()], [First(), warmup()]):
        with pytest.raises(MisconfigurationException, match="made without it"):
            fit(callbacks, module=Valley(), max_epochs=EPOCHS, ckpt_path=str(tmp_path / "step=6.ckpt"))


# ---------------------------------------------------------------------- divergence
def test_a_loss_that_is_not_finite_begins_the_decay_where_weights_are_whole() -> None:
    callback = warmup()
    probe = valley_run([callback], Valley(bad={14: math.inf}))
    machine = callback.machine
    assert machine is not None
    assert machine.reason == "divergence"
    assert probe.first[:15] == pytest.approx([climb(t) for t in range(15)])
    assert machine.peak_lr == pytest.approx(climb(14) / 2)
    assert probe.first[15] == pytest.approx(machine.peak_lr), "the very next update"


def test_an_explosion_begins_the_decay_within_two_updates() -> None:
    callback = warmup()
    probe = valley_run([callback], Valley(bad=dict.fromkeys(range(14, 40), 1e4)))
    assert callback.machine is not None
    assert callback.machine.reason == "divergence"
    assert probe.first[15] == pytest.approx(climb(15)), "one is a spike"
    assert probe.first[16] == pytest.approx(callback.machine.peak_lr)


def test_switch_raises_where_the_weights_are_lost() -> None:
    with pytest.raises(RuntimeError, match="no longer finite, which no learning rate mends; lower max_lr, or use"):
        valley_run([warmup()], Valley(bad={14: 1.0}, poison=True))


def test_raise_stops_the_run_and_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"the loss is not finite at a learning rate of 0\.0147.*set max_lr below"):
        valley_run([warmup(on_divergence="raise")], Valley(bad={14: math.inf}))


def _adam(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.05)


class Keeps(Callback):
    """Copies weights, buffers and optimizer state after every update."""

    def __init__(self) -> None:
        self.states: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        state = trainer.optimizers[0].state_dict()["state"]
        flat = {f"{p}.{key}": value.clone() for p, values in state.items() for key, value in values.items()}
        self.states.append({**{n: t.clone() for n, t in pl_module.state_dict().items()}, **flat})


@pytest.mark.parametrize("configure", [None, _adam])
def test_rollback_restores_weights_buffers_and_optimizer_of_the_best_test(configure: Any, tmp_path: Path) -> None:
    callback, keeps = warmup(on_divergence="rollback", check_every=5), Keeps()
    module = Valley(configure, bad={13: 1.0}, poison=True)
    logger = CSVLogger(tmp_path)
    probe = valley_run([callback, keeps], module, logger=logger)
    journal = read_journal(Path(logger.log_dir) / "lightning_lr" / "adaptive_warmup.jsonl")
    kept = [record["update"] for record in journal if record.get("keep")]
    assert kept == [5, 10], "the loss was still falling at both tests"
    restored, then = keeps.states[13], keeps.states[10]
    assert not torch.isnan(weights(module)).any()
    assert restored.keys() == then.keys()
    for name, value in then.items():
        assert torch.equal(restored[name], value), name
    assert probe.first[14] == pytest.approx(callback.machine.peak_lr)  # type: ignore[union-attr]
    assert len(probe.series) == UPDATES


def test_rollback_before_the_first_test_restores_the_start() -> None:
    fresh = Valley(_adam)
    keeps = Keeps()
    valley_run([warmup(on_divergence="rollback", check_every=12), keeps], Valley(_adam, bad={3: 1.0}, poison=True))
    for name, value in fresh.state_dict().items():
        assert torch.equal(keeps.states[3][name], value), name
    assert not any(name[0].isdigit() for name in keeps.states[3]), "Adam had no state yet"


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_start", "on_train_epoch_start"])
def test_rollback_restores_the_weights_that_a_hook_of_the_module_loaded(hook: str) -> None:
    module, keeps = Valley(_adam, bad={3: 1.0}, poison=True), Keeps()

    def load() -> None:
        if module.trainer.global_step == 0:
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.fill_(0.25)

    setattr(module, hook, load)
    valley_run([warmup(on_divergence="rollback", check_every=12), keeps], module)
    for name, _ in module.named_parameters():
        assert not torch.equal(keeps.states[2][name], torch.full_like(keeps.states[2][name], 0.25)), "it had trained"
        assert torch.equal(keeps.states[3][name], torch.full_like(keeps.states[3][name], 0.25)), name


def test_restore_best_begins_the_decay_at_the_state_of_the_best_test(tmp_path: Path) -> None:
    callback, keeps, logger = warmup(restore_best=True, check_every=3), Keeps(), CSVLogger(tmp_path)
    plain = valley_run([warmup(check_every=3)])
    probe = valley_run([callback, keeps], Valley(_adam), logger=logger)
    assert probe.first == pytest.approx(plain.first, rel=1e-12), "the course is the same"
    journal = read_journal(Path(logger.log_dir) / "lightning_lr" / "adaptive_warmup.jsonl")
    best = [record["update"] for record in journal if record.get("keep")][-1]
    switch = next(record for record in journal if record["event"] == "switch")
    assert switch["action"] == "rollback"
    assert best + 3 < switch["update"]
    restored, then = keeps.states[switch["update"]], keeps.states[best]
    assert restored.keys() == then.keys()
    for name, value in then.items():
        assert torch.equal(restored[name], value), name


def test_restore_best_keeps_what_is_best_at_a_timeout() -> None:
    callback, keeps = warmup(restore_best=True, max_lr=OPTIMUM), Keeps()  # the loss falls all the way
    valley_run([callback, keeps], Valley(_adam))
    assert callback.machine is not None
    assert callback.machine.reason == "timeout"
    assert float(keeps.states[-1]["seen"]) == UPDATES


def test_rollback_after_a_resume(tmp_path: Path) -> None:
    def module() -> Valley:
        return Valley(_adam, bad={13: 1.0}, poison=True)

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    arguments: dict[str, Any] = {"loader": ResumableLoader(data(48), 8), "max_epochs": EPOCHS}
    whole, _ = fit(
        [warmup(on_divergence="rollback", check_every=5), save], module=module(), enable_checkpointing=True, **arguments
    )
    for update in (3, 11, 12):
        resumed, _ = fit(
            [warmup(on_divergence="rollback", check_every=5)], module=module(),
            ckpt_path=str(tmp_path / f"step={update}.ckpt"), **{**arguments, "loader": ResumableLoader(data(48), 8)},
        )  # fmt: skip
        assert torch.equal(weights(resumed), weights(whole)), update


def test_a_loss_that_is_never_finite_is_not_the_learning_rates_fault() -> None:
    bad = dict.fromkeys(range(UPDATES), math.nan)
    with pytest.raises(RuntimeError, match="no loss was finite, so the learning rate is not the cause"):
        valley_run([warmup()], Valley(bad=bad))


def test_divergence_is_seen_in_an_update_that_the_amp_scaler_skips() -> None:
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0, growth_interval=1000)
    callback = warmup()
    module = Valley(bad={14: 1.0}, poison=True)
    valley_run([callback], module, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert callback.machine is not None
    assert callback.machine.reason == "divergence"
    assert torch.isfinite(weights(module)).all(), "the scaler kept the weights whole, and so a switch is enough"


# ---------------------------------------------------------------------- two processes
def _valley_case() -> tuple[list[Any], Any, Tensor]:
    loader = DataLoader(data(48), batch_size=4, sampler=DistributedSampler(data(48), shuffle=False))
    callback = warmup()
    module = Halves()
    probe = valley_run([callback], module, loader=loader, **ddp())
    assert callback.machine is not None
    return probe.series, callback.machine.state_dict(), weights(module)


class Halves(Valley):
    """Each rank sees another loss; only their mean is the valley's."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        away = 0.0 if self.trainer.world_size == 1 else (-1) ** self.trainer.global_rank * 0.4 * (1 + batch_idx)
        return super().training_step(batch, batch_idx) + away


def _ramp_case() -> tuple[list[Any], int | None, Tensor]:
    ramp = after_warmup()
    loader = DataLoader(data(48), batch_size=4, sampler=DistributedSampler(data(48), shuffle=False))
    module = Valley()
    probe = valley_run([warmup(decay=Constant()), ramp], module, loader=loader, **ddp())
    return probe.series, ramp._growth.begin_samples, weights(module)


def _diverge_case() -> tuple[list[Any], Tensor]:
    class OneRank(Valley):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            if self.trainer.global_rank == 1:
                self.bad = {14: math.inf}
            return super().training_step(batch, batch_idx)

    loader = DataLoader(data(48), batch_size=4, sampler=DistributedSampler(data(48), shuffle=False))
    module = OneRank()
    return valley_run([warmup()], module, loader=loader, **ddp()).series, weights(module)


def _save_case(folder: str) -> bool:
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=7, save_top_k=-1)
    loader = DataLoader(data(48), batch_size=4, sampler=DistributedSampler(data(48), shuffle=False))
    valley_run([warmup(), save], Halves(), loader=loader, enable_checkpointing=True, **ddp())
    callback = warmup()
    resumed = valley_run([callback], Halves(), loader=loader, ckpt_path=f"{folder}/step=7.ckpt", **ddp())
    return resumed.series[-1] is not None and callback.machine is not None and callback.machine.reason == "switch"


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    folder = tmp_path_factory.mktemp("ddp")
    saved = str(tmp_path_factory.mktemp("saved"))
    cases: list[tuple[str, Callable[[], Any]]] = [
        ("valley", _valley_case),
        ("ramp", _ramp_case),
        ("diverge", _diverge_case),
        ("save", partial(_save_case, saved)),
    ]
    return run_in_two_processes(cases, folder)


def of_both(two_processes: list[dict[str, Any]], case: str) -> Iterator[Any]:
    for rank in two_processes:
        if isinstance(rank[case], Exception):
            raise rank[case]
        yield rank[case]


def test_two_processes_switch_where_one_does(two_processes: list[dict[str, Any]]) -> None:
    callback, module = warmup(), Halves()
    probe = valley_run([callback], module)
    assert callback.machine is not None
    for series, state, two in of_both(two_processes, "valley"):
        assert state["reason"] == "switch"
        assert state["switched_at"] == callback.machine.switched_at
        # losses are summed in another order in fp32, of which the chosen learning rate is a smooth function
        assert [row[0] for row in series] == pytest.approx(probe.first, rel=1e-4)
        assert (two - weights(module)).abs().max() < 1e-4


def test_two_processes_begin_the_ramp_at_the_same_sample(two_processes: list[dict[str, Any]]) -> None:
    ramp = after_warmup()
    probe = valley_run([warmup(decay=Constant()), ramp])
    for series, begin, two in of_both(two_processes, "ramp"):
        assert begin == ramp._growth.begin_samples
        assert begin
        # from there on batches are whole numbers per device, which two devices round otherwise
        assert [row[0] for row in series[: begin // 8]] == pytest.approx(probe.first[: begin // 8], rel=1e-4)
        assert series == two_processes[0]["ramp"][0]
        assert torch.equal(two, two_processes[0]["ramp"][2])


def test_divergence_of_one_rank_is_known_to_both(two_processes: list[dict[str, Any]]) -> None:
    (first, a), (second, b) = of_both(two_processes, "diverge")
    assert first == second
    assert first[15][0] == pytest.approx(climb(14) / 2)
    assert torch.equal(a, b)


def test_checkpoint_of_two_processes_resumes(two_processes: list[dict[str, Any]]) -> None:
    assert all(of_both(two_processes, "save"))


# ---------------------------------------------------------------------- what is written down
def test_journal_and_metrics(tmp_path: Path) -> None:
    logger = CSVLogger(tmp_path)
    callback = warmup()
    probe = valley_run([callback], logger=logger, log_every_n_steps=1)
    machine = callback.machine
    assert machine is not None
    journal = read_journal(Path(logger.log_dir) / "lightning_lr" / "adaptive_warmup.jsonl")
    start, *tests = journal
    assert start["event"] == "start"
    assert {test["event"] for test in tests[:-1]} == {"test"}
    last = tests[-1]
    assert last["event"] == "switch"
    assert last["lr"] == machine.peak_lr
    read = [lr for test in tests for lr in test["read"]["lr"]]
    assert read == pytest.approx(probe.first[: len(read)], rel=1e-6)  # written with seven digits
    assert len(read) == last["update"] + 1, "the loss of every update of the climb"
    assert last["phases"][0] == ["warm-up", 0.0, machine.switched_at]
    rows = (Path(logger.log_dir) / "metrics.csv").read_text().splitlines()
    header = rows[0].split(",")
    assert {"warmup/probability", "warmup/switched"} <= set(header)
    switched = [row.split(",")[header.index("warmup/switched")] for row in rows[1:]]
    assert switched.count("1.0") == UPDATES - last["update"]
    json.dumps(journal)


def test_resumed_journal_keeps_the_decision_at_the_checkpoint(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    logger = CSVLogger(tmp_path, name="run", version=0)
    fit([warmup(), save], module=Valley(), logger=logger, enable_checkpointing=True, max_epochs=EPOCHS)
    path = Path(logger.log_dir) / "lightning_lr" / "adaptive_warmup.jsonl"
    tests = [record for record in read_journal(path) if record["event"] != "start"]
    third = tests[2]["update"] + 1
    again = CSVLogger(tmp_path, name="run", version=0)
    fit([warmup()], module=Valley(), logger=again, max_epochs=EPOCHS, ckpt_path=str(tmp_path / f"step={third}.ckpt"))
    assert [r["update"] for r in read_journal(path) if r["event"] != "start"] == [test["update"] for test in tests]


def test_report_draws_losses_posterior_probability_switch_and_chosen_lr(tmp_path: Path) -> None:
    logger, callback = CSVLogger(tmp_path), warmup()
    valley_run([callback], logger=logger, log_every_n_steps=1)
    assert callback.machine is not None
    record = read_run(Path(logger.log_dir))
    assert record.phases["adaptive_warmup"][0].end == callback.machine.switched_at, "not the latest, which was planned"
    left = Figure().subplots()
    draw_warmup(left, record)
    right = left.figure.axes[1]
    losses, mean, switch, chosen = left.lines[:4]
    tests = [r for r in record.journals["adaptive_warmup"] if "picture" in r]
    updates = tests[-1]["update"] + 1
    assert len(losses.get_xdata()) == updates
    assert losses.get_xdata()[-1] == pytest.approx(climb(updates - 1), rel=1e-6)
    lowest = min(zip(mean.get_ydata(), mean.get_xdata(), strict=True))[1]
    assert lowest == pytest.approx(callback.machine.peak_lr, rel=0.05)  # a hundred points over a decade and a half
    assert switch.get_xdata()[0] == pytest.approx(climb(updates - 1))
    assert chosen.get_xdata()[0] == callback.machine.peak_lr
    assert right.lines[0].get_ydata()[-1] == callback.machine.probability > 0.95
    assert len(right.lines[0].get_ydata()) == len(tests)
    save_report_picture(record, "Report", tmp_path / "report.png")
    assert (tmp_path / "report.png").stat().st_size > 20_000


# ---------------------------------------------------------------------- a plan
def test_plan_shows_the_latest_switch_and_says_so() -> None:
    shape = RunShape(epoch_of(480, 8), max_epochs=10)
    plan = make_plan(shape, [AdaptiveWarmup(1e-4, 0.1, decay=Polynomial(1.0))])
    assert plan.summary["adaptive warm-up"].startswith(
        "lr 0.0001 to at most 0.1; the switch falls between update 18 and 300"
    )
    assert [row.phases for row in plan.rows] == [("warm-up, at most",), ("polynomial",)]
    assert [row.updates for row in plan.rows] == [(0, 300), (300, 600)]
    lr = dict(zip(plan.updates, plan.lr[0], strict=True))
    assert lr[150] == pytest.approx(climb(150, 600, 1e-4, 0.1))
    assert lr[300] == pytest.approx(0.1)
    assert lr[450] == pytest.approx(0.05)  # half of the decay
    assert any("shown is the latest switch" in note for note in plan.notes)


# ---------------------------------------------------------------------- what is refused
def _with_scheduler(scheduler: Callable[[Any], Any]) -> Callable[[LightningModule], Any]:
    def configure(module: LightningModule) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        return [optimizer], [scheduler(optimizer)]

    return configure


@pytest.mark.parametrize(
    "scheduler",
    [
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 10),
        lambda o: torch.optim.lr_scheduler.LinearLR(o, 0.1),
        lambda o: torch.optim.lr_scheduler.ConstantLR(o),
    ],
)
def test_any_scheduler_of_the_user_is_refused(scheduler: Any) -> None:
    for decay in (Cosine(), Constant()):
        with pytest.raises(
            MisconfigurationException, match=r"also returns a \w+LR.*choose with the argument module_scheduler"
        ):
            fit([warmup(decay=decay)], module=Toy(_with_scheduler(scheduler)), max_epochs=EPOCHS)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (LearningRateSchedule(Cosine()), "both lower the learning rate"),
        (LearningRateSchedule(Constant(warmup=0.1)), "LearningRateSchedule is attached too, and it would distort"),
        (LearningRateScaling(8), "LearningRateScaling is attached too, and it would scale what the warm-up finds"),
        (BatchSizeRamp(StepRamp([1])), "here and begin='after_warmup' there|begin='start' with"),
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_other_methods_that_fight_are_refused(other: Callback, message: str, first: bool) -> None:
    with pytest.raises(MisconfigurationException, match=message):
        fit([other, warmup()] if first else [warmup(), other], max_epochs=EPOCHS)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0.1, "max_lr": 0.1}, "min_lr=0.1 is not below max_lr=0.1"),
        ({"confidence": 0.5}, r"confidence=0.5 is not allowed; give a probability in \(0.5, 1\)"),
        ({"confidence": 1.0}, "confidence=1.0 is not allowed"),
        ({"on_divergence": "ignore"}, "on_divergence='ignore' is not allowed"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        AdaptiveWarmup(**arguments)


def test_a_run_too_short_is_refused_before_it_trains() -> None:
    module = Valley()
    with pytest.raises(MisconfigurationException, match="so at least 15 updates in the run; train longer"):
        fit([AdaptiveWarmup()], module=module, max_epochs=2)
    assert int(module.seen) == 0


def test_other_setups_that_cannot_work_are_refused() -> None:
    def zero(module: LightningModule) -> Any:
        return torch.optim.SGD(module.parameters(), lr=0.0)

    with pytest.raises(MisconfigurationException, match="has a learning rate of 0, so their ratio is not known"):
        fit([warmup()], module=Toy(zero), max_epochs=EPOCHS)
    trainer = type("Fake", (), {"strategy": FSDPStrategy()})()
    with pytest.raises(
        MisconfigurationException, match="FSDPStrategy may spread over devices; use on_divergence='switch'"
    ):
        warmup(on_divergence="rollback").check(trainer, Toy())
