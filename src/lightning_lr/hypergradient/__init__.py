"""Hypergradient descent: the learning rate follows the alignment of the gradient with the last update.

If the last update, :math:`-\\alpha d_{t-1}`, and the new gradient :math:`g_t` point apart, a larger step would have
been better; if they point the same way, a smaller one. :math:`g_t \\cdot d_{t-1}` is minus the derivative of the loss
with respect to the learning rate of the last update, so the learning rate can descend by it. ``estimate`` reads it from
the state that the optimizer has anyway, ``rules`` turn it into a factor on the learning rate. Pure torch; in a run it
is ``HypergradientDescent`` that calls both. Baydin et al. 2018 (ICLR), arXiv 1703.04782.
"""

from lightning_lr.hypergradient.alignment import Alignment, read
from lightning_lr.hypergradient.estimate import AlignmentEstimator
from lightning_lr.hypergradient.learner import FactorLearner, Scope
from lightning_lr.hypergradient.rules import HYPER_LR, Additive, Multiplicative, Normalized, Rule, RuleName, make_rule

__all__ = [
    "HYPER_LR",
    "Additive",
    "Alignment",
    "AlignmentEstimator",
    "FactorLearner",
    "Multiplicative",
    "Normalized",
    "Rule",
    "RuleName",
    "Scope",
    "make_rule",
    "read",
]
