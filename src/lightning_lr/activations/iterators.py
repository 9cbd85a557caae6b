"""Iterators among a block's arguments: what a block took out of one is given to it again at the recomputation."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any


class Tape:
    """Stands for an iterator while a block runs, and notes what the block takes.

    Args:
        source: advances as in the plain run.
    """

    def __init__(self, source: Iterator[Any]) -> None:
        self._source = source
        self._taken: list[Any] = []

    def __iter__(self) -> Tape:
        return self

    def __next__(self) -> Any:
        item = next(self._source)
        self._taken.append(item)
        return item

    def __getattr__(self, name: str) -> Any:
        return getattr(self._source, name)

    def again(self) -> Iterator[Any]:
        """The same items from the first."""
        return iter(list(self._taken))


def is_iterator(thing: Any) -> bool:
    """Whether a thing is a generator or an iterator of Python's own, whose place cannot be put back."""
    return isinstance(thing, Iterator) and not isinstance(thing, Tape | io.IOBase) and not hasattr(thing, "__dict__")


def taped(value: Any) -> Any:
    """The argument, with a tape in the place of an iterator."""
    if is_iterator(value):
        return Tape(value)
    if type(value) is tuple and any(is_iterator(part) for part in value):
        return tuple(map(taped, value))
    return value
