"""The module's own LR scheduler with a method that moves the learning rate: refused, replaced, or multiplied."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.optim.lr_scheduler import ConstantLR, LinearLR

ModuleScheduler = Literal["refuse", "replace", "multiply"]


def check_module_scheduler(caller: str, given: Any) -> None:
    """Check the argument.

    Raises:
        ValueError: quotes it and names the choices.
    """
    if given not in get_args(ModuleScheduler):
        raise ValueError(f"{caller}: got module_scheduler={given!r}; allowed are {get_args(ModuleScheduler)}")


def check_agreement(choices: dict[str, str]) -> None:
    """Refuse callbacks of which one takes the module's schedule away and another keeps it.

    Args:
        choices: ``module_scheduler`` of each callback that has the argument, by the callback's name.

    Raises:
        MisconfigurationException: names both.
    """
    replaced = next((name for name, choice in choices.items() if choice == "replace"), None)
    kept = next((name for name, choice in choices.items() if choice == "multiply"), None)
    if replaced is not None and kept is not None:
        raise MisconfigurationException(
            f"{replaced}: got module_scheduler='replace', and {kept} has module_scheduler='multiply': the module's "
            "scheduler either has an effect in this run or it has none; give both the same"
        )


def refuse_module_scheduler(caller: str, schedulers: Sequence[Any], warmups_pass: bool = True) -> None:
    """Refuse the LR schedulers that ``configure_optimizers`` returned, but for a warm-up.

    Raises:
        MisconfigurationException: names the scheduler, the argument and what each choice does.
    """
    for scheduler in schedulers:
        if warmups_pass and isinstance(scheduler, ConstantLR):
            continue
        if warmups_pass and isinstance(scheduler, LinearLR) and scheduler.end_factor >= scheduler.start_factor:
            continue
        raise MisconfigurationException(
            f"{caller}: configure_optimizers also returns a {type(scheduler).__name__}, and both would move the "
            "learning rate over the run. Remove the scheduler, or choose with the argument module_scheduler: "
            "'replace' leaves the scheduler without effect and starts from the rate it rises to (its state still goes "
            "into the checkpoint), 'multiply' applies both; 'refuse', the default, stops here"
            + (" (a warm-up by LinearLR or ConstantLR passes)" if warmups_pass else "")
        )
