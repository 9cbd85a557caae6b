"""How a budget of updates is spent: how many heats, how long, scored on how much."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

FORWARD = 1 / 3
"""Price of a forward pass, in updates."""

FIRST_TRIALS = 4
"""Rates, a decade apart, that the first heat mostly takes: until the best has a worse one on each side."""

LAST_TRIALS = 4
"""Rates, half a decade apart, of a later heat: the leader, its neighbours, and one more where the first heat has led to
the wrong decade. With room for three, longer ones, the best was often the highest that there was room for."""

FEWEST_TRIALS = 3
"""Rates of a later heat where a guard has no room otherwise."""

SHORTEST = 4
"""Updates of a schedule below which nothing can be measured: a warm-up, a peak, a decay."""

LONGEST = 128
"""Updates of a schedule that need not be longer to rank rates; what is left of a large budget is saved."""

SHORTEST_HOLD = 8
"""Updates of a held rate below which its peak is not seen: the eighth is at twice the choice."""

HELD_SCORES = 2
"""Updates' worth of batches that a held rate is scored on: an explosion in its last update shows there."""

SHORT_RUN = 256
"""Updates of a run up to which half of it is spent by default, see :func:`share_of`."""

DOUBLES = 96
"""Updates of the last heat from which on a heat of a third of its length comes before it."""


@dataclass(frozen=True)
class Heats:
    """The heats of a race, and the guard after them.

    Args:
        lengths: updates of every schedule, by heat; the first is over decades, the others over half decades.
        budget: updates that the race may take.
        held: updates for which the choice is held at a higher rate, without a decay; 0 where there is no room for it.
            What the heats leave of the budget goes there, too.
        first: rates that the first heat mostly takes.
        later: rates that a later heat mostly takes.
    """

    lengths: tuple[int, ...]
    budget: float
    held: int = 0
    first: int = FIRST_TRIALS
    later: int = LAST_TRIALS

    @property
    def price(self) -> float:
        """Updates that the race mostly takes."""
        first, *later = self.lengths
        return self.first * price(first) + sum(self.later * price(n) for n in later) + self.guard

    @property
    def guard(self) -> float:
        """Updates that are set aside for the guard."""
        return self.held + FORWARD * HELD_SCORES if self.held else 0.0

    def __str__(self) -> str:
        guard = f", the choice held for {self.held}" if self.held else ""
        return f"heats of {', '.join(map(str, self.lengths))} updates{guard}, about {self.price:,.0f} in all"


def share_of(budget: float | Literal["auto"], updates: float) -> float:
    r"""What a search may take of a run of so many ``updates``, as a share of it.

    .. math:: \min(1/2, \; 1/2 \, (256 / T)^{2/3})

    for ``"auto"``: a race has to be so many updates long to say anything, and the longer the run, the longer, but by
    far not in proportion. Half of a run of 256 updates, a fifth of one of 1 024, 4 % of one of 10 000.
    """
    if budget != "auto":
        return float(budget)
    return 0.5 * min(1.0, math.pow(SHORT_RUN / max(updates, 1.0), 2 / 3))


def scored_on(updates: int) -> int:
    """Updates' worth of batches on which a schedule is scored."""
    return max(4, updates // 3)


def price(updates: int) -> float:
    """What one schedule costs, its score included, in updates."""
    return updates + FORWARD * scored_on(updates)


def plan_heats(budget: float, narrow: bool = False, candidates: int = FIRST_TRIALS) -> Heats | None:
    """Spend ``budget`` updates: a short heat finds the decade, a heat as long as what is left allows the rate in it.

    A guard of half the last heat's length is set aside where there are two heats or more.

    Args:
        budget: updates.
        narrow: whether the decade is known already.
        candidates: rates a decade apart that may be chosen, where there are fewer than the first heat mostly takes.

    Returns:
        The heats, or ``None`` where not even a heat of the shortest schedules fits.
    """
    if narrow:
        return _with_last((), 0.0, budget, SHORTEST)
    trials = min(candidates, FIRST_TRIALS)
    only = _longest(budget, trials)
    if only is None:
        return None
    first = min(16, max(SHORTEST, int(budget / 16)))
    two = _with_last((first,), trials * price(first), budget, math.ceil(1.5 * first), trials)
    if two is None:
        return Heats((only,), budget, first=trials)
    last = two.lengths[-1]
    if last >= DOUBLES:
        middle = max(first, last // 3)
        spent = trials * price(first) + LAST_TRIALS * price(middle)
        return _with_last((first, middle), spent, budget, 2 * middle, trials) or two
    return two


def guard_of(updates: int) -> int:
    """Updates for which a choice is held after a heat of schedules of so many."""
    return max(SHORTEST_HOLD, updates // 2)


def _with_last(
    lengths: tuple[int, ...], spent: float, budget: float, least: int, first: int | None = None
) -> Heats | None:
    """The heats ``lengths``, which cost ``spent``, a last one as long as there is room for, and a guard, if it fits."""
    for guarded, trials in ((True, LAST_TRIALS), (True, FEWEST_TRIALS), (False, FEWEST_TRIALS)):
        last = _longest(budget - spent, trials, guarded)
        if last is not None and last >= (max(least, SHORTEST_HOLD) if guarded else least):
            return Heats((*lengths, last), budget, guard_of(last) if guarded else 0, first or trials, trials)
    return None


def _longest(budget: float, trials: int, guarded: bool = False) -> int | None:
    """The longest schedule of which ``trials`` fit, and the guard after them where there is to be one."""

    def costs(updates: int) -> float:
        return trials * price(updates) + (guard_of(updates) + FORWARD * HELD_SCORES if guarded else 0.0)

    updates = min(LONGEST, int(budget / trials))
    while updates >= SHORTEST and costs(updates) > budget:
        updates -= 1
    return updates if updates >= SHORTEST else None
