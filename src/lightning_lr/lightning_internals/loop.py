"""Where the training loop is, where its epochs and updates end, and moving it."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging, Timer
from lightning.pytorch.loops.training_epoch_loop import RestartStage
from lightning.pytorch.trainer.states import RunningStage

from lightning_lr.batch_size import WindowAccumulation
from lightning_lr.lightning_internals.loaders import given_loader_without_length
from lightning_lr.progress import EpochShape, Place, RunShape


def update_ends(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of its update."""
    return not trainer.fit_loop._should_accumulate()


def next_position(trainer: Trainer) -> tuple[int, int]:
    """In an epoch, after a micro-batch: epoch (0-based) and micro-batch in it that the loop will process next."""
    loop = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress
    done, epoch = batches.current.ready, _epochs_done(trainer)
    if done and (done >= loop.max_batches or batches.is_last_batch):
        return epoch + 1, 0
    return epoch, done


def starting_position(trainer: Trainer) -> tuple[int, int]:
    """Before the first micro-batch of a fit, or between epochs: epoch and micro-batch in it that come next.

    Where loops are restored from a checkpoint, what they hold is not yet where they will go on (Lightning 2.5.6, 2.6.6
    brings it there in ``reset``, some of it after ``on_train_start``): a micro-batch that an exception interrupted
    is run again, one whose ``on_train_batch_end`` saved the checkpoint is done, and so is its epoch if it was the last.
    """
    loop = trainer.fit_loop.epoch_loop
    batches, epoch = loop.batch_progress, _epochs_done(trainer)
    if not loop.restarting:
        return epoch, 0  # whatever an earlier fit has left of its last epoch is run again
    whole = batches.current.ready == vars(batches.current)["processed"]
    done = batches.current.ready if whole else batches.current.completed
    if whole and done and batches.is_last_batch:
        return epoch + int(not _epoch_is_counted(trainer)), 0
    return epoch, done


def place(trainer: Trainer, position: tuple[int, int], limited: bool = True) -> Place:
    """The loop's counters at a position, as a clock reads them. All ranks call it where time limits the run.

    Args:
        trainer: the Trainer.
        position: epoch and micro-batch.
        limited: ``False`` where it is known that no callback limits the time.
    """
    limit = time_limit(trainer) if limited else None
    seconds = 0.0 if limit is None else limit[0]
    if limit is not None and trainer.world_size > 1:  # each has a clock of its own
        seconds = trainer.strategy.broadcast(seconds)
    return Place(*position, trainer.global_step, seconds)


def limits(trainer: Trainer) -> tuple[Any, ...]:
    """What the shape of the run is read from, besides loaders and time; cheap to compare with what it was."""
    accumulation, loop = trainer.accumulate_grad_batches, trainer.fit_loop
    return (
        loop.max_epochs,
        loop.epoch_loop.max_steps,
        loop.max_batches,
        1 if isinstance(accumulation, WindowAccumulation) else accumulation,  # a ramp's: its plan has the windows
    )


def time_limit(trainer: Trainer) -> tuple[float, float] | None:
    """Seconds of training spent and allowed, of the ``Timer`` (``max_time`` makes one) that is the first to end."""
    limits = [
        (max(0.0, timer.time_elapsed()), timer._duration)
        for timer in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(timer, Timer) and timer._duration
    ]
    return max(limits, key=lambda limit: limit[0] / limit[1], default=None)


def limits_the_run(callback: Any) -> bool:
    """Whether what a callback of Lightning's makes of epochs, accumulation or time may change while it is attached."""
    return isinstance(callback, GradientAccumulationScheduler | StochasticWeightAveraging | Timer)


def why_no_end(trainer: Trainer) -> str | None:
    """Why no end of the run is known, in the user's words, as far as is known before the loader is made."""
    if trainer.max_steps != -1 or time_limit(trainer) is not None:
        return None
    unknown = EpochShape(None if given_loader_without_length(trainer) else 1, None)
    shape = RunShape(unknown, max_epochs=epochs_of_updates(trainer))
    return None if shape.ends else shape.why_no_end


def makes_no_update(trainer: Trainer) -> bool:
    """Whether Lightning returns from ``fit`` before anything is trained."""
    return 0 in (trainer.max_epochs, trainer.max_steps, trainer.limit_train_batches)


def begin_epoch_after_resume(trainer: Trainer) -> None:
    """In ``on_train_start``: let a run that goes on after the last batch of an epoch begin the next one as every other.

    From a checkpoint that was saved in ``on_train_batch_end`` of an epoch's last batch, Lightning (2.5.6, 2.6.6) counts
    that epoch as done and still goes on as if inside it: ``on_train_epoch_start`` is not called, the new epoch is not
    counted, and what is restored from a checkpoint of *this* run then counts a batch twice. Where the new epoch has
    more batches than the saved one, it even goes on behind as many of them, which nobody trains on.
    """
    loop = trainer.fit_loop
    batches = loop.epoch_loop.batch_progress
    _mend_callbacks(trainer)
    if not loop.epoch_loop.restarting:
        # A fit that did not end by itself has left an epoch and a batch that are begun and not done. Both begin again;
        # counted twice, a checkpoint of this fit would not be recognised for what it is.
        for progress, count in ((loop.epoch_progress, "processed"), (loop.epoch_loop.batch_progress, "completed")):
            for counts in (progress.current, progress.total):
                done = getattr(counts, count)
                vars(counts).update(ready=done, started=done, processed=done)
        return
    done = batches.current.ready
    if not (done > 0 and done == vars(batches.current)["processed"]):
        return
    at_batch_end, counted = loop.epoch_loop.restarted_on_train_batch_end, _epoch_is_counted(trainer)
    if finishes_validation(trainer):
        return
    if not batches.is_last_batch:
        # Where an earlier batch was skipped or interrupted, Lightning's totals differ, and it does not see that this
        # one is done: it would be trained on twice.
        if not at_batch_end and batches.current.completed == done - 1:
            loop.epoch_loop._restart_stage = RestartStage.RESTARTED_ON_TRAIN_BATCH_END
        return
    if not counted:
        loop.epoch_progress.increment_processed()
    if at_batch_end or not counted:
        if not loop.epoch_loop._should_accumulate():
            loop.epoch_loop._batches_that_stepped += 1
        if batches.current.completed < done:
            batches.increment_completed()
    loop.reset_restart_stage()
    loop.epoch_loop.reset_restart_stage()
    loop.epoch_loop._restarting = False
    for counts in (loop.epoch_progress.current, loop.epoch_progress.total):
        # under max_steps a checkpoint of on_train_epoch_end leaves its epoch half counted; it would be trained again
        counts.completed = vars(counts)["processed"]


def finishes_validation(trainer: Trainer) -> bool:
    """Whether a fit begins with the validation after an epoch's last batch, which was interrupted.

    Lightning goes on with it, by the length of that epoch, and ends the epoch after it.
    """
    loop = trainer.fit_loop.epoch_loop
    last = loop.restarting and loop.batch_progress.is_last_batch and not _epoch_is_counted(trainer)
    return bool(last and loop.val_loop.restarted_mid_evaluation)


def _mend_callbacks(trainer: Trainer) -> None:
    """What Lightning's own callbacks (2.5.6, 2.6.6) forget in a fit that is not the first or begins inside an epoch.

    A ``GradientAccumulationScheduler`` sets the accumulation when an epoch starts, and inside one it would be 1 until
    the next. A ``Timer`` goes by the end of the fit before, so that its time never comes.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler) and starting_position(trainer)[1] > 0:
            trainer.accumulate_grad_batches = callback.get_accumulate_grad_batches(_epochs_done(trainer))
        if isinstance(callback, Timer):
            callback._end_time[RunningStage.TRAINING] = None


def batches_counted(trainer: Trainer) -> int:
    """Micro-batches of all epochs that the loop has counted: where a validation is due may be counted from there."""
    return int(trainer.fit_loop.epoch_loop.batch_progress.total.ready)


def validation_interval(trainer: Trainer) -> int | float | None:
    """``val_check_interval`` in batches or as a share of an epoch; ``None`` where it is a time (from 2.6 on)."""
    return getattr(trainer, "val_check_interval", None)


def validates_over_epochs(trainer: Trainer) -> bool:
    """Whether a whole ``val_check_interval`` counts on from epoch to epoch."""
    return trainer.check_val_every_n_epoch is None


def batches_of_earlier_epochs(trainer: Trainer) -> int:
    """Before the first micro-batch of a fit: the micro-batches that the loop has counted in the epochs before."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    return batches.total.completed - batches.current.completed


def _epochs_done(trainer: Trainer) -> int:
    return int(getattr(trainer.fit_loop.epoch_progress.current, "processed", 0))


def _epoch_is_counted(trainer: Trainer) -> bool:
    """Of an epoch whose last batch is done: whether the loop counts it among those that are."""
    epochs = trainer.fit_loop.epoch_progress.current
    return bool(epochs.ready <= _epochs_done(trainer))


def set_epoch_length(trainer: Trainer, micro_batches: int) -> None:
    """Set the length wherever an epoch's micro-batches are counted: progress bar, end of epoch, validation interval."""
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    assert combined is not None
    assert fetcher is not None
    if loop.max_batches == micro_batches:
        return
    loop.max_batches = micro_batches
    combined.limits = [micro_batches] * len(combined.flattened)
    fetcher.length = micro_batches
    interval = validation_interval(trainer)
    if isinstance(interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(micro_batches * interval))


def roll_back_to(trainer: Trainer, micro_batch: int) -> None:
    """Let a restored loop go on at an earlier micro-batch of its epoch, which it will run again."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress
    total = batches.total.ready - (batches.current.ready - micro_batch)
    for count in ("ready", "started", "processed", "completed"):
        setattr(batches.current, count, micro_batch)
        setattr(batches.total, count, total)
    batches.is_last_batch = False
    if micro_batch == 0:  # the epoch begins anew; else the loop would take it for one that ended with its validation
        loop._restarting = False


def epochs_of_updates(trainer: Trainer) -> int | None:
    """Epochs that the run trains for; ``None`` where the Trainer has no limit.

    For a model with batch norm ``StochasticWeightAveraging`` adds one to ``max_epochs`` in which nothing is updated.
    """
    if trainer.max_epochs in (None, -1):
        return None
    assert trainer.max_epochs is not None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging) and callback._model_contains_batch_norm:
            return min(trainer.max_epochs, callback._max_epochs)
    return trainer.max_epochs
