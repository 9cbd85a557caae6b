"""From a configuration to a plan: how long the run is, over how many devices, and with which optimizer.

What Lightning would work out with a Trainer is worked out here from the Trainer's arguments alone, in the same way.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from lightning.pytorch.utilities import CombinedLoader
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DistributedSampler

from lightning_lr import lightning_internals as internals
from lightning_lr.activations import CheckpointPolicy
from lightning_lr.callbacks import ActivationCompression
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.run_shape import accumulation_of, updates_of_trial
from lightning_lr.cli.errors import ConfigurationError, described
from lightning_lr.cli.plan.activation_memory import activation_summary, compression_summary
from lightning_lr.cli.plan.cost import with_costs
from lightning_lr.cli.plan.epoch import epoch_of, limited
from lightning_lr.cli.plan.model import Plan
from lightning_lr.cli.plan.options import PlanOptions
from lightning_lr.cli.plan.planned_trainer import planned_trainer
from lightning_lr.cli.plan.state_memory import Sharding
from lightning_lr.cli.plan.walk import Schedulers, make_plan
from lightning_lr.progress import EpochShape, RunShape
from lightning_lr.strategies import CheckpointedStrategy


class TrainerSettings:
    """Stands where the Trainer would: its arguments, and nothing built from them.

    Args:
        **arguments: of `Trainer`.
    """

    def __init__(self, **arguments: Any) -> None:
        given = arguments.get("callbacks") or []
        self.callbacks: list[Callback] = list(given) if isinstance(given, Sequence) else [given]
        self.arguments = arguments
        self.checkpointing: CheckpointPolicy | None = None
        """The policy of the configured strategy, if it is one of this package's that checkpoint."""
        self.one_device = False
        """Whether the configured strategy is ``CheckpointedStrategy``, which several devices are refused by."""
        self.sharding = Sharding()
        """The ZeRO stage of the configured strategy."""

    def __getitem__(self, name: str) -> Any:
        return self.arguments[name]

    def fit(self, model: LightningModule, datamodule: LightningDataModule | None = None, **kwargs: Any) -> None:
        """Nothing: a plan does not train."""


def plan_run(
    settings: TrainerSettings, model: LightningModule, data: LightningDataModule | None, options: PlanOptions
) -> Plan:
    """The plan of a run that the given arguments of a Trainer would make.

    Raises:
        MisconfigurationException, ValueError: where ``fit`` would refuse, or the run's length cannot be known.
    """
    notes: list[str] = []
    from_model = model.configure_callbacks()
    callbacks = [*settings.callbacks, *(from_model if isinstance(from_model, Sequence) else [from_model])]
    methods = [callback for callback in callbacks if isinstance(callback, MethodCallback)]
    if not methods:
        notes.append("no callback of lightning_lr is configured; this is the optimizer's learning rate as it is")
    given = ("accumulate_grad_batches", "max_epochs", "max_steps")
    trainer = SimpleNamespace(callbacks=callbacks, **{name: settings[name] for name in given})
    for method in methods:  # what is refused by looking at the callbacks and the module alone
        method.setup(cast(Trainer, trainer), model, "fit")
    for method in methods:
        method.check_arguments(trainer)
    world_size = _world_size(settings, options, notes)
    if settings.one_device:
        CheckpointedStrategy.refuse_several(world_size)
    epoch = _epoch(settings, model, data, options, world_size)
    shape = _run_shape(settings, callbacks, epoch, notes)
    optimizers, schedulers = _optimizers(settings, model, data, shape, notes)
    for method in methods if optimizers else ():
        method.check_optimizers(optimizers, [scheduler for scheduler, _, _ in schedulers])
    activations = _activations(settings, methods, model, data, notes)
    plan = make_plan(
        shape,
        methods,
        optimizers,
        _simulated(schedulers, model.automatic_optimization, notes),
        notes,
    )
    plan = replace(plan, summary={**plan.summary, **activations})
    optimizer = optimizers[0] if optimizers else None
    return with_costs(
        plan, settings, model, optimizer, options, lambda: internals.unnoticed_batch(_train_loader(model, data))
    )


def _activations(
    settings: TrainerSettings,
    methods: Sequence[MethodCallback],
    model: LightningModule,
    data: LightningDataModule | None,
    notes: list[str],
) -> dict[str, str]:
    compression = next((method.settings for method in methods if isinstance(method, ActivationCompression)), None)
    if settings.checkpointing is None and compression is None:
        return {}
    try:
        batch = internals.unnoticed_batch(_train_loader(model, data))
    except ConfigurationError:
        notes.append("activations are not planned: they need a batch of the training data, which is not here")
        return {}
    if settings.checkpointing is None:
        assert compression is not None
        return compression_summary(compression, model, batch, settings["precision"], notes)
    if compression is not None:
        notes.append("activations are checkpointed and compressed; the bytes shown are without compression")
    return activation_summary(settings.checkpointing, model, batch, settings["precision"], notes)


def _world_size(settings: TrainerSettings, options: PlanOptions, notes: list[str]) -> int:
    if options.world_size is not None:
        return options.world_size
    devices, nodes = settings["devices"], settings["num_nodes"]
    if isinstance(devices, Sequence) and not isinstance(devices, str):
        devices = len(devices)
    if isinstance(devices, str) and devices.isdigit():
        devices = int(devices)
    if isinstance(devices, int) and devices > 0:
        return devices * int(nodes)
    if settings["accelerator"] != "cpu":  # where "auto" is one process
        notes.append(f"trainer.devices={devices!r}: assuming 1 device; set --world-size W")
    return int(nodes)


def _epoch(
    settings: TrainerSettings,
    model: LightningModule,
    data: LightningDataModule | None,
    options: PlanOptions,
    world_size: int,
) -> EpochShape:
    if options.dataset_size is None:
        epoch = _epoch_of_loader(_train_loader(model, data, options.without_data), world_size, settings, options)
    else:
        batch_size = options.batch_size or getattr(data, "batch_size", None) or getattr(model, "batch_size", None)
        if not isinstance(batch_size, int):
            raise ValueError(
                "neither the data module nor the model has an attribute batch_size; give the loader's as --batch-size B"
            )
        epoch = epoch_of(options.dataset_size, batch_size, world_size)
    fast, overfit = settings["fast_dev_run"], settings["overfit_batches"]
    limit = overfit or (int(fast) if fast else settings["limit_train_batches"])
    return limited(epoch, 1.0 if limit is None else limit)


def _train_loader(model: LightningModule, data: LightningDataModule | None, instead: str = "") -> Any:
    """The training loader over data that is present; never downloads."""
    source: Any = model if data is None else data
    try:
        for part in (data, model):
            if part is not None:
                part.setup("fit")
        return source.train_dataloader()
    except Exception as error:  # whatever a user's setup raises without its data, or without a Trainer
        raise ConfigurationError(
            f"plan: {type(source).__name__} could not set up its training data without a Trainer and without "
            f"downloading ({described(error)}); {instead}"
        ) from error


def _epoch_of_loader(loaded: Any, world_size: int, settings: TrainerSettings, options: PlanOptions) -> EpochShape:
    combined = loaded if isinstance(loaded, CombinedLoader) else CombinedLoader(loaded, "max_size_cycle")
    distributed = settings["use_distributed_sampler"]
    if settings["overfit_batches"]:
        combined = internals.in_order(combined)
    shapes = [_epoch_of_one(loader, world_size, distributed, options) for loader in combined.flattened]
    if len(shapes) == 1:
        return shapes[0]
    return internals.side_by_side(shapes, internals.combined_length(combined, [s.micro_batches for s in shapes]))


def _epoch_of_one(loader: Any, world_size: int, distributed: bool, options: PlanOptions) -> EpochShape:
    shape = internals.loader_shape(loader, _length(loader), world_size)
    batch_size = options.batch_size or shape.micro_batch_size
    if shape.device_samples is None or batch_size is None:
        return replace(shape, micro_batch_size=batch_size)
    split = isinstance(loader.sampler, DistributedSampler)  # the user's own: it has the samples of one device
    return epoch_of(
        shape.device_samples, batch_size, world_size, bool(loader.drop_last), replicated=split or not distributed
    )


def _length(loader: Any) -> int | None:
    try:
        return len(loader)
    except (TypeError, NotImplementedError):
        return None


def _run_shape(
    settings: TrainerSettings, callbacks: Sequence[Callback], epoch: EpochShape, notes: list[str]
) -> RunShape:
    max_epochs, max_steps = settings["max_epochs"], settings["max_steps"]
    accumulation = accumulation_of(callbacks, int(settings["accumulate_grad_batches"]))
    if settings["fast_dev_run"]:
        max_epochs, max_steps = None, updates_of_trial(epoch, accumulation, int(settings["fast_dev_run"]))
        notes.append(f"fast_dev_run={settings['fast_dev_run']}: only this trial run is planned")
    timed = settings["max_time"] is not None or any(isinstance(callback, Timer) for callback in callbacks)
    if max_epochs is None and max_steps == -1 and not timed:
        max_epochs = 1000
        notes.append("neither max_epochs nor max_steps is set; Lightning then trains for 1000 epochs")
    if timed:
        if max_epochs in (None, -1) and max_steps == -1:
            raise ValueError(
                "a time limit alone ends this run, and how many updates fit into it is not known before training; set "
                "max_epochs or max_steps too, to see the plan of a run that ends by them"
            )
        notes.append(
            "a time limit is set; where it ends the run before this plan does, curves come to their end with the time"
        )
    return RunShape(
        epoch,
        accumulation=accumulation,
        max_epochs=None if max_epochs in (None, -1) else max_epochs,
        max_updates=None if max_steps == -1 else max_steps,
    )


# ---------------------------------------------------------------------- optimizer and schedulers
def _optimizers(
    settings: TrainerSettings,
    model: LightningModule,
    data: LightningDataModule | None,
    shape: RunShape,
    notes: list[str],
) -> tuple[list[Optimizer], list[internals.Scheduled]]:
    """What the module's ``configure_optimizers`` gives; nothing, and a note, where it needs more than a plan has."""
    accumulation = settings["accumulate_grad_batches"]
    try:
        with planned_trainer(model, data, shape, accumulation if isinstance(accumulation, int) else 1):
            optimizers, schedulers = internals.configured_optimizers(model.configure_optimizers())
    except MisconfigurationException:  # one of our callbacks refuses what the module does
        raise
    except Exception as error:  # whatever a user's method raises where nothing is trained
        notes.append(
            f"factors are shown instead of the learning rate: {type(model).__name__}.configure_optimizers does not "
            f"work before training ({described(error)})"
        )
        return [], []
    if len(optimizers) > 1 and model.automatic_optimization:
        raise MisconfigurationException(
            f"{type(model).__name__}.configure_optimizers returned {len(optimizers)} optimizers; Lightning trains "
            "several under manual optimization only. Set self.automatic_optimization = False, or return one optimizer"
        )
    return optimizers, schedulers


def _simulated(schedulers: Sequence[internals.Scheduled], automatic: bool, notes: list[str]) -> Schedulers:
    followed: dict[str, list[tuple[Any, int]]] = {"step": [], "epoch": []}
    others = []
    for scheduler, interval, frequency in schedulers:
        if isinstance(scheduler, ReduceLROnPlateau) or interval not in followed or not automatic:
            reason = f"interval={interval!r}" if automatic else "the module steps it itself"
            notes.append(
                f"{type(scheduler).__name__} is shown at its start value: what it does depends on the run ({reason})"
            )
            others.append(scheduler)
        else:
            followed[interval].append((scheduler, frequency))
    return Schedulers(after_update=followed["step"], after_epoch=followed["epoch"], not_followed=others)
