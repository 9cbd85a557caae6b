"""`GradientNoiseScale` on a problem whose noise scale is known: accumulation and devices give the same answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_lr import AdaptiveRamp, BatchSizeRamp, Cosine, CurveRamp, GradientNoiseScale
from lightning_lr.batch_size.squared_norms import SquaredNorms
from tests.support.processes import run_in_processes
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DIMENSION, SIGMA, GRADIENT = 20, 1.5, 0.5
EXACT = DIMENSION * SIGMA**2 / (DIMENSION * GRADIENT**2)  # tr(Sigma) / |G|^2 = 9 samples


class Linear(LightningModule):
    """Loss ``w . x``: the gradient of a sample is x itself, Gaussian about GRADIENT, whatever the weights."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(DIMENSION))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (batch[0] @ self.w).mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def samples(count: int) -> TensorDataset:
    generator = torch.Generator().manual_seed(11)
    return TensorDataset(GRADIENT + SIGMA * torch.randn(count, DIMENSION, generator=generator))


def measured(batch_size: int, accumulation: int, updates: int = 500, **arguments: Any) -> float:
    world = arguments.get("devices", 1)
    noise = GradientNoiseScale(smoothing=0.99)
    loader = DataLoader(samples(batch_size * accumulation * world * updates), batch_size=batch_size)
    fit([noise], module=Linear(), loader=loader, max_epochs=1, accumulate_grad_batches=accumulation, **arguments)
    assert noise.estimator.updates == updates
    value = noise.estimator.value
    assert value is not None
    return value


def test_an_update_that_can_be_compared_with_nothing_measures_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    add = SquaredNorms.add
    monkeypatch.setattr(SquaredNorms, "add", lambda *args: (seen.append(1), add(*args)))
    noise = GradientNoiseScale()
    for accumulation, expected in ((1, 0), (2, 4), (3, 5)):  # of 5 micro-batches: the last window has 1, 1 and 2
        seen.clear()
        loader = DataLoader(samples(5 * 4), batch_size=4)
        fit([noise], module=Linear(), loader=loader, max_epochs=1, accumulate_grad_batches=accumulation)
        assert len(seen) == expected


def test_within_ten_percent_of_the_known_scale_after_500_updates() -> None:
    assert measured(4, 4) == pytest.approx(EXACT, rel=0.1)


@pytest.mark.parametrize(("batch_size", "accumulation"), [pytest.param(8, 1, marks=pytest.mark.slow), (4, 2)])
def test_two_devices_and_accumulation_agree(batch_size: int, accumulation: int, tmp_path: Path) -> None:
    first, second = run_in_two_processes([("scale", partial(_two, batch_size, accumulation))], tmp_path)
    if isinstance(first["scale"], Exception):
        raise first["scale"]
    assert first == second, "ranks agree"
    assert first["scale"] == pytest.approx(EXACT, rel=0.1)


def _two(batch_size: int, accumulation: int) -> float:
    return measured(batch_size, accumulation, **ddp())


def test_nothing_is_changed_by_measuring() -> None:
    bare, bare_probe = _run([])
    ours, our_probe = _run([GradientNoiseScale()])
    assert torch.equal(weights(bare), weights(ours))
    assert bare_probe.series == our_probe.series
    assert not any(parameter._backward_hooks for parameter in ours.parameters())


def _run(callbacks: list[Any]) -> tuple[LightningModule, Probe]:
    probe = Probe()
    module, _ = fit([*callbacks, probe], module=Toy(), loader=DataLoader(data(), batch_size=4),
                    accumulate_grad_batches=2)  # fmt: skip
    return module, probe


def test_one_gradient_per_update_is_said_and_nothing_is_logged() -> None:
    noise = GradientNoiseScale()
    with pytest.warns(UserWarning, match="nothing to compare it with"):
        fit([noise])
    assert noise.estimator.value is None


def test_measured_every_few_updates() -> None:
    noise = GradientNoiseScale(every=3)
    fit([noise], loader=DataLoader(data(48), batch_size=4), accumulate_grad_batches=2)
    assert noise.estimator.updates == 6


@pytest.mark.parametrize("arguments", [{"every": 0}, {"smoothing": 1.0}])
def test_bad_arguments(arguments: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(arguments))):
        GradientNoiseScale(**arguments)


# ---------------------------------------------------------------------- every way a window can be cut, without noise
TRUE = 200.0
"""tr(Sigma) where |G|^2 = 1."""
MANY = 32
"""Micro-batches in a window, at most."""
NEVER = AdaptiveRamp(ratio=1e12, check_every=10**6)


class Exact(LightningModule):
    """The mean gradient of micro-batch i, of m samples, is G + sqrt(tr / m) e_i, all at right angles.

    So |g_i|^2 = |G|^2 + tr / m and |sum c_i g_i|^2 = (sum c_i)^2 |G|^2 + tr sum c_i^2 / m, which is what holds in the
    mean elsewhere: a single update tells tr / |G|^2, whatever its micro-batches are.
    """

    def __init__(self, true: float = TRUE, skips: Callable[[int], bool] | None = None, **arguments: Any) -> None:
        super().__init__()
        self.w = torch.nn.Parameter(torch.zeros(1 + 4 * MANY))
        self.unowned = torch.nn.Parameter(torch.zeros(3))
        self.true, self.skips, self.arguments = true, skips, arguments

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if self.skips is not None and self.skips(batch_idx):
            return None
        x = batch[0] if isinstance(batch, list | tuple) else batch["nodes"]
        samples = len(x) if isinstance(batch, list | tuple) else batch["graphs"]
        own = self.w[1 + self.global_rank * MANY + batch_idx % MANY]
        infinite = x.sum() * 0.0 + (float("inf") if x.max() > 1 else 0.0)  # such samples overflow
        return self.w[0] + own * (self.true / samples) ** 0.5 + self.unowned.sum() + infinite * self.w[0]

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD([self.w], lr=1e-12, **self.arguments)


class Samples(IterableDataset[Any]):
    """Without a length; what an epoch yields is known from its batches only."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[Any]:
        return iter([(torch.zeros(1),)] * self.count)


class Tell(Callback):
    """The estimate of every update on its own (with smoothing=0)."""

    def __init__(self, noise: GradientNoiseScale) -> None:
        self.noise, self.found, self._updates = noise, [], 0  # type: ignore[var-annotated]

    def on_train_batch_end(self, *_: Any) -> None:
        if self.noise.estimator.updates != self._updates:
            self._updates = self.noise.estimator.updates
            self.found.append((self.noise.estimator.squared_gradient, self.noise.estimator.variance))


def exactly(
    loader: Any,
    accumulation: int = 1,
    *others: Callback,
    module: Exact | None = None,
    last: bool = True,
    noise: GradientNoiseScale | None = None,
    **arguments: Any,
) -> list[tuple[float, float]]:
    """What each measured update found as |G|^2 and tr(Sigma)."""
    noise = noise or GradientNoiseScale(smoothing=0.0)
    tell = Tell(noise)
    callbacks = [*others, noise, tell] if last else [noise, *others, tell]
    given = {"max_epochs": 2, "accumulate_grad_batches": accumulation, **arguments}
    fit(callbacks, module=module or Exact(), loader=loader, **given)
    return tell.found


def zeros(count: int, batch_size: int, **arguments: Any) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(count, 1)), batch_size=batch_size, **arguments)


def assert_exact(found: list[tuple[float, float]], updates: int, true: float = TRUE, rel: float = 1e-4) -> None:
    assert len(found) == updates
    for squared, variance in found:
        assert squared == pytest.approx(1.0, rel=rel)
        assert variance == pytest.approx(true, rel=rel)


CUTS: dict[str, tuple[Callable[[], list[tuple[float, float]]], int]] = {
    "whole windows": (lambda: exactly(zeros(64, 4), 8), 4),
    "a short last window": (lambda: exactly(zeros(104, 4), 8), 8),
    "a last window of one micro-batch is left out": (lambda: exactly(zeros(36, 4), 8), 2),
    "a short last micro-batch": (lambda: exactly(zeros(25, 8), 4), 2),
    "a short last window with a short last micro-batch": (lambda: exactly(zeros(101, 8), 8), 4),
    "drop_last": (lambda: exactly(zeros(101, 8, drop_last=True), 8), 4),
    "limit_train_batches": (lambda: exactly(zeros(200, 8), 4, limit_train_batches=6), 4),
    "an epoch shorter than the accumulation": (lambda: exactly(zeros(20, 8), 16), 2),
    "iterable data with a short end": (lambda: exactly(DataLoader(Samples(37), batch_size=8), 4, max_steps=4), 2),
    "accumulation that changes between epochs": (
        lambda: exactly(zeros(44, 4), 1, GradientAccumulationScheduler({0: 2, 1: 5}), max_epochs=3),
        5 + 2 + 2,  # and a window of one micro-batch in each epoch
    ),
    "a training_step that returns None": (
        lambda: exactly(zeros(64, 4), 8, module=Exact(skips=lambda i: i % 3 == 0)),
        4,
    ),
    "the last micro-batch of a window returns None": (
        lambda: exactly(zeros(64, 4), 8, module=Exact(skips=lambda i: i % 8 == 7)),
        4,
    ),
    "clipping by norm": (lambda: exactly(zeros(104, 4), 8, gradient_clip_val=0.01), 8),
    "clipping by value": (
        lambda: exactly(zeros(104, 4), 8, gradient_clip_val=0.01, gradient_clip_algorithm="value"),
        8,
    ),
    "bf16-mixed": (lambda: exactly(zeros(104, 4), 8, precision="bf16-mixed"), 8),
    "a ramp's 4, 3, 3": (lambda: exactly(zeros(50, 10), 1, BatchSizeRamp(NEVER, max_micro_batch_size=4)), 10),
    "a ramp's 3, 3, 2, 2 and a cut end": (
        lambda: exactly(zeros(45, 10), 1, BatchSizeRamp(NEVER, max_micro_batch_size=3)),
        10,
    ),
    "a ramp of iterable data, its correction after": (
        lambda: exactly(
            DataLoader(Samples(45), batch_size=2), 1, BatchSizeRamp(CurveRamp(Cosine()), 16), last=False,
            max_epochs=-1, max_steps=20,
        ),
        -1,
    ),
    "a ramp of iterable data, its correction before": (
        lambda: exactly(
            DataLoader(Samples(45), batch_size=2), 1, BatchSizeRamp(CurveRamp(Cosine()), 16),
            max_epochs=-1, max_steps=20,
        ),
        -1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("cut", CUTS)
def test_noise_scale_is_exact_however_a_window_is_cut(cut: str) -> None:
    run, updates = CUTS[cut]
    found = run()
    assert_exact(found, len(found) if updates < 0 else updates, rel=1e-3 if "ramp of iterable" in cut else 1e-4)
    assert len(found) > 3 or updates >= 0


def test_bf16_weights_round_no_more_than_their_gradients() -> None:
    for squared, variance in exactly(zeros(104, 4), 8, precision="bf16-true"):
        assert squared == pytest.approx(1.0, rel=0.05)
        assert variance == pytest.approx(TRUE, rel=0.02)


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaler_leaves_no_factor_and_a_skipped_step_no_trace(fused: bool) -> None:
    x = torch.zeros(96, 1)
    x[40] = 2.0  # its micro-batch overflows, in the second of six windows
    plugin = MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=512.0))  # type: ignore[arg-type]
    loader = DataLoader(TensorDataset(x), batch_size=4)
    found = exactly(loader, 8, module=Exact(fused=fused), plugins=[plugin])
    assert_exact(found, 4, rel=1e-3)


class ClipsFirst(Callback):
    """In a hook before Lightning's clipping."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        torch.nn.utils.clip_grad_norm_(pl_module.parameters(), 1e-3)


def test_clipping_in_a_hook_before_ours_is_not_measured() -> None:
    def found(*before: Callback) -> float | None:
        noise = GradientNoiseScale()
        module = Toy(lambda module: torch.optim.SGD(module.parameters(), lr=0.0))
        loader = DataLoader(data(), batch_size=4)
        fit([*before, noise], module=module, loader=loader, accumulate_grad_batches=2)
        return noise.estimator.value

    assert found(ClipsFirst()) == found() is not None


def test_samples_that_only_the_user_can_count() -> None:
    graphs = [{"nodes": torch.zeros(7 * count, 1), "graphs": count} for count in (4, 2, 3, 5)]
    noise = GradientNoiseScale(smoothing=0.0, count_samples=lambda batch: batch["graphs"])
    loader = DataLoader(graphs, batch_size=None)  # type: ignore[arg-type]
    assert_exact(exactly(loader, 2, noise=noise), 4)


class Bag:
    """A batch that is an object of the user's."""

    def __init__(self, samples: int) -> None:
        self.x = torch.zeros(samples, 1)


class ReadsBags(Exact):
    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        return super().training_step([torch.zeros(3, 1) if isinstance(batch, list) else batch.x], batch_idx)


def test_the_samples_of_a_batch_that_is_an_object() -> None:
    loader = DataLoader([Bag(size) for size in (3, 5, 3, 5)], batch_size=None)  # type: ignore[arg-type, list-item]
    assert_exact(exactly(loader, 2, module=ReadsBags()), 4)


def test_a_size_that_nothing_tells_is_warned_of_and_not_measured() -> None:
    loader = DataLoader([["a", "b", "c"]] * 4, batch_size=None)  # type: ignore[arg-type, list-item]
    with pytest.warns(UserWarning, match="give count_samples"):
        assert exactly(loader, 2, module=ReadsBags()) == []


def test_a_window_that_was_left_without_an_update_counts_no_more() -> None:
    class LeaveEpoch(Exact):
        def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
            return -1 if batch_idx == 5 else None

    # 4 of 8 micro-batches are an update; the fifth is left, and its gradient is cleared with the next epoch's first
    assert_exact(exactly(zeros(32, 4), 4, module=LeaveEpoch(), max_epochs=3), 3)


@pytest.mark.parametrize(
    ("batch_size", "micro", "true", "ratio", "grows"),
    [(11, 6, 60.0, 10.0, False), (12, 6, 60.0, 10.0, False), (10, 4, 1000.0, 7.0, True), (8, 4, 1000.0, 7.0, True)],
)
def test_an_adaptive_ramp_decides_by_the_true_noise_scale(
    batch_size: int, micro: int, true: float, ratio: float, grows: bool
) -> None:
    schedule = AdaptiveRamp(ratio=ratio, growth=2.0, check_every=3)
    ramp = BatchSizeRamp(schedule, max_batch_size=64, max_micro_batch_size=micro)
    noise = GradientNoiseScale()
    exactly(zeros(batch_size * 10, batch_size), 1, ramp, module=Exact(true), noise=noise, max_epochs=1)
    assert noise.estimator.value == pytest.approx(true, rel=1e-3)
    assert bool(ramp._growth.growths) == grows


# ---------------------------------------------------------------------- the same on several devices
def _unequal(world: int) -> list[tuple[float, float]]:
    rank = torch.distributed.get_rank()
    sizes = [[3, 1, 4, 1, 5, 2], [5, 6, 2, 6, 1, 7], [8, 8, 8, 8, 8, 3], [1, 2, 3, 4, 5, 6]][rank]
    loader = DataLoader([torch.zeros(size, 1) for size in sizes], batch_size=None, collate_fn=lambda x: [x])  # type: ignore[arg-type]
    return exactly(loader, 4, use_distributed_sampler=False, **ddp(devices=world))


DISTRIBUTED: dict[str, Callable[[int], list[tuple[float, float]]]] = {
    "devices": lambda world: exactly(zeros(world * 32, 8), 1, **ddp(devices=world)),
    "short window": lambda world: exactly(zeros(world * 104, 4), 8, **ddp(devices=world)),
    "short micro-batch": lambda world: exactly(zeros(world * 25, 8), 4, **ddp(devices=world)),
    "unequal ranks": _unequal,
    "ramp": lambda world: exactly(
        zeros(world * 46, 10), 1, BatchSizeRamp(NEVER, max_micro_batch_size=4), **ddp(devices=world)
    ),
}


def _case(name: str, world: int) -> list[tuple[float, float]]:
    return DISTRIBUTED[name](world)


@pytest.mark.parametrize("world", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_noise_scale_is_exact_over_devices(world: int, tmp_path: Path) -> None:
    cases = [(name, partial(_case, name, world)) for name in DISTRIBUTED]
    results = run_in_processes(cases, tmp_path, world, errors_as_text=False)
    for name in DISTRIBUTED:
        if isinstance(results[0][name], Exception):
            raise results[0][name]
        assert all(result[name] == results[0][name] for result in results), "ranks agree"
        assert_exact(results[0][name], len(results[0][name]))
        assert len(results[0][name]) >= 2


class Derives(Exact):
    """Takes derivatives with respect to its parameters that are of no update, as an adaptive weight of a loss is."""

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        loss = super().training_step(batch, batch_idx)
        if loss is not None:
            torch.autograd.grad(7 * loss, list(self.parameters()), retain_graph=True)
        return loss


def test_a_derivative_that_no_update_uses_is_not_measured() -> None:
    assert_exact(exactly(zeros(104, 4), 8, module=Derives()), 8)


class CallsTwice(Toy):
    """One layer in two checkpoints."""

    def __init__(self, reentrant: bool) -> None:
        super().__init__(lambda module: torch.optim.SGD(module.parameters(), lr=0.05))
        self.twice = torch.nn.Linear(6, 6)
        self.reentrant = reentrant

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        x = batch[0].requires_grad_()
        for _ in range(2):
            x = checkpoint(self.twice, x, use_reentrant=self.reentrant)
        return super().training_step((x, batch[1]), batch_idx)


def test_a_gradient_that_comes_in_parts_is_said_and_not_measured() -> None:
    def trained(reentrant: bool) -> GradientNoiseScale:
        noise = GradientNoiseScale()
        fit([noise], module=CallsTwice(reentrant), loader=DataLoader(data(), batch_size=4), accumulate_grad_batches=2)
        return noise

    with pytest.warns(UserWarning, match="comes in parts, as where reentrant checkpointing calls a layer twice"):
        assert trained(True).estimator.updates == 0
    assert trained(False).estimator.updates > 0
