"""The Trainer of the benchmarks: one CPU, repeatable, and nothing on the screen or the disk."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lightning.pytorch import Callback, Trainer


def quiet_trainer(folder: str, callbacks: Iterable[Callback], **arguments: Any) -> Trainer:
    """A Trainer that writes nothing but what its callbacks write.

    Args:
        folder: where they do.
        callbacks: in this order.
        **arguments: further ones of the Trainer.
    """
    return Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )
