"""Fork the state of a run, try something for a few updates, and go back to the bit.

A branch lets a run ask instead of guess: which learning rate, which batch size. :class:`ForkedState` remembers every
mutable thing that training may touch; :class:`RandomState` the global random generators. Pure torch; what Lightning
adds to a run is forked by ``callbacks.branch``.

Source: branched training as a measuring device: Merrill et al. 2025, arXiv:2505.23971.
"""

from lightning_lr.branches.fork import ForkedState
from lightning_lr.branches.random_state import RandomState

__all__ = ["ForkedState", "RandomState"]
