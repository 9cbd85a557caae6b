"""The order of a model's layers, read from its module tree: repeated blocks in a ``ModuleList`` or ``Sequential``.

What comes before the blocks is the stem, what follows them the head; inside, every block is a layer, also where
blocks are grouped in stages (Swin, ConvNeXt). A module that brings timm's ``group_matcher`` is asked instead. Two
sub-models side by side are towers: both end at the top. The result is a small tree of its own (:class:`Series`,
:class:`Parallel`), from which distances follow.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from torch import nn

from lightning_lr.layers.matcher import group_matcher, matched_layers
from lightning_lr.layers.names import children, is_leaf, is_normalization, joined, names_in

HEAD = re.compile(
    r"(\w+_)?(head|heads|classifier|pooler|score|qa_outputs|logits|logit_scale|logit_bias|temperature)\d*|_?fc|cls"
)
"""Attributes that are the head wherever they are defined (outside of blocks)."""
STEM = re.compile(r"(?!.*(embed_out|unembed)).*embed.*|wte|wpe|shared|(\w+_)?stem|\w*_tokens?")
"""Attributes that are the stem wherever they are defined (outside of blocks)."""
TOWER = re.compile(
    r"(.*_)?(text|vision|visual|image|img|audio|speech|video|language|query|context|document|doc|passage|encoder"
    r"|decoder|student|teacher|tower)(_.*)?\d*"
)
"""Sub-models that stand side by side rather than one upon the other."""
BLOCKS = re.compile(r"_?(layers?|blocks?|h|resblocks|stages?)\d*")
"""Containers that hold blocks even where there is only one."""
SIDE_BY_SIDE = re.compile(r".*(expert|branch|head|adapter|lora).*")
"""Containers whose modules are used in parallel, so that their order is no depth."""


STAGE = re.compile(r"_?(layers|blocks|resblocks|stages)")
"""Containers of a stage's blocks; inside a block, repeated parts are called otherwise."""


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
    """Towers: parts that end at the same height."""

    parts: list[Node] = field(default_factory=list)


Node = Leaf | Series | Parallel


def leaves(node: Node) -> Iterator[Leaf]:
    """The layers in definition order."""
    if isinstance(node, Leaf):
        yield node
    else:
        for part in node.parts:
            yield from leaves(part)


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
        return max((_measure(part, above, found) for part in node.parts), default=above)
    for index, part in reversed(list(enumerate(node.parts))):
        if isinstance(part, Leaf) and part.stem:  # beside the stems that towers have of their own
            blocks = [
                found[leaf] for leaf in leaves(Series(node.parts[index + 1 :])) if leaf in found and not leaf.stem
            ]
            above = max(blocks, default=above - 1) + 1
        above = _measure(part, above, found)
    return above


@dataclass
class Reading:
    """What a module consists of, from input to head. ``after`` are parameters that follow the blocks, ``head`` those
    that are named as a head is."""

    stem: list[str] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)

    def follow(self, other: Reading) -> None:
        """Append what comes next; what stands between two sets of blocks belongs to the first block after it."""
        if self.parts and other.parts:
            first = next(leaves(other.parts[0]))
            first.parameters[:0] = [*self.after, *other.stem]
            self.after = []
        elif not self.parts:
            self.stem += other.stem
        else:
            self.after += other.stem
        self.parts += other.parts
        self.after += other.after
        self.head += other.head

    def tree(self, path: str = "", head: bool = True) -> Series:
        """Stem, blocks and head as a series."""
        top = [Leaf(joined(path, "head"), [*self.after, *self.head])] if head else []
        return Series([Leaf(joined(path, "stem"), self.stem, stem=True), *self.parts, *top])


class TreeReader:
    """Reads the order of layers from a module tree.

    Args:
        model: the root, unwrapped.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.asked_timm = False
        # leaf layers in a Sequential count only in a model that has no larger blocks anywhere
        self._small = False
        self._small = not self._bears("", model)

    def read(self) -> Series | None:
        """The order of layers, or ``None`` where the tree shows no repeated structure."""
        if not self._bears("", self.model):
            return None
        return self._read("", self.model, "").tree()

    # ------------------------------------------------------------------ what a module is
    def _bears(self, name: str, module: nn.Module) -> bool:
        """Whether blocks are somewhere in a module."""
        if self._matched(module) or self._is_list(name, module):
            return True
        return any(self._bears(n, child) for n, child in children(module) if not SIDE_BY_SIDE.fullmatch(n))

    def _matched(self, module: nn.Module) -> bool:
        return group_matcher(module) is not None

    def _is_list(self, name: str, module: nn.Module) -> bool:
        """Whether a container holds blocks that follow one another."""
        if not isinstance(module, nn.ModuleList | nn.Sequential) or SIDE_BY_SIDE.fullmatch(name):
            return False
        kinds = Counter(
            type(child)
            for _, child in children(module)
            if (not is_normalization(child) if self._small else not is_leaf(child))
        )
        repeated = any(count > 1 for count in kinds.values())
        return repeated or (sum(kinds.values()) == 1 and not self._small and BLOCKS.fullmatch(name) is not None)

    def _towers(self, bearing: list[tuple[str, nn.Module]]) -> bool:
        kinds = Counter(type(module) for _, module in bearing)
        return len(bearing) > 1 and (
            any(TOWER.fullmatch(name) for name, _ in bearing) or any(count > 1 for count in kinds.values())
        )

    # ------------------------------------------------------------------ reading
    def _read(self, name: str, module: nn.Module, path: str) -> Reading:
        matcher = group_matcher(module)
        if matcher is not None:
            self.asked_timm = True
            layers, head = matched_layers(names_in(module, ""), matcher)
            parts: list[Node] = [Leaf(joined(path, n), [joined(path, p) for p in ps]) for n, ps in layers]
            return Reading(parts=parts, head=[joined(path, p) for p in head])
        if self._is_list(name, module):
            return Reading(parts=list(self._blocks(module, path)))
        return self._composed(module, path)

    def _composed(self, module: nn.Module, path: str) -> Reading:
        """A module of parts: stem, blocks, head, towers, each known by its contents, its name or its place."""
        reading = Reading()
        inside = list(children(module))
        own = [name for name, p in module._parameters.items() if p is not None]
        is_head = _heads([*own, *(name for name, _ in inside)])
        bearing = [(n, child) for n, child in inside if not is_head(n) and self._bears(n, child)]
        sub_models = [(n, child) for n, child in bearing if not self._is_list(n, child)]
        towers = Parallel()
        side_by_side = [n for n, _ in sub_models] if self._towers(sub_models) else []
        for name in own:
            (reading.head if is_head(name) else reading.stem).append(joined(path, name))
        for name, child in inside:
            here = joined(path, name)
            if name in side_by_side:
                tower = self._read(name, child, here)
                if not towers.parts:
                    reading.follow(Reading(parts=[Series([towers])]))
                towers.parts.append(tower.tree(here, head=False))
                reading.after += tower.after
                reading.head += tower.head
            elif any(n == name for n, _ in bearing):
                reading.follow(self._read(name, child, here))
            elif is_head(name):
                reading.head += names_in(child, here)
            elif STEM.fullmatch(name) or not reading.parts:
                reading.stem += names_in(child, here)
            else:
                reading.after += names_in(child, here)
        return reading

    def _blocks(self, module: nn.Module, path: str, stages: bool = True) -> list[Leaf]:
        """The layers of a container: one per block; a norm belongs to what it follows."""
        found: list[Leaf] = []
        waiting = [joined(path, name) for name, p in module._parameters.items() if p is not None]
        for name, child in children(module):
            here = joined(path, name)
            if is_normalization(child):
                (found[-1].parameters if found else waiting).extend(names_in(child, here))
                continue
            new = (self._stage(name, child, here) if stages else None) or [Leaf(here, names_in(child, here))]
            new[0].parameters[:0] = waiting
            waiting = []
            found += new
        if waiting:  # nothing but norms
            found.append(Leaf(path, waiting))
        return found

    def _stage(self, name: str, module: nn.Module, path: str) -> list[Leaf] | None:
        """The blocks of a stage; what else it has belongs to its first block, or to its last where it comes after."""
        if self._small or self._matched(module):
            return None
        if self._is_list(name, module):
            return self._blocks(module, path, stages=False)
        if not any(STAGE.fullmatch(n) and self._is_list(n, child) for n, child in children(module)):
            return None
        found: list[Leaf] = []
        waiting = [joined(path, name) for name, p in module._parameters.items() if p is not None]
        for n, child in children(module):
            here = joined(path, n)
            if STAGE.fullmatch(n) and self._is_list(n, child):
                blocks = self._blocks(child, here, stages=False)
                blocks[0].parameters[:0] = waiting
                waiting = []
                found += blocks
            else:
                (found[-1].parameters if found else waiting).extend(names_in(child, here))
        return found


def _heads(names: list[str]) -> Callable[[str], bool]:
    """What tells heads by name; where all parts are named so (``self.classifier = Bert``), the name says nothing."""
    if all(HEAD.fullmatch(name) for name in names):
        return lambda name: False
    return lambda name: HEAD.fullmatch(name) is not None


def definition_order(model: nn.Module) -> Series:
    """One layer per child module, in the order of definition, heads by name last; norms join what they follow."""
    path, module = "", model
    head: list[str] = []
    while True:
        inside = list(children(module))
        own = [name for name, p in module._parameters.items() if p is not None]
        is_head = _heads([*own, *(name for name, _ in inside)])
        head += [p for name, child in inside if is_head(name) for p in names_in(child, joined(path, name))]
        head += [joined(path, name) for name in own if is_head(name)]
        own = [joined(path, name) for name in own if not is_head(name)]
        bodies = [(name, child) for name, child in inside if not is_head(name)]
        if len(bodies) != 1 or own or is_leaf(bodies[0][1]):
            break
        path, module = joined(path, bodies[0][0]), bodies[0][1]
    series = Series([Leaf(joined(path, "stem"), own, stem=True)])
    for name, child in bodies:
        here = joined(path, name)
        last = series.parts[-1]
        if is_normalization(child) and isinstance(last, Leaf) and last.parameters:
            last.parameters += names_in(child, here)
        else:
            series.parts.append(Leaf(here, names_in(child, here)))
    series.parts.append(Leaf("head", head))
    return series
