"""When a ramp of the batch begins: at the start of the run, or after an adaptive warm-up."""

from __future__ import annotations

from typing import Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import members_of

Begin = Literal["start", "after_warmup"]


def warmup_before(begin: Begin, trainer: Trainer) -> AdaptiveWarmup | None:
    """The warm-up that a ramp waits for.

    Raises:
        MisconfigurationException: where ``begin`` and the other callbacks do not fit together.
    """
    warmup = next((member for member in members_of(trainer) if isinstance(member, AdaptiveWarmup)), None)
    if begin == "start" and warmup is not None:
        raise MisconfigurationException(
            "BatchSizeRamp: got begin='start' with AdaptiveWarmup, whose climb needs one batch size; set "
            "begin='after_warmup'"
        )
    if begin == "after_warmup" and warmup is None:
        raise MisconfigurationException(
            "BatchSizeRamp: got begin='after_warmup' without AdaptiveWarmup, whose switch it waits for; attach "
            "AdaptiveWarmup(decay=Constant()), or set begin='start'"
        )
    if warmup is not None and warmup.decays:
        raise MisconfigurationException(
            f"BatchSizeRamp: got begin='after_warmup' with AdaptiveWarmup(decay={warmup.settings.decay}), and both "
            "would let the noise scale fall; set decay=Constant()"
        )
    return warmup
