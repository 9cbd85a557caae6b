"""What an update costs beside the training step, in numbers that no other work on the machine disturbs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Cosine,
    CurveRamp,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    MethodCallback,
    NormalizedWeightDecay,
)
from lightning_lr import lightning_internals as internals
from lightning_lr.hypergradient import AlignmentEstimator, FactorLearner
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


def fit(
    callbacks: list[Callback],
    updates: int,
    groups: int = 1,
    module: LightningModule | None = None,
    accelerator: str = "cpu",
) -> None:
    trainer = Trainer(
        max_steps=updates,
        max_epochs=1,
        accelerator=accelerator,
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


# 191 and 7 (Python 3.11, Lightning 2.6.6); 20 for each group before groups were looked at in whole lists
def test_a_schedule_is_few_calls_an_update_and_fewer_for_each_further_group() -> None:
    one, fifty = (calls_per_update([LearningRateSchedule(Cosine())], groups) for groups in (1, 50))
    assert one <= 205
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
    writer.set_groups_transform("weight_decay", "test", lambda scheduled: [decay * i for i in range(len(scheduled))])
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
    # and two more, so that the optimizer steps with a plain number and a rate that is read remembers the scheduled one
    assert counted[1] - counted[0] == 5 * 3 * 3


class Own(LearningRateSchedule):
    """A user's subclass, with a hook that the base class does not use."""

    name = "own"
    backwards = 0

    def on_after_backward(self, trainer: Trainer, module: LightningModule) -> None:
        self.backwards += 1


def test_a_trainer_passes_over_hooks_in_which_nothing_is_done_until_the_run_ends() -> None:
    called: list[str] = []

    class Profiler(PassThroughProfiler):
        def start(self, action_name: str) -> None:
            called.append(action_name)

    own, layers = Own(Cosine()), LayerwiseLRDecay(0.9, layers=["^net"], no_weight_decay=[])
    trainer = Trainer(max_steps=3, accelerator="cpu", devices=1, callbacks=[own, layers], logger=False,
                      enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
                      profiler=Profiler())  # fmt: skip
    trainer.fit(Linears(3), DataLoader(TensorDataset(torch.randn(64, 4)), batch_size=2))
    during = {name.removeprefix("[Callback]") for name in called if name.startswith("[Callback]") and "batch" in name}
    assert during >= {"Own.on_train_batch_start", "LayerwiseLRDecay.on_train_batch_end"}
    assert "LayerwiseLRDecay.on_train_batch_start" not in during
    assert "[Callback]LayerwiseLRDecay.on_before_backward" not in called
    assert own.backwards == 3
    for callback in (own, layers):
        assert not set(vars(callback)) & set(internals.HOOKS_OF_AN_UPDATE)
        assert all(map(callable, (getattr(callback, hook) for hook in internals.HOOKS_OF_AN_UPDATE)))


class Reads(Callback):
    """Counts what the package reads from a device in five updates, each of which waits for it."""

    READING = ("item", "tolist", "cpu", "numpy", "__float__", "__bool__", "__int__", "__index__")

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.reads: list[str] = []
        self.updates, self.counts = 0, False
        for name in self.READING:
            monkeypatch.setattr(Tensor, name, self._counted(name, getattr(Tensor, name)))

    def on_train_batch_start(self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.counts = 5 <= batch_idx < 10
        self.updates += self.counts

    def _counted(self, name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def counted(tensor: Tensor, *args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1)
            # the warm-up's guard reads a host copy of the loss: on a GPU that of the update before, by its event
            host_copy = caller.f_code.co_filename.endswith("warmup/divergence.py")
            if self.counts and "/lightning_lr/" in caller.f_code.co_filename and not host_copy:
                self.reads.append(f"{name} in {caller.f_code.co_name}")
            return method(tensor, *args, **kwargs)

        return counted


METHODS: dict[str, tuple[Callable[[], list[Callback]], int]] = {
    "schedule": (lambda: [LearningRateSchedule(Cosine(warmup=0.1))], 0),
    "scaling": (lambda: [LearningRateScaling(4, warmup_epochs=0.2)], 0),
    "layers": (lambda: [LayerwiseLRDecay(0.9)], 0),
    "decay": (lambda: [NormalizedWeightDecay()], 0),
    "ramp": (lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))], 0),
    # its one test falls due after what is counted
    "warm-up": (lambda: [AdaptiveWarmup(1e-5, 1e-3, max_warmup=0.95, patience=1, check_every=11)], 0),
    "noise scale": (lambda: [GradientNoiseScale()], 1),
    "unfreezing": (lambda: [GradualUnfreezing()], 0),
    "hypergradient": (lambda: [HypergradientDescent(rule="normalized")], 1),
    "four": (
        lambda: [
            LearningRateSchedule(Cosine()),
            LayerwiseLRDecay(0.9),
            HypergradientDescent(rule="normalized"),
            NormalizedWeightDecay(),
        ],
        1,
    ),
}


@pytest.mark.parametrize("method", METHODS)
def test_an_update_reads_from_the_device_once_at_most(method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, most = METHODS[method]
    reads = Reads(monkeypatch)
    fit([*make(), reads], 12, 3)
    assert reads.updates == 5
    assert len(reads.reads) <= most * reads.updates, sorted(set(reads.reads))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", [name for name, (_, most) in METHODS.items() if not most])
def test_an_update_does_not_wait_for_a_gpu(method: str) -> None:
    class Strict(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("error" if 5 <= trainer.global_step < 10 else "default")

        def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")

    try:
        fit([*METHODS[method][0](), Strict()], 12, 3, accelerator="gpu")
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
@pytest.mark.parametrize("method", [name for name, (_, most) in METHODS.items() if most])
def test_an_update_waits_for_a_gpu_once_at_most(method: str) -> None:
    class Warned(Callback):
        def on_train_batch_start(self, trainer: Trainer, module: LightningModule, *args: Any) -> None:
            torch.cuda.set_sync_debug_mode("warn" if 5 <= trainer.global_step < 10 else "default")

    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            fit([Warned(), *METHODS[method][0]()], 12, 3, accelerator="gpu")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert sum("synchronizing CUDA operation" in str(warning.message) for warning in caught) <= 5


def test_a_checkpoint_of_version_0_2_goes_on() -> None:
    """What ``state_dict`` returned before tensors were packed over groups, as it was written to disk."""
    settings = {"momentum": 0.0, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0, "maximize": False}
    estimator_state = {
        "lr": [0.5, 0.25],
        "settings": [settings, settings],
        "idle": [1],
        "copies": {0: torch.tensor([1.0, 2.0]), 2: torch.tensor([2.0])},
    }
    learner_state = {
        "factors": [2.0, 1.0],
        "memories": [0.0, 0.0],
        "base": [0.25, 0.25],
        "gradients": [5.0, 4.0],
        "reference": [0.25, 0.25],
    }
    first, idle, second = (nn.Parameter(torch.zeros(size)) for size in (2, 3, 1))
    estimator = AlignmentEstimator(SGD([{"params": [first, idle]}, {"params": [second]}], lr=0.5))
    learner = FactorLearner("additive", 0.01, estimator.family)
    estimator.load_state_dict(estimator_state)
    learner.load_state_dict(learner_state)
    first.grad, idle.grad, second.grad = torch.tensor([3.0, 4.0]), torch.ones(3), torch.tensor([-1.0])
    found = estimator.measure()
    assert found == [(11.0, 25.0 + 3.0, 5.0), (-2.0, 1.0, 4.0)]
    # m + beta b (g . d) / b^2
    assert learner.refine(found, [0.25, 0.25], [0.25, 0.25]) == pytest.approx([2.0 + 0.01 * 44, 1.0 - 0.01 * 8])
    assert set(estimator.state_dict()) == set(estimator_state)
    assert estimator.state_dict()["settings"] == estimator_state["settings"]
    assert set(learner.state_dict()) == set(learner_state)
