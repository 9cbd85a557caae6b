"""The one writer, without Lightning: schedulers see what they would see without us."""

from __future__ import annotations

import copy
import math
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.optim import SGD, Adam, Optimizer
from torch.optim import lr_scheduler as sched

from lightning_lr.learning_rate import HyperparameterWriter

UPDATES = 200

# schedulers are stepped here without an optimizer step
pytestmark = pytest.mark.filterwarnings("ignore:Detected call of")


def _chained(optimizer: Optimizer) -> Any:
    return sched.ChainedScheduler([sched.ExponentialLR(optimizer, 0.99), sched.StepLR(optimizer, 50, 0.5)], optimizer)


def _sequential(optimizer: Optimizer) -> Any:
    return sched.SequentialLR(
        optimizer, [sched.LinearLR(optimizer, 0.1, 1.0, 20), sched.CosineAnnealingLR(optimizer, 180)], milestones=[20]
    )


SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "LambdaLR": lambda o: sched.LambdaLR(o, lambda t: 1 / (1 + t)),
    "MultiplicativeLR": lambda o: sched.MultiplicativeLR(o, lambda t: 0.98),
    "StepLR": lambda o: sched.StepLR(o, 30, 0.3),
    "MultiStepLR": lambda o: sched.MultiStepLR(o, [20, 90], 0.1),
    "ConstantLR": lambda o: sched.ConstantLR(o, 0.3, 40),
    "LinearLR": lambda o: sched.LinearLR(o, 0.1, 1.0, 50),
    "ExponentialLR": lambda o: sched.ExponentialLR(o, 0.97),
    "PolynomialLR": lambda o: sched.PolynomialLR(o, 150, 2.0),
    "CosineAnnealingLR": lambda o: sched.CosineAnnealingLR(o, 60, 1e-4),  # goes down and up again: chainable recurrence
    "CosineAnnealingWarmRestarts": lambda o: sched.CosineAnnealingWarmRestarts(o, 20, 2),
    "CyclicLR": lambda o: sched.CyclicLR(o, 1e-3, 0.5, step_size_up=15, mode="exp_range", gamma=0.99),
    "OneCycleLR": lambda o: sched.OneCycleLR(o, [0.3, 0.7], total_steps=UPDATES + 1),
    "ReduceLROnPlateau": lambda o: sched.ReduceLROnPlateau(o, factor=0.5, patience=3),
    "ChainedScheduler": _chained,
    "SequentialLR": _sequential,
}


def test_every_scheduler_class_of_torch_is_here() -> None:
    names = {name for name in sched.__all__ if name not in {"LRScheduler", "SWALR"}}
    assert names <= set(SCHEDULERS), names - set(SCHEDULERS)


def optimizer_of(lrs: tuple[Any, ...] = (0.1, 0.02), cls: type[Optimizer] = SGD, **arguments: Any) -> Optimizer:
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": lr} for lr in lrs]
    if cls is SGD:
        arguments.setdefault("momentum", 0.9)
    return cls(groups, **arguments)  # type: ignore[call-arg]


def wander(update: int) -> float:
    return 1.0 + 0.9 * math.sin(1.7 * update)


def step(scheduler: Any, update: int) -> None:
    if isinstance(scheduler, sched.ReduceLROnPlateau):
        scheduler.step(1.0 + abs(math.sin(update)))
    else:
        scheduler.step()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_scheduled_value_is_bit_identical_to_a_run_without_us(name: str) -> None:
    bare, ours = optimizer_of(), optimizer_of()
    bare_scheduler, our_scheduler = SCHEDULERS[name](bare), SCHEDULERS[name](ours)
    writer = HyperparameterWriter(ours)
    for update in range(UPDATES):
        writer.set_multiplier("schedule", wander(update))
        writer.set_multiplier("layerwise", [1.0, 0.3])
        writer.write()
        expected = [group["lr"] for group in bare.param_groups]
        assert writer.scheduled() == expected
        assert [g["lr"] for g in ours.param_groups] == [
            expected[0] * (wander(update) * 1.0),
            expected[1] * (wander(update) * 0.3),
        ]
        step(bare_scheduler, update)
        with writer.scheduled_values():
            step(our_scheduler, update)
        assert bare_scheduler.state_dict().keys() == our_scheduler.state_dict().keys()
        assert bare_scheduler.get_last_lr() == our_scheduler.get_last_lr()
    writer.release()
    assert [g["lr"] for g in ours.param_groups] == [g["lr"] for g in bare.param_groups]


@pytest.mark.parametrize("at", [0, 1, 37, 199])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_saved_state_continues_without_us(name: str, at: int) -> None:
    ours, bare = optimizer_of(), optimizer_of()
    scheduler, bare_scheduler = SCHEDULERS[name](ours), SCHEDULERS[name](bare)
    writer = HyperparameterWriter(ours)
    for update in range(at):
        writer.set_multiplier("schedule", wander(update))
        writer.write()
        with writer.scheduled_values():
            step(scheduler, update)
        step(bare_scheduler, update)
    state = ours.state_dict()
    writer.rewrite_state(state)
    assert [g["lr"] for g in ours.param_groups] == writer.effective(), "the live optimizer is not touched"
    resumed = optimizer_of()
    resumed_scheduler = SCHEDULERS[name](resumed)
    resumed.load_state_dict(copy.deepcopy(state))
    resumed_scheduler.load_state_dict(scheduler.state_dict())
    for update in range(at, UPDATES):
        assert [g["lr"] for g in resumed.param_groups] == [g["lr"] for g in bare.param_groups]
        step(resumed_scheduler, update)
        step(bare_scheduler, update)


def test_a_multiplier_of_one_keeps_the_users_own_object() -> None:
    optimizer = optimizer_of((1, 2))  # ints, as a user may write them
    writer = HyperparameterWriter(optimizer)
    writer.set_multiplier("schedule", 1.0)
    writer.write()
    assert [type(g["lr"]) for g in optimizer.param_groups] == [int, int]


def test_tensor_learning_rates_are_written_in_place_and_apart() -> None:
    shared = torch.tensor(0.1, dtype=torch.float64)
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(2)]
    optimizer = Adam([{"params": [p]} for p in parameters], lr=shared, foreach=False)
    writer = HyperparameterWriter(optimizer)
    tensors = [g["lr"] for g in optimizer.param_groups]
    writer.set_multiplier("layerwise", [1.0, 0.5])
    writer.write()
    assert [g["lr"] for g in optimizer.param_groups] == [torch.tensor(0.1, dtype=torch.float64), 0.05]
    assert all(a is b["lr"] for a, b in zip(tensors, optimizer.param_groups, strict=True)), "compiled steps hold them"
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*was set to")  # our own writes are not foreign
        with writer.scheduled_values():
            assert [float(g["lr"]) for g in optimizer.param_groups] == [0.1, 0.1]
            sched.ExponentialLR(optimizer, 0.5).step()
        writer.write()
    assert [float(g["lr"]) for g in optimizer.param_groups] == [0.05, 0.025]
    optimizer.param_groups[0]["lr"].fill_(1.0)
    with pytest.warns(UserWarning, match="group 0: 'lr' was set"):
        writer.write()
    assert float(writer.scheduled()[0]) == 1.0


def test_a_value_written_by_somebody_else_is_the_new_scheduled_value() -> None:
    optimizer = optimizer_of()
    writer = HyperparameterWriter(optimizer)
    writer.set_multiplier("schedule", 0.5)
    writer.write()
    optimizer.param_groups[1]["lr"] = 4.0
    with pytest.warns(UserWarning, match=r"group 1: 'lr' was set to 4\.0"):
        writer.write()
    assert writer.scheduled() == [0.1, 4.0]
    assert writer.effective() == [0.05, 2.0]
    optimizer.param_groups[1]["lr"] = 6.0
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        writer.write()
    assert writer.effective() == [0.05, 3.0]


def test_a_group_added_during_the_run_is_scheduled_and_multiplied() -> None:
    optimizer = optimizer_of()
    writer = HyperparameterWriter(optimizer)
    writer.set_multiplier("schedule", 0.5)
    writer.set_multiplier("layerwise", [1.0, 0.1])
    writer.write()
    optimizer.add_param_group({"params": [torch.nn.Parameter(torch.ones(1))], "lr": 8.0})
    writer.write()
    assert writer.effective() == [0.05, 0.001, 4.0]


def test_transforms_apply_to_the_scheduled_value_and_survive_cycled_momentum() -> None:
    def make() -> tuple[Optimizer, Any]:
        optimizer = optimizer_of((0.1,), Adam)
        return optimizer, sched.OneCycleLR(optimizer, 0.3, total_steps=UPDATES + 1)  # cycles betas[0]

    (bare, bare_scheduler), (ours, our_scheduler) = make(), make()
    writer = HyperparameterWriter(ours)
    writer.set_transform("betas", "scaling", lambda betas: (betas[0] / 2, betas[1]))
    writer.set_transform("eps", "scaling", lambda eps: eps / 10)
    writer.write()
    for update in range(UPDATES):
        betas = bare.param_groups[0]["betas"]
        assert writer.scheduled("betas") == [betas]
        assert ours.param_groups[0]["betas"] == (betas[0] / 2, betas[1])
        assert ours.param_groups[0]["eps"] == 1e-9
        step(bare_scheduler, update)
        with writer.scheduled_values():
            step(our_scheduler, update)
    assert {bare.param_groups[0]["betas"][0]} != {0.9}, "the scheduler really cycles"
    writer.release()
    assert ours.param_groups[0]["betas"] == bare.param_groups[0]["betas"]
    assert ours.param_groups[0]["eps"] == 1e-8


def test_an_error_inside_a_scheduler_leaves_the_effective_values_in_place() -> None:
    optimizer = optimizer_of()
    writer = HyperparameterWriter(optimizer)
    writer.set_multiplier("schedule", 0.5)
    writer.write()

    def step_that_fails() -> None:
        with writer.scheduled_values():
            raise RuntimeError("user")

    with pytest.raises(RuntimeError, match="user"):
        step_that_fails()
    assert writer.effective() == [0.05, 0.01]


@pytest.mark.parametrize("factor", [-0.1, math.nan, math.inf, [1.0, -1.0]])
def test_bad_factors_are_refused(factor: Any) -> None:
    with pytest.raises(ValueError, match=r"multiplier 'x': got .*finite and not negative"):
        HyperparameterWriter(optimizer_of()).set_multiplier("x", factor)


def test_wrong_number_of_factors_is_refused() -> None:
    with pytest.raises(ValueError, match="got 3 factors for 2 parameter groups"):
        HyperparameterWriter(optimizer_of()).set_multiplier("x", [1.0, 1.0, 1.0])


def test_the_learning_rate_has_no_transform() -> None:
    with pytest.raises(ValueError, match="named multipliers"):
        HyperparameterWriter(optimizer_of()).set_transform("lr", "x", lambda v: v)


def test_groups_of_one_name_are_told_apart() -> None:
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "name": name} for name in ("a", "b", "a")]
    assert HyperparameterWriter(SGD(groups, lr=0.1)).group_names() == ["a_0", "b", "a_2"]


def test_a_value_that_a_checkpoint_took_for_scheduled_is_still_multiplied_before_the_step() -> None:
    optimizer = optimizer_of()
    writer = HyperparameterWriter(optimizer)
    writer.set_multiplier("schedule", 0.5)
    writer.write()
    optimizer.param_groups[0]["lr"] = 0.4
    with pytest.warns(UserWarning, match="lr"):
        writer.rewrite_state(optimizer.state_dict())
    writer.settle()
    assert writer.scheduled() == [0.4, 0.02]
    assert writer.effective() == [0.4 * 0.5, 0.02 * 0.5]
