"""Refuses ``pytorch_lightning`` where ``lightning.pytorch`` is meant: the same names, and classes that are others."""

from __future__ import annotations

import warnings
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer

from lightning_lr import lightning_internals as internals
from lightning_lr.lightning_internals import INSTEAD, MIRROR

TO_DO = f"write `import {INSTEAD} as pl` in place of `import {MIRROR} as pl`, everywhere"


def refuse_mirror(member: Callback, trainer: Trainer) -> None:
    """Refuse a Trainer of ``pytorch_lightning``, or a callback of it attached together with ``member``.

    A user's own callback that inherits from the mirror's ``Callback`` alone is allowed: nothing checks its class.

    Raises:
        MisconfigurationException: with what was given, what is allowed, and what to do.
    """
    caller = type(member).__name__
    if internals.class_of_mirror(trainer) is not None:
        raise MisconfigurationException(
            f"{caller}: got a {MIRROR}.Trainer; allowed is a {INSTEAD}.Trainer, since the two packages share their "
            f"names and not their classes; {TO_DO}"
        )
    for other in trainer.callbacks:  # type: ignore[attr-defined]
        found = internals.class_of_mirror(other)
        if found is not None and found.__qualname__ != "Callback":
            raise MisconfigurationException(
                f"{caller}: got {MIRROR}.callbacks.{found.__qualname__} with it; allowed are callbacks of {INSTEAD}, "
                f"since its Trainer knows no others by their class; {TO_DO}"
            )


def warn_of_mirror(member: Any) -> None:
    """Warn, while ``member`` is made, of what a Trainer of the mirror will not explain when it refuses it."""
    if internals.mirror_refuses_unasked():
        warnings.warn(
            f"{type(member).__name__}: {MIRROR} has been imported, and its Trainer, if it is the one to be given this "
            f"callback of {INSTEAD}, will only report 'Expected a parent'; {TO_DO}",
            stacklevel=3,
        )


def hint_of_mirror(refusal: str) -> str:
    """What a command line adds to its complaint that a class is no subclass, where it may be one of the mirror's."""
    if internals.mirror_is_imported() and "subclass" in refusal.lower():
        return f"\n{MIRROR} has been imported, and its classes are not those of {INSTEAD}; {TO_DO}"
    return ""
