"""For all tests: what has been imported is not garbage."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Lightning and DeepSpeed collect garbage in runs, which takes a second if it looks at all that was imported."""
    gc.collect()
    gc.freeze()
