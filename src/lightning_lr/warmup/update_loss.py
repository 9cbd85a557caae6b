"""One mean loss per update: micro-batches weighted as they are in the gradient.

Lightning hands out the loss of a micro-batch divided by the accumulation, and a method may weight it further (a ramp,
whose micro-batches differ in size). The sum over a window is therefore the mean where the window is full; where the end
of an epoch cuts it short it is made one again. Pure torch; the host never waits.
"""

from __future__ import annotations

from torch import Tensor


class UpdateLoss:
    """Adds up the losses of the micro-batches of an update."""

    def __init__(self) -> None:
        self._sum: Tensor | None = None
        self._weight = 0.0

    def add(self, loss: Tensor, accumulation: int = 1, weight: float = 1.0) -> None:
        """Count a micro-batch.

        Args:
            loss: its mean loss over ``accumulation``, a scalar; stays on its device.
            accumulation: micro-batches in a full window.
            weight: further factor on the loss before the backward.
        """
        loss = loss.detach().float() if loss.element_size() < 4 else loss.detach()
        term = loss if weight == 1.0 else loss * weight
        self._sum = term if self._sum is None else self._sum + term
        self._weight += weight / accumulation

    def take(self) -> Tensor | None:
        """The mean loss of the update, and begin the next one; ``None`` where no micro-batch had a loss."""
        total, weight = self._sum, self._weight
        self._sum, self._weight = None, 0.0
        if total is None or abs(weight - 1.0) < 1e-9:  # the sum of a full window is the mean, up to rounding
            return total
        return total / weight
