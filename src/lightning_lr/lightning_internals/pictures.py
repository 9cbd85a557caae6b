"""Pictures for the loggers that take images, each by the call that its documentation gives."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from lightning.pytorch import Trainer

from lightning_lr.lightning_internals.logger_places import is_of

FOLDER = "lightning_lr"
"""Before the name of a picture, in every logger."""


def log_picture(trainer: Trainer, name: str, figure: Any) -> None:
    """Send a picture to every logger that takes images; one that refuses it is a warning.

    Args:
        trainer: whose loggers.
        name: of the picture.
        figure: a figure of matplotlib, with a canvas of Agg.
    """
    figure.canvas.draw()
    pixels = np.asarray(figure.canvas.buffer_rgba())[..., :3]
    for logger, send in senders_of(trainer):
        try:
            send(logger, f"{FOLDER}/{name}", figure, pixels, trainer.global_step)
        except Exception as error:  # each logger has errors of its own
            warnings.warn(
                f"lightning_lr: {type(logger).__name__} did not take the picture {name!r} ({error}); training goes on",
                stacklevel=2,
            )


def senders_of(trainer: Trainer) -> list[tuple[Any, Callable[..., Any]]]:
    """The loggers of a Trainer that take images, each with its call."""
    return [(logger, send) for logger in trainer.loggers for kind, send in CALLS.items() if is_of(logger, kind)]


def _tensorboard(logger: Any, name: str, figure: Any, pixels: Any, step: int) -> None:
    logger.experiment.add_image(name, pixels, step, dataformats="HWC")


def _wandb(logger: Any, name: str, figure: Any, pixels: Any, step: int) -> None:
    logger.log_image(key=name, images=[pixels])  # no step: W&B counts its own, and refuses one that is behind


def _mlflow(logger: Any, name: str, figure: Any, pixels: Any, step: int) -> None:
    logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


def _comet(logger: Any, name: str, figure: Any, pixels: Any, step: int) -> None:
    logger.experiment.log_image(pixels, name=name, step=step)


def _neptune(logger: Any, name: str, figure: Any, pixels: Any, step: int) -> None:
    logger.experiment[name].upload(figure)


CALLS: dict[str, Callable[..., Any]] = {
    "TensorBoardLogger": _tensorboard,
    "WandbLogger": _wandb,
    "MLFlowLogger": _mlflow,
    "CometLogger": _comet,
    "NeptuneLogger": _neptune,
}
"""By the name of Lightning's class. Comet and Neptune have not been tried: both need an account."""
