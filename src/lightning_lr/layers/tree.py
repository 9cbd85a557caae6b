"""The order of a model's layers as a small tree: what follows what, what stands side by side, and the distances.

Only the distance from the top decides about a learning rate. In a :class:`Series` each part is below the next; the
parts of a :class:`Parallel` end at the same height.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field


@dataclass(eq=False)
class Leaf:
    """A layer: its name, the names of its parameters, and whether it is a stem (of the model or of a tower)."""

    name: str
    parameters: list[str]
    stem: bool = False


@dataclass
class Series:
    """Parts that follow one another, from input to head."""

    parts: list[Node] = field(default_factory=list)


@dataclass
class Parallel:
    """Towers: parts that end at the same height.

    Args:
        parts: the towers.
        aside: towers that nothing else is measured by; what is below stands below ``parts`` alone.
    """

    parts: list[Node] = field(default_factory=list)
    aside: list[Node] = field(default_factory=list)


Node = Leaf | Series | Parallel


def leaves(node: Node, aside: bool = False) -> Iterator[Leaf]:
    """The layers in definition order; with ``aside``, those too that nothing else is measured by."""
    if isinstance(node, Leaf):
        yield node
        return
    for part in node.parts:
        yield from leaves(part, aside)
    for part in node.aside if aside and isinstance(node, Parallel) else ():
        yield from leaves(part, aside)


def depth_of(node: Node) -> int:
    """How many layers there are from the lowest to the top."""
    return 1 + max(_measured(node).values(), default=-1)


def layers_in(node: Node) -> int:
    """How many layers have parameters, side by side or not."""
    return sum(bool(leaf.parameters) for leaf in leaves(node))


def lowest(node: Node) -> Leaf:
    """The first of the layers that are farthest from the top."""
    distance = _measured(node)
    return max(distance, key=lambda leaf: distance[leaf]) if distance else next(leaves(node))


def _measured(node: Node) -> dict[Leaf, int]:
    """:func:`distances` of what others are measured by, in definition order."""
    distance = distances(node)
    return {leaf: distance[leaf] for leaf in leaves(node) if leaf in distance}


def distances(node: Node) -> dict[Leaf, int]:
    """Distance from the top of each layer that has parameters."""
    found: dict[Leaf, int] = {}
    _measure(node, 0, found)
    return found


def _measure(node: Node, above: int, found: dict[Leaf, int]) -> int:
    if isinstance(node, Leaf):
        if node.parameters:
            found[node] = above
        return above + bool(node.parameters)
    if isinstance(node, Parallel):
        for part in node.aside:
            _measure(part, above, found)
        return max((_measure(part, above, found) for part in node.parts), default=above)
    for index, part in reversed(list(enumerate(node.parts))):
        if isinstance(part, Leaf) and part.stem:  # level with the stems that towers have of their own
            blocks = [
                found[leaf] for leaf in leaves(Series(node.parts[index + 1 :])) if leaf in found and not leaf.stem
            ]
            above = max(blocks, default=above - 1) + 1
        above = _measure(part, above, found)
    return above
