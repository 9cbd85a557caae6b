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
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import torch
from torch.optim import SGD, Optimizer

from lightning_lr.base_rates import base_values
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

    after_update: Sequence[tuple[Scheduler, int]] = ()
    """Each with its frequency: 2 for every other update."""
    after_epoch: Sequence[tuple[Scheduler, int]] = ()
    not_followed: Sequence[Scheduler] = ()


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
    optimizers: Sequence[Optimizer] = (),
    schedulers: Schedulers | None = None,
    notes: Sequence[str] = (),
) -> Plan:
    """Walk through a run without training it.

    Args:
        shape: the run.
        methods: our callbacks, in the Trainer's order.
        optimizers: of the run; none plans factors on the learning rate instead.
        schedulers: the user's LR schedulers; they are stepped as Lightning would, under the multipliers.
        notes: what is known already and the reader should see.

    Raises:
        MisconfigurationException, ValueError: where a method refuses a run of this shape.
    """
    relative = not optimizers
    optimizers = list(optimizers) or [SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)]
    schedulers = schedulers or Schedulers()
    for method in methods:
        shape = method.reshape(shape)
    if shape.total_updates == 0:
        raise ValueError(
            f"the run has 0 updates (max_epochs={shape.max_epochs}, max_steps={shape.max_updates}, "
            f"{shape.epoch.micro_batches} micro-batches per epoch), so there is nothing to plan"
        )
    for method in methods:
        for index, optimizer in enumerate(optimizers):
            if method.acts_on(index):
                method.check_shape(shape, optimizer)
    parts = joined_phases([method.phases(shape) for method in methods])
    walker = _Walker(shape, methods, _writers(shape, methods, optimizers, schedulers), schedulers, parts, relative)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=r"Detected call of `lr_scheduler\.step")  # nothing is trained here
        walker.go()
    planned = [names for row in walker.rows for names in row.phases]
    skipped = [name for names, _ in parts for name in names if name not in planned]
    notes = [*notes, *(note for method in methods for note in method.plan_notes(shape, optimizers[0]))]
    notes += (f"the phase {name!r} is shorter than one update and does not happen" for name in skipped)
    return Plan(
        shape=shape,
        groups=tuple(name for writer in walker.writers for name in writer.group_names()),
        rows=tuple(walker.rows),
        method_phases={m.name: m.phases(shape) for m in methods if m.phases(shape)},
        summary={
            **{heading: fact for method in methods for heading, fact in method.summary(shape).items()},
            **_own_schedulers(methods, schedulers),
        },
        notes=tuple(notes),
        updates=walker.updates,
        units=walker.units,
        lr=[list(values) for values in zip(*walker.lr, strict=True)],
        relative=relative,
        batch_sizes=tuple(walker.batch_sizes),
    )


def _own_schedulers(methods: Sequence[MethodCallback], schedulers: Schedulers) -> dict[str, str]:
    """Which LR schedulers the module has, and whether they have a say."""
    followed = [scheduler for scheduler, _ in (*schedulers.after_update, *schedulers.after_epoch)]
    names = ", ".join(dict.fromkeys(type(s).__name__ for s in (*followed, *schedulers.not_followed)))
    if not names:
        return {}
    if any(method.module_scheduler == "replace" for method in methods):
        return {"your scheduler": f"{names}, without effect (module_scheduler='replace')"}
    return {"your scheduler": f"{names}, multiplied with the above" if methods else names}


def _writers(
    shape: RunShape, methods: Sequence[MethodCallback], optimizers: Sequence[Optimizer], schedulers: Schedulers
) -> list[HyperparameterWriter]:
    """Of each optimizer, as a run makes them."""
    writers = []
    steps = shape.total_updates if shape.has_length else None
    for index, optimizer in enumerate(optimizers):
        followed = [scheduler for scheduler, _ in (*schedulers.after_update, *schedulers.after_epoch)]
        everything = [*followed, *schedulers.not_followed]
        own: list[Any] = [s for s in everything if getattr(s, "optimizer", optimizer) is optimizer]
        base = base_values(optimizer, own, steps)
        prefix = f"optimizer_{index}/" if len(optimizers) > 1 else ""
        writer = HyperparameterWriter(optimizer, [value["lr"] for value in base], index, prefix)
        if any(method.module_scheduler == "replace" for method in methods):
            writer.replace_schedule(base)
        writers.append(writer)
    return writers


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
    writers: Sequence[HyperparameterWriter]
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
            for writer in self.writers:
                if method.acts_on(writer.index):
                    method.start(writer, self.shape)
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
            self._step_schedulers(end, next_epoch if next_epoch > epoch else None)

    def _part(self, progress: float, epoch: int) -> tuple[int, int]:
        """What may not change within a row: the phases, and the accumulation."""
        starts = [start for _, start in self.parts]
        return bisect_right(starts, progress + SNAP) - 1, self.shape.accumulation_in(epoch)

    def _note(self, clock: SampleClock, batch: Batch) -> None:
        for writer in self.writers:
            for method in self.methods:
                if method.acts_on(writer.index):
                    writer.set_multiplier(method.name, method.factor_of(writer, clock))
            writer.write()
        self.updates.append(clock.updates)
        self.units.append(clock.samples_seen)
        self.batch_sizes.append(batch.size)
        self.lr.append(tuple(float(value) for writer in self.writers for value in writer.effective()))

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
        optimizer, samples = self.writers[0].optimizer, self.shape.epoch.total_units
        if self.relative or batch_size is None or samples is None or "betas" in optimizer.param_groups[0]:
            return None
        momentum = momentum_of(optimizer)
        return noise_scale(first, momentum, batch_size, samples), noise_scale(last, momentum, batch_size, samples)

    def _step_schedulers(self, micro_batches: int, epochs: int | None) -> None:
        """As Lightning does after so many micro-batches of an epoch; ``epochs`` are done where one has just ended."""
        due = [scheduler for scheduler, frequency in self.schedulers.after_update if micro_batches % frequency == 0]
        if epochs is not None:
            due += [scheduler for scheduler, frequency in self.schedulers.after_epoch if epochs % frequency == 0]
        if due:
            with ExitStack() as stack:
                for writer in self.writers:
                    stack.enter_context(writer.scheduled_values())
                for scheduler in due:
                    scheduler.step()
