"""The hypergradient against autograd, closed recursions and the optimizers' own steps; then the rules and guards."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import LBFGS, SGD, Adam, AdamW, NAdam, Optimizer, RMSprop

from lightning_lr.hypergradient import HYPER_LR, Alignment, AlignmentEstimator, FactorLearner
from lightning_lr.hypergradient import estimate as estimate_module
from lightning_lr.hypergradient.directions import flat
from tests.support.two_processes import run_in_two_processes

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


def backward_on(module: nn.Module, batch: tuple[Tensor, Tensor]) -> Callable[[], None]:
    return lambda: loss_of(module, dict(module.named_parameters()), batch).backward()  # type: ignore[no-untyped-call]


def everything(module: nn.Module) -> Tensor:
    return flat([p.detach() for p in module.parameters()]).clone()


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


BETAS = (0.9, 0.99)
CASES: dict[str, tuple[Make, Any, float, float]] = {
    # name: optimizer, its direction in the paper's words, weight decay inside the objective, hyper_lr
    "sgd": (lambda p: SGD(p, 0.01), sgd_equations(0, False, 0), 0.0, 1e-3),
    "sgd with decay": (lambda p: SGD(p, 0.01, weight_decay=0.1), sgd_equations(0, False, 0.1), 0.1, 1e-3),
    "momentum": (
        lambda p: SGD(p, 0.01, momentum=0.9, weight_decay=0.05),
        sgd_equations(0.9, False, 0.05),
        0.05,
        1e-3,
    ),
    "nesterov": (
        lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True, weight_decay=0.05),
        sgd_equations(0.9, True, 0.05),
        0.05,
        1e-3,
    ),
    "adam": (lambda p: Adam(p, 0.01, BETAS), adam_equations(0, False), 0.0, 1e-3),
    "adam with decay": (lambda p: Adam(p, 0.01, BETAS, weight_decay=0.1), adam_equations(0.1, False), 0.1, 1e-3),
    "adam, amsgrad": (lambda p: Adam(p, 0.01, BETAS, amsgrad=True), adam_equations(0, False, True), 0.0, 1e-3),
    "adamw": (lambda p: AdamW(p, 0.01, BETAS, weight_decay=0.3), adam_equations(0.3, True), 0.0, 1e-3),
    "adamw, fused": (
        lambda p: AdamW(p, 0.01, BETAS, weight_decay=0.3, fused=True),
        adam_equations(0.3, True),
        0.0,
        1e-3,
    ),
}


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
        moves = {key: direction(states[key], now[key], g) for key, g in zip(now, gradients, strict=True)}
        theta, last = {key: now[key] - alpha * moves[key] for key in now}, (now, moves)
        expected.append(alpha)

    optimizer = make(module.parameters())
    learner = attach(optimizer, "additive", hyper_lr)
    found = []
    for batch in data:
        found += walk(optimizer, learner, backward_on(module, batch), [0.01])
    assert max(found) / min(found) > 1.05, "the learning rate moved"
    # fp64 over 50 updates: rounding of sums in another order
    assert found == pytest.approx(expected, rel=1e-10, abs=0)
    for key, p in module.named_parameters():
        assert torch.allclose(p, theta[key], rtol=1e-10, atol=1e-12)


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
@pytest.mark.parametrize("chunk", [1 << 20, 20, 11])
def test_direction_is_the_step_that_the_optimizer_made(
    name: str, steps: int, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "CHUNK", chunk)
    if chunk < 1 << 20:  # torch's operations, which know chunks; the kernel in C knows none
        monkeypatch.setattr(estimate_module, "kernel", lambda: None)
    module = network()
    optimizer = OPTIMIZERS[name](module.parameters())
    learner = attach(optimizer, "additive", 0.0)
    for batch in batches(steps):
        before = everything(module)
        (lr,) = walk(optimizer, learner, backward_on(module, batch), [0.01])
    moved = (before - everything(module)) / lr
    group = optimizer.param_groups[0]
    probe = torch.randn(moved.shape, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    for p, g in zip(module.parameters(), probe.split([p.numel() for p in module.parameters()]), strict=True):
        p.grad = g.view_as(p).clone()
    (alignment,) = optimizer.estimator.measure()  # type: ignore[attr-defined]
    probe = -probe if group.get("maximize") else probe
    if type(optimizer) in (SGD, Adam):  # the decay is in the gradient
        probe = probe + group["weight_decay"] * everything(module)
    # moved is a difference of weights of size 1, over a learning rate of 0.01: 100 ulp of fp64, over the sum's terms
    assert tuple(alignment) == pytest.approx(
        ((probe @ moved).item(), (probe @ probe).item(), (moved @ moved).item()), rel=1e-9, abs=1e-9
    )


CYCLES: dict[str, list[Any]] = {
    "betas": [(0.95, 0.999), (0.85, 0.99), (0.9, 0.95)],
    "momentum": [0.95, 0.5, 0.0, 0.85],
    "eps": [1e-8, 1e-2, 1e-4],
    "weight_decay": [0.5, 0.0, 0.1],
    "dampening": [0.0, 0.5],
}


@pytest.mark.parametrize("name", [*OPTIMIZERS, "nesterov"])
def test_the_last_direction_is_that_of_the_settings_it_was_made_with(name: str) -> None:
    """A scheduler cycles betas, momentum, decay and eps between two updates; OneCycleLR does the first two."""
    module = network()
    make = {**OPTIMIZERS, "nesterov": lambda p: SGD(p, 0.01, momentum=0.8, nesterov=True)}[name]
    optimizer = make(module.parameters())
    estimator = AlignmentEstimator(optimizer)
    (group,) = optimizer.param_groups
    moved, lr = None, float(group["lr"])
    off = 1e-9 if isinstance(group["lr"], float) else 1e-5  # torch makes 1 - lr decay in the tensor's fp32
    for update, batch in enumerate(batches(9)):
        optimizer.zero_grad()
        backward_on(module, batch)()
        gradient = flat([p.grad for p in module.parameters() if p.grad is not None]).clone()
        if group.get("maximize"):
            gradient = -gradient
        if type(optimizer) in (SGD, Adam):  # the decay is in the gradient
            gradient += group["weight_decay"] * everything(module)
        if update == 4:  # what the last update was made with is in the state
            state, estimator = estimator.state_dict(), AlignmentEstimator(optimizer)
            estimator.load_state_dict(state)
        (found,) = estimator.measure()
        if moved is not None:
            assert found.dot == pytest.approx((gradient @ moved).item(), rel=off, abs=off)
            assert found.direction == pytest.approx((moved @ moved).item(), rel=off)
        before = everything(module)
        estimator.before_step([lr])
        optimizer.step()
        estimator.after_step()
        moved = (before - everything(module)) / lr
        for key, values in CYCLES.items():
            if key in group and not (key == "dampening" and group["nesterov"]):
                group[key] = values[update % len(values)]


def test_state_without_settings_is_of_an_older_version_and_goes_on() -> None:
    module = network()
    optimizer = Adam(module.parameters(), 0.01)
    estimator = AlignmentEstimator(optimizer)
    for batch in batches(2):
        optimizer.zero_grad()
        backward_on(module, batch)()
        estimator.before_step([0.01])
        optimizer.step()
        estimator.after_step()
    state = estimator.state_dict()
    assert state["settings"][0]["betas"] == [0.9, 0.999]
    del state["settings"]
    older = AlignmentEstimator(optimizer)
    older.load_state_dict(state)
    assert older.measure() == estimator.measure()


def test_what_comes_to_the_state_between_two_updates_is_seen() -> None:
    """The chunks are packed anew whenever anything that they were made from has changed."""
    module = network()
    optimizer = SGD(module.parameters(), 0.01, momentum=0.9)
    estimator = AlignmentEstimator(optimizer)
    estimator.lr = [0.01]  # as after a resume whose optimizer began without its momentum
    first, second, third = batches(3)
    for batch, known in ((first, False), (second, True)):
        optimizer.zero_grad()
        backward_on(module, batch)()
        assert (estimator.measure()[0].direction > 0) == known
        estimator.before_step([0.01])
        optimizer.step()
        estimator.after_step()
    estimator.measure()
    parameter = next(module.parameters())
    optimizer.state[parameter].clear()  # reset by its user
    backward_on(module, third)()
    rest = [optimizer.state[p]["momentum_buffer"] for p in list(module.parameters())[1:]]
    assert estimator.measure()[0].direction == pytest.approx(sum(float(b.square().sum()) for b in rest), rel=1e-12)


def test_direction_of_weights_that_lie_channels_last() -> None:
    convolution = nn.Conv2d(3, 4, 3, dtype=torch.float64)
    found = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        module = copy.deepcopy(convolution).to(memory_format=memory_format)  # type: ignore[call-overload]
        optimizer = AdamW(module.parameters(), 0.01)
        learner = attach(optimizer, "additive", 0.0)
        x = torch.linspace(-1, 1, 2 * 3 * 36, dtype=torch.float64).view(2, 3, 6, 6)
        for power in (2, 3):
            walk(optimizer, learner, lambda m=module, n=power, x=x: m(x).pow(n).mean().backward(), [0.01])  # type: ignore[misc]
        found.append(tuple(optimizer.estimator.measure()[0]))  # type: ignore[attr-defined]
    assert found[0] == pytest.approx(found[1], rel=1e-12)
    assert found[0][0] != 0


def test_half_precision_is_summed_in_single() -> None:
    weight = nn.Parameter(torch.full((5000,), 0.01, dtype=torch.bfloat16))
    optimizer = SGD([weight], 0.1, momentum=0.9)
    estimator = AlignmentEstimator(optimizer)
    weight.grad = torch.ones_like(weight)
    estimator.before_step([0.1])
    optimizer.step()
    assert estimator.measure() == [Alignment(5000.0, 5000.0, 5000.0)], "in bf16 a sum of ones stops at 256"


def test_parameters_that_the_last_update_left_out_do_not_count() -> None:
    a, b = (nn.Parameter(torch.ones(3, dtype=torch.float64)) for _ in range(2))
    for make in (lambda p: SGD(p, 0.1), lambda p: Adam(p, 0.1), lambda p: RMSprop(p, 0.1)):
        optimizer: Optimizer = make([a, b])
        estimator = AlignmentEstimator(optimizer)

        def update(*gradients: Tensor | None, estimator: Any = estimator, optimizer: Any = optimizer) -> Alignment:
            a.grad, b.grad = gradients
            (alignment,) = estimator.measure()
            estimator.before_step([0.1])
            optimizer.step()
            estimator.after_step()
            return alignment

        ones = torch.ones(3, dtype=torch.float64)
        first = update(ones, ones)
        assert (first.dot, first.gradient, first.direction) == (0.0, 6.0, 0.0)
        update(ones, None)
        third = update(ones, ones)
        assert third.gradient == pytest.approx(6.0)
        assert third.dot == pytest.approx(third.direction**0.5 * 3**0.5, rel=1e-6), "of the first parameter alone"
        assert update(ones, ones).dot > 1.5 * third.dot


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    "name",
    ["sgd, maximize", "momentum with dampening", "nesterov, decay, maximize", "adam, maximize", "adamw", "rmsprop"],
)
def test_a_parameter_without_a_gradient_now_counts_by_its_last_step(
    name: str, native: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not native:
        monkeypatch.setattr(estimate_module, "kernel", lambda: None)
    generator = torch.Generator().manual_seed(2)
    used, unused = (
        nn.Parameter(torch.randn(5, 40, generator=generator, dtype=torch.float64)) for _ in range(2)
    )  # fmt: skip
    optimizer = OPTIMIZERS[name]([used, unused])
    estimator = AlignmentEstimator(optimizer)

    def update(*which: nn.Parameter) -> tuple[Alignment, Tensor]:
        for parameter in (used, unused):
            random = torch.randn(5, 40, generator=generator, dtype=torch.float64)
            parameter.grad = random if any(parameter is one for one in which) else None
        (alignment,) = estimator.measure()
        assert (used.grad is None, unused.grad is None) == (False, len(which) == 1), "what was not there is not left"
        before = torch.cat([used.detach().flatten(), unused.detach().flatten()])
        estimator.before_step([0.01])
        optimizer.step()
        estimator.after_step()
        return alignment, (before - torch.cat([used.detach().flatten(), unused.detach().flatten()])) / 0.01

    for _ in range(3):
        update(used, unused)
    _, moved = update(used, unused)
    group = optimizer.param_groups[0]
    held = used.detach().clone()
    alignment, now = update(used)
    assert alignment.direction == pytest.approx((moved @ moved).item(), rel=1e-9)
    assert used.grad is not None
    gradient = -used.grad if group.get("maximize") else used.grad.clone()
    if type(optimizer) in (SGD, Adam):
        gradient += group["weight_decay"] * held
    flat = torch.cat([gradient.flatten(), torch.zeros(200, dtype=torch.float64)])
    assert alignment.gradient == pytest.approx((flat @ flat).item(), rel=1e-9)
    assert alignment.dot == pytest.approx((flat @ moved).item(), rel=1e-7)
    for both in (update(used), update(used, unused), update(used, unused)):
        assert both[0].direction == pytest.approx((now @ now).item(), rel=1e-9)
        now = both[1]


@pytest.mark.parametrize(
    ("make", "copies"),
    [
        (lambda p: SGD(p, 0.01, momentum=0.9), 0),
        (lambda p: Adam(p, 0.01), 0),
        (lambda p: AdamW(p, 0.01), 0),
        (lambda p: SGD(p, 0.01), 1),
        (lambda p: SGD(p, 0.01, momentum=0.9, nesterov=True), 1),
        (lambda p: NAdam(p, 0.01), 1),
    ],
)
def test_memory_kept_between_updates(make: Make, copies: int) -> None:
    module = network()
    optimizer = make(module.parameters())
    learner = attach(optimizer, "normalized", None)
    for batch in batches(3):
        walk(optimizer, learner, backward_on(module, batch), [0.01])
    kept = optimizer.estimator.state_dict()["copies"].values()  # type: ignore[attr-defined]
    assert sum(copy.numel() for copy in kept) == copies * sum(p.numel() for p in module.parameters())


def test_a_closure_of_lbfgs_is_refused() -> None:
    with pytest.raises(ValueError, match="LBFGS, which evaluates several steps"):
        AlignmentEstimator(LBFGS(network().parameters()))


def test_sparse_gradients_are_refused_with_a_way_out() -> None:
    table = nn.Embedding(10, 3, sparse=True)
    optimizer = SGD(table.parameters(), 0.1)
    table(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"parameter 0 .* sparse gradient, .* use sparse=False"):
        AlignmentEstimator(optimizer).measure()


# ---------------------------------------------------------------------- rules, on f(x) = L x^2 / 2
def quadratic(rule: Any, hyper_lr: float | None, lr: float, updates: int, curvature: float = 1.0) -> list[float]:
    x = nn.Parameter(torch.ones(1, dtype=torch.float64))
    optimizer = SGD([x], lr)
    learner = attach(optimizer, rule, hyper_lr)
    series = []
    for _ in range(updates):
        series += walk(optimizer, learner, lambda: (0.5 * curvature * x**2).sum().backward(), [lr])  # type: ignore[no-untyped-call]
    return series


@pytest.mark.parametrize(("hyper_lr", "end"), [(1e-4, 0.014), (1e-2, 0.10), (0.1, 0.33)])
def test_additive_equals_its_recursion_and_stops_short(hyper_lr: float, end: float) -> None:
    found = quadratic("additive", hyper_lr, 0.01, 700)
    x, lr, last, expected = 1.0, 0.01, 0.0, []
    for _ in range(700):
        lr += hyper_lr * x * last
        last, x = x, x - lr * x
        expected.append(lr)
    assert found == pytest.approx(expected, rel=1e-10, abs=0)  # fp64 rounding
    assert found[-1] == pytest.approx(end, rel=0.04)  # the figures have two digits


@pytest.mark.parametrize("lr", [1e-6, 1e-3, 1.0, 3.0])
@pytest.mark.parametrize("curvature", [0.3, 20.0])
@pytest.mark.parametrize(("rule", "hyper_lr"), [("multiplicative", 0.01), ("normalized", None)])
def test_scale_free_rules_reach_one_over_the_curvature(rule: str, hyper_lr: Any, lr: float, curvature: float) -> None:
    # the multiplicative rule moves by its hyper_lr at every update of a 1-D problem, so it stays within 1 % at best
    series = quadratic(rule, hyper_lr, lr / curvature, 1600 if rule == "multiplicative" else 120, curvature)
    assert series[-1] * curvature == pytest.approx(1.0, rel=0.02)


def one(dot: float, gradient: float = 1.0, direction: float = 1.0) -> list[Alignment]:
    return [Alignment(dot, gradient, direction)]


def learner_of(rule: Any, hyper_lr: float | None = 0.1, **arguments: Any) -> FactorLearner:
    return FactorLearner(rule, hyper_lr, "sgd", **arguments)


RULES = ["additive", "multiplicative", "normalized"]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("hyper_lr", [0.1, 1e3, 1e9, 1e300])
def test_factor_stays_within_its_bounds(rule: str, hyper_lr: float) -> None:
    learner = learner_of(rule, hyper_lr)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        dot, size = (torch.randn(2, generator=generator, dtype=torch.float64) * 1e3).tolist()
        alignments = one(dot, abs(dot) + abs(size), abs(dot) + abs(size))
        (factor,) = learner.refine(alignments, [0.1], [0.1])
        learner.applied(alignments, [0.1])
        assert 1e-3 <= factor <= 1e3


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("broken", [one(math.nan), one(math.inf), one(1.0, math.nan), one(1.0, 1.0, math.inf)])
def test_feedback_that_is_not_finite_teaches_nothing(rule: str, broken: list[Alignment]) -> None:
    learner, untouched = learner_of(rule), learner_of(rule)
    for chosen, series in ((learner, [one(0.5), broken, one(0.3)]), (untouched, [one(0.5), one(0.3)])):
        for alignments in series:
            factors = chosen.refine(alignments, [0.1], [0.1])
            if alignments is not broken:
                chosen.applied(alignments, [0.1])
    assert factors == learner.factors(1) == untouched.factors(1)
    assert factors[0] != 1.0


@pytest.mark.parametrize("rule", RULES)
def test_nothing_is_learned_from_an_update_that_moved_nothing(rule: str) -> None:
    learner = learner_of(rule)
    for base in (0.0, 0.0, 0.1):  # the first update has no past; those at 0 made none
        assert learner.refine(one(0.5), [base], [0.1]) == [1.0]
        learner.applied(one(0.5), [base])
    assert learner.refine(one(0.5), [0.1], [0.1])[0] > 1.0


def test_additive_rule_is_the_papers_for_any_constant_schedule_and_rests_where_a_schedule_is_low() -> None:
    learner = learner_of("additive", 1e-3)
    learner.refine(one(2.0), [0.1], [0.1])
    learner.applied(one(2.0), [0.1])
    assert 0.1 * learner.refine(one(2.0), [0.1], [0.1])[0] == pytest.approx(0.1 + 1e-3 * 2.0)
    low = learner_of("additive", 1e-3)
    low.refine(one(2.0), [1e-5], [0.1])  # the first update of a warm-up to 0.1
    low.applied(one(2.0), [1e-5])
    assert low.refine(one(2.0), [2e-5], [0.1])[0] == pytest.approx(1.0, abs=1e-5)


def test_one_factor_for_all_groups_follows_their_common_direction() -> None:
    a, b = (nn.Parameter(torch.full((2,), 1.0, dtype=torch.float64)) for _ in range(2))
    apart = SGD([{"params": [a], "lr": 0.1}, {"params": [b], "lr": 0.1}])
    whole = SGD([a, b], 0.1)
    series = []
    for optimizer, base, scope in ((apart, [0.1, 0.1], "global"), (whole, [0.1], "group")):
        with torch.no_grad():
            a.fill_(1.0)
            b.fill_(2.0)
        for rule in RULES:
            learner = attach(optimizer, rule, 0.05, scope=scope)
            for _ in range(5):
                lr = walk(optimizer, learner, lambda: (a.pow(2).sum() + 0.1 * b.pow(2).sum()).backward(), base)
                assert len(set(lr)) == 1
                series.append(lr[0])
    half = len(series) // 2
    assert series[:half] == pytest.approx(series[half:], rel=1e-12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("make", [OPTIMIZERS["sgd"], OPTIMIZERS["adamw"], OPTIMIZERS["rmsprop"]])
def test_state_goes_on_to_the_bit(rule: str, make: Make) -> None:
    module, data = network(), batches(8)
    optimizer = make(module.parameters())
    learner = attach(optimizer, rule, None)
    series = []
    for index, batch in enumerate(data):
        if index == 4:
            states = copy.deepcopy(
                (module.state_dict(), optimizer.state_dict(), learner.state_dict(), optimizer.estimator.state_dict())  # type: ignore[attr-defined]
            )
        series += walk(optimizer, learner, backward_on(module, batch), [0.01])
    again = network()
    again.load_state_dict(states[0])
    optimizer = make(again.parameters())
    optimizer.load_state_dict(states[1])
    learner = attach(optimizer, rule, None)
    learner.load_state_dict(states[2])
    optimizer.estimator.load_state_dict(states[3])  # type: ignore[attr-defined]
    resumed = [lr for batch in data[4:] for lr in walk(optimizer, learner, backward_on(again, batch), [0.01])]
    assert resumed == series[4:]


def test_defaults_exist_for_every_rule_and_family() -> None:
    assert set(HYPER_LR) == set(RULES)
    assert all(set(rates) == {"sgd", "adam", "other"} for rates in HYPER_LR.values())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"rule": "exponential"}, "got rule='exponential'; allowed are"),
        ({"hyper_lr": -1.0}, r"got hyper_lr=-1.0; give 0 \(off\) or more"),
        ({"hyper_lr": math.nan}, "got hyper_lr=nan"),
        ({"bounds": (2.0, 3.0)}, r"got bounds=\(2.0, 3.0\)"),
        ({"bounds": (0.0, 3.0), "rule": "normalized"}, "low may be 0 for the additive rule only"),
        ({"bounds": (0.1, math.inf)}, "got bounds="),
        ({"scope": "layer"}, "got scope='layer'; allowed are"),
    ],
)
def test_what_is_not_allowed_is_said(arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        FactorLearner(**{"rule": "additive", "hyper_lr": None, "family": "sgd", **arguments})


# ---------------------------------------------------------------------- shards
def _sharded_sums() -> dict[str, Any]:
    from torch.distributed.fsdp import fully_shard

    found = {}
    for name, make in (("momentum", CASES["momentum"][0]), ("sgd", CASES["sgd"][0]), ("adamw", CASES["adamw"][0])):
        whole, sharded = network(), network()
        fully_shard(sharded[0])
        fully_shard(sharded)
        series = []
        for module in (whole, sharded):
            optimizer = make(module.parameters())
            learner = attach(optimizer, "normalized", None)
            lrs: list[float] = []
            for x, y in batches(5):
                loss = lambda m=module, x=x, y=y: nn.functional.cross_entropy(m(x), y).backward()  # noqa: E731
                lrs += walk(optimizer, learner, loss, [0.01])
            series.append(lrs)
        found[name] = series
    return found


@pytest.mark.slow
def test_shards_have_the_sums_of_the_whole(tmp_path: Path) -> None:
    ranks = run_in_two_processes([("shards", _sharded_sums)], tmp_path)
    for rank in ranks:
        if isinstance(rank["shards"], Exception):
            raise rank["shards"]
        for whole, sharded in rank["shards"].values():
            assert sharded == pytest.approx(whole, rel=1e-9)  # fp64, sums in another order
            assert sharded[-1] != sharded[0]
    assert ranks[0]["shards"] == ranks[1]["shards"], "the ranks agree to the bit"


@pytest.mark.parametrize("name", ["plain", "momentum", "nesterov"])
@pytest.mark.parametrize("chunk", [1 << 20, 11])
def test_a_loss_scale_that_is_left_in_the_gradients_changes_nothing(
    name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(estimate_module, "CHUNK", chunk)
    if chunk < 1 << 20:  # torch's operations, which know chunks; the kernel in C knows none
        monkeypatch.setattr(estimate_module, "kernel", lambda: None)
    momentum = 0.0 if name == "plain" else 0.9
    found = []
    for scale in (1.0, 1024.0):
        module = network()
        optimizer = SGD(module.parameters(), 0.01, momentum, weight_decay=0.5, nesterov=name == "nesterov")
        estimator = AlignmentEstimator(optimizer)
        for batch in batches(3):
            backward_on(module, batch)()
            for p in module.parameters():
                p.grad.mul_(scale)  # type: ignore[union-attr]
            found.append(estimator.measure(scale)[0])
            estimator.before_step([0.01], scale)
            for p in module.parameters():
                p.grad.div_(scale)  # type: ignore[union-attr]
            optimizer.step()
            estimator.after_step()
    for plain, scaled in zip(found[:3], found[3:], strict=True):
        assert tuple(scaled) == pytest.approx(tuple(plain), rel=1e-12)  # a power of two, in fp64
