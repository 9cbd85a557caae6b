"""What is refused in a plan, and what its user should know: rounded batches, phases too short for the momentum.

:class:`~lightning_lr.batch_size.plan.RampPlan` asks for both; errors name ``BatchSizeRamp``, whose arguments these are.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, get_args

from lightning_lr.batch_size.batch_rule import ROUNDING, LRRule
from lightning_lr.batch_size.noise_scale import momentum_transient
from lightning_lr.batch_size.schedules import AdaptiveRamp, RampSchedule
from lightning_lr.batch_size.windows import micro_batch_sizes
from lightning_lr.checks import require, require_count, require_momentum, require_positive

if TYPE_CHECKING:
    from lightning_lr.batch_size.plan import RampPlan

CALLER = "BatchSizeRamp"

TRANSIENTS = 3.0
"""A phase shorter than this many momentum transients ends before 95 % of its momentum has built up (1 - e**-3)."""

HIGH_MOMENTUM = 0.95
"""From here on, Smith et al. had to begin with a reduced learning rate."""


COARSE_STEP = 0.25
"""A batch that grows by this share of itself at once, or more, is warned of."""

GRID = 1000
"""Points of a schedule that are looked at for one that rises."""


def refuse(plan: RampPlan) -> None:
    """Raise a ValueError unless the arguments of a plan are in range and fit together."""
    _refuse_each(plan)
    if plan.max_epochs is None and plan.max_updates is None:
        raise ValueError(f"{CALLER}: the end of the run is not known; give max_epochs or max_updates (max_steps)")
    if plan.batch_size < plan.world_size:
        raise ValueError(
            f"{CALLER}: batch_size={plan.batch_size} is below world_size={plan.world_size}, and every device needs a "
            "sample; raise the batch size, or use fewer devices"
        )
    if plan.max_batch_size is not None and plan.max_batch_size < plan.batch_size:
        micro_sizes = micro_batch_sizes(-(-plan.batch_size // plan.world_size), plan.max_micro_batch_size)
        raise ValueError(
            f"{CALLER}: max_batch_size={plan.max_batch_size} is below the starting global batch of {plan.batch_size} "
            f"(micro {micro_sizes[0]} x world {plan.world_size} x accumulation {len(micro_sizes)}); raise it or lower "
            "the loader's batch_size"
        )
    local = -(-plan.batch_size // plan.world_size)
    if plan.drop_last and local > plan.samples_per_device:
        raise ValueError(
            f"{CALLER}: with drop_last there is no update in an epoch of {plan.samples_per_device} samples per device, "
            f"fewer than the {local} of a batch; lower batch_size, or set drop_last=False"
        )
    if plan.max_epochs is not None:
        plan.schedule.check_length(plan.max_epochs)
    _refuse_growths(plan)


def notes(plan: RampPlan) -> list[str]:
    """Return what the user of a plan should know before training, one sentence each."""
    return [*_rounding(plan), *_steps(plan), *_length(plan), *_momentum(plan)]


def _refuse_each(plan: RampPlan) -> None:
    if not isinstance(plan.schedule, RampSchedule):
        raise ValueError(
            f"{CALLER}: schedule={plan.schedule!r} is none; give a StepRamp, a CurveRamp or an AdaptiveRamp"
        )
    require_count(CALLER, "dataset_size", plan.dataset_size, "samples")
    require_count(CALLER, "batch_size", plan.batch_size, "samples")
    require_count(CALLER, "world_size", plan.world_size, "devices")
    for name, unit in (
        ("max_epochs", "epochs"),
        ("max_updates", "updates"),
        ("max_batch_size", "samples"),
        ("max_micro_batch_size", "samples"),
        ("device_samples", "samples"),
    ):
        if getattr(plan, name) is not None:
            require_count(CALLER, name, getattr(plan, name), unit + ", or None")
    require(plan.lr_rule in get_args(LRRule), CALLER, "lr_rule", plan.lr_rule, " or ".join(get_args(LRRule)))
    require_momentum(CALLER, plan.momentum)
    if plan.lr is not None:
        require_positive(CALLER, "lr", plan.lr, "a learning rate")
    begin = plan.begin_samples
    require(begin is None or begin >= 0, CALLER, "begin_samples", begin, "samples of the run before the ramp, or None")


def _refuse_growths(plan: RampPlan) -> None:
    adaptive = isinstance(plan.schedule, AdaptiveRamp)
    if adaptive and plan.max_epochs is None:
        raise ValueError(
            f"{CALLER}: an AdaptiveRamp needs max_epochs: how many samples max_updates={plan.max_updates} come to is "
            "not known ahead; set the Trainer's max_epochs"
        )
    if plan.growths and not adaptive:
        raise ValueError(f"{CALLER}: {type(plan.schedule).__name__} is known ahead and cannot grow; use AdaptiveRamp")
    place, batch_size = (-1, 0), plan.starting_batch_size
    for growth in plan.growths:
        later = (growth.epoch, growth.start) > place and growth.start >= 0
        if not (later and batch_size < growth.batch_size <= plan.largest_batch_size):
            raise ValueError(
                f"{CALLER}: {growth} does not grow the batch from {batch_size}, later than {place}, to at most "
                f"{plan.largest_batch_size}; ask next_batch_size, and leave out answers that change nothing"
            )
        place, batch_size = (growth.epoch, growth.start), growth.batch_size


def _rounding(plan: RampPlan) -> list[str]:
    warnings = []
    local, epoch_samples = -(-plan.batch_size // plan.world_size), plan.samples_per_device * plan.world_size
    if plan.batch_size % plan.world_size:
        warnings.append(
            f"batch_size={plan.batch_size} is not a multiple of the {plan.world_size} devices: each takes {local}, so "
            f"updates begin with {local * plan.world_size} samples, and the learning rate given is taken for these"
        )
    if plan.max_batch_size is not None and plan.max_batch_size % plan.world_size:
        warnings.append(
            f"max_batch_size={plan.max_batch_size} is not a multiple of the {plan.world_size} devices: the largest "
            f"batch is {plan.largest_batch_size} samples"
        )
    if local > plan.samples_per_device:
        warnings.append(
            f"the starting batch of {local * plan.world_size} is larger than an epoch of {epoch_samples} samples: "
            "each epoch is one update of these, and there is no gradient noise to lower"
        )
    elif plan.cap > epoch_samples:
        warnings.append(
            f"max_batch_size={plan.cap} is more than an epoch has: the largest batch is {epoch_samples} samples"
        )
    return warnings


def _steps(plan: RampPlan) -> list[str]:
    """Where the learning rate stands in for a batch that cannot follow its schedule."""
    if not plan.schedule.known_ahead:
        return []
    warnings = []
    start, following = plan.starting_batch_size, plan.starting_batch_size + plan.world_size
    if start < plan.largest_batch_size and plan.world_size >= COARSE_STEP * start:
        warnings.append(
            f"each of the {plan.world_size} devices begins with {start // plan.world_size} samples, so the batch grows "
            f"in steps of {plan.world_size}: until the next one fits it stays, and the learning rate falls instead, to "
            f"{start / following:.3g} of its start before the step from {start} to {following}; for a smoother path "
            "begin with more samples per device"
        )
    highest = max(map(partial(_lr_factor, plan), range(GRID + 1)))
    if highest > 1.0 + ROUNDING:
        warnings.append(
            f"the learning rate reaches {highest:.4g} times its start: the schedule rises above 1, or lets the batch "
            "fall by more than the noise scale"
        )
    return warnings


def _lr_factor(plan: RampPlan, point: int) -> float:
    """The ramp's factor on the learning rate at a point of :data:`GRID` in its run."""
    progress, rule, schedule = point / GRID, plan.rule, plan.schedule
    epoch = progress * plan.epochs
    return rule.lr_factor(schedule.decay(epoch, progress), rule.batch_size(schedule.batch_decay(epoch, progress)))


def _length(plan: RampPlan) -> list[str]:
    if not plan.schedule.known_ahead:
        return [
            "an AdaptiveRamp decides from what is measured: updates and phases are those of a run in which the batch "
            "grows no more, the most that there can be"
        ]
    late = [change for change in plan.schedule.changes() or () if change >= plan.epochs]
    if late:
        return [f"the run ends after {plan.epochs:.4g} epochs, before the milestones {late}: they have no effect"]
    return []


def _momentum(plan: RampPlan) -> list[str]:
    warnings = []
    momentum, dataset_size = plan.momentum, plan.dataset_size
    if momentum > 0 and plan.schedule.known_ahead and plan.schedule.changes() is not None:
        for phase in plan.phases:
            transient = momentum_transient(phase.batch_size, dataset_size, momentum)
            if phase.epochs < TRANSIENTS * transient:
                unit = "epoch" if phase.epochs == 1 else "epochs"
                warnings.append(
                    f"the phase of {phase.epochs:.4g} {unit} from epoch {phase.start_epoch:.4g} on is shorter than "
                    f"{TRANSIENTS:g} x {transient:.3g} epochs, in which momentum {momentum:g} catches up at batch "
                    f"{phase.batch_size}: lower momentum or max_batch_size, or make it longer"
                )
    if momentum >= HIGH_MOMENTUM:
        transient = momentum_transient(plan.starting_batch_size, dataset_size, momentum)
        warnings.append(
            f"momentum {momentum:g} starts from zero and takes {transient:.3g} epochs to build up: keep the learning "
            "rate reduced in the first epochs (Smith et al. 2018), for example by LearningRateScaling(warmup_epochs=5) "
            "or the warmup of a curve, and raise momentum only when the largest stable learning rate is in use"
        )
    return warnings
