"""How a budget of updates is spent: how many heats, how long, scored on how much."""

from __future__ import annotations

from dataclasses import dataclass

FORWARD = 1 / 3
"""Price of a forward pass, in updates."""

FIRST_TRIALS = 4
"""Rates, a decade apart, that the first heat mostly takes: until the best has a worse one on each side."""

LAST_TRIALS = 3
"""Rates, half a decade apart, of a later heat: the leader and its neighbours."""

SHORTEST = 4
"""Updates of a schedule below which nothing can be measured: a warm-up, a peak, a decay."""

LONGEST = 128
"""Updates of a schedule that need not be longer to rank rates; what is left of a large budget is saved."""

DOUBLES = 96
"""Updates of the last heat from which on a heat of a third of its length comes before it."""


@dataclass(frozen=True)
class Heats:
    """The heats of a race.

    Args:
        lengths: updates of every schedule, by heat; the first is over decades, the others over half decades.
        budget: updates that the race may take.
    """

    lengths: tuple[int, ...]
    budget: float

    @property
    def price(self) -> float:
        """Updates that the race mostly takes."""
        first, *later = self.lengths
        return FIRST_TRIALS * price(first) + sum(LAST_TRIALS * price(n) for n in later)


def scored_on(updates: int) -> int:
    """Updates' worth of batches on which a schedule is scored."""
    return max(4, updates // 8)


def price(updates: int) -> float:
    """What one schedule costs, its score included, in updates."""
    return updates + FORWARD * scored_on(updates)


def plan_heats(budget: float, narrow: bool = False, candidates: int = FIRST_TRIALS) -> Heats | None:
    """Spend ``budget`` updates: a short heat finds the decade, a heat as long as what is left allows the rate in it.

    Args:
        budget: updates.
        narrow: whether the decade is known already.
        candidates: rates a decade apart that may be chosen, where there are fewer than the first heat mostly takes.

    Returns:
        The heats, or ``None`` where not even a heat of the shortest schedules fits.
    """
    if narrow:
        last = _longest(budget, LAST_TRIALS)
        return None if last is None else Heats((last,), budget)
    trials = min(candidates, FIRST_TRIALS)
    only = _longest(budget, trials)
    if only is None:
        return None
    first = min(16, max(SHORTEST, int(budget / 16)))
    last = _longest(budget - trials * price(first), LAST_TRIALS)
    if last is None or last < 1.5 * first:
        return Heats((only,), budget)
    if last >= DOUBLES:
        middle = max(first, last // 3)
        longest = _longest(budget - trials * price(first) - LAST_TRIALS * price(middle), LAST_TRIALS)
        if longest is not None and longest >= 2 * middle:
            return Heats((first, middle, longest), budget)
    return Heats((first, last), budget)


def _longest(budget: float, trials: int) -> int | None:
    """The longest schedule of which ``trials`` fit."""
    updates = min(LONGEST, int(budget / trials))
    while updates >= SHORTEST and trials * price(updates) > budget:
        updates -= 1
    return updates if updates >= SHORTEST else None
