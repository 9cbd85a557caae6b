"""What an optimizer's last update was, per unit of learning rate: the direction d with update = -lr d.

For SGD with momentum, Adam and AdamW it follows from the state that the optimizer keeps anyway. Plain SGD has no state
and Nesterov's update contains the gradient itself, which is gone by then: both need a copy of the gradient. For any
other optimizer the update is measured: a copy of the parameters before the step, minus the parameters after it. What is
computed here is a few flat vectors at a time, so that nothing of the model's size is allocated on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import SGD, Adam, AdamW, Optimizer

from lightning_lr.hypergradient.packing import Number, moved
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


def reader(optimizer: Optimizer) -> tuple[tuple[str, ...], Callable[[dict[str, Any]], tuple[Any, ...]]]:
    """Those of ``READ`` that the groups have, without the decay, which may be another at every step; and what reads
    them. Torch's own optimizers read each at every step, and give it to groups that come without."""
    keys = tuple(key for key in READ if key != "weight_decay")
    if family(optimizer) == "other":
        return keys, lambda group: tuple(map(group.get, keys))
    keys = tuple(key for key in keys if key in optimizer.defaults)
    return keys, itemgetter(*keys)


def plain(value: Any) -> Any:
    """A value of a group that stays what it is, as a step's settings: a scheduler may have changed it by the next."""
    kind = type(value)
    if kind is float or kind is bool or value is None:
        return value
    if kind is tuple or kind is list:
        return [plain(part) for part in value]
    return float(value) if isinstance(value, Tensor) else value


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


def decoupled_decay(kind: Family, settings: dict[str, Any]) -> float:
    """The weight decay that an update was made with besides the gradient, as in AdamW."""
    return float(settings["weight_decay"]) if kind == "adam" and settings.get("decoupled_weight_decay", False) else 0.0


def pieces(tensors: Sequence[Tensor]) -> list[Tensor]:
    """What this rank holds of each tensor, in real numbers: complex ones are two."""
    if isinstance(tensors[0], DTensor):
        tensors = [local(tensor) for tensor in tensors]
    if tensors[0].is_complex():
        tensors = [torch.view_as_real(tensor.resolve_conj()) for tensor in tensors]
    return list(tensors)


def flat(tensors: Sequence[Tensor]) -> Tensor:
    """All elements in one vector, in the order of their indices; a view where it is one tensor.

    Complex numbers are two elements, and half precision becomes single.
    """
    parts = pieces(tensors)
    vector = parts[0].reshape(-1) if len(parts) == 1 else torch.cat([part.reshape(-1) for part in parts])
    return vector.float() if vector.dtype in (torch.float16, torch.bfloat16) else vector


def add(to: Tensor, tensor: Tensor, factor: Number, out: Tensor | None) -> Tensor:
    """``to + factor tensor``, of a factor that may be a column with one for each row."""
    if isinstance(factor, Tensor):
        return torch.addcmul(to, tensor, factor, out=out)
    return torch.add(to, tensor, alpha=factor, out=out)


Formula = Callable[[Tensor, Sequence[Tensor], Sequence[Number], Tensor | None], Tensor]
"""From the parameters' elements, those of the sources, the numbers and, unless new memory is wanted, where to write."""


class Direction(NamedTuple):
    """The direction of the last update of some tensors, as a weight times a formula.

    The weight is left to the sums that are made of the direction, since a pass over a vector costs as much as one of
    these sums.
    """

    sources: list[list[Tensor]]
    """Tensors of each parameter that the formula is of."""
    numbers: list[Number]
    """What else it is of."""
    formula: Formula
    weight: Number = 1.0
    fill: float = 0.0
    """What the formula finds finite of the second source where the first is 0."""


def direction(
    kind: Family,
    settings: dict[str, Any],
    number: Callable[[Callable[[dict[str, Any]], float]], Number],
    states: Sequence[dict[str, Any]],
    copies: Sequence[Tensor],
    lr: Number,
    decay: Number,
) -> Direction:
    """The direction of the last update of some parameters, in whose groups the same formula holds.

    Args:
        kind: the optimizer's family.
        settings: that the update of one of the groups was made with, see ``LastUpdate.settings``.
        number: the number of each parameter, from a function of the settings of its group.
        states: the optimizer's state of each parameter.
        copies: what was kept of each parameter, see :func:`keeps`; empty where nothing is.
        lr: learning rate of that update.
        decay: its decoupled weight decay.
    """
    if kind == "adam":
        return _adam(settings, number, states, lr, decay)
    if kind == "other":
        return Direction([list(copies)], [lr], _unscaled)
    buffers = [state["momentum_buffer"] for state in states] if settings["momentum"] != 0 else []
    if keeps(kind, settings) == "nothing":
        return Direction([buffers], [], _as_it_is)
    if settings["momentum"] == 0:
        return Direction([list(copies)], [], _as_it_is)
    return Direction([list(copies), buffers], [number(_momentum)], _nesterov)


def _as_it_is(theta: Tensor, sources: Sequence[Tensor], numbers: Sequence[Number], out: Tensor | None) -> Tensor:
    return sources[0]


def _unscaled(theta: Tensor, sources: Sequence[Tensor], numbers: Sequence[Number], out: Tensor | None) -> Tensor:
    return torch.div(sources[0], numbers[0], out=out)  # before it is squared: lr^2 may be 0 in fp32


def _nesterov(theta: Tensor, sources: Sequence[Tensor], numbers: Sequence[Number], out: Tensor | None) -> Tensor:
    return add(sources[0], sources[1], numbers[0], out)


def _momentum(settings: dict[str, Any]) -> float:
    return float(settings["momentum"])


def _adam(
    settings: dict[str, Any],
    number: Callable[[Callable[[dict[str, Any]], float]], Number],
    states: Sequence[dict[str, Any]],
    lr: Number,
    decay: Number,
) -> Direction:
    beta1, beta2, eps = (number(of) for of in (_beta1, _beta2, _eps))
    second = "max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"
    sources = [[state["exp_avg"] for state in states], [state[second] for state in states]]
    steps = _steps(states, sources[0][0].device)
    root2 = (1 - beta2**steps).sqrt()
    # a = m/c1 / (sqrt(v)/sqrt(c2) + eps) is sqrt(c2)/c1 times m / (sqrt(v) + sqrt(c2) eps)
    factor = root2 / (1 - beta1**steps)
    if not isinstance(decay, Tensor) and decay == 0.0:
        return Direction(sources, [root2 * eps], _adam_step, factor, fill=1.0)
    # the update was -lr (a + decay theta_before) and theta = (1 - lr decay) theta_before - lr a
    return Direction(sources, [root2 * eps, decay / factor], _adam_step, factor / (1 - lr * decay), fill=1.0)


def _adam_step(theta: Tensor, sources: Sequence[Tensor], numbers: Sequence[Number], out: Tensor | None) -> Tensor:
    mean, square = sources
    found = torch.sqrt(square, out=out).add_(numbers[0])  # one vector of scratch memory
    torch.div(mean, found, out=found)
    return found if len(numbers) == 1 else add(found, theta, numbers[1], found)


def _beta1(settings: dict[str, Any]) -> float:
    return float(settings["betas"][0])


def _beta2(settings: dict[str, Any]) -> float:
    return float(settings["betas"][1])


def _eps(settings: dict[str, Any]) -> float:
    return float(settings["eps"])


def _steps(states: Sequence[dict[str, Any]], device: torch.device) -> Tensor:
    """Adam's number of steps of each parameter, which is not read: it may be on the device."""
    steps = [state["step"] for state in states]
    if not all(isinstance(step, Tensor) for step in steps):
        steps = [torch.as_tensor(step, dtype=torch.float32) for step in steps]
    stacked = torch.stack(steps).to(torch.float32 if device.type == "mps" else torch.float64)
    return moved(stacked, device) if stacked.device.type == "cpu" else stacked


def invertible(kind: Family, group: dict[str, Any], lr: float) -> bool:
    """Whether an update with this learning rate reveals its direction."""
    if kind == "adam":  # at 1 the decay has wiped the parameter out
        return float(group["weight_decay"]) * lr < 1
    return kind == "sgd" or lr > 0


def needs(kind: Family, settings: dict[str, Any]) -> tuple[bool, str | None]:
    """What a parameter's last direction follows from: whether a copy, and which entry of the optimizer's state."""
    if kind == "adam":
        return False, "exp_avg"
    return keeps(kind, settings) != "nothing", "momentum_buffer" if kind == "sgd" and settings["momentum"] else None
