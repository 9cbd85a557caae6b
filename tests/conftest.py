"""For all tests: no limit in seconds, what outlives a file is not garbage, files that start processes run first."""

from __future__ import annotations

import functools
import gc
import importlib.metadata
from collections.abc import Generator, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")
# every Trainer looks through all installed packages for callbacks, and none is installed while tests run
importlib.metadata.entry_points = functools.cache(importlib.metadata.entry_points)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes take longest: they are handed out first, so that the workers end together."""
    items.sort(key=_starts_no_processes)


def _starts_no_processes(item: pytest.Item) -> bool:
    module = getattr(item, "module", None)
    return not any(hasattr(module, name) for name in ("run_in_processes", "run_in_two_processes", "Batches", "Child"))


def _freeze() -> None:
    """Lightning and DeepSpeed collect garbage in runs, and every fit of a callback looks through all objects for LR
    schedulers: a second where these are all that was imported, parsed and cached so far, milliseconds without that."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, Any, Any]:
    """What is imported stays: nothing is collected until all of it is."""
    gc.disable()
    try:
        return (yield)
    finally:
        _freeze()
        gc.enable()


@pytest.fixture(scope="module", autouse=True)
def _what_a_file_leaves_is_not_garbage() -> Iterator[None]:
    yield
    _freeze()
