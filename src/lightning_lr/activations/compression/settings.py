"""What a user may ask of compression, checked at once."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from lightning_lr.activations.compression.groups import WIDTHS
from lightning_lr.activations.compression.hooks import ActivationCompressor
from lightning_lr.checks import is_count, is_real


@dataclass(frozen=True)
class CompressionSettings:
    """The arguments of ``ActivationCompression``; see there.

    Raises:
        ValueError: for a value out of range.
    """

    bits: int | str
    average_bits: float
    group_size: int
    probe_every: int
    skip: tuple[str, ...]
    probe_samples: int
    seed: int | None

    def __post_init__(self) -> None:
        caller = "ActivationCompression"
        if not (self.bits == "auto" or (is_count(self.bits) and self.bits in WIDTHS)):
            raise ValueError(f'{caller}: got bits={self.bits!r}; give 8, 4, 2 or "auto"')
        if not (is_real(self.average_bits) and WIDTHS[-1] <= self.average_bits <= WIDTHS[0]):
            raise ValueError(f"{caller}: got average_bits={self.average_bits!r}; give a number from 2 to 8")
        if not is_count(self.group_size, 16) or self.group_size & (self.group_size - 1):
            raise ValueError(f"{caller}: got group_size={self.group_size!r}; give a power of two from 16, such as 256")
        if not is_count(self.probe_every):
            raise ValueError(f"{caller}: got probe_every={self.probe_every!r}; give a whole number of updates from 1")
        if not is_count(self.probe_samples):
            raise ValueError(
                f"{caller}: got probe_samples={self.probe_samples!r}; give a whole number of samples from 1"
            )
        if self.seed is not None and not (is_count(self.seed, 0) and self.seed < 2**63):
            raise ValueError(
                f"{caller}: got seed={self.seed!r}; give a whole number from 0 to 2**63 - 1, or None for the run's"
            )

    def compressor(self, model: nn.Module, rank: int, seed: int = 0) -> ActivationCompressor:
        """What compresses for these settings; with ``"auto"`` it begins at the widest bits within the average.

        Args:
            model: the module that is trained.
            rank: of this process.
            seed: of the run, for settings without one.

        Raises:
            ValueError: for a name in ``skip`` that no module has.
        """
        bits = self.bits if isinstance(self.bits, int) else next(b for b in WIDTHS if b <= self.average_bits)
        return ActivationCompressor(
            model, bits, self.group_size, seed if self.seed is None else self.seed, rank, self.skip
        )


def size_ratio(bits: float, group_size: int, dtype: torch.dtype) -> float:
    """How many times smaller numbers of a type are at so many bits and 32 bits of metadata per group."""
    return dtype.itemsize * 8 / (bits + 32 / group_size)
