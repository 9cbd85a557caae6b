"""The learning rate that the user means, under a scheduler that moves it.

A scheduler writes ``group["initial_lr"]``, and for many that is the rate that was tuned. ``OneCycleLR`` puts
``max_lr / div_factor`` there, ``CyclicLR`` its lower bound, a ``LambdaLR`` may multiply it by anything: whatever is
relative to the tuned rate (a normalized weight decay, a hypergradient, a schedule in the place of the module's own)
needs the rate that the schedule rises to. Pure torch; no Lightning.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch.optim import SGD, Optimizer
from torch.optim import lr_scheduler as torch_schedulers

FOLLOWED = 100_000
"""Steps of a ``LambdaLR`` at which its function is evaluated; those of longer runs are looked at ever more rarely."""
SIMULATED = 2_000
"""Steps that a scheduler of a class that is not torch's is tried for."""


def base_learning_rates(optimizer: Optimizer, schedulers: Iterable[Any], steps: int | None = None) -> list[Any]:
    r"""The learning rate of each group that its schedule rises to.

    ``OneCycleLR`` and ``CyclicLR``: ``max_lr``. ``LambdaLR`` and ``MultiplicativeLR``: the initial rate times the
    largest factor. A warm-up that ends after the run has ended: the rate that it would reach. Several schedulers: the
    largest. Without a scheduler, or under one that only lowers the rate: the optimizer's own.

    Args:
        optimizer: whose groups are looked at.
        schedulers: the LR schedulers of that optimizer; those that are not torch's are tried on a copy.
        steps: how often they are stepped in the run, where that is known.

    Example::

        >>> optimizer = SGD([torch.nn.Parameter(torch.ones(1))], lr=0.5)
        >>> scheduler = torch_schedulers.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
        >>> base_learning_rates(optimizer, [scheduler])
        [0.1]
    """
    own = [group.get("initial_lr", group.get("lr")) for group in optimizer.param_groups]
    found = [rates for scheduler in schedulers for rates in _rates(optimizer, scheduler, own, steps)]
    return [_largest([rates[index] for rates in found] or [own[index]]) for index in range(len(own))]


def base_values(optimizer: Optimizer, schedulers: Sequence[Any], steps: int | None = None) -> list[dict[str, Any]]:
    """What each group would hold without its schedulers: the base rate, and the momentum that was not cycled."""
    values: list[dict[str, Any]] = [{"lr": rate} for rate in base_learning_rates(optimizer, schedulers, steps)]
    cycled = any(getattr(part, "cycle_momentum", False) for scheduler in schedulers for part in _parts(scheduler))
    for group, value in zip(optimizer.param_groups, values, strict=True):
        for key in ("momentum", "betas") if cycled else ():
            if key in group and key in optimizer.defaults:
                value[key] = optimizer.defaults[key]
    return values


# ---------------------------------------------------------------------- inside
def _parts(scheduler: Any) -> list[Any]:
    """A scheduler, or those that it steps."""
    if isinstance(scheduler, torch_schedulers.SequentialLR | torch_schedulers.ChainedScheduler):
        return [part for inner in scheduler._schedulers for part in _parts(inner)]
    return [scheduler]


def _rates(optimizer: Optimizer, scheduler: Any, own: list[Any], steps: int | None) -> list[list[Any]]:
    found = []
    for part in _parts(scheduler):
        if isinstance(part, torch_schedulers.OneCycleLR):
            found.append([group["max_lr"] for group in optimizer.param_groups])
        elif isinstance(part, torch_schedulers.CyclicLR):
            found.append(list(part.max_lrs))
        elif isinstance(part, torch_schedulers.MultiplicativeLR):
            found.append(
                [_times(lr, _peak(f, steps, running=True)) for lr, f in zip(own, part.lr_lambdas, strict=True)]
            )
        elif isinstance(part, torch_schedulers.LambdaLR):
            found.append([_times(lr, _peak(f, steps)) for lr, f in zip(own, part.lr_lambdas, strict=True)])
        elif isinstance(part, torch_schedulers.LRScheduler) and not _is_torchs(part):
            found.append(_tried(optimizer, part, own, steps))
        else:
            found.append(own)
    return [rates for rates in found if len(rates) == len(own)]


def _is_torchs(scheduler: Any) -> bool:
    """Whether a class of torch computes the rates; it has a subclass of its own while its steps are bracketed."""
    computes = next(
        cls for cls in type(scheduler).__mro__ if "get_lr" in vars(cls) or cls.__module__.startswith("torch.")
    )
    return computes.__module__ == torch_schedulers.__name__


def _largest(values: list[Any]) -> Any:
    return max(values, key=float) if len(values) > 1 else values[0]


def _times(lr: Any, factor: float) -> Any:
    return lr if factor == 1.0 else lr * factor


def _peak(function: Any, steps: int | None, running: bool = False) -> float:
    """The largest value of a function of the step (with ``running``, of the product of its values so far)."""
    if not callable(function):
        return 1.0
    if hasattr(function, "__dict__") and not hasattr(function, "__code__"):  # an object, which may have a state
        function = copy.deepcopy(function)
    horizon = min(FOLLOWED, 10_000 if steps is None else steps + 1)
    peak = product = 1.0 if running else 0.0
    try:
        for step in range(horizon):
            product = product * function(step) if running and step else 1.0 if running else function(step)
            peak = max(peak, float(product))
        step = horizon
        while peak < 1.0 and not running and step < 10**8:  # a warm-up that is longer than the run
            peak = max(peak, float(function(step)))
            step += max(1, step // 8)
            if peak >= 0.999:
                return 1.0
    except Exception:  # a user's function need not know what comes after its run
        pass
    return peak if peak > 0 else 1.0


def _tried(optimizer: Optimizer, scheduler: Any, own: list[Any], steps: int | None) -> list[Any]:
    """The largest rates of a scheduler that is none of torch's, stepped on a copy of the groups."""
    stub = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    stub.param_groups = [
        {key: copy.deepcopy(value) for key, value in group.items() if key != "params"}
        | {"params": stub.param_groups[0]["params"]}
        for group in optimizer.param_groups
    ]
    trial = copy.copy(scheduler)
    trial.__dict__.update({name: copy.copy(v) for name, v in vars(scheduler).items() if isinstance(v, list | dict)})
    trial.optimizer = stub
    peaks = [float(value) for value in own]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for _ in range(min(SIMULATED, SIMULATED if steps is None else steps)):
                trial.step()
                peaks = [max(peak, float(g["lr"])) for peak, g in zip(peaks, stub.param_groups, strict=True)]
    except Exception:  # it needs a metric, for example
        return own
    return [lr if float(lr) == peak else peak for lr, peak in zip(own, peaks, strict=True)]
