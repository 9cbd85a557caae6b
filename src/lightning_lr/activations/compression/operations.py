"""Which operation saves a tensor, and what follows from it: keep it, round it, or round it finely.

A pack hook sees a tensor and not what it is saved for. :class:`Operations` is a mode that runs with it and knows
the torch function that is running. From this and from the tensor's own history follows the rule:

- Weights stay as they are: parameters, buffers, their copies by autocast (found by walking back from the copy to the
  leaf), and whatever is the weight operand of a linear or convolution, computed or not.
- What a loss saves (logits, targets) and the statistics of norms stay: they are small, and everything hangs on them.
- Query and key of fused attention get at least 8 bits. Its backward computes the softmax anew from them and the exact
  log-sum-exp, so that their error grows exponentially with the size of the logits.
- What no torch function saves (a custom autograd function, the input of a checkpointed segment) gets at least 8 bits.
- Vectors stay: they are statistics, biases or losses far more often than activations.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lightning_lr.activations.segment import saving_segment_inputs

FINE_BITS = 8
"""Least bits where errors are amplified, or where nothing is known about the use."""

LOSSES = {"cross_entropy", "binary_cross_entropy", "binary_cross_entropy_with_logits", "kl_div", "log_softmax"}
WEIGHTED = {"linear", "bilinear", "conv1d", "conv2d", "conv3d", "embedding", "embedding_bag"}
WEIGHTED |= {"conv_transpose1d", "conv_transpose2d", "conv_transpose3d"}
SAME_NUMBERS = {
    "ToCopy", "T", "Transpose", "Permute", "View", "UnsafeView", "ReshapeAlias", "Expand", "Clone", "Alias", "Slice",
    "Select", "Split", "Unbind", "Unsqueeze", "Squeeze", "AsStrided", "Unflatten", "ConstantPadNd",
}  # fmt: skip
"""Backward nodes of operations whose result holds numbers of their input; without ``Backward0``."""


@dataclass(frozen=True)
class Operation:
    """A torch function that is running, with its arguments."""

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def operand(self, position: int, name: str) -> Tensor | None:
        """An argument that is a tensor, however it was passed."""
        value = self.args[position] if position < len(self.args) else self.kwargs.get(name)
        return value if isinstance(value, Tensor) else None

    @property
    def is_loss(self) -> bool:
        """Whether it ends the network."""
        return self.name.endswith("_loss") or self.name in LOSSES

    @property
    def is_norm(self) -> bool:
        """Whether it saves statistics in addition to its input."""
        return self.name.endswith(("_norm", "_norm_")) and self.name != "weight_norm"


class Operations(TorchFunctionMode):
    """Knows the torch functions that are running, outermost first, while it is entered."""

    def __init__(self) -> None:
        super().__init__()
        self.running: list[Operation] = []

    def __torch_function__(
        self, func: Callable[..., Any], kinds: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        self.running.append(Operation(getattr(func, "__name__", ""), args, kwargs))
        try:
            if func is F.multi_head_attention_forward:
                with self:
                    return _seen_inside(*args, **kwargs)
            return func(*args, **kwargs)
        finally:
            self.running.pop()


def least_bits(tensor: Tensor, running: list[Operation]) -> int | None:
    """The least bits for a tensor of real numbers that is saved now: 0, ``FINE_BITS``, or None to keep it as it is."""
    if tensor.ndim < 2 or is_weight(tensor) or any(operation.is_loss for operation in running):
        return None
    if not running or saving_segment_inputs():
        return FINE_BITS
    operation = running[-1]
    if operation.is_norm:
        given = operation.operand(0, "input")
        return 0 if given is None or tensor.shape == given.shape else None
    if operation.name in WEIGHTED:
        weight = operation.operand(2 if operation.name == "bilinear" else 1, "weight")
        return None if weight is not None and holds_numbers_of(tensor, weight) else 0
    if operation.name == "scaled_dot_product_attention":
        return _least_bits_in_attention(tensor, operation)
    return 0


def integer_bounds(running: list[Operation]) -> tuple[int, int] | None:
    """Least and largest value of integers that are saved now, where the operation has them."""
    for operation in running:
        if operation.name.startswith("max_pool") or operation.name.startswith("adaptive_max_pool"):
            given = operation.operand(0, "input")
            if given is not None:
                return 0, prod(given.shape[2:])
    return None


def is_weight(tensor: Tensor) -> bool:
    """Whether a tensor holds the numbers of a parameter: itself, a view of it, or a copy in another type."""
    return isinstance(tensor, torch.nn.Parameter) or any(
        isinstance(getattr(node, "variable", None), torch.nn.Parameter) for node in _sources(tensor)
    )


def holds_numbers_of(tensor: Tensor, operand: Tensor) -> bool:
    """Whether ``tensor``, saved by an operation, is its ``operand``: a view of it or a copy in another type."""
    if tensor.untyped_storage()._cdata == operand.untyped_storage()._cdata:
        return same_place(tensor, operand)
    if not tensor.requires_grad:  # a cast leaves no trace then but the shape
        same = tensor.shape in (operand.shape, operand.shape[::-1])
        return same and not operand.requires_grad and tensor.dtype != operand.dtype
    made = operand.grad_fn
    return any(
        node is made if made is not None else getattr(node, "variable", None) is operand for node in _sources(tensor)
    )


def same_place(tensor: Tensor, operand: Tensor) -> bool:
    """Whether two views of one storage begin at the same element."""
    return tensor.storage_offset() == operand.storage_offset()


def _least_bits_in_attention(tensor: Tensor, operation: Operation) -> int | None:
    for position, name in enumerate(("query", "key")):
        operand = operation.operand(position, name)
        if operand is not None and holds_numbers_of(tensor, operand):
            return FINE_BITS
    return 0 if tensor.requires_grad else None  # log-sum-exp, masks


def _sources(tensor: Tensor) -> Iterator[Any]:
    """The backward nodes behind a tensor, as far as they only pass its numbers on."""
    node = tensor.grad_fn
    for _ in range(16):
        if node is None:
            return
        yield node
        name = type(node).__name__.rstrip("0123456789").removesuffix("Backward")
        if name not in SAME_NUMBERS:
            return
        node = node.next_functions[0][0]


def _without_dispatch(function: Any) -> Any:
    """``function`` of torch.nn.functional, which does not hand itself to the modes that are on.

    A Python function of torch gives itself to a mode as a whole, and what it calls is then invisible to the mode. In
    this copy the question whether there is a mode is answered with no; nobody else's function changes.
    """
    names = {**function.__globals__, "has_torch_function": lambda arguments: False}
    copy = types.FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


_seen_inside = _without_dispatch(F.multi_head_attention_forward)
