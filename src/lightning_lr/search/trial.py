"""What one rate has done in one heat."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from lightning_lr.search.heats import FORWARD


@dataclass(frozen=True)
class Trial:
    """One rate in one heat.

    Args:
        rate: peak of its schedule.
        losses: of each update made.
        scores: of each batch that it was scored on; none where it diverged.
    """

    rate: float
    losses: tuple[float, ...]
    scores: tuple[float, ...]

    @property
    def score(self) -> float:
        """The mean of its scores, infinite where it diverged."""
        return sum(self.scores) / len(self.scores) if self.scores else math.inf

    @property
    def price(self) -> float:
        """Updates that it took, a forward pass a third of one."""
        return len(self.losses) + FORWARD * len(self.scores)

    def facts(self) -> dict[str, Any]:
        """Plain values, for journals and states."""
        return {"rate": self.rate, "losses": list(self.losses), "scores": list(self.scores)}
