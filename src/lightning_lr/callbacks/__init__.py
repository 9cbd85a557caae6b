"""Thin adapters between Lightning's hooks and the methods; one file per callback."""

from lightning_lr.callbacks.activation_compression import ActivationCompression
from lightning_lr.callbacks.adaptive_warmup import AdaptiveWarmup
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.batch_size_ramp import BatchSizeRamp
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.critical_batch_size import CriticalBatchSize
from lightning_lr.callbacks.find_learning_rate import find_learning_rate
from lightning_lr.callbacks.ghost_batch_norm import GhostBatchNorm
from lightning_lr.callbacks.gradient_noise_scale import GradientNoiseScale
from lightning_lr.callbacks.gradual_unfreezing import GradualUnfreezing
from lightning_lr.callbacks.hypergradient_descent import HypergradientDescent
from lightning_lr.callbacks.layerwise_lr_decay import LayerwiseLRDecay
from lightning_lr.callbacks.learning_rate_scaling import LearningRateScaling
from lightning_lr.callbacks.learning_rate_schedule import LearningRateSchedule
from lightning_lr.callbacks.learning_rate_search import LearningRateSearch
from lightning_lr.callbacks.normalized_weight_decay import NormalizedWeightDecay
from lightning_lr.callbacks.run_shape import total_updates
from lightning_lr.panels import MetricPanel

__all__ = [
    "ActivationCompression",
    "AdaptiveWarmup",
    "BatchSizeRamp",
    "Clash",
    "CriticalBatchSize",
    "GhostBatchNorm",
    "GradientNoiseScale",
    "GradualUnfreezing",
    "HypergradientDescent",
    "LayerwiseLRDecay",
    "LearningRateScaling",
    "LearningRateSchedule",
    "LearningRateSearch",
    "MethodCallback",
    "MetricPanel",
    "NormalizedWeightDecay",
    "find_learning_rate",
    "total_updates",
]
