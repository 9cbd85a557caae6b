"""Which layer each parameter belongs to: by the user's patterns, timm's ``group_matcher``, or the module tree."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

from torch import nn
from torch.nn.parameter import UninitializedParameter

from lightning_lr.layers.copies import copies, without
from lightning_lr.layers.example_pass import example_pass
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.layer_map import Layer, LayerMap
from lightning_lr.layers.names import all_parameters, unwrapped
from lightning_lr.layers.reading import TreeReader
from lightning_lr.layers.second_opinion import contradictions
from lightning_lr.layers.tree import Leaf, Series, distances, leaves
from lightning_lr.layers.without_blocks import definition_order

Layers = Literal["auto"] | Sequence[str]
SHOWN = 40
"""Lines of the table in a warning."""


def discover(module: nn.Module, layers: Layers = "auto") -> LayerMap:
    """Find the layers of a model, from input to head.

    With ``"auto"``: timm's ``group_matcher`` of a sub-model decides; elsewhere repeated blocks in a
    ``ModuleList`` or ``Sequential`` are the layers, with a stem before and a head after them (as in BEiT and MAE: the
    final norm belongs to the head); a model without repeated blocks has one layer per child module, with a warning.

    Args:
        module: the model, also wrapped (DDP, FSDP, ``torch.compile``, checkpointing). All its parameters count,
            frozen or not.
        layers: ``"auto"``, or regular expressions in order from input to head, searched in the parameter names (without
            wrappers). The first that matches wins. One with groups, ``encoder\\.layer\\.(\\d+)``, stands for one layer
            per captured number.

    Returns:
        Every parameter in exactly one layer; a tied weight in the lowest of its places.

    Raises:
        ValueError: for a model without parameters or with lazy ones, a pattern that takes no parameter, or a parameter
            that none takes.
    """
    model = unwrapped(module)
    if next(iter(all_parameters(model)), None) is None:
        raise ValueError(f"{type(model).__name__} has no parameters, so it has no layers")
    lazy = [name for name, parameter in all_parameters(model) if isinstance(parameter, UninitializedParameter)]
    if lazy:
        raise ValueError(
            f"{type(model).__name__}: {', '.join(lazy[:3])} ({len(lazy)} in all) have no shape yet (lazy layers); "
            f"call the model once on a batch before its optimizer is made"
        )
    if isinstance(layers, str):
        if layers != "auto":
            raise ValueError(f'got layers={layers!r}; give "auto", or a list of regular expressions')
        return _by_structure(model)
    return _by_patterns(model, layers)


def _by_structure(model: nn.Module) -> LayerMap:
    passes = Passes(example_pass(model))
    mirrored = copies(model, passes)
    whole, model = model, without(model, mirrored, passes)
    reader = TreeReader(model, passes)
    tree, how = reader.read(), "repeated blocks"
    if reader.asked_timm:
        how = "timm group_matcher"
    if tree is None:
        tree, seen = definition_order(model, passes)
        how = "forward pass" if seen else "definition order"
    found = _map(model, tree, how)
    reader.guesses.extend(contradictions(whole, found))
    why = f"the order of the layers of {type(model).__name__} is a guess: {'; '.join(reader.guesses)}"
    if how == "definition order":
        why = (
            f"{type(model).__name__} has no repeated blocks, so its layers are its {len(found.layers)} parts in the "
            f"order of their definition: {', '.join(layer.name for layer in found.layers)}"
        )
    if reader.guesses or (how == "definition order" and len(found.layers) > 1):
        warnings.warn(
            f"{why}. Where that is not the order from input to head, give layers as a list of regular expressions, "
            f"such as layers={_patterns(found)}\n{_table(found)}",
            stacklevel=4,
        )
    return _with_copies(found, whole, mirrored)


def _with_copies(found: LayerMap, model: nn.Module, mirrored: Mapping[str, str]) -> LayerMap:
    """The layers with the parameters of copies at the places of those that they mirror."""
    layer_of = {name: index for index, layer in enumerate(found.layers) for name in layer.parameters}
    named = dict(all_parameters(model))
    place = {id(named[name]): index for name, index in layer_of.items()}
    more: dict[int, list[str]] = {}
    for name, parameter in named.items():
        copy = next((path for path in mirrored if name.startswith(f"{path}.")), None)
        if copy is not None and id(parameter) not in place:
            index = place[id(named[mirrored[copy] + name[len(copy) :]])]
            place[id(parameter)] = index
            more.setdefault(index, []).append(name)
    layers = (replace(la, parameters=(*la.parameters, *more.get(i, ()))) for i, la in enumerate(found.layers))
    return replace(found, layers=tuple(layers))


def _patterns(found: LayerMap) -> list[str]:
    """Regular expressions that make some of the layers, as an example."""
    names = list(dict.fromkeys(re.sub(r"\d+", r"(\\d+)", re.escape(layer.name), count=1) for layer in found.layers))
    inner = [name for name in names if not name.endswith(("stem", "head"))]
    return [*inner[:3], "."]


def _table(found: LayerMap) -> str:
    """Layers with their distance from the top, from input to head."""
    rows = [(str(found.depth - 1 - layer.depth), layer.name, layer.parameters[0]) for layer in found.layers]
    if len(rows) > SHOWN:
        rows = [*rows[: SHOWN // 2], ("...", "", ""), *rows[-SHOWN // 2 :]]
    rows = [("from the top", "layer", "first parameter"), *rows]
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    return "\n".join("  ".join(cell.ljust(widths[i]) for i, cell in enumerate(row)).rstrip() for row in rows)


def _map(model: nn.Module, tree: Series, how: str) -> LayerMap:
    """Place every parameter once: tied weights in the lowest of their places."""
    distance = distances(tree)
    places = {name: leaf for leaf in leaves(tree, aside=True) for name in leaf.parameters}
    first: dict[int, str] = {}
    lowest: dict[int, Leaf] = {}
    for name, parameter in all_parameters(model):
        key, place = id(parameter), places[name]
        first.setdefault(key, name)
        if key not in lowest or distance[place] > distance[lowest[key]]:
            lowest[key] = place
    for leaf in leaves(tree, aside=True):
        leaf.parameters = []
    for key, name in first.items():
        lowest[key].parameters.append(name)
    distance = distances(tree)  # again: a layer that held nothing but a tied weight is gone
    top = max(distance.values())
    found = [leaf for leaf in leaves(tree, aside=True) if leaf.parameters]
    names = [leaf.name for leaf in found]
    layers = [
        Layer(
            leaf.name if names.count(leaf.name) == 1 else f"{leaf.name} ({names[:index].count(leaf.name) + 1})",
            top - distance[leaf],
            tuple(leaf.parameters),
        )
        for index, leaf in enumerate(found)
    ]
    return LayerMap(tuple(sorted(layers, key=lambda layer: layer.depth)), how)


def _by_patterns(model: nn.Module, patterns: Sequence[str]) -> LayerMap:
    names: dict[int, list[str]] = {}
    for name, parameter in all_parameters(model):
        names.setdefault(id(parameter), []).append(name)
    expressions = [_expression(pattern) for pattern in patterns]
    layers: dict[tuple[int, tuple[tuple[float, str], ...]], list[str]] = {}
    uncovered = []
    for aliases in names.values():
        matches = [match for name in aliases if (match := _first_match(expressions, name)) is not None]
        if matches:
            layers.setdefault(min(matches), []).append(aliases[0])
        else:
            uncovered.append(aliases[0])
    taken = {index for index, _ in layers}
    for index, expression in enumerate(expressions):
        if index not in taken:
            hits = any(expression.search(name) for aliases in names.values() for name in aliases)
            why = "matches only parameters that earlier patterns take" if hits else "matches no parameter"
            some = ", ".join(aliases[0] for aliases in list(names.values())[:3])
            raise ValueError(
                f"layers: the pattern {patterns[index]!r} {why} of {type(model).__name__}; the names are like {some}"
            )
    if uncovered:
        raise ValueError(
            f"layers: no pattern matches {', '.join(uncovered[:5])}{', ...' if len(uncovered) > 5 else ''} "
            f"({len(uncovered)} of {len(names)} parameters); add a pattern, for example '.*' as the last for the head"
        )
    found = []
    for depth, key in enumerate(sorted(layers)):
        index, numbers = key
        label = patterns[index] if not numbers else f"{patterns[index]} {'.'.join(text for _, text in numbers)}"
        found.append(Layer(label, depth, tuple(layers[key])))
    return LayerMap(tuple(found), "patterns")


def _expression(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise ValueError(f"layers: got {pattern!r}, which is no regular expression ({error}); give Python's") from error


def _first_match(expressions: Sequence[re.Pattern[str]], name: str) -> tuple[int, tuple[tuple[float, str], ...]] | None:
    for index, expression in enumerate(expressions):
        found = expression.search(name)
        if found:
            return index, tuple((_number(text), text) for text in found.groups() if text is not None)
    return None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return -1.0
