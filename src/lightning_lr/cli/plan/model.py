"""What a plan is: a run as it will be, part by part, for the table and the picture."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lr.curves import Phase
from lightning_lr.progress import Batch, RunShape


@dataclass(frozen=True)
class PlanRow:
    """A part of the run in which neither the phases nor the batch change.

    Args:
        phases: what each method calls this part, in the order of the callbacks.
        updates: the first update, and the one after the last.
        units: samples (micro-batches where sizes are not known) consumed before the first and after the last.
        epochs: the same in epochs; ``None`` where an epoch has no known length.
        batch: how the batch of the first update is made up.
        batch_last: the same of the last update; a curve changes it all the time.
        world_size: devices.
        lr_first: learning rate of each group in the first update.
        lr_last: learning rate of each group in the last update.
        noise_scale: lr / (1 - m) (N / B - 1) of the first group in the first and in the last update; ``None`` where
            batch or lr are not known, or for Adam and its kin, of which the formula does not speak.
        seconds: that it takes; ``None`` where no cost is known.
    """

    phases: tuple[str, ...]
    updates: tuple[int, int]
    units: tuple[int, int]
    epochs: tuple[float, float] | None
    batch: Batch
    world_size: int
    lr_first: tuple[float, ...]
    lr_last: tuple[float, ...]
    noise_scale: tuple[float, float] | None
    seconds: float | None = None
    batch_last: Batch | None = None

    @property
    def batch_size(self) -> int | None:
        """Samples in a full update."""
        return self.batch.size


@dataclass(frozen=True)
class Addendum:
    """A further table below the plan.

    Args:
        title: what it shows.
        headings: of its columns; the first is text, the others are numbers.
        rows: cells, as many as there are headings.
        below: lines that explain it.
    """

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    below: tuple[str, ...] = ()


@dataclass(frozen=True)
class Plan:
    """A run as it will be.

    Args:
        shape: samples, updates and epochs.
        groups: names of the optimizer's parameter groups.
        rows: the run, part by part, without gaps.
        method_phases: the phases of each method that has any, by the method's name.
        summary: what holds for the whole run, by heading; each callback adds its own.
        notes: what the reader should know before trusting the numbers.
        updates: the updates at which the learning rate was evaluated.
        units: samples consumed before each of these.
        lr: learning rate of each group at each of these; factors on it where ``relative``.
        batch_sizes: samples of a full update at each of these; ``None`` where not known.
        relative: whether the optimizer is not known, so that only factors could be planned.
        addenda: further tables.
    """

    shape: RunShape
    groups: tuple[str, ...]
    rows: tuple[PlanRow, ...]
    method_phases: dict[str, tuple[Phase, ...]]
    summary: dict[str, str]
    notes: tuple[str, ...]
    updates: list[int]
    units: list[int]
    lr: list[list[float]]
    relative: bool = False
    addenda: tuple[Addendum, ...] = ()
    batch_sizes: tuple[int | None, ...] = ()

    @property
    def unit(self) -> str:
        """What progress is counted in."""
        return "samples" if self.shape.epoch.counts_samples else "micro-batches"
