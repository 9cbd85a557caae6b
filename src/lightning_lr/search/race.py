"""The race: heats of short complete schedules, each longer and over fewer rates than the one before."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from lightning_lr.search.decades import leader as leader_of
from lightning_lr.search.heats import FORWARD, HELD_SCORES, SHORTEST_HOLD, Heats, price, scored_on
from lightning_lr.search.kinds import Start
from lightning_lr.search.trial import Trial

WARMUP = 0.2
"""Share of a schedule in which its rate climbs."""

CLIMB = 8
"""Updates of a climb below which rates look unstable that a run's longer one bears; half the schedule at most."""

EXPLODES = 3.0
"""A loss that has risen by so many times its first value has exploded, or by so many times what the same batch costs at
another rate, where that is more: one batch may be harder than the first."""

AS_HARD = 0.1
"""Two rates at which the loss of a batch differs by less than this share of it show what the batch costs, and not what
the rates do to it."""

ROOT = math.sqrt(10.0)

BOOST = 2.0
"""The choice is held at so many times its value, to see whether training stays stable. On CNN, ViT and byte LM a choice
passes at twice its value; at three times the byte LM with SGD does not."""

LOWERED = 2.0
"""A choice at which training did not stay stable is lowered by so many times, and held again; by half a decade where
the budget has no room to hold it."""

FLOOR = 4.0
"""A choice is lowered no further than so many times below the lowest rate of its heat."""

LEARNED = 0.5
"""Share of what the lowest rate of its heat has learned that a held rate has to learn. On CNN, ViT and byte LM a good
choice at twice its value has learned 0.9 or more of what even the best schedule has."""

FURTHEST = 8
"""Decades to either side of the start beyond which nothing is tried."""

NARROW = 1
"""The same, around a present rate, from which training has come as far as it is."""

LATER = 2
"""The same, around the rate from which a later heat goes on: where that learns nothing either, the lower the better."""

Schedule = Callable[[int, int], float]
"""Factor on the peak rate, from the number of an update (from 0) and the number of updates."""

Train = Callable[[float, int, int, Callable[[float], bool], Schedule], tuple[Sequence[float], Sequence[float]]]
"""Trains a branch: peak rate, updates, updates' worth of batches to be scored on, whether a loss lets it go on, the
schedule; returns the loss of each update made and of each batch it is scored on (none where it was ended or is not
finite)."""


def short_schedule(update: int, updates: int) -> float:
    """Factor on the peak rate at an update (from 0): a linear warm-up, and a linear decay to zero.

    The warm-up is a fifth of the schedule, but 8 updates, or half of it where that is less.
    """
    warmup, progress = min(0.5, max(WARMUP, CLIMB / updates)), update / updates
    if progress < warmup:
        return min(1.0, (update + 1) / (warmup * updates))
    return (1.0 - progress) / (1.0 - warmup)


def held_schedule(update: int, updates: int) -> float:
    """Factor on the peak rate at an update (from 0): a linear warm-up of 8 updates, and no decay.

    Not a shorter one, where there are few updates: a fast climb can break a network so that its loss stays flat.
    """
    return min(1.0, (update + 1) / CLIMB)


@dataclass
class Race:
    """Runs heats and remembers them.

    Args:
        heats: how long they are.
        start: where the first one begins.
        within: the nearest rate that may be chosen.
        train: trains a branch; all ranks are given the same losses.
        around: the present rate, where it is the first heat's only decade.
    """

    heats: Heats
    start: Start
    within: Callable[[float], float]
    train: Train
    around: float | None = None
    trials: list[list[Trial]] = field(default_factory=list)
    """By heat, in the order in which they ran."""
    held: list[Trial] = field(default_factory=list)
    """Rates that were held, not decayed, in the order in which they ran; their ``rate`` is the boosted one."""
    repeated: float = 0.0
    """Updates of schedules that were ended on a hard batch, and were made again."""

    @property
    def spent(self) -> float:
        """Updates that the race has taken."""
        return self.repeated + sum(trial.price for heat in (*self.trials, self.held) for trial in heat)

    def run(self) -> None:
        """Run every heat that the budget has room for."""
        leader, upwards = self.around, True
        for length in self.heats.lengths:
            heat: list[Trial] = []
            self.trials.append(heat)
            if leader is None:
                self._walk(heat, length, [self.start.low, 10.0 * self.start.low], step=10.0)
            else:
                self._walk(heat, length, [leader, leader * ROOT if upwards else leader / ROOT], step=ROOT)
            if not heat:
                self.trials.pop()
                return
            best = min(heat, key=lambda trial: trial.score)
            if not math.isfinite(best.score):
                return
            if leader is None:
                best = leader_of(heat)
            leader, upwards = best.rate, _better_side_is_up(heat, best)
        if len(self.trials) == 1 and self.around is None and leader is not None:  # no heat of its own for half decades
            self._walk(heat, length, [leader * ROOT if upwards else leader / ROOT], step=ROOT)

    def hold(self, rate: float, longest: Sequence[Trial]) -> float:
        """Lower ``rate`` while training does not stay stable at twice its value, held; as far as the budget has room.

        Not stable: the loss explodes, or has fallen by less than half of what it has fallen by at the lowest rate,
        after as many updates and on the same batches.

        A schedule that decays to zero soon after its warm-up leaves an unstable rate before the loss can explode. The
        run stays at its peak for much longer, and the edge of stability falls while a network learns.

        Args:
            rate: the chosen one.
            longest: the heat in which it was chosen: what is held reads no batch that this heat did not read.

        Returns:
            The highest of ``rate``, half of it and so on, at which training stayed stable; half a decade below the last
            one that was held where the budget has ended before.
        """
        reference = min((t for t in longest if t.scores), key=lambda t: t.rate, default=None)
        if reference is None:
            return rate
        # losses on the same batches: one batch that is harder than the first is no explosion
        seen = (*reference.losses, *reference.scores)
        high, length = max(seen), len(seen)
        lowest = min(trial.rate for trial in longest)

        def goes_on(loss: float) -> bool:
            return math.isfinite(loss) and loss - high <= EXPLODES * abs(high)

        while rate > self.within(lowest / FLOOR):
            updates = self._room_to_hold(length)
            boosted = self.within(BOOST * rate)
            if updates < SHORTEST_HOLD:
                break
            losses, scores = self.train(boosted, updates, HELD_SCORES, goes_on, held_schedule)
            trial = Trial(boosted, tuple(losses), tuple(scores))
            self.held.append(trial)
            then = sum(seen[updates : updates + HELD_SCORES]) / HELD_SCORES
            if trial.score <= high - LEARNED * (high - then):
                break
            rate = self.within(rate / (LOWERED if self._room_to_hold(length) >= SHORTEST_HOLD else ROOT))
        return rate

    # ------------------------------------------------------------------ inside
    def _room_to_hold(self, seen: int) -> int:
        """Updates for which a rate can be held, where another has ``seen`` so many batches."""
        # a tenth more than the budget, as for the heats
        return min(seen - HELD_SCORES, int(1.1 * self.heats.budget - self.spent - FORWARD * HELD_SCORES))

    def _walk(self, heat: list[Trial], length: int, rates: Sequence[float], step: float) -> None:
        """Try ``rates``, and on from them in steps, until the best one has a worse one on either side."""
        for rate in rates:
            self._try(heat, length, rate)
        while heat:
            ordered = sorted(heat, key=lambda trial: trial.rate)
            # a tie goes up, to the rate that does something; among diverged ones, down
            best = min(range(len(ordered)), key=lambda i: (ordered[i].score, -ordered[i].rate))
            flat = False
            if heat is self.trials[0] and self.around is None and ordered[best].scores:
                lowest, best = best, ordered.index(leader_of(ordered))
                flat = lowest == 0 < best  # next to no training is as good: go up to where something is learned
            if not math.isfinite(ordered[best].score):
                best = 0
            further = []
            if best == 0:
                further.append(ordered[0].rate / step)
            if (flat or best == len(ordered) - 1) and math.isfinite(ordered[-1].score):
                further.append(ordered[-1].rate * step)
            if not any(self._try(heat, length, rate, above=rate > ordered[best].rate) for rate in further):
                return

    def _try(self, heat: list[Trial], length: int, rate: float, above: bool = False) -> bool:
        """Try a rate, unless it has been, may not be chosen, or the budget has no room; whether it was tried.

        One ``above`` the best leaves the guard its room, since the guard tries a higher one itself, for longer.
        """
        rate = self.within(rate)
        if any(math.isclose(trial.rate, rate, rel_tol=1e-9) for trial in heat):
            return False
        if self.around is not None:
            centre, furthest = self.around, NARROW
        elif heat and heat is not self.trials[0]:
            centre, furthest = heat[0].rate, LATER
        else:
            centre, furthest = self.start.low, FURTHEST
        if abs(math.log10(rate / centre)) > furthest + 1e-9:
            return False
        # a tenth more than the budget: the last rate may decide on which side the best one lies
        if self.spent + price(length) > 1.1 * self.heats.budget - (self.heats.guard if above else 0.0) and heat:
            return False
        heat.append(self._trained(length, rate, [trial.losses[: None if trial.scores else -1] for trial in heat]))
        for trial in [trial for trial in heat if _blamed_for_a_batch(trial, heat)]:
            if self.spent + price(length) <= 1.1 * self.heats.budget:
                self.repeated += trial.price
                others = [other.losses for other in heat if other is not trial]
                heat[heat.index(trial)] = self._trained(length, trial.rate, others)
        return True

    def _trained(self, length: int, rate: float, others: Sequence[Sequence[float]]) -> Trial:
        """A schedule up to ``rate``, ended where its loss is far above the first, and above what the batches until then
        cost at other rates, whose losses ``others`` are."""
        longest = max(map(len, others), default=0)
        columns = ([other[n] for other in others if len(other) > n] for n in range(longest))
        costs = [min(filter(math.isfinite, column), default=-math.inf) for column in columns]
        losses: list[float] = []

        def goes_on(loss: float) -> bool:
            losses.append(loss)
            usual = max([losses[0], *costs[1 : len(losses)]])
            return math.isfinite(loss) and loss - usual <= EXPLODES * abs(usual)

        made, scores = self.train(rate, length, scored_on(length), goes_on, short_schedule)
        return Trial(rate, tuple(made), tuple(scores))


def _blamed_for_a_batch(trial: Trial, heat: Sequence[Trial]) -> bool:
    """Whether a schedule was ended on a batch that costs about as much at another rate."""
    if trial.scores or not trial.losses or not math.isfinite(trial.losses[-1]):
        return False
    place, loss = len(trial.losses) - 1, trial.losses[-1]
    known = [other.losses[place] for other in heat if other is not trial and len(other.losses) > place]
    return any(abs(loss - each) <= AS_HARD * min(abs(loss), abs(each)) for each in known)


def _better_side_is_up(heat: Sequence[Trial], best: Trial) -> bool:
    """Whether the best rate's neighbour above has a better score than the one below; up where only one is known."""
    above = min((t for t in heat if t.rate > best.rate), key=lambda t: t.rate, default=None)
    below = max((t for t in heat if t.rate < best.rate), key=lambda t: t.rate, default=None)
    return above is None or below is None or above.score <= below.score
