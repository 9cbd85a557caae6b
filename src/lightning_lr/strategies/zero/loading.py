"""ZeRO checkpoints read into an engine: weights of any of them, and a whole universal one.

DeepSpeed's loader of universal checkpoints under stage 3 gives every group the hyperparameters of the first one. Here
the parameters' folders that ``universal`` wrote are put into the engine's flat vectors, for every optimizer that
works on each element by itself, and the groups keep theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
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
    saved_in,
    set_values,
)
from lightning_lr.strategies.zero.parameter_folders import ParameterFolders
from lightning_lr.strategies.zero.shard_stamps import STAMP, check_stamps, optimizer_files, stamps_of


def load_weights(caller: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load the weights of any ZeRO checkpoint into an engine that does not train; returns what Lightning saved in it.

    Args:
        caller: names the strategy.
        engine: the engine, of any stage and number of processes.
        checkpoint: of any stage and number of processes, or universal.
        strict: whether the module and the checkpoint must have the same parameters, buffers and extra state.

    Raises:
        MisconfigurationException: names what the checkpoint lacks or the module does not have, a parameter of another
            shape, and a file that cannot be read or belongs to another save.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved = saved_in(checkpoint)
    found = layout_of(caller, checkpoint)
    whole = saved["module"].get
    if found.universal:
        folders = ParameterFolders(caller, checkpoint, saved.get(STAMP))

        def whole(name: str) -> Any:
            weight = folders.weight(name)  # frozen under stage 1, a converter before 0.2 left them to the model's file
            return saved["module"].get(name) if weight is None else weight

    elif found.stage == 3:
        check_stamps(caller, checkpoint, stamps_of(optimizer_files(Path(checkpoint) / TAG, found.world_size)))
        whole = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG).get
    _put_weights(caller, engine.module, checkpoint, whole, saved["module"], strict)
    return {key: value for key, value in saved.items() if key not in NOT_LIGHTNINGS}


def load_universal(caller: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load a universal checkpoint into a training engine of any stage; returns what Lightning saved in it.

    Args:
        caller: names the strategy.
        engine: the engine.
        checkpoint: the folder that :func:`to_universal` wrote.
        strict: whether frozen parameters, buffers and extra state have to be there; what is trained always has to.

    Raises:
        MisconfigurationException: as :func:`load_weights`.
    """
    loaded, saved = load_weights(caller, engine, checkpoint, strict), saved_in(checkpoint)
    folders = ParameterFolders(caller, checkpoint, saved.get(STAMP))
    sharded = engine.optimizer
    load = _load_stage_3 if hasattr(sharded, "fp32_partitioned_groups_flat") else _load_stage_1_2
    load(sharded, _Parameters(caller, checkpoint, folders, engine.param_names))
    shared = folders.read_shared()
    for key in ("loss_scaler", "dynamic_loss_scale"):
        if key in shared:
            setattr(sharded, key, shared[key])
    set_values(sharded.optimizer, saved[RECORD]["hyperparameters"])
    engine.global_steps, engine.skipped_steps = saved["global_steps"], saved["skipped_steps"]
    return loaded


class _Parameters:
    """The whole states of the parameters of an engine, read when they are needed."""

    def __init__(
        self, caller: str, checkpoint: str | Path, folders: ParameterFolders, names: Mapping[Tensor, str]
    ) -> None:
        self._caller, self._checkpoint, self._folders, self._names = caller, checkpoint, folders, names

    def __call__(self, parameter: Tensor) -> State:
        name = self._names[parameter]
        state = self._folders.read(name)
        if not state:
            raise MisconfigurationException(
                f"{self._caller}: the checkpoint {self._checkpoint} has no optimizer state of {name}, which this run "
                "trains; resume with the model and the optimizer of the run that wrote it"
            )
        return state


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
        some: the state of one parameter of the vector, also where this rank has no piece; for the names.
    """
    flat.data.zero_()  # padding too: DeepSpeed leaves it uninitialised in stage 3
    for here, there, length, state in pieces:
        flat.data.narrow(0, here, length).copy_(state[FP32].flatten().narrow(0, there, length))
    for key, value in (some[0] if some else {}).items():
        if key == FP32:
            continue
        if not (isinstance(value, Tensor) and value.shape == some[0][FP32].shape and value.ndim):
            optimizer.state[flat][key] = deepcopy(value)  # the vector's own, as every state
            continue
        vector = torch.zeros_like(flat.data, dtype=value.dtype)
        for here, there, length, state in pieces:
            vector.narrow(0, here, length).copy_(state[key].flatten().narrow(0, there, length))
        optimizer.state[flat][key] = vector


def _put_weights(
    caller: str,
    module: nn.Module,
    checkpoint: str | Path,
    find: Callable[[str], Any],
    saved: Mapping[str, Any],
    strict: bool,
) -> None:
    """Every parameter, buffer and extra state of the module, also what no optimizer has.

    Args:
        caller: names the strategy.
        module: the module; in stage 3 each parameter is whole for its moment.
        checkpoint: where the weights come from.
        find: the whole value of a parameter, by name.
        saved: the module's state dictionary as DeepSpeed saved it: whole but for the parameters in stage 3.
        strict: whether both sides must have the same names.
    """
    names = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    expected = set(module.state_dict())
    missing = []
    for name, parameter in module.named_parameters():
        value = find(name)
        if value is not None:
            _put(caller, checkpoint, name, parameter, value)
        elif name in expected:
            missing.append(name)
    others = {name: value for name, value in saved.items() if name not in names}
    if strict:
        missing += sorted(expected - names - others.keys())
        _refuse_other_names(caller, checkpoint, "lacks", missing)
        _refuse_other_names(caller, checkpoint, "has", sorted(others.keys() - expected))
    module.load_state_dict({name: value for name, value in others.items() if name in expected}, strict=False)


def _put(caller: str, checkpoint: str | Path, name: str, parameter: Tensor, value: Tensor) -> None:
    import deepspeed

    shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
    if tuple(value.shape) != shape:
        raise MisconfigurationException(
            f"{caller}: parameter {name} has shape {shape}, and {tuple(value.shape)} in the checkpoint {checkpoint}; "
            "load it into the model that wrote it"
        )
    if not hasattr(parameter, "ds_id"):
        with torch.no_grad():
            parameter.copy_(value)
        return
    with deepspeed.zero.GatheredParameters([parameter], modifier_rank=0), torch.no_grad():
        if torch.distributed.get_rank() == 0:
            parameter.copy_(value)


def _refuse_other_names(caller: str, checkpoint: str | Path, side: str, names: list[str]) -> None:
    """``strict``: the checkpoint lacks names, or has more than the module."""
    if names:
        but = "the module has" if side == "lacks" else "the module does not"
        raise MisconfigurationException(
            f"{caller}: the checkpoint {checkpoint} {side} {', '.join(names)}, which {but}; load it into the model "
            "that wrote it, or set strict_loading = False on the module to leave them as they are"
        )
