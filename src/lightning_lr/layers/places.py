"""Where the parts without blocks belong: stem, head, a tower's stem, or between two sets of blocks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.items import Item, members_of
from lightning_lr.layers.names import is_normalization
from lightning_lr.layers.structure import Named, Structure
from lightning_lr.layers.visits import Visits


def places_of(
    structure: Structure,
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
        if visits is not None and visits.has(name) and all(visits.has(*members_of(i)) for g in groups for i in g):
            from_blocks = [i for i, g in enumerate(groups) if any(visits.reaches(members_of(b), [name]) for b in g)]
            to_blocks = [i for i, g in enumerate(groups) if any(visits.reaches([name], members_of(b)) for b in g)]
            if not from_blocks:  # also what a later call reads
                to_blocks = [i for i, g in enumerate(groups) if any(visits.enters(name, members_of(b)) for b in g)]
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
            places[name] = str(min(max(towers, default=seen), last - 1)) if towers else _by_place(seen)
        elif roles.is_stem(name, module):
            places[name] = _by_place(_named_after(name, groups, order) if visits is not None else -1)
        elif roles.INPUT.fullmatch(name) and name not in order and seen >= 0:
            backbones = [i for i, g in enumerate(groups[:-1]) if any(roles.BACKBONE.fullmatch(b.name) for b in g)]
            places[name] = str(max(backbones)) if backbones else _by_place(seen)
        elif seen < 0 and groups and name not in order and _may_be_a_late_head(name, module):
            rest = items[place + 1 :]
            if any(other.bears for other in rest):
                structure.guesses.append(f"{name} is defined before the blocks and taken for the head by its name")
            places[name] = "head"
        else:
            places[name] = _by_place(seen)
    return places


def place_of_own(
    name: str, groups: Sequence[Sequence[Item]], visits: Visits | None, is_head: roles.IsHead,
    order: Mapping[str, int],
) -> str:  # fmt: skip
    """Where a parameter of the module itself belongs: below the first blocks that it reaches, else the head."""
    members = [members_of(item) for group in groups for item in group]
    if visits is not None and visits.has(name) and members and all(visits.has(*m) for m in members):
        reached = [i for i, group in enumerate(groups) if any(visits.enters(name, members_of(b)) for b in group)]
        return "head" if not reached else "stem" if reached[0] == 0 else str(reached[0] - 1)
    if is_head(name) and name != "cls":  # as a parameter it is a token
        return "head"
    if name in order and members and all(n in order for m in members for n in m):
        return "head" if order[name] > max(order[n] for m in members for n in m) else "stem"
    return "stem"


def stems_of_towers(
    names: Sequence[str], groups: Sequence[Sequence[Item]], visits: Visits | None
) -> dict[str, list[str]]:
    """Parts that lie open in a module and are the input of one of its towers alone: to the tower's members."""
    members = [members_of(item) for group in groups for item in group]
    if visits is None or not all(visits.has(*m) for m in members):
        return {}
    found: dict[str, list[str]] = {}
    for name in names:
        if not visits.has(name) or any(visits.reaches(m, [name]) for m in members):
            continue
        reached = [
            (i, m) for i, group in enumerate(groups)
            if (m := [members_of(b) for b in group if visits.enters(name, members_of(b))])
        ]  # fmt: skip
        if reached and len(groups[reached[0][0]]) > 1 and len(reached[0][1]) == 1:
            found[name] = reached[0][1][0]
    return found


def heads_of(structure: Structure, own: Sequence[str], inside: Sequence[Named], visits: Visits | None) -> roles.IsHead:
    """Heads by name; one with blocks whose output another part reads is none."""
    by_name = roles.heads([*((name, None) for name in own), *inside])
    others = [
        name for name, child in inside
        if not by_name(name)
        and (visits is None or not isinstance(child, nn.ModuleList) or not visits.feeds_nothing(name))
    ]  # fmt: skip
    misnamed = {
        name for name, child in inside
        if visits is not None and by_name(name) and structure.bears(name, child) and visits.teaches(name, others)
    }  # fmt: skip
    return lambda name: by_name(name) and name not in misnamed


def _named_after(name: str, groups: Sequence[Sequence[Item]], order: Mapping[str, int]) -> int:
    """The last group that the text of ``forward`` uses before it names a part; -1: the first, or all, come later.

    For what no forward pass calls, such as the input of a decoder that depends on labels.
    """
    members = [[n for item in group for n in members_of(item)] for group in groups]
    if name not in order or any(n not in order for group in members for n in group):
        return -1
    before = [i for i, group in enumerate(members) if max(order[n] for n in group) < order[name]]
    return -1 if len(before) == len(groups) else max(before, default=-1)


def _by_place(seen: int) -> str:
    return "stem" if seen < 0 else str(seen)


def _may_be_a_late_head(name: str, module: nn.Module) -> bool:
    return roles.LATE_HEAD.fullmatch(name) is not None and not isinstance(module, nn.Embedding)
