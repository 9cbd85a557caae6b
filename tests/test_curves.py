"""Curves against torch's schedulers and the papers' formulas, their warm-up, phases, scheduler, YAML and refusals.

Tolerances: a closed form against a closed form, and against torch's chained products over a few hundred updates,
differs by rounding alone, at most 1e-14 where measured; 1e-9 leaves room for that and for nothing that could be a
formula's.
"""

from __future__ import annotations

import argparse
import copy
import inspect
import io
import math
import pickle
import re
from collections.abc import Callable, Sequence
from dataclasses import FrozenInstanceError
from fractions import Fraction
from functools import partial
from itertools import pairwise
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch.optim import lr_scheduler

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

TOLERANCE = 1e-9

ONE_OF_EACH: list[Curve] = [
    Constant(warmup=0.05),
    Cosine(warmup=0.1, floor=0.01),
    CosineRestarts(first_cycle=0.1, cycle_growth=1.5, warmup=0.05, floor=0.1, peak_decay=0.7),
    SlantedTriangle(),
    Step(warmup=0.05),
    Polynomial(warmup=0.05, floor=0.001),
    WarmupStableDecay(floor=0.1),
]

WARMED_UP: list[Callable[[float], Curve]] = [
    lambda warmup: Constant(warmup=warmup),
    lambda warmup: Cosine(warmup=warmup),
    lambda warmup: CosineRestarts(warmup=warmup),
    lambda warmup: Step(milestones=[0.5, 0.75], warmup=warmup),
    lambda warmup: Polynomial(warmup=warmup),
    lambda warmup: WarmupStableDecay(warmup=warmup, decay=0.3),
]


def concrete(base: type[Curve]) -> list[type[Curve]]:
    """The curves of the package that inherit from a class, at any depth: one more is tested without a list."""
    found = [made for child in base.__subclasses__() for made in (child, *concrete(child))]
    return [made for made in found if made.__module__.startswith("lightning_lr.") and not inspect.isabstract(made)]


KINDS = concrete(Curve)
ONE_OF_EACH += [kind() for kind in KINDS if kind not in {type(curve) for curve in ONE_OF_EACH}]
WARMED_UP += [
    partial(kind)
    for kind in KINDS
    if "warmup" in inspect.signature(kind).parameters and kind not in {type(make(0.1)) for make in WARMED_UP}
]


def named(curve: object) -> str:
    return repr(curve)


def sgd(*lrs: float) -> torch.optim.SGD:
    """An optimizer with one group for each learning rate."""
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs], lr=1.0)


def run(optimizer: torch.optim.Optimizer, scheduler: lr_scheduler.LRScheduler, updates: int) -> list[float]:
    """The first group's learning rate at each of the next updates."""
    seen = []
    for _ in range(updates):
        seen.append(float(optimizer.param_groups[0]["lr"]))
        optimizer.step()
        scheduler.step()
    return seen


def torch_factors(make: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler], updates: int) -> list[float]:
    optimizer = sgd(1.0)
    return run(optimizer, make(optimizer), updates)


def factors(curve: Curve, total: int, *, width: bool) -> list[float]:
    return [curve(t / total, 1 / total if width else 0.0) for t in range(total)]


def largest_difference(ours: Sequence[float], theirs: Sequence[float]) -> float:
    assert len(ours) == len(theirs)
    return max(abs(a - b) for a, b in zip(ours, theirs, strict=True))


# --- against torch and the papers -------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [1, 2, 7, 200, 1000])
@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_cosine_is_torch_cosine_annealing(total: int, floor: float) -> None:
    theirs = torch_factors(lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=total, eta_min=floor), total)
    assert largest_difference(factors(Cosine(floor=floor), total, width=False), theirs) < TOLERANCE


def test_warm_up_and_cosine_are_torch_linear_then_cosine() -> None:
    total, climb = 200, 20
    theirs = torch_factors(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=1 / climb, total_iters=climb - 1),
                lr_scheduler.CosineAnnealingLR(o, T_max=total - climb, eta_min=0.01),
            ],
            milestones=[climb],
        ),
        total,
    )
    assert largest_difference(factors(Cosine(warmup=0.1, floor=0.01), total, width=True), theirs) < TOLERANCE


@pytest.mark.parametrize(("first", "growth", "total"), [(10, 2, 100), (10, 1, 100), (7, 3, 250), (1, 2, 64)])
@pytest.mark.parametrize("floor", [0.0, 0.05])
def test_cosine_restarts_are_torch_warm_restarts_for_integer_growth(
    first: int, growth: int, total: int, floor: float
) -> None:
    theirs = torch_factors(
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=first, T_mult=growth, eta_min=floor), total
    )
    curve = CosineRestarts(first_cycle=first / total, cycle_growth=growth, floor=floor)
    assert largest_difference(factors(curve, total, width=False), theirs) < TOLERANCE


def sgdr(at: Fraction, first: Fraction, growth: Fraction, floor: float, peak_decay: float) -> float:
    """Equation 5 of SGDR, with the cycle found in exact arithmetic."""
    cycle, start, length = 0, Fraction(0), first
    while at >= start + length:
        cycle, start, length = cycle + 1, start + length, length * growth
    peak = peak_decay**cycle
    return floor + 0.5 * (peak - floor) * (1 + math.cos(math.pi * float((at - start) / length)))


@pytest.mark.parametrize(
    ("first", "growth", "total"),
    [
        (Fraction(1, 10), Fraction(3, 2), 160),  # restarts at updates 16, 40, 76 and 130
        (Fraction(1, 10), Fraction(3, 2), 1000),
        (Fraction(1, 10), Fraction(1), 1000),  # sums of the float 0.1 pass above and below the tenths
        (Fraction(1, 7), Fraction(4, 3), 441),
        (Fraction(1, 20), Fraction(11, 10), 2000),
        (Fraction(1, 3), Fraction(2), 300),  # the second cycle ends with the run
        (Fraction(1), Fraction(2), 50),
    ],
)
@pytest.mark.parametrize(("floor", "peak_decay"), [(0.0, 1.0), (0.01, 0.8)])
def test_cosine_restarts_are_the_sgdr_formula_for_fractional_growth(
    first: Fraction, growth: Fraction, total: int, floor: float, peak_decay: float
) -> None:
    curve = CosineRestarts(float(first), float(growth), floor=floor, peak_decay=peak_decay)
    paper = [sgdr(Fraction(t, total), first, growth, floor, peak_decay) for t in range(total)]
    assert largest_difference(factors(curve, total, width=False), paper) < TOLERANCE


def test_cosine_restarts_start_after_the_warm_up_with_lengths_of_the_whole_run() -> None:
    curve = CosineRestarts(first_cycle=0.1, cycle_growth=1.5, warmup=0.2)
    shifted = [Fraction(t, 200) - Fraction(1, 5) for t in range(40, 200)]
    paper = [sgdr(share, Fraction(1, 10), Fraction(3, 2), 0.0, 1.0) for share in shifted]
    assert largest_difference([curve(t / 200, 1 / 200) for t in range(40, 200)], paper) < TOLERANCE
    assert curve.restarts() == pytest.approx((0.2, 0.3, 0.45, 0.675), abs=1e-12)


def test_a_cycle_boundary_snaps_within_a_billionth() -> None:
    curve = CosineRestarts(first_cycle=0.25, cycle_growth=1.0, peak_decay=0.5)
    assert curve(0.5 - 5e-10) == 0.25
    assert curve(0.5) == 0.25
    assert curve(0.5 - 2e-9) == pytest.approx(0.0, abs=1e-12)
    assert CosineRestarts().restarts()[3] > 0.7  # the boundary at 0.1 + 0.2 + 0.4 rounds to above 0.7
    assert CosineRestarts()(0.7) == 1.0


def test_cycles_too_short_to_tell_apart_leave_the_run_at_the_top_of_one() -> None:
    assert CosineRestarts(first_cycle=1e-12, cycle_growth=1.01)(0.0) == 1.0


def test_restarts_name_the_start_of_every_cycle_and_not_the_end_of_the_run() -> None:
    assert CosineRestarts().restarts() == pytest.approx((0.0, 0.1, 0.3, 0.7), abs=1e-12)
    tenths = CosineRestarts(cycle_growth=1.0)
    assert tenths.restarts() == pytest.approx([i / 10 for i in range(10)], abs=1e-12)
    assert [tenths(p) for p in tenths.restarts()] == [1.0] * 10
    assert tenths(1.0) == pytest.approx(0.0, abs=1e-12)
    assert CosineRestarts(first_cycle=1.0).restarts() == (0.0,)


def test_a_cycle_peak_never_falls_below_the_floor() -> None:
    curve = CosineRestarts(cycle_growth=1.0, floor=0.3, peak_decay=0.5)
    assert [curve(p) for p in curve.restarts()] == [1.0, 0.5] + [0.3] * 8


def stlr(t: int, total: int, cut_fraction: Fraction, ratio: float) -> float:
    """Equation 3 of ULMFiT with eta_max = 1."""
    cut = math.floor(total * cut_fraction)
    p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / float(cut_fraction) - 1))
    return (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize("cut_fraction", [Fraction(1, 10), Fraction(1, 4), Fraction(3, 10), Fraction(1, 3)], ids=str)
@pytest.mark.parametrize("ratio", [32.0, 8.0])
def test_slanted_triangle_is_ulmfit_wherever_the_cut_is_a_whole_update(cut_fraction: Fraction, ratio: float) -> None:
    curve = SlantedTriangle(float(cut_fraction), ratio)
    totals = [total for total in range(1, 201) if (total * cut_fraction).denominator == 1]
    assert totals
    for total in totals:
        paper = [stlr(t, total, cut_fraction, ratio) for t in range(total)]
        assert largest_difference(factors(curve, total, width=False), paper) < TOLERANCE


@pytest.mark.parametrize("width", [False, True])
@pytest.mark.parametrize("cut_fraction", [Fraction(1, 10), Fraction(3, 10), Fraction(9, 10)], ids=str)
def test_slanted_triangle_is_positive_and_peaks_at_the_cut_for_every_length(
    cut_fraction: Fraction, width: bool
) -> None:
    curve = SlantedTriangle(float(cut_fraction))
    for total in range(1, 201):
        values = factors(curve, total, width=width)
        assert all(0 < value <= 1 for value in values), total
        peak = values.index(max(values))
        assert abs(peak - total * cut_fraction) <= 1, total
        assert abs(peak - math.floor(total * cut_fraction)) <= 1, total


def test_the_formula_of_ulmfit_divides_by_zero_and_turns_negative_which_ours_must_not() -> None:
    tenth = Fraction(1, 10)
    for total in range(1, 10):
        with pytest.raises(ZeroDivisionError):
            stlr(0, total, tenth, 32.0)
        assert min(factors(SlantedTriangle(), total, width=False)) > 0
    for total in (15, 19):
        assert stlr(total - 1, total, tenth, 32.0) < 0
        assert SlantedTriangle()((total - 1) / total) > 0


def test_width_does_not_change_slanted_triangle() -> None:
    curve = SlantedTriangle()
    assert factors(curve, 77, width=True) == factors(curve, 77, width=False)
    assert (curve(0.0), curve(0.1), curve(1.0)) == (1 / 32, 1.0, 1 / 32)


@pytest.mark.parametrize("total", [1, 3, 200, 999])
def test_polynomial_is_the_lars_recipe_and_torch_polynomial(total: int) -> None:
    ours = factors(Polynomial(), total, width=False)
    assert largest_difference(ours, [(1 - t / total) ** 2 for t in range(total)]) < TOLERANCE
    theirs = torch_factors(lambda o: lr_scheduler.PolynomialLR(o, total_iters=total, power=2.0), total)
    assert largest_difference(ours, theirs) < TOLERANCE


@pytest.mark.parametrize("total", [200, 1000])
def test_step_is_torch_multi_step(total: int) -> None:
    ours = factors(Step(), total, width=False)
    milestones = [total * 3 // 10, total * 6 // 10, total * 8 // 10]
    theirs = torch_factors(lambda o: lr_scheduler.MultiStepLR(o, milestones=milestones, gamma=0.1), total)
    assert largest_difference(ours, theirs) < TOLERANCE


def test_step_milestones_are_shares_of_the_whole_run_and_snap() -> None:
    curve = Step(milestones=[0.3, 0.6], factor=0.5, warmup=0.1)
    assert [curve(p, 0.001) for p in (0.2, 0.3 - 2e-9, 0.3 - 5e-10, 0.3, 0.1 * 3, 0.6, 1.0)] == [
        1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]  # fmt: skip


@pytest.mark.parametrize("floor", [0.0, 0.1])
def test_warmup_stable_decay_is_torch_linear_constant_linear(floor: float) -> None:
    total, climb, fall = 200, 10, 40
    theirs = torch_factors(
        lambda o: lr_scheduler.SequentialLR(
            o,
            [
                lr_scheduler.LinearLR(o, start_factor=1 / climb, total_iters=climb - 1),
                lr_scheduler.ConstantLR(o, factor=1.0),
                lr_scheduler.LinearLR(o, start_factor=1.0, end_factor=floor, total_iters=fall),
            ],
            milestones=[climb, total - fall],
        ),
        total,
    )
    ours = factors(WarmupStableDecay(warmup=0.05, decay=0.2, floor=floor), total, width=True)
    assert largest_difference(ours, theirs) < TOLERANCE


def test_warmup_and_decay_may_fill_the_run_and_decay_may_be_none() -> None:
    triangle = WarmupStableDecay(warmup=0.3, decay=0.7)
    assert [phase.name for phase in triangle.phases()] == ["warm-up", "decay"]
    assert triangle(0.65) == pytest.approx(0.5, abs=1e-12)
    assert WarmupStableDecay(decay=0.0)(1.0) == 1.0


# --- warm-up ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", WARMED_UP)
@pytest.mark.parametrize(("climb", "total"), [(1, 200), (7, 200), (10, 100), (33, 1000), (3, 7)])
def test_update_t_of_a_warm_up_of_w_has_t_plus_one_over_w(
    make: Callable[[float], Curve], climb: int, total: int
) -> None:
    values = factors(make(climb / total), total, width=True)
    assert largest_difference(values[:climb], [(t + 1) / climb for t in range(climb)]) < TOLERANCE
    assert min(values[:climb]) > 0
    assert values[climb] == 1.0  # the body begins at the end of the warm-up, at its start value


@pytest.mark.parametrize("make", WARMED_UP)
def test_an_update_across_the_end_of_the_warm_up_is_at_the_top(make: Callable[[float], Curve]) -> None:
    assert make(0.15)(0.1, 0.1) == 1.0


@pytest.mark.parametrize("make", WARMED_UP)
def test_without_warm_up_width_changes_nothing(make: Callable[[float], Curve]) -> None:
    assert factors(make(0.0), 50, width=True) == factors(make(0.0), 50, width=False)


def test_a_growing_batch_does_not_bend_the_curve() -> None:
    curve = Cosine(warmup=0.1)
    small, large = [i / 100 for i in range(100)], [i / 10 for i in range(1, 10)]
    at = {round(p, 9): curve(p, 0.01) for p in small}
    assert all(curve(p, 0.1) == pytest.approx(at[round(p, 9)], abs=1e-12) for p in large)


# --- progress ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_progress_that_rounding_put_outside_the_run_is_clamped(curve: Curve) -> None:
    assert curve(1.0 + 1e-15, 0.01) == curve(1.0, 0.01)
    assert curve(-1e-15, 0.01) == curve(0.0, 0.01)


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
@pytest.mark.parametrize(("progress", "width"), [(math.nan, 0.0), (0.5, math.nan), (0.5, -0.1)])
def test_a_progress_or_width_that_is_no_share_is_refused(curve: Curve, progress: float, width: float) -> None:
    with pytest.raises(ValueError, match=f"{type(curve).__name__}: progress={progress}, width={width} "):
        curve(progress, width)


# --- phases -----------------------------------------------------------------------------------------------------------


def test_phases_name_the_parts_of_the_run() -> None:
    def names(curve: Curve) -> list[str]:
        return [phase.name for phase in curve.phases()]

    assert Constant(warmup=0.1).phases() == (Phase("warm-up", 0.0, 0.1), Phase("constant", 0.1, 1.0))
    assert names(Cosine()) == ["cosine"]
    assert names(Cosine(warmup=0.1)) == ["warm-up", "cosine"]
    assert names(CosineRestarts(warmup=0.1)) == ["warm-up", "cycle 1", "cycle 2", "cycle 3", "cycle 4"]
    assert SlantedTriangle().phases() == (Phase("climb", 0.0, 0.1), Phase("decay", 0.1, 1.0))
    assert Step(milestones=[0.25, 0.5]).phases() == (
        Phase("step 1", 0.0, 0.25),
        Phase("step 2", 0.25, 0.5),
        Phase("step 3", 0.5, 1.0),
    )
    assert names(Polynomial()) == ["polynomial"]
    assert names(WarmupStableDecay()) == ["warm-up", "stable", "decay"]
    assert names(WarmupStableDecay(warmup=0.0, decay=0.0)) == ["stable"]


def test_phases_of_a_curve_of_the_users_own_are_one() -> None:
    class Half(Curve):
        def __call__(self, progress: float, width: float = 0.0) -> float:
            return 0.5

    assert Half().phases() == (Phase("Half", 0.0, 1.0),)


# --- scheduler --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_scheduler_is_the_curve_and_stays_at_its_end(curve: Curve) -> None:
    optimizer = sgd(0.3, 0.003)
    scheduler = curve.scheduler(optimizer, 200)
    for t in range(200):
        factor = curve(t / 200, 1 / 200)
        assert [group["lr"] for group in optimizer.param_groups] == [0.3 * factor, 0.003 * factor]
        optimizer.step()
        scheduler.step()
    assert run(optimizer, scheduler, 5) == [0.3 * curve(1.0)] * 5


def test_scheduler_asks_no_curve_about_an_update_past_the_end() -> None:
    asked = []

    class Recorded(Curve):
        def __call__(self, progress: float, width: float = 0.0) -> float:
            asked.append((progress, width))
            return 0.5

    optimizer = sgd(0.3)
    run(optimizer, Recorded().scheduler(optimizer, 4), 6)
    assert asked == [(0.0, 0.25), (0.25, 0.25), (0.5, 0.25), (0.75, 0.25), (1.0, 0.0), (1.0, 0.0), (1.0, 0.0)]


def saved_and_loaded(state: dict[str, Any]) -> dict[str, Any]:
    """The state as a checkpoint gives it back, plain types only."""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    loaded: dict[str, Any] = torch.load(file, weights_only=True)
    return loaded


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_scheduler_resumes_where_it_stopped(curve: Curve) -> None:
    straight_optimizer = sgd(0.3)
    straight = run(straight_optimizer, curve.scheduler(straight_optimizer, 200), 200)
    stopped_optimizer = sgd(0.3)
    stopped = curve.scheduler(stopped_optimizer, 200)
    run(stopped_optimizer, stopped, 77)
    resumed_optimizer = sgd(0.3)
    resumed = curve.scheduler(resumed_optimizer, 200)
    resumed_optimizer.load_state_dict(saved_and_loaded(stopped_optimizer.state_dict()))
    resumed.load_state_dict(saved_and_loaded(stopped.state_dict()))
    assert run(resumed_optimizer, resumed, 123) == straight[77:]


def test_a_resumed_scheduler_keeps_the_curve_that_it_was_made_with() -> None:
    saved = saved_and_loaded(Constant().scheduler(sgd(0.3), 10).state_dict())
    optimizer = sgd(0.3)
    scheduler = Polynomial().scheduler(optimizer, 10)
    scheduler.load_state_dict(saved)
    assert run(optimizer, scheduler, 2)[1] == 0.3 * Polynomial()(0.1)


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_curve_and_scheduler_pickle(curve: Curve) -> None:
    curve(0.5)
    copied = pickle.loads(pickle.dumps(curve))
    assert copied == curve
    assert factors(copied, 50, width=True) == factors(curve, 50, width=True)
    optimizer = sgd(0.3)
    scheduler = curve.scheduler(optimizer, 20)
    run(optimizer, scheduler, 5)
    again = pickle.loads(pickle.dumps(scheduler))
    assert run(again.optimizer, again, 15) == run(optimizer, scheduler, 15)


@pytest.mark.parametrize("total", [0, -3, 2.5, 100.0, True, "100", None])
def test_scheduler_refuses_a_number_of_updates_that_is_no_positive_integer(total: Any) -> None:
    with pytest.raises(ValueError, match=rf"Cosine\.scheduler: total_updates={total!r} is not a positive integer"):
        Cosine().scheduler(sgd(1.0), total)


def test_scheduler_takes_a_numpy_integer() -> None:
    optimizer = sgd(1.0)
    assert run(optimizer, Cosine().scheduler(optimizer, np.int64(4)), 4) == factors(Cosine(), 4, width=True)  # type: ignore[arg-type]


# --- construction -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_curves_are_frozen_hashable_values(curve: Curve) -> None:
    curve(0.5)
    again = copy.deepcopy(curve)
    assert again == curve
    assert hash(again) == hash(curve)
    with pytest.raises(FrozenInstanceError):
        curve.floor = 0.5  # type: ignore[attr-defined]


@pytest.mark.parametrize("curve", ONE_OF_EACH, ids=named)
def test_only_a_constant_says_that_it_does_not_decay(curve: Curve) -> None:
    assert curve.decays == (curve(1.0) < 1.0)


def test_numbers_of_any_kind_are_kept_as_plain_floats() -> None:
    curve = CosineRestarts(np.float32(0.5), 2, Fraction(1, 4), 0)  # type: ignore[arg-type]
    assert repr(curve) == "CosineRestarts(first_cycle=0.5, cycle_growth=2.0, warmup=0.25, floor=0.0, peak_decay=1.0)"
    assert repr(Step([np.float64(0.5)])) == "Step(milestones=(0.5,), factor=0.1, warmup=0.0)"


def test_step_keeps_a_list_of_milestones_as_a_tuple() -> None:
    milestones = [0.5, 0.75]
    curve = Step(milestones=milestones)
    milestones.append(0.9)
    assert curve.milestones == (0.5, 0.75)
    assert curve == Step(milestones=(0.5, 0.75))
    assert Step().milestones == (0.3, 0.6, 0.8)


NO_NUMBER = [math.nan, math.inf, -math.inf, True, "0.1", None]

REFUSED: list[tuple[type[Curve], str, list[Any]]] = [
    *[(kind, "warmup", [-0.1, 1.0, 5, *NO_NUMBER])
      for kind in (Constant, Cosine, CosineRestarts, Step, Polynomial, WarmupStableDecay)],
    *[(kind, "floor", [-0.1, 1.1, *NO_NUMBER]) for kind in (Cosine, CosineRestarts, Polynomial, WarmupStableDecay)],
    (CosineRestarts, "first_cycle", [0.0, -0.1, 1.1, 1e-5 * 9, *NO_NUMBER]),
    (CosineRestarts, "cycle_growth", [0.99, 0.0, -2.0, *NO_NUMBER]),
    (CosineRestarts, "peak_decay", [0.0, -0.5, 1.1, *NO_NUMBER]),
    (SlantedTriangle, "cut_fraction", [0.0, 1.0, -0.1, 10, *NO_NUMBER]),
    (SlantedTriangle, "ratio", [1.0, 0.5, -32.0, *NO_NUMBER]),
    (Step, "factor", [0.0, 1.0, 5.0, -0.1, *NO_NUMBER]),
    (Step, "milestones", [[], [0.6, 0.3], [0.3, 0.3], [0.0, 0.5], [0.5, 1.0], [30, 60, 80], [-0.5], "0.3", 0.3, None,
                          [0.3, math.nan], [0.3, True], [0.3, "0.6"]]),
    (Polynomial, "power", [0.0, -1.0, *NO_NUMBER]),
    (WarmupStableDecay, "decay", [-0.1, 1.0, 20, *NO_NUMBER]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "argument", "value"),
    [pytest.param(k, a, v, id=f"{k.__name__}-{a}-{v!r}") for k, a, values in REFUSED for v in values],
)
def test_a_bad_argument_is_refused_with_its_value(kind: type[Curve], argument: str, value: Any) -> None:
    others = {"cycle_growth": 1.0} if argument == "first_cycle" else {}
    with pytest.raises(ValueError, match=f"^{kind.__name__}: {argument}=") as refusal:
        kind(**{argument: value, **others})
    assert f"{argument}={value!r} " in str(refusal.value)


def test_milestones_inside_the_warm_up_are_refused() -> None:
    with pytest.raises(ValueError, match=r"Step: milestones=\[0.05, 0.5\] .* \(0.1, 1\), after the warm-up"):
        Step(milestones=[0.05, 0.5], warmup=0.1)


def test_a_warm_up_and_a_decay_longer_than_the_run_are_refused() -> None:
    with pytest.raises(ValueError, match=r"WarmupStableDecay: warmup=0.5 and decay=0.6 add up"):
        WarmupStableDecay(warmup=0.5, decay=0.6)


def test_endless_cycles_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"CosineRestarts: first_cycle=1e-12 with cycle_growth=1.0 makes more than 10000"
    ):
        CosineRestarts(first_cycle=1e-12, cycle_growth=1.0)


# --- YAML -------------------------------------------------------------------------------------------------------------


class TakesACurve:
    def __init__(self, curve: Curve) -> None:
        self.curve = curve


def parser() -> jsonargparse.ArgumentParser:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TakesACurve, "callback")
    return parser


def curve_of(config: jsonargparse.Namespace) -> Curve:
    p = parser()
    instantiate = getattr(p, "instantiate", None) or p.instantiate_classes  # named so before jsonargparse 4.49
    curve: Curve = instantiate(config).callback.curve
    return curve


@pytest.mark.parametrize(
    ("yaml", "expected"),
    [
        ("{class_path: Cosine, init_args: {warmup: 0.05}}", Cosine(warmup=0.05)),
        ("{class_path: lightning_lr.curves.Cosine, init_args: {warmup: 0.05, floor: 0}}", Cosine(warmup=0.05)),
        ("Cosine", Cosine()),
        ("Constant", Constant()),
        ("{class_path: CosineRestarts, init_args: {cycle_growth: 1.5}}", CosineRestarts(cycle_growth=1.5)),
        ("SlantedTriangle", SlantedTriangle()),
        ("Step", Step()),
        ("{class_path: Step, init_args: {milestones: [0.5, 0.75], factor: 0.2}}", Step([0.5, 0.75], 0.2)),
        ("{class_path: Polynomial, init_args: {power: 1}}", Polynomial(power=1.0)),
        ("{class_path: WarmupStableDecay, init_args: {decay: 1e-1}}", WarmupStableDecay(decay=0.1)),
    ],
)
def test_yaml_names_a_curve_and_survives_a_dump(yaml: str, expected: Curve) -> None:
    config = parser().parse_string(f"callback:\n  curve: {yaml}\n")
    assert curve_of(config) == expected
    dumped = parser().dump(config)
    assert re.search(rf"class_path: lightning_lr\.(curves\.)?{type(expected).__name__}\n", dumped)
    assert curve_of(parser().parse_string(dumped)) == expected


@pytest.mark.parametrize(
    ("yaml", "complaint"),
    [
        ("{class_path: Cosine, init_args: {wramup: 0.05}}", "wramup"),
        ("{class_path: SlantedTriangle, init_args: {warmup: 0.05}}", "warmup"),
        *(
            (f"{{class_path: {name}, init_args: {{{argument}: much}}}}", "much")
            for name, argument in [
                ("Constant", "warmup"),
                ("Cosine", "warmup"),
                ("CosineRestarts", "first_cycle"),
                ("SlantedTriangle", "ratio"),
                ("Step", "factor"),
                ("Polynomial", "power"),
                ("WarmupStableDecay", "decay"),
            ]
        ),
        ("Cosinus", "Cosinus"),
        ("{class_path: lightning_lr.curves.Phase}", "Phase"),
    ],
)
def test_yaml_with_an_unknown_argument_or_curve_is_an_error(yaml: str, complaint: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=complaint):
        parser().parse_string(f"callback:\n  curve: {yaml}\n")


# --- properties -------------------------------------------------------------------------------------------------------

shares = st.floats(0.0, 1.0)
below_one = st.floats(0.0, 1.0, exclude_max=True)


@st.composite
def steps(draw: st.DrawFn) -> Step:
    *milestones, last = sorted(draw(st.lists(st.floats(0.0, 0.999), min_size=2, max_size=6, unique=True)))
    warmup, milestones = (milestones[0], [*milestones[1:], last])
    return Step(milestones, draw(st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)), warmup)


@st.composite
def warmups_stable_decays(draw: st.DrawFn) -> WarmupStableDecay:
    warmup, decay = draw(below_one), draw(below_one)
    assume(warmup + decay <= 1)
    return WarmupStableDecay(warmup, decay, draw(shares))


falling = st.one_of(
    st.builds(Constant, below_one),
    st.builds(Cosine, below_one, shares),
    steps(),
    st.builds(Polynomial, st.floats(0.0, 1e300, exclude_min=True), below_one, shares),
    warmups_stable_decays(),
)
restarting = st.builds(
    CosineRestarts,
    st.floats(1e-3, 1.0),
    st.floats(1.0, 1e300),
    below_one,
    shares,
    st.floats(0.0, 1.0, exclude_min=True),
)
slanted = st.builds(
    SlantedTriangle,
    st.floats(0.0, 1.0, exclude_min=True, exclude_max=True),
    st.floats(1.0, 1e300, exclude_min=True),
)
curves = st.one_of(falling, restarting, slanted)


@given(curves, shares, shares)
def test_factors_lie_between_zero_and_one(curve: Curve, progress: float, width: float) -> None:
    factor = curve(progress, width)
    assert type(factor) is float
    assert 0.0 <= factor <= 1.0


@given(curves)
def test_phases_cover_the_run_without_gaps(curve: Curve) -> None:
    phases = curve.phases()
    assert phases[0].start == 0.0
    assert phases[-1].end == 1.0
    assert all(phase.start < phase.end for phase in phases)
    assert all(before.end == after.start for before, after in pairwise(phases))


ROUNDING = 4e-16
"""Two units in the last place of 1: neighbours in progress may swap their factors by rounding, never by more."""


@given(falling, shares, shares)
def test_factors_never_rise_after_the_warm_up(curve: Any, one: float, other: float) -> None:
    early, late = sorted(curve.warmup + (1 - curve.warmup) * share for share in (one, other))
    assert curve(late) <= curve(early) + ROUNDING


@given(curves.filter(lambda curve: not isinstance(curve, SlantedTriangle)), shares, shares, below_one)
def test_factors_never_fall_during_the_warm_up(curve: Any, one: float, other: float, width: float) -> None:
    early, late = sorted(curve.warmup * share for share in (one, other))
    assume(late < curve.warmup)
    assert curve(early, width) <= curve(late, width) + ROUNDING


@given(restarting, st.data())
def test_factors_never_rise_within_a_cycle(curve: CosineRestarts, data: st.DataObject) -> None:
    starts = [*curve.restarts(), 1.0]
    cycle = data.draw(st.integers(0, len(starts) - 2))
    begin, end = starts[cycle], starts[cycle + 1] - 2e-9  # a billionth below its end the next cycle has begun
    assume(begin < end)
    early, late = sorted(data.draw(st.tuples(st.floats(begin, end), st.floats(begin, end))))
    assert curve(late) <= curve(early) + ROUNDING


@given(slanted, shares, shares)
def test_the_slanted_triangle_rises_to_its_cut_and_falls_from_it(
    curve: SlantedTriangle, one: float, other: float
) -> None:
    early, late = sorted((one, other))
    if late <= curve.cut_fraction:
        assert curve(early) <= curve(late) + ROUNDING
    elif early >= curve.cut_fraction:
        assert curve(late) <= curve(early) + ROUNDING
    assert curve(one) > 0


def test_a_curve_is_written_with_short_numbers() -> None:
    assert str(Polynomial(power=1, warmup=1 / 6)) == "Polynomial(power=1.0, warmup=0.1667, floor=0.0)"
    assert str(Step([1 / 3, 2 / 3])) == "Step(milestones=(0.3333, 0.6667), factor=0.1, warmup=0.0)"
    assert str(Cosine(warmup=0.05)) == repr(Cosine(warmup=0.05))
    assert eval(repr(Polynomial(warmup=1 / 6))) == Polynomial(warmup=1 / 6)
