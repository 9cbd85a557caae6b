"""Gaussian processes over the log learning rate: what the methods share that read a loss against it.

``model`` is the one file that imports GPyTorch, and only where one is evaluated. Source: Rasmussen & Williams 2006.
"""

from lightning_lr.gaussian_process.evidence import log_evidence
from lightning_lr.gaussian_process.posterior import SMALLEST_NOISE, Posterior

__all__ = ["SMALLEST_NOISE", "Posterior", "log_evidence"]
