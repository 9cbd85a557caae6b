"""The room of the adaptive warm-up: how high the learning rate may go, read off the training loss.

Read in this order: :mod:`.history` (what is remembered of the losses), :mod:`.smoother` (a Gaussian process over the
log learning rate, by :mod:`.gaussian_process`; it comes to a :mod:`.posterior`), :mod:`.switch` (has the smoothed loss
risen?), :mod:`.divergence` (has it taken off?), :mod:`.settings`, :mod:`.decision` and :mod:`.machine` (the course of a
run); also :mod:`.update_loss` (one loss per update) and :mod:`.snapshot` (a state to come back to). No Lightning
in here. Source: AutoWU, Kim et al. 2021, arXiv:2107.05855.
"""

from lightning_lr.gaussian_process.posterior import Posterior
from lightning_lr.warmup.decision import Decision
from lightning_lr.warmup.divergence import DivergenceWatch
from lightning_lr.warmup.history import LossBlock, LossHistory
from lightning_lr.warmup.machine import WarmupMachine
from lightning_lr.warmup.settings import OnDivergence, WarmupSettings
from lightning_lr.warmup.smoother import fit
from lightning_lr.warmup.snapshot import Snapshot, all_finite
from lightning_lr.warmup.switch import SwitchTest, look
from lightning_lr.warmup.update_loss import UpdateLoss

__all__ = [
    "Decision",
    "DivergenceWatch",
    "LossBlock",
    "LossHistory",
    "OnDivergence",
    "Posterior",
    "Snapshot",
    "SwitchTest",
    "UpdateLoss",
    "WarmupMachine",
    "WarmupSettings",
    "all_finite",
    "fit",
    "look",
]
