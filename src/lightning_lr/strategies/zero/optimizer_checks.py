"""Whether an optimizer makes the same step on shards as on whole tensors: tried out on a matrix before the engine is.

ZeRO hands the optimizer flat pieces of the parameters, other ones on every rank. That is right for one that treats
each element by itself. One that looks at a tensor's shape or norm (AdamP, Adafactor, Muon, layer-wise rates) or sums
over all parameters (Prodigy, D-Adaptation, DoG) continues without an error, and trains other weights than under DDP.
"""

from __future__ import annotations

from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.optim.trust_ratio import TrustRatioOptimizer
from lightning_lr.optimizer_copy import optimizer_like

ROWS, COLUMNS, CUT, STEPS = 4, 6, 10, 5


def check_acts_on_elements(caller: str, optimizer: Optimizer) -> None:
    """Refuse an optimizer whose step on shards is another one than on whole tensors.

    LARS and LAMB know of shards, and DeepSpeed's own are made for them. One that cannot be tried out (its step wants
    more than gradients) is let through.

    Raises:
        MisconfigurationException: with which and what to do.
    """
    if isinstance(optimizer, TrustRatioOptimizer) or type(optimizer).__module__.startswith("deepspeed."):
        return
    if differs_on_shards(optimizer):
        raise MisconfigurationException(
            f"{caller}: {type(optimizer).__name__} looks at a tensor's shape or norm, or at all tensors at once, and "
            "its step on a shard is another one than on the whole; use one that treats each element by itself (SGD, "
            "Adam, AdamW, ...), lightning_lr.optim.LARS or LAMB, which know of shards, or strategy='ddp'"
        )


def differs_on_shards(optimizer: Optimizer) -> bool:
    """Whether some steps on a matrix end elsewhere than those on its two parts, each with an optimizer of its own.

    The optimizer itself is not touched: twins of it, with its settings and without its state, make the steps. Their
    first gradient is orthogonal to every row of the matrix, which is when AdamP projects.
    """
    group = next((group for group in optimizer.param_groups if group["params"]), None)
    if group is None:
        return False
    generator = torch.Generator().manual_seed(0)
    matrix, gradient = torch.randn(2, ROWS, COLUMNS, generator=generator, dtype=torch.float64).unbind()
    gradient -= matrix * (gradient * matrix).sum(1, keepdim=True) / matrix.square().sum(1, keepdim=True)
    noise = 0.1 * torch.randn(STEPS, ROWS, COLUMNS, generator=generator, dtype=torch.float64)
    gradients = gradient + noise.index_fill_(0, torch.tensor(0), 0.0)
    try:
        whole = _moved(optimizer, group, matrix, gradients).flatten()
    except Exception:  # whatever an unknown optimizer asks for that is not there
        return False
    try:
        parts = [
            _moved(optimizer, group, matrix.flatten()[part], gradients.flatten(1)[:, part])
            for part in (slice(CUT), slice(CUT, None))
        ]
    except Exception:  # a matrix it takes, and a vector it does not
        return True
    return not torch.allclose(torch.cat(parts), whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))


def _moved(optimizer: Optimizer, group: dict[str, Any], start: Tensor, gradients: Tensor) -> Tensor:
    """How far a twin of the optimizer, which shares nothing that it writes to, moves one parameter."""
    device = group["params"][0].device
    parameter = torch.nn.Parameter(start.clone().to(device))
    lr = {} if group.get("lr", 1.0) else {"lr": group["lr"] + 0.01}  # a warm-up may begin at 0
    twin = optimizer_like(optimizer, group, parameter, **lr)
    with torch.random.fork_rng(devices=[]):
        for gradient in gradients:
            parameter.grad = gradient.clone().to(device)
            twin.step()
    return (parameter.detach().cpu() - start).detach()
