"""The training loader under a ramp: its batch sampler replaced, moved to the run's place, updated at each growth."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, RandomSampler

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import EpochSampler, EpochWindows, RampBatchSampler, RampPlan, ValidationInterval
from lightning_lr.batch_size.ramped_shape import RampedShape
from lightning_lr.batch_size.streamed_shape import StreamedShape
from lightning_lr.callbacks.base import members_of
from lightning_lr.callbacks.batch_size_ramp.streaming import StreamedWindows
from lightning_lr.callbacks.run_shape import run_shape
from lightning_lr.progress import RunShape


class RampedLoader:
    """Takes every training loader over before Lightning measures it, and keeps sampler and totals on the plan.

    Args:
        trainer: in ``setup``, before anything asks for the loader.
        reshape: the run under the ramp, for a run with the loader's own batch.
        seed: of the order of a shuffled loader, from a checkpoint; ``None`` takes ``torch.initial_seed()``.
    """

    def __init__(self, trainer: Trainer, reshape: Callable[[RunShape], RampedShape], seed: int | None) -> None:
        self.seed = seed
        self.stream: StreamedWindows | None = None
        """The windows over iterable data, whose loader is left as it is."""
        self._reshape = reshape
        self._plan: RampPlan | None = None
        self._planned_for: RunShape | None = None
        self._empty = False
        self._sampler: RampBatchSampler | None = None
        self._placed_at: tuple[int, int] | None = None
        self._given: DataLoader[Any] | None = None
        self._given_batch_size = 1
        self._given_batches = 1  # of an epoch without the ramp
        self._counted_before = 0  # micro-batches that Lightning has counted before this epoch
        self._random_state: tuple[Tensor, Tensor | None] | None = None
        self._undo: list[Callable[[], Any]] = [internals.on_train_loader(trainer, partial(self._take_over, trainer))]

    # ------------------------------------------------------------------ reading
    @property
    def plan(self) -> RampPlan:
        """The plan of the run; the loader has been made."""
        assert self._plan is not None
        return self._plan

    @property
    def given(self) -> DataLoader[Any]:
        """The loader that was taken over."""
        assert self._given is not None
        return self._given

    @property
    def ready(self) -> bool:
        """Whether the loader has been made."""
        return self._plan is not None

    def windows(self, epoch: int) -> EpochWindows:
        """The windows of an epoch."""
        return self.plan.windows(epoch)

    def next_free_place(self, trainer: Trainer, epoch: int) -> tuple[int, int]:
        """Epoch and samples of it before the first window of which nothing has been given out or prefetched."""
        if self.stream is not None:  # what is prefetched does not know of windows
            at, given_out = internals.next_position(trainer)
            if at > epoch:
                return at, 0
        else:
            assert self._sampler is not None
            given_out = self._sampler.given_out
        window = self.windows(epoch).next_window_from(given_out)
        return (epoch, window.start) if window is not None else (epoch + 1, 0)

    # ------------------------------------------------------------------ following the loop
    def start(self, trainer: Trainer) -> None:
        """Training starts: move to where the loops were restored to, and set the length of this epoch in Lightning."""
        if len(internals.train_loaders(trainer)) > 1:
            raise MisconfigurationException(
                f"BatchSizeRamp: got {len(internals.train_loaders(trainer))} train dataloaders, whose batches would "
                "have to grow together; give one"
            )
        if self.stream is not None:
            return
        if self._placed_at != internals.starting_position(
            trainer
        ):  # the loader was made before the loops were restored
            self._place(trainer)
            internals.restart_iterator(trainer)
        epoch, micro_batch = internals.starting_position(trainer)
        counted = internals.batches_counted(trainer) - micro_batch
        if internals.finishes_validation(trainer):  # of the epoch before, whose end Lightning finds by its length
            epoch -= 1
            counted -= len(self.windows(epoch).micro_sizes)
        self._set_length(trainer, epoch, counted)

    def recut(self, trainer: Trainer, plan: RampPlan) -> None:
        """Before training: cut the same samples into other micro-batches, as if the plan had been this from the start.

        The epoch's iterator exists; it is made anew from the random state that it was made from.
        """
        self._plan = plan
        self._place(trainer)
        assert self._random_state is not None
        state, own = self._random_state
        generator = self.given.generator
        with torch.random.fork_rng(devices=()):
            torch.set_rng_state(state)
            if generator is not None and own is not None:
                generator.set_state(own)
            internals.restart_iterator(trainer)

    def follow(self, trainer: Trainer) -> bool:
        """Before an epoch: plan again where the end of the run has been changed; returns whether it was."""
        assert self._planned_for is not None
        now = run_shape(trainer, self._planned_for.epoch)
        if now == self._planned_for:
            return False
        self._plan_for(now)
        self._placed_at = None
        return True

    def start_epoch(self, trainer: Trainer) -> None:
        """An epoch starts. The iterator of the first, also after a resume, exists; others are made after this."""
        if self.stream is not None or self._empty:
            return
        epoch = trainer.current_epoch
        assert self._sampler is not None
        if epoch > 0 and self._placed_at != (epoch, 0):
            self._sampler.set_windows(self.windows(epoch))
            self._sampler.set_epoch(epoch)
        self._set_length(trainer, epoch, internals.batches_counted(trainer))

    def replan(self, trainer: Trainer, plan: RampPlan) -> None:
        """Go on with a plan that differs from the old one in windows that nothing has been prefetched of."""
        self._plan = plan
        if self.stream is not None:
            self.stream.shape = StreamedShape.of(self.stream.shape, plan)
            return
        assert self._sampler is not None
        windows = self.windows(trainer.current_epoch)
        self._sampler.replan(windows)
        self._set_length(trainer, trainer.current_epoch, self._counted_before)

    def release(self, trainer: Trainer) -> None:
        """Give the loader and the Trainer back as they were."""
        for undo in reversed(self._undo):  # a finder has had the same loader taken over more than once
            undo()
        self._undo = []
        trainer.accumulate_grad_batches = 1

    # ------------------------------------------------------------------ inside
    def _set_length(self, trainer: Trainer, epoch: int, counted: int) -> None:
        """Set in Lightning how long an epoch is, and where in it a validation is due."""
        self._counted_before = counted
        if self._sampler is not None:
            self._sampler.told = None
        sizes = self.windows(epoch).micro_sizes
        internals.set_epoch_length(trainer, len(sizes))
        interval = internals.validation_interval(trainer)
        if isinstance(interval, ValidationInterval):
            of_the_run = internals.validates_over_epochs(trainer)
            earlier, before = (epoch * interval.in_epoch, counted) if of_the_run else (0, 0)
            trainer.val_check_batch = interval.in_windows(sizes, self._given_batch_size, earlier, before)
        elif isinstance(interval, float) and interval < 1:
            own = ValidationInterval(max(1, int(self._given_batches * interval)), self._given_batches)
            trainer.val_check_batch = own.in_windows(sizes, self._given_batch_size)

    def _validate_by_samples(self, trainer: Trainer, batch_size: int, batches: int) -> None:
        """A ``val_check_interval`` counts the loader's own batches, or is a share of them, which the ramp changes."""
        interval = internals.validation_interval(trainer)
        self._given_batch_size, self._given_batches = batch_size, batches
        if isinstance(interval, int) and not isinstance(interval, bool):
            trainer.val_check_interval = ValidationInterval(interval, batches)
            self._undo.append(partial(setattr, trainer, "val_check_interval", int(interval)))

    def _take_over(self, trainer: Trainer, loader: Any) -> Any:
        attached = any(member.changes_batch for member in members_of(trainer))
        if internals.makes_no_update(trainer) or not attached:  # a finder trains without the callbacks
            return loader
        _refuse_ranks_that_differ(trainer, loader)
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
            return self._stream_from(trainer, loader)
        given = _batch_sampler_of(loader)
        own = loader.generator.get_state() if loader.generator is not None else None
        self._given, self._random_state = loader, (torch.get_rng_state(), own)
        sampler, size = given.sampler, len(loader.dataset)
        if isinstance(sampler, RandomSampler) and not sampler.replacement and sampler.num_samples == size:
            self.seed = trainer.strategy.broadcast(self.seed if self.seed is not None else torch.initial_seed())
            sampler = EpochSampler(size, seed=self.seed)
        elif isinstance(sampler, DistributedSampler) and sampler.shuffle:
            self._keep_order_of(sampler)
        whole, rest = divmod(len(sampler), given.batch_size)  # type: ignore[arg-type]
        unlimited = whole + int(rest > 0 and not given.drop_last)
        batches = internals.limited_batches(trainer, unlimited)
        self._empty = batches == 0
        if self._empty:
            return loader  # Lightning ends without a further update
        shape = internals.loader_shape(loader, batches, trainer.world_size)
        self._plan_for(run_shape(trainer, shape))
        self._validate_by_samples(trainer, given.batch_size, batches)
        self._sampler = RampBatchSampler(sampler, given.batch_size, given.drop_last)
        if isinstance(trainer.limit_train_batches, float) and trainer.limit_train_batches < 1:
            self._sampler.told = unlimited  # Lightning takes its share of it, and our windows have taken it
        self._place(trainer)
        self._undo.append(partial(internals.replace_batch_sampler, loader, given))
        internals.replace_batch_sampler(loader, self._sampler)
        internals.forget_loader_states(trainer)
        return loader

    def _keep_order_of(self, sampler: DistributedSampler[Any]) -> None:
        """Lightning seeds it by ``seed_everything``; the order of a run that goes on is the one it began with."""
        given = sampler.seed
        sampler.seed = self.seed = given if self.seed is None else self.seed
        self._undo.append(partial(setattr, sampler, "seed", given))

    def _stream_from(self, trainer: Trainer, loader: DataLoader[Any]) -> DataLoader[Any]:
        if loader.batch_size is None:
            raise MisconfigurationException(
                f"BatchSizeRamp: {type(loader.dataset).__name__} makes its own batches (DataLoader(batch_size=None)), "
                "of sizes that we cannot see; let it yield samples and give the DataLoader a batch_size"
            )
        length, limit = internals.length_of(loader), trainer.limit_train_batches
        batches = internals.limited_batches(trainer, length) if length is not None else limit
        shape = internals.loader_shape(loader, batches if isinstance(batches, int) else None, trainer.world_size)
        self._plan_for(run_shape(trainer, shape))
        return loader

    def _plan_for(self, run: RunShape) -> None:
        """Plan a run, which Lightning may go on with after a reload, or with another end."""
        stream, self._plan, self.stream = self.stream, None, None
        ramped = self._reshape(run)
        self._plan, self._planned_for = ramped.plan, run
        if isinstance(ramped, StreamedShape):
            self.stream = stream or StreamedWindows(ramped)
            self.stream.shape = ramped

    def _place(self, trainer: Trainer) -> None:
        assert self._sampler is not None
        epoch, micro_batch = internals.starting_position(trainer)
        windows = self.windows(epoch)
        if micro_batch not in windows.boundaries:  # inside a window: its gradient is lost, so run it again as a whole
            micro_batch = windows.first_of_window(micro_batch)
            internals.roll_back_to(trainer, micro_batch)
        trainer.accumulate_grad_batches = windows.accumulation_at(micro_batch)
        self._sampler.set_epoch(epoch)
        self._sampler.set_windows(windows, skip=micro_batch)
        self._placed_at = epoch, micro_batch


def _refuse_ranks_that_differ(trainer: Trainer, loader: Any) -> None:
    """Compare what the plan is made from over all ranks: they would make different plans and wait for each other.

    Raises:
        MisconfigurationException: on every rank, also where only one of them has a loader that is refused.
    """
    if trainer.world_size == 1:
        return
    facts: dict[str, Any] = {}
    try:
        if isinstance(loader, DataLoader) and isinstance(loader.dataset, IterableDataset):
            facts = {"batch_size": loader.batch_size, "batches": internals.length_of(loader)}
        else:
            given = _batch_sampler_of(loader)
            samples = len(given.sampler)  # type: ignore[arg-type]
            facts = {"batch_size": given.batch_size, "samples": samples, "drop_last": given.drop_last}
    except MisconfigurationException as error:
        facts = {"refused": str(error)}
    everybody = internals.gather_to_all(facts)
    if any(other != everybody[0] for other in everybody):
        raise MisconfigurationException(
            "BatchSizeRamp: the ranks' train dataloaders differ ("
            + "; ".join(f"rank {rank}: {_in_words(other)}" for rank, other in enumerate(everybody))
            + "), and their batches have to grow together; give every rank the same batch_size and as many samples"
        )


def _in_words(facts: dict[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in facts.items())


def _batch_sampler_of(loader: Any) -> BatchSampler:
    if not isinstance(loader, DataLoader):
        raise MisconfigurationException(
            f"BatchSizeRamp: got a {type(loader).__name__}, which is batched where we cannot see it; use a DataLoader"
        )
    given = loader.batch_sampler
    if type(given) not in (BatchSampler, RampBatchSampler):
        raise MisconfigurationException(
            f"BatchSizeRamp: the train dataloader has a batch sampler of its own ({type(given).__name__}), which "
            "decides about the batch too; give the DataLoader a sampler and a batch_size"
        )
    assert isinstance(given, BatchSampler)
    return given
