"""LARS, LAMB, `HypergradientDescent` and `GradientNoiseScale` under ZeRO and FSDP2: two processes against one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import Cosine, GradientNoiseScale, HypergradientDescent, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.optim import LAMB, LARS
from tests.support.processes import run_in_processes
from tests.support.rounding import rounding_after
from tests.support.toy import Toy, data, fit
from tests.support.two_processes import ddp, fsdp2, shard
from tests.support.zero_runs import Watch, needs_deepspeed, whole_weights, zero

# slow: the gauntlet has these methods under every strategy; here they meet sub-groups, clipping, offload and resumes
pytestmark = [needs_deepspeed, pytest.mark.slow]
SAMPLES, BATCH, EPOCHS, UPDATES = 40, 8, 4, 20
STAGES = (1, 2, 3)
PARTS = {"config": {"zero_optimization": {"sub_group_size": 20}}}


def _groups(module: Any, lr: float) -> list[dict[str, Any]]:
    head = {"params": module.head.parameters(), "lr": lr / 2, "name": "head"}
    return [{"params": module.body.parameters(), "lr": lr, "name": "body"}, head]


def _lars(module: Any) -> Any:
    return LARS(_groups(module, 1.0), lr=1.0, weight_decay=1e-2, trust_coefficient=0.02)


def _lamb(module: Any) -> Any:
    return LAMB(_groups(module, 0.02), lr=0.02, weight_decay=0.1)


def _adamw(module: Any) -> Any:
    return torch.optim.AdamW(_groups(module, 0.01), weight_decay=0.1)


def _momentum(module: Any) -> Any:
    return torch.optim.SGD(_groups(module, 0.02), momentum=0.9, weight_decay=1e-3)


OPTIMIZERS = {"LARS": _lars, "LAMB": _lamb, "AdamW": _adamw, "momentum": _momentum}
OFF, CLIP, ACCUMULATE = {}, {"gradient_clip_val": 0.05}, {"accumulate_grad_batches": 2}


class Factors(Callback):
    """The factors and cosines of `HypergradientDescent`, and the noise scale, after each update."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        if trainer.fit_loop._should_accumulate():
            return
        row: dict[str, float] = {}
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, HypergradientDescent | GradientNoiseScale):
                run = callback._run
                assert run is not None
                row |= callback.metrics(run.clock, run.writer.optimizer, run.effective_lr)
        self.rows.append(row)


def _hypergradient() -> list[Callback]:
    return [LearningRateSchedule(Cosine(floor=0.1)), HypergradientDescent(0.05, rule="multiplicative")]


def _global() -> list[Callback]:
    return [HypergradientDescent(1.0, rule="normalized", scope="global")]


def _layerwise() -> list[Callback]:
    return [LearningRateSchedule(Cosine(floor=0.1)), LayerwiseLRDecay(0.5, layers=["body", "head"])]


def _noise() -> list[Callback]:
    return [GradientNoiseScale(smoothing=0.5)]


def _nothing() -> list[Callback]:
    return []


def _fit(
    strategy: Callable[[], dict[str, Any]] | None,
    configure: Any,
    methods: Callable[[], list[Callback]] = _nothing,
    extra: tuple[Callback, ...] = (),
    **arguments: Any,
) -> dict[str, Any]:
    """Without a strategy one plain process, which sees the same global batches."""
    micro = BATCH // arguments.get("accumulate_grad_batches", 1)
    shared: dict[str, Any] = {} if strategy is None else strategy()
    sampler = None if strategy is None else DistributedSampler(data(SAMPLES), shuffle=False)
    loader = DataLoader(data(SAMPLES), batch_size=micro if strategy is None else micro // 2, sampler=sampler)
    factors, watch = Factors(), Watch()
    arguments.setdefault("max_epochs", EPOCHS)
    _, trainer = fit([*methods(), *extra, factors, watch], module=Toy(configure), loader=loader, **shared, **arguments)
    return {**watch.facts(trainer), "rows": factors.rows}


class Sharded(Toy):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        shard(self, self.body, self.head, self)


def _fsdp2(configure: Any, methods: Callable[[], list[Callback]], **arguments: Any) -> dict[str, Any]:
    micro = BATCH // 2 // arguments.get("accumulate_grad_batches", 1)
    loader = DataLoader(data(SAMPLES), batch_size=micro, sampler=DistributedSampler(data(SAMPLES), shuffle=False))
    factors, module = Factors(), Sharded(configure)
    joined = {**fsdp2(), "max_epochs": EPOCHS}
    asked: set[int] = set()

    class Count(Callback):
        """All-reduces in each step of the optimizer."""

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            counting = mock.patch("torch.distributed.all_reduce", wraps=torch.distributed.all_reduce)
            calls: list[mock.Mock] = []
            optimizer = trainer.optimizers[0]

            def after(*_: Any) -> None:
                counting.stop()
                asked.add(calls.pop().call_count)

            optimizer.register_step_pre_hook(lambda *_: calls.append(counting.start()))
            optimizer.register_step_post_hook(after)

    fit([*methods(), factors, Count()], module=module, loader=loader, **joined, **arguments)
    return {"weights": whole_weights(module), "rows": factors.rows, "asked": asked}


def _refused(configure: Any, methods: Callable[[], list[Callback]]) -> dict[str, str]:
    with pytest.raises(MisconfigurationException) as caught:
        _fit(_two(1, config=ACCUMULATES_IN_FP32), configure, methods, precision="bf16-mixed")
    return {"said": str(caught.value)}


def _noise_refused() -> dict[str, str]:
    with pytest.raises(MisconfigurationException) as caught:
        _fsdp2(_momentum, _noise)
    return {"said": str(caught.value)}


def _two(stage: int, **engine: Any) -> Callable[[], dict[str, Any]]:
    return partial(zero, stage, **engine)


def _resume(stage: int, name: str, folder: str) -> tuple[list[Any], list[Any], bool]:
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=10, save_top_k=-1)
    methods = _hypergradient if name in ("AdamW", "momentum") else _layerwise
    whole = _fit(_two(stage), OPTIMIZERS[name], methods, extra=(save,), enable_checkpointing=True)
    rest = _fit(_two(stage), OPTIMIZERS[name], methods, ckpt_path=f"{folder}/step=10.ckpt")
    return whole["lrs"], rest["lrs"], torch.equal(whole["weights"], rest["weights"])


SETTINGS: dict[str, tuple[int, dict[str, Any], str, Any, dict[str, Any]]] = {
    f"{name}, stage {stage}, {kind}": (stage, engine, name, methods, arguments)
    for stage in STAGES
    for kind, name, methods, engine, arguments in [
        ("plain", "LARS", _layerwise, OFF, OFF),
        ("plain", "LAMB", _layerwise, OFF, OFF),
        ("clipped", "LARS", _nothing, OFF, CLIP),
        ("offloaded, clipped, accumulated", "LAMB", _nothing, {"offload_optimizer": True}, CLIP | ACCUMULATE),
        ("hypergradient", "AdamW", _hypergradient, OFF, CLIP),
        ("hypergradient, offloaded", "momentum", _global, {"offload_optimizer": True}, ACCUMULATE),
        ("hypergradient", "LARS", _hypergradient, OFF, CLIP),
    ]
} | {
    "LARS, stage 3, small parts": (3, PARTS, "LARS", _hypergradient, CLIP | ACCUMULATE),
    "LAMB, stage 3, small parts": (3, PARTS | {"offload_optimizer": True}, "LAMB", _layerwise, OFF),
}


FSDP2: dict[str, tuple[str, Any, dict[str, Any]]] = {
    "FSDP2 LARS": ("LARS", _hypergradient, CLIP),
    "FSDP2 LAMB": ("LAMB", _nothing, ACCUMULATE),
    "FSDP2 AdamW": ("AdamW", _hypergradient, CLIP),
}
ACCUMULATES_IN_FP32 = {"data_types": {"grad_accum_dtype": "fp32"}}
"""With bf16 in stage 1 the engine takes an optimizer of its own for this."""


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases: list[tuple[str, Callable[[], Any]]] = [
        (key, partial(_fit, _two(stage, **engine), OPTIMIZERS[name], methods, **arguments))
        for key, (stage, engine, name, methods, arguments) in SETTINGS.items()
    ]
    for stage in STAGES:
        cases.append((f"noise {stage}", partial(_fit, _two(stage), _momentum, _noise, **ACCUMULATE)))
        for name in ("LARS", "LAMB", "AdamW", "momentum"):
            folder = str(tmp_path_factory.mktemp("checkpoints"))
            cases.append((f"resume {stage} {name}", partial(_resume, stage, name, folder)))
    for key, (name, methods, arguments) in FSDP2.items():
        cases.append((key, partial(_fsdp2, OPTIMIZERS[name], methods, **arguments)))
    cases.append(("refused LARS", partial(_refused, _lars, _nothing)))
    cases.append(("refused hypergradient", partial(_refused, _adamw, _hypergradient)))
    in_fp32 = _two(1, config=ACCUMULATES_IN_FP32)
    cases.append(("sums in fp32", partial(_fit, in_fp32, _adamw, _layerwise, precision="bf16-mixed")))
    cases.append(("refused noise", _noise_refused))
    cases.append(("noise DDP", partial(_fit, ddp, _momentum, _noise, **ACCUMULATE)))
    return run_in_processes(cases, tmp_path_factory.mktemp("two"))


def _of(two_processes: list[dict[str, Any]], key: str) -> list[Any]:
    found = [rank[key] for rank in two_processes]
    for one in found:
        if isinstance(one, str):
            pytest.fail(one)
    return found


@pytest.mark.parametrize("key", SETTINGS)
def test_two_processes_equal_one(key: str, two_processes: list[dict[str, Any]]) -> None:
    _, _, name, methods, arguments = SETTINGS[key]
    alone = _fit(None, OPTIMIZERS[name], methods, **arguments)
    moved = (alone["weights"] - whole_weights(Toy())).abs().max()
    for rank in _of(two_processes, key):
        assert rank["updates"] == rank["hooks"] == alone["updates"] == UPDATES
        difference = (rank["weights"] - alone["weights"]).abs().max()
        print(f"{key}: weights {difference:.1e} of {moved:.1e}")
        assert difference < rounding_after(UPDATES) < moved
        worst = 0.0
        for mine, theirs in zip(rank["rows"], alone["rows"], strict=True):
            assert mine.keys() == theirs.keys()
            worst = max([worst, *(abs(mine[k] - theirs[k]) / max(abs(theirs[k]), 1.0) for k in mine)])
        for mine_, theirs_ in zip(rank["lrs"], alone["lrs"], strict=True):
            assert mine_ == pytest.approx(theirs_, rel=2 * rounding_after(UPDATES))
        if alone["rows"][-1]:
            factors = [value for k, value in alone["rows"][-1].items() if "factor" in k]
            assert any(abs(factor - 1) > 0.01 for factor in factors), "the method had something to say"
            print(f"{key}: factors and cosines {worst:.1e}")
            assert worst < 2 * rounding_after(UPDATES)


@pytest.mark.parametrize("key", FSDP2)
def test_fsdp2_equals_one(key: str, two_processes: list[dict[str, Any]]) -> None:
    name, methods, arguments = FSDP2[key]
    alone = _fit(None, OPTIMIZERS[name], methods, **arguments)
    for rank in _of(two_processes, key):
        difference = (rank["weights"] - alone["weights"]).abs().max()
        print(f"{key}: weights {difference:.1e}")
        assert difference < rounding_after(UPDATES)
        # Lightning's closure runs inside the step, and the hypergradient is asked for in it
        asking = (name in ("LARS", "LAMB")) + (methods is _hypergradient)
        assert rank["asked"] == {asking}, "one all-reduce for both groups, and one for both hypergradients"
        for mine, theirs in zip(rank["rows"], alone["rows"], strict=True):
            assert mine == pytest.approx(theirs, rel=2 * rounding_after(UPDATES), abs=2 * rounding_after(UPDATES))


def test_an_optimizer_of_deepspeeds_own_trains_to_the_end(two_processes: list[dict[str, Any]]) -> None:
    """What stands in for ZeRO's where bf16 gradients are summed in fp32 has none of its attributes."""
    for rank in _of(two_processes, "sums in fp32"):
        assert rank["updates"] == rank["hooks"] == UPDATES
        assert rank["weights"].isfinite().all()


def test_what_cannot_be_seen_is_refused(two_processes: list[dict[str, Any]]) -> None:
    for one in _of(two_processes, "refused LARS"):
        assert "LARS needs the norms of whole tensors, and the engine's BF16_Optimizer is none of ZeRO's" in one["said"]
    for one in _of(two_processes, "refused hypergradient"):
        assert "HypergradientDescent: under these settings of ZeROStrategy, the engine's BF16_Optimizer" in one["said"]
    for one in _of(two_processes, "refused noise"):
        assert "GradientNoiseScale: ModelParallelStrategy averages gradients over the devices before" in one["said"]


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("name", ["LARS", "LAMB", "AdamW", "momentum"])
def test_resumes_exactly(stage: int, name: str, two_processes: list[dict[str, Any]]) -> None:
    for whole, rest, same_weights in _of(two_processes, f"resume {stage} {name}"):
        assert len(whole) == UPDATES
        assert rest == whole[10:]
        assert same_weights


@pytest.mark.parametrize("stage", STAGES)
def test_gradient_noise_scale_is_that_of_ddp(stage: int, two_processes: list[dict[str, Any]]) -> None:
    expected = _of(two_processes, "noise DDP")
    for rank, ddp_ in zip(_of(two_processes, f"noise {stage}"), expected, strict=True):
        mine = [row["noise/gradient"] for row in rank["rows"]]
        theirs = [row["noise/gradient"] for row in ddp_["rows"]]
        print(f"stage {stage}: {max(abs(a / b - 1) for a, b in zip(mine, theirs, strict=True)):.1e}")
        assert mine == pytest.approx(theirs, rel=1e-4)  # differences of squared norms, a tenth of them
