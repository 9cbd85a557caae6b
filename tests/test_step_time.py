"""Time to finish from a few numbers: closed forms, the line through measurements, and what `plan` makes of it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lightning_lr import BatchSizeRamp, LearningRateSchedule, Step
from lightning_lr.batch_size import StepRamp
from lightning_lr.cli.plan.time import Cost, duration, timed
from lightning_lr.cli.plan.walk import make_plan
from lightning_lr.progress import EpochShape, RunShape
from lightning_lr.sharded_memory import ModelSize
from lightning_lr.step_time import Network, StepTime, collectives, measure_step_time, run_seconds

MODEL = ModelSize((1_000_000,))


def test_seconds_of_a_run_are_the_sum_of_its_parts() -> None:
    assert run_seconds(StepTime(0.5, 0.01, 0.1), 1000, 20, 10, communication=0.2) == pytest.approx(10 + 10 + 1 + 2)


def test_collectives_follow_the_stage_and_the_accumulation() -> None:
    assert [collectives(stage) for stage in (0, 1, 2, 3)] == [1, 2, 2, 3]  # type: ignore[arg-type]
    assert [collectives(stage, 4) for stage in (0, 1, 2, 3)] == [1, 2, 5, 12]  # type: ignore[arg-type]


@pytest.mark.parametrize("make", [lambda: StepTime(-1, 0), lambda: Network(0), lambda: Network(1, -1)])
def test_impossible_costs_are_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="got"):
        make()


# ---------------------------------------------------------------------- measuring
class Timepiece:
    """A clock that moves when a step says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def test_the_line_is_found_and_nothing_is_changed() -> None:
    network = nn.Linear(3, 1)
    optimizer = torch.optim.Adam(network.parameters())
    before, clock = copy.deepcopy(network.state_dict()), Timepiece()

    def step(module: nn.Module, samples: int) -> Tensor:
        clock.now += 0.25 + 0.01 * samples
        loss: Tensor = module(torch.ones(samples, 3)).sum()
        return loss

    found = measure_step_time(network, step, optimizer, samples=(4, 8, 32), clock=clock)
    assert (found.micro_batch, found.sample) == pytest.approx((0.25, 0.01))
    assert found.update == 0.0  # this clock stands still there
    assert all(torch.equal(before[key], value) for key, value in network.state_dict().items())
    assert not optimizer.state
    assert all(p.grad is None for p in network.parameters())


@pytest.mark.parametrize(
    ("seconds", "line"),
    [((1.0, 4.0), (0.0, (4 * 1 + 8 * 4) / (4**2 + 8**2))), ((2.0, 1.0), (1.5, 0.0))],
    ids=["through the origin", "level"],
)
def test_no_part_of_the_line_is_negative(seconds: tuple[float, float], line: tuple[float, float]) -> None:
    clock = Timepiece()

    def step(module: nn.Module, samples: int) -> Tensor:
        clock.now += dict(zip((4, 8), seconds, strict=True))[samples]
        loss: Tensor = module(torch.ones(samples, 3)).sum()
        return loss

    found = measure_step_time(nn.Linear(3, 1), step, samples=(4, 8), clock=clock)
    assert (found.micro_batch, found.sample) == pytest.approx(line)


def test_one_size_makes_no_line() -> None:
    with pytest.raises(ValueError, match="two different sizes"):
        measure_step_time(nn.Linear(1, 1), lambda module, samples: module(torch.ones(1, 1)).sum(), samples=(8, 8))


# ---------------------------------------------------------------------- the plan
def test_a_plan_is_timed_row_by_row() -> None:
    shape = RunShape(EpochShape(100, 10, 1000, world_size=4), accumulation=2, max_epochs=2)
    plan = make_plan(shape, [LearningRateSchedule(Step([0.5]))])
    cost = Cost(StepTime(0.1, 0.01, 0.05), Network(bandwidth=1e6, latency=0.5), MODEL)
    made = timed(plan, cost)
    all_reduce = 2 * 4e6 * 3 / 4 / 1e6 + 0.5
    epoch = 100 * 0.1 + 1000 * 0.01 + 50 * (0.05 + all_reduce)
    assert [row.seconds for row in made.rows] == pytest.approx([epoch, epoch])
    assert made.summary["time to finish"].startswith(duration(2 * epoch))
    assert "fixed batch" not in made.summary["time to finish"]


def test_a_ramp_is_compared_with_the_batch_it_starts_from() -> None:
    shape = RunShape(EpochShape(100, 10, 1000, world_size=2), max_epochs=3)
    ramp = BatchSizeRamp(StepRamp([1, 2], factor=2), max_micro_batch_size=40)
    plan = make_plan(shape, [ramp], [torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.1)])
    cost = Cost(StepTime(0.0, 0.01), Network(latency=1.0), MODEL)
    made = timed(plan, cost)
    assert [row.batch_size for row in made.rows] == [20, 40, 80]
    assert [row.seconds for row in made.rows] == pytest.approx([10 + 100, 10 + 50, 10 + 25])
    total, fixed = 30 + 175, 30 + 300
    said = made.summary["time to finish"]
    assert said.startswith(
        f"{duration(total)}; {duration(fixed)} at the fixed batch of 20, {fixed / total:.2f} times as long"
    )


def test_ranks_that_are_alone_send_nothing() -> None:
    assert Cost(StepTime(0, 0), Network(1.0, 1.0), MODEL).communication(1, 1) == 0
    assert Cost(StepTime(0, 0), Network(), MODEL, stage=3).communication(8, 1) == 0
    sent = Cost(StepTime(0, 0), Network(1e6), MODEL, stage=3, half=True).communication(2, accumulation=2)
    assert sent == pytest.approx(3 * 2 * 2e6 / 2 / 1e6)


def test_a_loader_that_does_not_tell_its_batch_gets_a_note() -> None:
    plan = make_plan(RunShape(EpochShape(10, None), max_epochs=1), [])
    made = timed(plan, Cost(StepTime(1, 1), Network(), MODEL))
    assert made.rows[0].seconds is None
    assert "time is not planned" in made.notes[-1]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (59.9, "59.9 s"), (60, "1 min"), (119.6, "2 min"), (83, "1 min 23 s"), (19_800, "5 h 30 min"),
     (86_400 * 30 + 7200, "30 d 2 h")],
)  # fmt: skip
def test_durations_are_said_in_two_units(seconds: float, words: str) -> None:
    assert duration(seconds) == words
