"""Learning rate, batch size and memory of a Lightning run, decided, shown and resumed exactly."""

from lightning_lr.callbacks import LearningRateScaling, LearningRateSchedule
from lightning_lr.curves import (
    Constant,
    Cosine,
    CosineRestarts,
    Curve,
    Polynomial,
    SlantedTriangle,
    Step,
    WarmupStableDecay,
)

__all__ = [
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Curve",
    "LearningRateScaling",
    "LearningRateSchedule",
    "Polynomial",
    "SlantedTriangle",
    "Step",
    "WarmupStableDecay",
]
