"""Optimizers for large batches that scale each tensor's step by a trust ratio: LARS and LAMB.

Both follow torch.optim's conventions and need nothing else of this package; a Trainer with one of our callbacks also
logs their trust ratios. AdamW is torch's own, AdamP that of ``pytorch_optimizer`` (extra ``optimizers``).
"""

from lightning_lr.optim.lamb import LAMB
from lightning_lr.optim.lars import LARS
from lightning_lr.optim.trust_ratio import Adapt, TrustRatioOptimizer

__all__ = ["LAMB", "LARS", "Adapt", "TrustRatioOptimizer"]
