"""Ghost batch norm against torch's batch norm, ghost by ghost: outputs, gradients, running statistics, conversion.

Tolerances: ghosts one after the other, and one ghost, run torch's own kernel and are bit-identical; side by side the
same sums may be taken in another order, and running statistics are averaged in another: 1e-12 in float64, where
gradients are compared (some are sums that cancel), 1e-6 in float32.
"""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lr.batch_size import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batch_norm,
    ghost_batch_norm,
    restore_batch_norm,
)
from tests.support.rounding import rounding

ROUNDING = {"rtol": rounding(64), "atol": rounding(64)}
"""Statistics are sums of at most 32 values up to 10."""

KINDS: list[tuple[Any, Any, tuple[int, ...]]] = [
    (GhostBatchNorm1d, nn.BatchNorm1d, (3,)),
    (GhostBatchNorm1d, nn.BatchNorm1d, (3, 5)),
    (GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2)),
    (GhostBatchNorm3d, nn.BatchNorm3d, (3, 2, 4, 2)),
]


@pytest.fixture(params=["one after the other", "at once"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Both ways of computing, whatever the device."""
    chosen = bool(request.param == "at once")
    monkeypatch.setattr(ghost_batch_norm, "_at_once", lambda input: chosen)
    return chosen


def pair(ghost: Any, plain: Any, shape: tuple[int, ...], size: int, **arguments: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    ours, torchs = ghost(shape[0], size, **arguments), plain(shape[0], **arguments)
    with torch.no_grad():
        for parameter in torchs.parameters():
            parameter.copy_(torch.randn_like(parameter))
    ours.load_state_dict(torchs.state_dict())
    return ours, torchs


def batch(samples: int, shape: tuple[int, ...], requires_grad: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(samples)
    x = 2.0 * torch.randn(samples, *shape, generator=generator) + 3.0
    return x.requires_grad_(requires_grad)


def gradients(module: nn.Module, x: Tensor, forward: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """Output, and gradients of a loss that treats every output differently."""
    out = forward(x)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype).view(out.shape)
    return [out, *torch.autograd.grad((out * weights).sum(), [x, *module.parameters()])]


@pytest.mark.parametrize(("ghost", "plain", "shape"), KINDS)
@pytest.mark.parametrize(
    ("samples", "sizes"),
    [(24, [8, 8, 8]), (21, [8, 8, 5]), (18, [8, 8, 2]), (25, [8, 8, 9]), (17, [8, 9]), (10, [8, 2])],
)
def test_each_ghost_is_normalised_as_a_batch_of_its_own(
    ghost: Any, plain: Any, shape: tuple[int, ...], samples: int, sizes: list[int], at_once: bool
) -> None:
    ours, torchs = (layer.double() for layer in pair(ghost, plain, shape, 8))
    x = batch(samples, shape, requires_grad=False).double().requires_grad_()
    found = gradients(ours, x, ours)
    expected = gradients(torchs, x, lambda x: torch.cat([torchs(part) for part in x.split(sizes)]))
    if not at_once:
        assert torch.equal(found[0], expected[0])
    for f, e in zip(found, expected, strict=True):
        torch.testing.assert_close(f, e, rtol=1e-12, atol=1e-12)
    assert found[0].shape == x.shape


@pytest.mark.parametrize(("ghost", "plain", "shape"), KINDS)
@pytest.mark.parametrize("samples", [2, 7, 8, 9])
def test_a_batch_of_one_ghost_is_bit_identical_to_batch_norm(
    ghost: Any, plain: Any, shape: tuple[int, ...], samples: int
) -> None:
    ours, torchs = pair(ghost, plain, shape, 8)
    x = batch(samples, shape)
    for found, expected in zip(gradients(ours, x, ours), gradients(torchs, x, torchs), strict=True):
        assert torch.equal(found, expected)
    for name, buffer in torchs.named_buffers():
        assert torch.equal(ours.get_buffer(name), buffer)


@pytest.mark.parametrize(("samples", "sizes"), [(24, [8, 8, 8]), (21, [8, 8, 5]), (25, [8, 8, 9])])
@pytest.mark.parametrize("momentum", [0.1, 1.0, None])
def test_running_statistics_take_one_step_to_the_average_of_the_ghosts(
    samples: int, sizes: list[int], momentum: float | None, at_once: bool
) -> None:
    ours, _ = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8, momentum=momentum)
    mean, var = torch.zeros(3), torch.ones(3)
    for step in range(1, 4):
        x = batch(samples + step - 1, (3, 4, 2), requires_grad=False)[:samples] * step
        ours(x)
        parts = x.split(sizes)
        means = sum(part.mean(dim=(0, 2, 3)) * len(part) / samples for part in parts)
        variances = sum(part.var(dim=(0, 2, 3)) * len(part) / samples for part in parts)
        share = 1 / step if momentum is None else momentum
        mean, var = mean + share * (means - mean), var + share * (variances - var)
    torch.testing.assert_close(ours.running_mean, mean, **ROUNDING)
    torch.testing.assert_close(ours.running_var, var, **ROUNDING)
    assert int(ours.num_batches_tracked) == 3


def test_running_mean_is_that_of_the_whole_batch() -> None:
    ours, torchs = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8)
    x = batch(21, (3, 4, 2))
    ours(x), torchs(x)
    torch.testing.assert_close(ours.running_mean, torchs.running_mean, **ROUNDING)


@pytest.mark.parametrize("arguments", [{}, {"track_running_stats": False}, {"affine": False}])
def test_evaluation_is_batch_norms(arguments: dict[str, bool]) -> None:
    ours, torchs = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8, **arguments)
    if ours.track_running_stats:
        ours(batch(24, (3, 4, 2)))
        torchs.load_state_dict(ours.state_dict())
    x = batch(21, (3, 4, 2))
    assert torch.equal(ours.eval()(x), torchs.eval()(x))


@pytest.mark.parametrize("arguments", [{"track_running_stats": False}, {"affine": False}])
def test_layers_without_statistics_or_parameters_train(arguments: dict[str, bool], at_once: bool) -> None:
    ours, torchs = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8, **arguments)
    x = batch(21, (3, 4, 2))
    torch.testing.assert_close(ours(x), torch.cat([torchs(part) for part in x.split(8)]), **ROUNDING)
    assert list(dict(ours.named_buffers())) == list(dict(torchs.named_buffers()))


def test_output_does_not_depend_on_how_many_ghosts_share_a_batch() -> None:
    """The reason for it: a sample's output and gradient stay what they were when the batch grows around it."""
    ours, _ = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8)
    x = batch(64, (3, 4, 2))
    assert torch.equal(ours(x)[:8], ours(x[:8]))
    plain = nn.BatchNorm2d(3)
    assert not torch.allclose(plain(x)[:8], plain(x[:8]), atol=1e-2)


@pytest.mark.parametrize("way", ["autocast", "bfloat16 module", "double"])
def test_other_precisions(way: str, at_once: bool) -> None:
    ours, torchs = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8)
    x = batch(21, (3, 4, 2), requires_grad=False)
    if way == "autocast":
        x = x.bfloat16()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found, expected = ours(x), torch.cat([torchs(part) for part in x.split(8)])
        assert ours.running_mean.dtype == torch.float32
    else:
        dtype = torch.bfloat16 if way == "bfloat16 module" else torch.float64
        ours, torchs, x = ours.to(dtype), torchs.to(dtype), x.to(dtype)
        found, expected = ours(x), torch.cat([torchs(part) for part in x.split(8)])
    assert found.dtype == expected.dtype == x.dtype
    torch.testing.assert_close(found, expected)  # at the tolerance of the dtype


def test_channels_last_stays_channels_last() -> None:
    ours, torchs = pair(GhostBatchNorm2d, nn.BatchNorm2d, (3, 4, 2), 8)
    x = batch(21, (3, 4, 2)).contiguous(memory_format=torch.channels_last)
    out = ours(x)
    assert out.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(out, torch.cat([torchs(part) for part in x.split(8)]), **ROUNDING)


def test_a_wrong_number_of_dimensions_is_refused_as_by_batch_norm() -> None:
    with pytest.raises(ValueError, match="expected 4D input"):
        GhostBatchNorm2d(3, 8)(torch.randn(20, 3))


# ---------------------------------------------------------------------------------------------- conversion
def network() -> nn.Sequential:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5, momentum=None)
    )


def test_conversion_keeps_identity_names_and_state() -> None:
    module = network()
    before = {name: (id(parameter), parameter.clone()) for name, parameter in module.named_parameters()}
    layer, state = module[1], copy.deepcopy(module.state_dict())
    seen: list[nn.Module] = []
    layer.register_forward_hook(lambda module, args, output: seen.append(module))
    assert convert_ghost_batch_norm(module, 8) == 2
    assert module[1] is layer
    assert (type(module[1]), type(module[4])) == (GhostBatchNorm2d, GhostBatchNorm1d)
    assert isinstance(module[1], nn.BatchNorm2d)
    assert "ghost_batch_size=8" in repr(module)
    module(torch.randn(20, 3, 4, 4))
    assert seen == [layer]
    assert {name: id(parameter) for name, parameter in module.named_parameters()} == {
        name: number for name, (number, _) in before.items()
    }
    assert list(module.state_dict()) == list(state)
    network().load_state_dict(module.state_dict())
    assert convert_ghost_batch_norm(module, 16) == 0  # once is enough
    assert restore_batch_norm(module) == 2
    assert (type(module[1]), type(module[4])) == (nn.BatchNorm2d, nn.BatchNorm1d)
    assert vars(module[1]).keys() == vars(network()[1]).keys()
    assert restore_batch_norm(module) == 0


def test_a_converted_network_trains_as_batch_norm_over_micro_batches() -> None:
    module, torchs = network(), network()
    convert_ghost_batch_norm(module, 8)
    x = batch(24, (3, 4, 4), requires_grad=False)
    module(x).square().mean().backward()
    for part in x.split(8):  # accumulation, which ghosts stand for
        (torchs(part).square().mean() / 3).backward()
    for ours, expected in zip(module.parameters(), torchs.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, expected.grad, **ROUNDING)


def test_a_single_layer_is_converted_and_a_users_own_ghost_layer_is_left() -> None:
    layer = nn.BatchNorm1d(3)
    assert convert_ghost_batch_norm(layer, 4) == 1
    assert type(layer) is GhostBatchNorm1d
    own = nn.Sequential(GhostBatchNorm1d(3, 4))
    assert convert_ghost_batch_norm(own, 8) == 0
    assert restore_batch_norm(own) == 0
    assert own[0].ghost_batch_size == 4


def test_converted_layers_can_be_copied_and_pickled() -> None:
    module = network()
    convert_ghost_batch_norm(module, 8)
    x = torch.randn(20, 3, 4, 4)
    for other in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(other(x), copy.deepcopy(module)(x))
        assert restore_batch_norm(other) == 2


class OwnForward(nn.BatchNorm2d):
    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input).relu()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (
            nn.SyncBatchNorm(4),
            r"1\.0 is a SyncBatchNorm, which normalises over the batches of all devices, the opposite",
        ),
        (OwnForward(4), r"1\.0 is a OwnForward, not one of torch's BatchNorm1d, 2d and 3d"),
        (nn.LazyBatchNorm2d(), r"1\.0 is a LazyBatchNorm2d"),
    ],
)
def test_other_kinds_of_batch_norm_are_refused_and_nothing_is_converted(layer: nn.Module, message: str) -> None:
    module = nn.Sequential(nn.BatchNorm2d(4), nn.Sequential(layer))
    with pytest.raises(ValueError, match=message):
        convert_ghost_batch_norm(module, 8)
    assert type(module[0]) is nn.BatchNorm2d


@pytest.mark.parametrize("size", [1, 0, 2.0, True])
def test_ghosts_of_less_than_two_samples_are_refused(size: Any) -> None:
    for make in (lambda: convert_ghost_batch_norm(nn.BatchNorm1d(3), size), lambda: GhostBatchNorm1d(3, size)):
        with pytest.raises(ValueError, match=r"ghost_batch_size=.* is not allowed; give a whole number of samples"):
            make()
