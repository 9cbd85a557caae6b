"""Every touch of what Lightning does not promise: private attributes, and the order in which its loop calls things.

Checked against Lightning 2.6.6. Each function is named for its purpose; a new Lightning release can break this one
room and no other.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning, GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.core.optimizer import _init_optimizers_and_lr_schedulers
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, FSDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.seed import isolate_rng
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.utils.data import BatchSampler, DataLoader, IterableDataset
from torchmetrics import Metric

from lightning_lr.batch_size.sampler import RampBatchSampler
from lightning_lr.progress import EpochShape


# ---------------------------------------------------------------------- data
def epoch_shape(trainer: Trainer) -> EpochShape:
    """What an epoch of the loaded training data yields (after ``fit`` has set the loaders up)."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    batches = trainer.num_training_batches
    return loader_shape(combined.flattened[0], None if batches == float("inf") else int(batches), trainer.world_size)


def loader_shape(loader: Any, micro_batches: int | None, world_size: int) -> EpochShape:
    """What an epoch of ``loader`` yields on each of ``world_size`` devices in ``micro_batches`` micro-batches.

    Only torch's own ``BatchSampler`` tells the size of each batch; a subclass or another class may do anything. An
    iterable data set is batched inside the workers, so only the nominal size is known there.
    """
    if not isinstance(loader, DataLoader):
        return EpochShape(micro_batches, None, None, world_size)
    if isinstance(loader.dataset, IterableDataset):
        return EpochShape(micro_batches, loader.batch_size, None, world_size)
    sampler = loader.batch_sampler
    if type(sampler) not in (BatchSampler, RampBatchSampler):
        return EpochShape(micro_batches, None, None, world_size)
    assert isinstance(sampler, BatchSampler)
    return EpochShape(micro_batches, sampler.batch_size, len(sampler.sampler), world_size)  # type: ignore[arg-type]


def on_train_loader(trainer: Trainer, change: Callable[[Any], Any]) -> Callable[[], None]:
    """Let ``change`` see every training loader before Lightning measures it and makes its iterator.

    Lightning passes each loader through the strategy's ``process_dataloader`` after it has injected samplers; loops
    and callbacks are restored by then. It is shadowed on this one strategy; returns a function that undoes this.
    """
    strategy = trainer.strategy
    process = strategy.process_dataloader

    def processed(loader: object) -> object:
        loader = process(loader)
        return change(loader) if trainer.training else loader

    strategy.__dict__["process_dataloader"] = processed
    return lambda: strategy.__dict__.pop("process_dataloader", None)


def train_loader_count(trainer: Trainer) -> int:
    """Number of training loaders that are read side by side."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    return len(combined.flattened)


def length_of(loader: Any) -> int | None:
    """Batches in an epoch of a loader, or ``None`` where it has no length."""
    return sized_len(loader)


def limited_batches(trainer: Trainer, batches: int) -> int:
    """Batches of an epoch that ``limit_train_batches`` leaves."""
    limit = trainer.limit_train_batches
    return min(batches, limit) if isinstance(limit, int) else int(batches * limit)


def replace_batch_sampler(loader: DataLoader[Any], batch_sampler: BatchSampler) -> None:
    """Put another batch sampler into a loader that has no iterator yet; torch forbids it after construction."""
    loader.__dict__["batch_sampler"] = batch_sampler


def restart_iterator(trainer: Trainer) -> None:
    """Make the epoch's iterator anew: the one that exists began somewhere else (workers, too, are started again)."""
    loop = trainer.fit_loop
    assert loop._combined_loader is not None
    assert loop._data_fetcher is not None
    loop._combined_loader.reset()
    iter(loop._data_fetcher)


def set_up_train_loader(trainer: Trainer) -> None:
    """Make the training loader now, as ``estimated_stepping_batches`` does in ``configure_optimizers``."""
    trainer.fit_loop.setup_data()


def forget_loader_states(trainer: Trainer) -> None:
    """Keep Lightning from handing a resumable loader its saved state: who calls this places the loader itself."""
    trainer.fit_loop._combined_loader_states_to_load = []


def set_epoch_length(trainer: Trainer, micro_batches: int) -> None:
    """Tell every place that counts an epoch's micro-batches: progress bar, end of epoch, validation interval."""
    loop = trainer.fit_loop
    combined, fetcher = loop._combined_loader, loop._data_fetcher
    assert combined is not None
    assert fetcher is not None
    if loop.max_batches == micro_batches:
        return
    loop.max_batches = micro_batches
    combined.limits = [micro_batches] * len(combined.flattened)
    fetcher.length = micro_batches
    if isinstance(trainer.val_check_interval, float) and trainer.val_check_batch is not None:
        trainer.val_check_batch = max(1, int(micro_batches * trainer.val_check_interval))


def roll_back_to(trainer: Trainer, micro_batch: int) -> None:
    """Let a restored loop go on at an earlier micro-batch of its epoch, which it will run again."""
    loop = trainer.fit_loop.epoch_loop
    batches = loop.batch_progress
    total = batches.total.ready - (batches.current.ready - micro_batch)
    for count in ("ready", "started", "processed", "completed"):
        setattr(batches.current, count, micro_batch)
        setattr(batches.total, count, total)
    batches.is_last_batch = False
    if micro_batch == 0:  # the epoch begins anew; else the loop would take it for one that ended with its validation
        loop._restarting = False


def given_loader_without_length(trainer: Trainer) -> bool:
    """Whether ``fit`` was handed a loader (not a hook that makes one) which has no length.

    Asked before training starts, where calling the user's hook would run it once more than without us.
    """
    source = trainer.fit_loop._data_source
    if source.is_module() or isinstance(trainer.limit_train_batches, int):
        return False
    loader = source.instance
    try:
        return isinstance(loader, DataLoader) and len(loader) is None
    except TypeError:  # an IterableDataset without __len__
        return True


def batch_on_device(trainer: Trainer, batch: Any) -> Any:
    """A collated batch as ``training_step`` gets it: the hooks of module or data module, and the move to the device."""
    batch = trainer.precision_plugin.convert_input(batch)
    batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


# ---------------------------------------------------------------------- the loop
def training_step_arguments(module: LightningModule, batch: Any) -> tuple[Any, ...]:
    """What ``training_step`` is called with: the index of a batch only where it takes one."""
    takes_index = is_param_in_hook_signature(module.training_step, "batch_idx", min_args=2)
    return (batch, 0) if takes_index else (batch,)


@contextmanager
def silent_loggers(trainer: Trainer) -> Iterator[None]:
    """Inside, what is written to the Trainer's loggers goes nowhere."""
    loggers = trainer.loggers
    trainer.loggers = [DummyLogger() for _ in loggers]
    try:
        yield
    finally:
        trainer.loggers = loggers


def update_ends(trainer: Trainer) -> bool:
    """Whether the current micro-batch is the last of its update."""
    return not trainer.fit_loop._should_accumulate()


def next_position(trainer: Trainer) -> tuple[int, int]:
    """Epoch (0-based) and micro-batch in it that the loop will process next: after a micro-batch, or after a resume."""
    batches = trainer.fit_loop.epoch_loop.batch_progress
    done = batches.current.ready
    if done and (done >= trainer.num_training_batches or batches.is_last_batch):
        return trainer.fit_loop.epoch_progress.current.ready, 0  # counts the epochs begun, that one included
    return trainer.current_epoch, done


def begin_epoch_after_resume(trainer: Trainer) -> None:
    """In ``on_train_start``: let a run that goes on after the last batch of an epoch begin the next one as every other.

    From a checkpoint that was saved in ``on_train_batch_end`` of an epoch's last batch, Lightning 2.6.6 counts that
    epoch as done and still goes on as if inside it: ``on_train_epoch_start`` is not called, the new epoch is not
    counted, and what is restored from a checkpoint of *this* run then counts a batch twice.
    """
    loop = trainer.fit_loop
    epochs = loop.epoch_progress.current
    processed: int = getattr(epochs, "processed", -1)
    if getattr(loop, "restarted_mid_epoch", False) and epochs.ready == processed:
        loop.reset_restart_stage()


def loss_scale(trainer: Trainer) -> float:
    """What an AMP scaler multiplies the loss by; 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def gradient_scale(trainer: Trainer) -> float:
    """What gradients are multiplied by when the backward makes them, be it by an AMP scaler or by an engine."""
    scale = getattr(trainer.strategy, "current_loss_scale", None)
    return loss_scale(trainer) if scale is None else float(scale)


def reduced_on_arrival(trainer: Trainer, module: LightningModule) -> str | None:
    """Why no gradient of a single micro-batch on a single device can be seen; ``None`` where it can."""
    strategy = trainer.strategy
    who = type(strategy).__name__
    if isinstance(strategy, DeepSpeedStrategy) and not hasattr(strategy, "gradient_norm"):
        return f"{who} tells neither the gradient's norm nor its scale; use lightning_lr.ZeROStrategy"
    if isinstance(strategy, FSDPStrategy) or any(isinstance(p, DTensor) for p in module.parameters()):
        return (
            f"{who} averages gradients over the devices before they come to the parameters; use DDP or "
            "lightning_lr.ZeROStrategy"
        )
    return None


def with_gradient_norm(trainer: Trainer, act: Callable[[float | None], None]) -> Callable[[], None] | None:
    """Call ``act`` after each update with the norm of its whole gradient before clipping, which the engine has taken.

    Returns a function that undoes this, or ``None`` where there is no engine: the parameters have their gradients.
    """
    strategy = trainer.strategy
    if not hasattr(strategy, "gradient_norm"):
        return None
    undo: Callable[[], None] = strategy.after_update(lambda: act(strategy.gradient_norm))  # type: ignore[attr-defined]
    return undo


def maximum_over_ranks(value: torch.Tensor) -> torch.Tensor:
    """The maximum over the ranks, in place; Lightning's own reduction would make them wait for each other first."""
    torch.distributed.all_reduce(value, op=torch.distributed.ReduceOp.MAX)
    return value


def mean_over_ranks(values: torch.Tensor) -> torch.Tensor:
    """The mean over the ranks; values on the host are sent by the device where the backend has no other way."""
    if torch.distributed.get_backend() == "nccl" and values.device.type == "cpu":
        values = values.cuda()
    torch.distributed.all_reduce(values)
    return values / torch.distributed.get_world_size()


def leaves_no_trace(trainer: Trainer) -> bool:
    """Whether this is a ``fast_dev_run``, which is to write nothing."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]


def journal_folder(trainer: Trainer) -> Path | None:
    """Where decisions are written down; ``None`` on other ranks than the first, and where they are not."""
    log_dir = trainer.log_dir  # asks all ranks
    if log_dir is None or not trainer.is_global_zero or leaves_no_trace(trainer):
        return None
    if "://" in log_dir:
        rank_zero_info(f"lightning_lr: decisions are not written down, since {log_dir} is not a local folder")
        return None
    return Path(log_dir) / "lightning_lr"


def logs_now(trainer: Trainer) -> bool:
    """Whether Lightning's ``log_every_n_steps`` is due at this update."""
    return bool(trainer.loggers) and bool(trainer._logger_connector.should_update_logs)


def log_metrics(trainer: Trainer, metrics: dict[str, float]) -> None:
    """Log at the step number that Lightning uses for this update, and let other callbacks monitor the values."""
    trainer.callback_metrics.update({name: torch.tensor(value) for name, value in metrics.items()})
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=trainer.fit_loop.epoch_loop._batches_that_stepped)


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def bracket_scheduler_steps(
    module: LightningModule, bracket: Callable[[], AbstractContextManager[None]]
) -> Callable[[], None]:
    """Let every step of an LR scheduler happen inside ``bracket()``; returns a function that undoes this.

    Lightning steps schedulers at three places that no callback hook encloses, but always through the module's
    ``lr_scheduler_step``. It is shadowed on this one instance, so that a user's override keeps working.
    """
    step = module.lr_scheduler_step

    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            step(*args, **kwargs)

    return _shadow(module, "lr_scheduler_step", bracketed)


def bracket_lr_writers(
    trainer: Trainer, bracket: Callable[[], AbstractContextManager[None]]
) -> list[Callable[[], None]]:
    """Let Lightning's callbacks that write learning rates do so inside ``bracket()``; returns what undoes this.

    ``StochasticWeightAveraging`` makes its scheduler and ``BaseFinetuning`` adds and changes groups at the start of an
    epoch, from what they read in the groups. The hook is shadowed on these instances.
    """
    return [
        _shadow(callback, "on_train_epoch_start", _inside(bracket, callback.on_train_epoch_start))
        for callback in trainer.callbacks  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging | BaseFinetuning)
    ]


def _inside(bracket: Callable[[], AbstractContextManager[None]], hook: Callable[..., None]) -> Callable[..., None]:
    def bracketed(*args: Any, **kwargs: Any) -> None:
        with bracket():
            hook(*args, **kwargs)

    return bracketed


def epochs_of_updates(trainer: Trainer) -> int | None:
    """Epochs that the run trains for; ``None`` where the Trainer has no limit.

    For a model with batch norm ``StochasticWeightAveraging`` adds one to ``max_epochs`` in which nothing is updated.
    """
    if trainer.max_epochs in (None, -1):
        return None
    assert trainer.max_epochs is not None
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, StochasticWeightAveraging) and callback._model_contains_batch_norm:
            return min(trainer.max_epochs, callback._max_epochs)
    return trainer.max_epochs


def after_gradient_clipping(module: LightningModule, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` when the gradients are what the optimizer will apply; returns a function that undoes this.

    Lightning clips after ``on_before_optimizer_step`` and calls no hook between that and the step itself, but always
    calls the module's ``configure_gradient_clipping``, clipping or not, once an AMP scaler has unscaled. It is shadowed
    on this one instance, so that a user's override keeps working.
    """
    clip = module.configure_gradient_clipping

    def clipped(*args: Any, **kwargs: Any) -> None:
        clip(*args, **kwargs)
        act()

    return _shadow(module, "configure_gradient_clipping", clipped)


def before_optimizer_step(trainer: Trainer, module: LightningModule, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` when the optimizer's groups hold what it will apply; returns a function that undoes this.

    A strategy whose engine clips in its own step says by ``before_update`` when that is done; elsewhere see
    :func:`after_gradient_clipping`.
    """
    clipped = getattr(trainer.strategy, "before_update", None)
    if clipped is None:
        return after_gradient_clipping(module, act)
    undo: Callable[[], None] = clipped(act)
    return undo


def unseen_gradients(trainer: Trainer) -> str | None:
    """Why what the optimizer will apply cannot be seen before it does; ``None`` where it can."""
    strategy = trainer.strategy
    if isinstance(strategy, FSDPStrategy) or (
        isinstance(strategy, DeepSpeedStrategy) and not hasattr(strategy, "before_update")
    ):
        return (
            f"{type(strategy).__name__} keeps gradients and optimizer state where they cannot be compared; use DDP, "
            "lightning_lr.ZeROStrategy, or ModelParallelStrategy with fully_shard"
        )
    reason: str | None = getattr(strategy, "in_parts", None)
    return None if reason is None else f"under these settings of {type(strategy).__name__}, {reason}"


def after_optimizer_step(trainer: Trainer, act: Callable[[], None]) -> Callable[[], None]:
    """Call ``act`` after each update that was made, not where a scaler skipped it; returns a function that undoes this.

    A strategy whose engine steps the optimizer in parts says by ``after_update`` when the whole update is made.
    """
    whole = getattr(trainer.strategy, "after_update", None)
    if whole is not None:
        undo: Callable[[], None] = whole(act)
        return undo
    return trainer.optimizers[0].register_step_post_hook(lambda optimizer, args, kwargs: act()).remove


def has_loss_scaler(trainer: Trainer) -> bool:
    """Whether an AMP scaler multiplies the loss, and skips an update whose gradients are not finite."""
    return getattr(trainer.precision_plugin, "scaler", None) is not None


def left_in_gradients(trainer: Trainer, optimizer: Optimizer) -> float:
    """What an AMP scaler's factor in the gradients still is after clipping: 1 but for optimizers that unscale."""
    return loss_scale(trainer) if getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0


def take_from_rank_zero(trainer: Trainer, tensor: torch.Tensor) -> None:
    """Give every rank the bits that rank 0 has, so that what is decided by them cannot differ."""
    if trainer.world_size > 1 and torch.distributed.is_initialized():
        sent = tensor.to(trainer.strategy.root_device)  # what is offloaded to the host cannot be sent from there
        torch.distributed.broadcast(sent, src=0)
        if sent is not tensor:
            tensor.copy_(sent)


# ---------------------------------------------------------------------- optimizers
def around_configure_optimizers(
    module: LightningModule, around: Callable[[Callable[[], Any]], Any]
) -> Callable[[], None]:
    """Have ``around(configure_optimizers)`` called in place of ``configure_optimizers()``; returns an undo function.

    Strategies call the module's method. It is shadowed on this one instance, where ``LightningCLI`` puts its own too.
    """
    configure = module.configure_optimizers
    return _shadow(module, "configure_optimizers", lambda: around(configure))


def optimizers_and_schedulers(module: LightningModule) -> tuple[list[Optimizer], list[Any]]:
    """What ``configure_optimizers`` returns, checked and completed as for every strategy."""
    optimizers, schedulers = _init_optimizers_and_lr_schedulers(module)
    return optimizers, schedulers


Scheduled = tuple[Any, str, int]
"""A scheduler, the interval at which Lightning steps it ("step" or "epoch"), and its frequency."""


def configured_optimizers(returned: Any) -> tuple[list[Optimizer], list[Scheduled]]:
    """What a module's ``configure_optimizers`` returned, in any form that Lightning accepts."""
    if returned is None:
        return [], []
    if isinstance(returned, Optimizer):
        return [returned], []
    if isinstance(returned, dict):
        scheduler = returned.get("lr_scheduler")
        return [returned["optimizer"]], [] if scheduler is None else [_scheduled(scheduler)]
    if len(returned) == 2 and isinstance(returned[0], list):
        optimizers, schedulers = returned
        schedulers = schedulers if isinstance(schedulers, Sequence) else [schedulers]
        return list(optimizers), [_scheduled(scheduler) for scheduler in schedulers]
    parts = [configured_optimizers(part) for part in returned]
    return [o for optimizers, _ in parts for o in optimizers], [s for _, schedulers in parts for s in schedulers]


def _scheduled(scheduler: Any) -> Scheduled:
    if not isinstance(scheduler, dict):
        return scheduler, "epoch", 1
    return scheduler["scheduler"], scheduler.get("interval", "epoch"), scheduler.get("frequency", 1)


# ---------------------------------------------------------------------- wraps
def _shadow(module: Any, name: str, replacement: Callable[..., Any]) -> Callable[[], None]:
    """Let this one instance have another method; returns a function that undoes this."""
    before = module.__dict__.get(name)
    module.__dict__[name] = replacement

    def undo() -> None:
        if module.__dict__.get(name) is replacement:
            if before is None:
                del module.__dict__[name]
            else:
                module.__dict__[name] = before

    return undo


def let_accumulation_change(trainer: Trainer) -> Callable[[], None]:
    """Let ``GradientAccumulationScheduler`` work under a DeepSpeed strategy; returns a function that undoes this.

    It refuses every ``DeepSpeedStrategy`` by its class, in ``on_train_start``, which does nothing but check. Its check
    is made all the same, with the Trainer's accumulation and no strategy.
    """
    undo = []
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, GradientAccumulationScheduler):
            check = callback.on_train_start

            def checked(trainer: Trainer, module: LightningModule, check: Callable[..., None] = check) -> None:
                without = SimpleNamespace(strategy=None, accumulate_grad_batches=trainer.accumulate_grad_batches)
                check(without, module)

            undo.append(_shadow(callback, "on_train_start", checked))

    def undo_all() -> None:
        for act in undo:
            act()

    return undo_all


def around_training_step(trainer: Trainer, around: Callable[[], AbstractContextManager[Any]]) -> Callable[[], None]:
    """Let every ``training_step`` run inside ``around()``; returns a function that undoes this.

    The precision plugin's ``train_step_context`` encloses exactly the training step, also through DDP, and neither
    validation nor the backward; a pair of callback hooks would leak where the step raises. It is shadowed on this one
    plugin.
    """
    inner = trainer.precision_plugin.train_step_context

    @contextmanager
    def enclosed() -> Iterator[None]:
        with inner(), around():
            yield

    return _shadow(trainer.precision_plugin, "train_step_context", enclosed)


def loss_apart_from_training(trainer: Trainer, module: LightningModule, batch: Any) -> Any:
    """The loss of a training step that nobody notices: with its graph, without DDP, and as if it had not happened.

    Random numbers, buffers (the statistics of batch norm) and the states of metrics are put back; what is logged is
    dropped. The plugin's own context is entered (autocast), not what :func:`around_training_step` put around it. The
    loss is scaled as by an AMP scaler, so that gradients neither vanish nor overflow.
    """
    context = type(trainer.precision_plugin).train_step_context
    with isolate_rng(), silent_loggers(trainer), _put_back(module), context(trainer.precision_plugin):
        output = module.training_step(*training_step_arguments(module, batch))
    loss = output.get("loss") if isinstance(output, Mapping) else output
    return None if loss is None else loss * loss_scale(trainer)


@contextmanager
def _put_back(module: LightningModule) -> Iterator[None]:
    buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
    metrics = [
        (metric, copy.deepcopy(_metric_state(metric))) for metric in module.modules() if isinstance(metric, Metric)
    ]
    shadowed = {name: module.__dict__.get(name) for name in ("log", "log_dict")}
    module.__dict__.update(dict.fromkeys(shadowed, lambda *args, **kwargs: None))
    try:
        yield
    finally:
        for name, before in shadowed.items():
            module.__dict__.pop(name)
            if before is not None:
                module.__dict__[name] = before
        with torch.no_grad():
            for buffer, value in buffers:
                buffer.copy_(value)
        for metric, state in metrics:
            vars(metric).update(state)


def _metric_state(metric: Metric) -> dict[str, Any]:
    names = (*metric._defaults, "_computed", "_update_count", "_forward_cache", "_is_synced", "_cache")
    return {name: vars(metric)[name] for name in names if name in vars(metric)}


def takes_the_iterator(module: LightningModule) -> bool:
    """Whether ``training_step`` fetches its batches itself."""
    return is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True)


def is_compiled(module: LightningModule) -> str | None:
    """The name of a part of the module that goes through torch.compile, ``"the module"`` for all of it; None."""
    if getattr(module, "_compiler_ctx", None) is not None:
        return "the module"
    for name, part in module.named_modules():
        # by name: to import the class takes a second
        if type(part).__name__ == "OptimizedModule" or getattr(part, "_compiled_call_impl", None) is not None:
            return name or "the module"
    return None


def engine_holds_gradients(trainer: Trainer) -> bool:
    """Whether gradients, master weights and optimizer state are in DeepSpeed's buffers, not in the module's tensors."""
    return isinstance(trainer.strategy, DeepSpeedStrategy)


def weights_finite(trainer: Trainer, otherwise: Callable[[], bool]) -> bool:
    """Whether the weights are finite, on every rank; ``otherwise`` looks at a module that holds them whole."""
    own = getattr(trainer.strategy, "weights_finite", otherwise)
    return bool(trainer.strategy.reduce_boolean_decision(own()))


def holds_whole_parameters(trainer: Trainer) -> bool:
    """Whether every process holds every parameter whole, all the time: one device, DDP, ZeRO up to stage 2."""
    strategy = trainer.strategy
    if not isinstance(strategy, SingleDeviceStrategy | DDPStrategy):
        return False
    return not getattr(strategy, "zero_stage_3", False)
