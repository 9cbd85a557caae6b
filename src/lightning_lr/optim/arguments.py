"""What the optimizers' arguments may be."""

from __future__ import annotations

from torch import Tensor

from lightning_lr.checks import is_rate


def check_learning_rate(caller: str, lr: float | Tensor) -> None:
    """Refuse a learning rate that no optimizer of torch's would take."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{caller}: got an lr tensor with {lr.numel()} elements; give one with a single element")
    check_not_negative(caller, lr=float(lr) if isinstance(lr, Tensor) else lr)


def check_flags(caller: str, foreach: bool | None = None, **flags: bool) -> None:
    """Refuse what is neither True nor False, by name; ``foreach`` may be None."""
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise ValueError(f"{caller}: got {name}={value!r}; give True or False")
    if foreach is not None and not isinstance(foreach, bool):
        raise ValueError(f"{caller}: got foreach={foreach!r}; give True, False, or None for what is fastest")


def check_not_negative(caller: str, **arguments: float) -> None:
    """Refuse what is negative or not a number, by name."""
    for name, value in arguments.items():
        if not is_rate(value):
            raise ValueError(
                f"{caller}: got {name}={value!r}; give a finite number that is not negative, within float32"
            )
