"""The base class of every callback: join the run, follow the loop, refuse what cannot work.

A callback inherits from :class:`MethodCallback`, names itself and gives its multiplier for the next update
(:meth:`~MethodCallback.factor`). What else a method decides stands in its class: what it refuses, which arguments a
resume must keep, what it logs, plans and draws. The rest is here, in the order in which the Trainer calls it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from pathlib import Path
from typing import Any, ClassVar, Literal
from weakref import WeakKeyDictionary, WeakSet

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks import continuation, pictures, resume_checks
from lightning_lr.callbacks.compatibility import Clash, refuse_incompatible
from lightning_lr.callbacks.failed_write import explain_failed_write
from lightning_lr.callbacks.given_as_class import HookOfObject
from lightning_lr.callbacks.module_scheduler import ModuleScheduler, check_agreement, refuse_module_scheduler
from lightning_lr.callbacks.optimizers import Indices, check_indices, chosen_indices
from lightning_lr.callbacks.pytorch_lightning_check import refuse_mirror, warn_of_mirror
from lightning_lr.callbacks.run import CountSamples, Run
from lightning_lr.callbacks.run_shape import in_words_of
from lightning_lr.checks import name_arguments
from lightning_lr.curves import Phase
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.panels import MetricPanel
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import Form, keys

LRRole = Literal["schedule", "base", "finder"]

_TRAINED: WeakKeyDictionary[Trainer, WeakSet[MethodCallback]] = WeakKeyDictionary()
"""Whom a Trainer has trained with: in its next fit these go on, where any other object begins."""


class MethodCallback(Callback):
    r"""Base class of callbacks that multiply the learning rate; inherit from it to write your own.

    .. math:: \text{lr}_g(t) = \text{scheduled lr}_g(t) \prod_{\text{callbacks}} \text{factor}_g(t)

    A subclass sets ``name`` and defines :meth:`factor`. It then works with every other callback and strategy of the
    package, in ``plan`` and ``report``, and when a run is resumed: its arguments are saved, where it keeps them under
    their own names.

    Args:
        count_samples: samples in a batch, for loaders whose sampler does not show it and whose first tensor's first
            dimension is not it (graphs, packed sequences). Importable by path from YAML.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all.

    Raises:
        TypeError: where a subclass is defined without a ``name``.

    Example::

        class Pulse(MethodCallback):
            name = "pulse"

            def factor(self, clock):
                return 1.0 + 0.5 * math.sin(20 * math.pi * clock.progress)

        Trainer(max_epochs=5, callbacks=[Pulse()])
    """

    name: ClassVar[str]
    """Name of the multiplier and of the journal."""
    lr_role: ClassVar[LRRole] = "schedule"
    """What the multiplier is a part of: the learning rate's ``"schedule"`` over the run, or the ``"base"`` learning
    rate, by which ``NormalizedWeightDecay`` divides; ``"finder"``: the method looks for the base learning rate during
    the run."""
    changes_batch: ClassVar[bool] = False
    """Whether the method decides how many samples are in an update (:meth:`reshape`)."""
    refuses: ClassVar[tuple[Clash, ...]] = ()
    """The callbacks that cannot be attached together with this one, and why."""
    panels: ClassVar[tuple[MetricPanel, ...]] = ()
    """What ``report`` draws of the method's :meth:`metrics`."""
    refines: ClassVar[bool] = False
    """Whether the multiplier depends on the gradients that the optimizer is about to apply, see :meth:`refine`."""
    saves: ClassVar[Mapping[str, Form]] = {}
    """What :meth:`state_dict` adds, by key: a checkpoint that holds something else is refused before it is read."""
    module_scheduler: ModuleScheduler = "multiply"
    """What becomes of the module's own LR scheduler; of methods that have the argument, what the user chose."""

    def __init__(self, count_samples: CountSamples | None = None, optimizers: Indices = None) -> None:
        if count_samples is not None and not callable(count_samples):
            raise TypeError(
                f"{type(self).__name__}: got count_samples={count_samples!r}; give a function of a batch that returns "
                "its number of samples, or None"
            )
        check_indices(type(self).__name__, optimizers)
        warn_of_mirror(self)
        self.count_samples = count_samples
        self.optimizers = optimizers
        self.clock_state: dict[str, Any] | None = None
        """Where the run was, from a checkpoint or from an earlier ``fit`` that goes on."""
        self.loaded: dict[str, Any] | None = None
        """The state in a checkpoint, from its being loaded until training goes on."""
        self.journals_before: str | None = None
        """Where the run that saved a checkpoint wrote its decisions, from its being loaded until training goes on."""
        self._newer_version: str | None = None  # that saved the checkpoint, where it is newer than this one
        self._journals_left: Path | None = None
        """Where the run that this callback has left wrote its decisions: an exception is saved after that."""
        self._shape_facts: dict[str, int | str | None] | None = None
        self._absent: list[str] = []  # callbacks of the run that saved a checkpoint which this one does not have
        self.tuned_lr: list[list[float]] | None = None
        """The learning rates that the user tuned, by optimizer and group, once a run knows them."""
        self._run: Run | None = None
        self._before: dict[str, Any] | None = None
        """The attributes that it had when a fit began, until that ends."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            name_arguments(cls)
        name = getattr(cls, "name", None)
        if not (isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9][\w.-]*", name)):
            given = "no name" if name is None else f"name={name!r}"
            raise TypeError(
                f"{cls.__name__}: got {given}; write a line such as name = {_snake_case(cls.__name__)!r} in the class "
                "(it names the multiplier and the journal's file: letters, digits, '_', '-' and '.')"
            )

    # ------------------------------------------------------------------ what a method defines
    @property
    def decays(self) -> bool:
        """Whether this method lowers the learning rate over the run; two that do are refused."""
        return False

    @property
    def needs_end(self) -> bool:
        """Whether the method follows the run's progress, so that a run without an end is refused before it begins."""
        return False

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse what cannot work, before anything has been trained or written."""

    def check_arguments(self, trainer: Any) -> None:
        """Refuse arguments of the Trainer: its callbacks, ``accumulate_grad_batches``, ``max_epochs`` or ``max_steps``;
        also called by ``plan``, with an object that has these alone."""

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        """Refuse what the module's ``configure_optimizers`` returned; also called by ``plan``, which has no Trainer."""
        chosen_indices(type(self).__name__, self.optimizers, len(optimizers))
        if self.decays and self.module_scheduler == "refuse":
            refuse_module_scheduler(type(self).__name__, schedulers)

    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        """Refuse what cannot work under manual optimization, where the module makes its own backwards and steps."""

    def acts_on(self, index: int) -> bool:
        """Whether the method acts on an optimizer, by its place."""
        return self.optimizers is None or index in self.optimizers

    def chosen(self, optimizers: Sequence[Optimizer]) -> list[Optimizer]:
        """Those of the optimizers on which the method acts."""
        return [optimizer for index, optimizer in enumerate(optimizers) if self.acts_on(index)]

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        """Refuse a run of this shape; also called by ``plan``, which has no Trainer."""

    def prepare(self, trainer: Trainer, module: LightningModule) -> None:
        """Training is about to start or go on, and the shape of the run is not fixed yet: try out what decides it."""

    def reshape(self, shape: RunShape) -> RunShape:
        """The shape of the run under this method, where it decides about the batch."""
        return shape

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        """Training starts or goes on: set transforms of other hyperparameters. Called for each chosen optimizer."""

    def rates_were_set(self, writer: HyperparameterWriter) -> None:
        """The module's ``on_train_start`` has set an optimizer's learning rates: those of :meth:`start` are no more."""

    def factor(self, clock: SampleClock) -> float | Sequence[float]:
        """The multiplier for the next update, before which ``clock`` stands; one for all groups, or one for each."""
        raise NotImplementedError(f"{type(self).__name__}: define factor(self, clock); return 1.0 to change no lr")

    def factor_of(self, writer: HyperparameterWriter, clock: SampleClock) -> float | Sequence[float]:
        """The multiplier of one optimizer; for methods that tell them apart."""
        return self.factor(clock)

    def refine(self, trainer: Trainer, clock: SampleClock) -> float | Sequence[float]:
        """The multiplier for the update that is about to be made, its gradients complete, unscaled and clipped.

        Called once per update for methods that set ``refines``; :meth:`factor` holds until then. ``clock`` has counted
        the update already.
        """
        raise NotImplementedError

    def refine_of(self, writer: HyperparameterWriter, trainer: Trainer, clock: SampleClock) -> float | Sequence[float]:
        """The refined multiplier of one optimizer; for methods that tell them apart."""
        return self.refine(trainer, clock)

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        """The parts of the run that the method distinguishes, for ``plan`` and the journal."""
        return ()

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        """What the method logs about the update that was just made, with the learning rate of each group."""
        return {}

    def summary(self, shape: RunShape) -> dict[str, str]:
        """What ``plan`` prints about the method for a run of this shape, by heading."""
        return {}

    def plan_notes(self, shape: RunShape, optimizer: Optimizer) -> list[str]:
        """What ``plan`` reminds the user of before training, one sentence each."""
        return []

    def loss_weight(self, epoch: int, micro_batch: int) -> float:
        """The method's factor on the loss of a micro-batch, on top of Lightning's division by the accumulation."""
        return 1.0

    @property
    def gradient_correction(self) -> float:
        """What the method has multiplied the accumulated gradient of the present update by; 1 until it has."""
        return 1.0

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        """The arguments that must be those of the checkpoint, each with the reason; any other may change.

        Args:
            state: what :meth:`state_dict` returned when the checkpoint was saved.
            inside_epoch: whether training goes on inside an epoch.
        """
        return {}

    def dry_run_context(self, module: LightningModule, batch: Any) -> AbstractContextManager[Any]:
        """What the forward of ``module``, a copy that is tried out before training, has to run inside of."""
        return nullcontext()

    def on_warmup_end(self, trainer: Trainer) -> None:
        """An ``AdaptiveWarmup`` has switched to its decay, after the update that was just made."""

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    @HookOfObject
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_mirror(self, trainer)
        if stage != "fit":
            return
        self._journals_left = None
        mutable = (list, dict, set)  # what a fit fills in place
        self._before = {name: copy(v) if isinstance(v, mutable) else v for name, v in self.__dict__.items()}
        caller = type(self).__name__
        for other in members_of(trainer):
            if type(other) is type(self) and other is not self:
                raise MisconfigurationException(
                    f"{caller}: two of them are attached; a run has one of each method, so keep one (its argument "
                    "optimizers chooses among several)"
                )
            if other is not self and self.decays and other.decays:
                raise MisconfigurationException(
                    f"{caller}: {type(other).__name__} is attached too, and both lower the learning rate over the run; "
                    "keep one of the two"
                )
        check_agreement({type(m).__name__: m.module_scheduler for m in members_of(trainer) if _chooses(m)})
        twin = next((m for m in members_of(trainer) if m is not self and m.name == self.name), None)
        if twin is not None:
            raise MisconfigurationException(
                f"{caller}: {type(twin).__name__} is attached too, and both have the name {self.name!r}, under which "
                "multipliers and journals are kept apart; give your class another name, or keep one of the two"
            )
        refuse_incompatible(self, trainer)
        if isinstance(trainer, Trainer):  # a plan has none
            earlier = _TRAINED.setdefault(trainer, WeakSet())
            if self not in earlier or trainer.global_step == 0:
                self.start_fresh()
            earlier.add(self)
        counters = {m.count_samples for m in members_of(trainer) if m.count_samples is not None}
        if len(counters) > 1:
            raise MisconfigurationException(
                f"{caller}: callbacks were given different count_samples; give all the same"
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._before is None:  # the module's setup has attached it
            self.setup(trainer, pl_module, "fit")
        caller = type(self).__name__
        if not internals.has_optimizer(trainer):
            raise MisconfigurationException(
                f"{caller}: configure_optimizers returned no optimizer, so there is no update to act on; return a "
                "torch optimizer, or remove the callback"
            )
        self.check_optimizers(trainer.optimizers, [config.scheduler for config in trainer.lr_scheduler_configs])
        for optimizer in trainer.optimizers:
            if any("lr" not in group for group in optimizer.param_groups):
                raise MisconfigurationException(
                    f"{caller}: {type(optimizer).__name__} has parameter groups without 'lr', so there is no learning "
                    "rate to act on; return a torch optimizer"
                )
        if not pl_module.automatic_optimization:
            self.check_manual(trainer, pl_module)
        if self.needs_end and not internals.makes_no_update(trainer):
            why = internals.why_no_end(trainer)
            if why is not None:
                raise MisconfigurationException(f"{caller}: {why}")
        self.check_arguments(trainer)
        self.check(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        members = members_of(trainer)
        if members[0] is not self:
            return
        for member in members:
            if member._before is None:  # the module's on_fit_start has attached it
                member.on_fit_start(trainer, pl_module)
        internals.begin_epoch_after_resume(trainer)
        inside_epoch = internals.starting_position(trainer)[1] > 0
        resume_checks.check_absent(self._absent, inside_epoch)
        for member in members:
            resume_checks.check_settings(member, inside_epoch)
        for member in members:
            member.prepare(trainer, pl_module)
        run = Run.attach(trainer, pl_module, members)
        for member in members:
            member._run, member.loaded = run, None
            run.leave_out(member, member._idle_hooks(run))
            with in_words_of(type(member).__name__):
                if not internals.is_fast_dev_run(trainer):  # a fast_dev_run is shorter than any run that is meant
                    member.check_shape(run.clock.shape, run.writer.optimizer)
                for managed in run.optimizers:
                    if member.acts_on(managed.index):
                        member.start(managed.writer, run.clock.shape)
        run.write_next_update()
        for member in members:
            run.note_start(member)
        internals.log_settings(trainer, resume_checks.hyperparameters_of(members))
        internals.note_loggers(trainer)
        pictures.send(trainer, pictures.AT_START)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        run = self._run
        if run is None:
            self._refuse_to_come_late()
        elif run.last is self:  # accumulation and loader may be others in this epoch
            run.begin_epoch(trainer)
            run.write_next_update()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        run = self._run
        if run is None:
            self._refuse_to_come_late()
        elif run.first is self:
            run.begin_micro_batch(trainer, batch, batch_idx)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        run = self._run
        if run is not None and run.first is self:
            run.close_window(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        run = self._run
        if run is None or run.last is not self:
            return
        run.end_micro_batch()
        if internals.update_ends(trainer):
            if internals.logs_now(trainer):
                run.log(trainer)
            run.stand(trainer, internals.next_position(trainer))
            run.write_next_update()
            run.show_in_bar(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None and self._run.last is self:
            self._run.end(trainer)

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._run is not None and self._run.last is self:
            pictures.send(trainer, pictures.AT_END)

    @HookOfObject
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        if self._run is not None and self._run.first is self:
            explain_failed_write(trainer, exception)
        absent, self._absent = self._absent, []
        self._leave(trainer)
        resume_checks.explain_other_groups(absent, exception)
        resume_checks.explain_folder(exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave(trainer)

    # ------------------------------------------------------------------ state
    @property
    def state_key(self) -> str:
        """Where the state is in a checkpoint. Two of a kind pass the Trainer's check; :meth:`setup` refuses them."""
        if self._run is not None:  # Lightning asks at every hook
            return type(self).__qualname__
        return f"{super().state_key} {id(self)}" if internals.validates_callbacks() else super().state_key

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning has dumped the optimizer before it asks the callbacks: put the scheduled values there
        states = checkpoint.get("optimizer_states")
        if self._run is not None and self._run.first is self:
            for writer, state in zip(self._run.writers, states or [], strict=False):
                if state:  # FSDP2: only rank 0 has one
                    writer.rewrite_state(state)
            continuation.sign(checkpoint, self._run.journals_path)
        elif self._run is None:
            continuation.sign(checkpoint, self._journals_left)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.start_fresh()  # its state is loaded after this, if the checkpoint has one
        self.journals_before = continuation.journals_of(checkpoint)
        self._newer_version = continuation.newer_version_of(checkpoint)
        self._absent = resume_checks.absent_callbacks(trainer, checkpoint)

    def state_dict(self) -> dict[str, Any]:
        self._keep_place()
        return {
            "clock": self.clock_state,
            "settings": resume_checks.settings_of(self),
            "run": self._shape_facts,
            "tuned_lr": self.tuned_lr,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        resume_checks.check_state(type(self).__name__, state_dict, self._form_of_state(), self._newer_version)
        self.clock_state = state_dict["clock"]
        self.loaded = state_dict

    def start_fresh(self) -> None:
        """Drop what the object holds of another run: this one goes on from a checkpoint, or begins."""
        self.clock_state = self.loaded = self._shape_facts = None

    def __getstate__(self) -> dict[str, Any]:
        """What is copied and pickled: the object as it is outside a fit, to which nothing of the Trainer is tied."""
        state = self.__dict__
        if self._before is not None:
            self._keep_place()
            state = {**self._before, **{name: state[name] for name in ("clock_state", "tuned_lr", "_shape_facts")}}
        return internals.without_logging(state)

    # ------------------------------------------------------------------ inside
    @classmethod
    def _form_of_state(cls) -> Form:
        kinds = [kind for kind in cls.__mro__ if issubclass(kind, MethodCallback) and kind is not MethodCallback]
        own = {name: form for kind in kinds for name, form in kind.saves.items()}
        more = any("state_dict" in vars(kind) and "saves" not in vars(kind) for kind in kinds)
        return keys({**resume_checks.SAVED, **own}, more)

    def _idle_hooks(self, run: Run) -> list[str]:
        """The hooks of every update in which this callback does nothing in this run."""
        acts = {"on_train_batch_end"} if run.last is self else set()
        if run.first is self:
            acts |= {"on_train_batch_start", "on_before_optimizer_step"}
        return [
            hook
            for hook in internals.HOOKS_OF_AN_UPDATE
            if hook not in acts
            and getattr(type(self), hook) in (getattr(Callback, hook), getattr(MethodCallback, hook))
        ]

    def _refuse_to_come_late(self) -> None:
        raise MisconfigurationException(
            f"{type(self).__name__}: it was attached when training had begun, where it has no effect; give it to "
            "Trainer(callbacks=[...]), or return it from the module's configure_callbacks"
        )

    def _keep_place(self) -> None:
        if self._run is not None:
            self.clock_state = self._run.clock.state_dict()
            self.tuned_lr = [[float(lr) for lr in writer.tuned()] for writer in self._run.writers]
            self._shape_facts = resume_checks.facts_of(self._run.clock.shape)

    def _leave(self, trainer: Trainer) -> None:
        self.loaded = self.journals_before = self._newer_version = self._before = None
        self._absent = []
        if self._run is not None:
            self._keep_place()
            self._journals_left = self._run.journals_path if self._run.first is self else None
            self._run.detach()
            self._run = None


def _chooses(member: MethodCallback) -> bool:
    return "module_scheduler" in vars(member)


def members_of(trainer: Trainer) -> list[MethodCallback]:
    """Our callbacks, in the Trainer's order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, MethodCallback)]  # type: ignore[attr-defined]


def _snake_case(name: str) -> str:
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
