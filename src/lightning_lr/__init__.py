"""Learning rate, batch size and memory of a Lightning run, decided, shown and resumed exactly."""

from lightning_lr import optim
from lightning_lr.activations import CheckpointPolicy
from lightning_lr.batch_size import AdaptiveRamp, CurveRamp, RampPhase, RampPlan, StepRamp, scaled_batch_size
from lightning_lr.callbacks import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    CriticalBatchSize,
    GhostBatchNorm,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    LearningRateSearch,
    MethodCallback,
    NormalizedWeightDecay,
    find_learning_rate,
)
from lightning_lr.checks import name_arguments
from lightning_lr.cli.from_python import plan, report
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
from lightning_lr.layers import layerwise_param_groups
from lightning_lr.strategies import CheckpointedDDPStrategy, CheckpointedStrategy, ZeROStrategy
from lightning_lr_command import __version__ as __version__

__all__ = [
    "ActivationCompression",
    "AdaptiveRamp",
    "AdaptiveWarmup",
    "BatchSizeRamp",
    "CheckpointPolicy",
    "CheckpointedDDPStrategy",
    "CheckpointedStrategy",
    "Constant",
    "Cosine",
    "CosineRestarts",
    "CriticalBatchSize",
    "Curve",
    "CurveRamp",
    "GhostBatchNorm",
    "GradientNoiseScale",
    "GradualUnfreezing",
    "HypergradientDescent",
    "LayerwiseLRDecay",
    "LearningRateScaling",
    "LearningRateSchedule",
    "LearningRateSearch",
    "MethodCallback",
    "NormalizedWeightDecay",
    "Polynomial",
    "RampPhase",
    "RampPlan",
    "SlantedTriangle",
    "Step",
    "StepRamp",
    "WarmupStableDecay",
    "ZeROStrategy",
    "find_learning_rate",
    "layerwise_param_groups",
    "optim",
    "plan",
    "report",
    "scaled_batch_size",
]

for _public in (*map(globals().get, __all__), *map(vars(optim).get, optim.__all__)):
    if isinstance(_public, type):
        name_arguments(_public)
