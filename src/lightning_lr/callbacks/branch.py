"""Branches of a Lightning run: fork, train a little where nobody sees it, score, go back.

The adapter between ``branches`` (what is remembered and put back) and Lightning (how an update is made, where batches
come from). The search for a learning rate and the measurement of a critical batch size are made of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import Tensor

from lightning_lr import lightning_internals as internals
from lightning_lr.branches import ForkedState, RandomState


class Branches:
    """Trains from one and the same state again and again; made by :func:`forked`.

    Args:
        trainer: in ``on_train_batch_start``, before the first micro-batch of an update.
        updates: makes the updates.
        batches: where their micro-batches come from.
        restore: puts the run back to where it was forked.
        accumulation: micro-batches of an update; ``None`` for the Trainer's.
    """

    def __init__(
        self,
        trainer: Trainer,
        updates: internals.UnnoticedUpdates,
        batches: internals.UpcomingBatches,
        restore: Callable[[], None],
        accumulation: int | None = None,
    ) -> None:
        self._trainer, self._updates, self._batches, self._restore = trainer, updates, batches, restore
        self.accumulation = int(trainer.accumulate_grad_batches) if accumulation is None else accumulation
        """Micro-batches of an update."""

    def available(self, updates: int) -> int:
        """How many of so many updates there are batches for, on every rank; fewer where a stream ends."""
        try:
            there = sum(1 for _ in self._batches.first(updates * self.accumulation)) // self.accumulation
        finally:
            self._restore()
        if self._trainer.world_size > 1:
            fewest = torch.tensor(-float(there), device=self._trainer.strategy.root_device)
            there = int(-internals.maximum_over_ranks(fewest).item())
        return there

    def train(
        self,
        updates: int,
        before_update: Callable[[int], None],
        goes_on: Callable[[float], bool],
        score_on: int,
    ) -> tuple[list[float], list[float]]:
        """Train from the fork, score, go back.

        Args:
            updates: to make; every branch of as many trains on the same batches with the same random numbers.
            before_update: called with the number of each update, from 0: sets what is tried.
            goes_on: called with the loss of each update; False ends the branch, which then has no score.
            score_on: updates' worth of batches that it is scored on: those that follow.

        Returns:
            The loss of each update, and of each batch it is scored on, means over ranks; no scores where the branch
            was ended or a score is not finite.
        """
        batches = self._batches.first((updates + score_on) * self.accumulation)
        training = islice(batches, updates * self.accumulation)
        try:
            return self._train(training, batches, before_update, goes_on, self.accumulation)
        finally:
            self._restore()

    def train_in_batches(
        self,
        multiple: int,
        updates: int,
        before_update: Callable[[int], None],
        sizes_of: Callable[[Any], int | None],
        length: int,
        score_on: int,
    ) -> tuple[list[float], list[float]]:
        """Train from the fork in batches of another size, score, go back.

        Args:
            multiple: of the present batch.
            updates: to make, each of the micro-batches of ``multiple`` present ones.
            before_update: as of :meth:`train`.
            sizes_of: samples in a micro-batch; where they differ, an update has the mean over all of its samples.
            length: updates of the present batch that a branch trains on at most: the scored batches follow these.
            score_on: updates' worth of batches that it is scored on.

        Returns:
            As :meth:`train`. The branch ends with a loss that is not finite.
        """
        batches = self._batches.take((length + score_on) * self.accumulation)
        window = multiple * self.accumulation
        training, scoring = batches[: updates * window], batches[length * self.accumulation :]
        trainer, accumulation = self._trainer, self._trainer.accumulate_grad_batches
        try:
            trainer.accumulate_grad_batches = window
            self._updates.weigh_by(sizes_of)
            return self._train(training, scoring, before_update, math.isfinite, window)
        finally:
            trainer.accumulate_grad_batches = accumulation
            self._updates.weigh_by(None)
            self._restore()

    # ------------------------------------------------------------------ inside
    def _train(
        self,
        training: Iterable[Any],
        scoring: Iterable[Any],
        before_update: Callable[[int], None],
        goes_on: Callable[[float], bool],
        window: int,
    ) -> tuple[list[float], list[float]]:
        self._updates.begin()
        losses: list[float] = []
        update = 0
        reading = iter(training)
        while micro_batches := list(islice(reading, window)):
            before_update(update)
            update += 1
            try:
                loss = self._mean(self._updates.update(micro_batches))
            except (ArithmeticError, AssertionError, RuntimeError, ValueError):
                # distributions, matrix decompositions and many modules raise where weights are no longer finite
                if not losses or self._trainer.world_size > 1 or self._weights_finite():
                    raise
                return losses, []
            if loss is None:
                continue
            losses.append(loss)
            if not goes_on(loss):
                return losses, []
        scores = [self._mean(self._updates.loss(batch)) for batch in scoring]
        finite = [score for score in scores if score is not None]
        return losses, finite if all(map(math.isfinite, finite)) else []

    def _mean(self, loss: Tensor | None) -> float | None:
        if loss is None:
            return None
        return float(internals.mean_over_ranks(loss) if self._trainer.world_size > 1 else loss)

    def _weights_finite(self) -> bool:
        module = self._trainer.lightning_module
        return all(bool(p.detach().isfinite().all()) for p in module.parameters() if p.is_floating_point())


@contextmanager
def forked(
    trainer: Trainer,
    module: LightningModule,
    after_restore: Callable[[], None] = lambda: None,
    window: Sequence[int] | None = None,
) -> Iterator[Branches]:
    """Fork a run. Afterwards it is, to the bit, where it was, however the block was left.

    Args:
        trainer: in ``on_train_batch_start``, before the first micro-batch of an update.
        module: its module.
        after_restore: called whenever the state has been put back.
        window: samples in each micro-batch of an update, where a ramp decides about them; ``None``: as the loader and
            the Trainer have it.
    """
    random = RandomState()
    optimizers = list(trainer.optimizers)
    scaler = internals.scaler_of(trainer)
    listeners = [*trainer.callbacks, *trainer.loggers]  # type: ignore[attr-defined]
    outside = [trainer, trainer.datamodule, trainer.strategy, *listeners]  # type: ignore[attr-defined]
    outside.append(getattr(trainer.strategy, "checkpointing", None))  # that the forwards of blocks lead to
    batches = internals.UpcomingBatches(trainer, window)
    # what listeners hold is theirs: hooks of theirs may note what they saw, but they train nothing
    notes = ForkedState(
        [
            *trainer.callbacks,  # type: ignore[attr-defined]
            *([] if trainer.datamodule is None else [trainer.datamodule]),  # type: ignore[attr-defined]
            *batches.forked,
        ],
        leave_out=[trainer, module, *trainer.loggers, *optimizers],
        tensors=False,
    )
    try:
        with internals.unnoticed(trainer, module) as updates:
            # taken with the module's logging silenced: what each branch puts back is silent, too
            engine = internals.forked_by_strategy(trainer)
            held = [] if engine is None else engine.leave_out
            trained = [module, *optimizers, *([] if scaler is None else [scaler])]
            state = ForkedState(trained, leave_out=[*outside, *held])
            for gone in state.gone:
                rank_zero_warn(
                    f"lightning_lr: {gone}, and what a branch takes from it is gone for the run; keep what can be set "
                    "back in its place (a counter, a list with a position, a generator of random numbers)"
                )

            def restore() -> None:
                if engine is not None:
                    engine.restore()
                state.restore()
                notes.restore()
                random.restore()
                after_restore()

            try:
                yield Branches(trainer, updates, batches, restore, None if window is None else len(window))
            finally:
                restore()
    finally:
        batches.close()
        random.restore()
