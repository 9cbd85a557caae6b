"""Weight decay that carries over between batch sizes and lengths of training: AdamW's normalised decay.

In the paper a weight is multiplied by 1 - eta_t lambda at every update, where eta_t is the schedule, without the base
learning rate alpha; torch multiplies it by 1 - alpha eta_t lambda'. The two functions here give lambda for a batch and
a budget, and torch's lambda'. Loshchilov & Hutter 2019, arXiv:1711.05101. Pure Python.
"""

from __future__ import annotations

import math


def normalized_weight_decay(norm: float, batch_size: float, samples: float) -> float:
    r"""The paper's decay per update for a budget of samples.

    .. math:: \lambda = \lambda_\text{norm} \sqrt{\frac{b}{B T}}

    Args:
        norm: :math:`\lambda_\text{norm}`.
        batch_size: b, samples per update.
        samples: B T, samples of the training set times epochs; with warm restarts those of the cycle, :math:`B T_i`.

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, appendix B.1.
    """
    return norm * math.sqrt(batch_size / samples)


def torch_weight_decay(decay: float, base_lr: float) -> float:
    """What torch's ``weight_decay`` is for the paper's ``decay``: ``decay / base_lr``, 0 where nothing is learned."""
    return decay / base_lr if base_lr > 0 else 0.0
