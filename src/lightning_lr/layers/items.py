"""The parts of a module in the order of its layers: children, and equally long lists that are visited in turn."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import children, is_leaf, is_normalization, joined, leafs_of, names_in
from lightning_lr.layers.structure import Named, Structure
from lightning_lr.layers.visits import Visits


@dataclass
class Item:
    """A part of a module in the order of its layers.

    Args:
        name: of the (first) child.
        children: one child, or the equally long lists that make one list of layers.
        bears: whether blocks are somewhere in it.
        is_block: a layer by itself: one of several siblings that are counted through.
        is_list: equally long lists, or one.
        is_mixed: lists of which the elements are called in turn, though not one by one: each is a layer.
        is_aside: no blocks, next to those of others: an embedding of a second input that only the head reads.
    """

    name: str
    children: list[Named]
    bears: bool = False
    is_block: bool = False
    is_list: bool = False
    is_aside: bool = False
    is_mixed: bool = False

    @property
    def module(self) -> nn.Module:
        return self.children[0][1]

    @property
    def is_model(self) -> bool:
        """A module that bears blocks and is no list of them."""
        return self.bears and not self.is_block and not self.is_list and not self.is_aside


def items_of(
    structure: Structure, module: nn.Module, inside: Sequence[Named], visits: Visits | None, is_head: roles.IsHead
) -> list[Item]:
    """The children as items, in the order of a forward pass where one shows it, else of definition."""
    counted = structure.counted(module, [(n, child) for n, child in inside if not is_head(n)])
    kinds = {type(child) for n, child in inside if n in counted}
    lists = [(n, c) for n, c in inside if not is_head(n) and isinstance(c, nn.ModuleList | nn.ModuleDict)]
    in_turn = {n: together for together in _zipped(structure, lists, inside, visits) for n, _ in together}
    mixed = {n: together for together in _mixed([part for part in lists if part[0] not in in_turn], visits)
             if any(structure.is_list(*part) for part in together) for n, _ in together}  # fmt: skip
    items: list[Item] = []
    done: set[str] = set()
    for name, child in inside:
        if name in done:
            continue
        if name in in_turn:
            done |= {n for n, _ in in_turn[name]}
            items.append(Item(name, in_turn[name], bears=True, is_list=True))
            continue
        if name in mixed:
            done |= {n for n, _ in mixed[name]}
            items.append(Item(name, mixed[name], bears=True, is_list=True, is_mixed=True))
            continue
        bears = not is_head(name) and not structure.is_aside(module, name) and structure.bears(name, child)
        is_list = bears and structure.is_list(name, child) and group_matcher(child) is None
        block = not bears and not is_head(name) and not is_leaf(child)
        block = block and (name in counted or type(child) in kinds or roles.MIDDLE.fullmatch(name) is not None)
        items.append(Item(name, [(name, child)], bears or block, is_block=block, is_list=is_list))
    if visits is not None and structure.small and all(visits.has(*members_of(item)) for item in items):
        last = [i for i in items if not any(visits.reaches(members_of(i), members_of(o)) for o in items if o is not i)]
        below = any(item.bears for item in items if item not in last)
        for item in last if len(last) > 1 and below else ():
            if not visits.also_alone(members_of(item)):
                item.bears = item.is_list = False  # one of several outputs is a head, however many layers it has
    heads = {type(child) for n, child in inside if is_head(n) and not is_leaf(child)}
    for item in items if visits is not None else ():
        if visits is not None and item.is_model and type(item.module) in heads and visits.feeds_nothing(item.name):
            item.bears = False  # an output of the class of a head: boxes next to the classifier
        others = [n for other in items if other.bears and other is not item for n in members_of(other)]
        output = item.is_list and isinstance(item.module, nn.ModuleList) and len(item.children) == 1
        if visits is None or not output or visits.feeds_itself(item.name):
            continue
        if visits.feeds_nothing(item.name) and visits.reaches(others, [item.name]):
            item.bears = item.is_list = False  # an output after every block, or several at the end
    for item in items if visits is not None and all(visits.has(*members_of(i)) for i in items if i.bears) else ():
        blocks = [n for other in items if other.bears and not other.is_aside for n in members_of(other)]
        rest = [other.name for other in items if not other.bears and other is not item]
        if visits is None or item.bears or not blocks or is_head(item.name) or not visits.has(item.name):
            continue
        # what makes its input, too, is below it and them
        blocks = [n for n in blocks if visits.also_alone([item.name]) or not visits.reaches([n], [item.name])]
        if _judges(item, visits, [n for o in items if o.bears for n in members_of(o)]):
            item.bears = item.is_aside = True  # a discriminator of single layers, next to what it is called on
            continue
        # it scales an output by what stems make
        modulates = is_leaf(item.module) and not visits.also_alone([item.name])
        apart = bool(blocks) and not visits.enters(item.name, blocks) and not modulates
        if apart and visits.reaches([item.name], [n for n in rest if visits.reaches(blocks, [n])]):
            item.bears = item.is_aside = True  # it joins the blocks above them
    order = structure.passes.order(module)
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


def _judges(item: Item, visits: Visits, blocks: Sequence[str]) -> bool:
    """Whether a network without blocks is called on data and on what networks with blocks make, and feeds nothing."""
    return (
        not is_leaf(item.module)
        and not isinstance(item.module, nn.ModuleList | nn.ModuleDict)
        and visits.also_alone([item.name])
        and visits.reaches(blocks, [item.name])
        and visits.feeds_nothing(item.name)
    )


def _zipped(
    structure: Structure, lists: Sequence[Named], inside: Sequence[Named], visits: Visits | None
) -> Iterator[list[Named]]:
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
                    structure.guesses.append(
                        f"the lists {name} and {n} are equally long; they are taken to follow one another"
                    )
            if in_turn:
                together.append((n, other))
        waiting = [(n, c) for n, c in waiting if all(n != m for m, _ in together)]
        if len(together) > 1:
            called = visits is not None and visits.has(*(n for n, _ in together))
            yield sorted(together, key=lambda part: visits.at([part[0]]) if called and visits else place[part[0]])


def names_of(item: Item, path: str) -> list[str]:
    return [p for name, child in item.children for p in names_in(child, joined(path, name))]


def members_of(item: Item) -> list[str]:
    return [name for name, _ in item.children]


def _as_called(items: Sequence[Item], visits: Visits) -> list[Item]:
    """Items in the order of a forward pass; what it does not call stays behind what is defined before it."""
    keys: list[tuple[float, int]] = []
    for place, item in enumerate(items):
        called = visits.has(*members_of(item))
        keys.append((visits.at(members_of(item)) if called else max(keys)[0] if keys else -1.0, place))
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


def steps_of(item: Item, visits: Visits) -> list[list[str]]:
    """The elements of a list in the order of their calls, side by side where none feeds the other.

    Empty where the pass did not call each of them.
    """
    units: dict[str, list[str]] = {}
    for key, name, _ in elements_of(item):
        units.setdefault(key, []).append(name)
    if not all(unit in visits.position for names in units.values() for unit in names):
        return []
    steps: list[list[str]] = []
    for key in sorted(units, key=lambda k: visits.at(units[k])):
        if steps and not any(visits.reaches(units[other], units[key]) for other in steps[-1]):
            steps[-1].append(key)
        else:
            steps.append([key])
    return steps


def elements_of(item: Item) -> Iterator[tuple[str, str, nn.Module]]:
    """What layer an element of lists belongs to, its name, and itself."""
    for name, module in item.children:
        for key, element in children(module):
            yield joined(name, key) if item.is_mixed else key, joined(name, key), element


def _mixed(lists: Sequence[Named], visits: Visits | None) -> list[list[Named]]:
    """Lists that feed each other in turn, but not one by one: an upsampling, then three of another list."""
    found: list[list[Named]] = []
    for name, module in lists if visits is not None else ():
        if visits is None or not isinstance(module, nn.ModuleList) or not _is_called_whole(name, module, visits):
            continue
        for together in found:
            if all(visits.reaches([n], [name]) and visits.reaches([name], [n]) for n, _ in together):
                together.append((name, module))
                break
        else:
            found.append([(name, module)])
    return [together for together in found if len(together) > 1]


def _is_called_whole(name: str, module: nn.Module, visits: Visits) -> bool:
    return len(visits.elements(name)) == len(list(children(module))) > 1


def _all_norms(module: nn.Module) -> bool:
    return all(is_normalization(child) for _, child in children(module))


def _counted_apart(one: str, other: str) -> bool:
    """Whether two names differ in a number only: layers1 and layers2."""
    return re.sub(r"\d+", "", one) == re.sub(r"\d+", "", other)
