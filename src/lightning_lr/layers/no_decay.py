"""Which parameters get no weight decay: biases, norms, and what the model itself lists (timm's ``no_weight_decay``)."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Literal

from torch import nn

from lightning_lr.layers.names import all_parameters, children, joined, parameters_by_name, unwrapped

NoWeightDecay = Literal["auto"] | Sequence[str]


def without_weight_decay(module: nn.Module, no_weight_decay: NoWeightDecay = "auto") -> set[int]:
    """The ``id`` of each parameter that gets no weight decay.

    Args:
        module: the model.
        no_weight_decay: ``"auto"``: biases, everything with at most one dimension, the parameters of norms, and what
            a sub-model's ``no_weight_decay()`` lists. Or regular expressions, searched in the names; an empty list
            exempts nothing.

    Raises:
        ValueError: for an expression that is none, or that matches nothing.
    """
    if isinstance(no_weight_decay, str):
        if no_weight_decay != "auto":
            raise ValueError(f'got no_weight_decay={no_weight_decay!r}; give "auto", or a list of regular expressions')
        return {id(parameter) for _, parameter in _exempt(unwrapped(module), "")}
    chosen: set[int] = set()
    parameters = parameters_by_name(module)
    for pattern in no_weight_decay:
        try:
            hits = {id(parameter) for name, parameter in parameters.items() if re.search(pattern, name)}
        except (re.error, TypeError) as error:
            raise ValueError(
                f"no_weight_decay: got {pattern!r}, which is no regular expression ({error}); give Python's"
            ) from error
        if not hits:
            some = ", ".join(list(parameters)[:3])
            raise ValueError(
                f"no_weight_decay: the pattern {pattern!r} matches no parameter; the names are like {some}"
            )
        chosen |= hits
    return chosen


def _exempt(module: nn.Module, path: str) -> Iterator[tuple[str, nn.Parameter]]:
    listed = list(_listed(module))
    for name, parameter in all_parameters(module):
        if any(fnmatch(name, pattern) for pattern in listed):
            yield joined(path, name), parameter
    norm = "norm" in type(module).__name__.lower()
    for name, own in module._parameters.items():
        if own is not None and (norm or len(full_shape(own)) <= 1 or name.endswith("bias")):
            yield joined(path, name), own
    for name, child in children(module):
        yield from _exempt(child, joined(path, name))


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of the whole parameter; one that ZeRO stage 3 has partitioned keeps it in an attribute."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _listed(module: nn.Module) -> Iterable[str]:
    found = getattr(module, "no_weight_decay", ())
    found = found() if callable(found) else found
    return found if isinstance(found, set | frozenset | list | tuple) else ()
