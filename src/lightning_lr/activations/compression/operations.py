"""Which operation saves a tensor, and what follows from it: keep it, round it, or round it finely.

A pack hook sees a tensor and not what it is saved for. :class:`Operations` is a mode that runs with it and knows
the torch function that is running. From this and from the tensor's own history follows the rule:

- Weights stay as they are: parameters, buffers, their copies by autocast (found by walking back from the copy to the
  leaf), and whatever is the weight operand of a linear or convolution, computed or not.
- What a loss saves (logits, targets) and the statistics of norms stay: they are small, and everything hangs on them.
- Only operations of :data:`ROUNDED` are rounded: those whose backward is linear in what they save, or smooth in it. A
  number that is divided by, compared (the maximum with its inputs), taken the logarithm of or used as a position would
  ruin the gradient, and of an operation that is not known nobody can say. Where the backward needs no more than the
  region of a number, ``regions.py`` keeps that exactly.
- Query and key of fused attention get at least 8 bits. Its backward computes the softmax anew from them and the exact
  log-sum-exp, so that their error grows exponentially with the size of the logits.
- What no torch function saves (a custom autograd function, the input of a checkpointed segment) gets at least 8 bits
  where it has a gradient, and stays where it has none: it may be masks, statistics or positions.
- Vectors stay: they are statistics, biases or losses far more often than activations.
"""

from __future__ import annotations

import re
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
NORMS = {"batch_norm", "layer_norm", "group_norm", "instance_norm", "rms_norm"}
PRODUCTS = {
    "mul", "multiply", "addcmul", "lerp", "square", "cross", "matmul", "mm", "bmm", "addmm", "addbmm", "baddbmm",
    "addmv", "mv", "einsum", "tensordot", "inner", "outer", "kron",
}  # fmt: skip
SMOOTH = {
    "relu", "gelu", "silu", "mish", "sigmoid", "tanh", "softmax", "exp", "expm1", "softplus", "sin", "cos", "erf",
    "glu",
}  # fmt: skip
"""ReLU is smooth in its result, whose zeros are exact."""
FINE = {"elu", "celu", "selu", "hardswish", "lstm", "gru", "rnn_tanh", "rnn_relu"}
"""With kinks, or of many steps: at least :data:`FINE_BITS`."""
UNREAD = {
    "dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout", "avg_pool1d",
    "avg_pool2d", "avg_pool3d", "adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d", "max_pool1d",
    "max_pool2d", "max_pool3d", "adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d", "interpolate",
    "var", "std", "scaled_dot_product_attention",
}  # fmt: skip
"""What these save has no more use than its shape, or is linear, or has a rule of its own."""
STATISTICS = {"var", "std"}
"""What these return is kept; it is smaller than what they are given."""
ROUNDED = WEIGHTED | NORMS | PRODUCTS | SMOOTH | FINE | UNREAD
POWERS = {"pow", "float_power"}
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

    @property
    def plain_name(self) -> str:
        """The name of what it computes, in place, as an operator or neither: ``mul`` for all three."""
        name = self.name.strip("_")
        turned = name[1:] if self.name.startswith("__") and name[:1] in "ri" else ""
        return turned if turned in ROUNDED else name

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """An argument, however it was passed."""
        return self.args[position] if position < len(self.args) else self.kwargs.get(name, default)

    def operand(self, position: int, name: str) -> Tensor | None:
        """An argument that is a tensor, however it was passed."""
        value = self.argument(position, name)
        return value if isinstance(value, Tensor) else None

    @property
    def is_loss(self) -> bool:
        """Whether it ends the network."""
        return self.name.endswith("_loss") or self.name in LOSSES

    @property
    def is_norm(self) -> bool:
        """Whether it saves statistics in addition to its input."""
        return self.name in NORMS


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
    """The least bits for real numbers that are saved now and no weights: 0, ``FINE_BITS``, or None to keep them."""
    if tensor.ndim < 2 or any(operation.is_loss for operation in running):
        return None
    if not running or saving_segment_inputs():
        return FINE_BITS if tensor.requires_grad else None
    operation = running[-1]
    name = operation.plain_name
    if name in POWERS:
        exponent = operation.argument(1, "exponent")
        return 0 if isinstance(exponent, (int, float)) and exponent > 0 and exponent == int(exponent) else None
    if name not in ROUNDED or (name in PRODUCTS and tensor.shape[-1] == 1):
        return None  # one number for each row: a statistic
    given = operation.operand(0, "input")
    if (operation.is_norm or name in STATISTICS) and given is not None and tensor.shape != given.shape:
        return None
    if name in FINE:
        return FINE_BITS
    if name in WEIGHTED:
        weight = operation.operand(2 if name == "bilinear" else 1, "weight")
        return None if weight is not None and holds_numbers_of(tensor, weight) else 0
    if name == "scaled_dot_product_attention":
        return _least_bits_in_attention(tensor, operation)
    return 0


def integer_bounds(running: list[Operation]) -> tuple[int, int] | None:
    """Least and largest value of integers that are saved now, where the operation has them."""
    for operation in running:
        pooling = re.match(r"(?:adaptive_)?max_pool([123])d", operation.name.strip("_"))
        given = operation.operand(0, "input")
        if pooling and given is not None:
            return 0, prod(given.shape[-int(pooling[1]) :])  # there may be no batch
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
    bias = operation.operand(3, "attn_mask")  # it may hold -inf where nothing is to be seen
    if bias is not None and holds_numbers_of(tensor, bias):
        return None
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
