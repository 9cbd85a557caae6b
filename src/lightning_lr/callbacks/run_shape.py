"""The shape of a run, by what Lightning goes by now: loaders, measured on every rank, and the limits of the Trainer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import WindowAccumulation
from lightning_lr.progress import EpochShape, NoEndError, RunShape


@dataclass(frozen=True)
class Loaders:
    """The training loaders that are read now, and the epoch that was measured on them, the same on every rank.

    Args:
        loaders: the very objects; Lightning may reload them between epochs.
        length: batches of an epoch on this rank, when they were measured.
        epoch: what an epoch yields over all ranks.
    """

    loaders: tuple[Any, ...]
    length: int | None
    epoch: EpochShape

    @classmethod
    def of(cls, trainer: Trainer) -> Loaders:
        """Measure them and compare the ranks, all of which call it.

        Raises:
            MisconfigurationException: on every rank, where their epochs end after different numbers of batches.
        """
        own = internals.epoch_shape(trainer)
        if trainer.world_size == 1:
            return cls(internals.train_loaders(trainer), own.micro_batches, own)
        measured = internals.gather_to_all(own)
        lengths = [epoch.micro_batches for epoch in measured]
        whole = EpochShape.of_all(measured)
        updates = 0 if whole.micro_batches is None else run_shape(trainer, whole).updates_in(0)
        if len(set(lengths)) > 1 and not 0 < trainer.max_steps <= updates:
            raise MisconfigurationException(
                f"lightning_lr: the ranks' train dataloaders have different numbers of batches ({lengths}, by rank), "
                "and at the end of an epoch some would wait for ever; give every rank as many (a DistributedSampler, "
                "drop_last, or limit_train_batches), or end the run before by max_steps"
            )
        return cls(internals.train_loaders(trainer), own.micro_batches, whole)

    def now(self, trainer: Trainer) -> Loaders:
        """The same, unless Lightning has reloaded them. All ranks call it."""
        now = internals.train_loaders(trainer)
        same = len(now) == len(self.loaders) and all(a is b for a, b in zip(now, self.loaders, strict=True))
        return self if same else Loaders.of(trainer)

    def epoch_now(self, trainer: Trainer) -> EpochShape:
        """What an epoch yields, by the number of batches that Lightning goes by now."""
        batches = internals.epoch_length(trainer)
        return self.epoch if batches == self.length else replace(self.epoch, micro_batches=batches)


def run_shape(trainer: Trainer, epoch: EpochShape | None = None) -> RunShape:
    """The shape of the run that a Trainer makes, with the epoch of its loader if none is given."""
    return RunShape(*facts_of_run(trainer, epoch or internals.epoch_shape(trainer)))


def facts_of_run(trainer: Trainer, epoch: EpochShape) -> tuple[Any, ...]:
    """What a ``RunShape`` is made from, in its order; asked for at every update, and made one of when it changes."""
    limit = internals.time_limit(trainer)
    accumulation = accumulation_of(trainer.callbacks, trainer.accumulate_grad_batches)  # type: ignore[attr-defined]
    max_epochs = internals.epochs_of_updates(trainer)
    max_updates = None if trainer.max_steps == -1 else trainer.max_steps
    if internals.is_fast_dev_run(trainer):
        max_epochs, max_updates = None, updates_of_trial(epoch, accumulation, trainer.max_steps)
    return epoch, accumulation, max_epochs, max_updates, None if limit is None else limit[1]


def updates_of_trial(epoch: EpochShape, accumulation: int | Callable[[int], int], batches: int) -> int:
    """Updates in a ``fast_dev_run`` of so many batches.

    They are what ends it: its single epoch would come before every milestone of the run that is tried out.
    """
    made = batches if epoch.micro_batches is None else RunShape(epoch, accumulation).updates_in(0)
    return min(batches, made)


def total_updates(trainer: Trainer) -> int:
    """Updates in the whole run, for a scheduler that is made in ``configure_optimizers``.

    Where the batch ramps, ``trainer.estimated_stepping_batches`` counts with the starting batch; this counts with the
    ramp's. Elsewhere both are the same.

    Raises:
        MisconfigurationException: where the end of the run is not known.
    """
    internals.set_up_train_loader(trainer)
    shape = run_shape(trainer)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if hasattr(callback, "reshape"):
            shape = callback.reshape(shape)
    with in_words_of("total_updates"):
        return shape.total_updates


def accumulation_of(callbacks: Sequence[Any], accumulation: int) -> int | Callable[[int], int]:
    """Micro-batches of an update: a number, or what a ``GradientAccumulationScheduler`` sets for each epoch."""
    for callback in callbacks:
        if isinstance(callback, GradientAccumulationScheduler):
            return callback.get_accumulate_grad_batches
    return 1 if isinstance(accumulation, WindowAccumulation) else accumulation  # a ramp's: its plan has the windows


@contextmanager
def in_words_of(caller: str) -> Iterator[None]:
    """Explain who needs it where a run has no end."""
    try:
        yield
    except NoEndError as error:
        raise explained(caller, error) from error


def explained(caller: str, error: NoEndError) -> MisconfigurationException:
    """The same, of an error that has been caught."""
    return MisconfigurationException(f"{caller}: {error}")
