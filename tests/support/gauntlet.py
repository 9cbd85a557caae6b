"""The rows of the gauntlet: a method joins by adding one, and every case of ``test_gauntlet.py`` runs on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule

from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointPolicy,
    Constant,
    Cosine,
    CosineRestarts,
    CriticalBatchSize,
    CurveRamp,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    LearningRateSearch,
    NormalizedWeightDecay,
    Polynomial,
    StepRamp,
)
from lightning_lr.optim import LAMB, LARS
from tests.support.rounding import rounding_after
from tests.support.toy import Toy, data

BATCH = 8
"""Global batch of every case, however it is made of micro-batches, accumulation and devices."""


@dataclass(frozen=True)
class At:
    """Where an update stands.

    Args:
        number: updates before it.
        updates: of the whole run; all are alike in the run's budget, also those of fewer samples.
        per_epoch: updates in an epoch.
        before: samples before it.
        size: samples in it.
        epoch: samples in an epoch.
        largest_lr: of a group.
    """

    number: int
    updates: int
    per_epoch: int
    before: int
    size: int
    epoch: int
    largest_lr: float

    @property
    def progress(self) -> float:
        """Share of the run that is done before the update."""
        return self.number / self.updates

    @property
    def width(self) -> float:
        """Share of the run that the update is."""
        return 1 / self.updates


@dataclass(frozen=True)
class Row:
    """One method (or combination) under test.

    Args:
        name: shown in the test's name.
        make: the callbacks that do something.
        off: the same callbacks, set so that they have no effect.
        factor: closed form of the factor on the lr at an update, written without the package.
        yaml: the callbacks in a LightningCLI configuration.
        configure: the user's optimizer, where SGD with momentum will not do.
        refuses: cases that the method refuses, and strategies of ``gauntlet_in_two_processes`` by name, with what its error says.
        off_by: relative difference that ``off`` makes to the lr, where nothing is exactly off.
        head: factor on the lr of the head's group, over that of the body's.
        policy: for the strategy, where checkpointing is under test.
        strategy_yaml: the strategy of one device in a LightningCLI configuration, where it is not the plain one.
        replay: for a method that follows the gradients, so that there is no closed form: the lr at every update by a
            plain loop, written without the package.
        tolerance: relative, of the lr; 0 for a method whose lr is the same however the gradient was summed.
        noisy: the gradient has noise that depends on how the batch is cut; weights of runs that cut it in different
            ways differ by at most this much.
    """

    name: str
    make: Callable[[], list[Callback]]
    off: Callable[[], list[Callback]]
    factor: Callable[[At], float] | None
    yaml: list[dict[str, Any]]
    configure: Callable[[LightningModule], Any] | None = None
    refuses: dict[str, str] = field(default_factory=dict)
    off_by: float = 0.0
    head: float = 1.0
    policy: CheckpointPolicy | None = None
    strategy_yaml: dict[str, Any] | None = None
    replay: Callable[[list[At]], list[float]] | None = None
    tolerance: float = 0.0
    noisy: float = 0.0


def _cosine_after_warmup(at: At) -> float:
    progress, width, warmup = at.progress, at.width, 0.25
    if progress < warmup:
        return min(1.0, (progress + width) / warmup)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (progress - warmup) / (1 - warmup))) / 2


def _restarts(at: At) -> float:
    progress, start, length = at.progress, 0.0, 0.2
    while progress >= start + length - 1e-9:
        start, length = start + length, length * 1.5
    return (1 + math.cos(math.pi * (progress - start) / length)) / 2


def _linear(at: At) -> float:
    return 1 + (min(BATCH, at.epoch) / 4 - 1) * min(1.0, (at.number + 1) / at.per_epoch)


def _steps(at: At) -> float:
    return 0.5 ** sum(at.before / at.epoch >= milestone for milestone in (0.5, 1.0))


def _polynomial(at: At) -> float:
    progress, width, warmup = at.progress, at.width, 0.25
    return min(1.0, (progress + width) / warmup) if progress < warmup else ((1 - progress) / (1 - warmup)) ** 2


def _lars(module: LightningModule) -> torch.optim.Optimizer:
    return LARS(module.parameters(), lr=0.01, weight_decay=1e-4, trust_coefficient=0.1)


def _lamb(module: LightningModule) -> torch.optim.Optimizer:
    return LAMB(module.parameters(), lr=0.01)


UNFREEZING = dict.fromkeys(("zero_1", "zero_2", "zero_3"), "keeps gradients and parameters in flat buffers")
"""No layer of a flat buffer can be left out of an update."""
COMPRESSION = dict.fromkeys(("zero_3", "fsdp2"), "shards parameters, and gathered ones would be taken for activations")

NO_CHANGE = 0.01 * 0.2 / math.sqrt(BATCH / 96)
"""The norm that gives `_adamw` its own decay of 0.2 at lr 0.01 in a run of 96 samples."""


def _adamw(module: LightningModule) -> torch.optim.Optimizer:
    decay = NO_CHANGE * math.sqrt(BATCH / 96) / 0.01  # 0.2, in the order of operations that rounds alike
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=decay)


def _adam(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), lr=0.01, betas=(0.9, 0.99))


def _warmup_without_a_switch(at: At) -> float:
    """The climb from 0.02 to 0.08 over half the run, no switch before (the confidence asks for certainty), and then the
    cosine from min_lr (lr_scale leaves no more of the lr that was best)."""
    switch = math.ceil(at.updates / 2) / at.updates
    progress = at.progress
    if progress < switch:
        return min(0.08, 0.02 * 4 ** (2 * progress)) / at.largest_lr
    return 0.02 * (1 + math.cos(math.pi * (progress - switch) / (1 - switch))) / 2 / at.largest_lr


# ---------------------------------------------------------------------- hypergradient, in a plain loop
def _sgd(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.SGD(module.parameters(), lr=0.01)


def _adamw_mild(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01, weight_decay=0.1)


def _gradients(run: list[At]) -> Iterator[tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Parameters and their gradients at every update; what is done to the parameters in between is what follows."""
    module = Toy()
    parameters = list(module.parameters())
    for at in run:
        start = at.before % at.epoch
        x, y = data(at.epoch)[start : start + at.size]
        yield parameters, list(torch.autograd.grad(torch.nn.functional.mse_loss(module(x), y), parameters))


def _dot(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return sum(float((x.double() * y.double()).sum()) for x, y in zip(a, b, strict=True))


def _normalized_sgd(run: list[At]) -> list[float]:
    lr, squares, series = 0.01, 0.0, []
    last: list[torch.Tensor] = []
    for parameters, gradients in _gradients(run):
        if last:
            step = lr * max(-1.0, min(1.0, _dot(gradients, last) / _dot(last, last)))
            squares += step**2
            lr *= math.exp(0.5 * step / math.sqrt(squares))
        last = gradients
        series.append(lr)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.data.sub_(gradient, alpha=lr)
    return series


def _additive_adamw_under_cosine(run: list[At]) -> list[float]:
    factor, series = 1.0, []
    moves: list[torch.Tensor] = []
    means: list[torch.Tensor] = []
    squares: list[torch.Tensor] = []
    for t, (parameters, gradients) in enumerate(_gradients(run), start=1):
        base = 0.01 * _cosine_after_warmup(run[t - 1])
        if moves:
            last = 0.01 * _cosine_after_warmup(run[t - 2])
            factor += 1e-4 * last * _dot(gradients, moves) / 0.01**2
        series.append(base * factor)
        zeros = [torch.zeros_like(gradient) for gradient in gradients]
        means = [0.9 * m + 0.1 * g for m, g in zip(means or zeros, gradients, strict=True)]
        squares = [0.999 * v + 0.001 * g**2 for v, g in zip(squares or zeros, gradients, strict=True)]
        moves = [
            m / (1 - 0.9**t) / ((v / (1 - 0.999**t)).sqrt() + 1e-8) + 0.1 * p.detach()
            for p, m, v in zip(parameters, means, squares, strict=True)
        ]
        for parameter, move in zip(parameters, moves, strict=True):
            parameter.data.sub_(move, alpha=series[-1])
    return series


ROWS = [
    Row(
        "schedule",
        lambda: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
        lambda: [LearningRateSchedule(Constant())],
        _cosine_after_warmup,
        [{"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}}],
    ),
    Row(
        "schedule-restarts",
        lambda: [LearningRateSchedule(CosineRestarts(first_cycle=0.2, cycle_growth=1.5))],
        lambda: [LearningRateSchedule(Constant())],
        _restarts,
        [{"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "CosineRestarts", "init_args": {"first_cycle": 0.2, "cycle_growth": 1.5}}}}],
    ),
    Row(
        "scaling-linear",
        lambda: [LearningRateScaling(4, warmup_epochs=1)],
        lambda: [LearningRateScaling(BATCH)],
        _linear,
        [{"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 4, "warmup_epochs": 1}}],
    ),
    Row(
        "scaling-sqrt-adam",
        lambda: [LearningRateScaling(2, lr_rule="sqrt", warmup_epochs=0)],
        lambda: [LearningRateScaling(BATCH, lr_rule="sqrt")],
        lambda at: math.sqrt(min(BATCH, at.epoch) / 2),
        [{"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 2, "lr_rule": "sqrt", "warmup_epochs": 0}}],
        configure=_adam,
    ),
    Row(
        "scaling-and-schedule",
        lambda: [LearningRateScaling(4, warmup_epochs=1), LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
        lambda: [LearningRateScaling(BATCH), LearningRateSchedule(Constant())],
        lambda at: _linear(at) * _cosine_after_warmup(at),
        [
            {"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 4, "warmup_epochs": 1}},
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
        ],
    ),
    Row(
        "ramp-by-the-learning-rate",
        lambda: [BatchSizeRamp(StepRamp([0.5, 1], factor=2, mode="decay"))],
        lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))],
        _steps,
        [{"class_path": "BatchSizeRamp", "init_args": {"schedule": {"class_path": "StepRamp", "init_args": {"milestones": [0.5, 1], "factor": 2, "mode": "decay"}}}}],
        refuses={"accumulation": "leave it at 1", "iterable": "StepRamp counts in epochs"},
    ),
    Row(
        "adaptive-warmup",
        lambda: [AdaptiveWarmup(0.02, 0.08, confidence=1 - 1e-12, patience=1, lr_scale=1e-9)],
        lambda: [AdaptiveWarmup(0.05, math.nextafter(0.05, 1), decay=Constant(), patience=1)],
        _warmup_without_a_switch,
        [{"class_path": "AdaptiveWarmup", "init_args": {"min_lr": 0.02, "max_lr": 0.08, "confidence": 1 - 1e-12, "patience": 1, "lr_scale": 1e-9}}],
        refuses={"short": "so at least 11 updates in the run"},
        off_by=3e-16,  # min_lr and max_lr differ by one rounding
    ),
    Row(
        "search",
        lambda: [LearningRateSearch(Cosine(warmup=0.25, floor=0.1), 0.02, 0.02 * (1 + 1e-9), budget=1.0)],
        lambda: [LearningRateSearch(Constant(), 0.05, 0.05)],
        lambda at: 0.02 / at.largest_lr * _cosine_after_warmup(at),
        [{"class_path": "LearningRateSearch", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}, "min_lr": 0.02, "max_lr": 0.02 * (1 + 1e-9), "budget": 1.0}}],
        tolerance=1e-8,  # a race of two rates that differ by less: which one wins is nobody's concern
    ),
    Row(
        "critical-batch-and-schedule",
        lambda: [CriticalBatchSize(at=(0.0, 0.4), budget=1.0), LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
        lambda: [CriticalBatchSize(at=(0.3,), budget=1.0), LearningRateSchedule(Constant())],
        _cosine_after_warmup,
        [
            {"class_path": "CriticalBatchSize", "init_args": {"at": [0.0, 0.4], "budget": 1.0}},
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
        ],
    ),
    Row(
        "layerwise",
        lambda: [LayerwiseLRDecay(0.5)],
        lambda: [LayerwiseLRDecay(1.0)],
        lambda at: 0.5,
        [{"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.5}}],
        head=2.0,
    ),
    Row(
        "layerwise-and-scaling-and-schedule",
        lambda: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1)), LayerwiseLRDecay(0.5, layers=["body", "head"], head_factor=2.0), LearningRateScaling(4, warmup_epochs=1)],
        lambda: [LearningRateSchedule(Constant()), LayerwiseLRDecay(1.0), LearningRateScaling(BATCH)],
        lambda at: 0.5 * _linear(at) * _cosine_after_warmup(at),
        [
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
            {"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.5, "layers": ["body", "head"], "head_factor": 2.0}},
            {"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 4, "warmup_epochs": 1}},
        ],
        head=4.0,
    ),
    Row(
        "unfreezing",
        lambda: [GradualUnfreezing(layers=["body", "head"])],
        lambda: [GradualUnfreezing(layers=["body|head"])],
        lambda at: 1.0,
        [{"class_path": "GradualUnfreezing", "init_args": {"layers": ["body", "head"]}}],
        refuses=UNFREEZING,
    ),
    Row(
        "unfreezing-and-schedule-adam",
        lambda: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1)), GradualUnfreezing(layers=["body", "head"])],
        lambda: [LearningRateSchedule(Constant()), GradualUnfreezing(layers=["body|head"])],
        _cosine_after_warmup,
        [
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
            {"class_path": "GradualUnfreezing", "init_args": {"layers": ["body", "head"]}},
        ],
        configure=_adam,
        refuses=UNFREEZING,
    ),
    Row(
        "layerwise-and-schedule-and-unfreezing",
        lambda: [LayerwiseLRDecay(0.5), LearningRateSchedule(Cosine(warmup=0.25, floor=0.1)), GradualUnfreezing(layers=["body", "head"])],
        lambda: [LayerwiseLRDecay(1.0), LearningRateSchedule(Constant()), GradualUnfreezing(layers=["body|head"])],
        lambda at: 0.5 * _cosine_after_warmup(at),
        [
            {"class_path": "LayerwiseLRDecay", "init_args": {"decay": 0.5}},
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
            {"class_path": "GradualUnfreezing", "init_args": {"layers": ["body", "head"]}},
        ],
        head=2.0,
        refuses=UNFREEZING,
    ),
    Row(
        "checkpointed-and-schedule",
        lambda: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
        lambda: [LearningRateSchedule(Constant())],
        _cosine_after_warmup,
        [{"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}}],
        policy=CheckpointPolicy("every_block", modules=["body", "head"]),
        strategy_yaml={"class_path": "lightning_lr.CheckpointedStrategy", "init_args": {"policy": {"segments": "every_block", "modules": ["body", "head"]}}},
    ),
    Row(
        "hypergradient",
        lambda: [HypergradientDescent(rule="normalized")],
        lambda: [HypergradientDescent(0.0, rule="normalized")],
        None,
        [{"class_path": "HypergradientDescent", "init_args": {"rule": "normalized"}}],
        configure=_sgd,
        replay=_normalized_sgd,
        tolerance=2 * rounding_after(21),  # dot products and weights in fp32, fed back over the updates
    ),
    Row(
        "hypergradient-and-schedule",
        lambda: [HypergradientDescent(1e-4, "additive", bounds=(0.1, 10)), LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))],
        lambda: [HypergradientDescent(1e-4, "additive", bounds=(1, 1)), LearningRateSchedule(Constant())],
        None,
        [
            {"class_path": "HypergradientDescent", "init_args": {"hyper_lr": 1e-4, "rule": "additive", "bounds": [0.1, 10]}},
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Cosine", "init_args": {"warmup": 0.25, "floor": 0.1}}}},
        ],
        configure=_adamw_mild,
        replay=_additive_adamw_under_cosine,
        tolerance=2 * rounding_after(21),
    ),
    Row(
        "lars-polynomial",
        lambda: [LearningRateSchedule(Polynomial(warmup=0.25))],
        lambda: [LearningRateSchedule(Constant())],
        _polynomial,
        [{"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "Polynomial", "init_args": {"warmup": 0.25}}}}],
        configure=_lars,
    ),
    Row(
        "lamb-sqrt",
        lambda: [LearningRateScaling(2, lr_rule="sqrt", warmup_epochs=0)],
        lambda: [LearningRateScaling(BATCH, lr_rule="sqrt")],
        lambda at: math.sqrt(min(BATCH, at.epoch) / 2),
        [{"class_path": "LearningRateScaling", "init_args": {"reference_batch_size": 2, "lr_rule": "sqrt", "warmup_epochs": 0}}],
        configure=_lamb,
    ),
    Row(
        "weight-decay-restarts",
        lambda: [NormalizedWeightDecay(0.5), LearningRateSchedule(CosineRestarts(first_cycle=0.2, cycle_growth=1.5))],
        lambda: [NormalizedWeightDecay(NO_CHANGE), LearningRateSchedule(Constant())],
        _restarts,
        [
            {"class_path": "NormalizedWeightDecay", "init_args": {"norm": 0.5}},
            {"class_path": "LearningRateSchedule", "init_args": {"curve": {"class_path": "CosineRestarts", "init_args": {"first_cycle": 0.2, "cycle_growth": 1.5}}}},
        ],
        configure=_adamw,
    ),
    Row(
        "compression",
        lambda: [ActivationCompression(8, group_size=32)],
        lambda: [ActivationCompression(4, group_size=4096)],
        lambda at: 1.0,
        [{"class_path": "ActivationCompression", "init_args": {"bits": 8, "group_size": 32}}],
        noisy=0.02,
        refuses=COMPRESSION,
    ),
    Row(
        "compression-auto",
        lambda: [ActivationCompression("auto", group_size=32, probe_every=5, probe_samples=6)],
        lambda: [ActivationCompression("auto", group_size=4096)],
        lambda at: 1.0,
        [{"class_path": "ActivationCompression", "init_args": {"bits": "auto", "group_size": 32, "probe_every": 5, "probe_samples": 6}}],
        noisy=0.2,
        refuses=COMPRESSION,
    ),
]  # fmt: skip
