"""Operations and tensors that rounding could ruin without a word: gradients are the plain run's up to rounding.

Each case is run plainly and with everything at 8 bits. Where a backward divides by what it saved, compares it or uses
it as a position, a rounded number gives infinities, zeros or another place; each such case failed before operations
were told apart.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lightning_lr.activations.compression import ActivationCompressor


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


SIGNS = normal(4, 16, 8, 8, seed=7)
"""Weights of a result, so that its gradient is not the same everywhere."""


def weighted(result: Tensor) -> Tensor:
    weights = SIGNS.flatten()[: result.numel()]
    repeats = -(-result.numel() // SIGNS.numel())
    return (result.flatten() * SIGNS.flatten().repeat(repeats)[: result.numel()] if repeats > 1 else
            result.flatten() * weights).sum()  # fmt: skip


def through(operation: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (64, 64)) -> Callable[[], Any]:
    """A case of one operation on an activation."""

    def case() -> tuple[list[Tensor], Callable[[], Tensor]]:
        x = normal(*shape).requires_grad_()
        return [x], lambda: weighted(operation(x * 1))

    return case


def with_module(make: Callable[[], nn.Module], shape: tuple[int, ...]) -> Callable[[], Any]:
    def case() -> tuple[list[Tensor], Callable[[], Tensor]]:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            module = make()
        x = normal(*shape, seed=2).requires_grad_()

        def loss() -> Tensor:
            with torch.random.fork_rng():
                torch.manual_seed(1)
                result = module(x * 1)
            return weighted(result[0] if isinstance(result, tuple) else result)

        return [x, *module.parameters()], loss

    return case


def of_positive(operation: Callable[[Tensor], Tensor]) -> Callable[[], Any]:
    """A case of positive numbers of all sizes: what is divided by them is large where they are small."""

    def case() -> tuple[list[Tensor], Callable[[], Tensor]]:
        x = ((3 * normal(64, 64)).exp() + 1e-4).requires_grad_()
        return [x], lambda: weighted(operation(x * 1))

    return case


class Places(torch.autograd.Function):
    """A function of a user's that keeps positions as floats."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.rows = len(x)
        return x[places[:, 0].long()]

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        (places,) = ctx.saved_tensors
        return grad.new_zeros(ctx.rows, grad.shape[1]).index_add(0, places[:, 0].long(), grad), None


def of_places(x: Tensor) -> Tensor:
    places = torch.stack([torch.arange(64) * 37 % 64, torch.arange(64)], 1).float()
    return Places.apply(x, places.repeat(8, 1))  # type: ignore[no-any-return]


def of_both_signs(x: Tensor) -> Tensor:
    z = torch.complex(x, x.roll(1, 0))
    return z.imag.square() + z.conj().imag.exp()  # two views of the same numbers, one of them negated


def masked_in_a_checkpoint(x: Tensor) -> Tensor:
    mask = torch.triu(torch.full((64, 64), torch.finfo(torch.float32).min), 1) - 0.1 * torch.eye(64)

    def attend(x: Tensor, mask: Tensor) -> Tensor:
        return (x @ x.T / 8 + mask).softmax(-1) @ x

    return checkpoint(attend, x, mask, use_reentrant=False)  # type: ignore[no-any-return]


def hidden_ones(x: Tensor) -> Tensor:
    return x.masked_fill(torch.triu(torch.ones(64, 64, dtype=torch.bool), 1), -torch.inf)


def attention_with_a_bias(x: Tensor) -> Tensor:
    heads = x.view(1, 1, 64, 64)
    return F.scaled_dot_product_attention(heads, heads.tanh(), heads, attn_mask=hidden_ones(x * 2))


def nested_checkpoints(x: Tensor) -> Tensor:
    def inner(x: Tensor) -> Tensor:
        return x.tanh().exp()

    def outer(x: Tensor) -> Tensor:
        return checkpoint(inner, x.sin(), use_reentrant=False).cos()  # type: ignore[no-any-return]

    return checkpoint(outer, x, use_reentrant=False)  # type: ignore[no-any-return]


def pooled(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2)


def sampled(x: Tensor) -> Tensor:
    grid = F.affine_grid(torch.tensor([[[0.9, 0.1, 0.05], [-0.1, 0.8, 0.02]]] * 4), [4, 16, 8, 8], align_corners=False)
    return F.grid_sample(x, grid * (1 + 0.01 * x.mean(1).unsqueeze(-1)), align_corners=False)


def half_without_gradient(x: Tensor) -> Tensor:
    with torch.no_grad():
        fixed = x.exp()
    return fixed * x + x.detach() * x.square()


def sparse_product(x: Tensor) -> Tensor:
    sparse = torch.eye(64).to_sparse()
    return torch.sparse.mm(sparse, x.tanh())


def of_jagged(x: Tensor) -> Tensor:
    rows = torch.nested.nested_tensor_from_jagged(x.tanh(), torch.tensor([0, 10, 30, 64]))
    return (rows * 2).values()  # type: ignore[no-any-return]


def vectorized(x: Tensor) -> Tensor:
    return torch.vmap(lambda row: (row * row).tanh().exp())(x)


def changed_in_place_before(x: Tensor) -> Tensor:
    y = x.tanh()
    z = y * y
    y = y.clone()
    y.mul_(3).add_(1)
    return z + y * y


UNBATCHED, IMAGES = (16, 28, 28), (4, 16, 8, 8)
CASES: dict[str, Callable[[], Any]] = {
    # places
    "max_pool2d without a batch": through(pooled, UNBATCHED),
    "max_pool1d without a batch": through(lambda x: F.max_pool1d(x, 2), (64, 300)),
    "max_pool3d without a batch": through(lambda x: F.max_pool3d(x, 2), (4, 8, 8, 8)),
    "adaptive_max_pool2d without a batch": through(lambda x: F.adaptive_max_pool2d(x, 5), UNBATCHED),
    "max_pool2d of a batch": through(pooled, IMAGES),
    "max_unpool2d": through(
        lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2), IMAGES  # type: ignore[misc]
    ),
    "sort": through(lambda x: x.sort(1).values.square()),
    "topk": through(lambda x: x.topk(5, 1).values.exp()),
    "gather": through(lambda x: x.gather(1, x.argsort(1)).square()),
    "scatter": through(lambda x: torch.zeros(64, 64).scatter(1, x.argsort(1), x).exp()),
    "cummax": through(lambda x: x.cummax(1).values.square()),
    "a user's function with places": through(of_places),
    "grid_sample": through(sampled, IMAGES),
    "interpolate": through(lambda x: F.interpolate(x, scale_factor=2, mode="bilinear").square(), IMAGES),
    # compared
    "amax": through(lambda x: x.amax(1).square()),
    "amin": through(lambda x: x.amin(0)),
    "the maximum of all": through(lambda x: x.max() * x.min()),
    "median": through(lambda x: x.median() * x),
    "maximum": through(lambda x: torch.maximum(x, x.roll(1, 0))),
    "scatter_reduce": through(lambda x: torch.zeros(64, 64).scatter_reduce(1, x.argsort(1), x, "amax")),
    "softmax by hand": through(lambda x: (x - x.amax(1, keepdim=True)).exp() / x.exp().sum(1, keepdim=True)),
    "leaky_relu": through(lambda x: F.leaky_relu(x, 0.1)),
    "leaky_relu in place": through(lambda x: F.leaky_relu(x, 0.1, inplace=True)),
    "relu6": through(lambda x: F.relu6(x * 4)),
    "hardtanh": through(lambda x: F.hardtanh(x, -0.5, 0.25)),
    "hardtanh in place": through(lambda x: F.hardtanh(x, inplace=True)),
    "clamp": through(lambda x: x.clamp(-0.5, 0.5)),
    "clamp from below": through(lambda x: x.clamp(min=0.1) + torch.clamp_max(x, 0.3)),
    "clamp between tensors": through(lambda x: x.clamp(x.detach().roll(1, 0) - 1, torch.ones(64))),
    "abs": through(lambda x: (x * (x > -0.5)).abs()),
    "prelu": with_module(lambda: nn.PReLU(16), IMAGES),
    "hardsigmoid": through(lambda x: F.hardsigmoid(4 * x)),
    "softshrink": through(lambda x: F.softshrink(x)),
    "threshold": through(lambda x: F.threshold(x, 0.1, 0.0)),
    # divided by
    "div": of_positive(lambda x: x / x.roll(1, 0)),
    "reciprocal": of_positive(lambda x: 1 / x),
    "log": of_positive(lambda x: x.log()),
    "log1p": of_positive(lambda x: x.log1p()),
    "sqrt": of_positive(lambda x: x.sqrt()),
    "rsqrt": of_positive(lambda x: x.rsqrt()),
    "a half power": of_positive(lambda x: x ** 0.5),
    "a negative power": of_positive(lambda x: x.pow(-1.5)),
    "norm": through(lambda x: x * x.norm(dim=1, keepdim=True)),
    "norms of pairs": through(lambda x: torch.linalg.vector_norm(x.view(32, 64, 2), dim=-1)),
    "normalize": through(lambda x: F.normalize(x.view(32, 64, 2), dim=-1)),
    "cosine_similarity": through(lambda x: F.cosine_similarity(x.view(32, 64, 2), x.roll(1, 0).view(32, 64, 2), -1)),
    "prod": through(lambda x: x.view(512, 8).prod(1)),
    "cumprod": through(lambda x: (1 + x / 8).cumprod(1)),
    "atan2": through(lambda x: torch.atan2(x, x.roll(1, 0))),
    "acos": through(lambda x: (x.tanh() * 0.999).acos()),
    "cdist": through(lambda x: torch.cdist(x[:, :2], x[:, 2:4])),
    "std": through(lambda x: x.view(512, 8).std(1)),
    "inverse": through(lambda x: torch.linalg.inv(x @ x.T / 64 + torch.eye(64))),
    "rms norm by hand": through(lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt()),
    "local_response_norm": through(lambda x: F.local_response_norm(x, 5, alpha=1.0), IMAGES),
    "logsumexp of masked numbers": through(lambda x: hidden_ones(x).logsumexp(1)),
    "logaddexp": through(lambda x: torch.logaddexp(hidden_ones(x)[:, :1], hidden_ones(x))),
    "logsigmoid of masked numbers": through(lambda x: F.logsigmoid(-hidden_ones(x))),
    "attention with a learned bias and a mask": through(attention_with_a_bias),
    # layouts, kinds of tensors
    "views of both signs": through(of_both_signs),
    "fft": through(lambda x: torch.fft.rfft(x).abs().square()),
    "view_as_real": through(lambda x: torch.view_as_real(torch.fft.fft(x) / 8).tanh()),
    "sparse product": through(sparse_product),
    "jagged": through(of_jagged),
    "expanded": through(lambda x: x[:, :1].expand(64, 64).exp() * x[:1].expand(64, 64).tanh()),
    "windows that overlap": through(lambda x: x.unfold(1, 16, 4).square().exp()),
    "channels_last": with_module(
        lambda: nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 8, 3)).to(
            memory_format=torch.channels_last
        ),
        IMAGES,
    ),
    "every other number": through(lambda x: x.tanh()[:, ::2].exp() * x.tanh().T[::2].T),
    "float64": through(lambda x: x.double().tanh().exp().float()),
    "autocast": through(lambda x: torch.autocast("cpu", torch.bfloat16)(lambda: F.gelu(x @ x / 8))().float()),
    # parts of a step
    "partly without gradients": through(half_without_gradient),
    "changed in place before": through(changed_in_place_before),
    "a mask in a checkpoint": through(masked_in_a_checkpoint),
    "a checkpoint in a checkpoint": through(nested_checkpoints),
    "a reentrant checkpoint": through(lambda x: checkpoint(torch.sin, x.tanh(), use_reentrant=True)),  # type: ignore[arg-type]
    "vmap": through(vectorized),
    "einsum": through(lambda x: torch.einsum("bi,bj->bij", x.tanh(), x.exp())),
    # modules
    "LSTM": with_module(lambda: nn.LSTM(64, 32, batch_first=True), (4, 16, 64)),
    "GRU": with_module(lambda: nn.GRU(64, 32, batch_first=True), (4, 16, 64)),
    "attention": with_module(lambda: nn.TransformerEncoderLayer(64, 4, 64, batch_first=True), (4, 16, 64)),
    "instance norm": with_module(lambda: nn.InstanceNorm2d(16, affine=True, track_running_stats=True), IMAGES),
    "group norm": with_module(lambda: nn.Sequential(nn.GroupNorm(4, 16), nn.ELU(), nn.Hardswish()), IMAGES),
    "weight norm": with_module(lambda: nn.utils.parametrizations.weight_norm(nn.Linear(64, 64)), (64, 64)),
    "spectral norm": with_module(lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(64, 64)), (64, 64)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CASES)
def test_the_gradient_is_that_of_the_plain_run_up_to_rounding(name: str) -> None:
    leaves, loss = CASES[name]()
    model = nn.ParameterList([leaf for leaf in leaves if isinstance(leaf, nn.Parameter)])

    def gradient(value: Tensor) -> Tensor:
        for leaf in leaves:
            leaf.grad = None
        value.backward()  # type: ignore[no-untyped-call]
        return torch.cat([leaf.grad.flatten() for leaf in leaves if leaf.grad is not None])

    true = gradient(loss())
    with ActivationCompressor(model, bits=8, group_size=64).compressing():
        value = loss()
    # a step is 1/255 of a group's range, some six deviations: an error of a hundredth of what is rounded
    assert float((gradient(value) - true).norm()) <= 0.03 * float(true.norm())


@pytest.mark.parametrize("bits", [8, 4, 2])
@pytest.mark.parametrize(
    "operation",
    ["leaky_relu", "leaky_relu in place", "relu6", "hardtanh", "hardtanh in place", "clamp", "clamp from below"],
)
def test_where_the_region_is_enough_the_gradient_is_exact_and_takes_a_bit(operation: str, bits: int) -> None:
    leaves, loss = CASES[operation]()
    (true,) = torch.autograd.grad(loss(), leaves)
    with ActivationCompressor(nn.Identity(), bits=bits, group_size=64).compressing() as tally:
        value = loss()
    (got,) = torch.autograd.grad(value, leaves)
    assert torch.equal(got, true)
    exact = tally.by("codec")["exact"]
    assert exact.held <= exact.raw / 25


def test_regions_of_borders_and_of_numbers_that_are_none() -> None:
    x = torch.tensor([-torch.inf, -1.0, -0.5, -0.0, 0.0, 0.25, 1.0, 6.0, 7.0, torch.inf, torch.nan] * 16)
    for operation in (
        lambda x: F.leaky_relu(x, 0.1),
        F.relu6,
        F.hardtanh,
        lambda x: x.clamp(-0.5, 1.0),
        lambda x: x.clamp(-torch.inf, 1.0),
        lambda x: x.clamp(max=1),
        lambda x: x.clamp(min=0.25, max=-1.0),
        lambda x: x.clamp(0.25, 0.25),
    ):
        leaf = x.clone().requires_grad_()
        (true,) = torch.autograd.grad(operation(leaf * 1).sum(), leaf)  # type: ignore[operator]
        with ActivationCompressor(nn.Identity(), bits=4, group_size=16).compressing():
            value = operation(leaf * 1).sum()  # type: ignore[operator]
        assert torch.equal(torch.autograd.grad(value, leaf)[0], true)


@pytest.mark.parametrize("kind", ["float64", "small"])
def test_what_a_norm_was_given_must_not_change_before_the_backward(kind: str) -> None:
    model = nn.BatchNorm1d(8).to(torch.float64 if kind == "float64" else torch.float32)
    x = normal(16, 8).to(next(model.parameters()).dtype).requires_grad_()
    with ActivationCompressor(model).compressing():
        hidden = x * 1
        loss = model(hidden).square().sum()
        hidden.mul_(2)
    with pytest.raises(RuntimeError, match="modified in place"):
        loss.backward()


def test_second_derivatives_are_right_where_nothing_was_rounded() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.LeakyReLU(), nn.Linear(4, 1))
    x = normal(32, 4).requires_grad_()  # smaller than a group: nothing is rounded; LeakyReLU's regions are kept as bits

    def penalty() -> tuple[Tensor, ...]:
        (slope,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
        return torch.autograd.grad(slope.square().sum(), [x, *model.parameters()], allow_unused=True)

    plain = penalty()
    with ActivationCompressor(model).compressing():
        found = penalty()
    for true, got in zip(plain, found, strict=True):
        assert (true is None) == (got is None)
        assert true is None or torch.equal(true, got)


def test_transforms_of_torch_func_are_refused_by_torch_itself() -> None:
    x = normal(64, 64).requires_grad_()
    with (
        ActivationCompressor(nn.Identity()).compressing(),
        pytest.raises(RuntimeError, match="saved tensor hooks"),
    ):
        torch.func.grad(lambda y: y.tanh().sum())(x)
