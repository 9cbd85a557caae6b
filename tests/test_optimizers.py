"""LARS and LAMB against other people's, against the papers' arithmetic tensor by tensor, and as torch optimizers."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_lr.optim import LAMB, LARS, TrustRatioOptimizer, trust_ratio
from lightning_lr.optim.cpu_norms import norms_on_cpu
from tests.support.rounding import rounding, rounding_after
from tests.support.timm_oracle import import_timm
from tests.support.two_processes import run_in_two_processes

Make = Callable[[list[nn.Parameter]], TrustRatioOptimizer]
SHAPES = [(8, 3, 3, 3), (8,), (16, 8), (16,), (4, 16), (1, 5), ()]

OPTIMIZERS: dict[str, Make] = {
    "LARS": lambda p: LARS(p, lr=2.0, weight_decay=1e-3),
    "LARS-nesterov": lambda p: LARS(p, lr=2.0, weight_decay=1e-3, nesterov=True),
    "LARS-no-momentum": lambda p: LARS(p, lr=2.0, momentum=0.0, weight_decay=1e-3),
    "LARS-large-ratios": lambda p: LARS(p, lr=0.01, weight_decay=1e-3, trust_coefficient=5.0, adapt="all"),
    "LARS-tiny-ratios": lambda p: LARS(p, lr=1e9, weight_decay=1e-3, trust_coefficient=1e-13),
    "LARS-maximize": lambda p: LARS(p, lr=2.0, weight_decay=1e-3, maximize=True),
    "LARS-maximize-nesterov": lambda p: LARS(p, lr=2.0, weight_decay=1e-3, maximize=True, nesterov=True),
    "LARS-tensor-lr": lambda p: LARS(p, lr=torch.tensor(2.0, dtype=torch.float64), weight_decay=1e-3),
    "LAMB": lambda p: LAMB(p, lr=0.01),
    "LAMB-all": lambda p: LAMB(p, lr=0.01, weight_decay=0.1, adapt="all"),
    "LAMB-no-decay": lambda p: LAMB(p, lr=0.01, betas=(0.5, 0.9), weight_decay=0.0),
    "LAMB-maximize": lambda p: LAMB(p, lr=0.01, maximize=True),
    "LAMB-tensor-lr": lambda p: LAMB(p, lr=torch.tensor(0.01, dtype=torch.float64)),
}
every = pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS.keys())


def parameters(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(s, generator=generator, dtype=torch.float64).to(dtype)) for s in SHAPES]


def gradients(updates: int) -> Iterator[list[Tensor]]:
    """Of sizes that differ between tensors and shrink over the run, as a training's do."""
    generator = torch.Generator().manual_seed(2)
    for update in range(updates):
        yield [
            torch.randn(s, generator=generator, dtype=torch.float64) * (i + 1) / (1 + update)
            for i, s in enumerate(SHAPES)
        ]


def run(optimizer: torch.optim.Optimizer, params: list[nn.Parameter], updates: int = 100) -> list[Tensor]:
    for grads in gradients(updates):
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad.to(param.dtype)
        optimizer.step()
    return [param.detach().clone() for param in params]


def largest_relative_difference(some: list[Tensor], others: list[Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(some, others, strict=True))


# ---------------------------------------------------------------------- oracles, 100 updates in fp64
TOLERANCE = 1e-10  # fp64 rounding (1e-16) of some ten operations, times 100 updates that feed back, with a wide margin


@pytest.mark.parametrize("nesterov", [False, True])
@pytest.mark.parametrize("foreach", [None, False])
def test_lars_equals_timm(nesterov: bool, foreach: bool | None) -> None:
    ours, theirs = parameters(), parameters()
    settings: dict[str, Any] = {"lr": 2.0, "momentum": 0.9, "weight_decay": 1e-3, "nesterov": nesterov}
    peer = import_timm().optim.Lars(theirs, trust_coeff=1e-2, **settings)
    mine = LARS(ours, trust_coefficient=1e-2, adapt="all", foreach=foreach, **settings)
    assert largest_relative_difference(run(mine, ours), run(peer, theirs)) < TOLERANCE


@pytest.mark.parametrize("foreach", [None, False])
def test_lamb_equals_timm(foreach: bool | None) -> None:
    ours, theirs = parameters(), parameters()
    settings: dict[str, Any] = {"lr": 0.02, "betas": (0.8, 0.99), "eps": 1e-5, "weight_decay": 0.1}
    peer = import_timm().optim.Lamb(theirs, max_grad_norm=None, always_adapt=True, **settings)
    assert (
        largest_relative_difference(run(LAMB(ours, adapt="all", foreach=foreach, **settings), ours), run(peer, theirs))
        < TOLERANCE
    )


def lars_by_hand(updates: int) -> list[Tensor]:
    """Algorithm 1 of the paper, the learning rate outside the buffer; lr 2, momentum 0.9, decay 1e-3, eta 1e-3."""
    weights = [p.detach().clone() for p in parameters()]
    buffers = [torch.zeros_like(w) for w in weights]
    for grads in gradients(updates):
        for w, v, g in zip(weights, buffers, grads, strict=True):
            ratio = 1.0
            if w.ndim > 1:
                ratio = 1e-3 * w.norm().item() / (g.norm().item() + 1e-3 * w.norm().item() + 1e-8)
            v.copy_(0.9 * v + ratio * (g + 1e-3 * w))
            w -= 2.0 * v
    return weights


def lamb_by_hand(updates: int) -> list[Tensor]:
    """Algorithm 2 of the paper; lr 0.01, betas 0.9 and 0.999, eps 1e-6, decay 0.01."""
    weights = [p.detach().clone() for p in parameters()]
    m, v = [torch.zeros_like(w) for w in weights], [torch.zeros_like(w) for w in weights]
    for t, grads in enumerate(gradients(updates), start=1):
        for i, (w, g) in enumerate(zip(weights, grads, strict=True)):
            m[i] = 0.9 * m[i] + 0.1 * g
            v[i] = 0.999 * v[i] + 0.001 * g * g
            u = m[i] / (1 - 0.9**t) / ((v[i] / (1 - 0.999**t)).sqrt() + 1e-6) + 0.01 * w
            w -= 0.01 * (w.norm() / u.norm() if w.ndim > 1 else 1.0) * u
    return weights


def test_lars_equals_the_paper_tensor_by_tensor() -> None:
    params = parameters()
    assert largest_relative_difference(run(OPTIMIZERS["LARS"](params), params), lars_by_hand(100)) < TOLERANCE


def test_lamb_equals_the_paper_tensor_by_tensor() -> None:
    params = parameters()
    assert largest_relative_difference(run(OPTIMIZERS["LAMB"](params), params), lamb_by_hand(100)) < TOLERANCE


def test_without_trust_ratios_lars_is_sgd_and_lamb_is_adamw() -> None:
    pairs: list[tuple[Any, Any]] = [
        (partial(LARS, adapt="none", nesterov=True), partial(torch.optim.SGD, momentum=0.9, nesterov=True)),
        (partial(LAMB, adapt="none"), partial(torch.optim.AdamW, eps=1e-6)),
    ]
    for mine, torchs in pairs:
        ours, theirs = parameters(), parameters()
        got = run(mine(ours, lr=0.01, weight_decay=0.1), ours)
        assert largest_relative_difference(got, run(torchs(theirs, lr=0.01, weight_decay=0.1), theirs)) < TOLERANCE


# ---------------------------------------------------------------------- every way through the kernels
@every
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, rounding(10_000, torch.float64)), (torch.float32, rounding(200))]
)
def test_fused_equals_plain(make: Make, dtype: torch.dtype, tolerance: float) -> None:
    fused, plain = parameters(dtype), parameters(dtype)
    simple = make(plain)
    for group in simple.param_groups:
        group["foreach"] = False
    assert largest_relative_difference(run(make(fused), fused), run(simple, plain)) < tolerance


class NoReading(TorchDispatchMode):
    """Fails where a number is read from a tensor, which on a GPU would wait for the device."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        assert "_local_scalar_dense" not in str(func), func
        return func(*args, **(kwargs or {}))


@every
def test_device_path_equals_the_host_path_and_reads_nothing(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    host, device = parameters(), parameters()
    expected = run(make(host), host, updates=20)
    monkeypatch.setattr(trust_ratio.Piece, "on_host", property(lambda piece: False))
    optimizer = make(device)
    with NoReading():
        got = run(optimizer, device, updates=20)
    assert largest_relative_difference(got, expected) < TOLERANCE


@every
def test_memory_layouts_may_differ(make: Make) -> None:
    shape = (4, 3, 2, 2)
    start = torch.randn(shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grad = torch.randn(shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    expected = None
    for layout in (torch.contiguous_format, torch.channels_last):
        for grad_layout in (torch.contiguous_format, torch.channels_last):
            weight = nn.Parameter(start.clone(memory_format=layout))
            optimizer = make([weight])
            for _ in range(3):
                weight.grad = grad.clone(memory_format=grad_layout)
                optimizer.step()
            expected = weight.detach() if expected is None else expected
            assert largest_relative_difference([weight.detach()], [expected]) < 1e-12


@every
def test_complex_parameters_are_pairs_of_real_ones(make: Make) -> None:
    start = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    pairs, numbers = nn.Parameter(start.clone()), nn.Parameter(torch.view_as_complex(start.clone()))
    one, other = make([pairs]), make([numbers])
    for step in range(5):
        pairs.grad = torch.randn(3, 4, 2, generator=torch.Generator().manual_seed(step), dtype=torch.float64)
        numbers.grad = torch.view_as_complex(pairs.grad.clone())
        one.step()
        other.step()
    assert torch.equal(torch.view_as_real(numbers.detach()), pairs.detach())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("make", [LARS, partial(LARS, nesterov=True), LAMB], ids=["LARS", "LARS-nesterov", "LAMB"])
def test_half_precision_follows_full_precision(make: Any, dtype: torch.dtype) -> None:
    half, full = nn.Parameter(torch.linspace(-1, 1, 64).to(dtype)), nn.Parameter(torch.linspace(-1, 1, 64))
    one, other = (
        make([half], lr=0.1, weight_decay=0.1, adapt="all"),
        make([full], lr=0.1, weight_decay=0.1, adapt="all"),
    )
    for update in range(3):
        full.grad = torch.sin(torch.arange(64) + update)
        half.grad = full.grad.to(dtype)
        one.step()
        other.step()
    assert (half.float() - full).abs().max() < 0.02, "three roundings of numbers up to 1.4 to 8 bits"


# ---------------------------------------------------------------------- trust ratios
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_norms_on_the_host_keep_their_digits_over_a_million_numbers(
    dtype: torch.dtype, layout: torch.memory_format
) -> None:
    generator = torch.Generator().manual_seed(0)
    pair = [torch.rand(100, 100, 10, 10, generator=generator).to(dtype, memory_format=layout) for _ in range(2)]
    exact = [tensor.double().norm().item() for tensor in pair]
    # a dot product in one running fp32 sum would lose 1e-4; torch's own norm, which takes other layouts, loses 1e-6
    assert norms_on_cpu(*pair) == pytest.approx(exact, rel={torch.float64: 1e-12, torch.float32: 1e-5}.get(dtype, 1e-4))


def test_trust_ratios_are_those_of_the_last_step() -> None:
    params = parameters()
    optimizer = LARS(params, lr=1.0, weight_decay=1e-3)
    assert optimizer.trust_ratios().numel() == 0
    assert optimizer.trust_ratio_quantiles() == {}
    for param, grad in zip(params, next(gradients(1)), strict=True):
        param.grad = grad
    expected = [
        1e-3 * p.norm().item() / (p.grad.norm().item() + 1e-3 * p.norm().item() + 1e-8)  # type: ignore[union-attr]
        for p in params
        if p.ndim > 1
    ]
    optimizer.step()
    assert optimizer.trust_ratios().tolist() == pytest.approx(expected, rel=1e-12)
    quantiles = optimizer.trust_ratio_quantiles((0.0, 1.0))
    assert quantiles == pytest.approx({0.0: min(expected), 1.0: max(expected)}, rel=1e-6)


@every
@pytest.mark.parametrize("zero", ["weight", "grad"])
@pytest.mark.parametrize("host", [True, False])
def test_a_zero_norm_gives_a_ratio_of_one(make: Make, zero: str, host: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trust_ratio.Piece, "on_host", property(lambda piece: host))
    param = nn.Parameter(torch.zeros(2, 3) if zero == "weight" else torch.ones(2, 3))
    param.grad = torch.ones(2, 3) if zero == "weight" else torch.zeros(2, 3)
    optimizer = make([param])
    optimizer.param_groups[0]["weight_decay"] = 0.0
    optimizer.step()
    assert optimizer.trust_ratios().tolist() == [1.0]
    assert torch.isfinite(param).all()


def test_adapt_chooses_tensors() -> None:
    def adapted(adapt: Any, group: dict[str, Any] | None = None) -> int:
        params = parameters()
        optimizer = LARS([{"params": params, **(group or {})}], lr=1.0, adapt=adapt)
        run(optimizer, params, updates=1)
        return optimizer.trust_ratios().numel()

    assert adapted("ndim>1") == 4
    assert adapted("all") == 7
    assert adapted("none") == 0
    assert adapted(lambda parameter: parameter.numel() > 20) == 3
    assert adapted("none", {"adapt": "all"}) == 7, "a group's own"


def test_a_group_that_is_added_later_has_its_own_adapt() -> None:
    params = parameters()
    optimizer = LAMB(params[:2], lr=0.01, adapt="none")
    optimizer.add_param_group({"params": params[2:], "adapt": lambda parameter: parameter.ndim == 2})
    run(optimizer, params, updates=2)
    assert optimizer.trust_ratios().numel() == 3


# ---------------------------------------------------------------------- torch.optim's conventions
@every
@pytest.mark.parametrize("how", ["state_dict", "weights_only", "deepcopy"])
def test_a_saved_run_goes_on_to_the_bit(make: Make, how: str) -> None:
    def half(params: list[nn.Parameter], optimizer: Any, which: slice) -> list[Tensor]:
        for grads in list(gradients(10))[which]:
            for param, grad in zip(params, grads, strict=True):
                param.grad = grad
            optimizer.step()
        return [param.detach().clone() for param in params]

    whole = parameters()
    expected = half(whole, make(whole), slice(0, 10))
    params = parameters()
    optimizer = make(params)
    half(params, optimizer, slice(0, 5))
    if how == "deepcopy":
        params, optimizer = copy.deepcopy((params, optimizer))
    else:
        state = optimizer.state_dict()
        if how == "weights_only":
            file = io.BytesIO()
            torch.save(state, file)
            file.seek(0)
            state = torch.load(file, weights_only=True)
        params = [nn.Parameter(param.detach().clone()) for param in params]
        optimizer = make(params)
        optimizer.load_state_dict(state)
    assert all(map(torch.equal, half(params, optimizer, slice(5, 10)), expected))


def test_a_function_as_adapt_can_be_saved_and_loaded() -> None:
    params = parameters()
    optimizer = LARS(params, lr=1.0, adapt=lambda parameter: parameter.numel() > 20)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    optimizer.load_state_dict(torch.load(file, weights_only=True))
    run(optimizer, params, updates=1)
    assert optimizer.trust_ratios().numel() == 3


@every
def test_closure_and_hooks_are_called_and_grad_stays_as_it_was(make: Make) -> None:
    calls: list[str] = []
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = make([weight])
    optimizer.register_step_pre_hook(lambda *args: calls.append("before"))
    optimizer.register_step_post_hook(lambda *args: calls.append("after"))

    def closure() -> Tensor:
        calls.append("closure")
        optimizer.zero_grad()
        loss = (weight**2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    assert optimizer.step(closure) == 4.0
    assert calls == ["before", "closure", "after"]
    assert weight.grad is not None
    assert torch.equal(weight.grad, torch.full((2, 2), 2.0, dtype=torch.float64))


@every
def test_parameters_without_a_gradient_are_left_alone(make: Make) -> None:
    params = parameters()
    before = params[0].detach().clone()
    params[2].grad = torch.ones_like(params[2])
    optimizer = make(params)
    optimizer.step()
    assert torch.equal(params[0], before)
    assert params[0] not in optimizer.state


def test_momentum_that_is_switched_on_later_starts_at_zero() -> None:
    params = parameters()
    optimizer = LARS(params, lr=0.1, momentum=0.0)
    run(optimizer, params, updates=2)
    optimizer.param_groups[0]["momentum"] = 0.9
    run(optimizer, params, updates=1)
    grads = next(gradients(1))
    assert torch.equal(optimizer.state[params[1]]["momentum_buffer"], grads[1])


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"lr": -1.0}, "lr=-1.0"),
        ({"lr": float("nan")}, "lr=nan"),
        ({"lr": torch.tensor([0.1, 0.1])}, "2 elements"),
        ({"eps": -1.0}, "eps=-1.0"),
        ({"weight_decay": -0.1}, "weight_decay=-0.1"),
        ({"adapt": "2d"}, "adapt='2d'; allowed are 'ndim>1', 'all', 'none'"),
    ],
)
@pytest.mark.parametrize("kind", [LARS, LAMB])
def test_bad_arguments_are_refused(kind: Any, arguments: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        kind(parameters(), **{"lr": 0.1, **arguments})


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda p: LARS(p, lr=0.1, momentum=-0.1), "momentum=-0.1"),
        (lambda p: LARS(p, lr=0.1, trust_coefficient=-1.0), "trust_coefficient=-1.0"),
        (lambda p: LARS(p, lr=0.1, momentum=0.0, nesterov=True), "needs a momentum above 0"),
        (lambda p: LAMB(p, lr=0.1, betas=(1.0, 0.9)), r"betas\[0\]=1.0; give a number in \[0, 1\)"),
        (lambda p: LAMB(p, lr=0.1, betas=(0.9, -0.1)), r"betas\[1\]=-0.1"),
    ],
)
def test_bad_arguments_of_one_optimizer_are_refused(make: Make, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        make(parameters())


@pytest.mark.parametrize(
    ("kind", "own", "says"),
    [
        (LARS, {"lr": -3.0}, "LARS: got lr=-3.0"),
        (LARS, {"momentum": -0.1}, "momentum=-0.1"),
        (LARS, {"momentum": 0.0, "nesterov": True}, "needs a momentum above 0"),
        (LAMB, {"lr": "1e-2"}, "LAMB: got lr='1e-2'"),
        (LAMB, {"weight_decay": -0.1}, "weight_decay=-0.1"),
        (LAMB, {"betas": (1.2, 0.9)}, r"betas\[0\]=1.2; give a number in \[0, 1\)"),
    ],
)
def test_bad_arguments_of_a_group_are_refused_and_so_is_the_group(kind: Any, own: dict[str, Any], says: str) -> None:
    first, *others = parameters()
    with pytest.raises(ValueError, match=says):
        kind([{"params": [first]}, {"params": others, **own}], lr=0.1)
    optimizer = kind([first], lr=0.1)
    with pytest.raises(ValueError, match=says):
        optimizer.add_param_group({"params": others, **own})
    assert len(optimizer.param_groups) == 1


@every
def test_sparse_gradients_are_refused(make: Make) -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = make(list(table.parameters()))
    table(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="does not support sparse gradients"):
        optimizer.step()


@every
def test_flat_partitions_of_zero_are_refused(make: Make) -> None:
    optimizer = make(parameters())
    flat = nn.Parameter(torch.zeros(100))  # what DeepSpeed puts in the place of a group's parameters
    flat.grad = torch.ones(100)
    optimizer.param_groups[0]["params"] = [flat]
    with pytest.raises(RuntimeError, match=r"DeepSpeed ZeRO \(stages 1, 2 and 3\)"):
        optimizer.step()


# ---------------------------------------------------------------------- FSDP2
def _model() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        # 7 and 5 rows do not divide by 2, and the last bias has nothing left for the second rank
        return nn.Sequential(nn.Linear(6, 7), nn.Tanh(), nn.Linear(7, 5), nn.Tanh(), nn.Linear(5, 1))


def _trained(name: str, rank: int, world: int, shard: bool) -> tuple[list[Tensor], Tensor]:
    model = _model()
    if shard:
        for layer in (model[0], model[2], model[4]):  # type: ignore[index]
            fully_shard(layer)
        fully_shard(model)
    optimizer = SHARDED[name](list(model.parameters()))
    generator = torch.Generator().manual_seed(5)
    for _ in range(20):
        x = torch.randn(8, 6, generator=generator)
        optimizer.zero_grad()
        (model(x[rank::world]) - x[rank::world].sum(1, keepdim=True)).square().mean().backward()
        optimizer.step()
    ratios = optimizer.trust_ratios()
    whole = [p.full_tensor() if isinstance(p, DTensor) else p for p in model.parameters()]
    return [p.detach().clone() for p in whole], ratios


def _sharded(name: str) -> tuple[list[Tensor], Tensor]:
    return _trained(name, torch.distributed.get_rank(), 2, shard=True)


def _fsdp1() -> str:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = FullyShardedDataParallel(_model(), use_orig_params=True, device_id=torch.device("cpu"))
    optimizer = LARS(model.parameters(), lr=0.1)
    model(torch.randn(4, 6)).sum().backward()
    with pytest.raises(RuntimeError, match=r"FSDP1.*use FSDP2"):
        optimizer.step()
    return "refused"


SHARDED: dict[str, Make] = {
    "LARS": lambda p: LARS(p, lr=0.1, weight_decay=1e-3, trust_coefficient=0.1),
    "LARS-nesterov": lambda p: LARS(p, lr=0.1, weight_decay=1e-3, trust_coefficient=0.1, nesterov=True, adapt="all"),
    "LAMB": lambda p: LAMB(p, lr=0.01),
    "LAMB-all": lambda p: LAMB(p, lr=0.01, weight_decay=0.1, adapt="all"),
}


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    cases: list[Any] = [(name, partial(_sharded, name)) for name in SHARDED]
    return run_in_two_processes([*cases, ("FSDP1", _fsdp1)], tmp_path_factory.mktemp("fsdp"))


@pytest.mark.parametrize("name", SHARDED)
def test_fsdp2_on_two_processes_equals_one(name: str, two_processes: list[dict[str, Any]]) -> None:
    weights, ratios = _trained(name, 0, 1, shard=False)
    for rank in two_processes:
        if isinstance(rank[name], Exception):
            raise rank[name]
        theirs, their_ratios = rank[name]
        # means and norms are summed in another order
        assert max(float((a - b).abs().max()) for a, b in zip(theirs, weights, strict=True)) < rounding_after(20)
        # a norm of gradients that are by the end a fiftieth of their terms: 8 samples, 13 units
        assert torch.allclose(their_ratios.double(), ratios.double(), rtol=rounding(50 * 21), atol=0)
    assert torch.equal(two_processes[0][name][1], two_processes[1][name][1])


def test_fsdp1_is_refused(two_processes: list[dict[str, Any]]) -> None:
    assert two_processes[0]["FSDP1"] == "refused", two_processes[0]["FSDP1"]
