"""Where a search begins, by the kind of optimizer: the first two rates of the first heat. It goes on from there."""

from __future__ import annotations

from dataclasses import dataclass

from torch.optim import Optimizer


@dataclass(frozen=True)
class Start:
    """Where a search begins.

    Args:
        low: the first rate that is tried, the field's default for the kind.
        cautious: the highest rate that is taken without any evidence.
    """

    low: float
    cautious: float


SGD = Start(1e-2, 1e-2)
ADAPTIVE = Start(1e-3, 1e-3)
_KINDS: tuple[tuple[tuple[str, ...], Start], ...] = (
    (("prodigy", "dadapt"), Start(1e-1, 1.0)),  # their rate is a factor of one that they find
    (("lion", "tiger"), Start(1e-4, 1e-4)),
    (("lars", "adagrad", "adadelta", "lbfgs"), Start(1e-1, 1e-1)),
    (("muon",), Start(1e-2, 1e-2)),
    (("sgd", "asgd", "nesterov", "momentum"), SGD),
)
"""By what the name of the class contains, first match; anything else scales its steps, as Adam does."""


def start_of(optimizer: Optimizer) -> Start:
    """Where a search for this optimizer's rate begins."""
    name = type(optimizer).__name__.lower()
    for parts, start in _KINDS:
        if any(part in name for part in parts):
            return start
    return ADAPTIVE
