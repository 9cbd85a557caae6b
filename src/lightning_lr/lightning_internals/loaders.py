"""Training loaders: what an epoch of them yields, and changing them before and while they are read."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.connectors.data_connector import _resolve_overfit_batches
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from lightning_lr.batch_size.sampler import EpochSampler, RampBatchSampler
from lightning_lr.patching import override_on_instance
from lightning_lr.progress import EpochShape


def epoch_shape(trainer: Trainer) -> EpochShape:
    """What an epoch of the loaded training data yields (after ``fit`` has set the loaders up)."""
    batches = epoch_length(trainer)
    shapes = [loader_shape(loader, batches, trainer.world_size) for loader in train_loaders(trainer)]
    return shapes[0] if len(shapes) == 1 else side_by_side(shapes, batches)


def side_by_side(shapes: Sequence[EpochShape], micro_batches: int | None) -> EpochShape:
    """What an epoch of several loaders yields, of which a batch of each is read at every step."""
    sizes = [shape.micro_batch_size for shape in shapes if shape.micro_batch_size is not None]
    # what one of them yields when it has ended depends on the mode
    whole = sum(sizes) if len(sizes) == len(shapes) else None
    return EpochShape(micro_batches, whole, None, shapes[0].world_size, order=f"{len(shapes)} loaders")


def combined_length(combined: CombinedLoader, lengths: Sequence[int | None]) -> int | None:
    """Steps of an epoch of loaders with these lengths, ``None`` for one without, which are read side by side."""
    known = [length for length in lengths if length is not None]
    if combined._mode == "min_size":
        return min(known, default=None)
    return max(known) if len(known) == len(lengths) else None


def in_order(combined: CombinedLoader) -> CombinedLoader:
    """The loaders as ``Trainer(overfit_batches=...)`` reads them: their data sets in order, whatever they draw by."""
    read = CombinedLoader(combined.iterables, combined._mode)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that shuffling is turned off is said by fit
        _resolve_overfit_batches(read, RunningStage.TRAINING)
    return read


def epoch_length(trainer: Trainer) -> int | None:
    """Batches of the present epoch as Lightning knows them now, on this rank; ``None`` where they have no number."""
    batches = trainer.num_training_batches
    return None if batches == float("inf") else int(batches)


def deals_to_devices(trainer: Trainer) -> bool:
    """Whether Lightning gives every device its share of a loader's samples (the Trainer's ``use_distributed_sampler``,
    which it keeps where it has made its strategy)."""
    return bool(trainer._accelerator_connector.use_distributed_sampler)


def train_loaders(trainer: Trainer) -> tuple[Any, ...]:
    """The training loaders that are read now."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    return tuple(combined.flattened)


def loader_shape(loader: Any, micro_batches: int | None, world_size: int) -> EpochShape:
    """What an epoch of ``loader`` yields on each of ``world_size`` devices in ``micro_batches`` micro-batches.

    Only torch's own ``BatchSampler`` shows the size of each batch; a subclass or another class may do anything. An
    iterable data set is batched inside the workers, so only the nominal size is known there.
    """
    kind = type(loader).__name__
    if not isinstance(loader, DataLoader):
        return EpochShape(micro_batches, None, None, world_size, order=kind)
    if isinstance(loader.dataset, IterableDataset):
        return EpochShape(micro_batches, loader.batch_size, None, world_size, order="iterable")
    sampler = loader.batch_sampler
    if type(sampler) not in (BatchSampler, RampBatchSampler):
        return EpochShape(micro_batches, None, None, world_size, order=type(sampler).__name__)
    assert isinstance(sampler, BatchSampler)
    samples, order = len(sampler.sampler), _order_of(sampler.sampler)  # type: ignore[arg-type]
    return EpochShape(micro_batches, sampler.batch_size, samples, world_size, drop_last=sampler.drop_last, order=order)


def _order_of(sampler: Any) -> str:
    """In a word; the same for samplers that take each other's place on one device, on several, and under a ramp."""
    if isinstance(sampler, RandomSampler | EpochSampler | DistributedSampler):
        return "shuffled" if getattr(sampler, "shuffle", True) else "sequential"
    return "sequential" if isinstance(sampler, SequentialSampler) else type(sampler).__name__


def samples_in_micro_batch(trainer: Trainer, index: int) -> int | None:
    """Samples in a micro-batch of this device's epoch, by its sampler; ``None`` where the sampler does not know."""
    combined = trainer.fit_loop._combined_loader
    assert combined is not None
    loader = combined.flattened[0]
    sampler = getattr(loader, "batch_sampler", None)
    if isinstance(sampler, RampBatchSampler) and sampler.has_windows:
        return sampler.size_of(index)
    shape = loader_shape(loader, None, 1)
    return shape.units(index) if shape.sizes_known else None


def on_train_loader(trainer: Trainer, change: Callable[[Any], Any]) -> Callable[[], None]:
    """Let ``change`` see every training loader before Lightning measures it and makes its iterator.

    Lightning passes each loader through the strategy's ``process_dataloader`` after it has injected samplers; loops
    and callbacks are restored by then. It is replaced on this one strategy; returns a function that undoes this.
    """
    strategy = trainer.strategy
    process = strategy.process_dataloader

    def processed(loader: object) -> object:
        loader = process(loader)
        return change(loader) if trainer.training else loader

    return override_on_instance(strategy, "process_dataloader", processed)


def reloads_loaders(trainer: Trainer) -> bool:
    """Whether epochs may be read from different loaders."""
    return bool(getattr(trainer, "reload_dataloaders_every_n_epochs", 0))


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


def given_loader_without_length(trainer: Trainer) -> bool:
    """Whether ``fit`` was handed a loader (not a hook that makes one) which has no length.

    Called before training starts, where calling the user's hook would run it once more than without us.
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
