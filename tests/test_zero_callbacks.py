"""Our callbacks under `ZeROStrategy` where a row of the gauntlet does not say it: ramps, engines, what is refused."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.pytorch import Callback
from torch.utils.data import DataLoader

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointPolicy,
    Constant,
    Cosine,
    CurveRamp,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    StepRamp,
)
from tests.support.batches import Batches
from tests.support.rounding import rounding, rounding_after
from tests.support.toy import Stream, Toy, fit, two_groups
from tests.support.two_processes import ddp
from tests.support.zero_runs import needs_deepspeed, watched, zero
from tests.test_zero_strategy import STAGES, _adamw, _fit, _loader

pytestmark = needs_deepspeed

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def _with_scheduler(module: Any) -> Any:
    optimizer = two_groups(module)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


def _momentum(module: Any) -> Any:
    return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)


EXACT: dict[str, tuple[Any, Sequence[Callable[[], Callback]]]] = {
    "scheduler-and-scaling": (_with_scheduler, [lambda: LearningRateScaling(4, warmup_epochs=1)]),
    "ramp": (two_groups, [lambda: BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=40)]),
    "ramp-accumulates": (
        two_groups,
        [lambda: BatchSizeRamp(CurveRamp(Cosine(floor=0.2)), max_batch_size=40, max_micro_batch_size=4)],
    ),
    "ramp-and-layerwise": (
        _adamw,
        [
            lambda: BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=40, max_micro_batch_size=5),
            lambda: LayerwiseLRDecay(0.5),
        ],
    ),
}
"""Cases in which every update is compared."""

ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "offload-2": (2, {"offload_optimizer": True}),
    "offload-3": (3, {"offload_optimizer": True, "offload_parameters": True}),
    "all-sharded": (3, {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
    **{
        f"checkpointed-{stage}": (stage, {"checkpointing": CheckpointPolicy("every_block", modules=["body", "head"])})
        for stage in STAGES
    },
}


def _refused(
    stage: int,
    *callbacks: Callback,
    loader: Any = None,
    module: Any = None,
    strategy_arguments: dict[str, Any] | None = None,
    **arguments: Any,
) -> None:
    fit(
        list(callbacks),
        module=module or Toy(_momentum),
        loader=_loader(4) if loader is None else loader,
        **{"max_epochs": 3, **zero(stage, **(strategy_arguments or {})), **arguments},
    )


def _case(stage: int | None, name: str) -> dict[str, Any]:
    configure, callbacks = EXACT[name]
    return _fit(stage, configure, callbacks=callbacks, accumulate_grad_batches=1)


def _engine(name: str) -> dict[str, Any]:
    stage, arguments = ENGINES[name]
    return _fit(stage, _adamw, engine=arguments, max_epochs=2)


def _again(stage: int) -> dict[str, Any]:
    """The same module twice, as a user would in a notebook; the second run must not reduce twice."""
    module = Toy(_momentum)
    if stage < 3:
        fit([LearningRateSchedule(Cosine())], module=module, loader=_loader(4), max_epochs=1, **zero(stage))
    return watched([], module=module, loader=_loader(4), max_epochs=1, **zero(stage))


def _again_ddp() -> dict[str, Any]:
    module = Toy(_momentum)
    fit([LearningRateSchedule(Cosine())], module=module, loader=_loader(4), max_epochs=1, **ddp())
    return watched([], module=module, loader=_loader(4), max_epochs=1, **ddp())


def _fp16(stage: int) -> dict[str, Any]:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True  # torch computes in it on every CPU; only some do so natively
    try:
        return _fit(stage, _adamw, callbacks=[lambda: LearningRateSchedule(Constant())], precision="16-mixed")
    finally:
        del accelerator.is_fp16_supported


class Manual(Toy):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def _returns(make: Callable[[Any], Any], stage: int = 2) -> Callable[[], None]:
    return lambda: _refused(stage, module=Toy(make))


def _two(module: Any) -> Any:
    return [torch.optim.SGD(module.body.parameters(), lr=0.1), torch.optim.SGD(module.head.parameters(), lr=0.1)]


def _partly_frozen(module: Any) -> Any:
    module.body.requires_grad_(False)
    return two_groups(module)


def _without_ninja() -> None:
    """The real builder of DeepSpeed, which finds no ninja on an empty PATH."""

    def compiled(module: Any) -> Any:
        from deepspeed.ops.adam import DeepSpeedCPUAdam

        return DeepSpeedCPUAdam(module.parameters(), lr=0.01)

    path = os.environ["PATH"]
    os.environ["PATH"] = ""
    try:
        _refused(2, module=Toy(compiled))
    finally:
        os.environ["PATH"] = path


def _without_libaio() -> None:
    """Where it is there, DeepSpeed would compile its operator, for minutes."""
    from deepspeed.ops.op_builder import AsyncIOBuilder

    with mock.patch.object(AsyncIOBuilder, "is_compatible", return_value=False):
        _refused(3, strategy_arguments={"offload_optimizer": True, "offload_optimizer_device": "nvme"})


def _native_half() -> None:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: False
    try:
        _refused(2, precision="16-mixed")
    finally:
        del accelerator.is_fp16_supported


REFUSED: dict[str, tuple[Callable[[], None], str]] = {
    "best": (lambda: _refused(2, AdaptiveWarmup(restore_best=True)), "restore_best=True copies whole parameters"),
    "auto": (
        lambda: _refused(1, BatchSizeRamp(StepRamp([1]), max_micro_batch_size="auto", max_batch_size=40)),
        'BatchSizeRamp(max_micro_batch_size="auto"): ZeROStrategy may shard the module',
    ),
    "stream": (
        lambda: _refused(
            2,
            BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=16),
            loader=DataLoader(Stream(48), batch_size=4),
            limit_train_batches=6,
        ),
        "iterable data and count_samples need the gradients of a window",
    ),
    "fp16": (_native_half, "got precision='16-mixed', which DeepSpeed does not run on this CPU"),
    "manual": (lambda: _refused(1, module=Manual()), "uses manual optimization"),
    "two optimizers": (_returns(_two), "configure_optimizers returned 2 optimizers, and an engine has one"),
    "none": (_returns(lambda module: None), "configure_optimizers returned 0 optimizers"),
    "lbfgs": (_returns(lambda module: torch.optim.LBFGS(module.parameters())), "LBFGS evaluates its closure"),
    "adagrad": (_returns(lambda module: torch.optim.Adagrad(module.parameters())), "torch's Adagrad anew in stage 2"),
    "frozen": (_returns(_partly_frozen), "all 2 parameters of group body are frozen"),
    "ninja": (_without_ninja, "install ninja and a C++ compiler, or return torch's optimizer"),
    "nvme": (
        _without_libaio,
        "offloading to 'nvme' needs DeepSpeed's async_io operator, and libaio with its headers (libaio-dev) cannot",
    ),
}


def _raises(name: str) -> str:
    try:
        REFUSED[name][0]()
    except Exception as error:
        return str(error)
    return "nothing was raised"


SOON = {"scheduler-and-scaling-1", "ramp-2", *(f"ramp-accumulates-{stage}" for stage in STAGES), "ramp-and-layerwise-3",
        "offload-2", "offload-3", "all-sharded", "checkpointed-2", "again-1", "fp16-2"}  # fmt: skip
"""Run every time: each callback under one stage in turn, and under all of them the ramp that changes both micro-batch
and accumulation. `test_gauntlet.py` has checkpointing under stage 3, `test_zero_fp16.py` what fp16 comes to."""


def _cases() -> dict[str, Callable[[], Any]]:
    return {
        **{f"{name}-{stage}": partial(_case, stage, name) for stage in STAGES for name in EXACT},
        **{name: partial(_engine, name) for name in ENGINES},
        **{f"again-{stage}": partial(_again, stage) for stage in STAGES[:2]},
        **{f"fp16-{stage}": partial(_fp16, stage) for stage in STAGES},
    }


def over(*several: str) -> pytest.MarkDecorator:
    """Every run of these kinds, named as in ``ran``."""
    marked = [pytest.param(name, marks=() if name in SOON else pytest.mark.slow) for name in several]
    return pytest.mark.parametrize("name", marked)


@pytest.fixture(scope="module")
def ran(tmp_path_factory: Any) -> Batches:
    under_ddp = {f"{name}-None": partial(_case, None, name) for name in EXACT}
    under_ddp |= {"plain": partial(_fit, None, _adamw, max_epochs=2), "again": _again_ddp}
    refused = {name: partial(_raises, name) for name in REFUSED}
    soon, slow = ({name: run for name, run in _cases().items() if (name in SOON) == wanted} for wanted in (True, False))
    every_time = {**under_ddp, **soon, **refused}
    return Batches(tmp_path_factory.mktemp("zero"), list(every_time.items()), list(slow.items()))


def _same(ran: Batches, got_name: str, want_name: str) -> None:
    got, want = ran[got_name][0], ran[want_name][0]
    assert isinstance(got, dict), got
    assert isinstance(want, dict), want
    assert got["updates"] == want["updates"] == got["hooks"] == want["hooks"] == len(got["lrs"])
    assert len(got["lrs"]) == len(want["lrs"])
    for ours, theirs in zip(got["lrs"], want["lrs"], strict=True):
        assert ours == pytest.approx(theirs, rel=1e-12)
    assert got["norms"] == pytest.approx(
        want["norms"], rel=rounding(16 * 20)
    )  # gradients of 16 terms, by the end a twentieth of them
    assert (got["weights"] - want["weights"]).abs().max() < rounding_after(got["updates"])
    assert torch.equal(got["weights"], ran[got_name][1]["weights"])


@over(*(f"{name}-{stage}" for stage in STAGES for name in EXACT))
def test_a_callback_does_what_it_does_under_ddp(ran: Batches, name: str) -> None:
    _same(ran, name, f"{name[:-2]}-None")


def test_the_callbacks_did_something(ran: Batches) -> None:
    assert len({tuple(lrs) for lrs in ran["scheduler-and-scaling-1"][0]["lrs"]}) > 5
    assert ran["ramp-accumulates-2"][0]["updates"] < 20
    assert len(set(ran["ramp-and-layerwise-3"][0]["lrs"][0])) == 2


@over(*ENGINES)
def test_offloading_and_checkpointing_change_no_weight(ran: Batches, name: str) -> None:
    _same(ran, name, "plain")


@over(*(f"again-{stage}" for stage in STAGES[:2]))
def test_a_second_fit_of_the_same_module_starts_clean(ran: Batches, name: str) -> None:
    _same(ran, name, "again")


@over(*(f"fp16-{stage}" for stage in STAGES))
def test_fp16_trains(ran: Batches, name: str) -> None:
    got = ran[name][0]
    assert isinstance(got, dict), got
    assert got["weights"].isfinite().all()
    assert got["hooks"] == 20
    assert 0 < len(got["lrs"]) < 20, "dynamic loss scaling begins too high and skips updates"


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_work_is_refused(ran: Batches, name: str) -> None:
    assert REFUSED[name][1] in ran[name][0]
