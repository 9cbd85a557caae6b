"""For all tests: no limit in seconds, what has been imported is not garbage, files that start processes run first."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files that start processes take longest: they are handed out first, so that the workers end together."""
    items.sort(key=_starts_no_processes)


def _starts_no_processes(item: pytest.Item) -> bool:
    module = getattr(item, "module", None)
    return not any(hasattr(module, name) for name in ("run_in_processes", "run_in_two_processes", "Batches", "Child"))


def pytest_collection_finish() -> None:
    """Lightning and DeepSpeed collect garbage in runs, which takes a second if it looks at all that was imported."""
    gc.collect()
    gc.freeze()
