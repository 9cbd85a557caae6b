"""ZeRO checkpoints made whole: for another number of processes, another stage, or a Trainer without DeepSpeed.

DeepSpeed's universal checkpoint holds a folder per parameter, with the whole fp32 weight and each whole tensor of the
optimizer's state. DeepSpeed's own converter knows Adam's state alone. Here the folders are written for every optimizer
that works on each element by itself; ``loading`` reads them.

The engine keeps one state per flat vector. What has no element per weight (Adam's count of steps, NAdam's product of
momenta) is one value there for many parameters; every parameter gets a copy, since an optimizer on whole parameters
writes to each.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_lr.strategies.zero import atomic_directory
from lightning_lr.strategies.zero.checkpoint import (
    FP32,
    NOT_LIGHTNINGS,
    RECORD,
    TAG,
    State,
    layout_of,
    model_file,
    saved_in,
)
from lightning_lr.strategies.zero.parameter_folders import ParameterFolders
from lightning_lr.strategies.zero.shard_stamps import STAMP, check_stamps, optimizer_files, read_lazily

_Piece = tuple[str, str, Any, bool]
"""Name of a parameter, of an optimizer state, what a rank has of it, and whether that has an element per weight."""


# ---------------------------------------------------------------------- what users call
def to_universal(checkpoint: str | Path, out: str | Path) -> None:
    """Write a copy of a ZeRO checkpoint that any stage and any number of processes can resume from.

    ``Trainer.fit(..., ckpt_path=out)`` under a :class:`ZeROStrategy`. Weights, the optimizer's state, every group's
    hyperparameters, loops, callbacks and schedulers are kept. Runs in one process, which needs room for the weights
    and the optimizer's state in fp32. ``out`` appears when it is whole; a conversion that was killed leaves
    ``OUT.partial``, which the next one removes.

    Args:
        checkpoint: the folder that was written under stage 1, 2 or 3. It is read with pickle, which can run code:
            trust it.
        out: a folder that does not exist yet.

    Raises:
        MisconfigurationException: where there is no such checkpoint, ``out`` exists, or it is universal already; names
            a file that cannot be read or belongs to another save, and a parameter whose value or state is not there.

    Example::

        to_universal("checkpoints/last.ckpt", "universal.ckpt")
        Trainer(strategy="zero_3", devices=8).fit(model, data, ckpt_path="universal.ckpt")
    """
    caller, out = "to_universal", Path(out)
    if layout_of(caller, checkpoint).universal:
        raise MisconfigurationException(f"{caller}: {checkpoint} is a universal checkpoint already; resume from it")
    if out.exists():
        raise MisconfigurationException(f"{caller}: {out} exists already; give a folder that does not")
    saved, source = saved_in(checkpoint), Path(checkpoint) / TAG
    if RECORD not in saved:
        raise MisconfigurationException(
            f"{caller}: {checkpoint} was not written under a ZeROStrategy, so the hyperparameters of each group "
            "are not known by name; resume from it under a ZeROStrategy with the stage and processes that wrote it, "
            "and save"
        )
    states, rest = _whole_states(caller, checkpoint)
    _check_complete(caller, checkpoint, saved, states)
    partial = atomic_directory.beside(out)
    atomic_directory.remove(partial)  # of a conversion that was killed
    folders = ParameterFolders(caller, partial, saved.get(STAMP))
    folders.root.mkdir(parents=True)
    for name, state in states.items():
        folders.write(name, state)
    folders.write_shared({key: rest[key] for key in ("loss_scaler", "dynamic_loss_scale") if key in rest})
    file = model_file(source)
    assert file is not None
    shutil.copy2(file, partial / TAG)
    (partial / "latest_universal").write_text(TAG)
    atomic_directory.publish(out)


def consolidate(checkpoint: str | Path, out: str | Path) -> None:
    """Write a ZeRO checkpoint, or a universal one, as the single file that a Trainer without DeepSpeed writes.

    Weights are in fp32. Where the groups were written down (under :class:`ZeROStrategy` they are), the file holds the
    whole optimizer state too, and a plain Trainer resumes from it; else it holds weights alone. A file at ``out`` is
    replaced when the new one is whole.

    Args:
        checkpoint: the folder that was written under stage 1, 2 or 3, or by :func:`to_universal`. It is read with
            pickle, which can run code: trust it.
        out: the file to write.

    Raises:
        MisconfigurationException: where there is no such checkpoint, or ``out`` is a folder; names a file that cannot
            be read or belongs to another save, and a parameter whose value or state is not there.

    Example::

        consolidate("checkpoints/last.ckpt", "plain.ckpt")
        Trainer(strategy="ddp").fit(model, data, ckpt_path="plain.ckpt")
    """
    caller, out = "consolidate", Path(out)
    found = layout_of(caller, checkpoint)
    if out.is_dir():
        raise MisconfigurationException(f"{caller}: {out} is a folder; give the name of a file")
    saved = saved_in(checkpoint)
    if found.universal:
        states = ParameterFolders(caller, checkpoint, saved.get(STAMP)).read_all()
    else:
        states = _whole_states(caller, checkpoint)[0]
    _add_what_the_model_file_has(saved, states, found.stage)
    _check_complete(caller, checkpoint, saved, states)
    plain = {key: value for key, value in saved.items() if key not in NOT_LIGHTNINGS and key != RECORD}
    plain["state_dict"] = _plain_module(saved, states)
    if saved.get(RECORD) and not found.weights_only:
        plain["optimizer_states"] = [_plain_optimizer(caller, checkpoint, saved[RECORD], states)]
    partial = atomic_directory.beside(out)
    partial.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.save(plain, partial)
        os.replace(partial, out)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


# ---------------------------------------------------------------------- making whole
def _whole_states(caller: str, checkpoint: str | Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The whole weight and state of every parameter, and what the first rank's optimizer keeps."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    found, folder, saved = layout_of(caller, checkpoint), Path(checkpoint) / TAG, saved_in(checkpoint)
    files = optimizer_files(folder, found.world_size)
    shards = [read_lazily(file) for file in files]
    main = model_file(folder)
    stamps = {str(file): shard.get(STAMP) for file, shard in zip(files, shards, strict=True)}
    weight_files = sorted(folder.glob("*_model_states.pt"))
    check_stamps(
        caller, checkpoint, stamps | {str(file): read_lazily(file).get(STAMP) for file in {main, *weight_files} if file}
    )
    ranks = [shard["optimizer_state_dict"] for shard in shards]
    weights = get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag=TAG)
    buffers = set(saved.get("buffer_names") or ())
    states: dict[str, State] = {name: {FP32: _fp32(weight)} for name, weight in weights.items() if name not in buffers}
    pieces = _pieces_of_stage_3 if found.stage == 3 else _pieces_of_stage_1_2
    fragments: dict[str, dict[str, list[Tensor]]] = {}
    for rank in range(len(ranks)):
        for name, key, value, per_element in pieces(ranks[rank], saved["param_shapes"], rank, len(ranks)):
            if per_element:
                fragments.setdefault(name, {}).setdefault(key, []).append(value)
            else:
                states[name][key] = deepcopy(value)
    for name, state in fragments.items():
        for key, values in state.items():
            whole, weight = torch.cat(values), states[name][FP32]
            if whole.numel() != weight.numel():
                raise MisconfigurationException(
                    f"{caller}: {checkpoint} has {whole.numel()} of {weight.numel()} elements of {key} of the "
                    f"parameter {name}; copy the whole checkpoint, or use another one"
                )
            states[name][key] = whole.view(weight.shape)
    _add_what_the_model_file_has(saved, states, found.stage)
    return states, ranks[0]


def _fp32(weight: Tensor) -> Tensor:
    """A copy, in fp32 where it was in half precision."""
    return weight.to(torch.float32 if weight.dtype in (torch.float16, torch.bfloat16) else weight.dtype, copy=True)


def _add_what_the_model_file_has(saved: Mapping[str, Any], states: dict[str, State], stage: int) -> None:
    """Parameters that are in no shard of the optimizer.

    Up to stage 2 the model's file has every one whole, and in stage 1 DeepSpeed writes frozen ones nowhere else. So it
    has in a universal checkpoint that was made of one.
    """
    buffers = set(saved.get("buffer_names") or ())
    for name, value in saved["module"].items():
        if (
            name not in states
            and name not in buffers
            and isinstance(value, Tensor)
            and (stage in (1, 2) or value.numel())
        ):
            states[name] = {FP32: _fp32(value)}


def _check_complete(caller: str, checkpoint: str | Path, saved: Mapping[str, Any], states: Mapping[str, State]) -> None:
    """Refuse to leave anything out that the module had."""
    buffers, aliases = set(saved.get("buffer_names") or ()), saved.get("shared_params") or {}
    missing = [
        name
        for name, value in saved["module"].items()
        if isinstance(value, Tensor) and name not in buffers and aliases.get(name, name) not in states
    ]
    if missing:
        raise MisconfigurationException(
            f"{caller}: the value of {', '.join(missing)} is in no file of {checkpoint}. In stage 3 DeepSpeed writes "
            "what is frozen or in the optimizer, and nothing else; freeze these parameters (requires_grad=False) or "
            "give them to the optimizer, and save again"
        )


def _pieces_of_stage_1_2(saved: Mapping[str, Any], shapes: Any, rank: int, ranks: int) -> Iterator[_Piece]:
    optimizer = saved["base_optimizer_state"]
    flats = saved["single_partition_of_fp32_groups"]
    for group, fragments, flat in zip(optimizer["param_groups"], saved["param_slice_mappings"], flats, strict=True):
        for key, value in optimizer["state"].get(group["params"][0], {}).items():
            per_element = isinstance(value, Tensor) and value.ndim == 1 and value.numel() >= flat.numel()  # and padding
            for name, fragment in fragments.items():
                piece = value.narrow(0, fragment.start, fragment.numel) if per_element else value
                yield name, key, piece, per_element


def _pieces_of_stage_3(saved: Mapping[str, Any], shapes: Any, rank: int, ranks: int) -> Iterator[_Piece]:
    for index, (sub_group, flat) in enumerate(zip(shapes, saved["fp32_flat_groups"], strict=True)):
        for key, value in saved["optimizer_state_dict"]["state"].get(index, {}).items():
            per_element = isinstance(value, Tensor) and value.ndim == 1 and value.numel() == flat.numel()
            offset = 0
            for name, shape in sub_group.items():
                length = -(-shape.numel() // ranks)
                valid = max(0, min(length, shape.numel() - rank * length))
                yield name, key, value.narrow(0, offset, valid) if per_element else value, per_element
                offset += length


# ---------------------------------------------------------------------- as without DeepSpeed
def _plain_module(saved: Mapping[str, Any], states: Mapping[str, State]) -> dict[str, Any]:
    """What ``state_dict()`` of the module would be: parameters, buffers, extra state, and names of tied parameters."""
    buffers, aliases = set(saved.get("buffer_names") or ()), saved.get("shared_params") or {}
    plain: dict[str, Any] = {}
    for name, value in saved["module"].items():
        if isinstance(value, Tensor):
            plain[name] = value.clone() if name in buffers else states[aliases.get(name, name)][FP32]
        else:
            plain[name] = value
    return plain


def _plain_optimizer(
    caller: str, checkpoint: str | Path, record: Mapping[str, Any], states: Mapping[str, State]
) -> dict[str, Any]:
    """What ``state_dict()`` of the same optimizer would be on whole parameters."""
    groups: list[dict[str, Any]] = []
    state: dict[int, State] = {}
    index = 0
    everything = record.get("members", record["groups"])  # before 0.2, the trained parameters alone
    for members, trained, values in zip(everything, record["groups"], record["hyperparameters"], strict=True):
        groups.append({**values, "params": list(range(index, index + len(members)))})
        keys = {key for name in trained for key in states.get(name, {})}
        for name in members:
            own = {key: value for key, value in states.get(name, {}).items() if key != FP32}
            if name in trained and keys - own.keys() - {FP32}:
                raise MisconfigurationException(
                    f"{caller}: {checkpoint} lacks {', '.join(sorted(keys - own.keys() - {FP32}))} of the parameter "
                    f"{name}, which others of its group have; copy the whole checkpoint, or use another one"
                )
            if own:
                state[index] = own
            index += 1
    return {"state": state, "param_groups": groups}
