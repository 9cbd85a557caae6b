"""The room of the batch size: noise scale, ramp schedules, their plan, the samplers for it, ghost batch norm.

Read in this order: :mod:`.noise_scale` (the theory), :mod:`.schedules` (how the noise scale falls),
:mod:`.batch_rule` (what batch and learning rate make of it), :mod:`.plan` (a whole run), :mod:`.windows` and
:mod:`.sampler` (its micro-batches), :mod:`.gradient_noise` and :mod:`.critical` (what can be measured),
:mod:`.ghost_batch_norm`. No Lightning in here.
"""

from lightning_lr.batch_size.batch_rule import BatchRule, LRRule
from lightning_lr.batch_size.critical import BranchSettings, CriticalBatch, lr_factor, measure
from lightning_lr.batch_size.ghost_batch_norm import (
    GhostBatchNorm1d,
    GhostBatchNorm2d,
    GhostBatchNorm3d,
    convert_ghost_batch_norm,
    has_plain_batch_norm,
    restore_batch_norm,
)
from lightning_lr.batch_size.gradient_noise import GradientNoiseEstimator, WindowContents
from lightning_lr.batch_size.noise_scale import momentum_transient, noise_scale, scaled_batch_size
from lightning_lr.batch_size.phases import RampPhase
from lightning_lr.batch_size.plan import Growth, RampPlan
from lightning_lr.batch_size.sampler import EpochSampler, RampBatchSampler
from lightning_lr.batch_size.schedules import AdaptiveRamp, CurveRamp, RampSchedule, StepRamp
from lightning_lr.batch_size.windows import (
    EpochWindows,
    ValidationInterval,
    Window,
    WindowAccumulation,
    micro_batch_sizes,
    window_weights,
)

__all__ = [
    "AdaptiveRamp",
    "BatchRule",
    "BranchSettings",
    "CriticalBatch",
    "CurveRamp",
    "EpochSampler",
    "EpochWindows",
    "GhostBatchNorm1d",
    "GhostBatchNorm2d",
    "GhostBatchNorm3d",
    "GradientNoiseEstimator",
    "Growth",
    "LRRule",
    "RampBatchSampler",
    "RampPhase",
    "RampPlan",
    "RampSchedule",
    "StepRamp",
    "ValidationInterval",
    "Window",
    "WindowAccumulation",
    "WindowContents",
    "convert_ghost_batch_norm",
    "has_plain_batch_norm",
    "lr_factor",
    "measure",
    "micro_batch_sizes",
    "momentum_transient",
    "noise_scale",
    "restore_batch_norm",
    "scaled_batch_size",
    "window_weights",
]
