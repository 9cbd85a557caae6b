"""Weights that hooks change under ZeRO: taken over by the engine's fp32 copies, which the next update starts from.

The engine updates fp32 copies in shards and writes the module's parameters from them. What a hook writes into a
parameter (clipped weights, a re-initialised layer, an average) would be written over by the next update, without an
error. Checked against DeepSpeed 0.19.8.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor


def take_over(engine: Any) -> None:
    """Let each fp32 copy have its parameter's value wherever that is not its own, rounded; every rank its shard.

    Nothing waits for the device unless the copies are offloaded. An element that was not changed keeps the digits that
    the parameter's precision cannot hold.

    Args:
        engine: one that trains, between two updates.
    """
    into_shards(engine)
    sharded = engine.optimizer
    with torch.no_grad():
        for own, copy in _pairs(sharded):
            if own.dtype == copy.dtype:
                copy.copy_(own)
                continue
            here = own.to(copy.device)
            copy.copy_(torch.where(here == copy.to(here.dtype), copy, here.to(copy.dtype)))


def check_memory(caller: str, engine: Any) -> None:
    """Refuse a parameter that was given other memory. In stages 1 and 2 they are views of one vector per group.

    Args:
        caller: names the strategy.
        engine: one that trains.

    Raises:
        MisconfigurationException: with its name and what to do.
    """
    sharded = engine.optimizer
    if hasattr(sharded, "fp32_partitioned_groups_flat"):
        return
    for parameters, flat in zip(sharded.bit16_groups, sharded.bit16_groups_flat, strict=True):
        memory = flat.untyped_storage().data_ptr()
        for parameter in parameters:
            if parameter.untyped_storage().data_ptr() != memory:
                raise MisconfigurationException(
                    f"{caller}: {engine.param_names.get(parameter, 'a parameter')} was given other memory "
                    "(parameter.data = tensor), which the engine does not train; write into it (parameter.data.copy_), "
                    "or use strategy='ddp'"
                )


def _pairs(sharded: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """A rank's flat shard of the parameters, and its fp32 copy."""
    if hasattr(sharded, "fp32_partitioned_groups_flat"):
        for own, copy in zip(sharded.fp16_partitioned_groups_flat, sharded.fp32_partitioned_groups_flat, strict=True):
            if own is not copy:
                yield own.data, copy.data
        return
    for index, copy in enumerate(sharded.single_partition_of_fp32_groups):
        rank = dist.get_rank(group=sharded.real_dp_process_group[index])
        yield sharded.parallel_partitioned_bit16_groups[index][rank].data, copy.data


def gather_small(engine: Any) -> None:
    """Stage 3: make the small parameters whole where a forward has left them empty; else what is written is lost.

    The engine does this after every update, but not before the first one, nor after a validation. All ranks call it.
    """
    if not hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return
    empty = [p for p in engine.optimizer.persistent_parameters if p.ds_status.name == "NOT_AVAILABLE"]
    if empty:
        empty[0].all_gather(empty)


def into_shards(engine: Any) -> None:
    """Stage 3 keeps small parameters whole on every rank as well as in shards, until a forward fetches them again."""
    if not hasattr(engine.optimizer, "fp32_partitioned_groups_flat"):
        return
    shards, values = [], []
    for parameter in engine.optimizer.persistent_parameters:
        if parameter.data.numel() == parameter.ds_numel:
            length = int(parameter.ds_tensor.ds_numel)
            start = dist.get_rank(group=parameter.ds_process_group) * length
            value = parameter.data.flatten()[start : start + length]
            shards.append(parameter.ds_tensor.data[: value.numel()])
            values.append(value)
    if shards:
        torch._foreach_copy_(shards, values)
