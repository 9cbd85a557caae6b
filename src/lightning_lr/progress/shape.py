"""How long a run is: what an epoch yields, what makes an update, and where the run ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

from lightning_lr.progress.budget import Budget, NoEndError, Place, Span


class Share(NamedTuple):
    """What one device reads in an epoch: samples of a full micro-batch, and of all (``None`` where not known)."""

    micro_batch_size: int
    samples: int | None

    def of(self, index: int) -> int:
        """Samples of the micro-batch at ``index``; the last is what is left."""
        if self.samples is None:
            return self.micro_batch_size
        return max(0, min(self.micro_batch_size, self.samples - index * self.micro_batch_size))

    def before(self, index: int) -> int:
        """Samples of all micro-batches before ``index``."""
        samples = index * self.micro_batch_size
        return samples if self.samples is None else min(samples, self.samples)


@dataclass(frozen=True)
class EpochShape:
    """What one epoch of the training loader yields.

    Args:
        micro_batches: micro-batches per device in an epoch; ``None`` where the loader has no length.
        micro_batch_size: samples in a full micro-batch of one device; ``None`` where it is not known.
        device_samples: samples per device in an epoch; ``None`` where no sampler has them. The last
            micro-batch is what is left of them.
        world_size: devices that train together.
        shares: what each device reads, where they do not all read the same.
        drop_last: whether a last micro-batch that is not full is left out.
        order: in a word, how the samples follow each other.
    """

    micro_batches: int | None
    micro_batch_size: int | None
    device_samples: int | None = None
    world_size: int = 1
    shares: tuple[Share, ...] | None = None
    drop_last: bool = False
    order: str | None = None

    @classmethod
    def of_all(cls, measured: Sequence[EpochShape]) -> EpochShape:
        """One fact of what every device has measured of its own loader.

        The epoch is as long as the shortest; sizes are known where they are on all devices.
        """
        lengths = [epoch.micro_batches for epoch in measured]
        known = [length for length in lengths if length is not None]
        batches = min(known) if len(known) == len(lengths) else None
        first, world_size = measured[0], len(measured)
        if any(epoch.micro_batch_size is None for epoch in measured):
            return cls(batches, None, None, world_size, order=first.order)
        untold = any(epoch.device_samples is None for epoch in measured)
        shares = tuple(
            Share(epoch.micro_batch_size or 0, None if untold else epoch.device_samples) for epoch in measured
        )
        largest, own = max(shares), None if len(set(shares)) == 1 else shares
        return cls(batches, largest.micro_batch_size, largest.samples, world_size, own, first.drop_last, first.order)

    @cached_property
    def counts_samples(self) -> bool:
        """Whether a unit is a sample (else it is a micro-batch)."""
        return self.micro_batch_size is not None

    @cached_property
    def sizes_known(self) -> bool:
        """Whether every micro-batch's size is known ahead, so that nothing has to be counted from batches."""
        return self.micro_batch_size is not None and self.device_samples is not None

    def units(self, index: int) -> int:
        """Units (samples over all devices) of the micro-batch at ``index`` of an epoch."""
        if self.shares is not None:
            return sum(share.of(index) for share in self.shares)
        return self.world_size * (1 if self._share is None else self._share.of(index))

    def units_before(self, index: int) -> int:
        """Units of all micro-batches of an epoch before ``index``."""
        if self.shares is not None:
            return sum(share.before(index) for share in self.shares)
        return self.world_size * (index if self._share is None else self._share.before(index))

    @property
    def total_units(self) -> int | None:
        """Units in one epoch, or ``None`` where the loader has no length."""
        return None if self.micro_batches is None else self.units_before(self.micro_batches)

    @cached_property
    def _share(self) -> Share | None:
        return None if self.micro_batch_size is None else Share(self.micro_batch_size, self.device_samples)


class Batch(NamedTuple):
    """A full update's batch: samples over all devices, of a micro-batch, and micro-batches per device.

    Full is the largest update that an epoch has: where a whole epoch is less than accumulation x micro-batch x devices,
    all of it. An update that the end of an epoch cuts short has fewer samples; these are still its epoch's numbers.
    """

    size: int | None
    micro_batch_size: int | None
    accumulation: int


@dataclass(frozen=True)
class RunShape:
    """A whole run: an epoch, how many micro-batches make an update, and where the run ends.

    Args:
        epoch: what one epoch yields.
        accumulation: micro-batches per update and device; a function of the epoch where it changes between epochs.
        max_epochs: epochs after which the run ends, or ``None``.
        max_updates: updates after which the run ends, or ``None``.
        max_seconds: seconds of training after which the run ends, or ``None``. The earliest of the three ends it.
    """

    epoch: EpochShape
    accumulation: int | Callable[[int], int] = 1
    max_epochs: int | None = None
    max_updates: int | None = None
    max_seconds: float | None = None

    # ------------------------------------------------------------------ the end
    @cached_property
    def budget(self) -> Budget:
        """What ends the run."""
        return Budget(self.max_epochs, self.max_updates, self.max_seconds)

    @cached_property
    def ends(self) -> bool:
        """Whether the run has an end that is known, so that there is progress."""
        return self.has_length or self.max_seconds is not None

    @cached_property
    def has_length(self) -> bool:
        """Whether the number of updates of the run is known."""
        return self.max_updates is not None or (self.max_epochs is not None and self.epoch.micro_batches is not None)

    @property
    def why_no_end(self) -> str:
        """In the user's words, why progress is not known, and what to set."""
        if self.max_epochs is None:
            return "max_epochs=-1 has no end; set max_epochs, max_steps or max_time"
        return (
            f"max_epochs={self.max_epochs} counts epochs, and the train dataloader has no length, so the end of the "
            "run is not known; set max_steps (or an integer limit_train_batches, or max_time)"
        )

    def epoch_span(self, place: Place) -> Span | None:
        """What the update that begins at ``place`` covers of its epoch; ``None`` where an epoch has no length."""
        batches = self.micro_batches_in(place.epoch)
        if not batches:
            return None
        end = self.window_end(place.epoch, place.micro_batch)
        return Span(place.micro_batch if place.window is None else place.window, end, batches)

    # ------------------------------------------------------------------ epochs and updates
    def accumulation_in(self, epoch: int) -> int:
        """Micro-batches per update and device in an epoch (0-based)."""
        return self.accumulation(epoch) if callable(self.accumulation) else self.accumulation

    def updates_in(self, epoch: int) -> int:
        """Updates in an epoch (0-based); the last window of an epoch may be short. The loader has a length."""
        assert self.epoch.micro_batches is not None
        return math.ceil(self.epoch.micro_batches / self.accumulation_in(epoch))

    def micro_batches_in(self, epoch: int) -> int | None:
        """Micro-batches per device in an epoch, or ``None`` where the loader has no length."""
        return self.epoch.micro_batches

    def units(self, epoch: int, micro_batch: int) -> int:
        """Units (samples over all devices) of a micro-batch."""
        return self.epoch.units(micro_batch)

    def units_before(self, epoch: int, micro_batch: int) -> int:
        """Units of an epoch before a micro-batch."""
        return self.epoch.units_before(micro_batch)

    def window(self, epoch: int, micro_batch: int) -> tuple[int, int]:
        """Where the update that begins at ``micro_batch`` ends (the first micro-batch after it), and its units."""
        end = self.window_end(epoch, micro_batch)
        return end, self.epoch.units_before(end) - self.epoch.units_before(micro_batch)

    def window_end(self, epoch: int, micro_batch: int) -> int:
        """The first micro-batch after the update that begins at ``micro_batch``."""
        accumulation, last = self.accumulation, self.epoch.micro_batches
        if type(accumulation) is not int:
            accumulation = self.accumulation_in(epoch)
        end = (micro_batch // accumulation + 1) * accumulation
        return end if last is None or end < last else last

    def window_start(self, epoch: int, micro_batch: int) -> int:
        """The first micro-batch of the update that a micro-batch belongs to."""
        return micro_batch - micro_batch % self.accumulation_in(epoch)

    def samples_before(self, place: Place) -> int:
        """Samples over all devices before a place, if every epoch was like this one; 0 where they are not known."""
        whole = self.epoch.total_units
        if not self.epoch.counts_samples or (whole is None and place.epoch):
            return 0
        return place.epoch * (whole or 0) + self.units_before(place.epoch, place.micro_batch)

    def batch_at(self, epoch: int, micro_batch: int) -> Batch:
        """How the batch of a full update is made up where the update begins at ``micro_batch``."""
        return self._batch_in(epoch) if callable(self.accumulation) else self._batch

    @property
    def batch_size(self) -> int | None:
        """Global batch of a full update in the first epoch, see :class:`Batch`; ``None``: not known."""
        return self.batch_at(0, 0).size

    @property
    def total_updates(self) -> int:
        """Updates in the run.

        Raises:
            NoEndError: where it is not known.
        """
        return self._length[0]

    @property
    def fixed_batch_updates(self) -> int:
        """Updates in the run if every batch had the size of the first."""
        return self.total_updates

    @property
    def total_units(self) -> int:
        """Units (samples over all devices) in the run.

        Raises:
            NoEndError: where it is not known.
        """
        return self._length[1]

    @cached_property
    def _batch(self) -> Batch:
        """The batch where every epoch is alike."""
        return self._batch_in(0)

    def _batch_in(self, epoch: int) -> Batch:
        if self.epoch.micro_batch_size is None:
            return Batch(None, None, self.accumulation_in(epoch))
        end, size = self.window(epoch, 0)
        return Batch(size, self.epoch.units(0) // self.epoch.world_size, end)

    @cached_property
    def _length(self) -> tuple[int, int]:
        if not self.has_length:
            raise NoEndError(
                self.why_no_end
                if not self.ends
                else f"max_time={self.max_seconds:g} s gives no number of updates; set max_steps or max_epochs too"
            )
        if self.epoch.micro_batches is None:  # endless loader: nominal batches up to max_updates
            assert self.max_updates is not None
            return self.max_updates, self.max_updates * self.accumulation_in(0) * self.epoch.units(0)
        epoch_units = self.epoch.units_before(self.epoch.micro_batches)
        limit = math.inf if self.max_updates is None else self.max_updates
        if not callable(self.accumulation):  # every epoch is alike: no walk over (perhaps very many) epochs
            per_epoch = self.updates_in(0)
            if per_epoch == 0:
                return 0, 0
            whole = int(min(math.inf if self.max_epochs is None else self.max_epochs, limit // per_epoch))
            updates, units, epoch = whole * per_epoch, whole * epoch_units, whole
        else:
            updates = units = epoch = 0
            while epoch != self.max_epochs and updates + self.updates_in(epoch) <= limit and self.updates_in(epoch) > 0:
                updates, units, epoch = updates + self.updates_in(epoch), units + epoch_units, epoch + 1
        if epoch != self.max_epochs and updates < limit:  # a part of one more epoch
            rest = int(min(limit - updates, self.updates_in(epoch)))
            batches = min(rest * self.accumulation_in(epoch), self.epoch.micro_batches)
            updates, units = updates + rest, units + self.epoch.units_before(batches)
        return updates, units
