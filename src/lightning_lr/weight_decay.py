"""Weight decay that carries over between batch sizes and lengths of training: AdamW's normalised decay.

In the paper a weight is multiplied by 1 - eta_t lambda at every update, where eta_t is the schedule, without the base
learning rate alpha; torch multiplies it by 1 - alpha eta_t lambda'. The two functions here give lambda for a batch and
a budget, and torch's lambda'. Loshchilov & Hutter 2019, arXiv:1711.05101.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.optimizer_copy import optimizer_like

TRIAL_LR, TRIAL_DECAY, TRIAL_STEPS = 0.01, 0.5, 3


def normalized_weight_decay(norm: float, batch_size: float, samples: float) -> float:
    r"""The paper's decay per update for a budget of samples.

    .. math:: \lambda = \lambda_\text{norm} \sqrt{\frac{b}{B T}}

    Args:
        norm: :math:`\lambda_\text{norm}`.
        batch_size: b, samples per update.
        samples: B T, samples of the training set times epochs; with warm restarts those of the cycle, :math:`B T_i`.

    Example:
        >>> [round(normalized_weight_decay(0.025, 100, samples), 6) for samples in (100, 10_000, 1_000_000)]
        [0.025, 0.0025, 0.00025]

    Source: Loshchilov & Hutter 2019, arXiv:1711.05101, appendix B.1.
    """
    return norm * math.sqrt(batch_size / samples)


def torch_weight_decay(decay: float, base_lr: float) -> float:
    """What torch's ``weight_decay`` is for the paper's ``decay``: ``decay / base_lr``, 0 where nothing is learned.

    Example:
        >>> [torch_weight_decay(0.00025, base_lr) for base_lr in (0.001, 0.1, 0.0)]
        [0.25, 0.0025, 0.0]
    """
    return decay / base_lr if base_lr > 0 else 0.0


def torch_weight_decays(decay: float, own: Sequence[Any], base_lr: Iterable[float]) -> list[Any]:
    """:func:`torch_weight_decay` of each group; one whose own decay is 0 keeps it.

    Example:
        >>> torch_weight_decays(0.00025, [0.01, 0.0, 0.01], [0.001, 0.1, 0.0])
        [0.25, 0.0, 0.0]
    """
    return [torch_weight_decay(decay, lr) if before else before for before, lr in zip(own, base_lr, strict=False)]


def decays_apart_from_step(optimizer: Optimizer, group: dict[str, Any]) -> bool:
    r"""Whether an optimizer's decay is AdamW's, which does not pass through the step.

    .. math:: w_{t+1} = (1 - \alpha \lambda) w_t + u_t \quad\text{or}\quad w_{t+1} = (1 - \alpha \lambda) (w_t + u_t),
        \qquad u_t \text{ the steps without decay}

    It is tried out: copies of the optimizer make a few steps on a small matrix (a vector, where it takes no matrix)
    with the same gradients, with and without decay. SGD with momentum, Adam, LAMB and Prodigy (whose decay grows with
    its estimate of the learning rate) fail; AdamW, Muon and Lion pass.

    Args:
        optimizer: any torch optimizer; it does not change.
        group: which of its parameter groups.

    Returns:
        What its group says (``decoupled_weight_decay``, ``weight_decouple``) where it cannot be tried out.

    Example:
        >>> weight = nn.Parameter(torch.ones(2, 3))
        >>> adam, adamw = torch.optim.Adam([weight]), torch.optim.AdamW([weight])
        >>> [decays_apart_from_step(each, each.param_groups[0]) for each in (adam, adamw)]
        [False, True]
    """
    if group.get("fixed_decay"):  # pytorch_optimizer: not times the learning rate
        return False
    for shape in ((4, 6), (24,)):
        try:
            plain, decayed = _path(optimizer, group, shape, 0.0), _path(optimizer, group, shape, TRIAL_DECAY)
        except Exception:  # whatever an unknown optimizer asks for that is not there
            continue
        keep = 1 - TRIAL_LR * TRIAL_DECAY
        before = after = plain[0]
        for here, there in pairwise(plain):
            before, after = keep * before + (there - here), keep * (after + there - here)
        return any(torch.allclose(decayed[-1], expected, rtol=0, atol=1e-6) for expected in (before, after))
    return bool(group.get("decoupled_weight_decay") or group.get("weight_decouple"))


def _path(optimizer: Optimizer, group: dict[str, Any], shape: tuple[int, ...], decay: float) -> list[Tensor]:
    """A small parameter before and after each of a few steps."""
    generator = torch.Generator().manual_seed(0)
    parameter = nn.Parameter(torch.randn(shape, generator=generator).to(group["params"][0].device))
    copy = optimizer_like(optimizer, group, parameter, lr=TRIAL_LR, weight_decay=decay)
    path = [parameter.detach().clone()]
    with torch.random.fork_rng(devices=()):
        for _ in range(TRIAL_STEPS):
            parameter.grad = torch.randn(shape, generator=generator).to(parameter.device)
            copy.step()
            path.append(parameter.detach().clone())
    return path
