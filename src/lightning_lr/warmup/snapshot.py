"""A state of the training to come back to: weights, buffers and optimizer state, copied to the host.

Kept at the running best test of an adaptive warm-up whose divergence is to be rolled back. What decides about the next
steps but is no result of training (learning rate, betas, weight decay) is left as it is. Pure torch.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.saved_state import ANYTHING, TENSOR, by, keys, later, several


class Snapshot:
    """Copies of all parameters, buffers and optimizer states, on the host.

    Args:
        tensors: parameters and buffers, by name.
        optimizers: of each optimizer the ``state`` of its ``state_dict()``.
    """

    def __init__(self, tensors: dict[str, Tensor], optimizers: list[dict[Any, Any]]) -> None:
        self._tensors = tensors
        self._optimizers = optimizers

    @classmethod
    def of(cls, module: nn.Module, *optimizers: Optimizer) -> Snapshot:
        """Copy the present state; waits for the device."""
        tensors = {name: _copied(tensor) for name, tensor in _tensors_of(module)}
        return cls(tensors, [_copied(optimizer.state_dict()["state"]) for optimizer in optimizers])

    def restore(self, module: nn.Module, *optimizers: Optimizer) -> None:
        """Bring the state back; hyperparameters stay. Parameters that came later are left as they are."""
        with torch.no_grad():
            for name, tensor in _tensors_of(module):
                if name in self._tensors:
                    tensor.copy_(self._tensors[name])
        for optimizer, state in zip(optimizers, self._optimizers, strict=True):
            groups = optimizer.state_dict()["param_groups"]
            optimizer.load_state_dict({"state": _copied(state), "param_groups": groups})

    SAVED: ClassVar = keys(
        {
            "tensors": by(str, TENSOR),
            "optimizers": later(several(by(object, ANYTHING))),
            "optimizer": later(by(object, ANYTHING)),  # of 0.1.0
        }
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Tensors and plain values, for :meth:`from_state`."""
        return {"tensors": self._tensors, "optimizers": self._optimizers}

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Snapshot:
        """The snapshot that :meth:`state_dict` was taken of."""
        several = state["optimizers"] if "optimizers" in state else [state["optimizer"]]  # one in 0.1.0
        return cls(dict(state["tensors"]), [dict(optimizer) for optimizer in several])


def all_finite(module: nn.Module) -> bool:
    """Whether every parameter and buffer is finite; waits for the device."""
    checks = [t.detach().isfinite().all() for _, t in _tensors_of(module) if t.is_floating_point()]
    return not checks or bool(torch.stack([check.to(checks[0].device) for check in checks]).all())


def _tensors_of(module: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from module.named_parameters()
    yield from module.named_buffers()


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
