"""Checkpoints under ZeRO: how one is laid out, whether it fits a run, and the hyperparameters of its groups.

DeepSpeed writes a folder, ``X.ckpt/checkpoint``, with a file per process. It fits runs of the same stage and number of
processes only, which DeepSpeed notices late, in part by a bare assertion. Here its metadata is read first (mapped, not
loaded), together with a record that ``ZeROStrategy`` adds: the parameter groups by name, with their scheduled
hyperparameters. ``universal`` changes stage or number of processes. A universal checkpoint has a folder per parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.optim import Optimizer

from lightning_lr.multiplied import plain
from lightning_lr.strategies.zero.shard_stamps import STAMP, read_lazily

RECORD = "lightning_lr_zero"
TAG = "checkpoint"
"""The folder inside a checkpoint that Lightning has DeepSpeed write to."""

Group = dict[str, Any]
State = dict[str, Any]
"""Of one parameter: its weight under ``fp32``, and the optimizer's state under the optimizer's own names."""

FP32 = "fp32"
NOT_LIGHTNINGS = {
    *("module", "buffer_names", "param_shapes", "shared_params", "frozen_param_shapes", "frozen_param_fragments"),
    *("optimizer", "lr_scheduler", "data_sampler", "random_ltd", "global_steps", "global_samples", "skipped_steps"),
    *("dp_world_size", "mp_world_size", "ds_config", "ds_version", STAMP),
}
"""What DeepSpeed adds to a checkpoint of Lightning's."""


@dataclass(frozen=True)
class Layout:
    """How a checkpoint is laid out.

    Args:
        stage: of ZeRO, 0 for a universal checkpoint, which fits every stage.
        world_size: processes that wrote it; 0 for a universal checkpoint.
        groups: names of the parameters in each group, where they were written down.
        weights_only: Lightning saved no state of schedulers and callbacks.
    """

    stage: int
    world_size: int
    groups: tuple[tuple[str, ...], ...] | None
    weights_only: bool = False

    @property
    def universal(self) -> bool:
        return self.stage == 0

    @property
    def words(self) -> str:
        return f"ZeRO stage {self.stage} by {self.world_size} process{'es' if self.world_size > 1 else ''}"


# ---------------------------------------------------------------------- groups
def named_groups(module: nn.Module, optimizer: Optimizer, frozen_too: bool = False) -> tuple[tuple[str, ...], ...]:
    """Names of the parameters in each group, before an engine has put shards in their place.

    Args:
        module: has the parameters.
        optimizer: has the groups.
        frozen_too: name the frozen parameters as well, which the engine drops from the groups.
    """
    names = {parameter: name for name, parameter in module.named_parameters()}
    return tuple(
        tuple(names.get(parameter, "?") for parameter in group["params"] if frozen_too or parameter.requires_grad)
        for group in optimizer.param_groups
    )


def hyperparameters(groups: Sequence[Mapping[str, Any]]) -> list[Group]:
    """Everything in groups but their parameters; a copy for each group, also of a learning rate that is a tensor."""
    return [{key: deepcopy(plain(value)) for key, value in group.items() if key != "params"} for group in groups]


@contextmanager
def values_in_groups(optimizer: Optimizer, values: Sequence[Group]) -> Iterator[None]:
    """Inside, the groups hold other hyperparameters: what DeepSpeed saves of them."""
    before = [{key: group[key] for key in group if key != "params"} for group in optimizer.param_groups]
    set_values(optimizer, values)
    try:
        yield
    finally:
        set_values(optimizer, before)


def set_values(optimizer: Optimizer, values: Sequence[Group]) -> None:
    """Give every group its own hyperparameters."""
    for group, given in zip(optimizer.param_groups, values, strict=True):
        group.update(given)


# ---------------------------------------------------------------------- what a checkpoint is
def model_file(folder: Path) -> Path | None:
    """The file of the first process with everything but the optimizer."""
    for name in ("mp_rank_00_model_states.pt", "zero_pp_rank_0_mp_rank_00_model_states.pt"):
        if (folder / name).is_file():
            return folder / name
    return None


def saved_in(path: str | Path) -> dict[str, Any]:
    """What a checkpoint holds but the optimizer's state: what Lightning saved, and :data:`NOT_LIGHTNINGS`.

    Raises:
        MisconfigurationException: names a file that cannot be read.
    """
    file = model_file(Path(path) / TAG)
    assert file is not None
    states: dict[str, Any] = read_lazily(file)
    return states


def layout_of(caller: str, path: str | Path) -> Layout:
    """What the checkpoint records about itself.

    Raises:
        MisconfigurationException: for a path that is no checkpoint of DeepSpeed's.
    """
    folder = Path(path) / TAG
    file = model_file(folder)
    if file is None:
        what = "a file" if Path(path).is_file() else "a folder" if Path(path).is_dir() else "not there"
        raise MisconfigurationException(
            f"{caller}: got the checkpoint {path}, which is {what} without DeepSpeed's {TAG}/*_model_states.pt; give "
            "the folder that a run under ZeRO wrote. The weights alone of a single file can be loaded into the module "
            "(load_from_checkpoint) before training starts"
        )
    states = read_lazily(file)
    record = states.get(RECORD) or {}
    groups = record.get("groups")
    names = None if groups is None else tuple(tuple(group) for group in groups)
    weights_only = "lr_schedulers" not in states
    if (folder / "zero").is_dir():
        return Layout(0, 0, names, weights_only)
    stage = int(states["ds_config"].get("zero_optimization", {}).get("stage", 0))
    return Layout(stage, int(states["dp_world_size"]), names, weights_only)


def check_fits(caller: str, path: str | Path, found: Layout, run: Layout) -> None:
    """Refuse a checkpoint that this run cannot resume from.

    Args:
        caller: names the strategy.
        path: of the checkpoint.
        found: its layout.
        run: the layout that this run would write.

    Raises:
        MisconfigurationException: with how both were made and what to do.
    """
    if found.weights_only:
        raise MisconfigurationException(
            f"{caller}: the checkpoint {path} was saved with weights alone (save_weights_only=True), without the state "
            "of schedulers and callbacks that fit resumes from; resume from one that was saved with "
            "save_weights_only=False, or start a new run from the weights: "
            f"lightning_lr.strategies.consolidate({str(path)!r}, OUT), then load OUT's 'state_dict' into the module"
        )
    if not found.universal and (found.stage, found.world_size) != (run.stage, run.world_size):
        raise MisconfigurationException(
            f"{caller}: the checkpoint {path} was written under {found.words}, and this run is {run.words}; make it "
            f"fit every stage and number of processes by lightning_lr.strategies.to_universal({str(path)!r}, OUT) and "
            "go on from OUT, or run as it was written"
        )
    if found.groups is None or run.groups is None or found.groups == run.groups:
        return
    sizes = [" + ".join(str(len(group)) for group in layout.groups or ()) for layout in (found, run)]
    raise MisconfigurationException(
        f"{caller}: the optimizer in the checkpoint {path} has {len(found.groups)} parameter groups of {sizes[0]} "
        f"parameters, this run's has {len(run.groups)} of {sizes[1]}, or in another order; resume with the optimizer "
        "and the callbacks of the run that wrote it"
    )
