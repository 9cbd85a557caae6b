"""The samplers that carry a plan out: one cuts the order of samples into the plan's micro-batches, one makes an order.

``RampBatchSampler`` takes the place of a DataLoader's batch sampler; it lives in the main process, so that workers,
persistent ones too, notice nothing. ``EpochSampler`` takes the place of torch's RandomSampler, whose order comes from
the global random state and is gone after a restart; this one's follows from seed and epoch. Pure torch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice

import torch
from torch.utils.data import BatchSampler, Sampler

from lightning_lr.batch_size.windows import Window
from lightning_lr.checks import require_count


class RampBatchSampler(BatchSampler):
    """Yields the samples of ``sampler`` in micro-batches as long as the windows of a plan.

    Without windows it does what torch's BatchSampler does; the signature is the same, because Lightning builds batch
    samplers anew around a ``DistributedSampler``.

    Args:
        sampler: the order of one device's samples in an epoch.
        batch_size: micro-batch size until windows are set.
        drop_last: whether a last micro-batch that is short is left out, until windows are set.

    Raises:
        ValueError: as torch's BatchSampler, if batch_size or drop_last is of a wrong type or value.
    """

    def __init__(self, sampler: Sampler[int] | Iterable[int], batch_size: int, drop_last: bool = False) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.skip = 0
        """Micro-batches at the start of the epoch whose samples are passed over, without being loaded."""
        self.given_out = 0
        """Micro-batches of the running epoch given out, skipped ones included; prefetched ones are among them."""
        self.told: int | None = None
        """A length to tell in place of the epoch's: its share that is read is taken of it, and was taken already."""
        self._sizes: list[int] | None = None

    def set_windows(self, windows: Iterable[Window], skip: int = 0) -> None:
        """Set the windows of the epochs to come, that is of every iteration started from now on.

        Args:
            windows: one epoch's, from ``RampPlan.windows(epoch)``.
            skip: micro-batches to pass over, for an epoch that is resumed.

        Raises:
            ValueError: if skip is more than the epoch's micro-batches.
        """
        sizes = _micro_sizes(windows)
        if not 0 <= skip <= len(sizes):
            raise ValueError(
                f"RampBatchSampler: skip={skip!r} is not among the {len(sizes)} micro-batches of the epoch; a "
                "checkpoint of a run with another batch size, data set or number of devices cannot be resumed within "
                "an epoch"
            )
        self._sizes, self.skip = sizes, skip

    def in_equal_windows(self, micro_sizes: Sequence[int]) -> RampBatchSampler:
        """Another sampler over the same order, all of whose windows are alike; what is left at the end is left out.

        Args:
            micro_sizes: samples in each micro-batch of a window.
        """
        other = RampBatchSampler(self.sampler, self.batch_size, self.drop_last)
        windows = len(self.sampler) // sum(micro_sizes)  # type: ignore[arg-type]
        other._sizes = [*micro_sizes] * windows
        return other

    @property
    def has_windows(self) -> bool:
        """Whether windows have been set."""
        return self._sizes is not None

    def size_of(self, micro_batch: int) -> int | None:
        """Samples in a micro-batch of the running epoch, by its index; ``None`` where the epoch has no such one."""
        sizes = self._sizes or ()
        return sizes[micro_batch] if micro_batch < len(sizes) else None

    def replan(self, windows: Iterable[Window]) -> None:
        """Change the rest of the running epoch, for a batch that grows by what has been measured.

        Args:
            windows: the epoch's; those given out are as before.

        Raises:
            ValueError: if a micro-batch that has been given out would be another one.
        """
        sizes, given_out = _micro_sizes(windows), self.given_out
        if self._sizes is None or sizes[:given_out] != self._sizes[:given_out]:
            raise ValueError(
                f"RampBatchSampler: {given_out} micro-batches have been given out, and the new windows would change "
                "them; change windows past EpochWindows.next_window_from(given_out) only"
            )
        self._sizes[:] = sizes  # in place: the running iterator reads on in this list

    def set_epoch(self, epoch: int) -> None:
        """Pass the epoch on to ``sampler``, if it takes one."""
        set_epoch = getattr(self.sampler, "set_epoch", None)
        if callable(set_epoch):
            set_epoch(epoch)

    def __iter__(self) -> Iterator[list[int]]:
        # not a generator: windows and order are those at the call, as workers fetch long after it
        if self._sizes is None:
            return super().__iter__()
        self._sizes = list(self._sizes)  # its own list, so that a replan reaches no older iterator
        self.given_out = self.skip
        return self._micro_batches(iter(self.sampler), self._sizes, self.skip)

    def __len__(self) -> int:
        """Micro-batches of the epoch, those to skip included."""
        if self.told is not None:
            return self.told
        return super().__len__() if self._sizes is None else len(self._sizes)

    def _micro_batches(self, order: Iterator[int], sizes: list[int], index: int) -> Iterator[list[int]]:
        deque(islice(order, sum(sizes[:index])), maxlen=0)
        while index < len(sizes):
            batch = list(islice(order, sizes[index]))
            if len(batch) < sizes[index]:
                raise RuntimeError(
                    f"RampBatchSampler: the sampler ended at micro-batch {index} of {len(sizes)}; the plan counts on "
                    f"{sum(sizes)} samples per device and epoch, make its device_samples the sampler's length"
                )
            index += 1
            if sizes is self._sizes:
                self.given_out = index
            yield batch


class EpochSampler(Sampler[int]):
    """An order of a data set's samples that depends on seed and epoch alone, so that a resumed run repeats it.

    Args:
        size: samples in the data set.
        seed: of the shuffling, any integer.
        shuffle: whether to shuffle at all.

    Raises:
        ValueError: if size is not a positive integer.
    """

    def __init__(self, size: int, seed: int = 0, shuffle: bool = True) -> None:
        require_count("EpochSampler", "size", size, "samples")
        self.size = size
        self.seed = seed
        self.shuffle = shuffle
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, from 0, of iterations to come."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        # not a generator: the order is that of the epoch at the call
        if not self.shuffle:
            return iter(range(self.size))
        generator = torch.Generator()
        # seed + epoch would make epoch 1 of seed 0 epoch 0 of seed 1: seeds are set apart by 2**32 / golden ratio. The
        # generator takes in the low 32 bits only.
        generator.manual_seed((self.seed * 0x9E3779B1 + self.epoch) % 2**32)
        order: list[int] = torch.randperm(self.size, generator=generator).tolist()
        return iter(order)

    def __len__(self) -> int:
        return self.size


def _micro_sizes(windows: Iterable[Window]) -> list[int]:
    return list(chain.from_iterable(window.micro_sizes for window in windows))
