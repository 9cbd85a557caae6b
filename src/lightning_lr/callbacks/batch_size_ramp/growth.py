"""What changes a ramp during the run: growth by what is measured, and its beginning after an adaptive warm-up.

Both are decided on rank 0 and take effect at the first window of which no micro-batch has been prefetched.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import AdaptiveRamp, BranchSettings, CriticalBatch, Growth, LRRule
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.batch_size_ramp.loader import RampedLoader
from lightning_lr.callbacks.critical_batch import announce, critical_batch
from lightning_lr.callbacks.gradient_noise_scale import GradientNoiseScale
from lightning_lr.callbacks.run import Run


class RampGrowth:
    """What a ramp has decided during the run: when it began, and how far the batch has grown.

    Args:
        ramp: the callback, under whose name the decisions are written down.
        waits: whether the ramp begins after a warm-up.
        lr_rule: of the ramp.
    """

    def __init__(self, ramp: MethodCallback, waits: bool, lr_rule: LRRule) -> None:
        self._ramp, self._lr_rule = ramp, lr_rule
        self._waits = waits
        self.growths: tuple[Growth, ...] = ()
        """The growths decided so far."""
        self.begin_samples: int | None = None
        """Samples of the run before the ramp, over all devices; ``None`` while it has not begun."""
        self.measured: list[CriticalBatch] = []
        """What branches have measured so far."""
        self.forget()

    def forget(self) -> None:
        """A new run begins: what was decided in an earlier one is over."""
        self.growths, self.begin_samples, self.measured = (), None if self._waits else 0, []

    def restore(self, growths: Sequence[Any], begin_samples: int | None, measured: Sequence[Any]) -> None:
        """Take over what a checkpoint holds."""
        self.growths, self.begin_samples = tuple(Growth(*growth) for growth in growths), begin_samples
        self.measured = [CriticalBatch(**facts) for facts in measured]

    def after_update(self, trainer: Trainer, run: Run, ramped: RampedLoader, schedule: AdaptiveRamp) -> None:
        """Grow the batch if what is measured has grown; the loader and the clock then follow the new plan."""
        clock, plan = run.clock, ramped.plan
        if plan.begin_samples is None:
            return
        place = ramped.next_free_place(trainer, trainer.current_epoch)
        last = self.growths[-1] if self.growths else None
        current = plan.rule.whole(last.batch_size) if last is not None else plan.starting_batch_size
        current = min(current, plan.largest_batch_size)  # a reloaded loader may have fewer samples than it grew with
        unit = clock.shape.unit if isinstance(clock.shape, RampedShape) else 1
        too_late = place[0] >= (trainer.max_epochs or 0)
        if schedule.by_branches:
            settings = schedule.branch_settings
            due = settings.due(clock.progress, [result.at for result in self.measured])
            if not due or too_late or internals.is_fast_dev_run(trainer) or 2 * current > plan.largest_batch_size:
                return
            result = self._measure(trainer, run, settings, due[-1], current * unit, plan.largest_batch_size / current)
            wanted = plan.rule.whole(current * max(1, result.multiple))
            decided: dict[str, Any] = {"critical_batch": result.facts()}
        elif clock.updates % schedule.check_every:
            return
        else:
            noise = next(m.estimator.value for m in members_of(trainer) if isinstance(m, GradientNoiseScale))
            in_units = None if noise is None else noise / unit
            wanted = plan.rule.whole(schedule.next_batch_size(current, in_units, plan.largest_batch_size))
            decided = {"noise_scale": noise}
        if too_late or (last is not None and place <= (last.epoch, last.start)):
            wanted = current  # the run ends, or the decision before has not taken effect yet
        wanted, *place_of_all = trainer.strategy.broadcast((wanted, *place))
        if wanted > current:
            plan = plan.grown(wanted, *place_of_all)
            self.growths = plan.growths
            ramped.replan(trainer, plan)
            run.plan_again(trainer)
            if not internals.is_fast_dev_run(trainer):
                noise = decided.get("noise_scale")
                why = "" if noise is None else f", because the gradient noise scale is {noise:.3g} samples"
                rank_zero_info(
                    f"BatchSizeRamp: the batch grows from {current * unit:,} to {wanted * unit:,} samples after update "
                    f"{clock.updates:,}{why}"
                )
            grown = {"batch_size": wanted * unit, "epoch": place_of_all[0]}
            run.note_change(self._ramp, clock.updates, "grow", **grown, **decided)
        elif schedule.by_branches:
            run.note_change(self._ramp, clock.updates, "measured", **decided)

    def _measure(
        self, trainer: Trainer, run: Run, settings: BranchSettings, at: float, batch_size: int, cap: float
    ) -> CriticalBatch:
        module, rule = trainer.lightning_module, self._lr_rule
        result = critical_batch(trainer, module, run, self._ramp, settings, rule, at, batch_size, cap)
        self.measured = [*self.measured, result]
        announce("BatchSizeRamp", result)
        return result

    def begin(self, trainer: Trainer, run: Run, ramped: RampedLoader) -> None:
        """Begin the ramp: the warm-up has ended with the update that was just made."""
        clock, plan = run.clock, ramped.plan
        epoch, start = trainer.strategy.broadcast(ramped.next_free_place(trainer, trainer.current_epoch))
        samples: int = epoch * plan.samples_per_device * plan.world_size + start
        self.begin_samples = samples
        if not internals.is_fast_dev_run(trainer):
            rank_zero_info(f"BatchSizeRamp: the ramp begins after update {clock.updates:,}, the warm-up being over")
        ramped.replan(trainer, plan.begun(samples))
        run.plan_again(trainer)
        # counted before the update that was just made: a checkpoint after it holds this
        run.note_change(self._ramp, clock.updates - 1, "begin", samples=samples)
