"""Which parameters get no weight decay, and why: biases, norms, tokens, positions, and what the model itself lists.

What timm's models list in ``no_weight_decay()`` and the papers of BEiT, Swin and Mamba leave out is found in models
that list nothing (transformers' twins of them) by shape, by name, and by what the parameter stands next to. A model
that brings timm's ``group_matcher`` is left to its own list. Embeddings of words keep their decay.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatch
from typing import Literal

from torch import nn

from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import all_parameters, children, parameters_by_name, unwrapped

NoWeightDecay = Literal["auto", "vectors"] | Sequence[str]
VECTOR, TOKEN, POSITION = "bias, norm or vector", "token", "position embedding"
RELATIVE, STATE_SPACE, LISTED = "relative position bias", "state space", "listed by the model"
BY_PATTERN = "pattern"
TOKENS = re.compile(
    r"\w*(cls|class|mask|dist|distillation|register|reg|detection|query|prompt|latent)_?(token|embedding)s?"
)
"""Parameters that stand before or in the place of a sequence's elements. Not modules: their parameters are weights."""
POSITIONS = re.compile(r"(\w*_)?(pos|position|positional|positions)(_?(emb|embed|embedding|enc|encoding)\w*)?")
RELATIVE_POSITIONS = re.compile(r"(\w*_)?(rel|relative)_?pos\w*|\w*bias_table|relative_attention_bias|attention_biases")
RELATIVE_NETS = re.compile(r"cpb_mlp|continuous_position_bias_mlp")
"""Small networks that compute a relative position bias (Swin v2); timm's model lists its ``cpb_mlp``."""
STATE_SPACE_NAMES = re.compile(r"A_logs?|D|Ds|dt_bias|A")
"""Parameters of a state-space layer that its paper's code marks ``_no_weight_decay`` (Mamba)."""


def without_weight_decay(module: nn.Module, no_weight_decay: NoWeightDecay = "auto") -> dict[int, str]:
    """The ``id`` of each parameter that gets no weight decay, and the reason.

    Args:
        module: the model.
        no_weight_decay: ``"auto"``: biases, vectors, the parameters of norms, class, mask and distillation tokens,
            position embeddings (not the ``nn.Embedding`` of a language model), relative position biases, ``A_log`` and
            ``D`` of state-space layers, parameters marked ``_no_weight_decay``, and what a sub-model's
            ``no_weight_decay()`` lists. ``"vectors"``: of these only biases, vectors, norms and what is listed, as
            before tokens and positions were exempt. Or regular expressions, searched in the names; an empty list
            exempts nothing.

    Raises:
        ValueError: for an expression that is none, or that matches nothing.
    """
    if isinstance(no_weight_decay, str):
        if no_weight_decay not in ("auto", "vectors"):
            raise ValueError(
                f'got no_weight_decay={no_weight_decay!r}; give "auto", "vectors", or a list of regular expressions'
            )
        found: dict[int, str] = {}
        auto = no_weight_decay == "auto"
        for reason, parameter in _exempt(unwrapped(module), auto, auto):
            found.setdefault(id(parameter), reason)
        return found
    chosen: dict[int, str] = {}
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
        chosen.update(dict.fromkeys(hits, f"{BY_PATTERN} {pattern!r}"))
    return chosen


def exemptions(module: nn.Module, reasons: dict[int, str]) -> str:
    """What is exempt and why in a line per reason: how many parameters, and the names of a few."""
    by_reason: dict[str, list[str]] = {}
    for name, parameter in parameters_by_name(module).items():
        if id(parameter) in reasons:
            by_reason.setdefault(reasons[id(parameter)], []).append(name)
    return "\n".join(
        f"no weight decay ({reason}): {len(names)}, {', '.join(names[:2])}{', ...' if len(names) > 2 else ''}"
        for reason, names in by_reason.items()
    )


def _exempt(module: nn.Module, by_convention: bool, marked: bool) -> Iterator[tuple[str, nn.Parameter]]:
    """Reason and parameter of what is exempt in a module."""
    by_convention = by_convention and group_matcher(module) is None
    listed = list(_listed(module))
    for inner, parameter in all_parameters(module):
        if any(fnmatch(inner, pattern) for pattern in listed):
            yield LISTED, parameter
    norm = "norm" in type(module).__name__.lower()
    for own, parameter in ((n, p) for n, p in module._parameters.items() if p is not None):
        if norm or len(full_shape(parameter)) <= 1 or own.endswith("bias"):
            yield VECTOR, parameter
        elif marked and getattr(parameter, "_no_weight_decay", False):
            yield LISTED, parameter
        elif by_convention and (reason := _reason(module, own, full_shape(parameter))):
            yield reason, parameter
    sees_images = any(isinstance(child, nn.Conv2d | nn.Conv3d) or "patch" in n for n, child in children(module))
    for n, child in children(module):
        positions = sees_images and isinstance(child, nn.Embedding) and POSITIONS.fullmatch(n)
        relative = isinstance(child, nn.Embedding) and RELATIVE_POSITIONS.fullmatch(n)
        if by_convention and (positions or relative or RELATIVE_NETS.fullmatch(n)):
            for _, parameter in all_parameters(child):
                yield (POSITION if positions else RELATIVE), parameter
        yield from _exempt(child, by_convention, marked)


def _reason(module: nn.Module, name: str, shape: tuple[int, ...]) -> str | None:
    """Why a parameter that a module owns is exempt, by its name and its shape."""
    if type(module).__module__.startswith("torch.nn.") or "weight" in name:
        return None
    if RELATIVE_POSITIONS.fullmatch(name):
        return RELATIVE
    if POSITIONS.fullmatch(name):
        return POSITION
    if TOKENS.fullmatch(name) or (len(shape) == 3 and shape[:2] == (1, 1)):
        return TOKEN
    if STATE_SPACE_NAMES.fullmatch(name) and any(n.startswith(("A_log", "dt_")) for n in _parts(module)):
        return STATE_SPACE
    if sum(length > 1 for length in shape) <= 1:  # a scale per channel or head, (heads, 1, 1)
        return VECTOR
    return None


def _parts(module: nn.Module) -> list[str]:
    """Names of a module's own parameters and children."""
    return [*module._parameters, *module._modules]


def full_shape(parameter: nn.Parameter) -> tuple[int, ...]:
    """The shape of the whole parameter; one that ZeRO stage 3 has partitioned keeps it in an attribute."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def _listed(module: nn.Module) -> Iterable[str]:
    found = getattr(module, "no_weight_decay", ())
    found = found() if callable(found) else found
    return found if isinstance(found, set | frozenset | list | tuple) else ()
