"""Compressed activations: what the backward needs, kept at a few bits (GACT, Liu et al. 2022, arXiv 2206.11357)."""

from lightning_lr.activations.compression.allocation import allocate, predicted_variance, variance_factor
from lightning_lr.activations.compression.hooks import ActivationCompressor, Tally
from lightning_lr.activations.compression.probe import Sensitivities, probe, summed

__all__ = [
    "ActivationCompressor",
    "Sensitivities",
    "Tally",
    "allocate",
    "predicted_variance",
    "probe",
    "summed",
    "variance_factor",
]
