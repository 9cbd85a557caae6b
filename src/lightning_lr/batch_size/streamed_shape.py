"""A ramp over iterable data: micro-batches are as the loader makes them, and only their number per update grows.

The plan is that of any ramp, counted in micro-batches: a batch is a whole number of them, rounded down, and the
learning rate takes what that leaves. Where an epoch has a known number of micro-batches, windows have their places in
the epochs, as with other data. Where it has not, the run ends by updates, and the n-th window of the plan is the n-th
update, wherever it comes to lie; where the data end inside it, it is closed there, as Lightning does.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_lr.batch_size.batch_rule import LRRule
from lightning_lr.batch_size.plan import RampPlan
from lightning_lr.batch_size.plan_checks import CALLER
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.batch_size.schedules import RampSchedule
from lightning_lr.progress import Batch, Place, RunShape, Span


def is_streamed(shape: RunShape) -> bool:
    """Whether the data come in micro-batches of a known size, and nobody knows how many samples there are."""
    return shape.epoch.micro_batch_size is not None and shape.epoch.device_samples is None


def streamed_plan(
    schedule: RampSchedule,
    shape: RunShape,
    max_batch_size: int | None,
    lr_rule: LRRule,
) -> RampPlan:
    """Return the plan of a ramp over iterable data, whose samples are micro-batches.

    Args:
        schedule: how the noise scale falls.
        shape: the run with the loader's own batch.
        max_batch_size: largest batch in samples, over all devices; ``None``: a tenth of the epoch.
        lr_rule: "linear" for SGD, "sqrt" for Adam.

    Raises:
        ValueError: where the cap is below the start, or an epoch without a known length is needed.
    """
    epoch, micro = shape.epoch, shape.epoch.micro_batch_size
    assert micro is not None
    start = micro * epoch.world_size
    if max_batch_size is not None and max_batch_size < start:
        raise ValueError(
            f"{CALLER}: max_batch_size={max_batch_size} is below the starting global batch of {start} (micro {micro} x "
            f"world {epoch.world_size} x accumulation 1); raise it or lower the loader's batch_size"
        )
    cap = None if max_batch_size is None else max_batch_size // micro
    batches = epoch.micro_batches
    if batches is None:
        if schedule.changes() is not None:
            raise ValueError(
                f"{CALLER}: {type(schedule).__name__} counts in epochs, and an epoch of this iterable data set has no "
                "known length; set limit_train_batches to a whole number, or use a CurveRamp"
            )
        if cap is None:
            raise ValueError(
                f"{CALLER}: a tenth of an iterable data set without a length is not known; give max_batch_size "
                "(or set limit_train_batches to a whole number)"
            )
        assert shape.max_updates is not None
        batches = shape.max_updates * max(1, cap // epoch.world_size)  # at least as long as the run
    return RampPlan(
        schedule,
        dataset_size=batches * epoch.world_size,
        batch_size=epoch.world_size,
        world_size=epoch.world_size,
        max_epochs=shape.max_epochs if epoch.micro_batches is not None else None,
        max_updates=shape.max_updates,
        max_batch_size=cap,
        max_micro_batch_size=1,
        lr_rule=lr_rule,
        device_samples=batches,
    )


@dataclass
class Origin:
    """Where epochs without a length begin in the plan: its micro-batches before the present epoch."""

    micro_batches: int = 0


@dataclass(frozen=True)
class StreamedShape(RampedShape):
    """A run over iterable data; its counts are samples over all devices, the plan's are micro-batches.

    Args:
        origin: where the present epoch begins in the plan, if epochs have no length.
    """

    origin: Origin = field(default_factory=Origin, kw_only=True)

    @classmethod
    def of(cls, run: RunShape, plan: RampPlan) -> StreamedShape:
        """The run ``run`` under ``plan``."""
        origin = run.origin if isinstance(run, StreamedShape) else Origin()
        return cls(
            run.epoch, run.accumulation, run.max_epochs, run.max_updates, run.max_seconds, plan=plan, origin=origin
        )

    @property
    def micro_batch_size(self) -> int:
        """Samples of one micro-batch."""
        assert self.epoch.micro_batch_size is not None
        return self.epoch.micro_batch_size

    @property
    def unit(self) -> int:
        return self.micro_batch_size

    @property
    def endless(self) -> bool:
        """Whether an epoch has no known length."""
        return self.epoch.micro_batches is None

    def stand_before(self, update: int, micro_batch: int) -> None:
        """Let the update with this number (from 0) begin at a micro-batch of the present epoch."""
        if self.endless:
            first = self.windows(0).first_micro_batches
            self.origin.micro_batches = first[min(update, self.total_updates - 1)] - micro_batch

    def micro_batches_in(self, epoch: int) -> int | None:  # type: ignore[override]
        return self.epoch.micro_batches

    def units(self, epoch: int, micro_batch: int) -> int:
        return self.epoch.units(micro_batch)

    def units_before(self, epoch: int, micro_batch: int) -> int:
        return self.epoch.units_before(micro_batch)

    def window(self, epoch: int, micro_batch: int) -> tuple[int, int]:
        end, micro_batches = super().window(*self._in_plan(epoch, micro_batch))
        return end - self._origin, micro_batches * self.micro_batch_size

    def lr_factor(self, epoch: int, micro_batch: int) -> float:
        return super().lr_factor(*self._in_plan(epoch, micro_batch))

    def batch_at(self, epoch: int, micro_batch: int) -> Batch:
        size, _, accumulation = super().batch_at(*self._in_plan(epoch, micro_batch))
        assert size is not None
        return Batch(size * self.micro_batch_size, self.micro_batch_size, accumulation)

    def samples_in(self, epoch: int) -> int:
        return self.epoch.total_units or 0

    def epoch_span(self, place: Place) -> Span | None:
        return None if self.endless else super().epoch_span(place)

    @property
    def batch_size(self) -> int:
        return self.plan.starting_batch_size * self.micro_batch_size

    @property
    def total_units(self) -> int:
        return self.plan.total_samples * self.micro_batch_size

    @property
    def _origin(self) -> int:
        return self.origin.micro_batches if self.endless else 0

    def _in_plan(self, epoch: int, micro_batch: int) -> tuple[int, int]:
        if not self.endless:
            return epoch, micro_batch
        last = self.windows(0).first_micro_batches[-1] - 1
        return 0, min(max(0, micro_batch + self._origin), last)
