"""`AdaptiveWarmup`: raise the learning rate until the training loss starts to rise, then decay."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateFinder
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks import warmup_compatibility, warmup_journal
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.callbacks.compatibility import AVERAGING_SETS_THE_END, Clash
from lightning_lr.callbacks.learning_rate_scaling import LearningRateScaling
from lightning_lr.callbacks.learning_rate_schedule import LearningRateSchedule
from lightning_lr.callbacks.module_scheduler import (
    ModuleScheduler,
    check_module_scheduler,
    refuse_module_scheduler,
)
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples, Run
from lightning_lr.curves import Cosine, Curve, Phase
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import ABOVE_0, keys, optional
from lightning_lr.warmup import (
    Decision,
    OnDivergence,
    Snapshot,
    UpdateLoss,
    WarmupMachine,
    WarmupSettings,
    all_finite,
)
from lightning_lr.warmup.machine import Reduce

FEW_UPDATES = 300
"""Updates of a run below which the warm-up is not worth what it costs."""


class AdaptiveWarmup(MethodCallback):
    r"""Raise the learning rate exponentially until the smoothed training loss confidently no longer falls, then decay.

    .. math:: \eta_t = \eta_\min (\eta_\max / \eta_\min)^{p_t / w} \quad\text{then}\quad
        \eta_t = \eta^* c\left(\frac{p_t - s}{1 - s}\right)

    with progress :math:`p_t` in samples, w = ``max_warmup``, the switch at progress s, and :math:`\eta^*` the learning
    rate at the minimum of a Gaussian process over the loss against log lr, times ``lr_scale``. The loss is one mean per
    update over micro-batches and devices, tested every ``check_every`` updates; ``patience`` tests in a row must find
    that it has risen. Of the optimizer's own learning rates only the ratio matters: the largest becomes :math:`\eta_t`
    and every other group keeps its share of it. (``LayerwiseLRDecay`` multiplies on top: a layer of factor 1 has
    :math:`\eta_t`.)

    A loss that is not finite or explodes is acted upon within 2 updates. ``"switch"`` begins the decay at a lower
    learning rate that was good, and raises if the weights are no longer finite; ``"rollback"`` restores weights,
    buffers and optimizer state of the best test so far before that; ``"raise"`` stops the run.

    The rise that ends the climb costs the weights something, the more the fewer updates a run has. With
    ``restore_best`` the decay begins at the state of the best test, as after a rollback. Either keeps a copy of weights
    and optimizer state in host memory, and in checkpoints until the switch.

    Args:
        min_lr: learning rate of the first update, for the group with the largest one.
        max_lr: learning rate at which the climb would end.
        max_warmup: share of the run after which the warm-up ends in any case, in (0, 1).
        confidence: probability that the smoothed loss has risen above which a test is positive, in (0.5, 1).
        patience: positive tests in a row that end the warm-up.
        check_every: updates between two tests; ``None``: 1 % of the run, or less in a short one.
        decay: what follows; the curve's own progress runs from the switch to the end of the run.
        lr_scale: chosen learning rate over that at the lowest smoothed loss, in (0, 1].
        on_divergence: ``"switch"``, ``"rollback"`` or ``"raise"``.
        restore_best: whether the decay begins at the state of the best test; AutoWU's goes on from the last update.
        loss: name of the logged metric that is taken for the training loss, such as ``"train/g_loss"`` (logged in every
            ``training_step`` with ``on_step=True``); ``None``: what ``training_step`` returns.
        optimizers: indices of the optimizers that climb, together, in the order of ``configure_optimizers``; ``None``
            for all. The largest learning rate among them is the one that is raised, all others keep their ratio to it.
        module_scheduler: what becomes of an LR scheduler that ``configure_optimizers`` returns. ``"refuse"`` stops
            before training; ``"replace"`` leaves it without effect and starts from the rate that it rises to, while it
            goes on and is in the checkpoint, so that the run can go on without us; ``"multiply"`` applies both.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.

    Raises:
        ValueError: for an argument outside its range.
        MisconfigurationException: before training, with an LR scheduler, ``LearningRateSchedule`` or another method
            that fights over the learning rate, in a run too short for ``patience`` tests, or for a rollback of
            parameters that are spread over devices.
        RuntimeError: in training, for a divergence with ``"raise"``, or one that a switch cannot mend.

    Source: Kim et al. 2021, arXiv:2107.05855.

    Example::

        Trainer(max_epochs=30, callbacks=[AdaptiveWarmup(max_lr=0.1, decay=Cosine())])
    """

    name = "adaptive_warmup"
    saves: ClassVar = {
        "warmup": optional(
            keys(
                {
                    "machine": WarmupMachine.SAVED,
                    "reference_lr": optional(ABOVE_0),
                    "snapshot": optional(Snapshot.SAVED),
                }
            )
        )
    }
    lr_role = "finder"
    refuses = (
        AVERAGING_SETS_THE_END,
        Clash(LearningRateFinder, "both find the learning rate, and the one that it finds would not be used"),
        Clash(LearningRateSchedule, "it would distort the climb"),
        Clash(
            LearningRateScaling,
            "it would scale what the warm-up finds for this very batch, so that max_lr were not max_lr",
        ),
    )

    def __init__(
        self,
        min_lr: float = 1e-5,
        max_lr: float = 1.0,
        max_warmup: float = 0.5,
        confidence: float = 0.95,
        patience: int = 3,
        check_every: int | None = None,
        decay: Curve = Cosine(),  # noqa: B008  # frozen
        lr_scale: float = 1.0,
        on_divergence: OnDivergence = "switch",
        restore_best: bool = False,
        count_samples: CountSamples | None = None,
        module_scheduler: ModuleScheduler = "refuse",
        loss: str | None = None,
        optimizers: Indices = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        if not (loss is None or (isinstance(loss, str) and loss)):
            raise ValueError(f"AdaptiveWarmup: got loss={loss!r}; give the name of a logged metric, or None")
        self.loss = loss
        check_module_scheduler("AdaptiveWarmup", module_scheduler)
        self.module_scheduler = module_scheduler
        self.settings = WarmupSettings(
            min_lr, max_lr, max_warmup, confidence, patience, check_every, decay, lr_scale, on_divergence, restore_best
        )
        self.machine: WarmupMachine | None = None
        """The warm-up of the run that is going on, or of the last one."""
        self._loss = UpdateLoss()
        self._started = False
        self._reference_lr: float | None = None  # the largest scheduled lr when the run began
        self._lr = self.settings.min_lr  # of the update that is being made
        self._rescaled = 1.0  # of the clock, when the machine's progress was last a share of the present budget
        self._snapshot: Snapshot | None = None
        self._continues = False
        self._state: dict[str, Any] | None = None  # of a checkpoint, or of an earlier fit that goes on

    # ------------------------------------------------------------------ what the method defines
    @property
    def decays(self) -> bool:
        return self.settings.decay.decays

    @property
    def needs_end(self) -> bool:
        return True

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        warmup_compatibility.check_keeping(self.settings, trainer)

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        if self.module_scheduler == "refuse":
            refuse_module_scheduler("AdaptiveWarmup", schedulers, warmups_pass=False)
        super().check_optimizers(optimizers, schedulers)

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        try:
            self.settings.updates_between_tests(shape.fixed_batch_updates)
        except ValueError as error:
            raise MisconfigurationException(str(error)) from error
        warmup_compatibility.largest_lr(group.get("initial_lr", group["lr"]) for group in optimizer.param_groups)

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        if self._started:  # with another optimizer, which climbs too
            if not self._continues:
                assert self._reference_lr is not None
                self._reference_lr = max(self._reference_lr, warmup_compatibility.largest_lr(writer.tuned()))
            return
        self._started = True
        several = shape.epoch.world_size > 1
        updates = max(shape.fixed_batch_updates, self.settings.fewest_updates)  # a fast_dev_run is not held against it
        self.machine = WarmupMachine(self.settings, updates, internals.maximum_over_ranks if several else None)
        self._loss, self._rescaled = UpdateLoss(), 1.0
        state, self._state = self._state, None
        self._continues = state is not None
        if state is None:
            self._reference_lr = warmup_compatibility.largest_lr(writer.tuned())
            self._snapshot = None
            return
        self.machine.load_state_dict(state["machine"])
        self._reference_lr = state["reference_lr"]
        self._snapshot = None if state["snapshot"] is None else Snapshot.from_state(state["snapshot"])

    def rates_were_set(self, writer: HyperparameterWriter) -> None:
        if not self._continues:
            assert self._run is not None
            chosen = [other for other in self._run.writers if self.acts_on(other.index)]
            self._reference_lr = max(warmup_compatibility.largest_lr(other.tuned()) for other in chosen)

    def switch_range(self, shape: RunShape) -> tuple[int, int]:
        """Updates after which the switch falls, the earliest and the latest, if nothing diverges."""
        return self.settings.switch_range(shape.fixed_batch_updates)

    def factor(self, clock: SampleClock) -> float:
        assert self.machine is not None
        assert self._reference_lr is not None
        if self._run is None:  # a plan: the loss is not known, and so the latest switch is shown
            return self.settings.latest(clock.progress, clock.width) / self._reference_lr
        self._follow_length(clock)
        self._lr = self.machine.lr(clock.progress, clock.width)
        return self._lr / self._reference_lr

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        return self.settings.phases(None if self.machine is None else self.machine.switched_at)

    def summary(self, shape: RunShape) -> dict[str, str]:
        return self.settings.summary(shape.fixed_batch_updates)

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        return [
            "when the adaptive warm-up ends and at which learning rate is decided by the loss; shown is the latest "
            "switch, from max_lr"
        ]

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        assert self.machine is not None
        return {
            "warmup/probability": self.machine.probability,
            "warmup/switched": float(self.machine.phase == "decay"),
        }

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        warmup = state.get("warmup")
        if warmup is None or WarmupMachine.has_switched(warmup["machine"]):
            return {}
        why = "the losses in the checkpoint belong to the climb that this makes"
        return dict.fromkeys(("min_lr", "max_lr", "max_warmup"), why)

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            warmup_compatibility.check_ramp(self.settings, trainer)
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._started = False

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        assert self.machine is not None
        if not self._continues:
            warmup_compatibility.check_from_the_start(trainer)
        if self._run is not None and self._run.clock.updates == 0:
            self._warn_of_short_run(trainer, self._run.clock.shape)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        # not sooner: the module's on_train_start may load weights
        if self._snapshot is None and self.settings.keeps and self._climbs:
            self._snapshot = Snapshot.of(pl_module, *trainer.optimizers)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run, machine = self._run, self.machine
        if run is not None and machine is not None and machine.phase == "warm-up":
            self._add_loss(trainer, outputs, batch_idx)
            if internals.update_ends(trainer) and (not run.manual or self._stepped(run)):
                self._observe(run, machine)
                self._decide(trainer, pl_module, run, machine)
            elif run.manual and run.clock.progress >= self.settings.max_warmup:
                self._refuse_unseen_steps(run)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def state_dict(self) -> dict[str, Any]:
        if self._run is None:
            return {**super().state_dict(), "warmup": self._state}
        several = self._run.clock.shape.epoch.world_size > 1
        return {**super().state_dict(), "warmup": self._state_of_run(internals.mean_over_ranks if several else None)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._state = state_dict["warmup"]

    def start_fresh(self) -> None:
        super().start_fresh()
        self._state = None

    # ------------------------------------------------------------------ inside
    @property
    def _climbs(self) -> bool:
        return self.machine is not None and self.machine.phase == "warm-up"

    def _warn_of_short_run(self, trainer: Trainer, shape: RunShape) -> None:
        if shape.has_length and shape.total_updates < FEW_UPDATES and not internals.is_fast_dev_run(trainer):
            rank_zero_warn(
                f"AdaptiveWarmup: the run has {shape.total_updates} updates, up to "
                f"{self.settings.warmup_updates(shape.total_updates)} of them in the warm-up; below {FEW_UPDATES} the "
                "climb and the rise that ends it cost more than the rate that they find is worth. Train longer, or use "
                "LearningRateSchedule with a rate that you know"
            )

    def _follow_length(self, clock: SampleClock) -> None:
        """Progress is a share of a budget that may change: other epochs after a resume, a ramp that begins."""
        assert self.machine is not None
        if clock.rescaled != self._rescaled:
            self.machine.stretch(clock.rescaled / self._rescaled)
        self._rescaled = clock.rescaled

    def _add_loss(self, trainer: Trainer, outputs: Any, batch_idx: int) -> None:
        if self.loss is not None:
            self._loss.add(self._logged(trainer))
            return
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if not isinstance(loss, Tensor):  # training_step returned None
            if self._run is not None and self._run.manual:
                raise MisconfigurationException(
                    "AdaptiveWarmup: training_step returned no loss, and under manual optimization there is no other "
                    "way to see it; return the loss, or give the name of a logged one, such as loss='train/loss'"
                )
            return
        weight = math.prod(m.loss_weight(trainer.current_epoch, batch_idx) for m in members_of(trainer))
        self._loss.add(loss, trainer.accumulate_grad_batches, weight)

    def _logged(self, trainer: Trainer) -> Tensor:
        logged = internals.logged_in_this_step(trainer)
        if self.loss not in logged:
            raise MisconfigurationException(
                f"AdaptiveWarmup: got loss={self.loss!r}, which this training_step did not log; it logged "
                f"{sorted(logged)}. Log it in every step: self.log({self.loss!r}, value)"
            )
        loss: Tensor = logged[self.loss]
        return loss

    def _refuse_unseen_steps(self, run: Run) -> None:
        """Nothing would ever end the climb."""
        if not any(managed.stepped for managed in run.optimizers if self.acts_on(managed.index)):
            raise MisconfigurationException(
                f"AdaptiveWarmup: {self.settings.max_warmup:g} of the run has been trained, and no optimizer that "
                "climbs has made a step: updates are made by another method (first_step and second_step of SAM), or by "
                "an optimizer inside of another. Let the module call step, such as optimizer.step(closure)"
            )

    def _stepped(self, run: Run) -> bool:
        """Whether one of the optimizers that climb has made an update in this micro-batch."""
        return any(managed.effective_lr for managed in run.optimizers if self.acts_on(managed.index))

    def _observe(self, run: Run, machine: WarmupMachine) -> None:
        loss = self._loss.take()
        if loss is None:
            return
        if self._stepped(run):
            machine.observe(self._lr, loss)
        else:  # an AMP scaler skipped the update
            machine.observe_skipped(loss)

    def _decide(self, trainer: Trainer, module: LightningModule, run: Run, machine: WarmupMachine) -> None:
        several = trainer.world_size > 1
        decision = machine.decide(run.clock.progress, internals.mean_over_ranks if several else None)
        if decision is None:
            return
        if several:
            decision = trainer.strategy.broadcast(decision)
        machine.apply(decision)
        if decision.message and decision.action != "raise" and not internals.is_fast_dev_run(trainer):
            rank_zero_warn(decision.message)
        if decision.action == "raise":
            self._note(run, machine, decision)
            raise RuntimeError(decision.message)
        if decision.action == "rollback":
            assert self._snapshot is not None
            with run.scheduled_values():
                self._snapshot.restore(module, *trainer.optimizers)
        if decision.non_finite and not internals.weights_finite(trainer, lambda: all_finite(module)):
            self._note(run, machine, decision)
            raise RuntimeError(
                f"{decision.message}, but weights or buffers are no longer finite, which no learning rate mends; lower "
                "max_lr, or use on_divergence='rollback'"
            )
        if decision.keep and self._snapshot is not None:
            self._snapshot = Snapshot.of(module, *trainer.optimizers)
        if machine.phase == "decay":
            if not internals.is_fast_dev_run(trainer):
                rank_zero_info(decision.announcement(run.clock.updates))
            self._snapshot = None
            for member in members_of(trainer):
                member.on_warmup_end(trainer)
            self._follow_length(run.clock)
        self._note(run, machine, decision)

    def _note(self, run: Run, machine: WarmupMachine, decision: Decision) -> None:
        journal = run.journal(self.name)
        if journal is not None:
            # counted by the updates before the one that was just made: a checkpoint after it holds the decision
            warmup_journal.note(journal, run.clock.updates - 1, machine, decision)

    def _state_of_run(self, reduce: Reduce | None) -> dict[str, Any]:
        assert self.machine is not None
        return {
            "machine": self.machine.state_dict(reduce),
            "reference_lr": self._reference_lr,
            "snapshot": None if self._snapshot is None else self._snapshot.state_dict(),
        }

    def _leave(self, trainer: Trainer) -> None:
        if self._run is not None and self.machine is not None:
            self._state = self._state_of_run(None)  # the ranks may not all come here (an exception)
        super()._leave(trainer)
