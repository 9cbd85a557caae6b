"""What our callbacks share during one ``fit``: the writer, the clock, where to write decisions down.

However many of our callbacks are attached, there is one writer of the optimizer's hyperparameters and one clock.
The first of them in the Trainer's order moves the clock, the last writes and logs; :class:`Run` knows which is which.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks import continuation, resume_checks
from lightning_lr.callbacks.optimizers import ManagedOptimizer, optimizers_of
from lightning_lr.callbacks.run_shape import Loaders, explained, facts_of_run
from lightning_lr.journal import Journal, JournalFolder
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.nested import samples_in
from lightning_lr.progress import NoEndError, RunShape, SampleClock
from lightning_lr.stopwatch import JOURNAL as SECONDS
from lightning_lr.stopwatch import Stopwatch

if TYPE_CHECKING:
    from lightning_lr.callbacks.base import MethodCallback

CountSamples = Callable[[Any], int]

ENDS_EARLY = 0.98
"""A run that ends by itself below this share of its budget did not finish its curves, and there is a warning."""


class Run:
    """One ``fit`` of a Trainer under our control.

    Args:
        trainer: the Trainer, in ``on_train_start``: optimizers exist, a checkpoint is restored, loaders are set up.
        module: its module.
        members: our callbacks, in the Trainer's order.
    """

    def __init__(self, trainer: Trainer, module: LightningModule, members: Sequence[MethodCallback]) -> None:
        self.members = members
        self.first, self.last = members[0], members[-1]
        """Whom Lightning calls first and last among our callbacks."""
        self._loaders = Loaders.of(trainer)
        self._plain: tuple[Any, ...] | None = None  # what the shape was made from
        self._seen: tuple[Any, ...] | None = None  # what that was read from, where all of it can be compared
        self._shape: RunShape
        self._limits: tuple[Any, ...] = ()
        self._reached: float | None = None  # share of the budget after the last update
        shape = self._shape_now(trainer)
        self._compare_with_checkpoint(trainer, shape)
        self.clock = SampleClock(shape)
        self.manual = not module.automatic_optimization
        steps = shape.total_updates if shape.has_length else None
        self.optimizers = optimizers_of(trainer, steps, _tuned_before(members) if trainer.global_step > 0 else None)
        self._count_samples = next((m.count_samples for m in members if m.count_samples is not None), None)
        self._journals = JournalFolder(internals.journal_folder(trainer))
        self._stopwatch: Stopwatch | None = None
        self._pending: int | None = None
        self._counted = True
        self._window_open = True
        self._fresh = trainer.global_step == 0  # the module's on_train_start is still to come
        self._steps_awaited = not internals.has_loss_scaler(trainer)  # which may skip each of them
        self._trained = False
        self._warned_of_end = internals.is_fast_dev_run(trainer)
        self._bar = internals.BarNotes()
        self._undo = [
            *internals.keep_metrics(trainer),
            internals.bracket_scheduler_steps(module, self.scheduled_values),
            *internals.bracket_lr_writers(trainer, self.scheduled_values),
        ]
        replaced = any(member.module_scheduler == "replace" for member in members)
        for managed in self.optimizers:
            refining = any(member.refines and member.acts_on(managed.index) for member in members)
            self._undo += managed.attach(trainer, partial(self._refine, trainer) if refining else None)
            if replaced:
                managed.replace_schedule()

    # ------------------------------------------------------------------ joining and leaving
    @classmethod
    def attach(cls, trainer: Trainer, module: LightningModule, members: Sequence[MethodCallback]) -> Run:
        """Start a run, at the place where a restored checkpoint left it."""
        run = cls(trainer, module, members)
        run._resume(trainer)
        journal = run.journal(SECONDS)
        run._stopwatch = None if journal is None else Stopwatch(journal, run.clock.updates)
        return run

    def detach(self) -> None:
        """End the run: the optimizer holds the scheduled values and no wrap is left. Does nothing the second time."""
        for undo in self._undo:
            undo()
        if self._undo:
            for managed in self.optimizers:
                managed.writer.release()
            if self._stopwatch is not None:
                self._stopwatch.note(self.clock.updates)
        self._undo = []

    def leave_out(self, member: MethodCallback, hooks: Sequence[str]) -> None:
        """Let the Trainer pass over hooks of a callback until the run ends."""
        self._undo.append(internals.leave_out(member, hooks))

    @property
    def writer(self) -> HyperparameterWriter:
        """Of the first optimizer."""
        return self.optimizers[0].writer

    @property
    def writers(self) -> list[HyperparameterWriter]:
        """Of each optimizer, in the order of ``configure_optimizers``."""
        return [managed.writer for managed in self.optimizers]

    @property
    def effective_lr(self) -> list[Any]:
        """The lr of each group in the update that was just made, of all optimizers that made one."""
        return [lr for managed in self.optimizers for lr in managed.effective_lr]

    @contextmanager
    def scheduled_values(self) -> Iterator[None]:
        """Inside, the groups of all optimizers hold the scheduled values."""
        with ExitStack() as stack:
            for writer in self.writers:
                stack.enter_context(writer.scheduled_values())
            yield

    def writer_of(self, optimizer: Optimizer) -> HyperparameterWriter:
        """Of one of the run's optimizers."""
        return next(managed.writer for managed in self.optimizers if managed.optimizer is optimizer)

    def journal(self, name: str) -> Journal | None:
        """The journal of a callback, on rank 0."""
        return self._journals.journal(name)

    # ------------------------------------------------------------------ walking with the loop
    def stand(self, trainer: Trainer, position: tuple[int, int]) -> None:
        """The loop has moved to an epoch and a micro-batch of it; whatever it goes by is read anew."""
        limited = self._seen is None  # else none of the Trainer's callbacks limits the time
        self.clock.stand(internals.place(trainer, position, limited))
        if self.manual and self.clock.shape.ends:  # a batch need not end with an update
            self._reached = self.clock.progress
        self.clock.shape = self._shape_now(trainer)

    def begin_epoch(self, trainer: Trainer) -> None:
        """An epoch starts: its loader may be another one, and what was left of a window is not trained on."""
        self._loaders = self._loaders.now(trainer)
        self._warn_of_unseen_steps()
        if self._fresh:
            self._fresh = False
            self._take_rates_of_start()
        self._settle(trained=False)
        self.clock.drop_open_window()
        self.stand(trainer, (trainer.current_epoch, 0))

    def begin_micro_batch(self, trainer: Trainer, batch: Any, batch_idx: int) -> None:
        """Read a micro-batch's samples: by the sampler, else by the user's function, else by the first tensor.

        They are counted when it has been trained on; the module may still skip it.
        """
        if not self._counted:
            self._settle(trained=False)
        self._window_open, self._counted = True, False
        if batch_idx == self.clock.micro_batch and internals.limits(trainer) != self._limits:
            # somebody has changed them since the place was noted: in a hook of the module, or a callback after ours
            self.stand(trainer, (trainer.current_epoch, batch_idx))
            self.write_next_update()
        for managed, optimizer in zip(self.optimizers, trainer.optimizers, strict=False):
            managed.effective_lr = []
            if managed.optimizer is not optimizer:
                self._refuse_replaced(managed)
        self._pending = self._samples_over_devices(trainer, batch, batch_idx)

    def end_micro_batch(self) -> None:
        """A micro-batch has been trained on."""
        self._settle(trained=True)

    def samples_in(self, batch: Any) -> int | None:
        """Samples in a micro-batch of this device, or ``None`` where it is not known."""
        if self._count_samples:
            return self._count_samples(batch)
        if len(self._loaders.loaders) == 1:
            return samples_in(batch)
        # a batch of each loader; None of one that has ended
        parts = list(batch.values()) if isinstance(batch, Mapping) else batch
        if not isinstance(parts, list | tuple) or len(parts) != len(self._loaders.loaders):
            return None
        counts = [samples_in(part) for part in parts if part is not None]
        known = [count for count in counts if count is not None]
        return sum(known) if len(known) == len(counts) else None

    def samples_on_device(self, trainer: Trainer, batch: Any, batch_idx: int) -> int | None:
        """Samples of this device in a micro-batch, as it is and not as the run plans it; ``None`` where unknown.

        By the user's function, else by this device's own sampler, else by the batch's first tensor.
        """
        if self._count_samples is not None:
            return self._count_samples(batch)
        return internals.samples_in_micro_batch(trainer, batch_idx) or samples_in(batch)

    def loss_weight(self, epoch: int, micro_batch: int) -> float:
        """The factor on the loss of a micro-batch, on top of Lightning's division by the accumulation."""
        return math.prod(member.loss_weight(epoch, micro_batch) for member in self.members)

    def gradient_correction(self) -> float:
        """What the accumulated gradient of this update has been multiplied by until now."""
        return math.prod(member.gradient_correction for member in self.members)

    def close_window(self, trainer: Trainer) -> None:
        """The gradient of an update is complete. (LBFGS evaluates its closure several times; once counts.)"""
        if self._window_open:
            clock = self.clock
            if clock.lacks_seconds:  # what the first update of all covers is known only now that it is nearly made
                clock.take(internals.place(trainer, (0, 0)).seconds)
                self.write_next_update()
            self._settle(trained=True)
            self._window_open = False
            ends = clock.shape.ends
            if ends and not self._warned_of_end:
                self._warn_of_updates_after_the_end()
            clock.close_window()
            self._reached = clock.progress if ends else None
            for managed in self.optimizers:
                managed.unrefined = True
                managed.writer.settle()  # an engine that steps the optimizer in parts calls at no later moment

    def write_next_update(self) -> None:
        """Write the product of every method's multiplier for the next update."""
        for managed in self.optimizers:
            writer = managed.writer
            for member in self.members:
                if member.acts_on(writer.index):
                    try:  # once an update: without the context manager
                        factor = member.factor_of(writer, self.clock)
                    except NoEndError as error:
                        raise explained(type(member).__name__, error) from error
                    writer.set_multiplier(member.name, factor)
            writer.write()

    def note_start(self, member: MethodCallback) -> None:
        """Write down what a method decided for the whole run."""
        journal = self.journal(member.name)
        if journal is not None:
            journal.append(
                self.clock.updates,
                "start",
                callback=type(member).__name__,
                counts=self.clock.counts,
                samples_seen=self.clock.samples_seen,
                scheduled_lr={
                    name: float(lr)
                    for writer in self.writers
                    for name, lr in zip(writer.group_names(), writer.base(), strict=True)
                },
                panels=[dataclasses.asdict(panel) for panel in member.panels],
                **self._outlook(member),
                **continuation.continued(member.journals_before, self._journals.path, self.clock.updates),
            )

    @property
    def journals_path(self) -> Path | None:
        """Where this run writes its decisions."""
        return self._journals.path

    def note_change(self, member: MethodCallback, update: int, event: str, **decided: Any) -> None:
        """Write down what a method decided on the way, and how that changes what :meth:`note_start` wrote."""
        journal = self.journal(member.name)
        if journal is not None:
            journal.append(update, event, **decided, **self._outlook(member))

    def _outlook(self, member: MethodCallback) -> dict[str, Any]:
        """What a method holds the whole run to be, as things stand."""
        shape = self.clock.shape
        return {
            "facts": member.summary(shape),
            "phases": [[phase.name, phase.start, phase.end] for phase in member.phases(shape)],
            "total": shape.total_units if shape.has_length else None,
            "total_updates": shape.total_updates if shape.has_length else None,
            "per_epoch": shape.epoch.total_units,
        }

    def log(self, trainer: Trainer) -> None:
        """Log what was used in the update that has just been made, under the names of the public documentation."""
        clock = self.clock
        metrics: dict[str, float] = {}
        for managed in self.optimizers:
            lrs = [float(lr) for lr in managed.effective_lr]
            metrics |= {f"lr/{name}": lr for name, lr in zip(managed.writer.group_names(), lrs, strict=False)}
            for member in self.members:
                if member.acts_on(managed.index):
                    metrics = member.metrics(clock, managed.optimizer, lrs) | metrics
            quantiles = getattr(managed.optimizer, "trust_ratio_quantiles", None)  # LARS and LAMB have it
            if quantiles is not None:
                prefix = f"trust_ratio/{managed.writer.prefix}"
                metrics |= {f"{prefix}{quantile:g}": ratio for quantile, ratio in quantiles().items()}
        metrics["progress/samples"] = float(clock.samples_seen)
        metrics["progress/updates"] = float(clock.updates)
        metrics["batch/size"] = float(clock.batch_size)
        _, micro_batch_size, accumulation = clock.shape.batch_at(clock.epoch, clock.micro_batch)
        metrics["batch/accumulation"] = float(accumulation)
        if micro_batch_size is not None:
            metrics["batch/micro"] = float(micro_batch_size)
        internals.log_metrics(trainer, metrics)
        if self._stopwatch is not None:
            self._stopwatch.note(clock.updates)

    def show_in_bar(self, trainer: Trainer) -> None:
        """Put the rate of the update that was just made, the batch and the phase into the progress bar."""
        if not self._bar.due(trainer):
            return
        clock = self.clock
        rates = [float(lr) for lr in self.effective_lr]
        notes = {"lr": f"{max(rates):.3g}"} if rates else {}
        notes["batch"] = f"{clock.batch_size:,}"
        phases = [
            phase.name
            for member in (self.members if clock.shape.ends else ())
            for phase in member.phases(clock.shape)
            if phase.start <= clock.progress < phase.end
        ]
        if phases:
            notes["phase"] = ", ".join(dict.fromkeys(phases))
        self._bar.show(trainer, notes)

    def plan_again(self, trainer: Trainer) -> None:
        """A method has decided about the batches to come: the run has another shape from here on."""
        self._plain = self._seen = None
        self.clock.shape = self._shape_now(trainer)

    def end(self, trainer: Trainer) -> None:
        """Training has ended: where it did so by itself, its curves should have come to their end."""
        self._bar.remove(trainer)
        self._warn_of_unseen_steps()
        if self._stopwatch is not None:  # the last updates may not have been logged
            self._stopwatch.note(self.clock.updates)
        stopped = self._warned_of_end or trainer.should_stop
        if not stopped and self._reached is not None and self._reached < ENDS_EARLY:
            self._warned_of_end = True
            rank_zero_warn(
                f"lightning_lr: the run has ended after {self.clock.updates} updates at {self._reached:.3f} of its "
                f"budget ({_in_words(self.clock.shape)}): what follows it (curves, warm-ups) did not come to its end. "
                "The epochs were shorter than planned; correct the loader's length, or set max_steps"
            )

    # ------------------------------------------------------------------ inside
    def _shape_now(self, trainer: Trainer) -> RunShape:
        """The run by what Lightning goes by now; the same object until something has changed."""
        self._limits = internals.limits(trainer)
        callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
        if self._seen == (self._limits, callbacks, self._loaders):
            return self._shape
        changing = any(map(internals.limits_the_run, callbacks))
        self._seen = None if changing else (self._limits, list(callbacks), self._loaders)
        epoch = self._loaders.epoch_now(trainer)
        if epoch.micro_batches == 0 and self._plain is not None:
            return self._shape  # a reloaded loader that is empty: nothing of this epoch is trained on
        now = facts_of_run(trainer, epoch)
        if now != self._plain:
            self._plain, shape = now, RunShape(*now)
            for member in self.members:
                shape = member.reshape(shape)
            self._shape = shape
        return self._shape

    def _compare_with_checkpoint(self, trainer: Trainer, shape: RunShape) -> None:
        epoch, micro_batch = internals.starting_position(trainer)
        resume_checks.check_run(self.members, shape, inside_epoch=micro_batch > 0)
        recorded = any(member.loaded is not None for member in self.members)
        if micro_batch > 0 and not recorded and not internals.reloads_loaders(trainer):
            caller = type(self.members[0]).__name__
            resume_checks.check_unrecorded(caller, shape, epoch, internals.batches_of_earlier_epochs(trainer))

    def _take_rates_of_start(self) -> None:
        """What the module's ``on_train_start`` has written is the rate that its optimizer begins with."""
        for managed in self.optimizers:
            if managed.writer.settle_as_tuned():
                for member in self.members:
                    if member.acts_on(managed.index):
                        member.rates_were_set(managed.writer)

    def _refuse_replaced(self, managed: ManagedOptimizer) -> None:
        names = ", ".join(type(member).__name__ for member in self.members)
        raise MisconfigurationException(
            f"{names}: optimizer {managed.index} of the Trainer was replaced during the run, and would make its "
            "updates without the multipliers of the learning rate; change the one that configure_optimizers returned "
            "(add_param_group, load_state_dict, group[...]), or train in two fits"
        )

    def _samples_over_devices(self, trainer: Trainer, batch: Any, batch_idx: int) -> int | None:
        shape = self.clock.shape
        if shape.epoch.sizes_known:
            return shape.units(trainer.current_epoch, batch_idx)
        samples = self.samples_in(batch)
        if samples is None and len(self._loaders.loaders) == 1:
            samples = shape.epoch.micro_batch_size
        if trainer.world_size > 1:  # ranks may differ here
            counts = torch.tensor(-1 if samples is None else samples, device=trainer.strategy.root_device)
            samples = int(trainer.strategy.reduce(counts, reduce_op="sum"))
        return None if samples is not None and samples < 0 else samples

    def _settle(self, trained: bool) -> None:
        """Count the micro-batch that was read last, once, if it was trained on."""
        if not self._counted:
            self._counted = True
            self._trained |= trained
            if trained:
                self.clock.count(self._pending)

    def _warn_of_unseen_steps(self) -> None:
        """Once, where an epoch has been trained and no optimizer has made a step."""
        if not self._steps_awaited or not self._trained:
            return
        self._steps_awaited = False
        if not any(managed.stepped for managed in self.optimizers):
            rank_zero_warn(
                "lightning_lr: an epoch has been trained, and no optimizer of configure_optimizers has made a step. "
                "Where updates are made by another method (first_step and second_step of SAM) or by an optimizer "
                "inside of another, their learning rates are written, but nothing is learned from them, nor logged. "
                "Let the module call step, such as optimizer.step(closure)"
            )

    def _warn_of_updates_after_the_end(self) -> None:
        clock = self.clock
        if clock.progress >= 1.0:
            self._warned_of_end = True
            rank_zero_warn(
                f"lightning_lr: the budget of the run is spent ({_in_words(clock.shape)}) before update "
                f"{clock.updates + 1}, and training goes on: what follows it (curves, warm-ups) stays at its end"
            )

    def _refine(self, trainer: Trainer, managed: ManagedOptimizer) -> None:
        writer = managed.writer
        for member in self.members:
            if member.refines and member.acts_on(writer.index):
                writer.set_multiplier(member.name, member.refine_of(writer, trainer, self.clock))

    def _resume(self, trainer: Trainer) -> None:
        position = internals.starting_position(trainer)
        place = internals.place(trainer, position)
        if trainer.global_step > 0 or position[1] > 0:
            self.clock.resume(place, next((m.clock_state for m in self.members if m.clock_state is not None), None))
        else:
            self.clock.stand(place)
        for member in self.members:
            journal = self.journal(member.name)
            if journal is not None:
                journal.truncate(self.clock.updates)


def _tuned_before(members: Sequence[MethodCallback]) -> list[list[float]] | None:
    """The rates that were tuned, of the optimizers of a resumed run: a scheduler may have moved them since."""
    for member in members:
        state = member.loaded or {}
        known: list[list[float]] | None = state.get("tuned_lr") or member.tuned_lr
        if known:
            return known
        if state.get("base_lr"):  # of 0.1.0
            return [state["base_lr"]]
    return None


def _in_words(shape: RunShape) -> str:
    limits = {
        "max_epochs": shape.max_epochs,
        "max_steps": shape.max_updates,
        "max_time": None if shape.max_seconds is None else f"{shape.max_seconds:g} s",
        "batches of an epoch": shape.epoch.micro_batches,
    }
    return ", ".join(f"{name} {value}" for name, value in limits.items() if value is not None)
