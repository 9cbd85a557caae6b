"""The order of a model's layers, read from its module tree and from what a forward pass through each module shows.

Repeated blocks in a ``ModuleList``, ``ModuleDict`` or ``Sequential``, and siblings of one class that are counted
through (``stage1``, ``stage2``), are the layers. What comes before the first is the stem, what follows the last the
head. A module that brings timm's ``group_matcher`` decides itself. Where no forward pass shows how sub-models stand to
one another, names and the order of definition decide (:mod:`~lightning_lr.layers.roles`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.blocks import blocks_of, in_turn, rnn_layers
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.grouping import groups_of, idle_of
from lightning_lr.layers.items import Item, elements_of, items_of, members_of, names_of, steps_of
from lightning_lr.layers.matcher import group_matcher, matched_layers
from lightning_lr.layers.names import children, is_leaf, is_normalization, joined, names_in
from lightning_lr.layers.parts import Reading, own_of
from lightning_lr.layers.places import heads_of, place_of_own, places_of, stems_of_towers
from lightning_lr.layers.structure import Named, Structure, is_stacked_rnn
from lightning_lr.layers.tree import Leaf, Node, Parallel, Series, depth_of, layers_in, leaves
from lightning_lr.layers.visits import Visits
from lightning_lr.layers.without_blocks import definition_order, plain_parts
from lightning_lr.layers.woven import weave, woven_in


class TreeReader:
    """Reads the order of layers from a module tree.

    Args:
        model: the root, unwrapped.
        passes: what forward passes show.
    """

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        self.model = model
        self.structure = Structure(model, passes)
        self.asked_timm = False

    @property
    def guesses(self) -> list[str]:
        """What was decided by names and by definition order without evidence, in words."""
        return self.structure.guesses

    def read(self) -> Series | None:
        """The order of layers, or ``None`` where the tree shows no repeated structure."""
        if not self.structure.bears("", self.model):
            return None
        tree = self._read("", self.model, "").tree()
        if layers_in(tree) < 2 < len(list(children(self.model))):
            return None  # all blocks are in outputs, so that everything was taken for the head
        if self.structure.small:
            parts, seen = definition_order(self.model, self.structure.passes, lists=False)
            if seen and (depth_of(parts), layers_in(parts)) > (depth_of(tree), layers_in(tree)):
                return None  # a Sequential among other parts of a chain
        return tree

    def _read(self, name: str, module: nn.Module, path: str, on_backbone: bool = False) -> Reading:
        matcher = group_matcher(module)
        if matcher is not None:
            self.asked_timm = True
            layers, head = matched_layers(names_in(module, ""), matcher)
            parts: list[Node] = [Leaf(joined(path, n), [joined(path, p) for p in ps]) for n, ps in layers]
            return Reading(parts=parts, head=[joined(path, p) for p in head])
        if self.structure.is_list(name, module):
            return blocks_of(
                self.structure, [[(joined(path, n), child)] for n, child in children(module)], own_of(module, path)
            )
        if is_stacked_rnn(module):
            return Reading(parts=list(rnn_layers(module, path)))
        return self._composed(module, path, on_backbone)

    def _composed(self, module: nn.Module, path: str, on_backbone: bool) -> Reading:
        """A module of parts: stem, blocks, head, towers, by the order of a forward pass, else by name and place."""
        inside = list(children(module))
        own = [name for name, p in module._parameters.items() if p is not None]
        visits = self.structure.passes.of(module, path)
        is_head = heads_of(self.structure, own, inside, visits)
        woven = woven_in(self.structure, inside, visits, is_head)
        items = items_of(self.structure, module, [part for part in inside if part[0] not in woven], visits, is_head)
        order = self.structure.passes.order(module)
        idle = idle_of(self.structure, items, visits, order)
        items = [item for item in items if item not in idle]
        groups = groups_of(self.structure, items, visits, on_backbone, isinstance(module, nn.ModuleDict))
        on_backbone = on_backbone or any(roles.BACKBONE.fullmatch(item.name) for item in items if item.bears)
        places = places_of(self.structure, items, groups, visits, is_head, order)
        owned = {name: place_of_own(name, groups, visits, is_head, order) for name in own}
        stems = stems_of_towers([*own, *(item.name for item in items if not item.bears)], groups, visits)
        for name in stems:
            places[name] = owned[name] = "a tower"
        reading, head = Reading(), [joined(path, name) for name in own if owned[name] == "head"]
        reading.stem += [joined(path, name) for name in own if owned[name] == "stem"]
        for item in (item for item in items if places.get(item.name) == "stem"):
            reading.stem += names_of(item, path)
        for index, group in enumerate(groups):
            above = any(roles.LANGUAGE.fullmatch(item.name) or roles.FUSION.fullmatch(item.name) for item in group)
            if len(group) == 1:
                read = self._item(group[0], path, on_backbone, visits)
            else:
                read = Reading()
                towers = []
                for item in group:
                    tower = self._item(item, path, on_backbone, visits)
                    for name in (name for name, members in stems.items() if members == members_of(item)):
                        child = module._modules.get(name)
                        tower.stem += [joined(path, name)] if child is None else names_in(child, joined(path, name))
                    towers.append(tower.tree(joined(path, item.name), head=False))
                    read.end_with(tower)
                read.parts = [Series([Parallel(list(towers))])]
            reading.follow(read, joined(path, group[0].name), with_stem=above and index > 0)
            for item in (item for item in items if places.get(item.name) == str(index)):
                names = names_of(item, path)
                if is_normalization(item.module) and not reading.after and len(group) == 1:
                    (
                        list(leaves(reading.parts[-1]))[-1].parameters if index + 1 < len(groups) else reading.norms
                    ).extend(names)
                else:
                    reading.after += names
            reading.after += [joined(path, name) for name in own if owned[name] == str(index)]
        for item in (item for item in items if places.get(item.name) == "head"):
            head += names_of(item, path)
        reading.head += head
        for name, child in inside:
            if name in woven:
                weave(self.structure, reading.parts, name, child, path, visits)
        if idle:
            aside = [self._item(item, path, on_backbone, visits) for item in idle]
            trees: list[Node] = [
                read.tree(joined(path, item.name), head=False) for item, read in zip(idle, aside, strict=True)
            ]
            reading.parts[-1] = Series([Parallel([reading.parts[-1]], trees)])
            for read in aside:
                reading.end_with(read)
        return reading

    def _item(self, item: Item, path: str, on_backbone: bool, visits: Visits | None) -> Reading:
        here = joined(path, item.name)
        if item.is_block:
            return Reading(parts=[Leaf(here, names_in(item.module, here))])
        if item.is_aside:
            top: list[str] = []
            parts, _ = (
                plain_parts(item.module, here, self.structure.passes, top) if not is_leaf(item.module) else ([], True)
            )
            names = top if parts else names_in(item.module, here)
            return Reading(parts=[*parts, Leaf(joined(here, "top") if parts else here, names)])
        steps = steps_of(item, visits) if item.is_list and visits is not None else []
        calls = {joined(path, n): place for n, place in visits.steps_of(None).items()} if visits is not None else {}
        if steps:
            return self._called_list(item, path, on_backbone, steps, calls)
        if len(item.children) > 1:
            return blocks_of(self.structure, list(in_turn(item.children, path)), [], calls=calls)
        read = self._read(item.name, item.module, here, on_backbone)
        if item.is_model and roles.NUMBERED.fullmatch(item.name) and group_matcher(item.module) is None:
            read.lead, read.stem = [*read.stem, *read.lead], []  # a stage has no stem of its own
        return read

    def _called_list(
        self, item: Item, path: str, on_backbone: bool, steps: Sequence[Sequence[str]], calls: Mapping[str, int]
    ) -> Reading:
        """A list in the order in which a forward pass calls its elements; those of one step stand side by side."""
        elements: dict[str, list[Named]] = {}
        for key, name, element in elements_of(item):
            elements.setdefault(key, []).append((joined(path, name), element))
        reading, series = Reading(), list[str]()
        for step in [*steps, None]:
            between = step is not None and item.is_mixed and all(is_leaf(m) for i in step for _, m in elements[i])
            if step is not None and len(step) == 1 and not between:
                series += step
                continue
            if series:
                blocks = blocks_of(self.structure, [elements[i] for i in series], [], calls=calls)
                reading.follow(blocks, joined(path, item.name))
                series = []
            if step is None:
                break
            if between:  # an upsampling before the next blocks
                reading.after += [p for i in step for at, m in elements[i] for p in names_in(m, at)]
                continue
            towers, read = list[Node](), Reading()
            for i in step:
                here, module = elements[i][0]
                if len(elements[i]) > 1 or not self.structure.bears("", module):
                    towers.append(Leaf(here, [p for at, m in elements[i] for p in names_in(m, at)]))
                    continue
                tower = self._read(i, module, here, on_backbone)
                towers.append(tower.tree(here, head=False))
                read.end_with(tower)
            read.parts = [Series([Parallel(towers)])]
            reading.follow(read, joined(path, item.name))
        if not reading.parts:
            return blocks_of(self.structure, list(elements.values()), [], calls=calls)
        own = [name for n, c in item.children for name in own_of(c, joined(path, n))]
        if own:
            next(leaves(reading.parts[0])).parameters[:0] = own
        return reading
