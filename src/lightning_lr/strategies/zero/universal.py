"""ZeRO checkpoints made whole: for another number of processes, another stage, or a Trainer without DeepSpeed.

DeepSpeed's universal checkpoint holds a folder per parameter, with the whole fp32 weight and each whole tensor of the
optimizer's state. DeepSpeed's own converter knows Adam's state alone. Here the folders are written for every optimizer
that works on each element by itself; ``zero_loading`` reads them.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_lr.strategies.zero.checkpoint import (
    FP32,
    NOT_LIGHTNINGS,
    RECORD,
    TAG,
    State,
    layout_of,
    model_file,
    read_lazily,
    read_parameter,
    saved_in,
)

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
    if RECORD not in saved_in(checkpoint):
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
    saved = saved_in(checkpoint)
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


# ---------------------------------------------------------------------- making whole
def _source(caller: str, checkpoint: str | Path) -> Path:
    if layout_of(caller, checkpoint).universal:
        raise MisconfigurationException(f"{caller}: {checkpoint} is a universal checkpoint already; resume from it")
    return Path(checkpoint) / TAG


def _whole_states(folder: Path) -> tuple[dict[str, State], dict[str, Any]]:
    """The whole state of every parameter (and the value of every buffer), and what the first rank's optimizer says."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    saved = saved_in(folder.parent)
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
    return {str(file.parent.relative_to(zero)): read_parameter(file.parent) for file in zero.rglob(f"{FP32}.pt")}


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
