"""What goes wrong around a run: processes that are killed or stopped, full disks, broken data, changed settings.

The long version with two hundred kills is ``python -m benchmarks.faults``. Children come from a fork server that has
imported everything, so that one costs a second.
"""

from __future__ import annotations

import inspect
import math
import multiprocessing
import multiprocessing.connection
import os
import random
import re
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from benchmarks import faults_report
from benchmarks._processes import end_with_parent
from benchmarks.faults import (
    Attempt,
    Reference,
    comparison,
    decisions,
    differences,
    leaves,
    metrics,
    newest_checkpoint,
    states_of,
)
from benchmarks.faults_runs import (
    ERRORS,
    FINAL,
    LOGS,
    RESTORED,
    SAVE_EVERY,
    UNINTERRUPTED,
    Net,
    StatefulLoader,
    child,
    resnet,
    sgd,
)
from benchmarks.faults_runs import data as samples
from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointedStrategy,
    CheckpointPolicy,
    Cosine,
    GhostBatchNorm,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    StepRamp,
)
from lightning_lr.callbacks import resume_checks
from lightning_lr.journal import Journal
from lightning_lr.strategies.zero.checkpoint import saved_in
from tests.support.processes import SERVER
from tests.support.toy import ResumableLoader, Toy, data, fit, two_groups, weights
from tests.support.zero_runs import needs_deepspeed

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMIT = 900.0  # seconds for anything that a child has to say, on a machine with other work


# ---------------------------------------------------------------------- children
def _work(name: str, world: int, rank: int, folder: Path, attempt: int, pipe: Any, prepare: Any) -> None:
    end_with_parent()
    os.setpgid(0, 0)
    tempfile.tempdir = str(folder / "tmp")
    if prepare is not None:
        prepare(folder)
    child(name, world, rank, folder, attempt, pipe.fileno())


class Child:
    """A process that trains a configuration of the benchmark, one for each rank."""

    def __init__(self, name: str, folder: Path, attempt: int = 0, world: int = 1, prepare: Any = None) -> None:
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        read, write = os.pipe()
        self.pipe = os.fdopen(read, "r", encoding="utf-8")
        self.ranks: list[Any] = []
        with os.fdopen(write, "wb") as end:
            for rank in range(world):
                connection = multiprocessing.connection.Connection(os.dup(end.fileno()), readable=False)
                process = SERVER.Process(target=_work, args=(name, world, rank, folder, attempt, connection, prepare))
                process.start()
                connection.close()
                self.ranks.append(process)

    def wait_for(self, word: str) -> bool:
        """Read on until a line is said; False if the child ended before."""
        return any(line.strip() == word for line in self.pipe)

    def end(self) -> list[int | None]:
        """Exit codes; nothing of it is left."""
        with self.pipe:
            self.pipe.read()
        begin = time.monotonic()
        for process in self.ranks:
            process.join(max(0.1, LIMIT - (time.monotonic() - begin)))
            if process.is_alive():
                process.kill()
                raise AssertionError(f"{process.name} did not end within {LIMIT:.0f} seconds")
        return [process.exitcode for process in self.ranks]


def result(folder: Path) -> tuple[Any, Any, Any]:
    """All that a run has left: what it logged, its journals, and its state in the end."""
    logged = metrics(folder / LOGS / "metrics.csv")
    return logged, decisions(folder), torch.load(folder / FINAL, weights_only=False)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[Any, Any, Any]]:
    known: dict[str, tuple[Any, Any, Any]] = {}

    def of(name: str) -> tuple[Any, Any, Any]:
        if name not in known:
            folder = tmp_path_factory.mktemp("whole")
            assert Child(name, folder).end() == [0], (folder / ERRORS).read_text()
            known[name] = result(folder)
        return known[name]

    return of


def assert_went_on_as(folder: Path, whole: tuple[Any, Any, Any], began: int) -> None:
    logged, journals, final = result(folder)
    assert differences(final, whole[2]) == []
    assert differences(journals, whole[1]) == []
    assert logged == {step: values for step, values in whole[0].items() if step >= began}


# ---------------------------------------------------------------------- killed, stopped
@pytest.mark.parametrize(
    "name", ["ramp and ghost batch norm", pytest.param("hypergradient and schedule", marks=pytest.mark.slow)]
)
def test_killed_at_random_places_goes_on_to_the_last_bit(name: str, uninterrupted: Any, tmp_path: Path) -> None:
    whole, chance, newest = uninterrupted(name), random.Random(name), 0
    for attempt in range(3):
        running = Child(name, tmp_path, attempt)
        assert running.wait_for(f"update {newest + chance.randint(4, 12)}")
        time.sleep(chance.random() * 0.02)
        running.ranks[0].kill()
        assert running.end() == [-signal.SIGKILL]
        checkpoint = newest_checkpoint(tmp_path)
        assert checkpoint is not None
        newest = torch.load(checkpoint, weights_only=True)["global_step"]
        (tmp_path / LOGS / "metrics.csv").unlink(missing_ok=True)
    assert Child(name, tmp_path, 3).end() == [0], (tmp_path / ERRORS).read_text()
    assert newest > 6
    assert_went_on_as(tmp_path, whole, began=newest)


@pytest.mark.slow
def test_the_benchmark_compares_what_a_resume_restores_before_it_logs_anything(tmp_path: Path) -> None:
    """Killed again at once, it has no metric to compare: then the state that it began with is what is compared."""
    name, whole, killed = "hypergradient and schedule", tmp_path / "whole", tmp_path / "killed"
    assert Child(name, whole, UNINTERRUPTED).end() == [0], (whole / ERRORS).read_text()
    states = states_of(whole)
    last = max(states)
    assert set(states) == set(range(0, last + 1, SAVE_EVERY))
    first = Child(name, killed)
    assert first.wait_for("update 7")
    first.ranks[0].kill()
    first.end()
    newest = newest_checkpoint(killed)
    assert newest is not None
    restored = torch.load(newest, weights_only=True)["global_step"]
    (killed / LOGS / "metrics.csv").unlink(missing_ok=True)
    (killed / RESTORED).unlink()
    again = Child(name, killed, 1)
    assert again.wait_for(f"start {restored}")
    again.ranks[0].kill()
    again.end()
    (killed / LOGS / "metrics.csv").unlink(missing_ok=True)  # had it logged something after all
    state = torch.load(killed / RESTORED, weights_only=False)

    def compared_with(known: dict[int, dict[str, Any]]) -> dict[str, Any]:
        torch.save(state, killed / RESTORED)
        reference = Reference({}, {}, {}, known, 1.0, 1.0)
        return comparison(Attempt([], -1, [(0.0, f"start {restored}")]), killed, reference)

    found = compared_with(states)
    assert found == {
        "restored": restored, "restored_values": leaves(state), "values": 0, "steps": 0, "wrong": [],
    }  # fmt: skip
    assert leaves(state) > 30
    other = states[restored] | {"weights": states[last]["weights"]}
    wrong = compared_with(states | {restored: other})["wrong"]
    assert wrong
    assert all(where.startswith(f"restored at {restored}: /weights/") for where in wrong)
    assert compared_with({})["wrong"], "an update at which the uninterrupted run has no state"


def test_a_resume_of_which_nothing_was_compared_is_not_counted_as_identical() -> None:
    def record(*kills: dict[str, Any], **more: Any) -> dict[str, Any]:
        common = {"checkpoint": 3, "left_in_tmp": 0, "codes": [-9], "ranks": [0], "in_save": False, "wrong": []}
        config = {"name": "n", "world": 1, "seed": 0}
        return {
            "config": config, "kills": [common | kill for kill in kills], "failed": [], "final": [], "journals": [],
            **more,
        }  # fmt: skip

    old = record({"values": 0}, {"values": 7})
    assert (faults_report.compared(old), faults_report.identical(old)) == (1, 1)
    new = record({"values": 0, "restored_values": 40}, {"values": 7, "restored_values": 40})
    assert (faults_report.compared(new), faults_report.identical(new)) == (2, 2)
    differs = record({"values": 0, "restored_values": 40, "wrong": ["w"]}, {"values": 7, "restored_values": 40})
    assert (faults_report.compared(differs), faults_report.identical(differs)) == (2, 1)
    assert faults_report.identical(record({"values": 7}, final=["/weights"])) == 0


def test_the_table_of_kills_says_how_many_were_compared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kill = {"checkpoint": 3, "left_in_tmp": 0, "codes": [-9], "ranks": [0], "in_save": False, "wrong": []}
    kills = [kill | {"values": values} for values in (0, 5, 6)]
    record = {
        "config": {"name": "n", "world": 1, "seed": 0}, "kills": kills, "failed": [], "final": [], "journals": [],
    }  # fmt: skip
    assert faults_report.write([record], tmp_path / "faults.md") == 0
    text = capsys.readouterr().out
    assert "1 of 1 ended bit-identical" in text
    assert "2 of 2 resumes that were compared are bit-identical in every value; 1 were killed again" in text
    assert "| n | 1 | 3 | 0 | 0 | 3 of 3 | 1 of 1 | 2 of 3 | 2 of 2 | 11 |" in text
    kills[1]["wrong"] = ["step 3: loss=1, not 2"]
    assert faults_report.write([record], tmp_path / "faults.md") == 1
    assert "step 3: loss=1" in capsys.readouterr().out


class Signalled(Callback):
    """Sends its own process a signal at an update."""

    def __init__(self, update: int) -> None:
        self.update = update

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == self.update:
            os.kill(os.getpid(), signal.SIGTERM)


def _ramped() -> tuple[list[Callback], Any]:
    callbacks: list[Callback] = [
        BatchSizeRamp(StepRamp([1, 2], factor=3), max_micro_batch_size=8),
        HypergradientDescent(rule="normalized"),
        LayerwiseLRDecay(0.5),
    ]
    return callbacks, DataLoader(data(), batch_size=8, shuffle=True)


def _scheduled() -> tuple[list[Callback], Any]:
    callbacks: list[Callback] = [
        LearningRateSchedule(Cosine(warmup=0.2)),
        ActivationCompression(4, group_size=32),
        GradualUnfreezing(layers=["body", "head"]),
    ]
    return callbacks, ResumableLoader(data(), 8)


@pytest.mark.parametrize("make", [_ramped, _scheduled])
def test_stopped_by_sigterm_saves_and_goes_on_to_the_last_bit(make: Any, tmp_path: Path) -> None:
    def run(*more: Callback, **arguments: Any) -> LightningModule:
        torch.manual_seed(5)
        callbacks, loader = make()
        return fit([*callbacks, *more], loader=loader, max_epochs=4, **arguments)[0]

    whole = run()
    save = ModelCheckpoint(tmp_path, filename="stopped", save_on_exception=True, every_n_epochs=100)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(BaseException) as stopped:  # noqa: PT011  # Lightning's own kind, which is not public
        run(Signalled(8), save, enable_checkpointing=True)
    assert type(stopped.value).__name__ == "SIGTERMException"
    assert signal.getsignal(signal.SIGTERM) == before
    state = torch.load(tmp_path / "stopped.ckpt", weights_only=True)
    assert state["global_step"] == 8
    torch.manual_seed(6)
    assert torch.equal(weights(run(ckpt_path=str(tmp_path / "stopped.ckpt"))), weights(whole))


def test_a_rank_that_dies_ends_the_other_and_leaves_a_checkpoint(tmp_path: Path) -> None:
    running = Child("hypergradient and schedule", tmp_path, world=2)
    assert running.wait_for("update 8")
    running.ranks[1].kill()
    begin = time.monotonic()
    assert running.end() == [1, -signal.SIGKILL]
    assert time.monotonic() - begin < LIMIT
    checkpoint = newest_checkpoint(tmp_path)
    assert checkpoint is not None
    assert torch.load(checkpoint, weights_only=True)["global_step"] >= 6
    assert "RuntimeError" in (tmp_path / ERRORS).read_text()


@needs_deepspeed
@pytest.mark.parametrize(
    "name",
    ["ZeRO stage 2, layer-wise, schedule", pytest.param("ZeRO stage 3, layer-wise, ramp", marks=pytest.mark.slow)],
)
def test_a_kill_while_shards_are_saved_goes_on_to_the_last_bit(name: str, tmp_path: Path) -> None:
    """Two ranks write a folder together; one is killed in the midst, then both."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert Child(name, whole, world=2).end() == [0, 0], (whole / ERRORS).read_text()
    newest = 0
    for attempt, ranks in enumerate(([1], [0, 1])):
        running = Child(name, killed, attempt, world=2)
        assert running.wait_for(f"saving {newest + 6}")
        time.sleep(0.01 * attempt)
        for rank in ranks:
            running.ranks[rank].kill()
        assert all(code != 0 for code in running.end())
        checkpoint = newest_checkpoint(killed)
        assert checkpoint is not None
        newest = saved_in(checkpoint)["global_step"]
        assert newest % SAVE_EVERY == 0
        (killed / LOGS / "metrics.csv").unlink(missing_ok=True)
    assert Child(name, killed, 2, world=2).end() == [0, 0], (killed / ERRORS).read_text()
    assert newest >= 6
    assert_went_on_as(killed, result(whole), began=newest)


# ---------------------------------------------------------------------- places that are easily lost
def test_a_resume_at_the_end_of_an_epoch_leaves_the_counters_as_they_would_be(tmp_path: Path) -> None:
    """Lightning 2.6.6 begins the next epoch without counting it; the second resume then was a batch off."""

    def run(folder: Path, ckpt: Path | None = None) -> tuple[LightningModule, list[str]]:
        save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        begun: list[str] = []

        class Epochs(Callback):
            def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
                begun.append(f"epoch {trainer.current_epoch} after {trainer.global_step}")

        callbacks = [LearningRateSchedule(Cosine()), Epochs(), save]
        loader, path = ResumableLoader(data(), 8), None if ckpt is None else str(ckpt)
        return fit(callbacks, loader=loader, max_epochs=4, enable_checkpointing=True, ckpt_path=path)[0], begun

    whole, begun = run(tmp_path / "whole")
    again, begun_again = run(tmp_path / "again", tmp_path / "whole" / "step=12.ckpt")
    assert begun_again == begun[2:]
    assert torch.equal(weights(again), weights(whole))
    for step in (13, 18, 20):
        loops = [
            torch.load(tmp_path / folder / f"step={step}.ckpt", weights_only=True)["loops"]["fit_loop"]
            for folder in ("whole", "again")
        ]
        for part in ("epoch_progress", "epoch_loop.state_dict", "epoch_loop.batch_progress"):
            assert loops[0][part] == loops[1][part], (step, part)
    third, begun_third = run(tmp_path / "third", tmp_path / "again" / "step=13.ckpt")
    assert begun_third == begun[3:]
    assert torch.equal(weights(third), weights(whole))


def test_a_ramp_keeps_the_order_that_a_distributed_sampler_began_with(tmp_path: Path) -> None:
    """Lightning seeds it by ``seed_everything``, which a run that goes on may have called with another number."""

    def run(seed: int, *more: Callback, **arguments: Any) -> LightningModule:
        sampler = DistributedSampler(data(), num_replicas=1, rank=0, shuffle=True, seed=seed)
        loader = DataLoader(data(), batch_size=4, sampler=sampler)
        done = fit([BatchSizeRamp(StepRamp([1], factor=2)), *more], loader=loader, **arguments)[0]
        assert sampler.seed == seed, "given back"
        return done

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = run(1, save, enable_checkpointing=True)
    assert torch.equal(weights(run(2, ckpt_path=str(tmp_path / "step=5.ckpt"))), weights(whole))
    assert not torch.equal(weights(run(2)), weights(whole)), "the comparison can fail"


@pytest.mark.parametrize("update", [3, 4, 5])
def test_compression_goes_on_under_checkpointing_as_if_never_stopped(update: int, tmp_path: Path) -> None:
    """Also where it measures (every 4 updates) before the strategy has made a step to plan by."""

    def run(*more: Callback, **arguments: Any) -> LightningModule:
        torch.manual_seed(1)
        module = Net(resnet(), num_classes=4)
        module.make_optimizer = sgd
        callbacks: list[Callback] = [ActivationCompression("auto", group_size=32, probe_every=4), *more]
        strategy = CheckpointedStrategy(CheckpointPolicy(segments="every_block"))
        loader = StatefulLoader(samples(48), 8, 0, 1)
        return fit(callbacks, module=module, loader=loader, strategy=strategy, max_epochs=2, **arguments)[0]

    whole = run(
        ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1), enable_checkpointing=True
    )
    resumed = run(ckpt_path=str(tmp_path / f"step={update}.ckpt"))
    assert torch.equal(weights(resumed), weights(whole))


def test_compression_goes_on_under_a_strategy_that_was_told_not_to_checkpoint(tmp_path: Path) -> None:
    """ZeRO's strategies have a policy only where one is given."""

    def run(*more: Callback, **arguments: Any) -> LightningModule:
        strategy = CheckpointedStrategy()
        strategy.policy = None
        return fit([ActivationCompression(8, group_size=16), *more], loader=ResumableLoader(data(), 8),
                   strategy=strategy, **arguments)[0]  # fmt: skip

    whole = run(
        ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1), enable_checkpointing=True
    )
    assert torch.equal(weights(run(ckpt_path=str(tmp_path / "step=5.ckpt"))), weights(whole))


# ---------------------------------------------------------------------- the disk
class _NoMoreRoom(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 7:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (1024, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))


def _fill_the_disk(folder: Path, pipe: Any) -> None:
    """Train with a limit on the size of files from update 7 on."""
    tempfile.tempdir = str(folder / "tmp")
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_last=True)
    with pytest.warns(UserWarning, match="could not be written") as said, pytest.raises(OSError) as error:  # noqa: PT011
        fit(
            [LearningRateSchedule(Cosine()), _NoMoreRoom(), save],
            loader=ResumableLoader(data(), 8), enable_checkpointing=True,
        )  # fmt: skip
    pipe.send((error.value.errno, [str(warning.message) for warning in said]))


def test_full_disk_leaves_the_checkpoint_before_and_names_the_folders(tmp_path: Path) -> None:
    (tmp_path / "tmp").mkdir()
    here, there = SERVER.Pipe()
    process = SERVER.Process(target=_fill_the_disk, args=(tmp_path, there))
    process.start()
    there.close()
    assert here.poll(LIMIT)
    errno, said = here.recv()
    process.join(LIMIT)
    assert os.strerror(errno) == "File too large"
    warning = next(message for message in said if "could not be written" in message)
    assert str(tmp_path) in warning
    assert str(tmp_path / "tmp") in warning
    assert list((tmp_path / "tmp").iterdir()) == [], "half a checkpoint"
    last = newest_checkpoint(tmp_path)
    assert last is not None
    assert torch.load(last, weights_only=True)["global_step"] == 6
    resumed, trainer = fit([LearningRateSchedule(Cosine())], loader=ResumableLoader(data(), 8), ckpt_path=str(last))
    assert trainer.global_step == 18
    assert torch.equal(
        weights(resumed), weights(fit([LearningRateSchedule(Cosine())], loader=ResumableLoader(data(), 8))[0])
    )


def test_a_journal_that_cannot_be_written_warns_once_with_its_path(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    journal = Journal(tmp_path / "file" / "schedule.jsonl")
    with pytest.warns(UserWarning, match=r"the journal .*file/schedule\.jsonl cannot be written") as seen:  # noqa: PT031
        journal.append(0, "start")
        journal.append(1, "grown")
        journal.truncate(0)
    assert len(seen) == 1


@pytest.mark.parametrize("across", [False, True])
def test_a_kill_while_the_checkpoint_is_moved(across: bool, tmp_path: Path) -> None:
    """Lightning moves the file that it wrote into the folder for temporary files. On one file system that is atomic;
    from one to another it is a copy, and a kill leaves half a checkpoint under the name of a whole one."""
    process = SERVER.Process(target=_killed_in_the_move, args=(tmp_path, across))
    process.start()
    process.join(LIMIT)
    assert process.exitcode == -signal.SIGKILL
    saved = sorted(path.name for path in tmp_path.glob("*.ckpt"))
    if not across:
        assert saved == ["step=3.ckpt"]
    else:  # not ours to mend: set TMPDIR to a folder on the checkpoints' disk
        assert saved == ["step=3.ckpt", "step=6.ckpt"]
        with pytest.raises(Exception, match=r"zip|EOF|corrupt|archive"):
            torch.load(tmp_path / "step=6.ckpt", weights_only=True)
    assert torch.load(tmp_path / "step=3.ckpt", weights_only=True)["global_step"] == 3


def _killed_in_the_move(folder: Path, across: bool) -> None:
    rename, moves = os.rename, []

    def moved(source: Any, target: Any) -> None:
        moves.append(target)
        if len(moves) == 1:
            rename(source, target)
        elif across:
            raise OSError(18, "Invalid cross-device link")
        else:
            os.kill(os.getpid(), signal.SIGKILL)

    def half(source: Any, target: Any, **_: Any) -> None:
        Path(target).write_bytes(Path(source).read_bytes()[: Path(source).stat().st_size // 2])
        os.kill(os.getpid(), signal.SIGKILL)

    os.rename, shutil.copy2 = moved, half
    shutil.move.__defaults__ = (half,)
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=3, save_top_k=-1)
    fit([LearningRateSchedule(Cosine()), save], enable_checkpointing=True)


# ---------------------------------------------------------------------- data
def _with_nan(at: int) -> TensorDataset:
    x, y = data().tensors
    x = x.clone()
    x[at] = math.nan
    return TensorDataset(x, y)


class _NanOnce(TensorDataset):
    """A sample that is not a number the first time that it is read."""

    read = False

    def __getitem__(self, index: Any) -> Any:
        x, y = super().__getitem__(index)
        if index == 20 and not self.read:
            self.read = True
            return torch.full_like(x, math.nan), y
        return x, y


def _adamw(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


NAN_CASES: dict[str, tuple[Callable[[], list[Callback]], str | None]] = {
    # what is left: finite weights (None), or what the error says
    "warm-up, rollback": (
        lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=2, on_divergence="rollback")],
        None,
    ),
    "warm-up, switch": (lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=2)], "no longer finite"),
    "warm-up, raise": (
        lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=2, on_divergence="raise")],
        "the loss is not finite",
    ),
    "hypergradient": (lambda: [HypergradientDescent(rule="normalized")], None),
}


@pytest.mark.parametrize("case", NAN_CASES)
def test_nan_in_a_batch_ends_in_finite_weights_or_a_clear_error(case: str) -> None:
    make, says = NAN_CASES[case]
    # a rollback is there for the climb: what is not a number in every epoch also comes after it, where nobody watches
    samples = _NanOnce(*data().tensors) if "rollback" in case else _with_nan(20)
    module, loader = Toy(_adamw), DataLoader(samples, batch_size=8)
    if says is None:
        fit(make(), module=module, loader=loader, max_epochs=4)
        assert torch.isfinite(weights(module)).all()
    else:
        with pytest.raises(RuntimeError, match=says):
            fit(make(), module=module, loader=loader, max_epochs=4)


def test_nan_in_a_batch_does_not_stay_in_what_is_measured() -> None:
    class Skips(Toy):  # what a careful module does; the measurement has seen the gradient by then
        def on_before_optimizer_step(self, optimizer: Any) -> None:
            if not all(torch.isfinite(p.grad).all() for p in self.parameters() if p.grad is not None):
                optimizer.zero_grad()

    scale = GradientNoiseScale(smoothing=0.5)
    module = Skips()
    fit([scale], module=module, loader=DataLoader(_with_nan(20), batch_size=4), accumulate_grad_batches=2)
    assert scale.estimator.value is not None
    assert math.isfinite(scale.estimator.squared_gradient or math.nan)
    assert torch.isfinite(weights(module)).all()


@pytest.mark.parametrize("bits", [8, "auto"])
def test_compression_does_not_hide_a_nan(bits: Any) -> None:
    module = Toy()
    fit([ActivationCompression(bits, group_size=16, probe_every=3)], module=module, loader=DataLoader(_with_nan(20), 8))
    bare = Toy()
    fit([], module=bare, loader=DataLoader(_with_nan(20), 8))
    assert torch.equal(torch.isnan(weights(module)), torch.isnan(weights(bare)))


class _Crashing(TensorDataset):
    """A worker dies at a sample, as by the kernel's out-of-memory killer."""

    def __getitem__(self, index: Any) -> Any:
        if index == 20 and torch.utils.data.get_worker_info() is not None:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().__getitem__(index)


def test_a_loader_worker_that_dies_leaves_nothing_of_ours() -> None:
    module = Toy(two_groups)
    before = dict(vars(module))
    loader = DataLoader(_Crashing(*data().tensors), batch_size=8, num_workers=1)
    given = loader.batch_sampler
    callbacks: list[Callback] = [
        BatchSizeRamp(StepRamp([1], factor=2)),
        HypergradientDescent(rule="normalized"),
        LayerwiseLRDecay(0.5, layers=["body", "head"]),
        ActivationCompression(8, group_size=16),
    ]
    with pytest.raises((RuntimeError, ConnectionError), match=r"DataLoader worker|reset by peer"):  # whichever is first
        fit(callbacks, module=module, loader=loader)
    assert loader.batch_sampler is given
    shadowed = ("lr_scheduler_step", "configure_gradient_clipping", "configure_optimizers", "on_before_optimizer_step")
    assert not [name for name in shadowed if name in vars(module)]
    assert not [parameter for parameter in module.parameters() if parameter._backward_hooks]
    module.load_state_dict(Toy(two_groups).state_dict())
    again, _ = fit(callbacks, module=module)
    fresh: list[Callback] = [
        BatchSizeRamp(StepRamp([1], factor=2)),
        HypergradientDescent(rule="normalized"),
        LayerwiseLRDecay(0.5, layers=["body", "head"]),
        ActivationCompression(8, group_size=16),
    ]
    assert torch.equal(weights(again), weights(fit(fresh, module=Toy(two_groups))[0]))
    assert set(before) <= set(vars(module))


def test_a_second_fit_without_us_is_a_bare_one() -> None:
    for make in (_ramped, _scheduled):
        module = Toy()
        fit(make()[0], module=module)
        bare = Toy()
        bare.load_state_dict(module.state_dict())
        fit([], module=module)
        fit([], module=bare)
        assert torch.equal(weights(module), weights(bare))


# ---------------------------------------------------------------------- changed settings
ALL: dict[str, Callable[[], Any]] = {
    "ActivationCompression": ActivationCompression,
    "AdaptiveWarmup": AdaptiveWarmup,
    "BatchSizeRamp": lambda: BatchSizeRamp(StepRamp([1])),
    "GhostBatchNorm": GhostBatchNorm,
    "GradientNoiseScale": GradientNoiseScale,
    "GradualUnfreezing": GradualUnfreezing,
    "HypergradientDescent": HypergradientDescent,
    "LayerwiseLRDecay": LayerwiseLRDecay,
    "LearningRateScaling": LearningRateScaling,
    "LearningRateSchedule": lambda: LearningRateSchedule(Cosine()),
    "NormalizedWeightDecay": NormalizedWeightDecay,
}


@pytest.mark.parametrize("name", ALL)
def test_every_argument_is_compared(name: str) -> None:
    callback = ALL[name]()
    old = {"rule"} if name == "LearningRateScaling" else set()  # another name for an argument, for one version
    expected = set(inspect.signature(type(callback).__init__).parameters) - set(resume_checks.NOT_COMPARED) - old
    assert set(resume_checks.settings_of(callback)) == expected


def test_the_same_settings_are_the_same_text() -> None:
    one = HypergradientDescent(1, bounds=(1, 10.0))  # type: ignore[arg-type]
    other = HypergradientDescent(1.0, bounds=[1.0, 10])  # type: ignore[arg-type]
    assert resume_checks.settings_of(one) == resume_checks.settings_of(other)
    assert resume_checks.settings_of(LearningRateSchedule(Cosine())) != resume_checks.settings_of(
        LearningRateSchedule(Cosine(floor=0.1))
    )


def _saved(callbacks: list[Callback], folder: Path, **arguments: Any) -> None:
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    fit([*callbacks, save], loader=ResumableLoader(data(), 8), enable_checkpointing=True, max_epochs=3, **arguments)


def _resumed(callbacks: list[Callback], folder: Path, step: int, batch_size: int = 8, **arguments: Any) -> Trainer:
    arguments.setdefault("max_epochs", 3)
    loader = ResumableLoader(data(), batch_size)
    return fit(callbacks, loader=loader, ckpt_path=str(folder / f"step={step}.ckpt"), **arguments)[1]


def _ramp(**arguments: Any) -> list[Callback]:
    return [BatchSizeRamp(**{"schedule": StepRamp([1, 2], factor=2), "max_micro_batch_size": 16, **arguments})]


Callbacks = Callable[[], list[Callback]]
REFUSED: dict[str, tuple[Callbacks, Callbacks, int, str]] = {
    "rule": (
        lambda: [HypergradientDescent(rule="normalized")],
        lambda: [HypergradientDescent(rule="additive")],
        8,
        r"got rule='additive', and the checkpoint was made with rule='normalized'",
    ),
    "scope": (
        lambda: [HypergradientDescent(scope="global")],
        lambda: [HypergradientDescent()],
        8,
        r"got scope='group', and the checkpoint was made with scope='global'",
    ),
    "climb": (
        lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=1, confidence=1 - 1e-9, max_warmup=0.9)],
        lambda: [AdaptiveWarmup(1e-3, 0.5, patience=1, check_every=1, confidence=1 - 1e-9, max_warmup=0.9)],
        4,
        r"got max_lr=0.5, and the checkpoint was made with max_lr=0.1: the losses",
    ),
    "ramp inside an epoch": (
        _ramp,
        lambda: _ramp(schedule=StepRamp([1], factor=3)),
        8,
        r"got schedule=StepRamp\(milestones=\[1\].*made with schedule=StepRamp\(milestones=\[1, 2\]",
    ),
    "micro-batch inside an epoch": (_ramp, lambda: _ramp(max_micro_batch_size=8), 8, r"got max_micro_batch_size=8"),
    "bits": (
        lambda: [ActivationCompression("auto", group_size=16)],
        lambda: [ActivationCompression(8, group_size=16)],
        8,
        r"got bits=8, and the checkpoint was made with bits='auto'",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_settings_that_the_state_depends_on_are_refused(case: str, tmp_path: Path) -> None:
    first, then, step, says = REFUSED[case]
    _saved(first(), tmp_path)
    with pytest.raises(MisconfigurationException, match=says):
        _resumed(then(), tmp_path, step)
    _resumed(first(), tmp_path, step)


SAID: dict[str, tuple[Callbacks, Callbacks, int, str]] = {
    "curve": (
        lambda: [LearningRateSchedule(Cosine())],
        lambda: [LearningRateSchedule(Cosine(floor=0.1))],
        8,
        r"LearningRateSchedule: training goes on with curve Cosine\(.*floor=0.1.*instead of Cosine\(",
    ),
    "hyper_lr": (
        lambda: [HypergradientDescent(1e-3)],
        lambda: [HypergradientDescent(1e-4)],
        8,
        r"hyper_lr 0.0001 instead of 0.001",
    ),
    "after the switch": (
        lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=1, max_warmup=0.5)],
        lambda: [AdaptiveWarmup(1e-3, 0.5, patience=1, check_every=1, max_warmup=0.5)],
        16,
        r"max_lr 0.5 instead of 0.1",
    ),
    "ramp between epochs": (
        _ramp,
        lambda: _ramp(schedule=StepRamp([1], factor=3)),
        6,
        r"BatchSizeRamp: training goes on with schedule",
    ),
}


@pytest.fixture
def infos(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    said: list[str] = []
    monkeypatch.setattr(resume_checks, "rank_zero_info", said.append)
    return said


@pytest.mark.parametrize("case", SAID)
def test_settings_that_may_change_are_said_once(case: str, tmp_path: Path, infos: list[str]) -> None:
    first, then, step, says = SAID[case]
    _saved(first(), tmp_path)
    assert infos == []
    _resumed(first(), tmp_path, step)
    assert infos == []
    _resumed(then(), tmp_path, step)
    assert len(infos) == 1
    assert re.search(says, infos[0]), infos


def test_a_longer_run_is_allowed_and_said(tmp_path: Path, infos: list[str]) -> None:
    _saved([LearningRateSchedule(Cosine())], tmp_path)
    trainer = _resumed([LearningRateSchedule(Cosine())], tmp_path, 8, max_epochs=5)
    assert trainer.global_step == 30
    assert len(infos) == 1
    assert "max_epochs 5 instead of 3" in infos[0]
    assert "a share of the new length" in infos[0]


def test_another_batch_size(tmp_path: Path, infos: list[str]) -> None:
    """Between epochs it may change; inside one its place would be another, and it is refused."""
    _saved([LearningRateSchedule(Cosine())], tmp_path / "plain")
    with pytest.raises(MisconfigurationException, match="inside an epoch with micro-batch 4 instead of 8"):
        _resumed([LearningRateSchedule(Cosine())], tmp_path / "plain", 8, batch_size=4)
    _resumed([LearningRateSchedule(Cosine())], tmp_path / "plain", 6, batch_size=4)
    assert infos.pop() == "lightning_lr: training goes on with micro-batch 4 instead of 8"
    _saved(_ramp(), tmp_path / "ramp")
    with pytest.raises(MisconfigurationException, match=r"BatchSizeRamp: .* with micro-batch 4 instead of 8"):
        _resumed(_ramp(), tmp_path / "ramp", 8, batch_size=4)
    _resumed(_ramp(), tmp_path / "ramp", 6, batch_size=4)
    assert infos == ["lightning_lr: training goes on with micro-batch 4 instead of 8"]


def test_other_devices(tmp_path: Path, infos: list[str]) -> None:
    """As a checkpoint of two devices says it; the number is the only thing that is known of them."""
    _saved(_ramp(), tmp_path)
    for step in (6, 8):
        path = tmp_path / f"step={step}.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["callbacks"]["BatchSizeRamp"]["run"]["devices"] = 2
        torch.save(checkpoint, path)
    with pytest.raises(MisconfigurationException, match="devices 1 instead of 2"):
        _resumed(_ramp(), tmp_path, 8)
    _resumed(_ramp(), tmp_path, 6)
    assert infos == ["lightning_lr: training goes on with devices 1 instead of 2"]


def test_a_checkpoint_without_a_record_of_settings_is_not_compared(tmp_path: Path, infos: list[str]) -> None:
    _saved(_ramp(), tmp_path)
    path = tmp_path / "step=8.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    for name in ("settings", "run"):
        del checkpoint["callbacks"]["BatchSizeRamp"][name]
    torch.save(checkpoint, path)
    _resumed(_ramp(lr_rule="sqrt"), tmp_path, 8)
    assert infos == []
