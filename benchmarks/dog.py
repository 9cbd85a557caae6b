"""DoG, "distance over gradients", for comparison: none of the packages that the benchmarks use has it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class DoG(Optimizer):
    r"""SGD whose step is the distance from the first weights over the root of the summed squared gradient norms.

    .. math:: \eta_t = \frac{\max_{i \le t} \bar r_i}{\sqrt{\sum_{i \le t} \|g_i\|^2}}, \qquad
        \bar r_i = \max(\|x_i - x_0\|, r_\epsilon), \quad r_\epsilon = 10^{-6} (1 + \|x_0\|)

    It is evaluated at the polynomially decaying average of its weights (``eval`` and ``train`` exchange them):

    .. math:: \bar x_t = \Big(1 - \frac{9}{t + 8}\Big) \bar x_{t-1} + \frac{9}{t + 8} x_t

    Args:
        params: what is trained.
        lr: a factor on the step; the method's own is 1.

    Source: Ivgi, Hinder and Carmon 2023, arXiv:2302.12022.
    """

    def __init__(self, params: Iterable[Any], lr: float = 1.0) -> None:
        super().__init__(params, {"lr": lr})
        self._all: list[Tensor] = [p for group in self.param_groups for p in group["params"]]
        self._first = [p.detach().clone() for p in self._all]
        self._average = [p.detach().clone() for p in self._all]
        self._farthest = 1e-6 * (1.0 + _norm(self._first))
        self._squares, self._steps, self._averaged = 0.0, 0, False

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._farthest = max(
            self._farthest, _norm([p - first for p, first in zip(self._all, self._first, strict=True)])
        )
        self._squares += _norm([p.grad for p in self._all if p.grad is not None]) ** 2
        self._steps += 1
        share = min(1.0, 9.0 / (self._steps + 8.0))
        step = float(self.param_groups[0]["lr"]) * self._farthest / (self._squares + 1e-16) ** 0.5
        for p, average in zip(self._all, self._average, strict=True):
            if p.grad is not None:
                p.sub_(p.grad, alpha=step)
            average.lerp_(p, share)
        return loss

    def eval(self) -> None:
        """Put the average in the place of the weights."""
        self._exchange(to_average=True)

    def train(self) -> None:
        """Put the weights back."""
        self._exchange(to_average=False)

    @torch.no_grad()
    def _exchange(self, to_average: bool) -> None:
        if self._averaged == to_average:
            return
        self._averaged = to_average
        for p, average in zip(self._all, self._average, strict=True):
            kept = p.clone()
            p.copy_(average)
            average.copy_(kept)


def _norm(tensors: list[Any]) -> float:
    return float(torch.stack([tensor.norm() for tensor in tensors]).norm())
