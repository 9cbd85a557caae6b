"""`HypergradientDescent`: the learning rate follows how the gradient lies to the last update."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.compatibility import AVERAGING_SETS_THE_END
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.hypergradient import HYPER_LR, AlignmentEstimator, FactorLearner, RuleName, Scope, read
from lightning_lr.hypergradient.directions import family
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.panels import MetricPanel
from lightning_lr.progress import RunShape, SampleClock

NOT_FINITE_LIMIT = 10
"""Updates in a row without a finite gradient after which training is given up."""
BOUND_LIMIT = 100
"""Updates in a row with a factor at the same bound after which the user is told."""


class HypergradientDescent(MethodCallback):
    r"""Adapt a factor on the learning rate, at every update, by the gradient of the loss with respect to it.

    With the last update :math:`-\alpha_{t-1} d_{t-1}` and the new gradient :math:`g_t`, that gradient is
    :math:`-g_t \cdot d_{t-1}`. The factor stands beside any schedule, and takes effect in the very update whose
    (accumulated, averaged, unscaled, clipped) gradient it was read from.

    - ``rule="normalized"``: AdaGrad on the logarithm of :math:`\alpha`, the hypergradient divided by the squared
      gradient. Scale-free, fast at first, then ever slower. The one to take: of the three its final accuracy on
      Fashion-MNIST depends least on the initial rate (``benchmarks/hypergradient.py``).
    - ``rule="additive"``, the default: :math:`\alpha_t = \alpha_{t-1} + \beta\, g_t \cdot d_{t-1}`, the paper's.
      Finds its way from any learning rate in a few updates, if :math:`\beta` fits the size of the gradients; tends to
      stop short of the best one.
    - ``rule="multiplicative"``: :math:`\alpha_t = \alpha_{t-1} (1 + \beta \cos(g_t, d_{t-1}))`. Scale-free, slow.

    It makes a run robust to the initial learning rate. It does not replace a tuned one with a schedule: it is greedy,
    since a step that is best for the next loss is not best for the last, and a well-tuned Adam may become worse. Where
    the training loss has all but vanished, what is left of the gradient (weight decay) points one way and the learning
    rate may run off: put it beside a schedule that decays, ``LearningRateSchedule(Cosine())``.

    Beside an ``AdaptiveWarmup`` it waits for the switch, since the climb measures the loss at rates that must be its
    own. The factor stays 1 until then, and its bounds are those around the rate that the warm-up chose.

    A gradient that is not finite changes no factor. Where no AMP scaler skips such an update, it is skipped here, and
    ten in a row end the training. With SGD with momentum, Adam and AdamW nothing is stored; plain SGD and Nesterov
    momentum cost a copy of the gradients, other optimizers one of the parameters, which is also in the checkpoint.

    Args:
        hyper_lr: :math:`\beta`; 0 switches the method off. ``None``: 0.5 for the normalized rule (of 0.05 to 1 on
            scikit-learn's digits), for the additive one 1e-3 with SGD and 1e-5 with Adam and others (the best columns
            of the paper's table for logistic regression), 0.05 for the multiplicative one (Martinez-Rubio 2017).
        rule: ``"additive"``, ``"multiplicative"`` or ``"normalized"``.
        scope: a factor for each parameter group, or one that all groups share.
        bounds: smallest and largest factor, and so the learning rate relative to the scheduled one: by default, from
            1e-6 to 1e-3 and no further. Wider ones, such as ``(1e-6, 1e6)``, for a rate that is not even known to three
            digits. A factor that stays at a bound for 100 updates is warned of.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor tells.

    Raises:
        MisconfigurationException: at setup, with LBFGS, embeddings with sparse gradients, Lightning's ``FSDPStrategy``
            or ``DeepSpeedStrategy`` (``ModelParallelStrategy`` with ``fully_shard`` and ``ZeROStrategy`` work), and
            where the engine of ZeRO makes its updates in parts (NVMe, for one).

    Source: Baydin, Cornish, Martinez Rubio, Schmidt & Wood 2018, arXiv 1703.04782. The normalisation: Chu et al. 2025,
    arXiv 2502.11229.

    Example::

        Trainer(max_epochs=5, callbacks=[HypergradientDescent(rule="normalized", bounds=(1e-6, 1e6))])
    """

    name = "hypergradient"
    lr_role = "base"
    refuses = (AVERAGING_SETS_THE_END,)
    panels = (
        MetricPanel("hypergradient\nfactor", ("hypergradient/factor/",), reference=1.0, log_scale=True, height=1.8),
        MetricPanel(
            "cosine of gradient\nand last update",
            ("hypergradient/cosine/",),
            reference=0.0,
            limits=(-1.05, 1.05),
            height=1.4,
        ),
    )
    refines = True

    def __init__(
        self,
        hyper_lr: float | None = None,
        rule: RuleName = "additive",
        scope: Scope = "group",
        bounds: tuple[float, float] = (1e-3, 1e3),
        count_samples: CountSamples | None = None,
    ) -> None:
        super().__init__(count_samples)
        self.hyper_lr, self.rule, self.scope, self.bounds = hyper_lr, rule, scope, bounds
        self._new_learner("other")  # complains now about what is not allowed
        self._learner: FactorLearner | None = None
        self._estimator: AlignmentEstimator | None = None
        self._state: dict[str, Any] | None = None
        self._cosines: list[float] = []
        self._not_finite = 0
        self._at_bound: list[float | None] = []
        self._updates_at_bound: dict[str, int] = {}
        self._hooks: list[Any] = []
        self._warmup: AdaptiveWarmup | None = None

    # ------------------------------------------------------------------ what the method says
    def check(self, trainer: Trainer, module: LightningModule) -> None:
        self._warmup = next((m for m in members_of(trainer) if isinstance(m, AdaptiveWarmup)), None)
        unseen = internals.why_gradients_hidden(trainer)
        if unseen is not None:
            raise MisconfigurationException(f"HypergradientDescent: {unseen}")
        for name, layer in module.named_modules():
            if isinstance(layer, nn.Embedding | nn.EmbeddingBag) and layer.sparse:
                raise MisconfigurationException(
                    f"HypergradientDescent: {name} is an embedding with sparse gradients, of which no dot product with "
                    "the last update is taken; set sparse=False"
                )

    def check_optimizers(self, optimizers: Any, schedulers: Any) -> None:
        super().check_optimizers(optimizers, schedulers)
        if isinstance(optimizers[0], LBFGS):
            raise MisconfigurationException(
                "HypergradientDescent: LBFGS makes several steps in one and searches their length itself; use a "
                "first-order optimizer"
            )

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self._estimator = AlignmentEstimator(writer.optimizer)
        self._learner = self._new_learner(self._estimator.family)
        self._not_finite, self._cosines, self._updates_at_bound = 0, [], {}
        self._at_bound = [None] * len(writer.optimizer.param_groups)
        if self._state is not None and self._run is not None and self._run.clock.updates > 0:
            self._learner.load_state_dict(self._state["learner"])
            self._estimator.load_state_dict(self._state["estimator"])
            self._estimator.load_shards(internals.own_entry(self._state.get("shards")) or {})
        self._hooks = [writer.optimizer.register_step_post_hook(self._after_step)]

    def factor(self, clock: SampleClock) -> float | list[float]:
        if self._learner is None or self._estimator is None:
            return 1.0
        return self._learner.factors(len(self._estimator.optimizer.param_groups))

    def refine(self, trainer: Trainer, clock: SampleClock) -> list[float]:
        assert self._run is not None
        assert self._estimator is not None
        assert self._learner is not None
        writer = self._run.writer
        if self._waits:
            return self._learner.factors(len(writer.optimizer.param_groups))
        scale = internals.remaining_loss_scale(trainer, writer.optimizer)
        sums = self._estimator.sums(scale)
        internals.broadcast_from_rank_zero(trainer, sums)
        groups = writer.optimizer.param_groups
        writer.write()  # a group that was added during the run is the writer's now
        initial = [group.get("initial_lr", lr) for group, lr in zip(groups, writer.scheduled(), strict=True)]
        alignments, values = read(sums, [*writer.without(self.name), *initial])
        base, initial = values[: len(groups)], values[len(groups) :]
        if self._warmup is not None:  # the rate that it found is the one to compare with; the optimizer's says nothing
            initial = base
        if not all(math.isfinite(alignment.gradient) for alignment in alignments):
            self._skip(trainer, clock)
            return self._learner.factors(len(groups))
        self._not_finite = 0
        self._cosines = self._learner.cosines(alignments)
        factors = self._learner.refine(alignments, base, initial)
        self._estimator.before_step([b * factor for b, factor in zip(base, factors, strict=True)], scale)
        self._learner.applied(alignments, base)
        self._note(clock, factors, base)
        return factors

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        assert self._learner is not None
        names = self._names()
        factors = self._learner.factors(len(optimizer.param_groups))
        found = {f"hypergradient/factor/{name}": factor for name, factor in zip(names, factors, strict=False)}
        cosines = {f"hypergradient/cosine/{name}": value for name, value in zip(names, self._cosines, strict=False)}
        return {**found, **{name: value for name, value in cosines.items() if not math.isnan(value)}}

    def summary(self, shape: RunShape) -> dict[str, str]:
        rates = HYPER_LR[self.rule]
        rate = (
            f"{self.hyper_lr:g}" if self.hyper_lr is not None else f"{rates['sgd']:g} (SGD), {rates['adam']:g} (others)"
        )
        if self._learner is not None:
            rate = f"{self._learner.hyper_lr:g}"
        factors = "one factor per group" if self.scope == "group" else "one factor for all groups"
        low, high = self.bounds
        reach = f"{low:g} to {high:g} times the scheduled lr"
        waits = "" if self._warmup is None else ", from the end of the adaptive warm-up on"
        return {"hypergradient": f"{self.rule} rule, hyper_lr {rate}, {factors}, {reach}{waits}"}

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        low, high = self.bounds
        notes = [
            "HypergradientDescent: the learning rates planned here are without its factor, which can make them "
            f"{low:g} to {high:g} times as large."
        ]
        if family(optimizer) == "adam":
            notes.append("HypergradientDescent: a well-tuned Adam may become worse with it; compare with one without.")
        return notes

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        return {
            "rule": "what the rule remembers of earlier updates is in the checkpoint",
            "scope": "the factors in the checkpoint are one for each group, or one for all",
        }

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        self._keep_state()
        if self._estimator is not None and self._state is not None and self._estimator.keeps_copies:
            self._state["shards"] = internals.gather_to_rank_zero(self._estimator.shards())
        return {**super().state_dict(), "hypergradient": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._state = state_dict["hypergradient"]

    # ------------------------------------------------------------------ inside
    def _new_learner(self, optimizer_family: Any) -> FactorLearner:
        return FactorLearner(self.rule, self.hyper_lr, optimizer_family, self.scope, self.bounds)

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        assert self._estimator is not None
        if not self._waits:
            self._estimator.after_step()

    @property
    def _waits(self) -> bool:
        """An adaptive warm-up is still climbing."""
        machine = None if self._warmup is None else self._warmup.machine
        return machine is not None and machine.phase == "warm-up"

    def _names(self) -> list[str]:
        assert self._run is not None
        names = self._run.writer.group_names()
        return ["global"] if self.scope == "global" and len(names) > 1 else names

    def _note(self, clock: SampleClock, factors: list[float], base: list[float]) -> None:
        """Write down a factor that comes to a bound or leaves it, and all of them a hundred times in a run."""
        assert self._run is not None
        at_bound = [factor if factor in self.bounds and self.bounds[0] < self.bounds[1] else None for factor in factors]
        self._warn_at_bound(at_bound, base)
        every = -(-clock.shape.total_updates // 100) if clock.shape.has_length else 100
        news = at_bound != self._at_bound
        self._at_bound = at_bound
        journal = self._run.journal(self.name)
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

    def _skip(self, trainer: Trainer, clock: SampleClock) -> None:
        """The gradient is not finite: learn nothing, and leave the update out where no scaler does."""
        assert self._run is not None
        assert self._estimator is not None
        if internals.has_loss_scaler(trainer):
            return
        for group in self._estimator.optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None
        self._not_finite += 1
        journal = self._run.journal(self.name)
        if journal is not None and self._not_finite == 1:
            journal.append(clock.updates - 1, "not finite")
        if self._not_finite == 1:
            rank_zero_warn(
                f"HypergradientDescent: the gradient of update {clock.updates} is not finite; it is left out"
            )
        if self._not_finite >= NOT_FINITE_LIMIT:
            raise RuntimeError(
                f"HypergradientDescent: the gradient was not finite {NOT_FINITE_LIMIT} times in a row, up to update "
                f"{clock.updates}: the weights have diverged, or the loss is not defined. Lower hyper_lr (it is "
                f"{self._learner.hyper_lr if self._learner else self.hyper_lr:g}), the learning rate, or the upper of "
                f"bounds={tuple(self.bounds)}"
            )

    def _keep_state(self) -> None:
        if self._learner is not None and self._estimator is not None:
            self._state = {"learner": self._learner.state_dict(), "estimator": self._estimator.state_dict()}

    def _leave(self, trainer: Trainer) -> None:
        self._keep_state()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._learner, self._estimator = [], None, None
        super()._leave(trainer)
