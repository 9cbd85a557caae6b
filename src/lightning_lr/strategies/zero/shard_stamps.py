"""Which save a file of a ZeRO checkpoint belongs to: every file carries a stamp, and files of two saves are refused.

A checkpoint is a folder with a file per rank. One disk keeps such a folder whole; node-local disks and partial copies
do not, and DeepSpeed resumes from whatever lies under the right file name. So every file carries the update, the rank,
the number of ranks, and an identifier that is drawn once per save. Files from before version 0.2 have no stamp; they
load, with a warning that they cannot be checked.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

STAMP = "lightning_lr_stamp"
Stamp = dict[str, Any]

_RANK = re.compile(r"zero_pp_rank_(\d+)_mp_rank_00_(optim|model)_states\.pt$")
_warned: set[str] = set()


def stamp(save: str, step: int, rank: int, world_size: int) -> Stamp:
    """What one rank writes into its files.

    Args:
        save: identifier of the save, the same on all ranks.
        step: updates made, Lightning's ``global_step``.
        rank: of the process that writes.
        world_size: number of ranks.
    """
    return {"save": save, "step": step, "rank": rank, "world_size": world_size}


# ---------------------------------------------------------------------- reading
def read_lazily(file: Path) -> Any:
    """Load a file of DeepSpeed's; tensors are mapped and cost nothing until they are used.

    ``torch.load`` with pickle, which can run code: only for files that you trust.

    Raises:
        MisconfigurationException: names a file that is missing, cut short or damaged.
    """
    return _read(file, mmap=True)


def read_value(file: Path) -> Any:
    """Load a file of a universal checkpoint; with pickle, as in :func:`read_lazily`.

    Raises:
        MisconfigurationException: names a file that is missing, cut short or damaged.
    """
    return _read(file, mmap=False)


def _read(file: Path, mmap: bool) -> Any:
    try:
        return torch.load(file, map_location="cpu", mmap=mmap, weights_only=False)
    except FileNotFoundError as error:
        raise MisconfigurationException(
            f"the checkpoint's file {file} is missing; copy the whole checkpoint, or use another one"
        ) from error
    except Exception as error:  # what torch and pickle raise for half a file differs with where it ends
        raise MisconfigurationException(
            f"the checkpoint's file {file} ({file.stat().st_size} bytes) cannot be read: {type(error).__name__}: "
            f"{error}. A file that was cut short or damaged reads so; copy it again, or use another checkpoint"
        ) from error


# ---------------------------------------------------------------------- which files
def shard_files(folder: Path, rank: int) -> list[Path]:
    """The files that a rank resumes from: its share of the optimizer's state, and its weights.

    Raises:
        MisconfigurationException: names the rank whose share of the optimizer's state is missing.
    """
    own = sorted(folder.glob(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))
    if len(own) != 1:
        raise MisconfigurationException(
            f"{folder} has {len(own)} files zero_pp_rank_{rank}_mp_rank_00_optim_states.pt, and needs exactly one: "
            f"rank {rank}'s share of the optimizer's state; copy the whole checkpoint, or use another one"
        )
    weights = folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt"
    if not weights.is_file():
        weights = folder / "mp_rank_00_model_states.pt"
    return [*own, weights]


def optimizer_files(folder: Path, world_size: int) -> list[Path]:
    """Every rank's share of the optimizer's state, in the order of the ranks.

    Raises:
        MisconfigurationException: names ranks that are missing, or that the checkpoint should not have.
    """
    found = {int(match[1]) for file in folder.iterdir() if (match := _RANK.search(file.name))}
    if extra := sorted(rank for rank in found if rank >= world_size):
        raise MisconfigurationException(
            f"{folder} has files of rank {', '.join(map(str, extra))}, and {world_size} ranks wrote this checkpoint "
            f"(0 to {world_size - 1}); it holds files of two runs: use a whole one"
        )
    return [shard_files(folder, rank)[0] for rank in range(world_size)]


# ---------------------------------------------------------------------- checking
def stamps_of(files: Iterable[Path]) -> dict[str, Stamp | None]:
    """The stamp of each file; ``None`` for one without.

    Raises:
        MisconfigurationException: names a file that cannot be read.
    """
    return {str(file): read_lazily(file).get(STAMP) for file in files}


def check_stamps(caller: str, path: str | Path, stamps: Mapping[str, Stamp | None]) -> None:
    """Refuse files that were not written together, or that lie under another rank's name.

    Args:
        caller: names the strategy or the function that reads.
        path: of the checkpoint.
        stamps: of its files, by path.

    Raises:
        MisconfigurationException: names the files, and the update, rank and number of ranks that each was written by.
    """
    if not any(stamps.values()):
        if str(path) not in _warned:
            _warned.add(str(path))
            rank_zero_warn(
                f"{caller}: the files of {path} carry no stamp (lightning-lr before 0.2 wrote none), so whether all of "
                "them belong to one save cannot be checked"
            )
        return
    kinds = {
        None if found is None else (found["save"], found["step"], found["world_size"]) for found in stamps.values()
    }
    if len(kinds) > 1:
        listed = "; ".join(f"{Path(file).name}: {_words(found)}" for file, found in sorted(stamps.items()))
        raise MisconfigurationException(
            f"{caller}: the files in {path} belong to different saves ({listed}); copy the whole checkpoint of one "
            "save, or use another one"
        )
    for file, found in sorted(stamps.items()):
        named = _RANK.search(Path(file).name)
        rank = int(named[1]) if named else 0
        if found is not None and found["rank"] != rank:
            raise MisconfigurationException(
                f"{caller}: {file} lies under the name of rank {rank}, and rank {found['rank']} wrote it; give every "
                "file its own name back, or use another checkpoint"
            )


def check_own_files(caller: str, path: str | Path, folder: Path, rank: int, world_size: int) -> None:
    """Check the files that each rank will resume from; every rank raises, whichever rank finds the fault.

    Args:
        caller: names the strategy.
        path: of the checkpoint.
        folder: its folder with a file per rank, on this rank's disk.
        rank: this process.
        world_size: number of ranks.

    Raises:
        MisconfigurationException: names a file that is missing, damaged, or of another save or rank.
    """
    stamps: dict[str, Stamp | None] = {}
    fault: str | None = None
    try:
        stamps = stamps_of(shard_files(folder, rank))
    except MisconfigurationException as error:
        fault = str(error)
    everybody: list[Any] = [(stamps, fault)]
    if torch.distributed.is_initialized() and world_size > 1:
        everybody = [None] * world_size
        torch.distributed.all_gather_object(everybody, (stamps, fault))
    for _, found in everybody:
        if found is not None:
            raise MisconfigurationException(f"{caller}: {found}")
    check_stamps(caller, path, {file: found for own, _ in everybody for file, found in own.items()})


def _words(found: Stamp | None) -> str:
    if found is None:
        return "no stamp"
    return f"update {found['step']}, rank {found['rank']} of {found['world_size']}, save {found['save']}"
