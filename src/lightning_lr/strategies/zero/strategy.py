"""`ZeROStrategy`: DeepSpeed's sharded training with the meaning that DDP gives to every setting.

Lightning owns the update: it counts micro-batches, divides the loss and steps on the last batch of an epoch, and the
strategy marks for the engine where an update ends. So accumulation, its changes in flight and the hooks are as under
DDP; what the engine alone knows (shards, clipping, the loss scale) stays with it. Runs on CPU with gloo, without a
compiler.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from inspect import signature
from pathlib import Path
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Trainer, callbacks
from lightning.pytorch.accelerators import CPUAccelerator, CUDAAccelerator
from lightning.pytorch.callbacks import BaseFinetuning, StochasticWeightAveraging
from lightning.pytorch.plugins.precision import DeepSpeedPrecision, Precision
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from lightning.pytorch.strategies.deepspeed import remove_module_hooks
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch.nn import Module
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.activations import CheckpointPolicy
from lightning_lr.callbacks.compatibility import BATCH_OF_ONE_PROCESS, Clash
from lightning_lr.optim.trust_ratio import TrustRatioOptimizer
from lightning_lr.strategies.checkpointed import CheckpointsActivations
from lightning_lr.strategies.zero import changed_weights, optimizer_checks, shard_stamps
from lightning_lr.strategies.zero import checkpoint as zero_checkpoint
from lightning_lr.strategies.zero import checks as zero_checks
from lightning_lr.strategies.zero import config as zero_config
from lightning_lr.strategies.zero import engine as zero_engine
from lightning_lr.strategies.zero import loading as zero_loading
from lightning_lr.strategies.zero.fork import ForkedEngine, why_not_forked
from lightning_lr.strategies.zero.gradients import Gradients, users_hooks
from lightning_lr.strategies.zero.precision import ZeROPrecision
from lightning_lr.strategies.zero.saving import AtomicCheckpoint
from lightning_lr.strategies.zero.sharded_update import ShardedUpdate


class ZeROStrategy(CheckpointsActivations, AtomicCheckpoint):
    r"""DeepSpeed ZeRO: optimizer state, gradients and parameters in shards, over the processes of data parallelism.

    ``Trainer(strategy="zero_2")``, or an instance. The weights after each update are DDP's. Accumulation means what
    it means under DDP: the loss is divided once, the last window of an epoch is stepped even if it is not full,
    ``on_before_optimizer_step`` is called once per update, ``accumulate_grad_batches`` may change in flight. The
    optimizer in ``trainer.optimizers`` is the module's own, with its parameter groups; their ``params`` are the
    engine's shards (stages 1 and 2: one flat vector per group; stage 3: none outside the step).

    Optimizers that act on each element by itself (SGD, Adam, AdamW, ...) are right on shards, which is why DeepSpeed's
    list of tested ones is not used. One that looks at whole tensors is not, which is found out by trying and refused,
    unless it knows of shards, as ``lightning_lr.optim.LARS`` and ``LAMB`` do. The optimizer makes one step per update,
    with all groups.

    Args:
        stage: 1 shards the optimizer's state, 2 the gradients too, 3 the parameters too.
        offload_optimizer: keep and update the optimizer's state on the host.
        offload_parameters: keep the shards of the parameters on the host; stage 3 alone.
        checkpointing: how to cut the forward into segments that are computed again; ``None`` keeps all activations.
        gradients_in_hooks: gather the whole gradient before each update, for hooks that read or change
            ``parameter.grad``; one all-reduce, and a whole fp32 gradient per rank. ``None``: where the module or a
            callback has ``on_after_backward``, ``on_before_optimizer_step`` or ``configure_gradient_clipping`` of its
            own. Where it is not gathered, reading it is an error.
        **deepspeed: arguments of Lightning's ``DeepSpeedStrategy``. ``config``, a dictionary or a path, is laid over
            what is written out by default.

    Raises:
        MisconfigurationException: for a stage that does not exist, arguments of stage 3 with another, settings that the
            Trainer decides about, without DeepSpeed; at setup for manual optimization, an overridden ``backward``, any
            number of optimizers but one, optimizers that the engine would break, NVMe without its operator, and
            callbacks of Lightning's that average weights or add groups; for a checkpoint of another stage or number of
            processes, or with files of two saves; and in training where a gradient is used that the engine has in
            shards.

    Source: Rajbhandari, Rasley, Ruwase & He 2020, arXiv:1910.02054.

    Example::

        Trainer(strategy=ZeROStrategy(stage=3, offload_optimizer=True), devices=8, precision="bf16-mixed")
    """

    strategy_name = "zero"
    refuses = (
        Clash(
            StochasticWeightAveraging,
            "it puts its average into the module's parameters, and the engine trains copies of them in shards",
            "use strategy='ddp', or remove it",
        ),
        Clash(
            getattr(callbacks, "WeightAveraging", ()),  # Lightning has it from 2.6 on
            "it keeps its average in the checkpoint's state_dict, which the engine does not save",
            "use strategy='ddp', or remove it",
        ),
        Clash(
            BaseFinetuning,
            "it adds groups to the optimizer during the run, which the engine does not train",
            "use strategy='ddp', or leave the frozen parameters out of the optimizer for the whole run",
        ),
        BATCH_OF_ONE_PROCESS,
    )
    handles_gradient_accumulation = False

    def __init__(
        self,
        stage: Literal[1, 2, 3] = 2,
        offload_optimizer: bool = False,
        offload_parameters: bool = False,
        checkpointing: CheckpointPolicy | None = None,
        gradients_in_hooks: bool | None = None,
        **deepspeed: Any,
    ) -> None:
        caller = type(self).__name__
        zero_config.check_arguments(caller, stage, offload_parameters, _differing(deepspeed))
        zero_engine.require_deepspeed(caller)
        zero_engine.choose_accelerator()
        self._given: dict[str, Any] = {}
        super().__init__(
            stage=stage, offload_optimizer=offload_optimizer, offload_parameters=offload_parameters, **deepspeed
        )
        zero_config.check_config(caller, stage, self._given)
        self.stage = int(stage)
        self.config = zero_config.written_out(self.config or {}, self._given, self.stage)
        self.policy = checkpointing
        self.gradients_in_hooks = gradients_in_hooks
        self._gradients: Gradients | None = None
        self._groups: tuple[tuple[str, ...], ...] = ()
        """Names of the parameters in each group of the optimizer that the engine trains."""
        self._members: tuple[tuple[str, ...], ...] = ()
        """The same with the frozen ones, which a file for a plain Trainer counts."""
        self._after_update: list[Callable[[], None]] = []
        self._update: ShardedUpdate | None = None
        self._trained: zero_engine.Trained | None = None
        """The shards of a run that has ended, until another one begins."""
        self._undo: list[Callable[[], None]] = []

    def __getstate__(self) -> dict[str, Any]:
        """Without what belongs to an engine, which cannot be copied."""
        return {**self.__dict__, "_trained": None, "_gradients": None, "_update": None}

    # ------------------------------------------------------------------ what Lightning calls
    @property
    def precision_plugin(self) -> Precision:
        return super().precision_plugin

    @precision_plugin.setter
    def precision_plugin(self, plugin: Precision | None) -> None:
        if type(plugin) is DeepSpeedPrecision:  # the Trainer picks it for every DeepSpeedStrategy
            plugin = ZeROPrecision(plugin.precision)  # type: ignore[arg-type]
        self._precision_plugin = plugin

    @contextmanager
    def block_backward_sync(self) -> Iterator[None]:
        """Nothing to block: each backward marks for the engine whether the update ends there."""
        yield

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's, from weights that hooks may have changed."""
        self._before_forward()
        return super().training_step(*args, **kwargs)

    def validation_step(self, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's, from weights that hooks may have changed."""
        self._before_forward()
        return super().validation_step(*args, **kwargs)

    def on_validation_end(self) -> None:
        """A validation is over, and training goes on."""
        super().on_validation_end()
        if self.in_parts is None and zero_engine.trains(self.model):
            changed_weights.gather_small(self.model)

    def _before_forward(self) -> None:
        if self.in_parts is None and zero_engine.trains(self.model):
            changed_weights.into_shards(self.model)

    # ------------------------------------------------------------------ what callbacks ask
    def after_update(self, act: Callable[[], None]) -> Callable[[], None]:
        """Call ``act`` after each update that was made; returns a function that undoes this.

        Where an engine steps the client optimizer in parts (:attr:`in_parts`), the optimizer's hooks cannot be used.
        """
        self._after_update.append(act)
        return lambda: self._after_update.remove(act) if act in self._after_update else None

    def before_update(self, act: Callable[[], None]) -> Callable[[], None]:
        """Call ``act`` before each step, the gradients in ``trainer.optimizers`` as it will use them; returns an undo.

        Averaged, unscaled and clipped; a learning rate that is written then is the one of this step. Not called for an
        update that the engine skips.
        """
        assert self._update is not None
        return self._update.before_update(act)

    @property
    def gradients(self) -> Gradients:
        """What ``parameter.grad`` is to the module and its callbacks."""
        assert self._gradients is not None
        return self._gradients

    @property
    def in_parts(self) -> str | None:
        """Why no method can see a whole update under the settings in use; ``None`` where it can."""
        return None if self._update is None else self._update.in_parts

    @property
    def current_loss_scale(self) -> float:
        """What the engine multiplies the loss by; 1 but in fp16."""
        return zero_engine.loss_scale(self.deepspeed_engine)

    @property
    def gradient_norm(self) -> float | None:
        """The norm of the last update's whole gradient, before clipping."""
        if self._gradients is not None and self._gradients.norm is not None:
            return self._gradients.norm
        return zero_engine.gradient_norm(self.deepspeed_engine)

    def weights_finite(self) -> bool:
        """Whether what this rank holds of the weights is finite."""
        assert self.lightning_module is not None
        return zero_engine.weights_finite(self.lightning_module)

    def take_over_weights(self) -> None:
        """Go on from what hooks have made of the weights since the last update.

        Raises:
            MisconfigurationException: where a parameter was given other memory.
        """
        if self.in_parts is None:
            changed_weights.check_memory(type(self).__name__, self.deepspeed_engine)
            changed_weights.take_over(self.deepspeed_engine)

    def update_made(self) -> None:
        """Call all functions given to :meth:`after_update`."""
        for act in list(self._after_update):
            act()

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Inside, updates are made of which :meth:`after_update` and :meth:`before_update` tell nobody."""
        assert self._update is not None
        told, self._after_update = self._after_update, []
        try:
            with self._update.unnoticed():
                yield
        finally:
            self._after_update = told

    def fork(self) -> ForkedEngine:
        """Remember what the engine trains, between two updates."""
        return ForkedEngine(self.deepspeed_engine, self.gradients)

    @property
    def why_not_forked(self) -> str | None:
        """Why what the engine trains cannot be put back under the settings in use; ``None`` where it can."""
        return why_not_forked(self.deepspeed_engine)

    # ------------------------------------------------------------------ setup, in Lightning's order
    def setup_environment(self) -> None:
        caller = type(self).__name__
        if isinstance(self.accelerator, CPUAccelerator):
            zero_engine.prepare_cpu(caller)
        elif not isinstance(self.accelerator, CUDAAccelerator):
            raise MisconfigurationException(
                f"{caller}: the Trainer has a {type(self.accelerator).__name__}; set accelerator='gpu' (CUDA) or 'cpu'"
            )
        zero_engine.check_precision(caller, str(self.precision_plugin.precision))
        assert self.config is not None
        if zero_config.uses_nvme(self.config):
            zero_engine.check_nvme(caller)
        self._refuse_incompatible()
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        if not isinstance(self.accelerator, CPUAccelerator):
            super().setup_distributed()
            return
        reset_seed()
        self.set_world_ranks()
        with zero_engine.leaving_group_at_exit():
            self._init_deepspeed_distributed()

    @property
    def repeats_hooks(self) -> bool:  # type: ignore[override]
        return self.stage == 3  # a block's hooks fetch its parameters

    def setup(self, trainer: Trainer) -> None:
        if trainer.state.fn == TrainerFn.FITTING:
            assert self.lightning_module is not None
            self._trained, self._groups, self._members = None, (), ()
            zero_checks.check_module(type(self).__name__, self.lightning_module)
            self._undo.append(internals.let_accumulation_change(trainer))
        super().setup(trainer)

    def teardown(self) -> None:
        for undo in reversed(self._undo):
            undo()
        self._undo, self._after_update = [], []
        if self._update is not None:
            self._update.detach()
        if self._gradients is not None:
            self._gradients.detach()
        engine = self.model
        if zero_engine.trains(engine):
            if self.in_parts is None:
                changed_weights.take_over(engine)
            self._trained = zero_engine.Trained(engine)
        super().teardown()
        if engine is not None and engine is not self.lightning_module:
            zero_engine.release(engine)
            self.model = self.lightning_module

    # ------------------------------------------------------------------ checkpoints
    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """The groups alone, as of the whole parameters: the engine saves the state itself, in shards."""
        indices = iter(range(sum(len(group) for group in self._groups)))
        groups = zero_checkpoint.hyperparameters(optimizer.param_groups)
        for group, names in zip(groups, self._groups, strict=True):
            group["params"] = [next(indices) for _ in names]
        return {"state": {}, "param_groups": groups}

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """A whole folder, with the hyperparameters that :meth:`optimizer_state` and then the callbacks wrote down.

        After ``fit`` has returned, what it trained is saved, as under DDP.

        Raises:
            MisconfigurationException: where nothing was trained, or its weights were changed since.
        """
        with self._engine_to_save() as engine:
            if not zero_engine.trains(engine):
                super().save_checkpoint(checkpoint, filepath, storage_options)
                return
            if self._trained is None:
                self.take_over_weights()
            dumped = checkpoint.get("optimizer_states") or [self.optimizer_state(self.optimizers[0])]
            values = zero_checkpoint.hyperparameters(dumped[0]["param_groups"])
            checkpoint[zero_checkpoint.RECORD] = {
                "groups": [list(names) for names in self._groups],
                "members": [list(names) for names in self._members],
                "hyperparameters": values,
            }
            with zero_checkpoint.values_in_groups(self.optimizers[0], values):
                super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: str | Path, *args: Any, **kwargs: Any) -> dict[str, Any]:
        self._trained = None  # the module gets other weights than it was trained to
        if self.load_full_weights and self.zero_stage_3:
            return super().load_checkpoint(checkpoint_path, *args, **kwargs)
        caller, module = type(self).__name__, self.lightning_module
        assert module is not None
        fitting = module.trainer.state.fn == TrainerFn.FITTING
        checkpoint_path = self.broadcast(checkpoint_path)
        found = zero_checkpoint.layout_of(caller, checkpoint_path)
        engine, strict = self.deepspeed_engine, module.strict_loading
        if not fitting:
            return zero_loading.load_weights(caller, engine, checkpoint_path, strict)
        run = zero_checkpoint.Layout(self.stage, self.world_size, self._groups)
        zero_checkpoint.check_fits(caller, checkpoint_path, found, run)
        if found.universal:
            loaded = zero_loading.load_universal(caller, engine, checkpoint_path, strict)
        else:
            folder = Path(checkpoint_path) / zero_checkpoint.TAG
            shard_stamps.check_own_files(caller, checkpoint_path, folder, self.global_rank, self.world_size)
            loaded = super().load_checkpoint(checkpoint_path, *args, **kwargs)
        loaded["optimizer_states"] = [self.optimizer_state(self.optimizers[0])]  # for callbacks that look at it
        return loaded

    @contextmanager
    def _engine_to_save(self) -> Iterator[Any]:
        """Inside, ``self.model`` is an engine: the running one, or the one whose run has ended."""
        if isinstance(self.model, Module) and self.model is not self.lightning_module:
            yield self.model
            return
        caller = type(self).__name__
        if self._trained is None:
            raise MisconfigurationException(
                f"{caller}: there is nothing to save: no fit of this Trainer has ended, or weights were loaded since "
                "(validate, test or predict with ckpt_path); save before that, or by ModelCheckpoint"
            )
        self._trained.check_unchanged(caller)
        module, self.model = self.model, self._trained.engine
        try:
            yield self._trained.engine
        finally:
            self.model = module

    # ------------------------------------------------------------------ inside
    def init_deepspeed(self) -> None:
        """As Lightning's, without the words that clipping is the engine's alone: here a module's own is done."""
        assert self.lightning_module is not None
        assert isinstance(self.model, Module)
        if self.lightning_module.trainer.training:
            self._initialize_deepspeed_train(self.model)
        else:
            self._initialize_deepspeed_inference(self.model)

    def _load_config(self, config: Any) -> None:
        """Keep the user's configuration aside: Lightning would drop every default of its own for it."""
        self._given = super()._load_config(config) or {}

    def _format_batch_size_and_grad_accum_config(self) -> None:
        if self.lightning_module is not None:
            assert self.config is not None
            self.config["gradient_clipping"] = float(self.lightning_module.trainer.gradient_clip_val or 0.0)

    def _initialize_deepspeed_train(self, model: Module) -> None:
        caller = type(self).__name__
        assert self.lightning_module is not None
        assert self.config is not None
        undo = internals.around_configure_optimizers(self.lightning_module, partial(zero_checks.exactly_one, caller))
        try:
            optimizers, schedulers = internals.optimizers_and_schedulers(self.lightning_module)
        except (RuntimeError, ImportError) as error:
            zero_engine.explain_failed_build(caller, error)
            raise
        finally:
            undo()
        zero_engine.check_optimizer(caller, optimizers[0], self.stage)
        if self.stage == 3:
            zero_checks.check_all_are_given(caller, model, optimizers[0])
        optimizer_checks.check_acts_on_elements(caller, optimizers[0])
        self._groups = zero_checkpoint.named_groups(model, optimizers[0])
        self._members = zero_checkpoint.named_groups(model, optimizers[0], frozen_too=True)
        self._update = ShardedUpdate(optimizers[0])
        self._gradients = Gradients(caller, optimizers[0])
        self.model = zero_engine.initialize(model, optimizers[0], self.config, self.root_device, self.local_rank)
        self._update.attach(self.model)
        if self.in_parts is not None and isinstance(optimizers[0], TrustRatioOptimizer):
            raise MisconfigurationException(
                f"{caller}: {type(optimizers[0]).__name__} needs the norms of whole tensors, and {self.in_parts}"
            )
        self._gradients.attach(self.model, self._hooks_need_gradients())
        if self.in_parts is None:
            changed_weights.gather_small(self.model)
        self._set_deepspeed_activation_checkpointing()
        self.optimizers = [zero_engine.client_optimizer(self.model, self._gradients.zero_grad)]
        vars(self.lightning_module.optimizers())["zero_grad"] = self._gradients.zero_grad  # Lightning's wrapper has one
        self.lr_scheduler_configs = schedulers

    def _hooks_need_gradients(self) -> bool:
        """Whether the whole gradient is gathered before each update; all ranks decide the same."""
        caller, module = type(self).__name__, self.lightning_module
        assert module is not None
        hooks = users_hooks(module.trainer, module)
        if self.gradients_in_hooks is not None:
            wanted = self.gradients_in_hooks
        else:
            wanted = self.reduce_boolean_decision(bool(hooks), all=False)
        if wanted and self.in_parts is not None:
            if self.gradients_in_hooks:
                raise MisconfigurationException(
                    f"{caller}: gradients_in_hooks=True needs whole updates, and {self.in_parts}"
                )
            return False
        if wanted and hooks and self.gradients_in_hooks is None:
            rank_zero_info(
                f"{caller}: every rank gathers the whole gradient before each update, for {', '.join(hooks)}; pass "
                "gradients_in_hooks=False if no hook uses parameter.grad"
            )
        return wanted

    def _initialize_deepspeed_inference(self, model: Module) -> None:
        assert self.config is not None
        settings: dict[str, Any] = {"train_micro_batch_size_per_gpu": 1}
        kept = ("fp16", "bf16", *(("zero_allow_untested_optimizer", "zero_optimization") if self.stage == 3 else ()))
        settings.update({name: self.config[name] for name in kept if name in self.config})
        remove_module_hooks(model)
        self.model = zero_engine.initialize(model, None, settings, self.root_device, self.local_rank)


def _differing(arguments: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults of Lightning's strategy: its command line hands over all of them."""
    defaults = {name: parameter.default for name, parameter in signature(DeepSpeedStrategy.__init__).parameters.items()}
    return {name: value for name, value in arguments.items() if name not in defaults or value != defaults[name]}
