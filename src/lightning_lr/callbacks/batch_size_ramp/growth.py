"""What changes a ramp in flight: growth by the measured noise scale, and its beginning after an adaptive warm-up.

Both are decided on rank 0 and take effect at the first window of which no micro-batch has been prefetched.
"""

from __future__ import annotations

from lightning.pytorch import Trainer

from lightning_lr.batch_size import AdaptiveRamp, Growth
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.batch_size_ramp.loader import RampedLoader
from lightning_lr.callbacks.gradient_noise_scale import GradientNoiseScale
from lightning_lr.callbacks.run import Run


def grow(
    trainer: Trainer,
    run: Run,
    ramped: RampedLoader,
    schedule: AdaptiveRamp,
    growths: tuple[Growth, ...],
    ramp: MethodCallback,
) -> tuple[Growth, ...]:
    """Grow the batch if it is time to.

    Args:
        trainer: after an update.
        run: the run; its clock goes on with the grown plan.
        ramped: the loader, told of it.
        schedule: which decides.
        growths: decided so far.
        ramp: the callback, which has decided.

    Returns:
        The growths decided so far.
    """
    clock, plan = run.clock, ramped.plan
    if clock.updates % schedule.check_every or plan.begin_samples is None:
        return growths
    place = ramped.next_free_place(trainer, trainer.current_epoch)
    last = growths[-1] if growths else None
    current = last.batch_size if last is not None else plan.starting_batch_size
    measured = next(m.estimator.value for m in members_of(trainer) if isinstance(m, GradientNoiseScale))
    unit = clock.shape.unit if isinstance(clock.shape, RampedShape) else 1
    in_units = None if measured is None else measured / unit
    wanted = schedule.next_batch_size(current, in_units, plan.largest_batch_size)
    if place[0] >= (trainer.max_epochs or 0) or (last is not None and place <= (last.epoch, last.start)):
        wanted = current  # the run ends, or the decision before has not taken effect yet
    wanted, *place_of_all = trainer.strategy.broadcast((wanted, *place))
    if wanted == current:
        return growths
    plan = plan.grown(wanted, *place_of_all)
    ramped.replan(trainer, plan)
    run.plan_again(trainer)
    run.note_change(ramp, clock.updates, "grow", batch_size=wanted * unit, noise_scale=measured, epoch=place_of_all[0])
    return plan.growths


def begin(trainer: Trainer, run: Run, ramped: RampedLoader, ramp: MethodCallback) -> int:
    """Begin the ramp.

    Args:
        trainer: at the end of the warm-up.
        run: the run; its clock goes on with the plan of a ramp that has begun.
        ramped: the loader, told of it.
        ramp: the callback, which has decided.

    Returns:
        Samples of the run before the ramp, over all devices.
    """
    clock, plan = run.clock, ramped.plan
    epoch, start = trainer.strategy.broadcast(ramped.next_free_place(trainer, trainer.current_epoch))
    samples: int = epoch * plan.samples_per_device * plan.world_size + start
    plan = plan.begun(samples)
    ramped.replan(trainer, plan)
    run.plan_again(trainer)
    # counted before the update that was just made: a checkpoint after it holds this
    run.note_change(ramp, clock.updates - 1, "begin", samples=samples)
    return samples
