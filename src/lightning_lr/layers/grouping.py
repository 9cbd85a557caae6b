"""Which parts with blocks follow one another, and which stand side by side."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Sequence
from itertools import combinations, permutations

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.items import Item, members_of
from lightning_lr.layers.names import all_parameters
from lightning_lr.layers.structure import Structure
from lightning_lr.layers.visits import Visits


def idle_of(structure: Structure, items: Sequence[Item], visits: Visits | None, in_text: Container[str]) -> list[Item]:
    """Parts with blocks that a forward pass leaves out, next to others that it calls.

    What is not called must not shift the others. It has the layers that it would have alone, in case something else
    calls it. What the text of ``forward`` names (``in_text``) may be called with other inputs: it keeps the place that
    its name and its definition give it, a guess where the name means nothing. A name such as ``vision_tower``
    or ``projector`` speaks for itself: its input may be optional.
    """
    called = [item for item in items if visits is not None and visits.has(*members_of(item))]
    trained = {id(parameter) for item in called for parameter in _parameters(item)}
    idle = [
        item
        for item in items
        if item.bears
        and not item.is_block
        and item not in called
        and not roles.may_lack_its_input(item.name)
        and not any(roles.are_opponents(item.name, other.name) for other in called)
        and any(id(parameter) not in trained for parameter in _parameters(item))  # another name of what is called
    ]
    trunk = [item for item in called if item.bears]
    if visits is None or not idle or not trunk:
        return []
    in_series = any(visits.reaches(members_of(one), members_of(other)) for one, other in permutations(trunk, 2))
    writes = any(roles.LANGUAGE.fullmatch(item.name) for item in trunk)
    if roles.are_towers(item.name for item in items if item.bears) and not in_series and not writes:
        return []  # side by side, as their names say
    unused = [item for item in idle if not any(name in in_text for name in members_of(item))]
    unclear = [item for item in idle if item not in unused and not roles.says_what_it_reads(item.name)]
    for found, place in ((unused, "taken to feed nothing"), (unclear, "placed by its definition")):
        if found:
            names = ", ".join(item.name for item in found)
            structure.guesses.append(f"{names}: called by no forward pass, and {place}")
    return unused


def _parameters(item: Item) -> list[nn.Parameter]:
    return [parameter for _, child in item.children for _, parameter in all_parameters(child)]


def groups_of(
    structure: Structure, items: Sequence[Item], visits: Visits | None, on_backbone: bool, in_dict: bool
) -> list[list[Item]]:
    """What bears blocks, from input to head; what is in one group stands side by side."""
    bearing = [item for item in items if item.bears]
    models = [item for item in bearing if item.is_model]
    twins: dict[str, str] = {}
    on_backbone = on_backbone or any(roles.BACKBONE.fullmatch(item.name) for item in models)
    for encoder in models:
        for decoder in models:
            halves = (encoder.name, encoder.module), (decoder.name, decoder.module)
            tokens = visits is not None and visits.reads_tokens(decoder.name, next_to=encoder.name)
            if on_backbone or encoder is decoder or not roles.is_encoder_decoder(*halves, tokens):
                continue
            if visits is None or _reads_for_itself(encoder, decoder, visits):
                twins[encoder.name] = twins[decoder.name] = encoder.name
    for one, other in combinations([m for m in models if not roles.says_what_it_reads(m.name)], 2):
        if visits is not None and visits.reaches([one.name], [other.name]) and visits.reaches([other.name], [one.name]):
            structure.guesses.append(f"{one.name} and {other.name} each read what a part of the other makes")
    unseen = [i for i in bearing if visits is None or not visits.has(*members_of(i))]
    if unseen and len(bearing) > 1 and len(unseen) < len(bearing) and roles.are_towers(i.name for i in bearing):
        return _groups_by_name(structure, items, bearing, models, twins)
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
    return _groups_by_name(structure, items, bearing, models, twins, visits is None and not in_dict)


def _groups_by_name(
    structure: Structure,
    items: Sequence[Item],
    bearing: list[Item],
    models: list[Item],
    twins: dict[str, str],
    unfollowed: bool = False,
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
        if unfollowed and any(roles.MODALITY.fullmatch(name) for name in names):
            structure.guesses.append(f"{', '.join(names)} are taken to stand side by side by their names")
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
            structure.guesses.append(f"{', '.join(names)} are taken to follow one another")
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


def _reads_for_itself(encoder: Item, decoder: Item, visits: Visits) -> bool:
    """Whether a decoder may have an input of its own, so that it is parallel to the encoder."""
    if visits.reaches([decoder.name], [encoder.name]):
        return False
    fed = encoder.name in visits.read.get(decoder.name, ())
    return not fed or roles.has_cross_attention(decoder.module)


def _role(name: str) -> str:
    return next((word for word in ("encoder", "decoder") if word in name), name)
