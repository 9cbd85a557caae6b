"""LARS, LAMB and hypergradients on the flat vectors of a real ZeRO engine, against one process that holds all."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

from lightning_lr.hypergradient import AlignmentEstimator
from lightning_lr.optim import LAMB, LARS
from tests.support.batches import Batches
from tests.support.rounding import rounding, rounding_after
from tests.support.zero_runs import needs_deepspeed

pytestmark = needs_deepspeed
WORLD, UPDATES, MICRO = 2, 12, 4
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "LARS": lambda groups: LARS(groups, lr=1.0, weight_decay=1e-2, trust_coefficient=0.02),
    "LARS-all": lambda groups: LARS(
        groups, lr=1.0, weight_decay=1e-2, trust_coefficient=0.02, nesterov=True, adapt="all"
    ),
    "LAMB": lambda groups: LAMB(groups, lr=0.02, weight_decay=0.1),
    "LAMB-chosen": lambda groups: LAMB(groups, lr=0.02, adapt=_wide),
    "SGD": lambda groups: SGD(groups, lr=0.1, momentum=0.9, weight_decay=1e-2),
    "plain SGD": lambda groups: SGD(groups, lr=0.1),
    "AdamW": lambda groups: AdamW(groups, lr=0.01, weight_decay=0.1),
}


MEASURED = ("LARS", "LARS-all", "LAMB", "LAMB-chosen")
"""Optimizers whose update is the difference of fp32 weights before and after it, in one process as in two."""


def _wide(parameter: Tensor) -> bool:
    return parameter.numel() > 30


@dataclass(frozen=True)
class Setting:
    """An engine and what it trains."""

    stage: int
    optimizer: str
    clip: float = 0.0
    accumulation: int = 1
    zero: tuple[tuple[str, Any], ...] = ()
    engine: tuple[tuple[str, Any], ...] = ()

    @property
    def name(self) -> str:
        more = [f"clip {self.clip}"] * bool(self.clip) + [f"accumulation {self.accumulation}"] * (self.accumulation > 1)
        return ", ".join(
            [f"stage {self.stage} {self.optimizer}", *more, *(f"{k}={v}" for k, v in self.zero + self.engine)]
        )


ROUNDINGS = 2 * (7 + 33 + 17) + WORLD * MICRO
"""Of an element of a gradient, one after the other: sums over units forward and backward, and over samples."""
SMALL_PARTS = (("sub_group_size", 100),)
OFFLOAD = (("offload_optimizer", {"device": "cpu"}),)
SETTINGS = [
    *(Setting(stage, name) for stage in (1, 2, 3) for name in ("LARS", "LAMB", "SGD", "plain SGD", "AdamW")),
    *(Setting(stage, name, clip=0.05) for stage in (1, 2, 3) for name in ("LARS-all", "LAMB")),
    *(Setting(stage, "LAMB-chosen", clip=0.1, accumulation=2, zero=OFFLOAD) for stage in (1, 2, 3)),
    *(Setting(stage, "LARS", accumulation=2) for stage in (1, 2, 3)),
    *(Setting(3, name, zero=SMALL_PARTS) for name in ("LARS-all", "LAMB", "AdamW")),
    Setting(3, "LARS", clip=0.05, accumulation=2, zero=SMALL_PARTS + OFFLOAD),
    Setting(2, "LARS", zero=(("round_robin_gradients", True),)),
]
HALF = [
    Setting(stage, name, clip=0.5, accumulation=2, engine=(("bf16", {"enabled": True}),))
    for stage in (1, 2, 3)
    for name in ("LARS", "LAMB")
]


SOON = {
    "stage 1 LARS", "stage 2 LAMB", "stage 3 AdamW", "stage 2 SGD", "stage 3 plain SGD", "stage 1 LARS-all, clip 0.05",
    "stage 3 LAMB, clip 0.05", HALF[1].name, HALF[-1].name,
}  # fmt: skip
"""Run every time, with whatever has no optimizer or no clipping and accumulation in common with these: each optimizer
under one stage, each stage under several."""


def _soon(setting: Setting) -> bool:
    odd = bool(setting.zero) and (setting.stage == 2 or setting.clip > 0 or setting.optimizer == "LARS-all")
    return setting.name in SOON or odd


def over(settings: list[Setting]) -> pytest.MarkDecorator:
    marked = [pytest.param(s, id=s.name, marks=() if _soon(s) else pytest.mark.slow) for s in settings]
    return pytest.mark.parametrize("setting", marked)


def _model() -> nn.Sequential:
    """No size is a multiple of two, so that every stage pads; the frozen layer has no place in the vectors."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Linear(7, 33), nn.Tanh(), nn.Linear(33, 17), nn.Tanh(), nn.Linear(17, 1)]
    layers[2].bias.requires_grad_(False)  # type: ignore[union-attr]
    return nn.Sequential(*layers)


def _groups(model: nn.Sequential, lr: float) -> list[dict[str, Any]]:
    """The last group is one number, so that the second rank holds nothing of it but padding."""
    members = [model[0].parameters(), model[2].parameters(), [model[4].weight], [model[4].bias]]
    return [{"params": list(group), "lr": lr * factor} for group, factor in zip(members, (1, 3, 5, 0.1), strict=True)]


def _optimizer(name: str, model: nn.Sequential) -> Optimizer:
    lr = {"LARS": 1.0, "LARS-all": 1.0, "LAMB": 0.02, "LAMB-chosen": 0.02, "AdamW": 0.01}.get(name, 0.05)
    return OPTIMIZERS[name](_groups(model, lr / 3))


def _data(accumulation: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(UPDATES * accumulation, WORLD * MICRO, 7, generator=generator)
    return x, x.sum(-1, keepdim=True).sin()


@dataclass
class Trained:
    """What training came to."""

    weights: Tensor
    alignments: list[Any] = field(default_factory=list)
    ratios: Tensor = field(default_factory=lambda: torch.empty(0))
    steps: int = 0
    questions: set[int] = field(default_factory=set)
    """All-reduces in one step of the optimizer."""


def _watched(optimizer: Optimizer, result: Trained) -> tuple[Callable[[], None], Callable[[], None]]:
    """Before and after each update: halve every lr at the fifth, and read the alignments."""
    estimator = AlignmentEstimator(optimizer)

    def before() -> None:
        result.alignments.append(estimator.measure())
        if result.steps == 5:
            for group in optimizer.param_groups:
                group["lr"] *= 0.5
        estimator.before_step([group["lr"] for group in optimizer.param_groups])

    counting = mock.patch("torch.distributed.all_reduce", wraps=torch.distributed.all_reduce)
    calls: list[mock.Mock] = []

    def after(*_: Any) -> None:
        counting.stop()
        result.questions.add(calls.pop().call_count)
        estimator.after_step()
        result.steps += 1

    optimizer.register_step_pre_hook(lambda *_: calls.append(counting.start()))
    optimizer.register_step_post_hook(after)
    return before, after


def _alone(setting: Setting) -> Trained:
    model = _model()
    optimizer = _optimizer(setting.optimizer, model)
    result = Trained(torch.empty(0))
    before, _ = _watched(optimizer, result)
    x, y = _data(setting.accumulation)
    for index in range(len(x)):
        (nn.functional.mse_loss(model(x[index]), y[index]) / setting.accumulation).backward()
        if (index + 1) % setting.accumulation == 0:
            if setting.clip:
                nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
            before()
            optimizer.step()
            optimizer.zero_grad()
    result.weights = torch.cat([p.detach().flatten() for p in model.parameters()])
    result.ratios = optimizer.trust_ratios() if isinstance(optimizer, LARS | LAMB) else result.ratios
    return result


@contextmanager
def _engine(setting: Setting) -> Iterator[tuple[Any, Any]]:
    import deepspeed

    from lightning_lr.strategies.zero.sharded_update import ShardedUpdate

    model = _model()
    optimizer = _optimizer(setting.optimizer, model)
    update = ShardedUpdate(optimizer)
    config = {
        "train_micro_batch_size_per_gpu": MICRO,
        "gradient_accumulation_steps": setting.accumulation,
        "gradient_clipping": setting.clip,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": {"stage": setting.stage, **dict(setting.zero)},
        "steps_per_print": 10**9,
        **dict(setting.engine),
    }
    engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=config, dist_init_required=False)
    update.attach(engine)
    try:
        yield engine, update
    finally:
        update.detach()
        engine.destroy()


def _sharded(setting: Setting) -> Trained:
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import safe_get_full_fp32_param

    deepspeed.utils.logger.setLevel(logging.ERROR)
    __compatible_ops__["deepspeed_shm_comm"] = False  # it would be compiled, for inference
    deepspeed.init_distributed("gloo")
    rank = torch.distributed.get_rank()
    result = Trained(torch.empty(0))
    x, y = _data(setting.accumulation)
    own = slice(rank * MICRO, (rank + 1) * MICRO)
    with _engine(setting) as (engine, update):
        assert update.in_parts is None
        optimizer = engine.optimizer.optimizer
        before, _ = _watched(optimizer, result)
        update.before_update(before)
        kind = next(engine.module.parameters()).dtype
        for inputs, targets in zip(x[:, own], y[:, own], strict=True):
            engine.backward(nn.functional.mse_loss(engine(inputs.to(kind)).float(), targets))
            engine.step()
        full = [safe_get_full_fp32_param(p) if p.requires_grad else None for p in engine.module.parameters()]
        frozen = _model()[2].bias.detach()  # type: ignore[union-attr]
        result.weights = torch.cat([(frozen if p is None else p).detach().flatten().clone() for p in full])
        result.ratios = optimizer.trust_ratios() if isinstance(optimizer, LARS | LAMB) else result.ratios
    return result


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    soon, slow = (
        [(setting.name, partial(_sharded, setting)) for setting in [*SETTINGS, *HALF] if _soon(setting) == wanted]
        for wanted in (True, False)
    )
    return Batches(tmp_path_factory.mktemp("zero"), soon, slow)


def _of(two_processes: Batches, setting: Setting) -> list[Trained]:
    found = two_processes[setting.name]
    for one in found:
        if isinstance(one, str):
            pytest.fail(one)
    return found


@over(SETTINGS)
def test_two_processes_equal_one(setting: Setting, two_processes: Batches) -> None:
    alone = _alone(setting)
    moved = (alone.weights - torch.cat([p.detach().flatten() for p in _model().parameters()])).abs().max()
    assert moved > 0.01
    for rank in _of(two_processes, setting):
        assert rank.steps == UPDATES, "one step of the optimizer per update, whatever the stage"
        difference = (rank.weights - alone.weights).abs().max()
        print(f"{setting.name}: {difference:.1e} of {moved:.1e}")
        assert difference < rounding_after(UPDATES)
        # a norm of gradients that are by the end a hundredth of their terms
        torch.testing.assert_close(rank.ratios, alone.ratios.to(rank.ratios), rtol=rounding(ROUNDINGS * 10), atol=0)
        assert rank.questions == {1 if setting.optimizer in MEASURED else 0}, "one for all groups and tensors"


@over(SETTINGS)
def test_alignments_are_those_of_one_process(setting: Setting, two_processes: Batches) -> None:
    expected = _alone(setting).alignments
    for rank in _of(two_processes, setting):
        assert len(rank.alignments) == UPDATES
        worst = 0.0
        for mine, theirs in zip(rank.alignments, expected, strict=True):
            # the last group is one weight: its gradient is what is left of terms that cancel, in another order here
            groups = slice(None, -1)
            for a, b in zip(mine[groups], theirs[groups], strict=True):
                size = max((b.gradient * b.direction) ** 0.5, 1e-30)
                worst = max(worst, abs(a.dot - b.dot) / size, abs(a.gradient / b.gradient - 1))
                worst = max(worst, abs(a.direction - b.direction) / max(b.direction, 1e-30))
        print(f"{setting.name}: {worst:.1e}")
        # a step is at least a two-hundredth of the weights whose difference it is, each of them rounded
        assert worst < rounding(ROUNDINGS + 200 if setting.optimizer in MEASURED else ROUNDINGS)
    assert any(alignment.dot != 0 for groups in expected for alignment in groups)


@over(HALF)
def test_bf16_moves_as_fp32_does(setting: Setting, two_processes: Batches) -> None:
    """The master weights are in fp32, and so are the norms; only the gradients are bf16's, of 8 bits."""
    alone = _alone(setting)
    moved = alone.weights - torch.cat([p.detach().flatten() for p in _model().parameters()])
    for rank in _of(two_processes, setting):
        difference = (rank.weights - alone.weights).norm() / moved.norm()
        print(f"{setting.name}: {difference:.1e} of the way")
        assert difference < 0.05
        assert rank.questions == {1}
