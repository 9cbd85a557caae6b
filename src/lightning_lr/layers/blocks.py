"""The layers of a list of blocks: one per block, also where its elements are stages, and those of a stacked RNN."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import pairwise

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import all_parameters, children, is_leaf, is_normalization, joined, names_in
from lightning_lr.layers.parts import Reading, own_of
from lightning_lr.layers.structure import Named, Structure
from lightning_lr.layers.tree import Leaf, Series, leaves


def blocks_of(
    structure: Structure,
    elements: Sequence[Sequence[Named]],
    waiting: list[str],
    stages: bool = True,
    calls: Mapping[str, int] | None = None,
) -> Reading:
    """The layers of a list: one per element, or per block of an element that is a stage.

    Args:
        elements: path and module of the parts of each element.
        waiting: parameters that the first layer gets.
        stages: whether elements may be stages.
        calls: what a forward pass calls, by path, to the place of its first call.
    """
    found: list[Leaf] = []
    lead: list[str] = []
    paired = _pairs(elements)
    as_stages = [_stage(structure, parts, calls or {}) if stages else None for parts in paired]
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


def _stage(
    structure: Structure, parts: Sequence[Named], calls: Mapping[str, int]
) -> tuple[list[str], list[Leaf]] | None:
    """The blocks of a stage, and what it has before them.

    What comes after them belongs to the last, or to that one after which it is called.
    """
    if structure.small:
        return None
    if len(parts) == 1:
        path, module = parts[0]
        if group_matcher(module) is not None:
            return None
        if structure.is_list("", module) and not isinstance(module, nn.ModuleDict):
            if not _alike(module):
                return None
            inner = blocks_of(
                structure, [[(joined(path, n), c)] for n, c in children(module)], own_of(module, path), False
            )
            return inner.lead, list(leaves(Series(inner.parts)))
        parts = [(joined(path, n), child) for n, child in children(module)]
        before = own_of(module, path)
        lists = {
            here for here, c in parts
            if roles.STAGE.fullmatch(here.rpartition(".")[2]) and structure.is_list(here.rpartition(".")[2], c)
        }  # fmt: skip
    else:
        before = []
        lists = {
            here
            for here, c in parts
            if isinstance(c, nn.ModuleList | nn.Sequential) and structure.is_list("", c) and _alike(c)
        }
    if not lists:
        return None
    found: list[Leaf] = []
    for here, child in parts:
        if here in lists:
            inner = blocks_of(
                structure, [[(joined(here, n), c)] for n, c in children(child)], own_of(child, here), False
            )
            blocks = list(leaves(Series(inner.parts)))
            if found:
                blocks[0].parameters[:0] = before
                before = []
            found += blocks
        elif found:
            before_it = [b for b in found if here in calls and calls.get(b.name, calls[here]) < calls[here]]
            (before_it or found)[-1].parameters.extend(names_in(child, here))
        else:
            before += names_in(child, here)
    return before, found


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
    kinds = [
        {(name, type(part)) for name, part in child.named_modules() if part._parameters}
        for _, child in children(module)
    ]
    names = [roles.signature(child) for _, child in children(module)]
    return any(
        (a <= b or b <= a) and _same_types(*k) for (a, b), k in zip(pairwise(names), pairwise(kinds), strict=True)
    )


def _same_types(one: set[tuple[str, type]], other: set[tuple[str, type]]) -> bool:
    """Whether what has one name in two blocks has one type: not a convolution over tokens and a linear layer."""
    types = dict(one)
    return all(types.get(name, kind) is kind for name, kind in other)


def in_turn(lists: Sequence[Named], path: str) -> Iterator[list[Named]]:
    """Element i of equally long lists, from the first to the last."""
    elements = [[(joined(joined(path, n), i), child) for i, child in children(c)] for n, c in lists]
    for index in range(max(map(len, elements))):
        yield [parts[index] for parts in elements if index < len(parts)]


def rnn_layers(module: nn.Module, path: str) -> Iterator[Leaf]:
    """The layers of ``nn.LSTM(num_layers=3)``, whose parameters are called ``weight_ih_l0``, ``weight_ih_l1``, ..."""
    by_layer: dict[int, list[str]] = {}
    for name, _ in all_parameters(module):
        found = re.search(r"_l(\d+)", name)
        by_layer.setdefault(int(found.group(1)) if found else 0, []).append(joined(path, name))
    for layer in sorted(by_layer):
        yield Leaf(f"{joined(path, 'l')}{layer}", by_layer[layer])
