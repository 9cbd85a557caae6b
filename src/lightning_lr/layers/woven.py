"""Lists whose elements are called between the blocks of another module: adapters, prompts of every layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.names import children, joined, names_in
from lightning_lr.layers.structure import Named, Structure
from lightning_lr.layers.tree import Leaf, Node, leaves
from lightning_lr.layers.visits import Visits


def woven_in(structure: Structure, inside: Sequence[Named], visits: Visits | None, is_head: roles.IsHead) -> set[str]:
    """Lists whose elements are called between the blocks of a sibling: adapters, prompts of every layer."""
    found: set[str] = set()
    lists = [name for name, child in inside if isinstance(child, nn.ModuleList) and structure.is_list(name, child)]
    for name, child in inside:
        if visits is not None and visits.within_another(name, lists) and not is_head(name):
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
            if _is_tuner(name, child) and any(structure.bears(n, c) for n, c in inside if n != name):
                found.add(name)
        elif not visits.feeds_nothing(name) or isinstance(child, nn.ParameterList):
            first, last = visits.position[called[0]], visits.position[called[-1]]
            blocks = visits.steps_of(others)
            between = sum(first < place < last for place in blocks.values())
            if between and between >= len(called) - 1:
                found.add(name)
    return found


def weave(
    structure: Structure, parts: Sequence[Node], name: str, child: nn.Module, path: str, visits: Visits | None
) -> None:
    """Give each element of a woven list to the block that is called before it, else to the one after it."""
    here = joined(path, name)
    layers = [leaf for part in parts for leaf in leaves(part)]
    called = set(visits.elements(name)) if visits is not None else set()
    elements = list(_elements(child, here))
    if name in (visits.position if visits is not None else ()):  # called itself
        elements, called = [("", names_in(child, here))], {name}
    if not called:
        structure.guesses.append(f"{name} is taken to belong to the blocks one by one")
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
