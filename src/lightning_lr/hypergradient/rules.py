"""How the factor on the learning rate follows from the hypergradient: the paper's two rules, and a normalised one."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol, get_args

from lightning_lr.checks import is_real
from lightning_lr.hypergradient.alignment import cosine
from lightning_lr.hypergradient.directions import Family

RuleName = Literal["additive", "multiplicative", "normalized"]


class Feedback(NamedTuple):
    r"""What one update taught about a factor m: its update was :math:`-m v` with :math:`v = \sum_j b_j d_j`, where
    :math:`b_j` is the learning rate of group j without the factor."""

    dot: float
    """g . v, with the gradient after the update; minus the derivative of the loss with respect to m."""
    gradient: float
    """Squared norm of that gradient."""
    before: float
    """Squared norm of the gradient that the update was made with."""
    move: float
    """Squared norm of v."""
    lr: float
    """The learning rate of that update: m times the root mean square of the b."""
    reference: float
    """The largest learning rate so far without the factor."""


class Rule(Protocol):
    """Turns feedback into the next factor; may keep state in ``memory``."""

    memory: float

    def __call__(self, factor: float, feedback: Feedback) -> float: ...


@dataclass
class Additive:
    r"""Gradient descent on the learning rate.

    .. math:: \alpha_t = \alpha_{t-1} + \beta \, g_t \cdot d_{t-1}

    For a factor m on a schedule of learning rates b it is gradient descent on m,
    :math:`m \mathrel{+}= \beta \, b_{t-1} (g_t \cdot d_{t-1}) / b_\text{max}^2`, which is the same where b is constant,
    and moves nothing where the schedule is at 0. :math:`\beta` has units: it has to be chosen with the size of the
    gradient (for SGD, :math:`1 / |g|^2`).

    Source: Baydin et al. 2018, arXiv 1703.04782, equation 5 and algorithms 4 to 6.
    """

    hyper_lr: float
    memory: float = 0.0

    def __call__(self, factor: float, feedback: Feedback) -> float:
        return factor + self.hyper_lr * feedback.dot / feedback.reference**2


@dataclass
class Multiplicative:
    r"""Growth and decay in proportion to the cosine.

    .. math:: m_t = m_{t-1} \left(1 + \beta \, \frac{g_t \cdot d_{t-1}}{|g_t| \, |d_{t-1}|}\right)

    Scale-free; at most a factor of :math:`1 \pm \beta` per update.

    Source: Baydin et al. 2018, arXiv 1703.04782, section on the multiplicative rule; Martinez-Rubio 2017.
    """

    hyper_lr: float
    memory: float = 0.0

    def __call__(self, factor: float, feedback: Feedback) -> float:
        angle = cosine(feedback.dot, feedback.gradient, feedback.move)
        return factor if math.isnan(angle) else factor * (1 + self.hyper_lr * angle)


@dataclass
class Normalized:
    r"""AdaGrad on the logarithm of the learning rate, with the hypergradient divided by the squared gradient.

    .. math::
        r_t = \frac{g_t \cdot d_{t-1}}{|g_{t-1}| \, |d_{t-1}|}, \quad
        x_t = \alpha_{t-1} r_t, \quad
        \log \alpha_t = \log \alpha_{t-1} + \beta \, x_t \Big/ \sqrt{\textstyle\sum_{s \le t} x_s^2}

    For SGD r is :math:`g_t \cdot g_{t-1} / |g_{t-1}|^2`, the derivative of OSGM's feedback
    :math:`(f(\theta - \alpha g) - f(\theta)) / |g|^2`, and x that by the logarithm. On a quadratic of curvature L,
    :math:`r = 1 - \alpha L`: r is limited to [-1, 1], so that one divergent step does not silence all that come after.
    Scale-free, and its step sizes fall as evidence adds up.

    Source: Gao et al. 2024 and Chu et al. 2025 (online scaled gradient methods), arXiv 2411.01803 and 2502.11229, for
    the normalisation and for AdaGrad; on the logarithm, since the right learning rate may be decades away.
    """

    hyper_lr: float
    memory: float = 0.0

    def __call__(self, factor: float, feedback: Feedback) -> float:
        dot, _, before, move, lr, _ = feedback
        norms = math.sqrt(before) * math.sqrt(move)
        if norms == 0:
            return factor
        step = lr * max(-1.0, min(1.0, dot / norms))
        self.memory = math.hypot(self.memory, step)
        if self.memory == 0:
            return factor
        return factor * math.exp(max(-300.0, min(300.0, self.hyper_lr * step / self.memory)))


# additive: the best columns of the paper's table for logistic regression; multiplicative: Martinez-Rubio's value in all
# runs; normalized: the best of 0.05 to 1 for logistic regression and an MLP on scikit-learn's digits, three optimizers
HYPER_LR: dict[RuleName, dict[Family, float]] = {
    "additive": {"sgd": 1e-3, "adam": 1e-5, "other": 1e-5},
    "multiplicative": {"sgd": 0.05, "adam": 0.05, "other": 0.05},
    "normalized": {"sgd": 0.5, "adam": 0.5, "other": 0.5},
}


def make_rule(name: RuleName, hyper_lr: float | None, family: Family) -> Rule:
    """A rule by its name, with the default ``hyper_lr`` of the optimizer's family where none is given.

    Raises:
        ValueError: for an unknown rule or a ``hyper_lr`` that is negative or not finite.
    """
    if name not in get_args(RuleName):
        raise ValueError(f"HypergradientDescent: got rule={name!r}; allowed are {get_args(RuleName)}")
    value = HYPER_LR[name][family] if hyper_lr is None else hyper_lr
    if not (is_real(value) and value >= 0):
        raise ValueError(
            f"HypergradientDescent: got hyper_lr={hyper_lr!r}; give 0 (off) or more, or None for the default"
        )
    rules: dict[RuleName, type[Additive] | type[Multiplicative] | type[Normalized]] = {
        "additive": Additive,
        "multiplicative": Multiplicative,
        "normalized": Normalized,
    }
    return rules[name](float(value))
