"""One search inside a Lightning run: the race of ``search`` on the branches of ``branch``."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.callbacks.branch import Branches, forked
from lightning_lr.callbacks.run import Run
from lightning_lr.progress import RunShape
from lightning_lr.search import Choice, Heats, Race, SearchResult, Trial, choose, plan_heats, short_schedule, start_of
from lightning_lr.search.decades import still_nothing
from lightning_lr.search.heats import SHORTEST, scored_on
from lightning_lr.search.race import Schedule, Train

if TYPE_CHECKING:
    from lightning_lr.callbacks.learning_rate_search import LearningRateSearch

CALLER = "LearningRateSearch"


def search(
    trainer: Trainer,
    module: LightningModule,
    run: Run,
    member: LearningRateSearch,
    reference_lr: float,
    cautious: float,
    at: float,
) -> SearchResult | None:
    """Race, and leave the run as it was.

    Args:
        trainer: between two updates.
        module: its module.
        run: of our callbacks.
        member: whose multiplier is raced.
        reference_lr: the scheduled rate that the multiplier is relative to.
        cautious: the rate without any evidence.
        at: share of the run, for the record.

    Returns:
        What was found; ``None`` where a stream has too few batches left before its epoch ends.
    """
    settings, present = member.settings, member.rate
    fallback = cautious if present is None else present
    with forked(trainer, module, run.writer.values_were_put_back) as branches:
        train = _trainer_of(run, member, reference_lr, branches)
        updates = _updates_of(
            run.clock.shape, trainer, lambda: train(fallback, SHORTEST, 0, lambda loss: True, short_schedule)
        )
        planned = plan_heats(settings.updates(updates), narrow=present is not None, candidates=settings.candidates)
        if planned is None:
            return _unfounded(
                fallback,
                at,
                f"{CALLER}: {settings.updates(updates):.0f} of {updates:,} updates (budget={settings.budget}) are too "
                f"few to try anything (a race needs about {plan_price():.0f}); the learning rate is {fallback:.3g}, "
                "untested. Raise budget, train longer, or set the rate by hand",
            )
        heats = _that_fit(planned, branches)
        if heats is None:
            if run.clock.updates > 0:
                return None
            return _unfounded(
                fallback,
                at,
                f"{CALLER}: the loader has too few batches to try anything; the learning rate is {fallback:.3g}, "
                "untested",
            )
        race = Race(heats, start_of(trainer.optimizers[0]), settings.within, train, present)
        race.run()
        read_of, choice = choose(race)
        if choice is not None:
            # every rank has read the same scores; what floating point makes of them is rank 0's, and all hold one rate
            shared = trainer.strategy.broadcast(choice.rate) if trainer.world_size > 1 else choice.rate
            rate = race.hold(shared, read_of)
            choice = replace(choice, rate=rate, low=min(choice.low, rate))
    result = _result(race, at, read_of, choice)
    return trainer.strategy.broadcast(result) if trainer.world_size > 1 else result


def plan_price() -> float:
    """Updates that the shortest race takes."""
    budget = 1.0
    while plan_heats(budget) is None:
        budget += 1.0
    return budget


def announce(result: SearchResult) -> None:
    """One line in the terminal; a warning where the evidence is thin."""
    if result.warning:
        rank_zero_warn(result.warning)
    else:
        rank_zero_info(f"{CALLER}: {result}")


# ---------------------------------------------------------------------- inside
def _trainer_of(run: Run, member: LearningRateSearch, reference_lr: float, branches: Branches) -> Train:
    def train(
        rate: float, updates: int, scored: int, goes_on: Callable[[float], bool], schedule: Schedule
    ) -> tuple[Sequence[float], Sequence[float]]:
        def before_update(update: int) -> None:
            run.writer.set_multiplier(member.name, rate / reference_lr * schedule(update, updates))
            run.writer.write()

        return branches.train(updates, before_update, goes_on, scored)

    return train


def _updates_of(shape: RunShape, trainer: Trainer, try_some: Callable[[], object]) -> int:
    """Updates in the run; where only its seconds are known, what the time of an update makes of them."""
    if shape.has_length:
        return shape.fixed_batch_updates
    assert shape.max_seconds is not None
    begin = time.perf_counter()
    try_some()
    seconds = (time.perf_counter() - begin) / SHORTEST
    updates = int(shape.max_seconds / seconds)
    return trainer.strategy.broadcast(updates) if trainer.world_size > 1 else updates


def _that_fit(heats: Heats, branches: Branches) -> Heats | None:
    """The heats, no longer than there are batches for."""
    longest = max(heats.lengths)
    there = branches.available(longest + scored_on(longest))
    lengths = tuple(
        length if length + scored_on(length) <= there else there - scored_on(there) for length in heats.lengths
    )
    return replace(heats, lengths=lengths) if min(lengths) >= SHORTEST else None


def _result(race: Race, at: float, read_of: Sequence[Trial], choice: Choice | None) -> SearchResult:
    heats = [[trial.facts() for trial in heat] for heat in race.trials]
    if choice is None and race.around is not None:
        rate = race.around
        words = f"{CALLER}: the loss diverged at every rate that was tried around {rate:.3g}, which is kept"
        return SearchResult(rate, rate, rate, race.spent, at, heats, None, words)
    if choice is None:
        rate = min(trial.rate for heat in race.trials for trial in heat)
        words = (
            f"{CALLER}: the loss diverged at every rate down to {rate:.3g}, which is taken; something other than the "
            "rate is wrong, or the range (min_lr) does not reach low enough"
        )
        return SearchResult(rate, rate, rate, race.spent, at, heats, None, words)
    band = None
    if choice.posterior is not None:
        lr, mean, sd = choice.posterior.log_lr.exp(), choice.posterior.mean, choice.posterior.sd
        band = {"lr": lr[::4].tolist(), "mean": mean[::4].tolist(), "sd": sd[::4].tolist()}
    held = [trial.facts() for trial in race.held]
    warning = ""
    if len(race.heats.lengths) == 1 and race.around is None:
        warning = (
            f"{CALLER}: the budget allows for schedules of {race.heats.lengths[0]} updates only, which show "
            f"little: {choice.rate:.3g} is the lowest learning rate that they support (interval {choice.low:.2g} to "
            f"{choice.high:.2g}, found in {race.spent:.0f} updates). Raise budget or train longer for a better one"
        )
    elif race.around is None and still_nothing(race.trials[0], read_of):
        tried = [trial.rate for heat in race.trials for trial in heat]
        warning = (
            f"{CALLER}: at no rate from {min(tried):.2g} to {max(tried):.2g} has the loss fallen in the "
            f"{len(read_of[0].losses)} updates of a schedule: training begins on a plateau, or does not learn at all. "
            f"{choice.rate:.3g} is taken, where little harm is done. Raise budget, or set the rate by hand"
        )
    return SearchResult(choice.rate, choice.low, choice.high, race.spent, at, heats, band, warning, held)


def _unfounded(rate: float, at: float, warning: str) -> SearchResult:
    return SearchResult(rate, rate, rate, 0.0, at, [], None, warning)
