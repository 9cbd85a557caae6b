"""The hypergradient's kernel in C against torch's operations and sums in double precision, whatever the tensors are."""

from __future__ import annotations

import ctypes
import warnings
import weakref
from array import array
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer

from lightning_lr.branches import ForkedState
from lightning_lr.hypergradient import AlignmentEstimator, cpu_sums
from lightning_lr.hypergradient import estimate as estimate_module

pytestmark = pytest.mark.skipif(cpu_sums.kernel() is None, reason="no C compiler here")

Make = Callable[..., Optimizer]
SIZES = [(), (0,), (1,), (7,), (127,), (128,), (129,), (3, 5, 7), (2, 3, 4, 5), (1000,)]
OPTIMIZERS: dict[str, Make] = {
    "sgd, decay": lambda p: SGD(p, 0.1, weight_decay=0.3),
    "momentum, maximize, decay": lambda p: SGD(p, 0.1, momentum=0.9, maximize=True, weight_decay=0.3),
    "nesterov": lambda p: SGD(p, 0.1, momentum=0.9, nesterov=True),
    "adam, decay": lambda p: Adam(p, 0.01, weight_decay=0.3),
    "adamw": lambda p: AdamW(p, 0.01, weight_decay=0.3),
    "adamw, amsgrad, eps": lambda p: AdamW(p, 0.01, amsgrad=True, eps=1e-2),
    "nadam": lambda p: NAdam(p, 0.01),
}


def parameters_of(dtype: torch.dtype) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(3)
    return [nn.Parameter(torch.randn(size, generator=generator).to(dtype)) for size in SIZES]


def step(optimizer: Optimizer, estimator: AlignmentEstimator, seed: int, arranged: Callable[[Tensor], Tensor]) -> None:
    generator = torch.Generator().manual_seed(seed)
    for group in optimizer.param_groups:
        for p in group["params"]:
            real = torch.randn((*p.shape, 2) if p.is_complex() else p.shape, generator=generator)
            p.grad = arranged((torch.view_as_complex(real) if p.is_complex() else real).to(p.dtype))
    estimator.measured = estimator.sums()  # type: ignore[attr-defined]
    estimator.before_step([float(group["lr"]) for group in optimizer.param_groups])
    optimizer.step()
    estimator.after_step()


def both(
    optimizer: Optimizer, monkeypatch: pytest.MonkeyPatch, arranged: Callable[[Tensor], Tensor] = lambda g: g
) -> tuple[Tensor, Tensor]:
    """The sums before the third update, by the kernel and by torch's operations."""
    native, packed = AlignmentEstimator(optimizer), AlignmentEstimator(optimizer)
    for seed in range(2):
        step(optimizer, native, seed, arranged)
    packed.load_state_dict(native.state_dict())
    generator = torch.Generator().manual_seed(9)
    for group in optimizer.param_groups:
        for p in group["params"]:
            p.grad = arranged(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p.dtype))
    found = native.sums()
    with monkeypatch.context() as patch:
        patch.setattr(estimate_module, "kernel", lambda: None)
        return found, packed.sums()


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
def test_the_kernel_has_the_sums_of_torch(name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    if dtype == torch.float16 and "ad" in name:
        pytest.skip("the optimizer's own eps is 0 in half precision")
    parameters = parameters_of(dtype)
    groups = [{"params": parameters[:4]}, {"params": parameters[4:5]}, {"params": parameters[5:]}]
    found, packed = both(OPTIMIZERS[name](groups), monkeypatch)
    assert found.shape == (3, 3)
    assert found.abs().min() > 0
    # torch sums rows of 128 terms of size 1 in single precision
    assert torch.allclose(found, packed.double(), rtol=1e-10 if dtype == torch.float64 else 2e-5, atol=1e-4)


def test_complex_parameters_are_two_real_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    optimizer = AdamW([nn.Parameter(torch.randn(33, dtype=torch.complex64))], 0.01)
    found, packed = both(optimizer, monkeypatch)
    assert torch.allclose(found, packed.double(), rtol=1e-5)
    assert (found > 0)[0, 1:].all()


@pytest.mark.parametrize(
    ("arranged", "memory_format"),
    [
        (lambda g: g, torch.channels_last),
        (lambda g: g.contiguous(memory_format=torch.channels_last), torch.contiguous_format),
        (lambda g: g.transpose(0, 1).contiguous().transpose(0, 1), torch.contiguous_format),
        (lambda g: torch.stack([g, g], -1)[..., 0], torch.channels_last),
        (lambda g: g[:1].expand_as(g), torch.contiguous_format),
    ],
    ids=["all channels last", "gradient channels last", "gradient turned", "gradient with gaps", "gradient repeated"],
)
def test_elements_belong_together_however_they_lie(
    arranged: Any, memory_format: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = nn.Parameter(torch.randn(5, 4, 3, 2, dtype=torch.float64).to(memory_format=memory_format))
    found, packed = both(AdamW([weight], 0.01, weight_decay=0.3), monkeypatch, arranged)
    assert torch.allclose(found, packed, rtol=1e-12)


def test_products_and_sums_are_in_double_precision() -> None:
    weight = nn.Parameter(torch.zeros(200_001))
    optimizer = SGD([weight], 0.1, momentum=0.9)
    estimator = AlignmentEstimator(optimizer)
    step(optimizer, estimator, 0, lambda g: g * 1e3)
    weight.grad = torch.randn(200_001, generator=torch.Generator().manual_seed(1))
    ((dot, own, move),) = estimator.sums().tolist()
    g, d = weight.grad.double(), optimizer.state[weight]["momentum_buffer"].double()
    # 2e5 additions of doubles
    assert (own, move) == pytest.approx(((g @ g).item(), (d @ d).item()), rel=1e-13)
    assert dot == pytest.approx((g @ d).item(), abs=1e-13 * float((g * d).abs().sum()))


@pytest.mark.parametrize("threads", [2, 3, 8])
def test_threads_share_the_work_without_changing_a_bit(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cpu_sums, "PIECE", 64)
    found = []
    for number in (1, threads):
        monkeypatch.setattr(torch, "get_num_threads", lambda number=number: number)
        parameters = parameters_of(torch.float32)
        optimizer = AdamW([{"params": parameters[:8]}, {"params": parameters[8:]}], 0.01)
        estimator = AlignmentEstimator(optimizer)
        for seed in range(3):
            step(optimizer, estimator, seed, lambda g: g)
        found.append(estimator.measured)  # type: ignore[attr-defined]
    assert torch.equal(*found)


def test_state_of_other_sizes_is_an_error_and_not_read() -> None:
    weight = nn.Parameter(torch.zeros(100))
    optimizer = AdamW([weight], 0.01)
    estimator = AlignmentEstimator(optimizer)
    step(optimizer, estimator, 0, lambda g: g)
    optimizer.state[weight]["exp_avg"] = torch.zeros(10)
    with pytest.raises(ValueError, match="state does not fit its parameters"):
        estimator.sums()


def test_tensors_that_are_replaced_or_moved_between_updates_are_read_where_they_are() -> None:
    weight = nn.Parameter(torch.randn(50))
    optimizer = AdamW([weight], 0.01, weight_decay=0.3)
    estimator = AlignmentEstimator(optimizer)
    step(optimizer, estimator, 0, lambda g: g)
    before = estimator.sums()
    weight.data = weight.data.clone()
    optimizer.load_state_dict(optimizer.state_dict())
    assert weight.grad is not None
    weight.grad = weight.grad.clone()
    for as_written in (torch.float64, torch.int64, int):  # of optimizers and checkpoints of other versions
        state = optimizer.state[weight]
        state["step"] = int(state["step"]) if as_written is int else torch.as_tensor(state["step"]).to(as_written)
        assert torch.equal(estimator.sums(), before)
    weight.data *= 2
    assert estimator.sums()[0, 2] != before[0, 2]


def frozen(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    weight.grad = None


def taken_from_the_group(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"] = [weight]


def added(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    later = nn.Parameter(torch.ones(3))
    later.grad = torch.ones(3)
    optimizer.add_param_group({"params": [later]})


def other_order(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    optimizer.param_groups[0]["params"] = [other, weight]


def maximizing(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    optimizer.param_groups[0]["maximize"] = not optimizer.param_groups[0].get("maximize")


def decaying(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    optimizer.param_groups[0]["weight_decay"] = 0.7


def coupled(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    if "decoupled_weight_decay" in optimizer.param_groups[0]:
        optimizer.param_groups[0]["decoupled_weight_decay"] ^= True


def replaced_state(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    for name, value in optimizer.state[weight].items():
        optimizer.state[weight][name] = value * 2 if isinstance(value, Tensor) and value.dim() else value


def moved_state(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    for value in optimizer.state[weight].values():
        value.data = value.detach() + 1


def no_state(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    optimizer.state.pop(weight, None)


def moved_weight(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    weight.data = weight.data + 1


def turned_weight(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    weight.data = weight.data.t()


def turned_gradient(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    assert weight.grad is not None
    weight.grad = weight.grad.t().contiguous().t()


def precise_gradient(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    assert weight.grad is not None
    weight.grad.data = weight.grad.double()


def without(optimizer: Optimizer, weight: nn.Parameter, other: nn.Parameter) -> None:
    pass


CHANGES = [frozen, taken_from_the_group, added, other_order, maximizing, decaying, coupled, replaced_state, moved_state,
           no_state, moved_weight, turned_weight, turned_gradient, precise_gradient, without]  # fmt: skip


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_whatever_changes_between_two_updates_is_noticed(
    name: str, change: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(4)
    weight, other = (nn.Parameter(torch.randn(8, 8, generator=generator)) for _ in range(2))
    optimizer = OPTIMIZERS[name]([weight, other])
    repeating, packed = AlignmentEstimator(optimizer), AlignmentEstimator(optimizer)
    for seed in range(4):
        step(optimizer, repeating, seed, lambda g: g)
    assert repeating._repeated is not None
    for parameter in (weight, other):
        parameter.grad = torch.randn(8, 8, generator=generator)
    packed.load_state_dict(repeating.state_dict())
    change(optimizer, weight, other)
    found = repeating.sums()
    with monkeypatch.context() as patch:
        patch.setattr(estimate_module, "kernel", lambda: None)
        # torch sums 128 terms in single precision
        assert torch.allclose(found, packed.sums().double(), rtol=2e-5, atol=1e-5)


def test_no_gradient_is_kept_alive() -> None:
    weight = nn.Parameter(torch.ones(4))
    estimator = AlignmentEstimator(AdamW([weight], 0.1))
    for seed in range(4):
        step(estimator.optimizer, estimator, seed, lambda g: g)
        gradient = weakref.ref(weight.grad)  # type: ignore[arg-type]
        weight.grad = None
        assert gradient() is None


def test_a_saved_state_that_is_loaded_between_two_updates_is_noticed() -> None:
    weight = nn.Parameter(torch.ones(4))
    estimator = AlignmentEstimator(SGD([weight], 0.1))
    for seed in range(3):
        step(estimator.optimizer, estimator, seed, lambda g: g)
    state = estimator.state_dict()
    weight.grad = torch.ones(4)
    before = estimator.sums()
    estimator.load_state_dict({**state, "copies": {0: 2 * state["copies"][0]}})
    assert torch.equal(estimator.sums(), before * torch.tensor([2.0, 1.0, 4.0]))


@pytest.mark.parametrize("capability", ["DEFAULT", "AVX2", "AVX512"])
def test_the_width_of_the_vectors_changes_no_bit(
    capability: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order = ["DEFAULT", "AVX2", "AVX512"]
    if order.index(capability) > order.index(torch.backends.cpu.get_cpu_capability()):
        pytest.skip("not of this processor")

    def found() -> list[Tensor]:
        sums = []
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            optimizer = AdamW(parameters_of(dtype), 0.01, weight_decay=0.3)
            estimator = AlignmentEstimator(optimizer)
            for seed in range(3):
                step(optimizer, estimator, seed, lambda g: g)
            sums.append(estimator.measured)  # type: ignore[attr-defined]
        return sums

    expected = found()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    cpu_sums.kernel.cache_clear()
    try:
        assert all(map(torch.equal, found(), expected))
    finally:
        cpu_sums.kernel.cache_clear()


def test_without_a_compiler_torch_does_it_and_one_warning_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", "/nonexistent/cc")
    cpu_sums.kernel.cache_clear()
    try:
        weight = nn.Parameter(torch.zeros(3))
        estimator = AlignmentEstimator(SGD([weight], 0.1))
        weight.grad = torch.ones(3)
        with pytest.warns(UserWarning, match="its C kernel could not be made .* set CC"):
            assert estimator.measure()[0].gradient == 3.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            AlignmentEstimator(estimator.optimizer).measure()
    finally:
        cpu_sums.kernel.cache_clear()


def test_a_kernel_that_sums_wrongly_is_refused() -> None:
    class Wrong(cpu_sums.Kernel):
        def __init__(self, functions: ctypes.CDLL) -> None:
            super().__init__(functions)
            right = self.of_pieces
            self.of_pieces = lambda *given: right(*given[:7], cpu_sums.AS_IT_IS, *given[8:])

    with pytest.raises(ArithmeticError, match="its sums are"):
        cpu_sums._check(Wrong(cpu_sums.SOURCE.load()))


@pytest.mark.parametrize("name", list(OPTIMIZERS))
def test_a_branch_between_two_updates_changes_no_sum(name: str) -> None:
    """What the kernel is given holds addresses, and a branch puts arrays and tensors back."""

    def sums(branches: bool) -> list[Tensor]:
        parameters = parameters_of(torch.float32)
        optimizer = OPTIMIZERS[name](parameters)
        estimator = AlignmentEstimator(optimizer)
        found = []
        for seed in range(6):
            if branches and seed >= 2:
                before = ForkedState([*parameters, optimizer, estimator])
                for inside in range(20, 24):
                    step(optimizer, estimator, inside, lambda g: g)
                before.restore()
                kept = [torch.randn(300) for _ in range(200)]  # what was freed is used by others
                del kept
            step(optimizer, estimator, seed, lambda g: g)
            found.append(estimator.measured)  # type: ignore[attr-defined]
        return found

    for with_branches, alone in zip(sums(branches=True), sums(branches=False), strict=True):
        assert torch.equal(with_branches, alone)


def test_what_the_kernel_is_given_may_move() -> None:
    optimizer = SGD(parameters_of(torch.float32), 0.1, momentum=0.9, nesterov=True)
    estimator = AlignmentEstimator(optimizer)
    for seed in range(3):
        step(optimizer, estimator, seed, lambda g: g)
    repeated = estimator._repeated
    assert repeated is not None
    before, job = repeated._job.run(), repeated._job
    for held in (job.addresses, job.settings):
        where, values = held.buffer_info()[0], list(held)
        others = []
        while held.buffer_info()[0] == where:  # until it lies somewhere else
            del held[:]
            others.append(array(held.typecode, values))
            held.extend(values)
            held.extend(values * 50)
            del held[len(values) :]
    assert torch.equal(job.run(), before)
