"""Every public constructor, with the values that a user may type: allowed, on the border, absurd, of the wrong type.

`test_bad_configurations.py` gives each argument each of them, alone and (drawn by hypothesis) together.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback

import lightning_lr as ours
from lightning_lr.optim import LAMB, LARS
from tests.support.toy import Toy, fit

NUMBERS = [
    math.nan,
    math.inf,
    -math.inf,
    -1,
    -0.5,
    0,
    0.0,
    1,
    2,
    3,
    0.25,
    0.999,
    2.0,
    1e-300,
    1e300,
    10**30,
    10**400,
    1j,
    True,
]
OTHERS = [
    None,
    "",
    "auto",
    "linear",
    "nonsense",
    [],
    [0.5],
    [1],
    [math.nan],
    [2, 1],
    ["nonsense("],
    ["body", "head"],
    {},
]
WILD = [*NUMBERS, *OTHERS]


@dataclass(frozen=True, eq=False)
class Constructor:
    """Something that a user constructs.

    Args:
        make: the class or function.
        needed: what it cannot do without.
        attach: the Trainer's callbacks or other arguments of `fit` around what was constructed; None where it is of no
            use in a run.
        fixed: arguments that are left alone.
    """

    make: Callable[..., Any]
    needed: dict[str, Any] = field(default_factory=dict)
    attach: Callable[[Any], dict[str, Any]] | None = None
    fixed: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.make.__name__

    @property
    def arguments(self) -> list[str]:
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        given = inspect.signature(self.make).parameters.items()
        return [name for name, p in given if p.kind in kinds and name not in self.fixed]

    def __call__(self, **values: Any) -> Any:
        return self.make(**{**{k: v() if k == "params" else v for k, v in self.needed.items()}, **values})


def _callback(callback: Callback) -> dict[str, Any]:
    return {"callbacks": [callback]}


def _schedule(curve: Any) -> dict[str, Any]:
    return _callback(ours.LearningRateSchedule(curve))


def _ramp(schedule: Any) -> dict[str, Any]:
    return {"callbacks": [ours.BatchSizeRamp(schedule, max_micro_batch_size=4), ours.GradientNoiseScale()]}


def _adamw(callback: Callback) -> dict[str, Any]:
    return {**_callback(callback), "module": Toy(lambda module: torch.optim.AdamW(module.parameters(), lr=0.01))}


def _optimizer(optimizer: Any) -> dict[str, Any]:
    def configure(module: Any) -> Any:
        group = {k: v for k, v in optimizer.param_groups[0].items() if k not in ("params", "layer")}
        return type(optimizer)(module.parameters(), **group)

    return {"callbacks": [], "module": Toy(configure)}


def _strategy(strategy: Any) -> dict[str, Any]:
    return {"callbacks": [], "strategy": strategy}


def _policy(policy: Any) -> dict[str, Any]:
    return _strategy(ours.CheckpointedStrategy(policy))


def _parameters() -> Any:
    return list(Toy().parameters())


STEPS = ours.StepRamp([1.0], factor=2)
CONSTRUCTORS = [
    *(Constructor(curve, attach=_schedule) for curve in (ours.Constant, ours.Cosine, ours.CosineRestarts)),
    *(Constructor(curve, attach=_schedule) for curve in (ours.SlantedTriangle, ours.Step, ours.Polynomial)),
    Constructor(ours.WarmupStableDecay, attach=_schedule),
    Constructor(ours.StepRamp, {"milestones": [1.0]}, _ramp),
    Constructor(ours.CurveRamp, {"curve": ours.Cosine()}, _ramp),
    Constructor(ours.AdaptiveRamp, attach=_ramp),
    Constructor(ours.LearningRateSchedule, {"curve": ours.Cosine()}, _callback),
    Constructor(ours.LearningRateScaling, {"warmup_epochs": 1}, _callback),
    Constructor(ours.BatchSizeRamp, {"schedule": STEPS}, _callback),
    Constructor(ours.CriticalBatchSize, {"at": (0.5,)}, _callback),
    Constructor(ours.GhostBatchNorm),
    Constructor(ours.GradientNoiseScale, attach=lambda callback: {**_callback(callback), "accumulate_grad_batches": 2}),
    Constructor(ours.AdaptiveWarmup, {"patience": 1}, _callback),
    Constructor(ours.LayerwiseLRDecay, attach=_callback),
    Constructor(ours.GradualUnfreezing, attach=_callback),
    Constructor(ours.HypergradientDescent, attach=_callback),
    Constructor(ours.NormalizedWeightDecay, attach=_adamw),
    Constructor(ours.ActivationCompression, {"group_size": 16}, _callback),
    Constructor(ours.CheckpointPolicy, {"modules": ["body", "head"]}, _policy),
    Constructor(ours.CheckpointedStrategy, attach=_strategy),
    Constructor(ours.CheckpointedDDPStrategy),
    Constructor(LARS, {"params": _parameters, "lr": 0.01}, _optimizer, fixed=("params",)),
    Constructor(LAMB, {"params": _parameters, "lr": 0.01}, _optimizer, fixed=("params",)),
    Constructor(
        ours.RampPlan,
        {"schedule": STEPS, "dataset_size": 48, "batch_size": 8, "max_epochs": 3},
        fixed=("device_samples", "begin_samples", "growths"),
    ),
    Constructor(
        ours.scaled_batch_size,
        {"batch_size": 128, "lr": 0.1, "momentum": 0.9, "new_lr": 0.2, "new_momentum": 0.9},
    ),
    Constructor(ours.layerwise_param_groups, {"module": Toy(), "lr": 0.1, "decay": 0.5}),
]
"""All of them but RampPhase, which nobody constructs by hand."""


def train(constructor: Constructor, constructed: Any, probe: Callback) -> None:
    """A tiny run with what was constructed."""
    assert constructor.attach is not None
    arguments = constructor.attach(constructed)
    callbacks = arguments.pop("callbacks")
    fit([*callbacks, probe], max_epochs=2, num_sanity_val_steps=0, **arguments)
