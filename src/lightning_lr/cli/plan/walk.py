"""What a run will do, before it runs: the learning rate and the batch of every update, and the phases between.

The numbers are not computed a second time for the plan. :func:`make_plan` walks through the run with
:func:`lightning_lr.progress.walk` and lets the very callbacks that train write their multipliers through the very
:class:`~lightning_lr.learning_rate.HyperparameterWriter` that writes in training, so plan and run are equal by
construction. Needs torch; no Lightning.
"""

from __future__ import annotations

import math
import warnings
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Protocol

import torch
from torch.optim import SGD, Optimizer

from lightning_lr.batch_size.noise_scale import momentum_of, noise_scale
from lightning_lr.cli.plan.model import Plan, PlanRow
from lightning_lr.curves import SNAP, Phase
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import Batch, RunShape, SampleClock, walk

if TYPE_CHECKING:
    from lightning_lr.callbacks.base import MethodCallback

MAX_POINTS = 20_000
"""Updates at which the learning rate is evaluated; a longer run is evaluated at every n-th, and at phase boundaries."""


class Scheduler(Protocol):
    """What a plan needs of a torch LR scheduler."""

    def step(self) -> None: ...


@dataclass(frozen=True)
class Schedulers:
    """The user's own LR schedulers, by when Lightning steps them."""

    after_update: Sequence[Scheduler] = ()
    after_epoch: Sequence[Scheduler] = ()


def joined_phases(phases: Sequence[Sequence[Phase]]) -> tuple[tuple[tuple[str, ...], float], ...]:
    """Cut the run wherever one of several methods changes its phase.

    Returns:
        The names of the phases that hold in a part, one per method that has any there, and where the part starts.
    """
    edges = sorted(
        {0.0, *(edge for method in phases for p in method for edge in (p.start, p.end) if edge < 1.0 - SNAP)}
    )
    starts = [edge for i, edge in enumerate(edges) if i == 0 or edge - edges[i - 1] > SNAP]
    return tuple(
        (tuple(p.name for method in phases for p in method if p.start <= start + SNAP < p.end), start)
        for start in starts
    )


def make_plan(
    shape: RunShape,
    methods: Sequence[MethodCallback],
    optimizer: Optimizer | None = None,
    schedulers: Schedulers | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Walk through a run without training it.

    Args:
        shape: the run.
        methods: our callbacks, in the Trainer's order.
        optimizer: the run's optimizer. ``None`` plans factors on the learning rate instead.
        schedulers: the user's LR schedulers; they are stepped as Lightning would, under the multipliers.
        notes: what is known already that the reader should be told.

    Raises:
        MisconfigurationException, ValueError: where a method refuses a run of this shape.
    """
    relative = optimizer is None
    if optimizer is None:
        optimizer = SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    for method in methods:
        shape = method.reshape(shape)
    if shape.total_updates == 0:
        raise ValueError(
            f"the run has 0 updates (max_epochs={shape.max_epochs}, max_steps={shape.max_updates}, "
            f"{shape.epoch.micro_batches} micro-batches per epoch), so there is nothing to plan"
        )
    for method in methods:
        method.check_shape(shape, optimizer)
    parts = joined_phases([method.phases(shape) for method in methods])
    walker = _Walker(shape, methods, HyperparameterWriter(optimizer), schedulers or Schedulers(), parts, relative)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step")  # nothing is trained here
        walker.go()
    planned = [names for row in walker.rows for names in row.phases]
    skipped = [name for names, _ in parts for name in names if name not in planned]
    notes = [*notes, *(note for method in methods for note in method.plan_notes(shape, optimizer))]
    notes += (f"the phase {name!r} is shorter than one update and does not happen" for name in skipped)
    return Plan(
        shape=shape,
        groups=tuple(walker.writer.group_names()),
        rows=tuple(walker.rows),
        method_phases={m.name: m.phases(shape) for m in methods if m.phases(shape)},
        summary={heading: fact for method in methods for heading, fact in method.summary(shape).items()},
        notes=tuple(notes),
        updates=walker.updates,
        units=walker.units,
        lr=[list(values) for values in zip(*walker.lr, strict=True)],
        relative=relative,
        batch_sizes=tuple(walker.batch_sizes),
    )


class _Edge(NamedTuple):
    """Where a row begins or ends."""

    update: int
    units: int
    lr: tuple[float, ...]
    batch: Batch


@dataclass
class _Walker:
    """Goes through the run once, filling the rows and the points of the picture."""

    shape: RunShape
    methods: Sequence[MethodCallback]
    writer: HyperparameterWriter
    schedulers: Schedulers
    parts: Sequence[tuple[tuple[str, ...], float]]
    """The parts of the run: names of their phases, and where they start."""
    relative: bool
    rows: list[PlanRow] = field(default_factory=list)
    updates: list[int] = field(default_factory=list)
    units: list[int] = field(default_factory=list)
    lr: list[tuple[float, ...]] = field(default_factory=list)
    batch_sizes: list[int | None] = field(default_factory=list)

    def go(self) -> None:
        for method in self.methods:
            method.start(self.writer, self.shape)
        shape, total = self.shape, self.shape.total_updates
        stride = math.ceil(total / MAX_POINTS)
        begun: _Edge | None = None
        for clock in walk(shape):
            update, units, epoch = clock.updates, clock.samples_seen, clock.epoch
            end, size = shape.window(epoch, clock.micro_batch)
            next_epoch = epoch + int(end == shape.micro_batches_in(epoch))
            part, part_after = self._part(clock.progress, epoch), self._part(clock.progress + clock.width, next_epoch)
            ends = update + 1 == total or part_after != part
            batch = shape.batch_at(epoch, clock.micro_batch)
            if begun is None or ends or update % stride == 0:
                self._note(clock, batch)
            if begun is None:
                begun = _Edge(update, units, self.lr[-1], batch)
            if ends:
                self._close_row(part[0], begun, _Edge(update + 1, units + size, self.lr[-1], batch))
                begun = None
            self._step_schedulers(epoch_ends=next_epoch > epoch)

    def _part(self, progress: float, epoch: int) -> tuple[int, int]:
        """What may not change within a row: the phases, and the accumulation."""
        starts = [start for _, start in self.parts]
        return bisect_right(starts, progress + SNAP) - 1, self.shape.accumulation_in(epoch)

    def _note(self, clock: SampleClock, batch: Batch) -> None:
        for method in self.methods:
            self.writer.set_multiplier(method.name, method.factor(clock))
        self.writer.write()
        self.updates.append(clock.updates)
        self.units.append(clock.samples_seen)
        self.batch_sizes.append(batch.size)
        self.lr.append(tuple(float(value) for value in self.writer.effective()))

    def _close_row(self, part: int, first: _Edge, last: _Edge) -> None:
        epoch_units = self.shape.epoch.total_units
        self.rows.append(
            PlanRow(
                phases=self.parts[part][0],
                updates=(first.update, last.update),
                units=(first.units, last.units),
                epochs=(first.units / epoch_units, last.units / epoch_units) if epoch_units else None,
                batch=first.batch,
                batch_last=last.batch,
                world_size=self.shape.epoch.world_size,
                lr_first=first.lr,
                lr_last=last.lr,
                noise_scale=self._noise_scales(first.lr[0], last.lr[0], first.batch.size),
            )
        )

    def _noise_scales(self, first: float, last: float, batch_size: int | None) -> tuple[float, float] | None:
        optimizer, samples = self.writer.optimizer, self.shape.epoch.total_units
        if self.relative or batch_size is None or samples is None or "betas" in optimizer.param_groups[0]:
            return None
        momentum = momentum_of(optimizer)
        return noise_scale(first, momentum, batch_size, samples), noise_scale(last, momentum, batch_size, samples)

    def _step_schedulers(self, epoch_ends: bool) -> None:
        due = [*self.schedulers.after_update, *(self.schedulers.after_epoch if epoch_ends else ())]
        if due:
            with self.writer.scheduled_values():
                for scheduler in due:
                    scheduler.step()
