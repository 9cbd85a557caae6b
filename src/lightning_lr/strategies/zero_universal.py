"""ZeRO checkpoints made whole: for another number of processes, another stage, or a Trainer without DeepSpeed.

DeepSpeed's universal checkpoint holds a folder per parameter, with the whole fp32 weight and each whole tensor of the
optimizer's state. DeepSpeed's own converter knows Adam's state alone, and its loader under stage 3 gives every group
the hyperparameters of the first one. Here the parameters' folders are written as there, for every optimizer that works
on each element by itself, and the groups keep theirs; what is loaded is what :func:`to_universal` wrote.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_lr.strategies.zero_checkpoint import RECORD, TAG, layout_of, model_file, read_lazily, set_values

State = dict[str, Any]
"""Of one parameter: its weight under ``fp32``, and the optimizer's state under the optimizer's own names."""

FP32 = "fp32"
NOT_LIGHTNINGS = {
    *("module", "buffer_names", "param_shapes", "shared_params", "frozen_param_shapes", "frozen_param_fragments"),
    *("optimizer", "lr_scheduler", "data_sampler", "random_ltd", "global_steps", "global_samples", "skipped_steps"),
    *("dp_world_size", "mp_world_size", "ds_config", "ds_version"),
}
"""What DeepSpeed adds to a checkpoint of Lightning's."""


_Piece = tuple[str, str, Any]
"""Name of a parameter, of a state of the optimizer, and what a rank has of it."""


# ---------------------------------------------------------------------- what users call
def to_universal(checkpoint: str | Path, out: str | Path) -> None:
    """Write a copy of a ZeRO checkpoint that any stage and any number of processes can resume from.

    ``Trainer.fit(..., ckpt_path=out)`` under a :class:`ZeROStrategy`. Weights, the optimizer's state, every group's
    hyperparameters, loops, callbacks and schedulers are kept. Runs in one process, which needs room for the weights
    and the optimizer's state in fp32.

    Args:
        checkpoint: the folder that was written under stage 1, 2 or 3.
        out: a folder that does not exist yet.

    Raises:
        MisconfigurationException: where there is no such checkpoint, ``out`` exists, or it is universal already.
    """
    source, folder = _source("to_universal", checkpoint), Path(out) / TAG
    if Path(out).exists():
        raise MisconfigurationException(f"to_universal: {out} exists already; give a folder that does not")
    if RECORD not in _saved(checkpoint):
        raise MisconfigurationException(
            f"to_universal: {checkpoint} was not written under a ZeROStrategy, so the hyperparameters of each group "
            "are not known by name; resume from it under a ZeROStrategy with the stage and processes that wrote it, "
            "and save"
        )
    states, rest = _whole_states(source)
    for name, state in states.items():
        (folder / "zero" / name).mkdir(parents=True)
        for key, value in state.items():
            torch.save({"param": value} if key != "step" else value, folder / "zero" / name / f"{key}.pt")
    shared = {key: rest[key] for key in ("loss_scaler", "dynamic_loss_scale") if key in rest}
    torch.save(shared, folder / "zero" / "optimizer_state.pt")
    file = model_file(source)
    assert file is not None
    shutil.copy2(file, folder)
    (Path(out) / "latest_universal").write_text(TAG)


def consolidate(checkpoint: str | Path, out: str | Path) -> None:
    """Write a ZeRO checkpoint, or a universal one, as the single file that a Trainer without DeepSpeed writes.

    Weights are in fp32. Where the groups were written down (under :class:`ZeROStrategy` they are), the file holds the
    whole optimizer state too, and a plain Trainer resumes from it; else it holds weights alone.

    Args:
        checkpoint: the folder that was written under stage 1, 2 or 3, or by :func:`to_universal`.
        out: the file to write.

    Raises:
        MisconfigurationException: where there is no such checkpoint.
    """
    found = layout_of("consolidate", checkpoint)
    folder = Path(checkpoint) / TAG
    states = _read_universal(folder) if found.universal else _whole_states(folder)[0]
    saved = _saved(checkpoint)
    plain = {key: value for key, value in saved.items() if key not in NOT_LIGHTNINGS and key != RECORD}
    plain["state_dict"] = {name: states[name][FP32] for name in saved["module"] if name in states}
    for alias, name in (saved.get("shared_params") or {}).items():
        plain["state_dict"][alias] = plain["state_dict"][name]
    for name in saved.get("buffer_names") or ():
        if name in saved["module"]:
            plain["state_dict"][name] = saved["module"][name].clone()
    if saved.get(RECORD):
        plain["optimizer_states"] = [_plain_optimizer(saved[RECORD], states)]
    torch.save(plain, out)


# ---------------------------------------------------------------------- loading into an engine
def load_weights(who: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load the weights of any ZeRO checkpoint into an engine that does not train; returns what Lightning saved in it.

    Args:
        who: names the strategy.
        engine: the engine, of any stage and number of processes.
        checkpoint: of any stage and number of processes, or universal.
        strict: whether every parameter has to be there.

    Raises:
        MisconfigurationException: for a parameter that the checkpoint does not have.
    """
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved, folder = _saved(checkpoint), Path(checkpoint) / TAG
    if (folder / "zero").is_dir():
        _put_weights(who, engine.module, checkpoint, partial(_read_weight, folder / "zero"), strict)
    elif layout_of(who, checkpoint).stage == 3:
        whole = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)
        _put_weights(who, engine.module, checkpoint, whole.get, strict)
    else:
        _put_weights(who, engine.module, checkpoint, saved["module"].get, strict)
    return {key: value for key, value in saved.items() if key not in NOT_LIGHTNINGS}


def load_universal(who: str, engine: Any, checkpoint: str | Path, strict: bool = True) -> dict[str, Any]:
    """Load a universal checkpoint into a training engine of any stage; returns what Lightning saved in it.

    Args:
        who: names the strategy.
        engine: the engine.
        checkpoint: the folder that :func:`to_universal` wrote.
        strict: whether every parameter has to be there, beside those that are trained.

    Raises:
        MisconfigurationException: for a parameter that the checkpoint does not have.
    """
    loaded, saved, zero = (
        load_weights(who, engine, checkpoint, strict),
        _saved(checkpoint),
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


def _saved(checkpoint: str | Path) -> dict[str, Any]:
    file = model_file(Path(checkpoint) / TAG)
    assert file is not None
    return read_lazily(file)


class _Parameters:
    """The whole states of the parameters of an engine, read when they are needed."""

    def __init__(self, folder: Path, names: Mapping[Tensor, str]) -> None:
        self._folder, self._names = folder, names

    def __call__(self, parameter: Tensor) -> State:
        return _read_parameter(self._folder / self._names[parameter])


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
    who: str, module: nn.Module, checkpoint: str | Path, find: Callable[[str], Tensor | None], strict: bool
) -> None:
    """Every parameter and buffer of the module, also what no optimizer has; in stage 3 each is whole for its moment."""
    import deepspeed

    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        value = find(name)
        if value is None:
            if strict and isinstance(tensor, nn.Parameter):
                raise MisconfigurationException(
                    f"{who}: the checkpoint {checkpoint} has no parameter {name}; load it into the model that wrote it"
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
    return _value(file) if file.is_file() else None


# ---------------------------------------------------------------------- making whole
def _source(who: str, checkpoint: str | Path) -> Path:
    if layout_of(who, checkpoint).universal:
        raise MisconfigurationException(f"{who}: {checkpoint} is a universal checkpoint already; resume from it")
    return Path(checkpoint) / TAG


def _whole_states(folder: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The whole state of every parameter (and the value of every buffer), and what the first rank's optimizer says."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved = _saved(folder.parent)
    ranks = [read_lazily(name)["optimizer_state_dict"] for name in _optimizer_files(folder)]
    weights = get_fp32_state_dict_from_zero_checkpoint(str(folder.parent), tag=TAG)
    states: dict[str, State] = {name: {FP32: weight.clone()} for name, weight in weights.items()}
    pieces = _pieces_of_stage_3 if "fp32_flat_groups" in ranks[0] else _pieces_of_stage_1_2
    fragments: dict[str, State] = {}
    for rank in range(len(ranks)):
        for name, key, value in pieces(ranks[rank], saved["param_shapes"], rank, len(ranks)):
            if isinstance(value, Tensor) and value.ndim:
                fragments.setdefault(name, {}).setdefault(key, []).append(value)
            else:
                states[name][key] = value
    for name, state in fragments.items():
        for key, values in state.items():
            states[name][key] = torch.cat(values).view(states[name][FP32].shape)
    return states, ranks[0]


def _optimizer_files(folder: Path) -> list[Path]:
    files = {}
    for file in folder.glob("*_optim_states.pt"):
        rank = re.search(r"zero_pp_rank_(\d+)_mp_rank_00_optim_states", file.name)
        if rank is not None:
            files[int(rank.group(1))] = file
    return [files[rank] for rank in sorted(files)]


def _pieces_of_stage_1_2(
    saved: Mapping[str, Any], shapes: Any, rank: int, ranks: int
) -> Iterator[tuple[str, str, Any]]:
    optimizer = saved["base_optimizer_state"]
    for group, fragments in zip(optimizer["param_groups"], saved["param_slice_mappings"], strict=True):
        for key, value in optimizer["state"].get(group["params"][0], {}).items():
            for name, fragment in fragments.items():
                vector = isinstance(value, Tensor) and value.ndim
                yield name, key, value.narrow(0, fragment.start, fragment.numel) if vector else value


def _pieces_of_stage_3(saved: Mapping[str, Any], shapes: Any, rank: int, ranks: int) -> Iterator[_Piece]:
    for index, sub_group in enumerate(shapes):
        for key, value in saved["optimizer_state_dict"]["state"].get(index, {}).items():
            offset = 0
            for name, shape in sub_group.items():
                length = -(-shape.numel() // ranks)
                valid = max(0, min(length, shape.numel() - rank * length))
                vector = isinstance(value, Tensor) and value.ndim
                yield name, key, value.narrow(0, offset, valid) if vector else value
                offset += length


def _read_universal(folder: Path) -> dict[str, State]:
    zero = folder / "zero"
    return {str(file.parent.relative_to(zero)): _read_parameter(file.parent) for file in zero.rglob(f"{FP32}.pt")}


def _read_parameter(folder: Path) -> State:
    state: State = {}
    for file in sorted(folder.glob("*.pt")):
        state[file.stem] = _value(file)
    return state


def _value(file: Path) -> Any:
    value = torch.load(file, weights_only=False)
    return value["param"] if isinstance(value, dict) else value


def _plain_optimizer(record: Mapping[str, Any], states: Mapping[str, State]) -> dict[str, Any]:
    """What ``state_dict()`` of the same optimizer would be on whole parameters."""
    groups, state, index = [], {}, 0
    for names, values in zip(record["groups"], record["hyperparameters"], strict=True):
        groups.append({**values, "params": list(range(index, index + len(names)))})
        for name in names:
            own = {key: value for key, value in states[name].items() if key != FP32}
            if own:
                state[index] = own
            index += 1
    return {"state": state, "param_groups": groups}
