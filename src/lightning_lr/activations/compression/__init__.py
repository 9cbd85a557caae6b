"""Compressed activations: what the backward needs, kept at a few bits (GACT, Liu et al. 2022, arXiv 2206.11357)."""

from lightning_lr.activations.compression.allocation import allocate, predicted_variance, variance_factor
from lightning_lr.activations.compression.byte_counts import Size, Tally, described
from lightning_lr.activations.compression.hooks import ActivationCompressor
from lightning_lr.activations.compression.sensitivity import Sensitivities, probe, reallocate, summed
from lightning_lr.activations.compression.settings import CompressionSettings, size_ratio

__all__ = [
    "ActivationCompressor",
    "CompressionSettings",
    "Sensitivities",
    "Size",
    "Tally",
    "allocate",
    "described",
    "predicted_variance",
    "probe",
    "reallocate",
    "size_ratio",
    "summed",
    "variance_factor",
]
