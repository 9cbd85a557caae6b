"""The optional part of a plan about machines: memory by ZeRO stage, and time to finish."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.callbacks import ActivationCompression
from lightning_lr.cli.errors import ConfigurationError, described
from lightning_lr.cli.plan.activation_memory import MANY, saved_bytes, stepping
from lightning_lr.cli.plan.model import Plan
from lightning_lr.cli.plan.options import PlanOptions
from lightning_lr.cli.plan.state_memory import RANKS, StatesOf, states_addendum
from lightning_lr.cli.plan.time import Cost, timed
from lightning_lr.sharded_memory import ModelSize
from lightning_lr.step_time import StepTime, measure_step_time

if TYPE_CHECKING:
    from lightning_lr.cli.plan.configured_run import TrainerSettings

LARGEST = 100_000_000
"""Numbers in the largest parameters of a model of which only the size is given."""


def with_costs(
    plan: Plan,
    settings: TrainerSettings,
    model: LightningModule,
    optimizer: Optimizer | None,
    options: PlanOptions,
    batch: Callable[[], Any],
) -> Plan:
    """The plan with the memory and time that the options request.

    Args:
        plan: of the run.
        settings: the Trainer's arguments.
        model: that is trained.
        optimizer: its first; ``None`` where it is not known, Adam is then assumed.
        options: of the command line.
        batch: gives a batch of the training data.

    Raises:
        ValueError: where a time is to be measured and the module does not step without a Trainer.
    """
    sharding, notes = settings.sharding, list(plan.notes)
    if not (options.shows_memory or sharding.stage or options.step_time):
        return plan
    size = _size(model, optimizer, options, notes)
    states = StatesOf(
        size,
        str(settings["precision"] or "32-true"),
        max(row.batch.accumulation for row in plan.rows),
        sharding.settings,
    )
    if options.step_time:
        step = _step_time(options, settings, model, optimizer, batch)
        plan = timed(plan, Cost(step, options.network, size, sharding.stage, states.half))
    if options.shows_memory or sharding.stage:
        micro = max((row.batch.micro_batch_size or 0 for row in plan.rows), default=0)
        states = replace(states, activations=_activations(settings, model, batch, micro, options, notes))
        ranks = sorted({*RANKS, plan.shape.epoch.world_size})
        plan = replace(plan, addenda=(*plan.addenda, states_addendum(states, options.device_memory, ranks)))
    return replace(plan, notes=(*plan.notes, *(note for note in notes if note not in plan.notes)))


def _size(model: LightningModule, optimizer: Optimizer | None, options: PlanOptions, notes: list[str]) -> ModelSize:
    try:
        size = ModelSize.of(model, optimizer)
    except ValueError as error:
        notes.append(f"8 bytes of optimizer state are assumed for a parameter, as of Adam ({error})")
        size = ModelSize.of(model)
    if optimizer is None:
        notes.append("the optimizer is not known without a Trainer; 8 bytes of state are assumed, as of Adam")
    if options.parameters is not None:
        whole, rest = divmod(options.parameters, LARGEST)
        size = replace(size, trainable=(LARGEST,) * whole + ((rest,) if rest else ()), frozen=0)
    return size


def _activations(
    settings: TrainerSettings,
    model: LightningModule,
    batch: Callable[[], Any],
    micro: int,
    options: PlanOptions,
    notes: list[str],
) -> float | None:
    if options.parameters is not None:
        notes.append("activations of a model of another size (--parameters) are not known")
        return None
    compression = next((c for c in settings.callbacks if isinstance(c, ActivationCompression)), None)
    try:
        given = batch()
    except ConfigurationError:
        notes.append("activations are not planned: they need a batch of the training data, which is not here")
        return None
    compressor = None if compression is None else compression.settings.compressor(model, 0)
    return saved_bytes(settings.checkpointing, compressor, model, given, micro, settings["precision"], notes)


def _step_time(
    options: PlanOptions,
    settings: TrainerSettings,
    model: LightningModule,
    optimizer: Optimizer | None,
    batch: Callable[[], Any],
) -> StepTime:
    if isinstance(options.step_time, StepTime):
        return replace(options.step_time, update=options.update_time or 0.0)
    step = stepping(batch(), settings["precision"])
    if step is None:
        raise ValueError("--micro-batch-time measure needs a batch that holds tensors; give A+Bn")

    def forward(copy: nn.Module, samples: int) -> Tensor:
        return step(copy, samples)  # type: ignore[arg-type]

    try:
        measured = measure_step_time(model, forward, optimizer, samples=(MANY // 2, MANY))
    except Exception as error:  # most often: the step asks for its Trainer
        raise ValueError(
            f"--micro-batch-time measure: {type(model).__name__} does not train without a Trainer "
            f"({described(error)}); give A+Bn"
        ) from error
    return measured if options.update_time is None else replace(measured, update=options.update_time)
