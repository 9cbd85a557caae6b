"""Hypergradient descent of one optimizer: its factors, what they are learned from, and when the user hears of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.hypergradient import AlignmentEstimator, FactorLearner, RuleName, Scope, read
from lightning_lr.journal import Journal
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import SampleClock
from lightning_lr.saved_state import ANYTHING, keys, later

NOT_FINITE_LIMIT = 10
"""Updates in a row without a finite gradient after which training is given up."""
BOUND_LIMIT = 100
"""Updates in a row with a factor at the same bound after which there is a warning."""
_GRADIENT = attrgetter("gradient")


SAVED = keys(
    {
        "learner": FactorLearner.SAVED,
        "estimator": AlignmentEstimator.SAVED,
        "shards": later(ANYTHING),  # of this rank, by parameter
    }
)
"""The form of :meth:`Follower.state_dict`."""


class Follower:
    """Learns the factors of one optimizer, at its own steps.

    Args:
        writer: of the optimizer.
        name: of the multiplier.
        rule: as of ``HypergradientDescent``.
        hyper_lr: as there.
        scope: as there.
        bounds: as there.
    """

    def __init__(
        self,
        writer: HyperparameterWriter,
        name: str,
        rule: RuleName,
        hyper_lr: float | None,
        scope: Scope,
        bounds: tuple[float, float],
    ) -> None:
        self.writer, self.bounds = writer, bounds
        self.estimator = AlignmentEstimator(writer.optimizer)
        self.learner = FactorLearner(rule, hyper_lr, self.estimator.family, scope, bounds)
        self._name, self._scope = name, scope
        self._cosines_of: Callable[[], list[float]] = list
        self._not_finite = 0
        self._at_bound: list[float | None] = [None] * len(writer.optimizer.param_groups)
        self._updates_at_bound: dict[str, int] = {}

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that is followed."""
        return self.writer.optimizer

    def factors(self) -> list[float]:
        """The factor of each group."""
        return self.learner.factors(len(self.optimizer.param_groups))

    def refine(self, trainer: Trainer, clock: SampleClock, warmed_up: bool, journal: Journal | None) -> list[float]:
        """Learn from the gradients that are about to be applied; returns the factors for this very step.

        Args:
            trainer: the Trainer.
            clock: where the run is.
            warmed_up: whether an adaptive warm-up has chosen the rate, so that the optimizer's own means nothing.
            journal: of the callback.
        """
        scale = internals.remaining_loss_scale(trainer, self.optimizer)
        sums = self.estimator.sums(scale)
        internals.broadcast_from_rank_zero(trainer, sums)
        groups = self.optimizer.param_groups
        self.writer.settle()  # a group that was added during the run is the writer's now
        alignments, values = read(sums, [*self.writer.without(self._name), *self.writer.tuned()])
        base, initial = values[: len(groups)], values[len(groups) :]
        if warmed_up:  # the rate that it found is the one to compare with
            initial = base
        if not all(map(math.isfinite, map(_GRADIENT, alignments))):
            self._skip(trainer, clock, journal)
            return self.factors()
        self._not_finite = 0
        self._cosines_of = self.learner.cosines_of(alignments)
        factors = self.learner.refine(alignments, base, initial)
        self.estimator.before_step([b * factor for b, factor in zip(base, factors, strict=True)], scale)
        self.learner.applied(alignments, base)
        self._note(clock, factors, base, journal)
        return factors

    def metrics(self) -> dict[str, float]:
        """Factors and cosines, for the logger."""
        names = self._names()
        found = {f"hypergradient/factor/{name}": factor for name, factor in zip(names, self.factors(), strict=False)}
        cosines = {f"hypergradient/cosine/{name}": value for name, value in zip(names, self._cosines, strict=False)}
        return {**found, **{name: value for name, value in cosines.items() if not math.isnan(value)}}

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        """Plain values and tensors, for :meth:`load_state_dict`; of sharded parameters see the estimator."""
        return {"learner": self.learner.state_dict(), "estimator": self.estimator.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken."""
        self.learner.load_state_dict(state["learner"])
        self.estimator.load_state_dict(state["estimator"])
        self.estimator.load_shards(internals.own_entry(state.get("shards")) or {})

    # ------------------------------------------------------------------ inside
    @property
    def _cosines(self) -> list[float]:
        return self._cosines_of()

    def _names(self) -> list[str]:
        names = self.writer.group_names()
        return [f"{self.writer.prefix}global"] if self._scope == "global" and len(names) > 1 else names

    def _note(self, clock: SampleClock, factors: list[float], base: list[float], journal: Journal | None) -> None:
        """Write down a factor that comes to a bound or leaves it, and all of them a hundred times in a run."""
        at_bound = [factor if factor in self.bounds and self.bounds[0] < self.bounds[1] else None for factor in factors]
        self._warn_at_bound(at_bound, base)
        every = -(-clock.shape.total_updates // 100) if clock.shape.has_length else 100
        news = at_bound != self._at_bound
        self._at_bound = at_bound
        if journal is None or not (news or clock.updates % every == 0):
            return
        event = "factor" if not news else "bound" if any(b is not None for b in at_bound) else "within bounds"
        names = self._names()
        journal.append(
            clock.updates - 1,
            event,
            factor=dict(zip(names, factors, strict=False)),
            cosine=dict(zip(names, self._cosines, strict=False)),
        )

    def _warn_at_bound(self, at_bound: list[float | None], base: list[float]) -> None:
        if not self._updates_at_bound and at_bound.count(None) == len(at_bound):
            return
        for name, bound, before, lr in zip(self._names(), at_bound, self._at_bound, base, strict=False):
            count = self._updates_at_bound.get(name, 0) + 1 if bound is not None and bound == before else 0
            self._updates_at_bound[name] = count
            if count == BOUND_LIMIT and bound is not None:
                low, high = self.bounds
                wider = (low, high * 1e3) if bound == high else (low / 1e3, high)
                rank_zero_warn(
                    f"HypergradientDescent: the factor of {name} has been at its bound of {bound:g} for {count} "
                    f"updates, with a learning rate of {bound * lr:.3g}; it would go further. Give the optimizer a "
                    f"learning rate nearer to the right one, or wider bounds, such as bounds={wider}"
                )

    def _skip(self, trainer: Trainer, clock: SampleClock, journal: Journal | None) -> None:
        """The gradient is not finite: learn nothing, and leave the update out where no scaler does."""
        if internals.has_loss_scaler(trainer):
            return
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._not_finite += 1
        if self._not_finite == 1:
            if journal is not None:
                journal.append(clock.updates - 1, "not finite")
            rank_zero_warn(
                f"HypergradientDescent: the gradient of update {clock.updates} is not finite; it is left out"
            )
        if self._not_finite >= NOT_FINITE_LIMIT:
            raise RuntimeError(
                f"HypergradientDescent: the gradient was not finite {NOT_FINITE_LIMIT} times in a row, up to update "
                f"{clock.updates}: the weights have diverged, or the loss is not defined. Lower hyper_lr (it is "
                f"{self.learner.hyper_lr:g}), the learning rate, or the upper of bounds={tuple(self.bounds)}"
            )
