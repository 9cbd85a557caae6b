"""The inside of a universal checkpoint: a folder per parameter, with its whole fp32 weight and optimizer state.

DeepSpeed's layout, ``zero/<name of the parameter>/<state>.pt``, so that DeepSpeed can read it too. Each file also
records which parameter and which save it belongs to, and which states the parameter has.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from lightning_lr.strategies.zero.checkpoint import FP32, TAG, State
from lightning_lr.strategies.zero.shard_stamps import STAMP, Stamp, read_value

SHARED = "optimizer_state.pt"
"""The file with what the optimizer keeps once for all parameters."""


class ParameterFolders:
    """Reads and writes the parameters of a universal checkpoint.

    Args:
        caller: names the strategy or the function in errors.
        checkpoint: the universal checkpoint.
        stamp: of the save that it was converted from; ``None`` for one without.
    """

    def __init__(self, caller: str, checkpoint: str | Path, stamp: Stamp | None) -> None:
        self._caller, self._checkpoint, self._stamp = caller, Path(checkpoint), stamp
        self.root = Path(checkpoint) / TAG / "zero"

    def write(self, name: str, state: Mapping[str, Any]) -> None:
        """Write the whole state of a parameter."""
        folder = self._folder(name)
        folder.mkdir(parents=True)
        stamp = None if self._stamp is None else {**self._stamp, "name": name, "states": sorted(state)}
        for key, value in state.items():
            bare = key == "step"  # as DeepSpeed reads it
            torch.save(value if bare else {"param": value, STAMP: stamp}, folder / f"{key}.pt")

    def write_shared(self, shared: Mapping[str, Any]) -> None:
        """Write what the optimizer keeps once."""
        torch.save({**shared, STAMP: self._stamp}, self.root / SHARED)

    def read(self, name: str) -> State:
        """The whole state of a parameter; empty where the checkpoint does not have it.

        Raises:
            MisconfigurationException: names a file that cannot be read, is missing, or belongs to another checkpoint
                or parameter.
        """
        folder = self._folder(name)
        if not (folder / f"{FP32}.pt").is_file():
            return {}
        state: State = {}
        states: list[str] = []
        for file in sorted(folder.glob("*.pt")):
            state[file.stem], stamp = self._value(name, file)
            states = states if stamp is None else stamp["states"]
        if missing := sorted(set(states) - state.keys()):
            raise MisconfigurationException(
                f"{self._caller}: {folder} lacks {', '.join(f'{key}.pt' for key in missing)}, state of the parameter "
                f"{name}; copy the whole checkpoint, or convert it again by to_universal"
            )
        return state

    def weight(self, name: str) -> Tensor | None:
        """The weight of a parameter; ``None`` where the checkpoint does not have it."""
        file = self._folder(name) / f"{FP32}.pt"
        return self._value(name, file)[0] if file.is_file() else None

    def read_shared(self) -> dict[str, Any]:
        """What the optimizer keeps once."""
        shared: dict[str, Any] = read_value(self.root / SHARED)
        self._check(self.root / SHARED, shared.get(STAMP))
        return shared

    def read_all(self) -> dict[str, State]:
        """Every parameter, by name."""
        names = [str(PurePosixPath(file.parent.relative_to(self.root))) for file in self.root.rglob(f"{FP32}.pt")]
        return {name: self.read(name) for name in sorted(names)}

    # ------------------------------------------------------------------ inside
    def _folder(self, name: str) -> Path:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or str(path) != name or "\\" in name or "\0" in name:
            raise MisconfigurationException(
                f"{self._caller}: the parameter {name!r} would lie outside {self.root}, or share a folder with another "
                "one; a name has no part '..', no '/' at its ends and no backslash: rename the submodule, and read no "
                "checkpoint that you do not trust"
            )
        return self.root / name

    def _value(self, name: str, file: Path) -> tuple[Any, Stamp | None]:
        value = read_value(file)
        if not isinstance(value, dict):
            return value, None
        stamp = value.get(STAMP)
        if stamp is not None and stamp["name"] != name:
            raise MisconfigurationException(
                f"{self._caller}: {file} was written for the parameter {stamp['name']}; give every folder its own name "
                "back, or convert the checkpoint again by to_universal"
            )
        self._check(file, stamp)
        return value["param"], stamp

    def _check(self, file: Path, stamp: Stamp | None) -> None:
        if (stamp is None) != (self._stamp is None) or (stamp and self._stamp and stamp["save"] != self._stamp["save"]):
            raise MisconfigurationException(
                f"{self._caller}: {file} is from {_words(stamp)}, and the rest of {self._checkpoint} from "
                f"{_words(self._stamp)}; copy the whole checkpoint, or convert it again by to_universal"
            )


def _words(stamp: Stamp | None) -> str:
    return "a save without a stamp" if stamp is None else f"update {stamp['step']} (save {stamp['save']})"
