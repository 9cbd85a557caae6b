"""Training batches for a branch, so that the run itself still begins with the batch that it would have begun with."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterator, Sequence
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_lr.batch_size import RampBatchSampler
from lightning_lr.branches import ForkedState, RandomState
from lightning_lr.nested import tensors_in

MOST_DATA_SETS = 10_000
"""A list of more is taken for samples."""


KEPT_BYTES = 1 << 30
"""Size of the batches from which on none are kept on the host, and a second iterator reads them for every branch."""


class UpcomingBatches:
    """Micro-batches of the training loader, as it hands them out: the same ones at every reading.

    They are read through a second iterator of the same loader, from the start of an epoch and again where it ends.
    Workers of its own serve it. Generators and positions that loader, samplers and data set keep are the caller's to
    restore, see :attr:`forked`; the global random generators are as they were after every batch. Batches are kept on
    the host until they are larger than ``KEPT_BYTES``; then they are read anew every time, from the state that the
    caller has restored. A stream that cannot be read twice (an iterator, a data set that holds one) is read ahead: the
    batches come from the run's own iterator, which hands them out once more, and all are kept.

    Args:
        trainer: in ``on_train_batch_start``.
        window: samples in each micro-batch of an update, where a ramp's sampler would hand out those of its plan;
            ``None``: as they come.
    """

    def __init__(self, trainer: Trainer, window: Sequence[int] | None = None) -> None:
        combined = trainer.fit_loop._combined_loader
        assert combined is not None
        self._trainer, self._window = trainer, window
        self._taken: list[Any] = []
        self._keeps, self._bytes = True, 0
        self._random: RandomState | None = None  # of the second iterator, between two of its batches
        self._ahead: deque[Any] = deque()
        self._second: Any = None
        self._iterator: Iterator[Any] | None = None
        self.read_ahead = any(_can_be_read_once(loader) for loader in combined.flattened)
        """Whether the batches are the very ones with which the run goes on."""

    @property
    def forked(self) -> list[Any]:
        """The objects in which a second iterator leaves traces."""
        return changed_by_reading(self._trainer.fit_loop._combined_loader)

    def first(self, count: int) -> Iterator[Any]:
        """The first ``count`` micro-batches: fewer from a stream that ends before, the same at every call."""
        if not self._keeps:
            self._iterator = self._random = None
        for index in range(count):
            if self._keeps and index < len(self._taken):
                yield self._taken[index]
                continue
            batch = self._next()
            if batch is _END:
                return
            self._keep(batch)
            yield batch

    def take(self, count: int) -> list[Any]:
        """The same, all at once."""
        return list(self.first(count))

    def close(self) -> None:
        """End the workers, forget the batches; what was read ahead of the run is handed out to it again."""
        if self._second is not None:
            self._second.reset()
        if self._ahead:
            fetcher = self._trainer.fit_loop._data_fetcher
            assert fetcher is not None
            assert fetcher.iterator is not None
            fetcher.iterator = _handed_out_again(self._ahead, fetcher.iterator)
        self._second = self._iterator = None
        self._taken, self._ahead = [], deque()

    # ------------------------------------------------------------------ inside
    def _keep(self, batch: Any) -> None:
        if not self._keeps:
            return
        self._taken.append(batch)
        self._bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(batch, objects=True))
        if self._bytes > KEPT_BYTES and not self.read_ahead:
            self._keeps, self._taken = False, []

    def _next(self) -> Any:
        if self.read_ahead:
            return self._next_of_run()
        outside = RandomState()  # what a branch draws must not depend on which batches are kept
        if self._random is not None:
            self._random.restore()
        try:
            return self._next_of_second()
        finally:
            self._random = RandomState()
            outside.restore()

    def _next_of_second(self) -> Any:
        for _ in range(2):  # at the end of an epoch, the next one; no batch in a whole epoch: there is none
            if self._iterator is None:
                self._open()
            assert self._iterator is not None
            batch = next(self._iterator, _END)
            if batch is not _END:
                return batch[0]
            self._iterator = None
        return _END

    def _open(self) -> None:
        combined = self._trainer.fit_loop._combined_loader
        assert combined is not None
        if self._second is not None:
            self._second.reset()
        self._second = copy.copy(combined)
        self._second._iterator = None
        self._second.flattened = [_second_loader(loader, self._window) for loader in combined.flattened]
        self._iterator = iter(self._second)

    def _next_of_run(self) -> Any:
        fetcher = self._trainer.fit_loop._data_fetcher
        assert fetcher is not None
        prefetched = getattr(fetcher, "batches", [])  # the run takes these before it goes on with its iterator
        if len(self._taken) < len(prefetched):
            return prefetched[len(self._taken)][0]
        assert fetcher.iterator is not None
        item = next(fetcher.iterator, _END)
        if item is _END:
            return _END
        self._ahead.append(item)
        return item[0]


def changed_by_reading(loaders: Any) -> list[Any]:
    """The objects in which reading leaves traces: a loader, or several, with their samplers, data sets, generators."""
    combined = loaders if isinstance(loaders, CombinedLoader) else CombinedLoader(loaders, "max_size_cycle")
    found: list[Any] = []
    for loader in combined.flattened:
        found += [loader, *(getattr(loader, n, None) for n in ("batch_sampler", "sampler", "dataset", "generator"))]
        found.append(getattr(getattr(loader, "batch_sampler", None), "sampler", None))
        found += _data_sets_in(getattr(loader, "dataset", None))
    return [thing for thing in found if thing is not None]


def unnoticed_batch(loaders: Any) -> Any:
    """The first batch, read so that whoever reads next begins with the same one."""
    random, traces = RandomState(), ForkedState(changed_by_reading(loaders), tensors=False)
    try:
        return next(iter(loaders))
    finally:
        traces.restore()
        random.restore()


def _data_sets_in(dataset: Any) -> list[Any]:
    """The data sets that a data set is made of: those of a part, of several in one, and of wrappers."""
    found: list[Any] = []
    waiting, met = [dataset], {id(dataset)}
    while waiting:
        for value in getattr(waiting.pop(), "__dict__", {}).values():
            several = value if isinstance(value, list | tuple) and len(value) <= MOST_DATA_SETS else (value,)
            for inner in several:
                if isinstance(inner, Dataset) and id(inner) not in met:
                    met.add(id(inner))
                    found.append(inner)
                    waiting.append(inner)
    return found


def _handed_out_again(ahead: deque[Any], rest: Iterator[Any]) -> Iterator[Any]:
    while ahead:
        yield ahead.popleft()
    while (item := next(rest, _END)) is not _END:  # "yield from" would call iter(rest), which begins an epoch
        yield item


_END: Any = object()


def _second_loader(loader: Any, window: Sequence[int] | None) -> Any:
    """A loader over the same samplers and data, whose iterator is not the first one's (persistent workers)."""
    if not isinstance(loader, DataLoader):
        return loader
    second = copy.copy(loader)
    second.__dict__["_iterator"] = None
    given = loader.batch_sampler
    if window is not None and isinstance(given, RampBatchSampler):
        # from the start of the epoch, whatever the run has passed over or planned there: a resumed run reads the same
        second.__dict__["batch_sampler"] = given.in_equal_windows(window)
    return second


def _can_be_read_once(loader: Any) -> bool:
    """Whether a second iterator would take batches away from the first."""
    if isinstance(loader, DataLoader):
        data = loader.dataset
        return isinstance(data, IterableDataset) and (isinstance(data, Iterator) or _holds_an_iterator(data))
    return isinstance(loader, Iterator) or _holds_an_iterator(loader)


def _holds_an_iterator(thing: Any) -> bool:
    return any(isinstance(value, Iterator) for value in getattr(thing, "__dict__", {}).values())
