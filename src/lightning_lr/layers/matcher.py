"""Depth by timm's ``group_matcher``: a method of a model that maps parameter names to ordinals. By duck typing.

The specification is a dict of regular expressions in order from stem to blocks (or one function). A parameter's
ordinal is the position of its entry, then the numbers that the expression captures, then a given suffix; ordinals sort
numerically. The suffix 99999 means: with the layer before (timm puts a final norm with the last block), and what no
expression matches is the head.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import nn

WITH_PREVIOUS = 99999
Ordinal = tuple[float, ...]
Matcher = Callable[[str], tuple[Ordinal, str]]
"""Parameter name to ordinal, and to the name of what was matched."""


def group_matcher(module: nn.Module) -> Matcher | None:
    """The matcher that a module brings, if it brings one."""
    method = getattr(module, "group_matcher", None)
    if not callable(method):
        return None
    specification = method(coarse=False)
    if callable(specification):
        return lambda name: _called(specification(name))
    assert isinstance(specification, Mapping)
    return _compiled(specification)


def matched_layers(names: Sequence[str], matcher: Matcher) -> tuple[list[tuple[str, list[str]]], list[str]]:
    """Layers from input to top with their parameters, and apart from them the head."""
    by_ordinal: dict[Ordinal, list[tuple[str, str]]] = defaultdict(list)
    for name in names:
        ordinal, label = matcher(name)
        by_ordinal[ordinal].append((name, label))
    head = [name for name, _ in by_ordinal.pop((math.inf,), [])]
    layers: list[tuple[str, list[str]]] = []
    for ordinal in sorted(by_ordinal):
        found = [name for name, _ in by_ordinal[ordinal]]
        if layers and ordinal[-1] == WITH_PREVIOUS:
            layers[-1][1].extend(found)
        else:
            labels = [label for _, label in by_ordinal[ordinal]]
            layers.append((_unique(max(labels, key=labels.count), [n for n, _ in layers]), found))
    return layers, head


def _compiled(specification: Mapping[str, Any]) -> Matcher:
    rules: list[tuple[re.Pattern[str], str, float, Ordinal]] = []
    for position, (group, entry) in enumerate(specification.items()):
        for expression, suffix in [(entry, None)] if isinstance(entry, str) else entry or []:
            rules.append((re.compile(expression), group, float(position), tuple(map(float, suffix or ()))))

    def match(name: str) -> tuple[Ordinal, str]:
        for expression, group, position, suffix in rules:
            found = expression.match(name)
            if found:
                numbers = tuple(float(number) for number in found.groups() if number is not None)
                return (position, *numbers, *suffix), found.group() if numbers else group
        return (math.inf,), "head"

    return match


def _called(ordinal: float | Iterable[float]) -> tuple[Ordinal, str]:
    numbers = tuple(map(float, ordinal)) if isinstance(ordinal, Iterable) else (float(ordinal),)
    return numbers, "layer_" + ".".join(f"{number:g}" for number in numbers)


def _unique(name: str, taken: list[str]) -> str:
    return name if name not in taken else f"{name}_{len(taken)}"
