"""How far two computations of one value may be apart on any processor: the number of roundings, times eps.

A value that is computed with ``n`` roundings, one after the other, is within ``n * eps / 2`` of the exact one, relative
to the size of what was summed (Higham, Accuracy and Stability of Numerical Algorithms, section 3.1). Two computations
of it, in another order of sums, are within twice that of each other. What a kernel, a number of threads or a number of
processes changes is the order of sums, so a tolerance made of this holds wherever the tests run; what one machine
printed is no tolerance.

Closed forms in fp64 are compared with ``rel=1e-12``: 4 500 roundings, where none has more than a few hundred.
"""

from __future__ import annotations

import torch

PER_UPDATE = 8
"""Roundings of a weight in one update, with some room: the mean over ranks and samples, decay, momentum, the product
with the learning rate, the sum. The toys' weights and steps are not larger than 1."""


def rounding(roundings: int, dtype: torch.dtype = torch.float32) -> float:
    """The largest difference, relative to the size of what is summed, of two computations with so many roundings."""
    return roundings * torch.finfo(dtype).eps


def rounding_after(updates: int) -> float:
    """The same for weights in fp32 (and for learning rates that follow them) after so many updates."""
    return rounding(PER_UPDATE * updates)
