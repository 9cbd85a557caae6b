"""The hypergradient against autograd, closed recursions and the optimizers' own steps; then the rules and guards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from ddp import run_in_two_processes
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from lightning_lr.hypergradient import HYPER_LR, Alignment, AlignmentEstimator, FactorLearner
from lightning_lr.hypergradient import estimate as estimate_module
from lightning_lr.hypergradient.directions import flat

Make = Callable[..., Optimizer]
FAR = (1e-9, 1e9)


# ---------------------------------------------------------------------- a problem, and a run with the pure parts only
def network(dtype: torch.dtype = torch.float64) -> nn.Sequential:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).to(dtype)


def batches(count: int, dtype: torch.dtype = torch.float64) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(2)
    return [
        (torch.randn(16, 5, generator=generator, dtype=dtype), torch.randint(3, (16,), generator=generator))
        for _ in range(count)
    ]


def loss_of(module: nn.Module, parameters: dict[str, Tensor], batch: tuple[Tensor, Tensor]) -> Tensor:
    logits = torch.func.functional_call(module, parameters, (batch[0],))
    return nn.functional.cross_entropy(logits, batch[1])


def walk(optimizer: Optimizer, learner: FactorLearner, backward: Callable[[], Any], base: list[float]) -> list[float]:
    """One update as the callback makes it; returns the learning rates used."""
    optimizer.zero_grad()
    backward()
    estimator: AlignmentEstimator = optimizer.estimator  # type: ignore[attr-defined]
    alignments = estimator.measure()
    factors = learner.refine(alignments, base, base)
    lr = [b * factor for b, factor in zip(base, factors, strict=True)]
    for group, value in zip(optimizer.param_groups, lr, strict=True):
        group["lr"] = value
    estimator.before_step(lr)
    learner.applied(alignments, base)
    optimizer.step()
    estimator.after_step()
    return lr


def attach(optimizer: Optimizer, rule: Any, hyper_lr: float | None, **arguments: Any) -> FactorLearner:
    optimizer.estimator = AlignmentEstimator(optimizer)  # type: ignore[attr-defined]
    arguments.setdefault("bounds", FAR)
    return FactorLearner(rule, hyper_lr, optimizer.estimator.family, **arguments)  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- oracle: autograd through the paper's equations
def sgd_equations(momentum: float, nesterov: bool, decay: float) -> Any:
    def direction(state: dict[str, Any], theta: Tensor, gradient: Tensor) -> Tensor:
        gradient = gradient + decay * theta
        if not momentum:
            return gradient
        v = state["v"] = momentum * state["v"] + gradient if "v" in state else gradient
        return gradient + momentum * v if nesterov else v

    return direction


def adam_equations(decay: float, decoupled: bool, amsgrad: bool = False) -> Any:
    def direction(state: dict[str, Any], theta: Tensor, gradient: Tensor) -> Tensor:
        if not decoupled:
            gradient = gradient + decay * theta
        t = state["t"] = state.get("t", 0) + 1
        m = state["m"] = 0.9 * state.get("m", 0.0) + 0.1 * gradient
        v = state["v"] = 0.99 * state.get("v", 0.0) + 0.01 * gradient**2
        if amsgrad:
            v = state["top"] = torch.maximum(v, state["top"]) if "top" in state else v
        update = (m / (1 - 0.9**t)) / ((v / (1 - 0.99**t)).sqrt() + 1e-8)
        return update + decay * theta if decoupled else update

    return direction


CASES: dict[str, tuple[Make, Any, float, float]] = {
    # name: optimizer, its direction in the paper's words, weight decay inside the objective, hyper_lr
    "sgd": (lambda p: SGD(p, 0.01), sgd_equations(0, False, 0), 0.0, 1e-3),
    "sgd with decay": (lambda p: SGD(p, 0.01, weight_decay=0.1), sgd_equations(0, False, 0.1), 0.1, 1e-3),
    "momentum": (lambda p: SGD(p, 0.01, momentum=0.9, weight_decay=0.05), sgd_equations(0.9, False, 0.05), 0.05, 1e-3),
    "nesterov": (lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.05), sgd_equations(0.9, True, 0.05), 0.05, 1e-3),
    "adam": (lambda p: Adam(p, 0.01, betas=(0.9, 0.99)), adam_equations(0, False), 0.0, 1e-3),
    "adam with decay": (lambda p: Adam(p, 0.01, betas=(0.9, 0.99), weight_decay=0.1), adam_equations(0.1, False), 0.1, 1e-3),
    "adam, amsgrad": (lambda p: Adam(p, 0.01, betas=(0.9, 0.99), amsgrad=True), adam_equations(0, False, True), 0.0, 1e-3),
    "adamw": (lambda p: AdamW(p, 0.01, betas=(0.9, 0.99), weight_decay=0.3), adam_equations(0.3, True), 0.0, 1e-3),
    "adamw, fused": (lambda p: AdamW(p, 0.01, betas=(0.9, 0.99), weight_decay=0.3, fused=True), adam_equations(0.3, True), 0.0, 1e-3),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_fifty_updates_equal_autograd_of_the_papers_equations(name: str) -> None:
    make, direction, decay, hyper_lr = CASES[name]
    module, data = network(), batches(50)
    theta = {key: p.detach().clone() for key, p in module.named_parameters()}
    states: dict[str, dict[str, Any]] = {key: {} for key in theta}
    alpha, last, expected = 0.01, None, []
    for batch in data:
        rate = torch.tensor(alpha, dtype=torch.float64, requires_grad=True)
        here = theta if last is None else {key: last[0][key] - rate * last[1][key] for key in theta}
        leaves = {key: (p if p.requires_grad else p.requires_grad_()) for key, p in here.items()}
        objective = loss_of(module, leaves, batch) + 0.5 * decay * sum((p**2).sum() for p in leaves.values())
        if last is not None:
            (slope,) = torch.autograd.grad(objective, rate, retain_graph=True)
            alpha = alpha - hyper_lr * slope.item()
        gradients = torch.autograd.grad(loss_of(module, leaves, batch), list(leaves.values()))
        now = {key: p.detach() for key, p in leaves.items()}
        moves = {key: direction(states[key], now[key], g.detach()) for (key, _), g in zip(leaves.items(), gradients, strict=True)}
        theta, last = {key: now[key] - alpha * moves[key] for key in now}, (now, moves)
        expected.append(alpha)

    optimizer = make(module.parameters())
    learner = attach(optimizer, "additive", hyper_lr)
    found = []
    for batch in data:
        found += walk(optimizer, learner, lambda b=batch: loss_of(module, dict(module.named_parameters()), b).backward(), [0.01])  # type: ignore[misc]
    assert max(found) / min(found) > 1.05, "the learning rate moved"
    # fp64 over 50 updates: rounding of sums in another order
    assert found == pytest.approx(expected, rel=1e-10, abs=0)
    for key, p in module.named_parameters():
        assert torch.allclose(p, theta[key], rtol=1e-10, atol=1e-12)


def measured_direction(make: Make, steps: int, prepare: Callable[[Tensor], None] = lambda p: None) -> None:
    """The formula's direction against the step that the optimizer really made."""
    module = network()
    optimizer = make(module.parameters())
    learner = attach(optimizer, "additive", 0.0)
    for batch in batches(steps):
        before = flat(list(module.parameters()), list(module.parameters())).clone()
        lr = walk(optimizer, learner, lambda b=batch: loss_of(module, dict(module.named_parameters()), b).backward(), [0.01])  # type: ignore[misc]
        after = flat(list(module.parameters()), list(module.parameters()))
        moved = (before - after) / lr[0]
    optimizer.zero_grad()
    probe = torch.randn_like(moved, generator=None)
    start = 0
    for p in module.parameters():
        p.grad = probe[start : start + p.numel()].view_as(p).clone()
        start += p.numel()
    (alignment,) = optimizer.estimator.measure()  # type: ignore[attr-defined]
    sign = -1.0 if optimizer.param_groups[0].get("maximize") else 1.0
    decay = optimizer.param_groups[0].get("weight_decay", 0.0)
    if isinstance(optimizer, SGD | Adam) and not isinstance(optimizer, AdamW):
        probe = sign * probe + decay * flat(list(module.parameters()), list(module.parameters()))
    else:
        probe = sign * probe
    expected = Alignment((probe @ moved).item(), (probe @ probe).item(), (moved @ moved).item())
    # moved is a difference of parameters of size 1 over a learning rate of 0.01: 100 ulp of fp64, over the dot's terms
    assert tuple(alignment) == pytest.approx(tuple(expected), rel=1e-9, abs=1e-9)


OPTIMIZERS: dict[str, Make] = {
    "sgd": lambda p: SGD(p, 0.01),
    "momentum with dampening": lambda p: SGD(p, 0.01, momentum=0.8, dampening=0.3),
    "nesterov, decay, maximize": lambda p: SGD(p, 0.01, momentum=0.8, nesterov=True, weight_decay=0.2, maximize=True),
    "sgd, maximize": lambda p: SGD(p, 0.01, weight_decay=0.2, maximize=True),
    "adam": lambda p: Adam(p, 0.01),
    "adam, maximize": lambda p: Adam(p, 0.01, weight_decay=0.1, maximize=True),
    "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.5),
    "adamw, amsgrad, no foreach": lambda p: AdamW(p, 0.01, amsgrad=True, foreach=False),
    "adamw, tensor lr": lambda p: AdamW(p, torch.tensor(0.01), capturable=False, foreach=False),
    "rmsprop": lambda p: RMSprop(p, 0.01, momentum=0.9),
    "nadam": lambda p: NAdam(p, 0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("steps", [1, 7])
def test_direction_is_the_step_that_the_optimizer_made(name: str, steps: int) -> None:
    measured_direction(OPTIMIZERS[name], steps)
