"""What an optimizer's last update was, per unit of learning rate: the direction d with update = -lr d.

For SGD with momentum, Adam and AdamW it follows from the state that the optimizer keeps anyway. Plain SGD has no state
and Nesterov's update contains the gradient itself, which is gone by then: both need a copy of the gradient. For any
other optimizer the update is measured: a copy of the parameters before the step, minus the parameters after it. What is
computed here is a few flat vectors at a time, so that nothing of the model's size is allocated on the way.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch._utils import _flatten_dense_tensors
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_lr.shards import local

Family = Literal["sgd", "adam", "other"]
Keeps = Literal["nothing", "gradient", "update"]
"""What has to be copied at each step for the direction to be known at the next."""


def family(optimizer: Optimizer) -> Family:
    """The formula that an optimizer steps by. A subclass may step in any way, so only torch's own classes count."""
    return {SGD: "sgd", Adam: "adam", AdamW: "adam"}.get(type(optimizer), "other")  # type: ignore[return-value]


READ = (
    *("betas", "momentum", "dampening", "nesterov", "eps", "amsgrad"),
    *("weight_decay", "decoupled_weight_decay", "maximize"),
)
"""Hyperparameters other than the learning rate that a step, and so its direction, is made with."""


def settings_of(group: dict[str, Any]) -> dict[str, Any]:
    """What a group's step is made with, as plain numbers; a scheduler may have changed it by the next update."""

    def plain(value: Any) -> Any:
        if isinstance(value, Tensor):
            return float(value)
        return [plain(part) for part in value] if isinstance(value, tuple | list) else value

    return {key: plain(group[key]) for key in READ if key in group}


def keeps(kind: Family, group: dict[str, Any]) -> Keeps:
    """What a group needs copied at each step."""
    if kind == "sgd":
        return "gradient" if group["nesterov"] or group["momentum"] == 0 else "nothing"
    return "nothing" if kind == "adam" else "update"


def penalty(kind: Family, group: dict[str, Any]) -> float:
    """The coefficient of an L2 penalty that the optimizer adds to the gradient; 0 where the decay is decoupled."""
    if kind == "other" or group.get("decoupled_weight_decay", False):
        return 0.0
    return float(group["weight_decay"])


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one vector, in the order of their indices; a view where it is one tensor.

    Complex numbers are two elements, and half precision becomes single.
    """
    if isinstance(tensors[0], DTensor):
        tensors = [local(tensor) for tensor in tensors]
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    # like torch.cat of views, without a Python call for each tensor
    vector = tensors[0].reshape(-1) if len(tensors) == 1 else _flatten_dense_tensors(tensors)  # type: ignore[no-untyped-call]
    return vector.float() if vector.dtype in (torch.float16, torch.bfloat16) else vector


Sources = tuple[list[Tensor], ...]
Formula = Callable[..., Tensor]


def direction(
    kind: Family, group: dict[str, Any], states: Sequence[dict[str, Any]], copies: Sequence[Tensor], lr: float
) -> tuple[Sources, float | Tensor, Formula]:
    """The direction of the last update of some parameters of a group, whose Adam steps are equal.

    Args:
        kind: the optimizer's family.
        group: the settings that the update was made with, see :func:`settings_of`.
        states: the optimizer's state of each parameter.
        copies: what was kept of each parameter, see :func:`keeps`, or all of it in one vector; empty where nothing is.
        lr: learning rate of that update.

    Returns:
        lists of tensors of the parameters, and a number times a function from their (slices of) flat vectors, with that
        of the parameters before them, which is the direction. The function changes none of them. The number is left to
        the sums that are made of the direction, since a pass over a vector costs as much as one of these sums.
    """
    if kind == "sgd":
        if keeps(kind, group) == "nothing":
            return ([s["momentum_buffer"] for s in states],), 1.0, lambda theta, buffer: buffer
        momentum = float(group["momentum"])
        if momentum == 0.0:
            return (list(copies),), 1.0, lambda theta, gradient: gradient
        buffers = [s["momentum_buffer"] for s in states]
        return (list(copies), buffers), 1.0, lambda theta, gradient, buffer: gradient.add(buffer, alpha=momentum)
    if kind == "other":
        return (list(copies),), 1.0, lambda theta, update: update / lr  # before it is squared: lr^2 may be 0 in fp32
    return _adam(group, states, lr)


def _adam(
    group: dict[str, Any], states: Sequence[dict[str, Any]], lr: float
) -> tuple[Sources, float | Tensor, Formula]:
    beta1, beta2 = (float(beta) for beta in group["betas"])
    eps = float(group["eps"])
    decay = float(group["weight_decay"]) if group.get("decoupled_weight_decay", False) else 0.0
    second = "max_exp_avg_sq" if group["amsgrad"] else "exp_avg_sq"
    sources = ([s["exp_avg"] for s in states], [s[second] for s in states])
    step = states[0]["step"]
    on_device = isinstance(step, Tensor) and step.device.type != "cpu"  # reading it would wait for the device
    count = step if on_device else float(step)
    correction1 = 1 - beta1**count
    root2 = (1 - beta2**count).sqrt() if isinstance(count, Tensor) else math.sqrt(1 - beta2**count)
    # a = m/c1 / (sqrt(v)/sqrt(c2) + eps) is sqrt(c2)/c1 times m / (sqrt(v) + sqrt(c2) eps)
    factor = root2 / correction1
    # the update was -lr (a + decay theta_before) and theta = (1 - lr decay) theta_before - lr a
    share = decay / factor

    def formula(theta: Tensor, mean: Tensor, square: Tensor) -> Tensor:
        found = square.sqrt().add_(root2 * eps)  # one vector of scratch memory
        torch.div(mean, found, out=found)
        if not decay:
            return found
        return found.addcmul_(theta, share) if isinstance(share, Tensor) else found.add_(theta, alpha=share)

    return sources, factor / (1 - lr * decay), formula


def batch_key(kind: Family, state: dict[str, Any]) -> object:
    """Parameters with equal keys can be handled together: their number of Adam steps is the same."""
    if kind != "adam":
        return None
    step = state.get("step")
    if isinstance(step, Tensor) and step.device.type != "cpu":
        return id(step)  # unknown without waiting for the device: each alone
    return None if step is None else float(step)


def invertible(kind: Family, group: dict[str, Any], lr: float) -> bool:
    """Whether an update with this learning rate reveals its direction."""
    if kind == "adam":  # at 1 the decay has wiped the parameter out
        return float(group["weight_decay"]) * lr < 1
    return kind == "sgd" or lr > 0


def has_direction(kind: Family, group: dict[str, Any], state: dict[str, Any], copy: Tensor | None) -> bool:
    """Whether what the direction of a parameter's last update follows from is there."""
    if keeps(kind, group) != "nothing" and copy is None:
        return False
    if kind == "sgd":
        return group["momentum"] == 0 or state.get("momentum_buffer") is not None
    return kind == "other" or "exp_avg" in state
