"""One epoch of a plan, from the size of the data alone: split as torch and Lightning split it."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_lr.progress import EpochShape


def epoch_of(
    dataset_size: int, micro_batch_size: int, world_size: int = 1, drop_last: bool = False, replicated: bool = False
) -> EpochShape:
    """An epoch over a data set of known size, split over the devices as torch's ``DistributedSampler`` does.

    Args:
        dataset_size: samples.
        micro_batch_size: samples per device and backward (the loader's ``batch_size``).
        world_size: devices.
        drop_last: whether the loader leaves out a last batch that is not full.
        replicated: whether every device goes through the whole data set (no distributed sampler).

    Raises:
        ValueError: where a number is not positive.
    """
    for name, value in (("dataset", dataset_size), ("batch", micro_batch_size), ("world", world_size)):
        if value < 1:
            raise ValueError(f"a {name} size of {value} makes no run; give a whole number from 1")
    device_samples = dataset_size if replicated else math.ceil(dataset_size / world_size)
    whole, rest = divmod(device_samples, micro_batch_size)
    batches = whole + bool(rest and not drop_last)
    return EpochShape(batches, micro_batch_size, device_samples, world_size, drop_last=drop_last)


def limited(epoch: EpochShape, limit_train_batches: int | float) -> EpochShape:
    """The epoch under Lightning's ``limit_train_batches``: a number of micro-batches, or a share of them.

    Raises:
        ValueError: for a share of an epoch that has no length.
    """
    batches = epoch.micro_batches
    if isinstance(limit_train_batches, int):
        return replace(
            epoch, micro_batches=limit_train_batches if batches is None else min(batches, limit_train_batches)
        )
    if batches is None:
        if limit_train_batches == 1.0:
            return epoch
        raise ValueError(
            f"limit_train_batches={limit_train_batches} is a share of a loader that has no length; give a whole number"
        )
    return replace(epoch, micro_batches=int(batches * limit_train_batches))
