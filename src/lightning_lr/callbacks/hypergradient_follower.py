"""Hypergradient descent of one optimizer: its factors, what they are learned from, and when the user hears of them."""

from __future__ import annotations

import math
from collections.abc import Callable
from operator import attrgetter, mul
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
        self._factors: tuple[float, ...] = ()
        self._cosines_of: Callable[[], list[float]] = list
        self._not_finite = 0
        self._at_bound: list[float | None] = [None] * len(writer.optimizer.param_groups)
        self._updates_at_bound: list[int] = []
        """Of each factor, how many in a row; none before the first."""

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer that is followed."""
        return self.writer.optimizer

    def factors(self) -> tuple[float, ...]:
        """The factor of each group; the same object until one is learned."""
        groups = len(self.optimizer.param_groups)
        if len(self._factors) != groups:
            self._factors = tuple(self.learner.factors(groups))
        return self._factors

    def refine(
        self, trainer: Trainer, clock: SampleClock, warmed_up: bool, journal: Journal | None
    ) -> tuple[float, ...]:
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
        alignments, values = read(sums, [*self.writer.without(self._name), *self.writer.tuned()])
        base, initial = values[: len(alignments)], values[len(alignments) :]
        if warmed_up:  # the rate that it found is the one to compare with
            initial = base
        if not all(map(math.isfinite, map(_GRADIENT, alignments))):
            self._skip(trainer, clock, journal)
            return self.factors()
        self._not_finite = 0
        self._cosines_of = self.learner.cosines_of(alignments)
        factors = self._factors = tuple(self.learner.refine(alignments, base, initial))
        self.estimator.before_step(list(map(mul, base, factors)), scale)
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
        self._factors = ()
        self.estimator.load_state_dict(state["estimator"])
        self.estimator.load_shards(internals.own_entry(state.get("shards")) or {})

    # ------------------------------------------------------------------ inside
    @property
    def _cosines(self) -> list[float]:
        return self._cosines_of()

    def _names(self) -> list[str]:
        names = self.writer.group_names()
        return [f"{self.writer.prefix}global"] if self._scope == "global" and len(names) > 1 else names

    def _note(self, clock: SampleClock, factors: tuple[float, ...], base: list[float], journal: Journal | None) -> None:
        """Write down a factor that comes to a bound or leaves it, and all of them a hundred times in a run."""
        low, high = self.bounds
        if low < min(factors) and max(factors) < high:  # as nearly always
            at_bound: list[float | None] = [None] * len(factors)
        else:
            at_bound = [factor if factor in (low, high) and low < high else None for factor in factors]
        self._warn_at_bound(at_bound, base)
        news = at_bound != self._at_bound
        self._at_bound = at_bound
        if journal is None:
            return
        every = -(-clock.shape.total_updates // 100) if clock.shape.has_length else 100
        if not (news or clock.updates % every == 0):
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
        counts = self._updates_at_bound
        if not counts and at_bound.count(None) == len(at_bound):
            return
        counts += [0] * (len(at_bound) - len(counts))
        before = [*self._at_bound, *[None] * (len(at_bound) - len(self._at_bound))]
        counts[:] = [
            count + 1 if bound is not None and bound == last else 0
            for count, bound, last in zip(counts, at_bound, before, strict=False)
        ]
        if BOUND_LIMIT not in counts:
            return
        low, high = self.bounds
        for name, count, bound, lr in zip(self._names(), counts, at_bound, base, strict=False):
            if count == BOUND_LIMIT and bound is not None:
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
