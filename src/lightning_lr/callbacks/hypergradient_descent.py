"""`HypergradientDescent`: the learning rate follows how the gradient lies to the last update."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim import LBFGS, Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.compatibility import AVERAGING_SETS_THE_END
from lightning_lr.callbacks.hypergradient_follower import SAVED, Follower
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.hypergradient import HYPER_LR, AlignmentEstimator, FactorLearner, RuleName, Scope
from lightning_lr.hypergradient.directions import family
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.panels import MetricPanel
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import by, either, optional


class HypergradientDescent(MethodCallback):
    r"""Adapt a factor on the learning rate, at every update, by the gradient of the loss with respect to it.

    With the last update :math:`-\alpha_{t-1} d_{t-1}` and the new gradient :math:`g_t`, that gradient is
    :math:`-g_t \cdot d_{t-1}`. The factor multiplies any schedule, and takes effect in the very update whose
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
    rate may diverge: combine it with a schedule that decays, ``LearningRateSchedule(Cosine())``.

    With an ``AdaptiveWarmup`` it waits for the switch, since the climb measures the loss at rates that must be its
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
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all.

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
    saves: ClassVar = {"hypergradient": optional(either("learner", SAVED, by(int, SAVED)))}  # of 0.1.0: one
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
        optimizers: Indices = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        self.hyper_lr, self.rule, self.scope, self.bounds = hyper_lr, rule, scope, bounds
        FactorLearner(rule, hyper_lr, "other", scope, bounds)  # complains now about what is not allowed
        self._followers: dict[int, Follower] = {}
        self._state: dict[int, Any] | None = None
        """Of each follower, by the place of its optimizer."""
        self._hooks: list[Any] = []
        self._warmup: AdaptiveWarmup | None = None

    # ------------------------------------------------------------------ what the method defines
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
        if any(isinstance(optimizer, LBFGS) for optimizer in self.chosen(optimizers)):
            raise MisconfigurationException(
                "HypergradientDescent: LBFGS makes several steps in one and searches their length itself; use a "
                "first-order optimizer"
            )

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        follower = Follower(writer, self.name, self.rule, self.hyper_lr, self.scope, self.bounds)
        state = (self._state or {}).get(writer.index)
        if state is not None and self._run is not None and self._run.clock.updates > 0:
            follower.load_state_dict(state)
        self._followers[writer.index] = follower
        self._hooks.append(writer.optimizer.register_step_post_hook(partial(self._after_step, follower.estimator)))

    def factor(self, clock: SampleClock) -> float | tuple[float, ...]:
        first = next(iter(self._followers.values()), None)
        return 1.0 if first is None else first.factors()

    def factor_of(self, writer: HyperparameterWriter, clock: SampleClock) -> tuple[float, ...]:
        return self._followers[writer.index].factors()

    def refine_of(self, writer: HyperparameterWriter, trainer: Trainer, clock: SampleClock) -> tuple[float, ...]:
        assert self._run is not None
        follower = self._followers[writer.index]
        if self._warmup is not None and self._waits:
            return follower.factors()
        return follower.refine(trainer, clock, self._warmup is not None, self._run.journal(self.name))

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        return self._follower(optimizer).metrics()

    def summary(self, shape: RunShape) -> dict[str, str]:
        rates = HYPER_LR[self.rule]
        rate = (
            f"{self.hyper_lr:g}" if self.hyper_lr is not None else f"{rates['sgd']:g} (SGD), {rates['adam']:g} (others)"
        )
        if len(self._followers) == 1:
            rate = f"{next(iter(self._followers.values())).learner.hyper_lr:g}"
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
        for index, follower in self._followers.items():
            if self._state is not None and follower.estimator.keeps_copies:
                self._state[index]["shards"] = internals.gather_to_rank_zero(follower.estimator.shards())
        return {**super().state_dict(), "hypergradient": self._state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        state = state_dict["hypergradient"]
        self._state = {0: state} if state is not None and "learner" in state else state  # of 0.1.0: of one optimizer

    def start_fresh(self) -> None:
        super().start_fresh()
        self._state = None

    # ------------------------------------------------------------------ inside
    def _follower(self, optimizer: Optimizer) -> Follower:
        return next(follower for follower in self._followers.values() if follower.optimizer is optimizer)

    def _after_step(self, estimator: AlignmentEstimator, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if self._warmup is None or not self._waits:
            estimator.after_step()

    @property
    def _waits(self) -> bool:
        """An adaptive warm-up is still climbing."""
        machine = None if self._warmup is None else self._warmup.machine
        return machine is not None and machine.phase == "warm-up"

    def _keep_state(self) -> None:
        if self._followers:
            self._state = {index: follower.state_dict() for index, follower in self._followers.items()}

    def _leave(self, trainer: Trainer) -> None:
        self._keep_state()
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._followers = [], {}
        super()._leave(trainer)
