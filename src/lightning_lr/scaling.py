"""How the learning rate follows the batch size: the linear and the square-root rule, and the gradual warm-up.

With a batch k times the reference, linear scaling (Krizhevsky 2014, arXiv 1404.5997; Goyal et al. 2017, arXiv
1706.02677) multiplies the learning rate by k and climbs there over the first epochs; the square-root rule keeps the
variance of the update, and for Adam, seen as a stochastic differential equation (Malladi et al. 2022, arXiv
2205.10287), rescales betas and eps with it. Pure Python.
"""

from __future__ import annotations

import math
from typing import Literal

Rule = Literal["linear", "sqrt"]

AT_THE_LIMIT = 1e-9
"""A new beta below this is 0: k is the limit, which a message gives in ten digits."""


def learning_rate_scale(k: float, rule: Rule) -> float:
    """Factor on the learning rate for a batch of ``k`` times the reference: ``k`` (linear) or ``sqrt(k)``.

    Example:
        >>> [learning_rate_scale(4.0, rule) for rule in ("linear", "sqrt")], learning_rate_scale(0.25, "linear")
        ([4.0, 2.0], 0.25)
    """
    return k if rule == "linear" else math.sqrt(k)


def gradual(scale: float, progress: float, width: float, warmup: float) -> float:
    r"""The scale reached during a gradual warm-up.

    .. math:: 1 + (s - 1) \min\left(1, \frac{p + w}{W}\right)

    Args:
        scale: the full scale s. Below 1 it applies from the start: a warm-up would begin with too large a step.
        progress: share p of the run before the update.
        width: share w of the run that the update covers; the first of n warm-up updates has 1/n of the climb.
        warmup: share W of the run that the climb takes; 0 for none.

    Example:
        >>> [gradual(8.0, progress, 0.01, warmup=0.1) for progress in (0.0, 0.05, 0.5)]
        [1.7, 5.2, 8.0]

    Source: Goyal et al. 2017, section 2.2 (a constant increment at every update).
    """
    if scale <= 1.0 or warmup <= 0.0:
        return scale
    return 1.0 + (scale - 1.0) * min(1.0, (progress + width) / warmup)


def scaled_betas(betas: tuple[float, float], k: float) -> tuple[float, float]:
    r"""Adam's betas for a batch of ``k`` times the reference: :math:`\beta' = 1 - k (1 - \beta)`.

    At the limit, k = 1 / (1 - beta), the new beta is 0, whatever rounding makes of the difference.

    Raises:
        ValueError: where a beta would leave [0, 1): k may be at most 1 / (1 - beta).

    Example:
        >>> [tuple(round(beta, 4) for beta in scaled_betas((0.9, 0.99), k)) for k in (1, 4, 10)]
        [(0.9, 0.99), (0.6, 0.96), (0.0, 0.9)]
    """
    return _scaled_beta(betas[0], k), _scaled_beta(betas[1], k)


def _scaled_beta(beta: float, k: float) -> float:
    new = 1.0 - k * (1.0 - beta)
    if abs(new) < AT_THE_LIMIT:
        return 0.0
    if not 0.0 <= new < 1.0:
        raise ValueError(
            f"the square-root rule turns beta={beta:g} into {new:.4g} at k={k:g} times the reference batch; it holds "
            f"for k <= {1.0 / (1.0 - beta):.10g} with this beta"
        )
    return new


def scaled_eps(eps: float, k: float) -> float:
    r"""Adam's eps for a batch of ``k`` times the reference: :math:`\epsilon' = \epsilon / \sqrt{k}`.

    Example:
        >>> [scaled_eps(1e-8, k) for k in (1, 4, 16)]
        [1e-08, 5e-09, 2.5e-09]
    """
    return eps / math.sqrt(k)
