"""Where the training loop is, where its epochs and updates end, and moving it."""

from __future__ import annotations

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging


def update_ends(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of its update."""
    return not trainer.fit_loop._should_accumulate()


def next_position(trainer: Trainer) -> tuple[int, int]:
    """Epoch (0-based) and micro-batch in it that the loop will process next: after a micro-batch, or after a resume."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    done = batches.current.ready
    if done and (done >= trainer.num_training_batches or batches.is_last_batch):
        return trainer.fit_loop.epoch_progress.current.ready, 0  # counts the epochs begun, that one included
    return trainer.current_epoch, done


def begin_epoch_after_resume(trainer: Trainer) -> None:
    """In ``on_train_start``: let a run that goes on after the last batch of an epoch begin the next one as every other.

    From a checkpoint that was saved in ``on_train_batch_end`` of an epoch's last batch, Lightning (2.5.6, 2.6.6) counts
    that epoch as done and still goes on as if inside it: ``on_train_epoch_start`` is not called, the new epoch is not
    counted, and what is restored from a checkpoint of *this* run then counts a batch twice.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    processed: int = getattr(epochs, "processed", -1)
    if getattr(loop, "restarted_mid_epoch", False) and epochs.ready == processed:
        loop.reset_restart_stage()


def set_epoch_length(trainer: Trainer, micro_batches: int) -> None:
    """Tell every place that counts an epoch's micro-batches: progress bar, end of epoch, validation interval."""
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    assert combined is not None
    assert fetcher is not None
    if loop.max_batches == micro_batches:
        return
    loop.max_batches = micro_batches
    combined.limits = [micro_batches] * len(combined.flattened)
    fetcher.length = micro_batches
    if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(micro_batches * trainer.val_check_interval))


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
