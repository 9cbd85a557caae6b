"""LARS: SGD whose step on each tensor is a fixed share of the tensor's own norm, for very large batches of SGD.

On the CPU the whole update is torch's fused SGD kernel: it computes ``buf = momentum * buf + (1 - dampening) * d``,
so that a dampening of 1 - ratio is LARS in one pass over memory. Elsewhere multi-tensor kernels, with the ratios left
on the device. You, Gitman & Ginsburg 2017, arXiv:1708.03888.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_lr.checks import check_flags, check_not_negative
from lightning_lr.optim.cpu_norms import norms_on_cpu
from lightning_lr.optim.local_tensors import (
    HALF,
    WHOLE,
    Group,
    Piece,
    by_device_and_dtype,
    goes_one_by_one,
    learning_rate,
)
from lightning_lr.optim.norms import trust_ratios
from lightning_lr.optim.trust_ratio import Adapt, TrustRatioOptimizer, check_learning_rate

_NUMBERS = ("momentum", "weight_decay", "trust_coefficient", "eps")


# ---------------------------------------------------------------------- the formula
def _ratio(group: Group, weight: Any, grad: Any) -> Any:
    return group["trust_coefficient"] * weight / (grad + group["weight_decay"] * weight + group["eps"])


def _plain(piece: Piece, ratio: float | Tensor, group: Group) -> None:
    """The formula, one operation after the other; the tests measure the faster ways against it."""
    step = _decayed(piece, group).mul_(ratio)
    if group["momentum"] != 0:
        buffer = piece.state["momentum_buffer"].mul_(group["momentum"]).add_(step)
        step = step.add_(buffer, alpha=group["momentum"]) if group["nesterov"] else buffer
    piece.weight.sub_(step * group["lr"])


def _decayed(piece: Piece, group: Group) -> Tensor:
    grad = -piece.grad if group["maximize"] else piece.grad
    return grad.add(piece.weight, alpha=group["weight_decay"])


class LARS(TrustRatioOptimizer):
    r"""Layer-wise adaptive rate scaling.

    For a tensor w with gradient g, weight decay :math:`\lambda` and momentum m:

    .. math::
        r &= \eta \frac{\|w\|}{\|g\| + \lambda \|w\| + \epsilon} \quad (1 \text{ where a norm is } 0) \\
        v &\leftarrow m v + r (g + \lambda w) \\
        w &\leftarrow w - \gamma v

    The denominator is the paper's (also that of timm and of apex's LARC). MoCo v3, MAE and optax take
    :math:`\|g + \lambda w\|` instead, some versions of pytorch_optimizer :math:`\|g\|` alone, and LARC can clip
    :math:`r / \gamma` at 1; none of these is offered. The paper has the learning rate :math:`\gamma` inside v; here it
    is outside, as in torch's SGD, which differs while the learning rate changes. The momentum buffer starts at 0.

    Args:
        params: parameters, named parameters or parameter groups; a group may have its own value of every argument.
        lr: learning rate :math:`\gamma`; a number or a tensor with one element. Larger than SGD's: the step on w is
            about :math:`\gamma \eta \|w\|`.
        momentum: m, at least 0.
        weight_decay: :math:`\lambda`, of every tensor of the group; put those without decay into a group of their own.
        trust_coefficient: :math:`\eta`, the share of its norm that a tensor moves by at lr 1.
        eps: :math:`\epsilon`, added to the denominator.
        nesterov: Nesterov's momentum.
        adapt: which tensors have a trust ratio: ``"ndim>1"`` (biases and norms do not), ``"all"``, ``"none"``, or a
            function of a parameter, called once when the group is added. The others take steps of SGD at the full lr.
        foreach: None or True for fused and multi-tensor kernels where they can be used; False for one plain operation
            after the other. The results are the same to rounding.
        maximize: ascend instead of descend.

    Raises:
        ValueError: for a negative hyperparameter, Nesterov's momentum without momentum, or an unknown ``adapt``.
        RuntimeError: at a step, for sparse gradients, or parameters flattened by FSDP1, or by DeepSpeed without
            ``ZeROStrategy``.

    Example::

        LARS(model.parameters(), lr=10.0, momentum=0.9, weight_decay=1e-4)

    Source: You, Gitman & Ginsburg 2017, arXiv:1708.03888, algorithm 1.
    """

    # torch 2.13's CPU kernel of SGD with momentum writes wrong values for half-precision tensors of 16 or more elements
    _fused_dtypes = {"cpu": WHOLE, "cuda": HALF + WHOLE}  # noqa: RUF012

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust_coefficient: float = 1e-3,
        eps: float = 1e-8,
        nesterov: bool = False,
        adapt: Adapt = "ndim>1",
        foreach: bool | None = None,
        *,
        maximize: bool = False,
    ) -> None:
        defaults: Group = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust_coefficient": trust_coefficient,
            "eps": eps,
            "nesterov": nesterov,
            "adapt": adapt,
            "foreach": foreach,
            "maximize": maximize,
        }
        self._check(defaults)
        super().__init__(params, defaults | {name: float(defaults[name]) for name in _NUMBERS})

    def _check(self, group: Group) -> None:
        check_learning_rate("LARS", group["lr"])
        check_not_negative("LARS", **{name: group[name] for name in _NUMBERS})
        check_flags("LARS", group["foreach"], nesterov=group["nesterov"], maximize=group["maximize"])
        if group["nesterov"] and group["momentum"] <= 0:
            raise ValueError(
                f"LARS: got nesterov=True with momentum={group['momentum']!r}; it needs a momentum above 0"
            )

    def _shaped_states(self, group: Group) -> Sequence[str]:
        return () if group["momentum"] == 0 else ("momentum_buffer",)

    def _update(self, group: Group, pieces: list[Piece]) -> None:
        for some in by_device_and_dtype(pieces):
            adapted = [piece for piece in some if piece.adapted]
            if goes_one_by_one(adapted):
                self._ratios.append(_one_by_one_on_cpu(adapted, group))
            elif adapted:
                ratios = trust_ratios(adapted, [piece.grad for piece in adapted], partial(_ratio, group))
                self._ratios.append(ratios)
                _step(adapted, ratios, group)
            fixed = [piece for piece in some if not piece.adapted]
            _step(fixed, [None] * len(fixed), group)

    # ------------------------------------------------------------------ over shards
    def _denominator_tensors(self, group: Group, pieces: list[Piece]) -> list[Tensor]:
        return [piece.grad for piece in pieces]

    def _trust_ratio(self, group: Group, weight: Any, other: Any) -> Any:
        return _ratio(group, weight, other)

    def _apply(
        self,
        group: Group,
        pieces: list[Piece],
        compared: list[Tensor] | None,
        ratios: Sequence[float | Tensor | None],
    ) -> None:
        _step(pieces, ratios, group)


# ---------------------------------------------------------------------- the same in fewer kernels
def _one_by_one_on_cpu(pieces: Sequence[Piece], group: Group) -> list[float]:
    """One step of tensors on the host, while the norms' reading has left each in the cache; returns the ratios."""
    by_dampening = group["momentum"] != 0 and not group["nesterov"]
    settings = _kernel_settings(group)
    ratios = []
    for piece in pieces:
        weight, grad = norms_on_cpu(piece.weight, piece.grad)
        ratio = _ratio(group, weight, grad) if weight > 0 and grad > 0 else 1.0
        ratios.append(ratio)
        if by_dampening and piece.fuses and _survives_dampening(ratio):
            buffers = [piece.state["momentum_buffer"]]
            torch._fused_sgd_([piece.weight], [piece.grad], buffers, dampening=1.0 - ratio, **settings)
        else:
            _step([piece], [ratio], group)
    return ratios


def _step(pieces: Sequence[Piece], ratios: Iterable[float | Tensor | None], group: Group) -> None:
    """One step of each piece at its ratio, if it has one, in as few kernels as there are for it."""
    together = []
    for piece, ratio in zip(pieces, ratios, strict=True):
        if not piece.fuses:
            _plain(piece, 1.0 if ratio is None else ratio, group)
        elif ratio is not None and piece.on_host:
            _fused(piece, float(ratio), group)
        else:
            together.append((piece, ratio))
    if together and together[0][0].on_host:
        _fused_sgd([piece for piece, _ in together], group)
    elif together:
        _multi_tensor(together, group)


def _fused(piece: Piece, ratio: float, group: Group) -> None:
    """One tensor on the host."""
    if group["momentum"] == 0:
        _fused_sgd([piece], {**group, "lr": float(group["lr"]) * ratio})
    elif group["nesterov"] or not _survives_dampening(ratio):
        # the kernel's Nesterov step takes the gradient undampened, so the ratio goes into the gradient
        scaled = replace(piece, grad=_decayed(piece, group).mul_(ratio))
        _fused_sgd([scaled], {**group, "weight_decay": 0.0, "maximize": False})
    else:
        _fused_sgd([piece], group, dampening=1.0 - ratio)


def _survives_dampening(ratio: float) -> bool:
    """Whether 1 - (1 - ratio) is still the ratio, far below what fp32 shows and the tests ask of fp64."""
    return abs((1.0 - (1.0 - ratio)) - ratio) <= 1e-12 * ratio


def _fused_sgd(pieces: Sequence[Piece], group: Group, dampening: float = 0.0) -> None:
    torch._fused_sgd_(
        [piece.weight for piece in pieces],
        [piece.grad for piece in pieces],
        [] if group["momentum"] == 0 else [piece.state["momentum_buffer"] for piece in pieces],
        dampening=dampening,
        **_kernel_settings(group),
    )


def _kernel_settings(group: Group) -> dict[str, Any]:
    return {
        "weight_decay": group["weight_decay"],
        "momentum": group["momentum"],
        "lr": float(group["lr"]),
        "nesterov": group["nesterov"],
        "maximize": group["maximize"],
        "is_first_step": False,  # the buffers exist and are 0
    }


def _multi_tensor(pieces_and_ratios: Sequence[tuple[Piece, Any]], group: Group) -> None:
    """Many tensors on a device, from which nothing is read."""
    pieces = [piece for piece, _ in pieces_and_ratios]
    weights, grads = [piece.weight for piece in pieces], [piece.grad for piece in pieces]
    if group["maximize"]:
        grads = list(torch._foreach_neg(grads))
    steps = list(torch._foreach_add(grads, weights, alpha=group["weight_decay"]))
    ratios = [ratio for _, ratio in pieces_and_ratios if ratio is not None]
    if ratios:  # all have one, or none has
        torch._foreach_mul_(steps, ratios)
    if group["momentum"] != 0:
        buffers = [piece.state["momentum_buffer"] for piece in pieces]
        torch._foreach_mul_(buffers, group["momentum"])
        torch._foreach_add_(buffers, steps)
        if group["nesterov"]:
            torch._foreach_add_(steps, buffers, alpha=group["momentum"])
        else:
            steps = buffers
    lr = learning_rate(group, pieces[0])
    if isinstance(lr, Tensor):
        torch._foreach_sub_(weights, torch._foreach_mul(steps, lr))
    else:
        torch._foreach_add_(weights, steps, alpha=-lr)
