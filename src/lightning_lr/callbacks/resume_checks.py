"""A resume with another configuration than the checkpoint's: what may change is logged, the rest is refused.

Every callback saves its constructor's arguments and the shape of the run with its state. When training goes on from a
checkpoint they are compared, before anything is trained. An argument may change where the state keeps its meaning, and
one line logs the change; a callback's ``fixed_on_resume`` lists the others, which are refused with both values. A
checkpoint that has no such record (of 0.1.0) is not compared.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import TYPE_CHECKING, Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning_utilities.core.rank_zero import rank_zero_info, rank_zero_warn

from lightning_lr.progress import RunShape

if TYPE_CHECKING:
    from lightning_lr.callbacks.base import MethodCallback

State = Mapping[str, Any]
ABSENT = "not given"
NOT_COMPARED = ("self", "count_samples")


@dataclass(frozen=True)
class _Difference:
    argument: str
    before: str
    now: str


# ---------------------------------------------------------------------- what is saved
def settings_of(callback: Any) -> dict[str, str]:
    """The arguments that a callback was made with, as text that says when they are the same."""
    found = {}
    for name in inspect.signature(type(callback).__init__).parameters:
        holder = callback if hasattr(callback, name) else getattr(callback, "settings", None)
        if name not in NOT_COMPARED and hasattr(holder, name):
            found[name] = _text(getattr(holder, name))
    return found


def hyperparameters_of(callbacks: Sequence[Any]) -> dict[str, str]:
    """The settings of callbacks as a logger's hyperparameters: ``LearningRateSchedule/curve``, for example."""
    return {
        f"{type(callback).__name__}/{argument}": text
        for callback in callbacks
        for argument, text in settings_of(callback).items()
    }


def facts_of(shape: RunShape) -> dict[str, int | None]:
    """What of a run's shape is compared."""
    epoch = shape.epoch
    return {
        "devices": epoch.world_size,
        "micro-batch": epoch.micro_batch_size,
        # where it is a ramp's or changes with the epoch, no number stands for the run
        **({"accumulation": shape.accumulation} if type(shape.accumulation) is int else {}),
        "samples of an epoch per device": epoch.device_samples,
        "max_epochs": shape.max_epochs,
        "max_steps": shape.max_updates,
    }


# ---------------------------------------------------------------------- what is compared
def check_settings(callback: MethodCallback, inside_epoch: bool, quiet: bool = False) -> None:
    """Compare the arguments of a callback with those in the checkpoint that it was loaded from.

    Args:
        callback: after ``load_state_dict``.
        inside_epoch: whether training goes on inside an epoch.
        quiet: only refuse, and say nothing about what may change.

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
        _say(caller, differences)


def check_run(callbacks: Sequence[MethodCallback], shape: RunShape, inside_epoch: bool, quiet: bool = False) -> None:
    """Compare the run that is about to go on with the one that the checkpoint was made in; says it once for all.

    Raises:
        MisconfigurationException: inside an epoch of a ``BatchSizeRamp``, for other devices, batches or data.
    """
    saved = next((c.loaded["run"] for c in callbacks if c.loaded is not None and c.loaded.get("run")), None)
    differences = _differences(saved, facts_of(shape))
    length = [d for d in differences if d.argument in ("max_epochs", "max_steps")]
    data = [d for d in differences if d not in length]
    ramp = next((callback for callback in callbacks if callback.changes_batch), None)
    if data and inside_epoch and ramp is not None:
        raise MisconfigurationException(
            f"{type(ramp).__name__}: training goes on inside an epoch with {_in_words(data)}: the place in the epoch "
            "is counted in the checkpoint's batches, and samples would be repeated or left out; resume with the "
            "checkpoint's devices, batch and data, or from a checkpoint at the end of an epoch"
        )
    if quiet:
        return
    if data and inside_epoch:
        rank_zero_warn(
            f"lightning_lr: training goes on inside an epoch with {_in_words(data)}: samples of this epoch may be "
            "repeated or left out; what is counted goes on from the samples seen"
        )
    elif data:
        rank_zero_info(f"lightning_lr: training goes on with {_in_words(data)}")
    if length:
        rank_zero_info(
            f"lightning_lr: training goes on with {_in_words(length)}: from here on all that is a share of the run "
            "(curves, ramps, warm-ups) is a share of the new length"
        )


def log_changed_settings(callback: Any, saved: State) -> None:
    """One line about the arguments of a callback that are not those in ``saved``, all of which may change."""
    _say(type(callback).__name__, _differences(saved, settings_of(callback)))


# ---------------------------------------------------------------------- inside
def _differences(before: State | None, now: State) -> list[_Difference]:
    if before is None:
        return []
    names = [name for name in now if before.get(name, ABSENT) != now[name] and name in before]
    return [_Difference(name, str(before[name]), str(now[name])) for name in names]


def _say(caller: str, differences: Sequence[_Difference]) -> None:
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
