"""The shape of a run whose batch grows: what the clock and every curve ask, answered by a ramp's plan."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from itertools import accumulate

from lightning_lr.batch_size.plan import RampPlan
from lightning_lr.batch_size.windows import EpochWindows, micro_batch_sizes
from lightning_lr.curves import Phase
from lightning_lr.progress import Batch, Place, RunShape, Span


@dataclass(frozen=True)
class RampedShape(RunShape):
    """A run whose windows are those of a plan; counts, windows and lengths are in samples over all devices.

    Args:
        plan: the plan; the run's length is its own.
    """

    plan: RampPlan = field(kw_only=True)

    @classmethod
    def of(cls, run: RunShape, plan: RampPlan) -> RampedShape:
        """The run ``run`` under ``plan``."""
        samples, size = plan.samples_per_device, run.epoch.micro_batch_size or plan.samples_per_device
        batches = samples // size if plan.drop_last else -(-samples // size)
        epoch = replace(run.epoch, device_samples=samples, micro_batches=batches)
        return cls(epoch, run.accumulation, run.max_epochs, run.max_updates, run.max_seconds, plan=plan)

    def epoch_span(self, place: Place) -> Span | None:
        """In samples, so that a growing batch does not distort the curves."""
        if not self.micro_batches_in(place.epoch):
            return None
        before = self.units_before(place.epoch, place.micro_batch)
        _, units = self.window(place.epoch, place.micro_batch)
        return Span(before, before + units, self.samples_in(place.epoch))

    def samples_in(self, epoch: int) -> int:
        """Samples over all devices that an epoch trains on."""
        return self.windows(epoch).samples_before[-1] * self.epoch.world_size

    @property
    def unit(self) -> int:
        """Samples in what the plan counts as one."""
        return 1

    def phases(self) -> tuple[Phase, ...]:
        """The run by the size of its batches, in shares of what ends it."""
        plan, phases = self.plan, self.plan.phases
        if self.max_updates is not None and plan.total_updates >= self.max_updates:
            updates = accumulate((phase.updates for phase in phases), initial=0)
            starts = [before / self.max_updates for before, _ in zip(updates, phases, strict=False)]
        else:
            starts = [phase.start_epoch / plan.epochs for phase in phases]
        parts = zip(phases, starts, [*starts[1:], 1.0], strict=True)
        return tuple(Phase(f"batch {phase.batch_size * self.unit}", start, end) for phase, start, end in parts)

    def windows(self, epoch: int) -> EpochWindows:
        """The windows of an epoch."""
        return self.plan.windows(epoch)

    def micro_batches_in(self, epoch: int) -> int:
        return len(self.windows(epoch).micro_sizes)

    def updates_in(self, epoch: int) -> int:
        return len(self.windows(epoch))

    def units(self, epoch: int, micro_batch: int) -> int:
        return self.windows(epoch).micro_sizes[micro_batch] * self.epoch.world_size

    def units_before(self, epoch: int, micro_batch: int) -> int:
        before = self.windows(epoch).samples_before
        return before[min(micro_batch, len(before) - 1)] * self.epoch.world_size

    def window(self, epoch: int, micro_batch: int) -> tuple[int, int]:
        windows = self.windows(epoch)
        index = windows.index_of(micro_batch)
        first, end = windows.first_micro_batches[index : index + 2]
        rest = windows[index].micro_sizes[micro_batch - first :]
        return end, sum(rest) * self.epoch.world_size

    def window_end(self, epoch: int, micro_batch: int) -> int:
        return self.window(epoch, micro_batch)[0]

    def lr_factor(self, epoch: int, micro_batch: int) -> float:
        """The ramp's factor on the learning rate of the update that a micro-batch belongs to."""
        return self.windows(epoch).window_of(micro_batch).lr_factor

    def batch_at(self, epoch: int, micro_batch: int) -> Batch:
        size = self.windows(epoch).window_of(micro_batch).batch_size
        micro_sizes = micro_batch_sizes(size // self.epoch.world_size, self.plan.max_micro_batch_size)
        return Batch(size, micro_sizes[0], len(micro_sizes))

    @property
    def batch_size(self) -> int:
        return self.plan.starting_batch_size

    @property
    def total_updates(self) -> int:
        return self.plan.total_updates

    @property
    def fixed_batch_updates(self) -> int:
        updates = self.plan.fixed_batch_updates
        return updates if self.max_updates is None else min(updates, self.max_updates)

    @property
    def total_units(self) -> int:
        return self.plan.total_samples
