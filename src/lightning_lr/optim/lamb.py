"""LAMB: Adam whose step on each tensor has the length of the tensor, for very large batches of Adam.

The step before it is scaled comes from torch's fused Adam kernel, run on scratch memory that holds the decayed weights
instead of on the weights: it leaves there what the ratio is to be applied to, and updates both moments in the same
pass. Tensors without a ratio take torch's fused AdamW, which LAMB is at a ratio of 1. You et al. 2020,
arXiv:1904.00962.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_lr.checks import check_flags, check_not_negative, is_list, is_real
from lightning_lr.optim.local_tensors import (
    Group,
    Piece,
    by_device_and_dtype,
    goes_one_by_one,
    learning_rate,
    one_by_one_on_cpu,
)
from lightning_lr.optim.norms import trust_ratios
from lightning_lr.optim.trust_ratio import Adapt, TrustRatioOptimizer, check_learning_rate


# ---------------------------------------------------------------------- the formula
def _plain_step(piece: Piece, group: Group) -> Tensor:
    """The formula, one operation after the other: ``-u``, both moments updated. The tests measure the fused kernel
    against it."""
    beta1, beta2 = group["betas"]
    mean, square, step = piece.state["exp_avg"], piece.state["exp_avg_sq"], piece.state["step"]
    grad = -piece.grad if group["maximize"] else piece.grad
    updates = step.item() if step.device.type == "cpu" else step.double()
    mean.lerp_(grad, 1 - beta1)
    square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
    denominator = (square / (1 - beta2**updates)).sqrt_().add_(group["eps"])
    return mean.div(denominator.mul_(beta1**updates - 1)).sub_(piece.weight, alpha=group["weight_decay"])


class LAMB(TrustRatioOptimizer):
    r"""Layer-wise adaptive moments.

    For a tensor w with gradient g, at its update t:

    .. math::
        m &\leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2 \\
        u &= \frac{m / (1 - \beta_1^t)}{\sqrt{v / (1 - \beta_2^t)} + \epsilon} + \lambda w \\
        w &\leftarrow w - \gamma \frac{\|w\|}{\|u\|} u \quad (\text{ratio } 1 \text{ where a norm is } 0)

    This is the paper's algorithm 2 with :math:`\phi(z) = z` and both moments corrected for their bias. Other versions
    clamp the norm of w at 10, correct one moment or none, keep the decay out of the ratio, or clip the gradient's
    global norm to 1 by default; here clipping is the Trainer's ``gradient_clip_val``.

    Args:
        params: parameters, named parameters or parameter groups; a group may have its own value of every argument.
        lr: learning rate :math:`\gamma`, the share of its norm that a tensor moves by; a number or a tensor with one
            element.
        betas: :math:`\beta_1, \beta_2`, in [0, 1).
        eps: :math:`\epsilon`, at least 0.
        weight_decay: :math:`\lambda`, of every tensor of the group; put those without decay into a group of their own.
        adapt: which tensors have a trust ratio: ``"ndim>1"`` (biases and norms do not), ``"all"``, ``"none"``, or a
            function of a parameter, called once when the group is added. The others take steps of AdamW.
        foreach: None or True for fused and multi-tensor kernels where they can be used; False for one plain operation
            after the other. The results are the same to rounding.
        maximize: ascend instead of descend.
        capturable: accepted for uniformity with torch's Adam: on a GPU nothing is read back in any case, so a step
            can be captured in a graph (with ``lr`` as a tensor, if it is to change).

    Raises:
        ValueError: for a negative hyperparameter, a beta outside [0, 1), or an unknown ``adapt``.
        RuntimeError: at a step, for sparse gradients, or parameters flattened by FSDP1, or by DeepSpeed without
            ``ZeROStrategy``.

    Example::

        LAMB(model.parameters(), lr=2e-3, weight_decay=0.01)

    Source: You et al. 2020, arXiv:1904.00962v5, algorithm 2.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapt: Adapt = "ndim>1",
        foreach: bool | None = None,
        *,
        maximize: bool = False,
        capturable: bool = False,
    ) -> None:
        defaults: Group = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "foreach": foreach,
            "maximize": maximize,
            "capturable": capturable,
        }
        self._check(defaults)
        super().__init__(params, defaults | {"eps": float(eps), "weight_decay": float(weight_decay)})

    def _check(self, group: Group) -> None:
        check_learning_rate("LAMB", group["lr"])
        check_not_negative("LAMB", eps=group["eps"], weight_decay=group["weight_decay"])
        check_flags("LAMB", group["foreach"], maximize=group["maximize"], capturable=group["capturable"])
        betas = group["betas"]
        if not is_list(betas) or len(betas) != 2:
            raise ValueError(f"LAMB: got betas={betas!r}; give two numbers in [0, 1), for example (0.9, 0.999)")
        for index, beta in enumerate(betas):
            if not (is_real(beta) and 0.0 <= beta < 1.0):
                raise ValueError(f"LAMB: got betas[{index}]={beta!r}; give a number in [0, 1)")

    def _shaped_states(self, group: Group) -> Sequence[str]:
        return ("exp_avg", "exp_avg_sq")

    def _other_states(self, parameter: Tensor) -> dict[str, Tensor]:
        return {"step": torch.zeros((), dtype=torch.float32, device=parameter.device)}

    def _update(self, group: Group, pieces: list[Piece]) -> None:
        self._advance_step(group, pieces)
        for some in by_device_and_dtype(pieces):
            _adamw([piece for piece in some if not piece.adapted], group)
            adapted = [piece for piece in some if piece.adapted]
            # tensors taken in turn share one piece of memory, which stays in the cache and need not be found anew
            sizes = [piece.weight.numel() for piece in adapted]
            room = adapted[0].weight.new_empty(max(sizes)) if len(sizes) > 1 and goes_one_by_one(adapted) else None
            for together in one_by_one_on_cpu(adapted):
                self._ratios.append(_adapted(together, group, room))

    def _advance_step(self, group: Group, pieces: list[Piece]) -> None:
        for piece in pieces:
            if piece.state["step"].device != piece.weight.device:  # loaded from a checkpoint of another device
                step = piece.state["step"].to(piece.weight.device)
                piece.state["step"] = self.state[piece.parameter]["step"] = step
        for some in by_device_and_dtype(pieces):
            steps = [piece.state["step"] for piece in some]
            if some[0].segment is not None:  # the segments of a flat vector share its step
                steps = list({id(step): step for step in steps}.values())
            torch._foreach_add_(steps, 1)

    # ------------------------------------------------------------------ over shards
    def _denominator_tensors(self, group: Group, pieces: list[Piece]) -> list[Tensor]:
        return _steps(pieces, group, None)

    def _trust_ratio(self, group: Group, weight: Any, other: Any) -> Any:
        return weight / other

    def _apply(
        self,
        group: Group,
        pieces: list[Piece],
        compared: list[Tensor] | None,
        ratios: Sequence[float | Tensor | None],
    ) -> None:
        if compared is None:
            _adamw(pieces, group)
            return
        lr = learning_rate(group, pieces[0])
        scales: list[Any] = [ratio * lr for ratio in ratios if ratio is not None]
        torch._foreach_mul_(compared, scales)
        torch._foreach_add_([piece.weight for piece in pieces], compared)


# ---------------------------------------------------------------------- the same in fewer kernels
def _adapted(pieces: list[Piece], group: Group, room: Tensor | None) -> Tensor | list[float]:
    """The update of tensors with a trust ratio; returns their ratios."""
    steps = _steps(pieces, group, room)
    ratios = trust_ratios(pieces, steps, operator.truediv)
    if isinstance(ratios, Tensor):
        torch._foreach_mul_(steps, (ratios * learning_rate(group, pieces[0])).unbind())
        torch._foreach_add_([piece.weight for piece in pieces], steps)
    else:
        pieces[0].weight.add_(steps[0], alpha=float(group["lr"]) * ratios[0])
    return ratios


def _steps(pieces: list[Piece], group: Group, room: Tensor | None) -> list[Tensor]:
    """``-u`` of each piece, the moments updated."""
    fused = [piece for piece in pieces if piece.fuses]
    scratch = iter(_fused_steps(fused, group, room) if fused else [])
    # in the order of the pieces, which is that of every rank, also where they differ in what fuses
    return [next(scratch) if piece.fuses else _plain_step(piece, group) for piece in pieces]


def _fused_steps(pieces: Sequence[Piece], group: Group, room: Tensor | None) -> list[Tensor]:
    """``-u`` of each piece: the kernel takes Adam's step at lr 1 from scratch memory that holds ``-lambda w``."""
    weights = [piece.weight for piece in pieces]
    if room is None:
        scratch = list(torch._foreach_mul(weights, -group["weight_decay"]))
    else:
        out = torch.as_strided(room, weights[0].shape, weights[0].stride())
        scratch = [torch.mul(weights[0], -group["weight_decay"], out=out)]
    _fused(torch._fused_adam_, scratch, pieces, group, lr=1.0, weight_decay=0.0)
    return scratch


def _adamw(pieces: Sequence[Piece], group: Group) -> None:
    """The update of tensors without a trust ratio, which is AdamW's."""
    fused = [piece for piece in pieces if piece.fuses]
    if fused:
        weights = [piece.weight for piece in fused]
        lr = learning_rate(group, fused[0])
        _fused(torch._fused_adamw_, weights, fused, group, lr=lr, weight_decay=group["weight_decay"])
    for piece in pieces:
        if not piece.fuses:
            piece.weight.add_(_plain_step(piece, group).mul_(group["lr"]))


def _fused(
    kernel: Callable[..., Any], targets: list[Tensor], pieces: Sequence[Piece], group: Group, **arguments: Any
) -> None:
    beta1, beta2 = group["betas"]
    kernel(
        targets,
        [piece.grad for piece in pieces],
        [piece.state["exp_avg"] for piece in pieces],
        [piece.state["exp_avg_sq"] for piece in pieces],
        [],
        [piece.state["step"] for piece in pieces],
        beta1=beta1,
        beta2=beta2,
        eps=group["eps"],
        amsgrad=False,
        maximize=group["maximize"],
        **arguments,
    )
