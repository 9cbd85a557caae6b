"""Curves decide how a quantity changes over a run: each maps training progress in [0, 1] to a factor in [0, 1].

Progress is the share of the run's budget that is spent, so that a curve ends with the run. ``LearningRateSchedule``
multiplies the learning rate by the factor, ``BatchSizeRamp(CurveRamp(curve))`` divides the noise scale by it, and
``AdaptiveWarmup`` follows it after the warm-up that it found. Sources: SGDR (Loshchilov & Hutter 2017,
arXiv:1608.03983), ULMFiT (Howard & Ruder 2018, arXiv:1801.06146), gradual warm-up (Goyal et al. 2017,
arXiv:1706.02677), LARS (You et al. 2017, arXiv:1708.03888).
"""

from lightning_lr.curves.curve import SNAP, Curve, Phase
from lightning_lr.curves.piecewise import Constant, SlantedTriangle, Step, WarmupStableDecay
from lightning_lr.curves.smooth import Cosine, CosineRestarts, Polynomial

__all__ = [
    "SNAP",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "Curve",
    "Phase",
    "Polynomial",
    "SlantedTriangle",
    "Step",
    "WarmupStableDecay",
]
