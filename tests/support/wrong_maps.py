"""Right layers made wrong in one place, to try whether the second opinion sees it."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from torch import nn

from lightning_lr.layers import Layer, LayerMap
from lightning_lr.layers.names import children, joined

Distances = dict[str, int]
"""Name of a layer to its distance from the top."""


def remade(found: LayerMap, distance: Distances, members: dict[str, Sequence[str]]) -> LayerMap:
    """A map of some layers, without empty distances between them."""
    distance = {name: d for name, d in distance.items() if members[name]}
    ranks = {d: rank for rank, d in enumerate(sorted(set(distance.values())))}
    top = len(ranks) - 1
    layers = [Layer(name, top - ranks[d], tuple(members[name])) for name, d in distance.items()]
    return LayerMap(tuple(sorted(layers, key=lambda layer: layer.depth)), found.how)


def _parts(found: LayerMap) -> tuple[Distances, dict[str, Sequence[str]]]:
    return (
        {layer.name: found.depth - 1 - layer.depth for layer in found.layers},
        {layer.name: [*layer.parameters] for layer in found.layers},
    )


def swapped(model: nn.Module, found: LayerMap, chance: random.Random) -> LayerMap | None:
    """Two layers that are no neighbors at each other's height."""
    distance, members = _parts(found)
    inner = [name for name, d in distance.items() if 0 < d < found.depth - 1]
    pairs = [(a, b) for a in inner for b in inner if distance[a] > distance[b] + 1]
    if not pairs:
        return None
    a, b = chance.choice(pairs)
    distance[a], distance[b] = distance[b], distance[a]
    return remade(found, distance, members)


def in_the_head(model: nn.Module, found: LayerMap, chance: random.Random) -> LayerMap | None:
    """A layer with others above it in the layer at the top."""
    return _merged(found, chance, list(range(2, found.depth - 1)), 0)


def in_the_stem(model: nn.Module, found: LayerMap, chance: random.Random) -> LayerMap | None:
    """A layer with others below it in the lowest layer."""
    return _merged(found, chance, list(range(1, found.depth - 2)), found.depth - 1)


def _merged(found: LayerMap, chance: random.Random, heights: list[int], into: int) -> LayerMap | None:
    distance, members = _parts(found)
    movable = [name for name, d in distance.items() if d in heights]
    targets = [name for name, d in distance.items() if d == into]
    if not movable or len(targets) != 1:
        return None
    moved = chance.choice(movable)
    members[targets[0]] = [*members[targets[0]], *members[moved]]
    members[moved] = []
    return remade(found, distance, members)


def collapsed(model: nn.Module, found: LayerMap, chance: random.Random) -> LayerMap | None:
    """A list of which each element is a layer, in one."""
    distance, members = _parts(found)
    layers_of: dict[str, list[str]] = {}
    for path, module in model.named_modules():
        if isinstance(module, nn.ModuleList):
            names = [joined(path, name) for name, _ in children(module)]
            if len({distance[name] for name in names if name in distance}) == len(names) > 1:
                layers_of[path] = names
    if not layers_of:
        return None
    names = layers_of[chance.choice(sorted(layers_of))]
    for name in names[1:]:
        members[names[0]] = [*members[names[0]], *members[name]]
        members[name] = []
    return remade(found, distance, members)


def stacked(model: nn.Module, found: LayerMap, chance: random.Random) -> LayerMap | None:
    """One of two towers that stand side by side, below the other."""
    distance, members = _parts(found)
    towers: dict[str, list[str]] = {}
    for name, d in distance.items():
        if 0 < d < found.depth - 1:
            towers.setdefault(name.partition(".")[0], []).append(name)
    pairs = [
        (a, b) for a in towers for b in towers
        if a != b and len({distance[n] for n in towers[a]} & {distance[n] for n in towers[b]}) > 1
    ]  # fmt: skip
    if not pairs:
        return None
    lower, upper = chance.choice(pairs)
    for name in towers[lower]:
        distance[name] += max(distance[other] for other in towers[upper])
    for name, d in distance.items():
        if d == found.depth - 1 and name not in towers[lower]:
            distance[name] += found.depth
    return remade(found, distance, members)


WRONG: dict[str, Callable[[nn.Module, LayerMap, random.Random], LayerMap | None]] = {
    "two layers in each other's place": swapped,
    "a layer in the head": in_the_head,
    "a layer in the stem": in_the_stem,
    "a list in one layer": collapsed,
    "a tower below another one": stacked,
}
