"""`max_micro_batch_size="auto"`: the largest that fits, agreed by all devices, found without leaving a trace."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, Dataset, DistributedSampler
from torchmetrics import MeanMetric

from lightning_lr import AdaptiveRamp, BatchSizeRamp, GradientNoiseScale, StepRamp
from lightning_lr.callbacks.batch_size_ramp.auto_micro_batch import _LocalBatchNorm, is_out_of_memory
from lightning_lr.cli import main
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAMPLES, START = 54, 4  # no tail of one sample, which batch norm cannot train on
CUDA = "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB"
CPU = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried 1 bytes."
MESSAGES: dict[str, Callable[[], BaseException]] = {
    "torch": lambda: torch.OutOfMemoryError("of any device"),
    "cuda": lambda: RuntimeError(CUDA),
    "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in..."),
    "cpu": lambda: RuntimeError(CPU),
}


class Limited(Toy):
    """Runs out of memory above ``most`` samples; has everything that a probe could leave a trace in."""

    def __init__(self, most: int, error: Callable[[], BaseException] = MESSAGES["cuda"], adam: bool = False) -> None:
        super().__init__(_adam if adam else None)
        self.most, self.error = most, error
        self.norm = nn.BatchNorm1d(6)
        self.dropout = nn.Dropout(0.3)
        self.mean_loss = MeanMetric()
        self.steps = 0
        self.sizes: list[int] = []

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x, y = batch
        TRIED.append(len(x))
        if len(x) > self.most:
            raise self.error()
        self.steps += 1
        self.sizes.append(len(x))
        loss = nn.functional.mse_loss(self(self.dropout(self.norm(x))), y)
        self.mean_loss.update(loss)
        self.log("train_loss", loss, on_step=True, on_epoch=True, sync_dist=True)
        return loss

    def on_train_epoch_end(self) -> None:
        self.log("mean_loss", self.mean_loss.compute())
        self.mean_loss.reset()


TRIED: list[int] = []
"""What any module, copied or not, was given."""


def _adam(module: Any) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01)


class Augmented(Dataset[Any]):
    """Draws from every random generator for each sample, as augmentations do."""

    def __len__(self) -> int:
        return SAMPLES

    def __getitem__(self, index: int) -> Any:
        x, y = data(SAMPLES)[index]
        return x + torch.randn(6) * 0.01 + random.random() * 0.01 + np.random.rand() * 0.01, y


class Traces(Callback):
    """What can be seen after every micro-batch."""

    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        random_states = (torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]
        logged = {name: float(value) for name, value in trainer.callback_metrics.items()}
        self.seen.append((batch[0].tolist(), random_states, logged, module.steps, trainer.global_step))


def ramp(largest: Any = "auto", **arguments: Any) -> BatchSizeRamp:
    arguments = {"schedule": StepRamp([1, 2], factor=3.0), "max_batch_size": 36, **arguments}
    return BatchSizeRamp(max_micro_batch_size=largest, **arguments)


def train(largest: Any, most: int = 10, workers: int = 0, adam: bool = False, **arguments: Any) -> Any:
    torch.manual_seed(5), random.seed(5), np.random.seed(5)
    TRIED.clear()
    traces = Traces()
    loader = DataLoader(Augmented(), batch_size=START, shuffle=True, num_workers=workers)
    callback = ramp(largest)
    module, trainer = fit([callback, traces], module=Limited(most, adam=adam), loader=loader, **arguments)
    return module, trainer, traces.seen, callback


# ---------------------------------------------------------------------- what is found
def test_halves_from_the_largest_batch_of_the_plan_until_it_fits() -> None:
    module, _, _, callback = train("auto", most=10)
    # 4 -> 12 -> 36 samples; 36, 18 do not fit, 9 does, with two training steps
    assert TRIED[:4] == [36, 18, 9, 9]
    assert max(module.sizes) == 9
    assert callback.summary(callback.reshape(_shape()))["micro-batch"] == "at most 9 samples, found on the device"


def test_what_fits_at_once_is_not_accumulated() -> None:
    module, *_ = train("auto", most=100)
    assert TRIED[:2] == [36, 36]
    assert max(module.sizes) == 36


def _shape() -> Any:
    from lightning_lr.progress import EpochShape, RunShape

    return RunShape(EpochShape(14, START, SAMPLES), max_epochs=3)


@pytest.mark.parametrize("message", MESSAGES)
def test_every_allocators_message_is_known(message: str) -> None:
    TRIED.clear()
    module = Limited(10, MESSAGES[message])
    fit([ramp()], module=module, loader=DataLoader(data(SAMPLES), batch_size=START))
    assert is_out_of_memory(MESSAGES[message]())
    assert max(module.sizes) == 9


def test_a_real_allocation_that_fails_counts_as_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


def test_another_error_is_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        fit([ramp()], module=Limited(10, lambda: RuntimeError("mat1 and mat2 shapes cannot be multiplied")))


def test_a_single_sample_that_does_not_fit_is_said() -> None:
    with pytest.raises(MisconfigurationException, match=r"not even one sample fits \(tried 36, 18, 9, 5, 3, 2, 1\)"):
        train("auto", most=0)


def test_optimizer_state_counts_as_used_memory() -> None:
    class Greedy(torch.optim.SGD):
        """Runs out of memory for its state when the micro-batch is above 5."""

        def step(self, closure: Any = None) -> Any:  # type: ignore[override]
            loss = super().step(closure)
            if TRIED[-1] > 5:
                raise torch.OutOfMemoryError("state")
            return loss

    TRIED.clear()
    module = Limited(10)
    module._configure = lambda module: Greedy(module.parameters(), lr=0.05)
    callback = ramp(schedule=StepRamp([1, 2], factor=1.2), max_batch_size=5)
    fit([callback], module=module, loader=DataLoader(data(SAMPLES), batch_size=START))
    assert callback._fitting == 5
    TRIED.clear()
    with pytest.raises(torch.OutOfMemoryError, match="state"):  # the naive probe: forward and backward alone
        fit([ramp(9)], module=_with(module._configure), loader=DataLoader(data(SAMPLES), batch_size=START))


def _with(configure: Any) -> Limited:
    module = Limited(10)
    module._configure = configure
    return module


def test_lbfgs_is_tried_with_its_closure() -> None:
    module = Limited(10)
    module._configure = lambda module: torch.optim.LBFGS(module.parameters(), lr=0.05, max_iter=2)
    callback = ramp()
    fit([callback], module=module, loader=DataLoader(data(SAMPLES), batch_size=START))
    assert callback._fitting == 9


# ---------------------------------------------------------------------- no trace
@pytest.mark.parametrize(("workers", "adam"), [(0, True), (2, False)])
def test_leaves_no_trace(workers: int, adam: bool) -> None:
    """To the bit: samples, random states, logged values, weights, buffers, optimizer state, the module's attributes."""
    auto, auto_trainer, auto_seen, callback = train("auto", workers=workers, adam=adam)
    given, given_trainer, given_seen, _ = train(9, workers=workers, adam=adam)
    assert callback._fitting == 9
    assert len(auto_seen) == len(given_seen)
    for mine, theirs in zip(auto_seen, given_seen, strict=True):
        assert mine == theirs
    for name, value in given.state_dict().items():
        assert torch.equal(auto.state_dict()[name], value), name
    assert (auto.steps, auto.sizes) == (given.steps, given.sizes)
    mine, theirs = (t.optimizers[0].state_dict() for t in (auto_trainer, given_trainer))
    assert torch.equal(_flat(mine["state"]), _flat(theirs["state"]))
    assert mine["param_groups"] == theirs["param_groups"]
    assert "log" not in vars(auto)


def _flat(state: Any) -> torch.Tensor:
    return torch.cat(
        [torch.as_tensor(v).double().flatten() for s in state.values() for v in s.values() if v is not None]
    )


def test_optimizer_hooks_and_scheduler_counts_are_not_touched() -> None:
    def configure(module: Any) -> Any:
        optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
        warmup = torch.optim.lr_scheduler.LinearLR(optimizer, 0.1, total_iters=5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    series = []
    for largest in ("auto", 9):
        probe = Probe()
        _, trainer = fit(
            [probe, ramp(largest)], module=_with(configure), loader=DataLoader(data(SAMPLES), batch_size=4)
        )
        series.append((probe.series, trainer.lr_scheduler_configs[0].scheduler.state_dict()))
    assert series[0] == series[1]


# ---------------------------------------------------------------------- resume, plan, refusals
def test_a_resumed_run_does_not_try_again(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    loader = DataLoader(data(SAMPLES), batch_size=START, shuffle=True)
    torch.manual_seed(5)
    whole, _ = fit([ramp(), save], module=Limited(10), loader=loader, enable_checkpointing=True)
    for step in (3, 16, 20):
        TRIED.clear()
        callback = ramp()
        # a larger device would find another size, and other micro-batches
        loader = DataLoader(data(SAMPLES), batch_size=START, shuffle=True)
        resumed, _ = fit([callback], module=Limited(100), loader=loader, ckpt_path=str(tmp_path / f"step={step}.ckpt"))
        assert callback._fitting == 9
        assert resumed.sizes == TRIED  # type: ignore[union-attr]
        # the toy's dropout draws anew: compare what was cut, not what was learnt
        assert resumed.sizes == whole.sizes[-len(resumed.sizes) :]  # type: ignore[union-attr, operator, arg-type]


def test_a_second_fit_tries_anew() -> None:
    callback = ramp()
    for most, found in ((10, 9), (20, 18)):
        fit([callback], module=Limited(most), loader=DataLoader(data(SAMPLES), batch_size=START))
        assert callback._fitting == found


def test_without_a_device_the_size_is_said_to_be_open() -> None:
    callback = ramp()
    facts = callback.summary(callback.reshape(_shape()))
    assert facts["micro-batch"] == "to be found on the device before training; shown as if every batch fitted"


def test_adaptive_ramp_with_nothing_to_compare_is_refused_after_the_probe() -> None:
    callbacks = [GradientNoiseScale(), BatchSizeRamp(AdaptiveRamp(), max_batch_size=16, max_micro_batch_size="auto")]
    loader = DataLoader(data(SAMPLES), batch_size=START)
    with pytest.raises(MisconfigurationException, match="give a max_micro_batch_size below 4"):
        fit(callbacks, module=Limited(100), loader=loader)
    assert fit(callbacks, module=Limited(2), loader=loader)[1].global_step > 0


@pytest.mark.parametrize("largest", ["automatic", 0, True, 2.0])
def test_other_words_are_refused(largest: Any) -> None:
    with pytest.raises(ValueError, match=r'max_micro_batch_size=.*whole number from 1 \(or "auto"\)'):
        BatchSizeRamp(StepRamp([1]), max_micro_batch_size=largest)


def test_sync_batch_norm_is_local_in_the_copy() -> None:
    """It gathers statistics in the forward, and would wait forever for a device that has run out of memory."""
    layer, plain = nn.SyncBatchNorm(6), nn.BatchNorm1d(6)
    layer.__class__ = _LocalBatchNorm  # type: ignore[assignment]
    x = torch.randn(5, 6)
    assert torch.equal(layer(x), plain(x))  # nn.SyncBatchNorm itself refuses the CPU


def test_a_module_that_cannot_be_copied_is_said() -> None:
    module = Limited(10)
    module.handle = open(__file__)  # noqa: SIM115
    with module.handle, pytest.raises(MisconfigurationException, match="could not be copied to be tried"):
        fit([ramp()], module=module)


# ---------------------------------------------------------------------- two processes
def _two(largest: Any, most: tuple[int, int]) -> Any:
    import torch.distributed as dist

    TRIED.clear()
    torch.manual_seed(dist.get_rank())
    dataset = data(SAMPLES + 2)
    loader = DataLoader(dataset, batch_size=START // 2, sampler=DistributedSampler(dataset, shuffle=False))
    module = Limited(most[dist.get_rank()])
    callback = ramp(largest)
    trained, _ = fit([callback], module=module, loader=loader, **ddp())
    buffers = torch.cat([buffer.double().flatten() for buffer in trained.buffers()])
    return callback._fitting, TRIED[:6], weights(trained), buffers


def test_two_processes_agree_on_the_smaller_one(tmp_path: Path) -> None:
    cases = [
        ("auto", partial(_two, "auto", (100, 6))),
        ("given", partial(_two, 5, (100, 100))),
    ]
    ranks = run_in_two_processes(cases, tmp_path)
    for rank in ranks:
        for result in rank.values():
            if isinstance(result, Exception):
                raise result
    first, second = (rank["auto"] for rank in ranks)
    # 18 samples per device; the second device has room for 6, so both come to 5
    assert first[0] == second[0] == 5
    assert first[1][:6] == [18, 18, 9, 9, 5, 5]
    assert second[1][:4] == [18, 9, 5, 5]
    for rank in ranks:
        assert torch.equal(rank["auto"][2], rank["given"][2])
        assert torch.equal(rank["auto"][3], rank["given"][3])


def test_plan_on_the_command_line_says_that_it_will_be_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("configs/batch_size_ramp.yaml").read_text()
    config = tmp_path / "auto.yaml"
    config.write_text(text.replace("max_micro_batch_size: 640", "max_micro_batch_size: auto"))
    main(["plan", "--config", str(config), "--dataset-size", "12000"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "to be found on the device before training; shown as if every batch fitted" in printed
    assert "1,200 = 1,200 x 1 x 1" in printed
