"""How long a run is: what an epoch yields, what makes an update, and where the run ends."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple


@dataclass(frozen=True)
class EpochShape:
    """What one epoch of the training loader yields.

    Args:
        micro_batches: micro-batches per device in an epoch; ``None`` where the loader has no length.
        micro_batch_size: samples in a full micro-batch of one device; ``None`` where the loader does not tell.
        device_samples: samples per device in an epoch; ``None`` where there is no sampler that tells. The last
            micro-batch is what is left of them.
        world_size: devices that train together.
    """

    micro_batches: int | None
    micro_batch_size: int | None
    device_samples: int | None = None
    world_size: int = 1

    @property
    def counts_samples(self) -> bool:
        """Whether a unit of progress is a sample (else it is a micro-batch)."""
        return self.micro_batch_size is not None

    @property
    def sizes_known(self) -> bool:
        """Whether every micro-batch's size is known ahead, so that nothing has to be counted from batches."""
        return self.micro_batch_size is not None and self.device_samples is not None

    def units(self, index: int) -> int:
        """Units (samples over all devices) of the micro-batch at ``index`` of an epoch."""
        if self.micro_batch_size is None:
            return self.world_size
        size = self.micro_batch_size
        if self.device_samples is not None:
            size = max(0, min(size, self.device_samples - index * size))
        return size * self.world_size

    def units_before(self, index: int) -> int:
        """Units of all micro-batches of an epoch before ``index``."""
        if self.micro_batch_size is None:
            return index * self.world_size
        samples = index * self.micro_batch_size
        if self.device_samples is not None:
            samples = min(samples, self.device_samples)
        return samples * self.world_size

    @property
    def total_units(self) -> int | None:
        """Units in one epoch, or ``None`` where the loader has no length."""
        return None if self.micro_batches is None else self.units_before(self.micro_batches)


class Batch(NamedTuple):
    """A full update's batch: samples over all devices, of a micro-batch, and micro-batches per device."""

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
        max_updates: updates after which the run ends, or ``None``. At least one of the two is given; the earlier ends.

    Raises:
        ValueError: where the length of the run does not follow from these.
    """

    epoch: EpochShape
    accumulation: int | Callable[[int], int] = 1
    max_epochs: int | None = None
    max_updates: int | None = None

    def __post_init__(self) -> None:
        if self.max_updates is None and (self.max_epochs is None or self.epoch.micro_batches is None):
            given = f"max_epochs={self.max_epochs}, max_steps={self.max_updates}"
            loader = "a loader without a length" if self.epoch.micro_batches is None else "a loader with a length"
            raise ValueError(
                f"the length of the run is not known ({given}, {loader}); a schedule needs its end. Set the Trainer's "
                "max_steps, or max_epochs with a loader that has a length (or an integer limit_train_batches)"
            )
        if self.total_updates == 0:
            raise ValueError(
                f"the run has 0 updates (max_epochs={self.max_epochs}, max_steps={self.max_updates}, "
                f"{self.epoch.micro_batches} micro-batches per epoch); a schedule needs at least one"
            )

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
        accumulation = self.accumulation_in(epoch)
        end = (micro_batch // accumulation + 1) * accumulation
        if self.epoch.micro_batches is not None:
            end = min(end, self.epoch.micro_batches)
        return end, self.epoch.units_before(end) - self.epoch.units_before(micro_batch)

    def batch_at(self, epoch: int, micro_batch: int) -> Batch:
        """How the batch of a full update is made up where the update begins at ``micro_batch``."""
        micro, accumulation = self.epoch.micro_batch_size, self.accumulation_in(epoch)
        return Batch(None if micro is None else micro * accumulation * self.epoch.world_size, micro, accumulation)

    def units_left(self, updates: int) -> int:
        """Units that the updates after the first ``updates`` would have, in a run that ends by updates."""
        assert self.max_updates is not None
        return (self.max_updates - updates) * (self.total_units // self.max_updates)

    @property
    def batch_size(self) -> int | None:
        """Global batch of a full update in the first epoch, or ``None`` where the loader does not tell."""
        if self.epoch.micro_batch_size is None:
            return None
        return self.epoch.micro_batch_size * self.accumulation_in(0) * self.epoch.world_size

    @property
    def total_updates(self) -> int:
        """Updates in the run."""
        return self._length[0]

    @property
    def fixed_batch_updates(self) -> int:
        """Updates in the run if every batch had the size of the first."""
        return self.total_updates

    @property
    def total_units(self) -> int:
        """Units (samples over all devices) in the run."""
        return self._length[1]

    @cached_property
    def _length(self) -> tuple[int, int]:
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
