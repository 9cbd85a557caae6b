"""A resume with another configuration than the checkpoint's: what may change is logged, the rest is refused.

Every callback saves its constructor's arguments and the shape of the run with its state. When training goes on from a
checkpoint they are compared, before anything is trained. An argument may change where the state keeps its meaning, and
one line logs the change; a callback's ``fixed_on_resume`` lists the others, which are refused with both values. A
checkpoint that has no such record (of 0.1.0) is not compared.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_lr.progress import RunShape
from lightning_lr.progress.clock import SAVED as CLOCK
from lightning_lr.saved_state import ANYTHING, FROM_0, TEXT, Form, by, faults_in, later, optional, several
from lightning_lr_command import __version__

if TYPE_CHECKING:
    from lightning_lr.callbacks.base import MethodCallback

State = Mapping[str, Any]
ABSENT = "not given"
BATCHES = "batches of an epoch"
NOT_COMPARED = ("self", "count_samples")


@dataclass(frozen=True)
class _Difference:
    argument: str
    before: str
    now: str


# ---------------------------------------------------------------------- what is saved
def settings_of(callback: Any) -> dict[str, str]:
    """The arguments that a callback was made with, as text that is equal where they are the same."""
    return {name: _text(value) for name, value in _arguments_of(callback).items()}


def hyperparameters_of(callbacks: Sequence[Any]) -> dict[str, str | float]:
    """The settings of callbacks as a logger's hyperparameters: ``LearningRateSchedule/curve``, for example."""
    return {
        f"{type(callback).__name__}/{argument}": value if isinstance(value, str | int | float) else _text(value)
        for callback in callbacks
        for argument, value in _arguments_of(callback).items()
    }


def _arguments_of(callback: Any) -> dict[str, Any]:
    """The arguments that a callback keeps under their own names, its own or its settings' attributes."""
    found = {}
    for name in inspect.signature(type(callback).__init__).parameters:
        holder = callback if hasattr(callback, name) else getattr(callback, "settings", None)
        if name not in NOT_COMPARED and hasattr(holder, name):
            found[name] = getattr(holder, name)
    return found


def facts_of(shape: RunShape) -> dict[str, int | str | None]:
    """What of a run's shape is compared."""
    epoch = shape.epoch
    return {
        "devices": epoch.world_size,
        "micro-batch": epoch.micro_batch_size,
        # where it is a ramp's or changes with the epoch, no number stands for the run
        **({"accumulation": shape.accumulation} if type(shape.accumulation) is int else {}),
        "samples of an epoch per device": epoch.device_samples,
        BATCHES: epoch.micro_batches,
        "order": epoch.order,
        "max_epochs": shape.max_epochs,
        "max_steps": shape.max_updates,
    }


SAVED = {
    "clock": optional(CLOCK),
    # not in checkpoints of 0.1.0
    "settings": later(optional(by(str, TEXT))),
    "run": later(optional(by(str, ANYTHING))),
    "tuned_lr": later(optional(several(several(FROM_0)))),
}
"""The form of what every callback saves."""


def check_state(caller: str, state: State, form: Form, newer: str | None = None) -> None:
    """Refuse a state that is not what the callback saves: cut, changed by hand, or of another version.

    What only a newer version knows may be what its method goes on from, so that it is not left out in silence.

    Args:
        caller: the callback's class.
        state: from a checkpoint.
        form: of what the callback saves.
        newer: the version that saved the checkpoint, where it is newer than this one.

    Raises:
        MisconfigurationException: with the keys that are wrong.
    """
    found = faults_in(state, form)
    if found and newer is not None:
        raise MisconfigurationException(
            f"{caller}: its state in the checkpoint {found}; it was saved by lightning_lr {newer}, and this is "
            f"{__version__}: resume with that version or a later one, or train from its weights alone"
        )
    if found:
        raise MisconfigurationException(
            f"{caller}: its state in the checkpoint {found}; the checkpoint was changed after it was saved, or saved "
            "by a version that is newer: resume from another, or train from its weights alone"
        )


# ---------------------------------------------------------------------- what is compared
def check_settings(callback: MethodCallback, inside_epoch: bool, quiet: bool = False) -> None:
    """Compare the arguments of a callback with those in the checkpoint that it was loaded from.

    Args:
        callback: after ``load_state_dict``.
        inside_epoch: whether training goes on inside an epoch.
        quiet: only refuse, and log nothing about what may change.

    Raises:
        MisconfigurationException: for an argument that has to be the checkpoint's.
    """
    state = callback.loaded or {}
    differences = _differences(state.get("settings"), settings_of(callback))
    fixed = callback.fixed_on_resume(state, inside_epoch) if differences else {}
    caller = type(callback).__name__
    for difference in differences:
        if difference.argument in fixed:
            raise MisconfigurationException(
                f"{caller}: got {difference.argument}={difference.now}, and the checkpoint was made with "
                f"{difference.argument}={difference.before}: {fixed[difference.argument]}; resume with the "
                "checkpoint's, or train from its weights alone"
            )
    if not quiet:
        _log(caller, differences)


def check_run(callbacks: Sequence[MethodCallback], shape: RunShape, inside_epoch: bool, quiet: bool = False) -> None:
    """Compare the run that is about to resume with the one of the checkpoint; logs it once for all callbacks.

    Raises:
        MisconfigurationException: inside an epoch, for other devices, batches or data.
    """
    saved = next((c.loaded["run"] for c in callbacks if c.loaded is not None and c.loaded.get("run")), None)
    differences = _differences(saved, facts_of(shape))
    length = [d for d in differences if d.argument in ("max_epochs", "max_steps")]
    data = [d for d in differences if d not in length]
    if len(data) > 1:  # follows from the others
        data = [d for d in data if d.argument != BATCHES]
    ramp = next((callback for callback in callbacks if callback.changes_batch), None)
    moved = [d for d in data if ramp is not None or d.argument != "accumulation"]  # any number may be left
    if moved and inside_epoch:
        raise MisconfigurationException(
            f"{type(ramp or callbacks[0]).__name__}: training goes on inside an epoch with {_in_words(moved)}: the "
            "place in the epoch is counted in the checkpoint's batches, and samples would be repeated or left out; "
            "resume with the checkpoint's devices, batch and data, or from a checkpoint at the end of an epoch"
        )
    if quiet:
        return
    if data:
        rank_zero_info(f"lightning_lr: training goes on with {_in_words(data)}")
    if length:
        rank_zero_info(
            f"lightning_lr: training goes on with {_in_words(length)}: from here on all that is a share of the run "
            "(curves, ramps, warm-ups) is a share of the new length"
        )


def check_unrecorded(caller: str, shape: RunShape, epochs: int, batches: int) -> None:
    """Compare what the loop itself remembers, inside an epoch of a run that none of these callbacks was part of.

    Args:
        caller: the callback that resumes.
        shape: the run.
        epochs: that are done.
        batches: micro-batches that the loop has counted in them.

    Raises:
        MisconfigurationException: where the epochs had another number of batches.
    """
    expected = None if shape.epoch.micro_batches is None else epochs * shape.epoch.micro_batches
    if expected is not None and expected != batches:
        raise MisconfigurationException(
            f"{caller}: training goes on inside an epoch, the checkpoint counts {batches} batches in the {epochs} "
            f"epochs before, and those of this run have {expected}: samples would be repeated or left out; resume with "
            "the checkpoint's devices, batch and data, or from a checkpoint at the end of an epoch"
        )


def absent_callbacks(trainer: Trainer, checkpoint: State) -> list[str]:
    """The callbacks that a checkpoint has a state of and the Trainer does not have, by their class."""
    present = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
    return [re.split(r"\W", key)[0] for key in checkpoint.get("callbacks") or {} if key not in present]


def check_absent(absent: Sequence[str], inside_epoch: bool) -> None:
    """Refuse to continue inside an epoch whose batches were made by a callback that is gone.

    Raises:
        MisconfigurationException: for a ``BatchSizeRamp`` that was taken away.
    """
    if inside_epoch and "BatchSizeRamp" in absent:
        raise MisconfigurationException(
            "lightning_lr: the checkpoint was made inside an epoch of a BatchSizeRamp, which this Trainer does not "
            "have: the place in the epoch is counted in its batches, and samples would be repeated or left out; attach "
            "it, or resume from a checkpoint at the end of an epoch"
        )


def explain_other_groups(absent: Sequence[str], error: BaseException) -> None:
    """Explain why an optimizer could not be restored, where a callback that had split its groups is gone.

    Raises:
        MisconfigurationException: in the place of torch's error, which has it as its cause.
    """
    if "LayerwiseLRDecay" in absent and isinstance(error, ValueError) and "parameter group" in str(error):
        raise MisconfigurationException(
            f"lightning_lr: the checkpoint's optimizer had its parameter groups split by LayerwiseLRDecay, which this "
            f"Trainer does not have ({error}); attach it (decay=1.0 changes no learning rate), or load the weights only"
        ) from error


def explain_folder(error: BaseException) -> None:
    """Explain why a checkpoint could not be read, where it is a folder that another strategy wrote.

    Raises:
        MisconfigurationException: in the place of the operating system's error, which has it as its cause.
    """
    if isinstance(error, IsADirectoryError) and error.filename and (Path(error.filename) / "checkpoint").is_dir():
        path = str(error.filename)
        raise MisconfigurationException(
            f"lightning_lr: the checkpoint {path} is a folder, as ZeROStrategy writes it, and this Trainer reads one "
            f"file; go on with ZeROStrategy, or make one of it: lightning_lr.strategies.consolidate({path!r}, OUT)"
        ) from error


def log_changed_settings(callback: Any, saved: State) -> None:
    """One line about the arguments of a callback that are not those in ``saved``, all of which may change."""
    _log(type(callback).__name__, _differences(saved, settings_of(callback)))


# ---------------------------------------------------------------------- inside
def _differences(before: State | None, now: State) -> list[_Difference]:
    if before is None:
        return []
    names = [name for name in now if before.get(name, ABSENT) != now[name] and name in before]
    return [_Difference(name, str(before[name]), str(now[name])) for name in names]


def _log(caller: str, differences: Sequence[_Difference]) -> None:
    if differences:
        rank_zero_info(f"{caller}: training goes on with {_in_words(differences)}")


def _in_words(differences: Sequence[_Difference]) -> str:
    return ", ".join(f"{d.argument} {d.now} instead of {d.before}" for d in differences)


def _text(value: Any) -> str:
    if isinstance(value, float) and value.is_integer() and abs(value) < 1e15:
        return repr(int(value))  # 1 and 1.0 are the same
    if is_dataclass(value) and not isinstance(value, type):
        return (
            f"{type(value).__name__}({', '.join(f'{f.name}={_text(getattr(value, f.name))}' for f in fields(value))})"
        )
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(_text, value))}]"
    if callable(value) and hasattr(value, "__qualname__"):
        return str(value.__qualname__)
    return repr(value)
