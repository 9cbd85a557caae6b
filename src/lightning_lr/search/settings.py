"""What is searched for, checked when it is set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

from lightning_lr.curves import Curve
from lightning_lr.search.heats import FIRST_TRIALS, share_of

Budget = float | Literal["auto"]


class SearchSettings:
    """The arguments of a search; for their meaning see ``LearningRateSearch``.

    Args:
        curve: what the run follows from the rate that was found.
        min_lr: lowest rate that may be chosen, or ``None``.
        max_lr: highest rate that may be chosen, or ``None``.
        budget: share of the run's updates that all searches together may take, in (0, 1]; ``"auto"``: see
            :func:`~lightning_lr.search.share_of`.
        at: shares of the run at which to search, in [0, 1), ascending.

    Raises:
        ValueError: for an argument outside its range.
        TypeError: for a ``curve`` that is none.
    """

    def __init__(
        self, curve: Curve, min_lr: float | None, max_lr: float | None, budget: Budget, at: Sequence[float]
    ) -> None:
        caller = "LearningRateSearch"
        if not isinstance(curve, Curve):
            raise TypeError(f"{caller}: got curve={curve!r}; give a Curve, for example Cosine(warmup=0.05)")
        for name, value in (("min_lr", min_lr), ("max_lr", max_lr)):
            if value is not None and not (math.isfinite(value) and value > 0.0):
                raise ValueError(f"{caller}: got {name}={value}; give a finite rate above 0, or None")
        if min_lr is not None and max_lr is not None and min_lr > max_lr:
            raise ValueError(f"{caller}: got min_lr={min_lr} above max_lr={max_lr}; give min_lr <= max_lr")
        if budget != "auto" and not (isinstance(budget, (int, float)) and 0.0 < budget <= 1.0):
            raise ValueError(
                f'{caller}: got budget={budget!r}; give a share of the run\'s updates in (0, 1], or "auto"'
            )
        at = tuple(float(share) for share in at)
        if not at or list(at) != sorted(set(at)) or not all(0.0 <= share < 1.0 for share in at):
            raise ValueError(
                f"{caller}: got at={at}; give shares of the run in [0, 1), ascending, for example (0.0, 0.3)"
            )
        self.curve, self.min_lr, self.max_lr, self.budget, self.at = curve, min_lr, max_lr, budget, at

    @property
    def single(self) -> float | None:
        """The only rate that may be chosen, if there is only one."""
        return self.min_lr if self.min_lr is not None and self.min_lr == self.max_lr else None

    @property
    def candidates(self) -> int:
        """Rates a decade apart that may be chosen."""
        if self.min_lr is None or self.max_lr is None:
            return FIRST_TRIALS
        return math.floor(math.log10(self.max_lr / self.min_lr)) + 2

    def within(self, rate: float) -> float:
        """The rate nearest to ``rate`` that may be chosen."""
        if self.min_lr is not None:
            rate = max(rate, self.min_lr)
        return rate if self.max_lr is None else min(rate, self.max_lr)

    def updates(self, total: int) -> float:
        """Updates that one of the searches may take in a run of ``total``."""
        return share_of(self.budget, total) * total / len(self.at)
