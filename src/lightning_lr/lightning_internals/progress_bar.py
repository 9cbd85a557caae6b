"""Learning rate, batch and phase in Lightning's progress bar, next to what the module logs there."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer

SECONDS = 0.5
"""Between two renewals: nobody reads faster, and a learning rate on a GPU is waited for."""


class BarNotes:
    """What this package writes into the progress bar of one run."""

    def __init__(self) -> None:
        self._shown: dict[str, Any] = {}
        self._at = -math.inf

    def due(self, trainer: Trainer) -> bool:
        """Whether there is a bar that shows metrics, and what this package wrote there is old or gone."""
        bar = trainer.progress_bar_callback
        if bar is None or not getattr(bar, "is_enabled", True):
            return False
        gone = not self._shown.keys() <= _metrics(trainer).keys()  # Lightning empties it between its loops
        return gone or time.perf_counter() - self._at >= SECONDS

    def show(self, trainer: Trainer, notes: Mapping[str, str]) -> None:
        """Write; a name that the module logs there stays the module's."""
        metrics = _metrics(trainer)
        theirs = {name for name, value in trainer.progress_bar_metrics.items() if self._shown.get(name) != value}
        self._shown = {name: text for name, text in notes.items() if name not in theirs}
        metrics.update(self._shown)
        self._at = time.perf_counter()

    def remove(self, trainer: Trainer) -> None:
        """Training is over: the bar's metrics are the module's alone again."""
        for name, value in self._shown.items():
            if _metrics(trainer).get(name) == value:
                del _metrics(trainer)[name]
        self._shown = {}


def _metrics(trainer: Trainer) -> dict[str, Any]:
    metrics: dict[str, Any] = trainer._logger_connector._progress_bar_metrics
    return metrics
