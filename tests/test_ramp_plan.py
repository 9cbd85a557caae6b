"""The plan of a ramp: the paper's numbers, an independent count of every window, the noise path, rounding, refusals.

Tolerances: a learning-rate factor is a product of three floats, so the noise path is held to 1e-12 relative.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
import time
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from typing import Any

import jsonargparse
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_lr.batch_size import (
    AdaptiveRamp,
    BatchRule,
    CurveRamp,
    EpochWindows,
    Growth,
    RampPlan,
    RampSchedule,
    StepRamp,
    Window,
    WindowAccumulation,
    micro_batch_sizes,
    window_weights,
)
from lightning_lr.curves import (
    Constant,
    Cosine,
    CosineRestarts,
    Curve,
    Phase,
    Polynomial,
    SlantedTriangle,
    Step,
    WarmupStableDecay,
)

NOISE_PATH = 1e-12
CIFAR, IMAGENET = 50_000, 1_281_167

CURVES: list[Curve] = [
    Constant(warmup=0.05),
    Cosine(warmup=0.1),
    CosineRestarts(first_cycle=0.2, peak_decay=0.7),
    SlantedTriangle(),
    Step(warmup=0.05),
    Polynomial(floor=0.01),
    WarmupStableDecay(),
]


def cifar(mode: str, batch_size: int = 128, lr: float = 0.1, momentum: float = 0.9, **arguments: Any) -> RampPlan:
    schedule = StepRamp([60, 120, 160], factor=5.0, mode=mode)  # type: ignore[arg-type]
    given_or_paper: dict[str, Any] = {"max_epochs": 200, "max_batch_size": 5120, **arguments}
    return RampPlan(schedule, CIFAR, batch_size, lr=lr, momentum=momentum, **given_or_paper)


def imagenet(mode: str, batch_size: int, momentum: float = 0.9, cap: int = 81_920) -> RampPlan:
    schedule = StepRamp([30, 60, 80], factor=10.0, mode=mode)  # type: ignore[arg-type]
    return RampPlan(schedule, IMAGENET, batch_size, max_epochs=90, max_batch_size=cap, lr=3.0, momentum=momentum)


def all_windows(plan: RampPlan) -> list[tuple[int, Window]]:
    """Every window of the run, with its epoch."""
    found: list[tuple[int, Window]] = []
    for epoch in range(math.ceil(plan.epochs)):
        found += [(epoch, window) for window in plan.windows(epoch)]
    return found[: plan.total_updates]


# ---------------------------------------------------------------------------------------------- the paper's numbers
@pytest.mark.parametrize(
    ("plan", "updates", "noise_at_start"),
    [
        (cifar("decay"), 78_200, 389.625),
        (cifar("hybrid"), 34_520, 389.625),
        (cifar("increase"), 29_240, 389.625),
        (cifar("increase", 640, lr=0.5), 6_500, 385.625),
        (cifar("increase", 3200, lr=0.5, momentum=0.98), 2_360, 365.625),
    ],
    ids=["decay", "hybrid", "increase", "larger lr", "larger momentum"],
)
def test_cifar_schedules_of_the_paper(plan: RampPlan, updates: int, noise_at_start: float) -> None:
    assert plan.total_updates == updates
    assert plan.total_samples == 200 * CIFAR
    first = plan.windows(0)[0]
    assert plan.lr is not None
    assert plan.lr * CIFAR / (first.batch_size * (1 - plan.momentum)) == pytest.approx(390.625, rel=NOISE_PATH)
    assert plan.phases[0].noise_scale == pytest.approx(noise_at_start, rel=NOISE_PATH)
    assert plan.noise_scale(first) == plan.phases[0].noise_scale


@pytest.mark.parametrize(
    ("plan", "updates"),
    [
        (imagenet("decay", 8192), 14_130),
        (imagenet("increase", 8192), 5_670),
        (imagenet("increase", 8192, 0.9, cap=65_536), 5_910),
        (imagenet("increase", 16_384, 0.95, cap=65_536), 3_570),
        (imagenet("increase", 32_768, 0.975, cap=65_536), 2_400),
        (RampPlan(StepRamp([30], factor=2.0), IMAGENET, 8192, max_epochs=90), 9_450),
    ],
    ids=["decay", "increase", "momentum .9", "momentum .95", "momentum .975", "ResNet-50"],
)
def test_imagenet_updates_of_the_paper(plan: RampPlan, updates: int) -> None:
    assert plan.total_updates == updates
    assert plan.fixed_batch_updates == math.ceil(IMAGENET / plan.batch_size) * 90


def test_past_the_cap_the_learning_rate_takes_over() -> None:
    plan = cifar("increase", max_micro_batch_size=1024)
    rows = [(p.start_epoch, p.epochs, p.batch_size, p.micro_batch_size, p.accumulation, p.updates) for p in plan.phases]
    assert rows == [
        (0, 60, 128, 128, 1, 60 * 391),
        (60, 60, 640, 640, 1, 60 * 79),
        (120, 40, 3200, 800, 4, 40 * 16),
        (160, 40, 5120, 1024, 5, 40 * 10),
    ]
    # the last step asks for 16000: x1.6 is the batch's, and 1 / 3.125 is left for the learning rate
    assert [p.lr_factor for p in plan.phases] == pytest.approx([1.0, 1.0, 1.0, 1 / 3.125], rel=NOISE_PATH)


def test_hybrid_gives_the_batch_the_first_step_and_the_lr_the_later_ones() -> None:
    phases = cifar("hybrid").phases
    assert [p.batch_size for p in phases] == [128, 640, 640, 640]
    assert [p.lr_factor for p in phases] == pytest.approx([1.0, 1.0, 0.2, 0.04], rel=NOISE_PATH)


def test_default_cap_is_a_tenth_of_the_data_or_the_start() -> None:
    assert cifar("increase", max_batch_size=None).largest_batch_size == 5000
    assert cifar("increase", batch_size=6400, max_batch_size=None).largest_batch_size == 6400


# ---------------------------------------------------------------------------------------------- an independent count
def counted_by_hand(
    milestones: Sequence[Fraction],
    factor: int,
    steps_of_the_batch: int,
    samples: int,
    batch: int,
    world: int,
    cap: int,
    epochs: int,
    drop_last: bool,
) -> list[tuple[int, int, int, int, Fraction]]:
    """(epoch, start, size, batch, lr factor) of every window, in exact arithmetic, one sample position at a time."""
    local_samples = math.ceil(Fraction(samples, world))
    start = math.ceil(Fraction(batch, world)) * world
    limit = max(start, min(cap // world, local_samples) * world)
    found = []
    for epoch in range(epochs):
        position = 0
        while position < local_samples:
            passed = sum(milestone <= epoch + Fraction(position, local_samples) for milestone in milestones)
            wanted = start * factor ** min(passed, steps_of_the_batch)
            real = min(limit, math.ceil(Fraction(wanted, world)) * world)
            size = min(real // world, local_samples - position)
            if drop_last and size < real // world:
                break
            lr_factor = Fraction(1, factor**passed) * Fraction(real, start)
            found.append((epoch, position * world, size * world, real, lr_factor))
            position += size
    return found


@settings(max_examples=150, deadline=None)
@given(
    milestones=st.lists(st.fractions(Fraction(1, 8), 7, max_denominator=8), min_size=1, max_size=3, unique=True),
    factor=st.integers(2, 5),
    mode=st.sampled_from(["increase", "hybrid", "decay"]),
    samples=st.integers(40, 400),
    batch=st.integers(4, 30),
    world=st.integers(1, 4),
    room=st.integers(0, 300),
    drop_last=st.booleans(),
)
def test_every_window_is_that_of_an_exact_count(
    milestones: list[Fraction],
    factor: int,
    mode: str,
    samples: int,
    batch: int,
    world: int,
    room: int,
    drop_last: bool,
) -> None:
    milestones.sort()
    local = math.ceil(samples / world)
    drop_last = drop_last and math.ceil(batch / world) <= local
    plan = RampPlan(
        StepRamp(list(map(float, milestones)), factor, mode),  # type: ignore[arg-type]
        samples,
        batch,
        world_size=world,
        max_epochs=8,
        max_batch_size=batch + room,
        drop_last=drop_last,
    )
    steps = {"increase": 3, "hybrid": 1, "decay": 0}[mode]
    expected = counted_by_hand(milestones, factor, steps, samples, batch, world, batch + room, 8, drop_last)
    found = [(epoch, w.start, w.size, w.batch_size) for epoch, w in all_windows(plan)]
    assert found == [row[:4] for row in expected]
    assert [w.lr_factor for _, w in all_windows(plan)] == pytest.approx([float(r[4]) for r in expected], rel=NOISE_PATH)
    assert plan.total_updates == len(expected) == sum(phase.updates for phase in plan.phases)
    assert plan.total_samples == sum(row[2] for row in expected)
    assert sum(phase.epochs for phase in plan.phases) == pytest.approx(8)


@settings(max_examples=60, deadline=None)
@given(
    curve=st.sampled_from(CURVES),
    samples=st.integers(50, 700),
    batch=st.integers(3, 16),
    world=st.integers(1, 3),
    micro=st.integers(1, 40),
)
def test_windows_use_each_sample_once_and_stay_on_the_noise_path(
    curve: Curve, samples: int, batch: int, world: int, micro: int
) -> None:
    plan = RampPlan(CurveRamp(curve), samples, batch, world, max_epochs=5, max_micro_batch_size=micro)
    epoch_samples = math.ceil(samples / world) * world
    start, done = plan.starting_batch_size, 0
    for epoch in range(5):
        position = 0
        for window in plan.windows(epoch):
            assert window.start == position
            assert window.size == sum(window.micro_sizes) * world
            assert max(window.micro_sizes) <= micro
            assert max(window.micro_sizes) - min(window.micro_sizes) <= 1
            assert len(window.micro_sizes) == math.ceil(window.size / world / micro)
            assert window.size <= window.batch_size <= plan.largest_batch_size
            assert window.batch_size % world == 0
            on_path = curve(done / (5 * epoch_samples), window.size / (5 * epoch_samples))
            assert window.lr_factor * start / window.batch_size == pytest.approx(on_path, rel=NOISE_PATH)
            position += window.size
            done += window.size
        assert position == epoch_samples
    assert plan.total_updates == sum(len(plan.windows(epoch)) for epoch in range(5))
    assert plan.total_samples == done


# ---------------------------------------------------------------------------------------------- curves
def test_the_batch_waits_for_the_end_of_a_climb() -> None:
    for curve, climb in [(Cosine(warmup=0.2), 0.2), (SlantedTriangle(cut_fraction=0.3), 0.3)]:
        plan = RampPlan(CurveRamp(curve), 1000, 10, max_epochs=10)
        climbing = [w for e, w in all_windows(plan) if e + w.start / 1000 < 10 * climb - 1e-9]
        assert len(climbing) == round(1000 * climb)
        assert {w.batch_size for w in climbing} == {10}
        factors = [w.lr_factor for w in climbing]
        assert factors == sorted(factors)
        assert 0 < factors[0] < 0.1
        assert all_windows(plan)[-1][1].batch_size == plan.largest_batch_size == 100


def test_a_climb_in_samples_is_that_of_the_fixed_batch() -> None:
    plan = RampPlan(CurveRamp(Cosine(warmup=0.2)), 1000, 10, max_epochs=10)
    factors = [w.lr_factor for _, w in all_windows(plan)[:200]]
    assert factors == pytest.approx([(t + 1) / 200 for t in range(200)], rel=NOISE_PATH)


def test_without_a_cap_in_reach_the_lr_only_corrects_rounding() -> None:
    plan = RampPlan(CurveRamp(Cosine(floor=0.1)), CIFAR, 100, max_epochs=10)
    assert all(0 <= 1 - w.lr_factor < 1 / 100 for _, w in all_windows(plan))  # the batch is rounded down


def test_square_root_rule_halves_the_curve_by_lr_over_root_two_and_batch_times_two() -> None:
    plan = RampPlan(CurveRamp(Step([0.5, 0.75], factor=0.5)), 1000, 10, max_epochs=8, lr_rule="sqrt")
    assert [p.batch_size for p in plan.phases] == [10, 20, 40]
    assert [p.lr_factor for p in plan.phases] == pytest.approx([1, 2**-0.5, 0.5], rel=NOISE_PATH)
    capped = RampPlan(plan.schedule, 1000, 10, max_epochs=8, lr_rule="sqrt", max_batch_size=20)
    assert [p.batch_size for p in capped.phases] == [10, 20, 20]
    assert [p.lr_factor for p in capped.phases] == pytest.approx([1, 2**-0.5, 0.5 * 2**-0.5], rel=NOISE_PATH)


def test_square_root_rule_keeps_lr_over_root_of_batch_on_the_curve_past_rounding_and_cap() -> None:
    plan = RampPlan(CurveRamp(Cosine()), 3001, 7, world_size=2, max_epochs=4, lr_rule="sqrt")
    samples = 3002 * 4
    for epoch, w in all_windows(plan):
        path = w.lr_factor / math.sqrt(w.batch_size / plan.starting_batch_size)
        assert path == pytest.approx(Cosine()((epoch * 3002 + w.start) / samples), rel=NOISE_PATH)


def test_a_restart_shrinks_the_batch_again() -> None:
    plan = RampPlan(CurveRamp(CosineRestarts(first_cycle=0.5, cycle_growth=1.0)), 1000, 10, max_epochs=10)
    assert plan.windows(4)[-1].batch_size == 100
    assert plan.windows(5)[0].batch_size == 10


def test_a_curve_at_zero_is_the_cap_and_no_learning_rate() -> None:
    plan = RampPlan(CurveRamp(Polynomial(power=1.0)), 1000, 10, max_epochs=4)
    beyond = plan.windows(4)[0]  # as far as the curve goes
    assert (beyond.batch_size, beyond.lr_factor) == (100, 0.0)


def test_rows_of_a_curve_are_doublings_within_its_parts() -> None:
    phases = RampPlan(CurveRamp(WarmupStableDecay()), CIFAR, 128, max_epochs=200, lr=0.1, momentum=0.9).phases
    starts = [p.batch_size for p in phases]
    assert starts[:3] == [128, 128, 128]  # warm-up, stable, decay
    assert starts[-1] == 5000
    # a doubling, but for the window in which it falls, which is a tenth of the batch's time at the end
    assert all(1.9 < b / a < 2.2 for a, b in pairwise(starts[2:-1]))
    assert phases[1].start_epoch == 10
    many = RampPlan(CurveRamp(CosineRestarts(first_cycle=0.02, cycle_growth=1.0)), 5000, 16, max_epochs=100)
    assert len(many.phases) <= 32
    assert sum(p.updates for p in many.phases) == many.total_updates
    assert sum(p.epochs for p in many.phases) == pytest.approx(100)


class Plateaus(Curve):
    """A user's own curve: says nothing about its climb."""

    def __call__(self, progress: float, width: float = 0.0) -> float:
        return 0.2 if progress < 0.1 else 1.0 - progress


class NamedClimb(Plateaus):
    def phases(self) -> tuple[Phase, ...]:
        return Phase("climb", 0.0, 0.1), Phase("fall", 0.1, 1.0)


class OnlyUp(Curve):
    def __call__(self, progress: float, width: float = 0.0) -> float:
        return 0.1 + 0.9 * progress


def test_a_curve_of_the_users_own_names_its_climb_or_starts_at_one() -> None:
    with pytest.raises(ValueError, match=r"Plateaus stands at 0\.2 at its start and not at 1"):
        CurveRamp(Plateaus())
    with pytest.raises(
        ValueError, match=r"NamedClimb stands at 0\.9 at 0\.1 of the run, the end of its climb, and not"
    ):
        CurveRamp(NamedClimb())
    assert CurveRamp(OnlyUp()).batch_decay(0.0, 0.0) == 1.0  # a climb all along is the learning rate's


# ---------------------------------------------------------------------------------------------- epochs and world
def test_a_fractional_milestone_acts_at_the_first_window_that_starts_at_or_after_it() -> None:
    plan = RampPlan(StepRamp([1.5], factor=2.0), 100, 8, max_epochs=3, max_batch_size=16)
    assert [w.start for w in plan.windows(1)] == [0, 8, 16, 24, 32, 40, 48, 56, 72, 88]
    assert [w.size for w in plan.windows(1)] == [8] * 7 + [16, 16, 12]
    exactly = RampPlan(StepRamp([1.48], factor=2.0), 100, 8, max_epochs=3, max_batch_size=16)
    assert [w.start for w in exactly.windows(1)][6:9] == [48, 64, 80]
    assert [(p.start_epoch, p.updates) for p in plan.phases] == [(0, 13 + 7), (1.56, 3 + 7)]


def test_the_tail_of_an_epoch_has_what_is_left_at_an_undiminished_lr() -> None:
    plan = RampPlan(StepRamp([1], factor=2.0), 50, 16, max_epochs=2, max_batch_size=32)
    assert [(w.size, w.lr_factor) for w in plan.windows(0)] == [(16, 1), (16, 1), (16, 1), (2, 1)]
    assert [(w.size, w.lr_factor) for w in plan.windows(1)] == [(32, 1), (18, 1)]


def test_drop_last_leaves_a_short_tail_out() -> None:
    plan = RampPlan(StepRamp([1], factor=2.0), 50, 16, max_epochs=2, max_batch_size=32, drop_last=True)
    assert [[w.size for w in plan.windows(e)] for e in (0, 1)] == [[16, 16, 16], [32]]
    assert (plan.total_updates, plan.fixed_batch_updates, plan.total_samples) == (4, 6, 80)


def test_drop_last_never_leaves_a_whole_epoch_out() -> None:
    plan = RampPlan(StepRamp([1], factor=10.0), 50, 16, max_epochs=2, max_batch_size=160, drop_last=True)
    assert [w.size for w in plan.windows(1)] == [50]


def test_a_world_that_does_not_divide_rounds_up_and_says_so() -> None:
    plan = RampPlan(
        StepRamp([1], factor=5.0), 1000, 100, world_size=3, max_epochs=2, max_batch_size=400, max_micro_batch_size=32
    )
    first, second = plan.phases
    assert (first.batch_size, first.micro_batch_size, first.accumulation) == (102, 17, 2)  # 34 each
    assert first.lr_factor == 1.0
    assert second.batch_size == 399  # the cap, rounded down
    assert second.lr_factor == pytest.approx(399 / 102 / 5, rel=NOISE_PATH)
    assert plan.total_samples == 2 * 3 * 334  # as DistributedSampler pads
    rounding = "batch_size=100 is not a multiple of the 3 devices: each takes 34, so updates begin with 102"
    assert any(rounding in told for told in plan.warnings)
    assert any("max_batch_size=400 is not a multiple of the 3 devices" in told for told in plan.warnings)


def test_a_loader_that_gives_less_than_the_data_set_is_followed() -> None:
    plan = RampPlan(StepRamp([1]), CIFAR, 128, max_epochs=2, device_samples=1000, lr=0.1)
    assert sum(w.size for w in plan.windows(0)) == 1000
    assert plan.largest_batch_size == 1000
    assert plan.phases[0].noise_scale == pytest.approx(0.1 * (CIFAR / 128 - 1))  # N stays the data set


def test_cap_is_not_above_an_epochs_samples() -> None:
    plan = RampPlan(StepRamp([1], factor=10.0), 100, 16, max_epochs=2, max_batch_size=10_000)
    assert plan.windows(1)[0].batch_size == 100
    assert plan.windows(1)[0].lr_factor == pytest.approx(100 / 16 / 10)
    assert any("max_batch_size=10000 is more than an epoch has" in told for told in plan.warnings)


# ---------------------------------------------------------------------------------------------- never above the start
FALLING: list[RampSchedule] = [
    *(StepRamp([3, 6], factor, "increase") for factor in (1.1, 1.2, 1.5, 2.0, 3.0, 5.0)),
    *(StepRamp([3, 6], factor, "hybrid") for factor in (1.1, 1.2, 1.5, 2.0, 3.0, 5.0)),
    *(StepRamp([3, 6], factor, "decay") for factor in (1.1, 5.0)),
    *map(CurveRamp, [*CURVES, Cosine(), Cosine(floor=0.1), Step([0.3, 0.6])]),
    CurveRamp(CosineRestarts(first_cycle=0.3, floor=0.05)),
    CurveRamp(WarmupStableDecay(floor=0.2)),
    CurveRamp(Polynomial(power=1.0)),
]


def factors_and_paths(world: int, micro: int, cap: int, lr_rule: Any) -> tuple[float, float]:
    """The largest factor on the learning rate, and how far the noise path ever is from its schedule."""
    rule = BatchRule.for_run(world * micro, cap, world, 100_000 // world, lr_rule)
    power = 1.0 if lr_rule == "linear" else 0.5
    largest = off = 0.0
    for schedule in FALLING:
        for point in range(41):
            progress = point / 41
            decay = schedule.decay(10 * progress, progress)
            batch = rule.batch_size(schedule.batch_decay(10 * progress, progress))
            assert batch % world == 0
            assert world <= batch <= rule.cap
            factor = rule.lr_factor(decay, batch)
            largest = max(largest, factor)
            off = max(off, abs(factor / (batch / rule.start) ** power - decay))
    return largest, off


FEW_WORLDS = (1, 2, 3, 4, 7, 8, 31, 64)


@pytest.mark.parametrize("lr_rule", ["linear", "sqrt"])
@pytest.mark.parametrize(
    "world",
    [world if world in FEW_WORLDS else pytest.param(world, marks=pytest.mark.slow) for world in range(1, 65)],
)
def test_a_falling_schedule_never_raises_the_learning_rate(world: int, lr_rule: Any) -> None:
    for micro in range(1, 9):
        for cap in (world * micro, 3 * world * micro + 1, 10_000):
            largest, off = factors_and_paths(world, micro, max(cap, world * micro), lr_rule)
            assert largest <= 1 + 1e-12, (micro, cap)
            assert off <= 1e-12, "lr / B**p is on the schedule's path, whatever the batch was rounded to"


@pytest.mark.parametrize(("world", "batch_size"), [(64, 64), (8, 8), (2, 2), (64, 128), (8, 256), (1, 1), (1, 3)])
@pytest.mark.parametrize("ends", [{"max_epochs": 6}, {"max_updates": 150}])
def test_no_window_of_a_cosine_has_more_than_the_rate_at_the_start(
    world: int, batch_size: int, ends: dict[str, int]
) -> None:
    plan = RampPlan(CurveRamp(Cosine()), 2000, batch_size, world, max_batch_size=800, lr=0.1, **ends)  # type: ignore[arg-type]
    windows = [w for _, w in all_windows(plan)]
    assert max(w.lr_factor for w in windows) <= 1 + 1e-12  # 1.98 with one sample on each of 64 devices
    assert max(w.batch_size for w in windows) > batch_size


def test_a_batch_that_grows_in_coarse_steps_is_told() -> None:
    plan = RampPlan(StepRamp([3, 6], factor=1.2), 100_000, 64, 64, max_epochs=10, lr=0.1)
    assert [(p.batch_size, round(p.lr_factor, 3)) for p in plan.phases] == [(64, 1.0), (64, 0.833), (64, 0.694)]
    assert any("the learning rate falls instead, to 0.5 of its start before the step from 64 to 128" in told
               for told in plan.warnings)  # fmt: skip
    assert RampPlan(StepRamp([3, 6], factor=1.2), 100_000, 512, 64, max_epochs=10).warnings == []


class Rises(Curve):
    def __call__(self, progress: float, width: float = 0.0) -> float:
        return 1.0 + 4.0 * progress * (1.0 - progress)


def test_a_schedule_that_rises_above_its_start_is_told() -> None:
    plan = RampPlan(CurveRamp(Rises()), 1000, 8, 8, max_epochs=4)
    assert {w.batch_size for _, w in all_windows(plan)} == {8}  # one sample per device is the least
    assert any("the learning rate reaches 2 times its start" in told for told in plan.warnings)
    assert RampPlan(CurveRamp(Rises()), 1000, 16, 1, max_epochs=4).warnings == []  # there the batch shrinks


def test_an_adaptive_batch_grows_by_whole_samples_per_device() -> None:
    plan = RampPlan(AdaptiveRamp(growth=1.2), 10_000, 64, 64, max_epochs=3, max_batch_size=640, lr_rule="sqrt")
    grown = plan.grown(77, epoch=1, start=640)
    assert {(w.batch_size, w.lr_factor) for w in grown.windows(2)} == {(128, 2**-0.5)}
    assert plan.rule.whole(77) == 128
    assert plan.rule.whole(700) == 640


# ---------------------------------------------------------------------------------------------- runs ended by updates
def test_a_step_ramp_ended_by_updates_stops_within_an_epoch() -> None:
    plan = RampPlan(StepRamp([1], factor=2.0), 100, 10, max_updates=13, max_batch_size=20)
    assert (plan.total_updates, plan.total_samples, plan.epochs) == (13, 160, 1.6)
    assert [p.updates for p in plan.phases] == [10, 3]
    assert len(plan.windows(1)) == 5  # the loader still has the whole epoch
    assert plan.fixed_batch_updates == 16


@pytest.mark.parametrize("curve", CURVES, ids=lambda curve: type(curve).__name__)
@pytest.mark.parametrize("lr_rule", ["linear", "sqrt"])
def test_a_curve_ended_by_updates_ends_with_the_run(curve: Curve, lr_rule: Any) -> None:
    plan = RampPlan(CurveRamp(curve), 3000, 16, max_updates=2000, lr_rule=lr_rule)
    assert plan.total_updates == 2000
    windows = all_windows(plan)
    assert plan.total_samples == sum(w.size for _, w in windows)
    # The run without a ramp would have ended long before; at the true end the curve has reached its end, too. A point
    # of a curve is moved by less than two of its largest windows: one for the length, one for the last window itself.
    end = plan.total_samples
    largest = max(w.size for _, w in windows)
    for epoch, w in windows[:: len(windows) // 50]:
        growth = w.batch_size / plan.starting_batch_size
        value = w.lr_factor / (growth if lr_rule == "linear" else growth**0.5)
        done = (epoch * 3000 + w.start) / end
        slack = 2 * largest / end
        near = [curve(max(0.0, min(1.0, done + slack * s / 10)), w.size / end) for s in range(-10, 11)]
        assert min(near) * (1 - slack) <= value <= max(near) * (1 + slack)  # of a climb, the width has it, too


def test_the_earlier_of_epochs_and_updates_ends_the_run() -> None:
    by_epochs = RampPlan(CurveRamp(Cosine()), 1000, 10, max_epochs=3)
    late = RampPlan(CurveRamp(Cosine()), 1000, 10, max_epochs=3, max_updates=10_000)
    exact = RampPlan(CurveRamp(Cosine()), 1000, 10, max_epochs=3, max_updates=by_epochs.total_updates)
    assert [all_windows(plan) for plan in (late, exact)] == [all_windows(by_epochs)] * 2
    early = RampPlan(CurveRamp(Cosine()), 1000, 10, max_epochs=3, max_updates=60)
    assert (early.total_updates, early.epochs < 3) == (60, True)
    assert early.windows(0)[-1].batch_size > by_epochs.windows(0)[-1].batch_size


# ---------------------------------------------------------------------------------------------- decided while training
def test_adaptive_rule_grows_past_the_ratio_and_stops_at_the_cap() -> None:
    ramp = AdaptiveRamp(ratio=1.5, growth=2.0)
    assert ramp.next_batch_size(100, 150.0, 1000) == 100
    assert ramp.next_batch_size(100, 150.1, 1000) == 200
    assert ramp.next_batch_size(100, 1e9, 150) == 150
    assert ramp.next_batch_size(150, math.inf, 150) == 150
    assert ramp.next_batch_size(100, math.inf, 1000) == 200
    assert ramp.next_batch_size(100, None, 1000) == 100
    assert ramp.next_batch_size(100, math.nan, 1000) == 100
    assert AdaptiveRamp(growth=1.001).next_batch_size(10, 100.0, 1000) == 11  # a growth that rounds away grows by 1


@pytest.mark.parametrize(("lr_rule", "factor"), [("linear", 1.0), ("sqrt", 2**-0.5)])
def test_a_grown_plan_agrees_with_the_old_one_up_to_the_growth(lr_rule: Any, factor: float) -> None:
    plan = RampPlan(AdaptiveRamp(), 200, 10, max_epochs=3, lr_rule=lr_rule, max_batch_size=40)
    grown = plan.grown(20, epoch=1, start=60)
    assert grown.windows(0) == plan.windows(0)
    assert [w.size for w in grown.windows(1)] == [10] * 6 + [20] * 7
    assert grown.windows(1)[:6] == plan.windows(1)[:6]
    assert [w.lr_factor for w in grown.windows(1)[6:]] == pytest.approx([factor] * 7, rel=NOISE_PATH)
    assert (plan.total_updates, grown.total_updates) == (60, 20 + 13 + 10)
    again = grown.grown(40, epoch=2, start=0)
    assert [p.batch_size for p in again.phases] == [10, 20, 40]
    resumed = RampPlan(
        AdaptiveRamp(), 200, 10, max_epochs=3, lr_rule=lr_rule, max_batch_size=40, growths=[[1, 60, 20], [2, 0, 40]]
    )  # type: ignore[arg-type]
    assert resumed == again
    assert all_windows(resumed) == all_windows(again)


@pytest.mark.parametrize("growth", [(10, 2, 0), (50, 2, 0), (30, 1, 60), (30, 0, 100), (30, 2, -1)])
def test_growths_that_are_none_are_refused(growth: tuple[int, int, int]) -> None:
    plan = RampPlan(AdaptiveRamp(), 200, 10, max_epochs=3, max_batch_size=40).grown(20, epoch=1, start=60)
    with pytest.raises(ValueError, match="does not grow the batch from 20"):
        plan.grown(*growth)
    with pytest.raises(ValueError, match="StepRamp is known ahead"):
        RampPlan(StepRamp([1]), 200, 10, max_epochs=3, growths=(Growth(1, 0, 20),))


@pytest.mark.parametrize("ends", [{"max_epochs": 10}, {"max_updates": 1000}])
def test_a_ramp_that_begins_later_runs_from_there_to_the_end(ends: dict[str, int]) -> None:
    waiting = RampPlan(CurveRamp(Cosine()), 1000, 10, begin_samples=None, **ends)  # type: ignore[arg-type]
    assert {(w.batch_size, w.lr_factor) for _, w in all_windows(waiting)} == {(10, 1.0)}
    begun = waiting.begun(2500)
    for epoch, window in all_windows(begun):
        if epoch * 1000 + window.start < 2500:
            assert window in waiting.windows(epoch)
    ramped = [(e * 1000 + w.start, w) for e, w in all_windows(begun) if e * 1000 + w.start >= 2500]
    assert ramped[0][1].lr_factor == 1.0
    assert ramped[-1][1].batch_size == 100
    length = begun.epochs * 1000 - 2500
    middle = next(w for done, w in ramped if done >= 2500 + length / 2)
    assert 10 / middle.batch_size * middle.lr_factor == pytest.approx(0.5, abs=0.05)  # half the cosine, half the rest
    assert begun.total_updates == sum(p.updates for p in begun.phases)


def test_milestones_that_passed_before_the_ramp_began_act_at_its_beginning() -> None:
    plan = RampPlan(StepRamp([1, 3], factor=2.0), 100, 10, max_epochs=5, max_batch_size=40, begin_samples=250)
    assert [w.size for w in plan.windows(1)] == [10] * 10
    assert [w.size for w in plan.windows(2)] == [10] * 5 + [20, 20, 10]
    assert [w.batch_size for w in plan.windows(3)] == [40, 40, 40]


# ---------------------------------------------------------------------------------------------- warnings
def test_a_phase_shorter_than_three_momentum_transients_is_told() -> None:
    # 5120 / (50000 x 0.02) = 5.12 epochs to catch up
    fine = cifar("increase", 3200, 0.5, 0.98)
    assert not any("shorter" in told for told in fine.warnings)
    short = RampPlan(StepRamp([3, 20], factor=5.0), CIFAR, 3200, max_epochs=30, max_batch_size=5120, momentum=0.98)
    told = [line for line in short.warnings if "shorter" in line]
    assert len(told) == 2
    assert "phase of 3 epochs from epoch 0" in told[0]
    assert "3 x 3.2 epochs" in told[0]
    assert "phase of 10 epochs from epoch 20" in told[1]
    assert "3 x 5.12 epochs" in told[1]


def test_high_momentum_advises_a_reduced_lr_at_first() -> None:
    assert any("reduced in the first epochs" in told for told in imagenet("increase", 16_384, 0.95).warnings)
    assert imagenet("increase", 8192, 0.9).warnings == []


def test_a_run_that_ends_by_updates_before_a_milestone_says_so() -> None:
    plan = RampPlan(StepRamp([1, 5]), 100, 10, max_epochs=8, max_updates=13)
    assert any("before the milestones [5.0]" in told for told in plan.warnings)


def test_an_adaptive_plan_says_that_it_is_an_upper_bound() -> None:
    assert "grows no more" in RampPlan(AdaptiveRamp(), 200, 10, max_epochs=3).warnings[0]


# ---------------------------------------------------------------------------------------------- refusals
@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: StepRamp([60, 30]), r"milestones=\[60, 30\] is not a list of epochs that are above 0 and strictly"),
        (lambda: StepRamp([0, 30]), "above 0"),
        (lambda: StepRamp([]), "give for example"),
        (lambda: StepRamp([float("nan")]), "above 0"),
        (lambda: StepRamp(60), "is not a list"),  # type: ignore[arg-type]
        (lambda: StepRamp([60], factor=1.0), r"factor=1\.0 is not allowed; give a number above 1"),
        (lambda: StepRamp([60], mode="grow"), "mode='grow' is not allowed; give one of increase, hybrid, decay"),  # type: ignore[arg-type]
        (lambda: CurveRamp(math.cos), "is no Curve"),  # type: ignore[arg-type]
        (lambda: AdaptiveRamp(ratio=0), "ratio=0 is not allowed"),
        (lambda: AdaptiveRamp(growth=1.0), r"growth=1\.0 is not allowed"),
        (lambda: AdaptiveRamp(check_every=0), "check_every=0 is not allowed; give a whole number of updates"),
        (lambda: cifar("increase", max_epochs=160), r"milestones \[160\.0\] are not before the end of the run, which "),
        (lambda: cifar("increase", max_epochs=None), "the end of the run is not known"),
        (
            lambda: cifar("increase", max_batch_size=100, world_size=2, max_micro_batch_size=32),
            r"max_batch_size=100 is below the starting global batch of 128 \(micro 32 x world 2 x accumulation 2\); "
            "raise it or lower the loader's batch_size",
        ),
        (lambda: cifar("increase", world_size=200), "batch_size=128 is below world_size=200"),
        (lambda: cifar("increase", batch_size=0), "batch_size=0 is not allowed"),
        (lambda: cifar("increase", world_size=True), "world_size=True"),
        (lambda: cifar("increase", max_micro_batch_size=0), "max_micro_batch_size=0"),
        (lambda: cifar("increase", max_updates=-1), "max_updates=-1"),
        (lambda: cifar("increase", lr_rule="cubic"), "lr_rule='cubic' is not allowed; give linear or sqrt"),
        (lambda: cifar("increase", momentum=1.0), r"momentum=1\.0 is not allowed"),
        (lambda: cifar("increase", lr=0.0), r"lr=0\.0 is not allowed"),
        (lambda: cifar("increase", begin_samples=-1), "begin_samples=-1"),
        (lambda: cifar("increase", drop_last=True, device_samples=100), "with drop_last there is no update"),
        (lambda: RampPlan(AdaptiveRamp(), 100, 10, max_updates=7), "an AdaptiveRamp needs max_epochs"),
        (lambda: RampPlan(Cosine(), 100, 10, max_epochs=7), "give a StepRamp, a CurveRamp or an AdaptiveRamp"),  # type: ignore[arg-type]
    ],
)
def test_bad_input_is_refused_with_what_to_do(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


# ---------------------------------------------------------------------------------------------- windows
def test_micro_batches_are_fewest_and_differ_by_one_at_most() -> None:
    assert micro_batch_sizes(12, None) == (12,)
    assert micro_batch_sizes(12, 4) == (4, 4, 4)
    assert micro_batch_sizes(13, 4) == (4, 3, 3, 3)
    assert micro_batch_sizes(3, 4) == (3,)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8))
def test_weights_make_the_accumulated_loss_the_mean_over_samples(sizes: list[int]) -> None:
    means = [Fraction(7 * i + 3, 5) for i in range(len(sizes))]
    exact = sum(m * mean for m, mean in zip(sizes, means, strict=True)) / sum(sizes)
    accumulated = sum(w * float(mean) for w, mean in zip(window_weights(sizes), means, strict=True)) / len(sizes)
    assert accumulated == pytest.approx(float(exact), rel=1e-14)
    if len(set(sizes)) == 1:
        assert window_weights(sizes) == [1.0] * len(sizes)


def windows_of(counts: Sequence[int]) -> EpochWindows:
    windows, start = [], 0
    for count in counts:
        windows.append(Window(start, 2 * count, (2,) * count, 1.0, 2 * count))
        start += 2 * count
    return EpochWindows(windows)


def test_window_accumulation_steps_exactly_at_window_ends() -> None:
    windows = windows_of([1, 2, 3, 4, 2])
    zeroed, stepped, counts = [], [], []
    for batch_idx in range(12):
        accumulate = windows.accumulation_at(batch_idx)
        counts.append(int(accumulate))
        if batch_idx % accumulate == 0:
            zeroed.append(batch_idx)
        ready = batch_idx + 1
        if ready % accumulate == 0:
            stepped.append(batch_idx)
    assert zeroed == [0, 1, 3, 6, 10]
    assert stepped == [0, 2, 5, 9, 11]
    assert counts == [1, 2, 2, 3, 3, 3, 4, 4, 4, 4, 2, 2]


def test_window_accumulation_is_an_int_in_every_other_way() -> None:
    accumulate = WindowAccumulation(4, frozenset({0, 4, 9}))
    assert isinstance(accumulate, int)
    assert accumulate == 4
    assert 10 / accumulate == 2.5
    assert math.ceil(10 / accumulate) == 3
    assert accumulate % 3 == 1  # on the left it is divided like any other
    for other in (pickle.loads(pickle.dumps(accumulate)), copy.deepcopy(accumulate)):
        assert (other, other.boundaries) == (4, {0, 4, 9})
        assert 9 % other == 0


def test_micro_batches_find_their_windows() -> None:
    windows = RampPlan(StepRamp([1]), 23, 10, max_epochs=2, max_micro_batch_size=4).windows(0)
    assert [w.micro_sizes for w in windows] == [(4, 3, 3), (4, 3, 3), (3,)]
    assert windows.micro_sizes == [4, 3, 3, 4, 3, 3, 3]
    assert windows.first_micro_batches == [0, 3, 6, 7]
    assert [windows.index_of(i) for i in range(7)] == [0, 0, 0, 1, 1, 1, 2]
    assert [windows.first_of_window(i) for i in range(7)] == [0, 0, 0, 3, 3, 3, 6]
    assert [windows.weight_of(i) for i in range(7)] == pytest.approx([1.2, 0.9, 0.9, 1.2, 0.9, 0.9, 1.0])
    assert [windows.next_window_from(i) for i in (0, 1, 3, 4, 6)] == [windows[i] for i in (0, 1, 1, 2, 2)]
    assert windows.next_window_from(7) is None
    for outside in (-1, 7):
        with pytest.raises(IndexError):
            windows.index_of(outside)


# ---------------------------------------------------------------------------------------------- speed and YAML
def test_a_long_run_is_planned_in_half_a_second() -> None:
    def seconds(plan: RampPlan) -> float:
        start = time.process_time()
        updates = plan.total_updates
        assert updates == sum(len(plan.windows(epoch)) for epoch in range(200))
        return time.process_time() - start

    assert seconds(cifar("decay")) < 0.5
    curve = RampPlan(CurveRamp(Step([0.99])), CIFAR, 128, max_epochs=200)  # 391 windows in almost every epoch
    assert seconds(curve) < 2.0  # walked twice, and each window asks the curve: 0.4 s on one idle core


def test_a_million_epochs_are_not_walked_through() -> None:
    plan = RampPlan(StepRamp([10, 500_000]), 100, 10, max_epochs=10**6, max_updates=9 * 10**6)
    assert plan.total_updates == plan.total_samples // 10 == 9 * 10**6  # the cap is the start


class TakesARamp:
    def __init__(self, schedule: RampSchedule) -> None:
        self.schedule = schedule


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("{class_path: StepRamp, init_args: {milestones: [60, 120, 160]}}", StepRamp([60, 120, 160])),
        (
            "{class_path: lightning_lr.batch_size.StepRamp, init_args: {milestones: [2.5], factor: 2, mode: hybrid}}",
            StepRamp([2.5], 2.0, "hybrid"),
        ),
        (
            "{class_path: CurveRamp, init_args: {curve: {class_path: Cosine, init_args: {warmup: 0.05}}}}",
            CurveRamp(Cosine(warmup=0.05)),
        ),
        ("AdaptiveRamp", AdaptiveRamp()),
        ("{class_path: AdaptiveRamp, init_args: {growth: 1.5, check_every: 50}}", AdaptiveRamp(1.0, 1.5, 50)),
    ],
)
def test_yaml_names_a_ramp_and_survives_a_dump(yaml: str, expected: RampSchedule) -> None:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TakesARamp, "callback")
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # so named before 4.49
    config = parser.parse_string(f"callback:\n  schedule: {yaml}\n")
    assert instantiate(config).callback.schedule == expected
    dumped = parser.dump(config)
    assert re.search(rf"class_path: lightning_lr\S*\.{type(expected).__name__}\n", dumped)
    assert instantiate(parser.parse_string(dumped)).callback.schedule == expected


def test_schedules_and_plans_are_hashable_and_survive_pickling() -> None:
    for schedule in (StepRamp([60, 120]), CurveRamp(Cosine()), AdaptiveRamp()):
        plan = RampPlan(schedule, 1000, 10, max_epochs=200)
        again = pickle.loads(pickle.dumps(plan))
        assert (again, hash(again)) == (plan, hash(plan))
        assert again.windows(0) == plan.windows(0)


@pytest.mark.parametrize("schedule", [CurveRamp(Cosine()), StepRamp([1], factor=2)])
def test_a_run_that_updates_end_long_before_its_epochs_is_planned_at_once(schedule: Any) -> None:
    """It took hours: the updates of all the epochs were counted, to see that there are more."""
    begin = time.process_time()
    plan = RampPlan(schedule, 48, 8, max_epochs=10**9, max_updates=10, max_batch_size=16)
    assert plan.total_updates == 10
    assert plan.total_updates == RampPlan(schedule, 48, 8, max_updates=10, max_batch_size=16).total_updates
    assert time.process_time() - begin < 2
