"""fp16 on the real engine: LARS, LAMB and `HypergradientDescent` in stages 1 to 3 against a loop on one process.

DeepSpeed does not run fp16 on a CPU without native half precision, and :class:`ZeROStrategy` says so
(``tests/test_zero_callbacks.py``, "fp16"). torch computes in it on every CPU, so the check is lifted here; everything
else is the engine's: its loss scale, its flat fp32 masters, its skipped updates.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from lightning_lr import HypergradientDescent
from lightning_lr.optim import LAMB, LARS
from tests.support.batches import Batches
from tests.support.toy import Toy, data, fit
from tests.support.two_processes import WORLD
from tests.support.zero_runs import Watch, needs_deepspeed, zero

pytestmark = needs_deepspeed
STAGES, UPDATES, MICRO, HYPER_LR = (1, 2, 3), 20, 4, 0.05
INFINITE = 12  # the batch whose loss is too large for fp16


def _groups(module: Any, lr: float) -> list[dict[str, Any]]:
    return [
        {"params": list(module.body.parameters()), "lr": lr},
        {"params": list(module.head.parameters()), "lr": lr / 2},
    ]


METHODS: dict[str, tuple[Callable[[Any], torch.optim.Optimizer], float]] = {
    "LARS": (lambda m: LARS(_groups(m, 1.0), lr=1.0, weight_decay=1e-2, trust_coefficient=0.02), 0.05),
    "LAMB": (lambda m: LAMB(_groups(m, 0.02), lr=0.02, weight_decay=0.1), 0.0),
    "hypergradient": (lambda m: torch.optim.SGD(_groups(m, 0.05), momentum=0.9), 0.0),
}
"""Optimizer, and the norm that gradients are clipped to."""


CASES = list(product(METHODS, STAGES))


def _soon(case: tuple[str, int]) -> bool:
    """Every method under one stage in turn; under the others it is slow."""
    return case[1] == STAGES[list(METHODS).index(case[0]) % len(STAGES)]


def _dataset() -> TensorDataset:
    x, y = data(UPDATES * WORLD * MICRO).tensors
    y = y.clone()
    y[INFINITE * WORLD * MICRO] = 3e4  # squared it is above 65504
    return TensorDataset(x, y)


class Scales(Callback):
    """The loss scale of each backward, and the cosines and factors after each update."""

    def __init__(self) -> None:
        self.scales: list[float] = []
        self.metrics: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        self.scales.append(trainer.strategy.current_loss_scale)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        for callback in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(callback, HypergradientDescent):
                run = callback._run
                assert run is not None
                self.metrics.append(dict(callback.metrics(run.clock, run.writer.optimizer, run.effective_lr)))


@contextmanager
def _fp16_lifted() -> Iterator[None]:
    from deepspeed.accelerator import get_accelerator

    accelerator = get_accelerator()
    accelerator.is_fp16_supported = lambda: True
    try:
        yield
    finally:
        del accelerator.is_fp16_supported


def _sharded(stage: int, method: str) -> dict[str, Any]:
    configure, clip = METHODS[method]
    watch, scales = Watch(), Scales()
    callbacks: list[Callback] = [scales, watch]
    if method == "hypergradient":
        callbacks.insert(0, HypergradientDescent(HYPER_LR, rule="multiplicative"))
    sampler = DistributedSampler(_dataset(), shuffle=False)
    with _fp16_lifted():
        _, trainer = fit(
            callbacks, module=Toy(configure), loader=DataLoader(_dataset(), batch_size=MICRO, sampler=sampler),
            max_epochs=1, precision="16-mixed", gradient_clip_val=clip or None, **zero(stage),
        )  # fmt: skip
        facts = watch.facts(trainer)
    masters = facts.pop("weights")
    return {**facts, "weights": masters, "scales": scales.scales, "metrics": scales.metrics}


def _gradient(module: Toy, rank: int, index: int, scale: float) -> list[Tensor]:
    """Of one rank's micro-batch, in fp16, times the loss scale."""
    half = Toy().half()
    half.load_state_dict({name: value.half() for name, value in module.state_dict().items()})
    x, y = (tensor[index * WORLD * MICRO :][: WORLD * MICRO][rank::WORLD].half() for tensor in _dataset().tensors)
    (nn.functional.mse_loss(half(x), y).float() * scale).backward()
    return [parameter.grad for parameter in half.parameters() if parameter.grad is not None]


def _alone(method: str, scales: list[float]) -> dict[str, Any]:
    """fp32 masters, fp16 forward and backward, and no more than the formulas."""
    configure, clip = METHODS[method]
    module = Toy(configure).half().float()  # the masters begin as the fp16 weights
    optimizer: Any = configure(module)
    base = [group["lr"] for group in optimizer.param_groups]
    factors, cosines = [1.0] * len(base), []
    made, moved = [], False
    for index, scale in enumerate(scales):
        ranks = [_gradient(module, rank, index, scale) for rank in range(WORLD)]
        mean = [(a / WORLD + b / WORLD) for a, b in zip(*ranks, strict=True)]  # in fp16, as the engine averages
        if not all(bool(g.isfinite().all()) for g in mean):
            continue
        made.append(index)
        for parameter, gradient in zip(module.parameters(), mean, strict=True):
            parameter.grad = gradient.float() / scale
        if clip:
            nn.utils.clip_grad_norm_(module.parameters(), clip)
        if method == "hypergradient" and moved:
            row = []
            for place, group in enumerate(optimizer.param_groups):
                g = torch.cat([p.grad.double().flatten() for p in group["params"]])
                d = torch.cat([optimizer.state[p]["momentum_buffer"].double().flatten() for p in group["params"]])
                row.append(float(g @ d) / math.sqrt(float(g @ g) * float(d @ d)))
                factors[place] *= 1 + HYPER_LR * row[-1]
                group["lr"] = base[place] * factors[place]
            cosines.append(row)
        optimizer.step()
        moved = True
    weights = torch.cat([parameter.detach().half().double().flatten() for parameter in module.parameters()])
    return {"weights": weights, "made": made, "cosines": cosines, "factors": factors}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    soon, slow = (
        [
            (f"{method}-{stage}", partial(_sharded, stage, method))
            for method, stage in CASES
            if _soon((method, stage)) == s
        ]
        for s in (True, False)
    )
    return Batches(tmp_path_factory.mktemp("fp16"), soon, slow)


@pytest.mark.parametrize(
    ("method", "stage"), [pytest.param(*c, marks=() if _soon(c) else pytest.mark.slow) for c in CASES]
)
def test_fp16_makes_the_updates_of_a_plain_loop(ran: Batches, method: str, stage: int) -> None:
    got, second = ran[f"{method}-{stage}"]
    assert isinstance(got, dict), got
    alone = _alone(method, got["scales"])
    assert len(got["scales"]) == UPDATES
    skipped = [index for index in range(UPDATES) if index not in alone["made"]]
    assert INFINITE in skipped
    assert skipped[0] == 0, "the scale begins too high"
    assert len(got["lrs"]) == len(alone["made"]) > 10, "an update that the loss scale skips is none"
    assert torch.equal(got["weights"], second["weights"])
    begin = torch.cat([p.detach().double().flatten() for p in Toy().parameters()])
    moved = (alone["weights"] - begin).norm()
    difference = (got["weights"] - alone["weights"]).norm()
    print(f"{method}, stage {stage}: {difference / moved:.1e} of the way, {len(skipped)} skipped")
    # an ulp of fp16 in a gradient, which the sum over the ranks may round otherwise, is 5e-4 of it
    assert difference < 2e-3 * moved
    if method == "hypergradient":
        metrics = got["metrics"][-1]
        found = [value for name, value in metrics.items() if "factor" in name]
        assert found == pytest.approx(alone["factors"], rel=1e-3)
        assert max(abs(factor - 1) for factor in found) > 0.05
