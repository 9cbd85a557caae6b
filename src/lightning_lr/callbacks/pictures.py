"""Pictures of a run in the loggers that take images: when they are sent. Who draws them registers here.

The command line's modules draw, and stand above the callbacks; so they are not imported from here.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer

from lightning_lr import lightning_internals as internals

Draw = Callable[[Trainer], Any]
"""Returns a figure of matplotlib, or ``None`` where there is nothing to draw."""

AT_START: dict[str, Draw] = {}
AT_END: dict[str, Draw] = {}
"""By the picture's name, what draws it: before the first update, and after the last."""

SWITCH = "LIGHTNING_LR_PICTURES"
"""An environment variable: ``0`` sends none."""


def send(trainer: Trainer, drawers: dict[str, Draw]) -> None:
    """Draw and send; a picture that cannot be drawn is a warning. Nothing is drawn where no logger takes images."""
    if os.environ.get(SWITCH) == "0" or internals.is_fast_dev_run(trainer) or not trainer.is_global_zero:
        return
    if not internals.senders_of(trainer):
        return
    for name, draw in drawers.items():
        try:
            figure = draw(trainer)
        except Exception as error:  # whatever reads and draws: a picture is worth no run
            warnings.warn(f"lightning_lr: the picture {name!r} was not drawn ({error})", stacklevel=2)
            continue
        if figure is not None:
            internals.log_picture(trainer, name, figure)
