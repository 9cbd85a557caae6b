"""The order of a model's layers, read from its module tree and from what a forward pass through each module shows.

Repeated blocks in a ``ModuleList``, ``ModuleDict`` or ``Sequential``, and siblings of one class that are counted
through (``stage1``, ``stage2``), are the layers. What comes before the first is the stem, what follows the last the
head. A module that brings timm's ``group_matcher`` decides itself. Where no forward pass shows how sub-models stand to
one another, names and the order of definition decide (:mod:`~lightning_lr.layers.roles`).
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.matcher import group_matcher, matched_layers
from lightning_lr.layers.names import all_parameters, children, is_leaf, is_normalization, joined, leafs_of, names_in
from lightning_lr.layers.tree import Leaf, Node, Parallel, Series, leaves
from lightning_lr.layers.visits import Visits

Named = tuple[str, nn.Module]


@dataclass
class Reading:
    """What a module consists of, from input to head.

    Args:
        stem: parameters that are the stem.
        lead: parameters before the first block of a first stage: the stem where there is no other.
        parts: the layers.
        after: parameters that follow the layers.
        head: parameters that are the head by name.
    """

    stem: list[str] = field(default_factory=list)
    lead: list[str] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)

    def follow(self, other: Reading, path: str, with_stem: bool = False) -> None:
        """Append what comes next; what stands between two sets of blocks belongs to the first block after it.

        Args:
            other: what comes next.
            path: its name.
            with_stem: the stem of ``other`` stays a layer of its own, as that of a language model above a tower.
        """
        if not self.parts:
            self.stem += other.stem
            self.lead += other.lead
        elif other.parts:
            between = [*self.after, *self.head, *other.stem, *other.lead]
            self.after, self.head = [], []
            if with_stem and between:
                self.parts.append(Leaf(joined(path, "stem"), between))
            else:
                next(leaves(other.parts[0])).parameters[:0] = between
        else:
            self.after += [*other.stem, *other.lead]
        self.parts += other.parts
        self.after += other.after
        self.head += other.head

    def tree(self, path: str = "", head: bool = True) -> Series:
        """Stem, blocks and head as a series."""
        stem = [*self.stem]
        if self.lead and stem and self.parts:
            next(leaves(self.parts[0])).parameters[:0] = self.lead
        else:
            stem += self.lead
        top = [Leaf(joined(path, "head"), [*self.after, *self.head])] if head else []
        return Series([Leaf(joined(path, "stem"), stem, stem=True), *self.parts, *top])


@dataclass
class Item:
    """A part of a module in the order of its layers.

    Args:
        name: of the (first) child.
        children: one child, or the equally long lists that make one list of layers.
        bears: whether blocks are somewhere in it.
        is_block: a layer by itself: one of several siblings that are counted through.
        is_list: equally long lists, or one.
        is_aside: no blocks, next to those of others: an embedding of a second input that only the head reads.
    """

    name: str
    children: list[Named]
    bears: bool = False
    is_block: bool = False
    is_list: bool = False
    is_aside: bool = False

    @property
    def module(self) -> nn.Module:
        return self.children[0][1]

    @property
    def is_model(self) -> bool:
        """A module that bears blocks and is no list of them."""
        return self.bears and not self.is_block and not self.is_list and not self.is_aside


class TreeReader:
    """Reads the order of layers from a module tree.

    Args:
        model: the root, unwrapped.
        passes: what forward passes show.
    """

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        self.model = model
        self.passes = passes
        self.asked_timm = False
        self.guesses: list[str] = []
        """What was decided by names and by definition order without evidence, in words."""
        # leaf layers in a Sequential count only in a model that has no larger blocks anywhere
        self._small = False
        self._small = not self._bears("", model)

    def read(self) -> Series | None:
        """The order of layers, or ``None`` where the tree shows no repeated structure."""
        if not self._bears("", self.model):
            return None
        tree = self._read("", self.model, "").tree()
        if sum(bool(leaf.parameters) for leaf in leaves(tree)) < 2 < len(list(children(self.model))):
            return None  # all blocks are in outputs, so that everything was taken for the head
        return tree

    # ------------------------------------------------------------------ what a module is
    def _bears(self, name: str, module: nn.Module) -> bool:
        """Whether blocks are somewhere in a module."""
        if group_matcher(module) is not None or self._is_list(name, module) or _is_stacked_rnn(module):
            return True
        inside = list(children(module))
        if roles.numbered(inside):
            return True
        return any(self._bears(n, child) for n, child in inside if not self._is_aside(module, n))

    def _is_aside(self, parent: nn.Module, name: str, path: str = "?") -> bool:
        """Whether a child's modules are alternatives by its name, and no forward pass shows that they are a series."""
        if not roles.SIDE_BY_SIDE.fullmatch(name):
            return False
        if self._small and isinstance(parent._modules.get(name), nn.Sequential) and not roles.SMALL.fullmatch(name):
            return False  # the elements of a Sequential follow one another, whatever it is called
        visits = self.passes.of(parent, path)
        return visits is None or not visits.feeds_itself(name)

    def _is_list(self, name: str, module: nn.Module) -> bool:
        """Whether a container holds blocks that follow one another."""
        names = [n for n, _ in children(module)]
        is_dict = isinstance(module, nn.ModuleDict) and (type(module) is nn.ModuleDict or all(map(str.isdigit, names)))
        if not (is_dict or isinstance(module, nn.ModuleList | nn.Sequential)):
            return False
        inside = [
            (n, child) for n, child in children(module)
            if (not is_normalization(child) if self._small else not is_leaf(child))
        ]  # fmt: skip
        kinds = Counter(type(child) for _, child in inside)
        repeated = any(count > 1 for count in kinds.values())
        if is_dict:
            counted = all(roles.NUMBERED.fullmatch(n) for n, _ in inside) or roles.BLOCKS.fullmatch(name) is not None
            return repeated and counted and not roles.are_towers(n for n, _ in inside)
        return repeated or (len(inside) == 1 and not self._small and roles.BLOCKS.fullmatch(name) is not None)

    # ------------------------------------------------------------------ reading
    def _read(self, name: str, module: nn.Module, path: str, on_backbone: bool = False) -> Reading:
        matcher = group_matcher(module)
        if matcher is not None:
            self.asked_timm = True
            layers, head = matched_layers(names_in(module, ""), matcher)
            parts: list[Node] = [Leaf(joined(path, n), [joined(path, p) for p in ps]) for n, ps in layers]
            return Reading(parts=parts, head=[joined(path, p) for p in head])
        if self._is_list(name, module):
            return self._blocks([[(joined(path, n), child)] for n, child in children(module)], _own(module, path))
        if _is_stacked_rnn(module):
            return Reading(parts=list(_rnn_layers(module, path)))
        return self._composed(module, path, on_backbone)

    def _composed(self, module: nn.Module, path: str, on_backbone: bool) -> Reading:
        """A module of parts: stem, blocks, head, towers, by the order of a forward pass, else by name and place."""
        inside = list(children(module))
        own = [name for name, p in module._parameters.items() if p is not None]
        visits = self.passes.of(module, path)
        is_head = self._heads(own, inside, visits)
        woven = self._woven(inside, visits, is_head)
        items = self._items(module, [part for part in inside if part[0] not in woven], visits, is_head)
        groups = self._groups(items, visits, on_backbone)
        on_backbone = on_backbone or any(roles.BACKBONE.fullmatch(item.name) for item in items if item.bears)
        order = self.passes.order(module)
        places = self._places(items, groups, visits, is_head, order)
        owned = {name: self._place_of_own(name, groups, visits, is_head, order) for name in own}
        stems = self._stems_of_towers([*own, *(item.name for item in items if not item.bears)], groups, visits)
        for name in stems:
            places[name] = owned[name] = "a tower"
        reading, head = Reading(), [joined(path, name) for name in own if owned[name] == "head"]
        reading.stem += [joined(path, name) for name in own if owned[name] == "stem"]
        for item in (item for item in items if places.get(item.name) == "stem"):
            reading.stem += _names(item, path)
        for index, group in enumerate(groups):
            above = any(roles.LANGUAGE.fullmatch(item.name) or roles.FUSION.fullmatch(item.name) for item in group)
            if len(group) == 1:
                read = self._item(group[0], path, on_backbone, visits)
            else:
                read = Reading()
                towers = []
                for item in group:
                    tower = self._item(item, path, on_backbone, visits)
                    for name in (name for name, members in stems.items() if members == _members(item)):
                        child = module._modules.get(name)
                        tower.stem += [joined(path, name)] if child is None else names_in(child, joined(path, name))
                    towers.append(tower.tree(joined(path, item.name), head=False))
                    read.after += tower.after
                    read.head += tower.head
                read.parts = [Series([Parallel(list(towers))])]
            reading.follow(read, joined(path, group[0].name), with_stem=above and index > 0)
            for item in (item for item in items if places.get(item.name) == str(index)):
                names = _names(item, path)
                if is_normalization(item.module) and not reading.after and len(group) == 1:
                    (
                        list(leaves(reading.parts[-1]))[-1].parameters if index + 1 < len(groups) else reading.after
                    ).extend(names)
                else:
                    reading.after += names
            reading.after += [joined(path, name) for name in own if owned[name] == str(index)]
        for item in (item for item in items if places.get(item.name) == "head"):
            head += _names(item, path)
        reading.head += head
        for name, child in inside:
            if name in woven:
                self._weave(reading, name, child, path, visits)
        return reading

    def _stems_of_towers(
        self, names: Sequence[str], groups: Sequence[Sequence[Item]], visits: Visits | None
    ) -> dict[str, list[str]]:
        """Parts that lie open in a module and are the input of one of its towers alone: to the tower's members."""
        members = [_members(item) for group in groups for item in group]
        if visits is None or not all(visits.has(*m) for m in members):
            return {}
        found: dict[str, list[str]] = {}
        for name in names:
            if not visits.has(name) or any(visits.reaches(m, [name]) for m in members):
                continue
            reached = [
                (i, m) for i, group in enumerate(groups)
                if (m := [_members(b) for b in group if visits.enters(name, _members(b))])
            ]  # fmt: skip
            if reached and len(groups[reached[0][0]]) > 1 and len(reached[0][1]) == 1:
                found[name] = reached[0][1][0]
        return found

    def _heads(self, own: Sequence[str], inside: Sequence[Named], visits: Visits | None) -> roles.IsHead:
        """Heads by name; one with blocks whose output another part reads is none."""
        by_name = roles.heads([*((name, None) for name in own), *inside])
        others = [name for name, _ in inside if not by_name(name)]
        misnamed = {
            name for name, child in inside
            if visits is not None and by_name(name) and self._bears(name, child) and visits.reaches([name], others)
        }  # fmt: skip
        return lambda name: by_name(name) and name not in misnamed

    def _place_of_own(
        self, name: str, groups: Sequence[Sequence[Item]], visits: Visits | None, is_head: roles.IsHead,
        order: Mapping[str, int],
    ) -> str:  # fmt: skip
        """Where a parameter of the module itself belongs: below the first blocks that it reaches, else the head."""
        members = [_members(item) for group in groups for item in group]
        if visits is not None and visits.has(name) and members and all(visits.has(*m) for m in members):
            reached = [i for i, group in enumerate(groups) if any(visits.enters(name, _members(b)) for b in group)]
            return "head" if not reached else "stem" if reached[0] == 0 else str(reached[0] - 1)
        if is_head(name) and name != "cls":  # as a parameter it is a token
            return "head"
        if visits is None and name in order and members and all(n in order for m in members for n in m):
            return "head" if order[name] > max(order[n] for m in members for n in m) else "stem"
        return "stem"

    # ------------------------------------------------------------------ lists between another module's blocks
    def _woven(self, inside: Sequence[Named], visits: Visits | None, is_head: roles.IsHead) -> set[str]:
        """Lists whose elements are called between the blocks of a sibling: adapters, prompts of every layer."""
        found: set[str] = set()
        for name, child in inside:
            if visits is not None and visits.within_another(name) and not is_head(name):
                found.add(name)
            if not isinstance(child, nn.ModuleList | nn.ParameterList) or is_head(name) or len(child) < 2:
                continue
            called = visits.elements(name) if visits is not None else []
            others = [
                n for n, c in inside
                if n != name and not isinstance(c, nn.ParameterList)
                and (not isinstance(c, nn.ModuleList) or _is_tuner(name, child) or isinstance(child, nn.ParameterList))
            ]  # fmt: skip
            if visits is None or not called:
                if _is_tuner(name, child) and any(self._bears(n, c) for n, c in inside if n != name):
                    found.add(name)
            elif not visits.feeds_nothing(name) or isinstance(child, nn.ParameterList):
                first, last = visits.position[called[0]], visits.position[called[-1]]
                blocks = visits.steps_of(others)
                between = sum(first < place < last for place in blocks.values())
                if between and between >= len(called) - 1:
                    found.add(name)
        return found

    def _weave(self, reading: Reading, name: str, child: nn.Module, path: str, visits: Visits | None) -> None:
        """Give each element of a woven list to the block that is called before it, else to the one after it."""
        here = joined(path, name)
        layers = [leaf for part in reading.parts for leaf in leaves(part)]
        called = set(visits.elements(name)) if visits is not None else set()
        elements = list(_elements(child, here))
        if name in (visits.position if visits is not None else ()):  # called itself
            elements, called = [("", names_in(child, here))], {name}
        if not called:
            self.guesses.append(f"{name} is taken to belong to the blocks one by one")
        blocks: list[tuple[int, Leaf]] = []
        for unit, place in (visits.steps_of(None) if visits is not None else {}).items():
            full = joined(path, unit)
            leaf = next((la for la in layers if full == la.name or full.startswith(f"{la.name}.")), None)
            if leaf is not None:
                blocks.append((place, leaf))
        blocks.sort(key=lambda block: block[0])
        for index, (i, names) in enumerate(elements):
            if not called or not blocks:
                at = min(index * len(layers) // len(elements), len(layers) - 1)
                layers[at].parameters += names
                continue
            unit = joined(name, i) if i else name
            place = visits.position.get(unit, -1) if visits is not None else -1
            below, above = ([leaf for at, leaf in blocks if (at < place) == low] for low in (True, False))
            first = min((p for u, p in visits.position.items() if u in called), default=0) if visits else 0
            prompts = first < blocks[0][0]  # the input of the block after them
            leaf = above[0] if above and (prompts or not below) else below[-1]
            leaf.parameters += names

    # ------------------------------------------------------------------ the parts of a module
    def _items(
        self, module: nn.Module, inside: Sequence[Named], visits: Visits | None, is_head: roles.IsHead
    ) -> list[Item]:
        """The children as items, in the order of a forward pass where one shows it, else of definition."""
        counted = roles.numbered([(n, child) for n, child in inside if not is_head(n)])
        kinds = {type(child) for n, child in inside if n in counted}
        lists = [(n, c) for n, c in inside if not is_head(n) and isinstance(c, nn.ModuleList | nn.ModuleDict)]
        zipped = {n: together for together in self._zipped(lists, inside, visits) for n, _ in together}
        items: list[Item] = []
        done: set[str] = set()
        for name, child in inside:
            if name in done:
                continue
            if name in zipped:
                done |= {n for n, _ in zipped[name]}
                items.append(Item(name, zipped[name], bears=True, is_list=True))
                continue
            bears = not is_head(name) and not self._is_aside(module, name) and self._bears(name, child)
            is_list = bears and self._is_list(name, child) and group_matcher(child) is None
            block = not bears and not is_head(name) and not is_leaf(child)
            block = block and (name in counted or type(child) in kinds or roles.MIDDLE.fullmatch(name) is not None)
            items.append(Item(name, [(name, child)], bears or block, is_block=block, is_list=is_list))
        if visits is not None and self._small and all(visits.has(*_members(item)) for item in items):
            last = [i for i in items if not any(visits.reaches(_members(i), _members(o)) for o in items if o is not i)]
            for item in last if len(last) > 1 and len(last) < len(items) else ():
                if not visits.also_alone(_members(item)):
                    item.bears = item.is_list = False  # one of several outputs is a head, however many layers it has
        for item in items if visits is not None else ():
            others = [n for other in items if other.bears and other is not item for n in _members(other)]
            output = item.is_list and isinstance(item.module, nn.ModuleList) and len(item.children) == 1
            if visits is None or not output or visits.feeds_itself(item.name):
                continue
            if visits.feeds_nothing(item.name) and visits.reaches(others, [item.name]):
                item.bears = item.is_list = False  # an output after every block, or several at the end
        for item in items if visits is not None and all(visits.has(*_members(i)) for i in items if i.bears) else ():
            blocks = [n for other in items if other.bears and not other.is_aside for n in _members(other)]
            rest = [other.name for other in items if not other.bears and other is not item]
            if visits is None or item.bears or not blocks or is_head(item.name) or not visits.has(item.name):
                continue
            apart = not visits.enters(item.name, blocks) and not visits.reaches(blocks, [item.name])
            if apart and visits.reaches([item.name], [n for n in rest if visits.reaches(blocks, [n])]):
                item.bears = item.is_aside = True  # it joins the blocks above them
        order = self.passes.order(module)
        if visits is None and order:
            visits = Visits(order, {name: set() for name in order})
        if visits is not None:
            items = _as_called(items, visits)
        for item in _between_stages(items):
            item.bears = item.is_block = False
        # the first of a kind that is not counted through is the stem (the `inc` of a U-Net)
        for index, item in enumerate(items):
            first = not any(other.bears for other in items[:index])
            if item.is_block and item.name not in counted and (first or not any(i.bears for i in items[index + 1 :])):
                item.bears = item.is_block = False
        return items

    def _zipped(self, lists: Sequence[Named], inside: Sequence[Named], visits: Visits | None) -> Iterator[list[Named]]:
        """Lists in one module that are visited in turn: each holds one part of every layer."""
        place = {name: index for index, (name, _) in enumerate(inside)}
        waiting = [
            (n, c) for n, c in lists
            if len(list(children(c))) > 1
            and (not roles.SIDE_BY_SIDE.fullmatch(n) or (visits is not None and visits.feeds_itself(n)))
        ]  # fmt: skip
        while waiting:
            name, first = waiting.pop(0)
            count = len(list(children(first)))
            together = [(name, first)]
            seen = visits is not None and visits.has(name)
            for n, other in waiting:
                norms = all(is_normalization(c) for _, c in children(other)) or _all_norms(first)
                length = len(list(children(other)))
                called = visits is not None and seen and visits.has(n)
                if not (length == count or ((norms or called) and abs(count - length) == 1)):
                    continue
                if visits is not None and called:
                    outputs = visits.feeds_nothing(name) or visits.feeds_nothing(n)
                    in_turn = visits.in_turn(name, n) and not outputs
                else:
                    between = [c for m, c in inside[place[name] + 1 : place[n]] if (m, c) not in lists]
                    blocks = any(not is_leaf(child) for child in between)
                    opposite = roles.OPPOSITES.fullmatch(name) and roles.OPPOSITES.fullmatch(n)
                    named = roles.PART_OF_A_LAYER.fullmatch(name) or roles.PART_OF_A_LAYER.fullmatch(n)
                    in_turn = not blocks and not opposite and bool(norms or named)
                    if not in_turn and not blocks and not opposite and not _counted_apart(name, n):
                        self.guesses.append(
                            f"the lists {name} and {n} are equally long; they are taken to follow one another"
                        )
                if in_turn:
                    together.append((n, other))
            waiting = [(n, c) for n, c in waiting if all(n != m for m, _ in together)]
            if len(together) > 1:
                yield sorted(together, key=lambda part: place[part[0]])

    def _groups(self, items: Sequence[Item], visits: Visits | None, on_backbone: bool) -> list[list[Item]]:
        """What bears blocks, from input to head; what is in one group stands side by side."""
        bearing = [item for item in items if item.bears]
        models = [item for item in bearing if item.is_model]
        twins: dict[str, str] = {}
        on_backbone = on_backbone or any(roles.BACKBONE.fullmatch(item.name) for item in models)
        for encoder in models:
            for decoder in models:
                halves = (encoder.name, encoder.module), (decoder.name, decoder.module)
                tokens = visits is not None and _reads_tokens_of_its_own(encoder, decoder, visits)
                if on_backbone or encoder is decoder or not roles.is_encoder_decoder(*halves, tokens):
                    continue
                if visits is None or _reads_for_itself(encoder, decoder, visits):
                    twins[encoder.name] = twins[decoder.name] = encoder.name
        unseen = [i for i in bearing if visits is None or not visits.has(*_members(i))]
        if unseen and len(bearing) > 1 and len(unseen) < len(bearing) and roles.are_towers(i.name for i in bearing):
            return self._groups_by_name(items, bearing, models, twins)
        if visits is not None and all(visits.has(*(n for n, _ in item.children)) for item in models):
            groups: list[list[Item]] = []
            for item in bearing:
                names = [n for n, _ in item.children]
                last = groups[-1] if groups else []
                apart = last and all(
                    twins.get(other.name, other.name) == twins.get(item.name)
                    or roles.are_opponents(other.name, item.name)
                    or visits.also_alone(names)
                    or not visits.reaches([n for n, _ in other.children], names)
                    for other in last
                )
                if apart and (item.is_model or visits.has(*names)):
                    last.append(item)
                else:
                    groups.append([item])
            return groups
        return self._groups_by_name(items, bearing, models, twins)

    def _groups_by_name(
        self, items: Sequence[Item], bearing: list[Item], models: list[Item], twins: dict[str, str]
    ) -> list[list[Item]]:
        halves = any(word in roles.words(item.name) for item in bearing for word in ("encoder", "decoder"))
        if len(bearing) > 1 and not models and not halves and roles.are_towers(item.name for item in bearing):
            return [bearing]
        if len(models) < 2:
            if len(bearing) == 2 and models and roles.BACKBONE.fullmatch(models[0].name):
                bearing.sort(key=lambda item: item is not models[0])
            return [[item] for item in bearing]
        names = [item.name for item in models]
        towers = [item for item in models if roles.MODALITY.fullmatch(item.name)]
        writers = [item for item in models if roles.LANGUAGE.fullmatch(item.name)]
        others = [item for item in models if item not in towers and item not in writers]
        texts = [item for item in others if "text" in roles.words(item.name)]
        connected = any(roles.CONNECTOR.fullmatch(item.name) for item in items)
        fusion = [item for item in others if roles.FUSION.fullmatch(item.name)]
        if len(writers) == len(models) or (len(writers) == 1 and not towers and not others):
            writers, others = [], models
        order: list[list[Item]] = []
        if towers and fusion and texts and not writers:
            order = [[*towers, *texts], *([item] for item in others if item not in texts)]
        elif towers and (writers or (connected and texts) or (others and not texts and len(towers) < len(models))):
            middle = [item for item in others if item not in texts]
            paired = [item for item in middle if item.name in twins]
            middle = [item for item in middle if item not in paired]
            order = [towers, *([item] for item in middle), *([paired] if paired else [])]
            top = [*texts, *writers]
            order += [top] if any(item.name in twins for item in top) else [[item] for item in top]
        elif roles.are_towers(names) and not (
            len(models) == 2 and set(map(_role, names)) == {"encoder", "decoder"} and not twins
        ):
            order = [models]
        else:
            first = [item for item in models if roles.BACKBONE.fullmatch(item.name)]
            for item in [*first, *(item for item in models if item not in first)]:
                if item.name in twins and order and twins[item.name] in [twins.get(i.name) for i in order[-1]]:
                    order[-1].append(item)
                else:
                    order.append([item])
            counted = roles.numbered([(item.name, item.module) for item in models])
            endings = Counter(m.group(1) for i in models if (m := roles.SUFFIX.fullmatch(i.name)))
            alike = [
                i.name for i in models
                if (m := roles.SUFFIX.fullmatch(i.name)) and endings[m.group(1)] > 1
            ]  # fmt: skip
            unclear = [
                n for n in names
                if n not in counted and n not in twins and (not roles.IN_SERIES.fullmatch(n) or n in alike)
            ]  # fmt: skip
            if len(unclear) > 1:
                self.guesses.append(f"{', '.join(names)} are taken to follow one another")
        rest = [item for item in bearing if item not in models]
        if not rest:
            return order
        # lists between sub-models stay where they are defined
        placed = [[item] for item in bearing if not any(item in group for group in order if len(group) > 1)]
        sides = [group for group in order if len(group) > 1]
        if not sides:
            chain = iter([item for group in order for item in group])
            return [[next(chain)] if item in models else [item] for item in bearing]
        for group in sides:
            at = min(bearing.index(item) for item in group)
            placed.insert(sum(bearing.index(other[0]) < at for other in placed), group)
        return placed

    def _places(
        self,
        items: Sequence[Item],
        groups: Sequence[Sequence[Item]],
        visits: Visits | None,
        is_head: roles.IsHead,
        order: dict[str, int],
    ) -> dict[str, str]:
        """Where the parts without blocks belong: ``"stem"``, ``"head"``, or the index of the group that they follow."""
        group_of = {item.name: index for index, group in enumerate(groups) for item in group}
        places: dict[str, str] = {}
        last = len(groups) - 1
        seen = -1
        for place, item in enumerate(items):
            if item.bears:
                seen = max(seen, group_of[item.name])
                continue
            name, module = item.name, item.module
            if visits is not None and visits.has(name) and all(visits.has(*_members(i)) for g in groups for i in g):
                from_blocks = [i for i, g in enumerate(groups) if any(visits.reaches(_members(b), [name]) for b in g)]
                to_blocks = [i for i, g in enumerate(groups) if any(visits.reaches([name], _members(b)) for b in g)]
                if not from_blocks:  # also what a later call reads
                    to_blocks = [i for i, g in enumerate(groups) if any(visits.enters(name, _members(b)) for b in g)]
                if not to_blocks:
                    places[name] = str(max(from_blocks)) if from_blocks and is_normalization(module) else "head"
                elif not from_blocks:  # the stem, or the input of later blocks alone
                    places[name] = "stem" if min(to_blocks) == 0 else str(min(to_blocks) - 1)
                else:
                    places[name] = str(min(max(from_blocks), max(min(to_blocks) - 1, 0)))
                continue
            if is_head(name):
                places[name] = "head"
            elif roles.CONNECTOR.fullmatch(name) and len(groups) > 1:
                towers = [i for i, g in enumerate(groups) if any(roles.MODALITY.fullmatch(b.name) for b in g)]
                places[name] = str(min(max(towers, default=seen), last - 1)) if towers else self._by_place(seen)
            elif roles.is_stem(name, module):
                places[name] = "stem"
            elif roles.INPUT.fullmatch(name) and name not in order and seen >= 0:
                backbones = [i for i, g in enumerate(groups[:-1]) if any(roles.BACKBONE.fullmatch(b.name) for b in g)]
                places[name] = str(max(backbones)) if backbones else self._by_place(seen)
            elif seen < 0 and groups and name not in order and _may_be_a_late_head(name, module):
                rest = items[place + 1 :]
                if any(other.bears for other in rest):
                    self.guesses.append(f"{name} is defined before the blocks and taken for the head by its name")
                places[name] = "head"
            else:
                places[name] = self._by_place(seen)
        return places

    def _by_place(self, seen: int) -> str:
        return "stem" if seen < 0 else str(seen)

    def _item(self, item: Item, path: str, on_backbone: bool, visits: Visits | None) -> Reading:
        here = joined(path, item.name)
        if item.is_block:
            return Reading(parts=[Leaf(here, names_in(item.module, here))])
        if item.is_aside:
            top: list[str] = []
            parts, _ = _plain(item.module, here, self.passes, top) if not is_leaf(item.module) else ([], True)
            names = top if parts else names_in(item.module, here)
            return Reading(parts=[*parts, Leaf(joined(here, "top") if parts else here, names)])
        steps = _steps(item, visits) if item.is_list and visits is not None else []
        if steps:
            return self._called_list(item, path, on_backbone, steps)
        if len(item.children) > 1:
            return self._blocks(list(_in_turn(item.children, path)), [])
        read = self._read(item.name, item.module, here, on_backbone)
        if item.is_model and roles.NUMBERED.fullmatch(item.name) and group_matcher(item.module) is None:
            read.lead, read.stem = [*read.stem, *read.lead], []  # a stage has no stem of its own
        return read

    def _called_list(self, item: Item, path: str, on_backbone: bool, steps: Sequence[Sequence[str]]) -> Reading:
        """A list in the order in which a forward pass calls its elements; those of one step stand side by side."""
        elements = {i: [(joined(joined(path, n), i), m) for n, c in item.children for k, m in children(c) if k == i]
                    for step in steps for i in step}  # fmt: skip
        reading, series = Reading(), list[str]()
        for step in [*steps, None]:
            if step is not None and len(step) == 1:
                series += step
                continue
            if series:
                reading.follow(self._blocks([elements[i] for i in series], []), joined(path, item.name))
                series = []
            if step is None:
                break
            towers, read = list[Node](), Reading()
            for i in step:
                here, module = elements[i][0]
                if len(elements[i]) > 1 or not self._bears("", module):
                    towers.append(Leaf(here, [p for at, m in elements[i] for p in names_in(m, at)]))
                    continue
                tower = self._read(i, module, here, on_backbone)
                towers.append(tower.tree(here, head=False))
                read.after += tower.after
                read.head += tower.head
            read.parts = [Series([Parallel(towers)])]
            reading.follow(read, joined(path, item.name))
        own = [name for n, c in item.children for name in _own(c, joined(path, n))]
        if own:
            next(leaves(reading.parts[0])).parameters[:0] = own
        return reading

    # ------------------------------------------------------------------ blocks
    def _blocks(self, elements: Sequence[Sequence[Named]], waiting: list[str], stages: bool = True) -> Reading:
        """The layers of a list: one per element, or per block of an element that is a stage.

        Args:
            elements: path and module of the parts of each element.
            waiting: parameters that the first layer gets.
            stages: whether elements may be stages.
        """
        found: list[Leaf] = []
        lead: list[str] = []
        paired = _pairs(elements)
        as_stages = [self._stage(parts) if stages else None for parts in paired]
        last = max((i for i, stage in enumerate(as_stages) if stage is not None), default=-1)
        for index, parts in enumerate(paired):
            here = parts[0][0]
            if all(is_normalization(module) for _, module in parts):
                names = [name for path, module in parts for name in names_in(module, path)]
                (found[-1].parameters if found else waiting).extend(names)
                continue
            new = as_stages[index]
            if new is None:
                names = [name for path, module in parts for name in names_in(module, path)]
                stage = as_stages[index - 1] if index else None
                if stage is not None and index < last and 2 * len(names) <= min(len(b.parameters) for b in stage[1]):
                    waiting = [*waiting, *names]  # what stands between two stages: a downsampling
                    continue
                new = [], [Leaf(here, names)]
            before, leafs = new
            if not found:
                lead, waiting = [*waiting, *before] if before else [], [] if before else waiting
            else:
                waiting = [*waiting, *before]
            leafs[0].parameters[:0] = waiting
            waiting = []
            found += leafs
        if waiting:  # nothing but norms
            found.append(Leaf(elements[0][0][0].rpartition(".")[0], waiting))
        return Reading(lead=lead, parts=list(found))

    def _stage(self, parts: Sequence[Named]) -> tuple[list[str], list[Leaf]] | None:
        """The blocks of a stage, and what it has before them; what comes after them belongs to the last."""
        if self._small:
            return None
        if len(parts) == 1:
            path, module = parts[0]
            if group_matcher(module) is not None:
                return None
            if self._is_list("", module) and not isinstance(module, nn.ModuleDict):
                if not _alike(module):
                    return None
                inner = self._blocks([[(joined(path, n), c)] for n, c in children(module)], _own(module, path), False)
                return inner.lead, list(leaves(Series(inner.parts)))
            parts = [(joined(path, n), child) for n, child in children(module)]
            before = _own(module, path)
            lists = {
                here for here, c in parts
                if roles.STAGE.fullmatch(here.rpartition(".")[2]) and self._is_list(here.rpartition(".")[2], c)
            }  # fmt: skip
        else:
            before = []
            lists = {
                here
                for here, c in parts
                if isinstance(c, nn.ModuleList | nn.Sequential) and self._is_list("", c) and _alike(c)
            }
        if not lists:
            return None
        found: list[Leaf] = []
        for here, child in parts:
            if here in lists:
                inner = self._blocks([[(joined(here, n), c)] for n, c in children(child)], _own(child, here), False)
                blocks = list(leaves(Series(inner.parts)))
                if found:
                    blocks[0].parameters[:0] = before
                    before = []
                found += blocks
            elif found:
                found[-1].parameters.extend(names_in(child, here))
            else:
                before += names_in(child, here)
        return before, found


# ---------------------------------------------------------------------- small questions
def _own(module: nn.Module, path: str) -> list[str]:
    return [joined(path, name) for name, p in module._parameters.items() if p is not None]


def _names(item: Item, path: str) -> list[str]:
    return [p for name, child in item.children for p in names_in(child, joined(path, name))]


def _members(item: Item) -> list[str]:
    return [name for name, _ in item.children]


def _as_called(items: Sequence[Item], visits: Visits) -> list[Item]:
    """Items in the order of a forward pass; what it does not call stays behind what is defined before it."""
    keys: list[tuple[float, int]] = []
    for place, item in enumerate(items):
        called = visits.has(*_members(item))
        keys.append((visits.at(_members(item)) if called else max(keys)[0] if keys else -1.0, place))
    return [items[place] for _, place in sorted(keys)]


def _between_stages(items: Sequence[Item]) -> list[Item]:
    """Blocks that are a layer with its norm each, and come in turn with lists that bear their numbers: patch_embed1,
    block1, patch_embed2, block2 (SegFormer, PVT). They lead to the list after them.
    """
    series: dict[str, list[Item]] = {}
    for item in items:
        if item.is_block and (found := roles.NUMBERED.fullmatch(item.name)) and len(list(leafs_of(item.module))) <= 2:
            series.setdefault(found.group(1), []).append(item)
    between: list[Item] = []
    for parts in series.values():
        numbers = {_number(part) for part in parts}
        lists = [i for i in items if i.bears and not i.is_block and not i.is_aside and _number(i) in numbers]
        turns = [item in lists for item in items if item in parts or item in lists]
        if len(parts) > 1 and len(lists) == len(parts) and all(one != other for one, other in pairwise(turns)):
            between += parts
    return between


def _number(item: Item) -> str:
    found = roles.NUMBERED.fullmatch(item.name)
    return found.group(2) if found else ""


def _steps(item: Item, visits: Visits) -> list[list[str]]:
    """The elements of a list in the order of their calls, side by side where none feeds the other.

    Empty where the pass did not call each of them.
    """
    units: dict[str, list[str]] = {}
    for name, module in item.children:
        for key, _ in children(module):
            units.setdefault(key, []).append(joined(name, key))
    if not all(unit in visits.position for names in units.values() for unit in names):
        return []
    steps: list[list[str]] = []
    for key in sorted(units, key=lambda k: visits.at(units[k])):
        if steps and not any(visits.reaches(units[other], units[key]) for other in steps[-1]):
            steps[-1].append(key)
        else:
            steps.append([key])
    return steps


def _reads_for_itself(encoder: Item, decoder: Item, visits: Visits) -> bool:
    """Whether a decoder may have an input of its own, so that it is parallel to the encoder."""
    if visits.reaches([decoder.name], [encoder.name]):
        return False
    fed = encoder.name in visits.read.get(decoder.name, ())
    return not fed or roles.has_cross_attention(decoder.module)


def _reads_tokens_of_its_own(encoder: Item, decoder: Item, visits: Visits) -> bool:
    """Whether a decoder's first argument comes from the input, and what the encoder makes is in another one."""
    return (
        decoder.name in visits.own_input
        and encoder.name not in visits.read[decoder.name]
        and visits.reaches([encoder.name], [decoder.name])
    )


def _is_tuner(name: str, module: nn.Module) -> bool:
    """Whether a list holds small parts for every layer by its name."""
    return roles.TUNER.fullmatch(name) is not None and isinstance(module, nn.ModuleList | nn.ParameterList)


def _elements(module: nn.Module, path: str) -> Iterator[tuple[str, list[str]]]:
    """Elements of a list of modules or parameters, with the names of their parameters."""
    for name, parameter in module._parameters.items():
        if parameter is not None:
            yield name, [joined(path, name)]
    for name, child in children(module):
        yield name, names_in(child, joined(path, name))


def _may_be_a_late_head(name: str, module: nn.Module) -> bool:
    return roles.LATE_HEAD.fullmatch(name) is not None and not isinstance(module, nn.Embedding)


def _role(name: str) -> str:
    return next((word for word in ("encoder", "decoder") if word in name), name)


def _all_norms(module: nn.Module) -> bool:
    return all(is_normalization(child) for _, child in children(module))


def _counted_apart(one: str, other: str) -> bool:
    """Whether two names differ in a number only: layers1 and layers2."""
    return re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other)


def _pairs(elements: Sequence[Sequence[Named]]) -> Sequence[Sequence[Named]]:
    """The elements of a list; an attention and the MLP after it, which share no name, are one."""
    if len(elements) < 4 or len(elements) % 2 or any(len(parts) > 1 or is_leaf(parts[0][1]) for parts in elements):
        return elements
    kinds = [roles.signature(parts[0][1]) for parts in elements]
    second = kinds[1]
    if kinds[0] != kinds[2] or any(kind != second for kind in kinds[1::2]):
        return elements
    if any(not kind.isdisjoint(second) for kind in kinds[::2]):
        return elements
    if not (_is_called(elements[0], kinds[0], roles.ATTENTION) and _is_called(elements[1], second, roles.FEED_FORWARD)):
        return elements
    return [[*elements[i], *elements[i + 1]] for i in range(0, len(elements), 2)]


def _is_called(parts: Sequence[Named], names: Iterable[str], kind: re.Pattern[str]) -> bool:
    """Whether a block is of a kind by its class or by the names of its parameters."""
    return any(kind.search(name) for name in (type(parts[0][1]).__name__, *names))


def _alike(module: nn.Module) -> bool:
    """Whether the elements of a list are blocks of one kind, not the attention and the MLP of one block."""
    kinds = [roles.signature(child) for _, child in children(module)]
    return any(a <= b or b <= a for a, b in pairwise(kinds))


def _in_turn(lists: Sequence[Named], path: str) -> Iterator[list[Named]]:
    """Element i of equally long lists, from the first to the last."""
    elements = [[(joined(joined(path, n), i), child) for i, child in children(c)] for n, c in lists]
    for index in range(max(map(len, elements))):
        yield [parts[index] for parts in elements if index < len(parts)]


def _is_stacked_rnn(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and module.num_layers > 1


def _rnn_layers(module: nn.Module, path: str) -> Iterator[Leaf]:
    """The layers of ``nn.LSTM(num_layers=3)``, whose parameters are called ``weight_ih_l0``, ``weight_ih_l1``, ..."""
    by_layer: dict[int, list[str]] = {}
    for name, _ in all_parameters(module):
        found = re.search(r"_l(\d+)", name)
        by_layer.setdefault(int(found.group(1)) if found else 0, []).append(joined(path, name))
    for layer in sorted(by_layer):
        yield Leaf(f"{joined(path, 'l')}{layer}", by_layer[layer])


def definition_order(model: nn.Module, passes: Passes) -> tuple[Series, bool]:
    """One layer per child module, norms with what they follow, and whether forward passes show the order.

    With a forward pass, children are as far from the top as the longest way from them to the output; else they are in
    the order of the text of ``forward`` or of definition, heads by name last. Where there are one or two children, such
    as a backbone and what follows it, those that have parts are read in turn.
    """
    head: list[str] = []
    parts, seen = _plain(model, "", passes, head)
    return Series([*parts, Leaf("head", head)]), seen


def _plain(module: nn.Module, path: str, passes: Passes, head: list[str]) -> tuple[list[Node], bool]:
    inside = list(children(module))
    own = [name for name, p in module._parameters.items() if p is not None]
    visits = passes.of(module, path)
    seen = visits is not None and visits.has(*(name for name, _ in inside))
    by_name = roles.heads([*((name, None) for name in own), *inside])
    others = [name for name, _ in inside if not by_name(name)]
    tops = [
        (name, child) for name, child in inside
        if by_name(name) and not (seen and visits is not None and visits.reaches([name], others))
    ]  # fmt: skip
    bodies = [part for part in inside if part not in tops]
    # weights that the module uses by itself are parts like any other
    weights = [n for n in own if not by_name(n) and (module._parameters[n].ndim > 1 or not inside)]  # type: ignore[union-attr]
    used = len(weights) > 1 and not inside and (visits is None or visits.has(*weights))
    order = passes.order(module)
    if used and visits is None:
        used = all(name in order for name in weights)
    nodes: dict[str, Node] = {}
    certain = seen or len(bodies) < 2
    if used:
        certain = visits is not None
        nodes = {name: Leaf(joined(path, name), [joined(path, name)]) for name in weights}
        nodes = dict(sorted(nodes.items(), key=lambda n: visits.at([n[0]]) if visits is not None else order[n[0]]))
    elif not inside and len([n for n in own if not by_name(n)]) > 1 and not path:
        certain = False
    if seen and visits is not None:
        bodies.sort(key=lambda part: visits.at([part[0]]))
    elif all(name in order for name, _ in bodies):
        bodies.sort(key=lambda part: order[part[0]])
    for name, child in bodies:
        here = joined(path, name)
        before = [
            other for other, c in bodies
            if other in nodes and (not seen or visits is None or visits.reaches([other], [name]))
        ]  # fmt: skip
        steps = visits.elements(name) if isinstance(child, nn.ParameterList) and visits is not None else []
        if is_normalization(child) and before:
            list(leaves(nodes[before[-1]]))[-1].parameters += names_in(child, here)
        elif len(steps) == len(list(child.parameters())) > 1 and visits is not None:
            nodes |= {unit: Leaf(joined(path, unit), [joined(path, unit)]) for unit in steps}
        elif is_leaf(child) or len(bodies) > 2:
            nodes[name] = Leaf(here, names_in(child, here))
        else:
            inner: list[str] = []
            parts, sure = _plain(child, here, passes, inner)
            certain = certain and sure
            if name == bodies[-1][0]:
                head += inner
            else:
                parts.append(Leaf(joined(here, "head"), inner))
            nodes[name] = Series(parts)
    head += [p for name, child in tops for p in names_in(child, joined(path, name))]
    head += [joined(path, name) for name in own if by_name(name)]
    first = [joined(path, name) for name in own if not by_name(name) and name not in nodes]
    stem = Leaf(joined(path, "stem"), first, stem=True)
    if (seen or used) and visits is not None:
        return [stem, *_levels(nodes, visits)], certain
    return [stem, *nodes.values()], certain


def _levels(nodes: dict[str, Node], visits: Visits) -> list[Node]:
    """Parts by the longest way to the output, in groups that stand side by side."""
    level: dict[str, int] = {}
    for name in reversed(list(nodes)):
        level[name] = 1 + max((level[other] for other in level if visits.reaches([name], [other])), default=-1)
    found: list[Node] = []
    for height in sorted(set(level.values()), reverse=True):
        together = [node for name, node in nodes.items() if level[name] == height]
        found.append(together[0] if len(together) == 1 else Parallel(together))
    return found
