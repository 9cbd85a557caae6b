"""Where a run is: several loaders, epochs of other sizes, no end, stopped and begun again, used before, ended early."""

from __future__ import annotations

import copy
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, Timer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    Constant,
    Cosine,
    CriticalBatchSize,
    CurveRamp,
    GhostBatchNorm,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    LearningRateSearch,
    NormalizedWeightDecay,
    Polynomial,
)
from tests.support.random_loops import Lying, Places
from tests.support.toy import Probe, Stream, Toy, data, fit, quiet, weights

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def linear() -> LearningRateSchedule:
    return LearningRateSchedule(Polynomial(power=1.0))


def falls(updates: int, of: int | None = None, first: int = 0) -> Any:
    """Learning rates of a linear decay."""
    return pytest.approx([0.05 * (1 - u / (of or updates)) for u in range(first, updates)], rel=1e-12)


# ---------------------------------------------------------------------- several loaders
class Several(Toy):
    """Reads a batch of each loader at every step."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        parts = [part for part in batch.values() if part is not None]
        return sum(super(Several, self).training_step(part, batch_idx) for part in parts)  # type: ignore[return-value]


@pytest.mark.parametrize(("mode", "updates"), [("max_size_cycle", 12), ("max_size", 12), ("min_size", 4)])
def test_a_short_loader_in_front_does_not_end_the_curve(mode: Any, updates: int) -> None:
    loaders = {"a": DataLoader(data(8), batch_size=4), "b": DataLoader(data(24), batch_size=4)}
    probe, callback = Probe(), linear()
    fit([callback, probe], module=Several(), loader=CombinedLoader(loaders, mode), max_epochs=2)
    assert probe.first == falls(updates)
    clock = callback.clock_state
    assert clock is not None
    read = {"max_size_cycle": 12 * 8, "max_size": 2 * (8 + 24), "min_size": 4 * 8}[mode]
    assert (clock["samples_seen"], clock["samples_counted"]) == (read, True)


def test_a_batch_of_each_loader_is_the_batch() -> None:
    loaders = {"a": DataLoader(data(24), batch_size=4), "b": DataLoader(data(24), batch_size=4)}
    probe = Probe()
    fit([LearningRateScaling(8), probe], module=Several(), loader=loaders)
    assert set(probe.first) == {0.05}


# ---------------------------------------------------------------------- epochs that are not as told
def test_a_run_that_ends_early_tells_where_its_curve_is() -> None:
    with pytest.warns(UserWarning, match=r"ended after 9 updates at 0\.833 of its budget .*batches of an epoch 6"):
        fit([linear()], loader=DataLoader(Lying(6, 3), batch_size=1), module=_number())


@pytest.mark.parametrize("stop", ["nothing", "should_stop", "early stopping", "exception"])
def test_a_run_that_was_stopped_or_ends_at_its_end_does_not(stop: str) -> None:
    class Stops(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 5:
                trainer.should_stop = stop == "should_stop"
                if stop == "exception":
                    raise RuntimeError

    more: list[Callback] = [Stops()]
    if stop == "early stopping":
        more = [EarlyStopping("train_loss", mode="max", patience=0)]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="lightning_lr")
        try:
            fit([linear(), *more])
        except RuntimeError:
            assert stop == "exception"


def test_updates_after_the_budget_is_spent_are_told_once() -> None:
    """A Timer that looks at the end of epochs alone lets an epoch go on."""
    with pytest.warns(UserWarning, match=r"budget of the run is spent \(.*max_time 1e-06 s.*before update") as told:
        fit([linear(), Timer({"microseconds": 1}, interval="epoch")], max_epochs=-1)
    assert len([warning for warning in told if "is spent" in str(warning.message)]) <= 1


def test_time_is_a_budget_and_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    def places(seconds: float, elapsed: float, **arguments: Any) -> Places:
        found = Places()

        class Clocked(Timer):
            def time_elapsed(self, stage: Any = "train") -> float:
                return self._offset + elapsed

        fit([Clocked({"seconds": seconds}), found], max_epochs=-1, max_steps=3, **arguments)
        return found

    assert places(10, 4).updates == [0.4, 0.4, 2 / 3]
    assert places(100, 4).updates == [0.04, 1 / 3, 2 / 3]


def _number() -> LightningModule:
    class Number(Toy):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            return self.head(self.body(torch.ones(1, 6))).sum() * 0  # type: ignore[no-any-return]

    return Number()


# ---------------------------------------------------------------------- no end
class Stop(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.should_stop = trainer.global_step >= 8


def _normed() -> Toy:
    module = Toy()
    module.body = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.BatchNorm1d(8))  # type: ignore[assignment]
    return module


def _adamw(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.05)


def _normed_adamw() -> Toy:
    torch.manual_seed(3)
    module = _normed()
    module._configure = _adamw  # importable: Lightning ties a used callback to its module, and pickles both
    return module


ENDLESS: dict[str, Callable[[], Callback]] = {
    "layers": lambda: LayerwiseLRDecay(0.5, layers=["head", "body"]),
    "unfreezing": lambda: GradualUnfreezing(layers=["head", "body"]),
    "noise": GradientNoiseScale,
    "hypergradient": HypergradientDescent,
    "scaling": lambda: LearningRateScaling(4, warmup_epochs=0),
    "constant": lambda: LearningRateSchedule(Constant()),
    "compression": lambda: ActivationCompression(8),
    "ghost": lambda: GhostBatchNorm(4),
}
NEEDING: dict[str, Callable[[], Callback]] = {
    "schedule": linear,
    "climb": lambda: LearningRateSchedule(Constant(warmup=0.1)),
    "warmup": AdaptiveWarmup,
    "ramp": lambda: BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=16),
    "decay": NormalizedWeightDecay,
}


@pytest.mark.parametrize("loader", ["sized", "stream"])
@pytest.mark.parametrize("name", ENDLESS)
def test_methods_that_need_no_end_train_without_one(name: str, loader: str) -> None:
    module = _normed() if name == "ghost" else Toy()
    before = weights(module)
    read: Any = DataLoader(Stream(48), batch_size=8) if loader == "stream" else DataLoader(data(), batch_size=8)
    bar = loader == "sized"  # it shows the phase, which is a share of the run
    _, trainer = fit([ENDLESS[name](), Stop()], module=module, loader=read, max_epochs=-1, enable_progress_bar=bar)
    assert trainer.global_step == 8
    assert not torch.equal(weights(module), before)


@pytest.mark.parametrize("name", NEEDING)
def test_methods_that_need_an_end_refuse_in_the_users_words(name: str) -> None:
    def adamw(module: LightningModule) -> Any:
        return torch.optim.AdamW(module.parameters(), weight_decay=0.1)

    with pytest.raises(MisconfigurationException, match=r"max_epochs=-1 has no end; set max_epochs, max_steps or max_"):
        fit([NEEDING[name]()], module=Toy(adamw), max_epochs=-1)
    with pytest.raises(MisconfigurationException, match=r"max_epochs=3 counts epochs, and the train dataloader has no"):
        fit([NEEDING[name]()], module=Toy(adamw), loader=DataLoader(Stream(48), batch_size=8))


@pytest.mark.parametrize("nothing", [{"max_epochs": 0}, {"max_steps": 0}, {"limit_train_batches": 0}], ids=str)
@pytest.mark.parametrize("make", [*ENDLESS.values(), *NEEDING.values()])
def test_a_run_of_no_update_returns_as_quietly_as_lightning(make: Any, nothing: dict[str, Any]) -> None:
    def adamw(module: LightningModule) -> Any:
        return torch.optim.AdamW(module.parameters(), weight_decay=0.1)

    module = Toy(adamw) if not isinstance(make(), GhostBatchNorm) else _normed()
    before = weights(module)
    fit([make()], module=module, **nothing)
    assert torch.equal(weights(module), before)


# ---------------------------------------------------------------------- stopped, and begun again
@pytest.mark.parametrize("how", [RuntimeError, KeyboardInterrupt])
@pytest.mark.parametrize("at", [7, 17])
def test_an_epoch_that_lightning_runs_again_is_counted_once(at: int, how: type[BaseException]) -> None:
    class Crash(Callback):
        done = False

        def on_train_batch_start(self, trainer: Trainer, module: Any, batch: Any, batch_idx: int) -> None:
            if trainer.global_step == at and not self.done:
                self.done = True
                raise how

    probe = Probe()
    trainer = Trainer(**quiet(callbacks=[linear(), Crash(), probe], max_epochs=3))
    module, loader = Toy(), DataLoader(data(), batch_size=8)
    with pytest.raises((how, SystemExit)):
        trainer.fit(module, loader)
    assert probe.first == falls(at, of=18)
    trainer.should_stop = False
    trainer.fit(module, loader)
    assert probe.first[at:] == falls(18, first=at - at % 6)


def test_more_epochs_after_a_validation_go_on_in_the_longer_run() -> None:
    probe = Probe()
    trainer = Trainer(**quiet(callbacks=[linear(), probe], max_epochs=2))
    module, loader = Toy(), DataLoader(data(), batch_size=8)
    trainer.fit(module, loader)
    trainer.validate(module, DataLoader(data(8), batch_size=8), verbose=False)
    trainer.fit_loop.max_epochs = 4
    trainer.fit(module, loader)
    assert probe.first == [*falls(12).expected, *falls(24, first=12).expected]


# ---------------------------------------------------------------------- an object that was used before
USED: dict[str, Callable[[], list[Callback]]] = {
    "schedule": lambda: [linear()],
    "hypergradient": lambda: [HypergradientDescent(rule="normalized")],
    "ramp": lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=0.3)), max_batch_size=24)],
    "noise": lambda: [GradientNoiseScale()],
}


@pytest.mark.parametrize("name", USED)
def test_a_checkpoint_made_without_a_used_object_finds_it_fresh(name: str, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit([save], enable_checkpointing=True)
    ckpt = str(tmp_path / "epoch=0.ckpt")
    fresh, used = USED[name](), USED[name]()
    fit(used, max_epochs=2)
    probes = Probe(), Probe()
    expected, _ = fit([*fresh, probes[0]], ckpt_path=ckpt)
    found, _ = fit([*used, probes[1]], ckpt_path=ckpt)
    assert probes[1].series == probes[0].series
    assert torch.equal(weights(found), weights(expected))
    if name == "schedule":
        assert probes[1].first == falls(18, first=6)


EACH = {
    "schedule": lambda: [LearningRateSchedule(Cosine(warmup=0.25))],
    "scaling": lambda: [LearningRateScaling(4, warmup_epochs=1)],
    "ramp": lambda: [BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=16)],
    "layer-wise": lambda: [LayerwiseLRDecay(0.5)],
    "unfreezing": lambda: [GradualUnfreezing(layers=["body", "head"])],
    "hypergradient": lambda: [HypergradientDescent()],
    "weight decay": lambda: [NormalizedWeightDecay()],
    "warm-up": lambda: [AdaptiveWarmup(patience=1)],
    "search": lambda: [LearningRateSearch(budget=1.0)],
    "critical batch": lambda: [CriticalBatchSize(at=(0.2,), budget=1.0)],
    "noise scale": lambda: [GradientNoiseScale()],
    "ghosts": lambda: [GhostBatchNorm(4)],
    "compression": lambda: [ActivationCompression(8)],
}  # fmt: skip


@pytest.mark.parametrize("name", list(EACH))
def test_callbacks_can_be_pickled_and_copied_before_and_after_a_fit(name: str) -> None:
    def trained(callbacks: list[Callback]) -> list[Any]:
        probe = Probe()
        more = {"accumulate_grad_batches": 2} if name == "noise scale" else {}
        fit([*callbacks, probe], module=_normed_adamw(), max_epochs=2, **more)
        return probe.series

    used = pickle.loads(pickle.dumps(EACH[name]()))
    first = trained(used)
    assert trained(pickle.loads(pickle.dumps(used))) == first
    assert trained(copy.deepcopy(used)) == first
    assert trained(EACH[name]()) == first


def test_two_ghost_batch_norms_are_refused_by_name() -> None:
    with pytest.raises(MisconfigurationException, match=r"GhostBatchNorm: two of them are attached.*keep one"):
        fit([GhostBatchNorm(4), GhostBatchNorm(8)], module=_normed())
