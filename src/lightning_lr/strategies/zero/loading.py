"""ZeRO checkpoints read into an engine: weights of any of them, and a whole universal one.

DeepSpeed's loader of universal checkpoints under stage 3 gives every group the hyperparameters of the first one. Here
the parameters' folders that ``zero_universal`` wrote are put into the engine's flat vectors, for every optimizer that
works on each element by itself, and the groups keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_lr.strategies.zero.checkpoint import (
    FP32,
    NOT_LIGHTNINGS,
    RECORD,
    TAG,
    State,
    layout_of,
    read_parameter,
    read_value,
    saved_in,
    set_values,
)


def load_weights(caller: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load the weights of any ZeRO checkpoint into an engine that does not train; returns what Lightning saved in it.

    Args:
        caller: names the strategy.
        engine: the engine, of any stage and number of processes.
        checkpoint: of any stage and number of processes, or universal.
        strict: whether every parameter has to be there.

    Raises:
        MisconfigurationException: for a parameter that the checkpoint does not have.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved, folder = saved_in(checkpoint), Path(checkpoint) / TAG
    if (folder / "zero").is_dir():
        _put_weights(caller, engine.module, checkpoint, partial(_read_weight, folder / "zero"), strict)
    elif layout_of(caller, checkpoint).stage == 3:
        whole = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)
        _put_weights(caller, engine.module, checkpoint, whole.get, strict)
    else:
        _put_weights(caller, engine.module, checkpoint, saved["module"].get, strict)
    return {key: value for key, value in saved.items() if key not in NOT_LIGHTNINGS}


def load_universal(caller: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load a universal checkpoint into a training engine of any stage; returns what Lightning saved in it.

    Args:
        caller: names the strategy.
        engine: the engine.
        checkpoint: the folder that :func:`to_universal` wrote.
        strict: whether every parameter has to be there, beside those that are trained.

    Raises:
        MisconfigurationException: for a parameter that the checkpoint does not have.
    """
    loaded, saved, zero = (
        load_weights(caller, engine, checkpoint, strict),
        saved_in(checkpoint),
        Path(checkpoint, TAG, "zero"),
    )
    sharded = engine.optimizer
    load = _load_stage_3 if hasattr(sharded, "fp32_partitioned_groups_flat") else _load_stage_1_2
    load(sharded, _Parameters(zero, engine.param_names))
    shared = torch.load(zero / "optimizer_state.pt", weights_only=False)
    for key in ("loss_scaler", "dynamic_loss_scale"):
        if key in shared:
            setattr(sharded, key, shared[key])
    set_values(sharded.optimizer, saved[RECORD]["hyperparameters"])
    engine.global_steps, engine.skipped_steps = saved["global_steps"], saved["skipped_steps"]
    return loaded


class _Parameters:
    """The whole states of the parameters of an engine, read when they are needed."""

    def __init__(self, folder: Path, names: Mapping[Tensor, str]) -> None:
        self._folder, self._names = folder, names

    def __call__(self, parameter: Tensor) -> State:
        return read_parameter(self._folder / self._names[parameter])


def _load_stage_1_2(sharded: Any, whole: _Parameters) -> None:
    """Each group is one flat vector, of which this rank has a contiguous piece; parameters lie in it by fragments."""
    for parameters, flat in zip(sharded.bit16_groups, sharded.single_partition_of_fp32_groups, strict=True):
        pieces = []
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is not None:  # else this rank has nothing of it
                here, there = mapping.hp_fragment_address, mapping.lp_fragment_address
                pieces.append((here.start, there.start, here.numel, whole(parameter)))
        _fill(sharded.optimizer, flat, pieces, [whole(parameter) for parameter in parameters[:1]])
    sharded.update_lp_params()


def _load_stage_3(sharded: Any, whole: _Parameters) -> None:
    """Each parameter is cut in as many equal pieces as there are ranks, the last one padded; a sub-group is one vector
    of such pieces."""
    sharded.checkpoint_event_prologue()
    rank = torch.distributed.get_rank(sharded.dp_process_group)
    for index, parameters in enumerate(sharded.fp16_groups):
        flat, pieces, offset = sharded.fp32_partitioned_groups_flat[index], [], 0
        for parameter in parameters:
            length = int(parameter.ds_tensor.ds_numel)
            valid = max(0, min(length, int(parameter.ds_numel) - rank * length))
            pieces.append((offset, rank * length, valid, whole(parameter)))
            offset += length
        _fill(sharded.optimizer, flat, pieces, [piece[3] for piece in pieces[:1]])
        sharded.fp16_partitioned_groups_flat[index].data.copy_(flat.data)
        views = sharded.unflatten(sharded.fp16_partitioned_groups_flat[index], sharded.fp16_partitioned_groups[index])
        for piece, view in zip(sharded.fp16_partitioned_groups[index], views, strict=True):
            piece.data = view.data
    sharded.checkpoint_event_epilogue()  # the small ones that stay whole on every rank, made of the new pieces


def _fill(optimizer: Any, flat: Tensor, pieces: list[tuple[int, int, int, State]], some: list[State]) -> None:
    """Put pieces of whole tensors into a rank's flat vector and the state that the optimizer keeps for it.

    Args:
        optimizer: the client's.
        flat: the vector of fp32 weights.
        pieces: where a piece begins in the vector and in the whole parameter, its length, and the whole state.
        some: the state of one parameter of the vector, also where this rank has no piece; tells the names.
    """
    flat.data.zero_()  # padding too: DeepSpeed leaves it uninitialised in stage 3
    for here, there, length, state in pieces:
        flat.data.narrow(0, here, length).copy_(state[FP32].flatten().narrow(0, there, length))
    for key, value in (some[0] if some else {}).items():
        if key == FP32:
            continue
        if not (isinstance(value, Tensor) and value.shape == some[0][FP32].shape and value.ndim):
            optimizer.state[flat][key] = value.clone() if isinstance(value, Tensor) else value
            continue
        vector = torch.zeros_like(flat.data, dtype=value.dtype)
        for here, there, length, state in pieces:
            vector.narrow(0, here, length).copy_(state[key].flatten().narrow(0, there, length))
        optimizer.state[flat][key] = vector


def _put_weights(
    caller: str, module: nn.Module, checkpoint: str | Path, find: Callable[[str], Tensor | None], strict: bool
) -> None:
    """Every parameter and buffer of the module, also what no optimizer has; in stage 3 each is whole for its moment."""
    import deepspeed

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        value = find(name)
        if value is None:
            if strict and isinstance(tensor, nn.Parameter):
                raise MisconfigurationException(
                    f"{caller}: the checkpoint {checkpoint} has no parameter {name}; load it into the model that wrote "
                    "it"
                )
            continue  # a buffer that is not persistent
        if hasattr(tensor, "ds_id"):
            with deepspeed.zero.GatheredParameters([tensor], modifier_rank=0), torch.no_grad():
                if torch.distributed.get_rank() == 0:
                    tensor.copy_(value)
        else:
            with torch.no_grad():
                tensor.copy_(value)


def _read_weight(zero: Path, name: str) -> Tensor | None:
    file = zero / name / f"{FP32}.pt"
    return read_value(file) if file.is_file() else None
