"""Windows: the samples that make one update, cut into micro-batches, and what gradient accumulation must know of them.

A :class:`~lightning_lr.batch_size.plan.RampPlan` answers for each epoch with :class:`EpochWindows`; the sampler yields
its micro-batches, and the callback asks it for accumulation and weights. Lightning accumulates a fixed number of
micro-batches and averages their means. Here windows differ in length, also within an epoch, and micro-batches in size,
and yet each gradient is the mean over exactly the window's samples: by :class:`WindowAccumulation`, a number of
micro-batches that knows where windows end, and by :func:`window_weights`.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from itertools import accumulate, chain
from typing import NamedTuple


class Window(NamedTuple):
    """One update's samples.

    Args:
        start: samples of the epoch before it, over all devices.
        size: its samples, over all devices; fewer than ``batch_size`` at the end of an epoch.
        micro_sizes: samples in each of its micro-batches on one device (the same on every device).
        lr_factor: what the ramp multiplies the learning rate of its update by.
        batch_size: samples of a full update, over all devices, for which ``lr_factor`` is made.
    """

    start: int
    size: int
    micro_sizes: tuple[int, ...]
    lr_factor: float
    batch_size: int


@lru_cache(maxsize=4096)
def micro_batch_sizes(samples: int, largest: int | None) -> tuple[int, ...]:
    """Cut one device's samples into the fewest micro-batches of at most ``largest``, whose sizes differ by at most 1.

    ``None`` is no limit. Equal sizes, where the count divides, let compiled kernels be used again.
    """
    count = 1 if largest is None else -(-samples // largest)
    size, longer = divmod(samples, count)
    return (size + 1,) * longer + (size,) * (count - longer)


def window_weights(micro_sizes: Sequence[int]) -> list[float]:
    r"""Return the weight of each micro-batch's mean loss that makes an accumulated gradient the mean over all samples.

    .. math:: w_i = \frac{m_i k}{\sum_j m_j} \quad\text{so that}\quad
        \frac{1}{k} \sum_i w_i \bar\ell_i = \frac{\sum_i m_i \bar\ell_i}{\sum_j m_j}

    Lightning divides every loss by k, the number of micro-batches, which for unequal sizes is a mean of means.

    Args:
        micro_sizes: samples m_i in each micro-batch of the window.
    """
    total, count = sum(micro_sizes), len(micro_sizes)
    return [size * count / total for size in micro_sizes]


class WindowAccumulation(int):
    """The number of micro-batches in a window, as Lightning wants it, that also knows where windows begin and end.

    Lightning asks ``batch_idx % a == 0`` whether to zero the gradients (a window begins) and ``ready % a == 0``, with
    ``ready = batch_idx + 1``, whether to step (a window ends), and divides losses by ``a``. With a plain int, windows
    must all be alike: changing it from 2 to 4 at batch_idx 6 leaves the gradient of the window before in place. As
    the right operand of ``%``, Python tries a subclass of int first. It answers for its windows and is a plain int
    otherwise. ``test_window_accumulation_steps_exactly_at_window_ends`` guards the trick.

    Args:
        count: micro-batches in the present window, by which losses are divided.
        boundaries: micro-batches of the epoch before each window, and before the end of the epoch.
    """

    boundaries: frozenset[int]

    def __new__(cls, count: int, boundaries: Iterable[int]) -> WindowAccumulation:
        self = super().__new__(cls, count)
        self.boundaries = frozenset(boundaries)  # of a frozenset, the same object: windows of an epoch share one
        return self

    def __getnewargs__(self) -> tuple[int, frozenset[int]]:  # type: ignore[override]
        return int(self), self.boundaries

    def __rmod__(self, micro_batches: int) -> int:
        """0 exactly where a window begins or ends; elsewhere 1, which stands for no remainder in particular."""
        return int(micro_batches not in self.boundaries)


class ValidationInterval(int):
    """A ``val_check_interval`` in batches of the loader's own size, while the micro-batches are others.

    Lightning asks ``micro_batches % interval == 0`` whether to validate, and whether the interval is more than an
    epoch. Under a ramp both would be answered by grown batches, and validation would end without a word. This validates
    as often by samples as without the ramp.

    Args:
        batches: the interval that the user gave.
        in_epoch: batches of an epoch without the ramp.
        ends: numbers of micro-batches after which to validate, as Lightning counts them.
    """

    in_epoch: int
    ends: frozenset[int]

    def __new__(cls, batches: int, in_epoch: int, ends: Iterable[int] = ()) -> ValidationInterval:
        self = super().__new__(cls, batches)
        self.in_epoch, self.ends = in_epoch, frozenset(ends)
        return self

    def __getnewargs__(self) -> tuple[int, int, frozenset[int]]:  # type: ignore[override]
        return int(self), self.in_epoch, self.ends

    def __rmod__(self, micro_batches: int) -> int:
        """0 exactly where a validation is due."""
        return int(micro_batches not in self.ends)

    def __gt__(self, micro_batches: float) -> bool:
        return int(self) > self.in_epoch

    def in_windows(
        self, micro_sizes: Sequence[int], batch_size: int, earlier: int = 0, counted: int = 0
    ) -> ValidationInterval:
        """The interval in an epoch: after the first micro-batch with which each further multiple of it is read.

        Args:
            micro_sizes: samples of the epoch's micro-batches on one device.
            batch_size: samples of a batch without the ramp.
            earlier: batches without the ramp before this epoch, which the interval counts too.
            counted: micro-batches that Lightning has counted before this epoch.
        """
        whole, ends, passed = sum(micro_sizes), [], earlier // int(self)
        for index, read in enumerate(accumulate(micro_sizes)):
            batches = earlier + (read // batch_size if read < whole else -(-whole // batch_size))
            if batches // int(self) > passed:
                passed = batches // int(self)
                ends.append(counted + index + 1)
        return ValidationInterval(int(self), self.in_epoch, ends)


class EpochWindows(tuple[Window, ...]):
    """The windows of one epoch, in order, and where its micro-batches stand in them.

    A micro-batch is meant by its index in the epoch, Lightning's ``batch_idx``; it is the same on every device.
    """

    @cached_property
    def micro_sizes(self) -> list[int]:
        """Samples in each micro-batch of the epoch on one device."""
        return list(chain.from_iterable(window.micro_sizes for window in self))

    @cached_property
    def samples_before(self) -> list[int]:
        """Samples of the epoch on one device before each micro-batch, and last all of them."""
        return list(accumulate(self.micro_sizes, initial=0))

    @cached_property
    def first_micro_batches(self) -> list[int]:
        """Index of the first micro-batch of each window, and last the number of micro-batches in the epoch."""
        return list(accumulate((len(window.micro_sizes) for window in self), initial=0))

    @cached_property
    def boundaries(self) -> frozenset[int]:
        """:attr:`first_micro_batches` as a set, for :class:`WindowAccumulation`."""
        return frozenset(self.first_micro_batches)

    def index_of(self, micro_batch: int) -> int:
        """Index of the window that a micro-batch belongs to.

        Raises:
            IndexError: if the epoch has no such micro-batch.
        """
        if not 0 <= micro_batch < self.first_micro_batches[-1]:
            raise IndexError(f"micro-batch {micro_batch} is not one of the epoch's {self.first_micro_batches[-1]}")
        return bisect_right(self.first_micro_batches, micro_batch) - 1

    def window_of(self, micro_batch: int) -> Window:
        """The window that a micro-batch belongs to."""
        return self[self.index_of(micro_batch)]

    def accumulation_at(self, micro_batch: int) -> WindowAccumulation:
        """What ``trainer.accumulate_grad_batches`` is to be while a micro-batch runs."""
        return WindowAccumulation(len(self.window_of(micro_batch).micro_sizes), self.boundaries)

    def weight_of(self, micro_batch: int) -> float:
        """Weight of a micro-batch's mean loss, see :func:`window_weights`."""
        index = self.index_of(micro_batch)
        return window_weights(self[index].micro_sizes)[micro_batch - self.first_micro_batches[index]]

    def first_of_window(self, micro_batch: int) -> int:
        """Index of the first micro-batch in the window of this one: what a checkpoint inside a window goes back to."""
        return self.first_micro_batches[self.index_of(micro_batch)]

    def next_window_from(self, micro_batches: int) -> Window | None:
        """First window of which none of the first ``micro_batches`` is a part; ``None`` if the epoch has none left."""
        index = bisect_left(self.first_micro_batches, micro_batches)
        return self[index] if index < len(self) else None
