"""What the user asks of a ramp, and the plan that follows from it for a run of a given shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_lr.batch_size import AdaptiveRamp, Growth, LRRule, RampPlan, RampSchedule
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.batch_size.streamed_shape import is_streamed, streamed_plan
from lightning_lr.callbacks.base import members_of
from lightning_lr.callbacks.batch_size_ramp.after_warmup import Begin
from lightning_lr.callbacks.critical_batch import in_words
from lightning_lr.callbacks.gradient_noise_scale import GradientNoiseScale
from lightning_lr.progress import RunShape


@dataclass(frozen=True)
class Decided:
    """What a run under a ramp has decided so far; the rest of its plan follows from the settings.

    Args:
        begin_samples: samples of the run before the ramp, over all devices; ``None`` while it has not begun.
        growths: of an ``AdaptiveRamp``.
        micro_batch_limit: most samples per device and backward; ``None``: no limit.
        limit_found: whether that is the limit of the run, and not one until it has been tried.
    """

    begin_samples: int | None
    growths: tuple[Growth, ...]
    micro_batch_limit: int | None
    limit_found: bool


@dataclass(frozen=True)
class RampSettings:
    """Arguments of ``BatchSizeRamp``, where they are described.

    Raises:
        TypeError: for a schedule that is none.
        ValueError: for an argument outside its range.
    """

    schedule: RampSchedule
    max_batch_size: int | None
    max_micro_batch_size: int | Literal["auto"] | None
    lr_rule: LRRule
    begin: Begin

    def __post_init__(self) -> None:
        if not isinstance(self.schedule, RampSchedule):
            raise TypeError(
                f"BatchSizeRamp: got schedule={self.schedule!r}; give a RampSchedule, for example "
                "StepRamp([60, 120, 160])"
            )
        if self.lr_rule not in get_args(LRRule):
            raise ValueError(f"BatchSizeRamp: got lr_rule={self.lr_rule!r}; allowed are {get_args(LRRule)}")
        for argument in ("max_batch_size", "max_micro_batch_size"):
            value = getattr(self, argument)
            if value is None or (value == "auto" and argument == "max_micro_batch_size"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                or_auto = ' (or "auto")' if argument == "max_micro_batch_size" else ""
                raise ValueError(f"BatchSizeRamp: got {argument}={value!r}; a batch is a whole number from 1{or_auto}")
        if self.begin not in get_args(Begin):
            raise ValueError(f"BatchSizeRamp: got begin={self.begin!r}; allowed are {get_args(Begin)}")

    def check_manual(self, caller: str) -> None:
        """Refuse what only works where Lightning makes the updates.

        Raises:
            MisconfigurationException: for a limit of the micro-batch, above which gradients would be accumulated, and
                an ``AdaptiveRamp``.
        """
        if self.max_micro_batch_size is not None:
            raise MisconfigurationException(
                f"{caller}: got max_micro_batch_size={self.max_micro_batch_size!r}, above which gradients would be "
                "accumulated, and under manual optimization the module makes its own updates; leave it at None and set "
                "the largest batch as max_batch_size"
            )
        if isinstance(self.schedule, AdaptiveRamp):
            raise MisconfigurationException(
                f"{caller}: an AdaptiveRamp measures on micro-batches and updates that Lightning makes, and under "
                "manual optimization the module makes its own; use a StepRamp or a CurveRamp"
            )

    def check_arguments(self, caller: str, trainer: Any) -> None:
        """Refuse a Trainer that decides about the batch too, and one under which an ``AdaptiveRamp`` cannot decide.

        Raises:
            MisconfigurationException: with what was given, what is allowed and what to do.
        """
        if trainer.accumulate_grad_batches != 1:
            raise MisconfigurationException(
                f"{caller}: got Trainer(accumulate_grad_batches={trainer.accumulate_grad_batches}); the ramp decides "
                "about accumulation: leave it at 1 and give the largest micro-batch as max_micro_batch_size"
            )
        if not isinstance(self.schedule, AdaptiveRamp):
            return
        if not self.by_branches and not any(isinstance(member, GradientNoiseScale) for member in members_of(trainer)):
            raise MisconfigurationException(
                "BatchSizeRamp: AdaptiveRamp follows the measured gradient noise scale; attach GradientNoiseScale too"
            )
        if trainer.max_steps != -1:
            raise MisconfigurationException(
                f"BatchSizeRamp: got max_steps={trainer.max_steps} with an AdaptiveRamp, whose batches are not known "
                "ahead, so neither are the samples of the run; end it by max_epochs"
            )

    def check_strategy(self, caller: str, trainer: Trainer) -> None:
        """Refuse a strategy that decides about the accumulation.

        Raises:
            MisconfigurationException: with what to use instead.
        """
        if trainer.strategy.handles_gradient_accumulation:
            raise MisconfigurationException(
                f"{caller}: {type(trainer.strategy).__name__} accumulates by itself with a fixed number of "
                "micro-batches; use DDP or one device"
            )

    @property
    def by_branches(self) -> bool:
        """Whether the batch grows by what branches measure."""
        return isinstance(self.schedule, AdaptiveRamp) and self.schedule.by_branches

    def summary(self, shape: RampedShape, total_updates: str, found: int | None) -> dict[str, str]:
        """What a plan shows about the ramp.

        Args:
            shape: the run.
            total_updates: its updates, in words.
            found: what ``max_micro_batch_size="auto"`` has come to.
        """
        plan = shape.plan
        start, largest = plan.starting_batch_size * shape.unit, plan.largest_batch_size * shape.unit
        summary = {
            "batch ramp": f"{self.schedule}: {start} to at most {largest}",
            "updates": f"{total_updates} against {plan.fixed_batch_updates:,} with a fixed batch",
        }
        if isinstance(self.schedule, AdaptiveRamp) and self.schedule.by_branches:
            cap = plan.largest_batch_size / plan.starting_batch_size
            summary["branches"] = in_words(self.schedule.branch_settings, shape, cap)
        if self.max_micro_batch_size == "auto":
            summary["micro-batch"] = (
                "to be found on the device before training; shown as if every batch fitted"
                if found is None
                else f"at most {found} samples, found on the device"
            )
        return summary

    def plan_for(self, shape: RunShape, decided: Decided) -> RampPlan:
        """The plan for a run of a shape that a fixed batch would have.

        Raises:
            MisconfigurationException: where it does not fit into the run, or the batch size of the loader is not known.
        """
        epoch = shape.epoch
        if shape.max_epochs is None and shape.max_updates is None:
            raise MisconfigurationException(
                "BatchSizeRamp: the batches are planned over epochs or updates, and max_time alone tells neither; set "
                "max_epochs or max_steps too (max_time may still end the run before)"
            )
        if is_streamed(shape):
            return self._streamed_plan_for(shape, decided)
        if epoch.micro_batch_size is None or epoch.device_samples is None:
            raise MisconfigurationException(
                "BatchSizeRamp: the loader's batch size is not known (a batch sampler of its own, or none); give "
                "the DataLoader a batch_size"
            )
        whole, rest = divmod(epoch.device_samples, epoch.micro_batch_size)
        batches = whole + int(rest > 0 and not epoch.drop_last)
        limited = epoch.micro_batches is not None and epoch.micro_batches < batches
        device_samples = (epoch.micro_batches or 0) * epoch.micro_batch_size if limited else epoch.device_samples
        try:
            plan = RampPlan(
                self.schedule,
                dataset_size=device_samples * epoch.world_size,
                batch_size=epoch.micro_batch_size * epoch.world_size,
                world_size=epoch.world_size,
                max_epochs=shape.max_epochs,
                max_updates=shape.max_updates,
                max_batch_size=self.max_batch_size,
                max_micro_batch_size=decided.micro_batch_limit,
                lr_rule=self.lr_rule,
                drop_last=epoch.drop_last,
                device_samples=device_samples,
                begin_samples=decided.begin_samples,
            )
            plan = plan.with_growths(decided.growths)
        except ValueError as error:
            raise MisconfigurationException(f"BatchSizeRamp: {error}") from error
        if decided.limit_found:
            self.refuse_nothing_to_compare(plan)
        return plan

    def refuse_nothing_to_compare(self, plan: RampPlan) -> None:
        """Complain about an ``AdaptiveRamp`` whose first update has one gradient.

        Raises:
            MisconfigurationException: with the micro-batch that makes two.
        """
        first = plan.windows(0)[0]
        two = plan.world_size * len(first.micro_sizes) > 1
        if isinstance(self.schedule, AdaptiveRamp) and not self.by_branches and not two:
            raise MisconfigurationException(
                "BatchSizeRamp: AdaptiveRamp compares two gradients per update; one device and one micro-batch of "
                f"{first.size} make one; give a max_micro_batch_size below {first.size}"
            )

    def _streamed_plan_for(self, shape: RunShape, decided: Decided) -> RampPlan:
        micro, limit = shape.epoch.micro_batch_size, self.max_micro_batch_size
        assert micro is not None
        if self.begin == "after_warmup":
            raise MisconfigurationException(
                'BatchSizeRamp: begin="after_warmup" is not there for iterable data; use a map-style data set, or '
                'begin="start"'
            )
        if isinstance(limit, int) and limit < micro:
            raise MisconfigurationException(
                f"BatchSizeRamp: max_micro_batch_size={limit} is below the loader's batch_size of {micro}, which is "
                "the micro-batch of an iterable data set; lower the DataLoader's batch_size"
            )
        try:
            plan = streamed_plan(self.schedule, shape, self.max_batch_size, self.lr_rule)
            plan = plan.with_growths(decided.growths)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        if isinstance(self.schedule, AdaptiveRamp) and not self.by_branches and plan.world_size == 1:
            raise MisconfigurationException(
                "BatchSizeRamp: AdaptiveRamp compares two gradients per update, and iterable data on one device begin "
                "with one micro-batch; use a map-style data set with max_micro_batch_size, or more devices"
            )
        return plan
