"""The global random generators: of Python, NumPy, and torch on the host and on every device in use."""

from __future__ import annotations

import random
import sys
from typing import Any

import torch


class RandomState:
    """The state of every global random generator at the moment of construction.

    Example::

        before = RandomState()
        torch.rand(3)
        before.restore()  # the next torch.rand(3) draws the same numbers
    """

    def __init__(self) -> None:
        self._python = random.getstate()
        self._torch = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() and torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
        self._mps = torch.mps.get_rng_state() if torch.backends.mps.is_available() else None
        numpy = sys.modules.get("numpy")  # what has not been imported has drawn nothing
        self._numpy: Any = None if numpy is None else numpy.random.get_state()

    def restore(self) -> None:
        """Put every generator back."""
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._cuda:
            torch.cuda.set_rng_state_all(self._cuda)
        if self._mps is not None:
            torch.mps.set_rng_state(self._mps)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)
