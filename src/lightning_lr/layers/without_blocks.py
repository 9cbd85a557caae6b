"""The order of layers of a model, or of a part of one, without repeated blocks: one per child module."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.names import children, is_leaf, is_normalization, joined, names_in, unwrapped
from lightning_lr.layers.tree import Leaf, Node, Parallel, Series, leaves
from lightning_lr.layers.visits import Visits

LISTS = (nn.ParameterList, nn.ParameterDict, nn.ModuleList)
"""Containers whose elements are used one by one."""


def definition_order(model: nn.Module, passes: Passes, lists: bool = True) -> tuple[Series, bool]:
    """One layer per child module, norms with what they follow, and whether forward passes show the order.

    With a forward pass, children are as far from the top as the longest way from them to the output; else they are in
    the order of the text of ``forward`` or of definition, heads by name last. Where there are one or two children, such
    as a backbone and what follows it, those that have parts are read in turn.

    Args:
        model: the root, or a part of it.
        passes: what forward passes show.
        lists: whether each element of a list is a layer.
    """
    head: list[str] = []
    parts, seen = plain_parts(model, "", passes, head, lists)
    return Series([*parts, Leaf("head", head)]), seen


def plain_parts(
    module: nn.Module, path: str, passes: Passes, head: list[str], lists: bool = True
) -> tuple[list[Node], bool]:
    """The layers of a module without blocks, and whether forward passes show their order; heads go to ``head``."""
    inside = list(children(module))
    holders = _held_by_another(inside)
    inside = [part for part in inside if part[0] not in holders]
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
        splits = isinstance(child, LISTS if lists else nn.ParameterList) and visits is not None
        steps = visits.elements(name) if splits and visits is not None else []
        if is_normalization(child) and before:
            list(leaves(nodes[before[-1]]))[-1].parameters += names_in(child, here)
        elif len(steps) == _length(child) > 1 and visits is not None:
            for unit in steps:
                _add_element(nodes, unit, module, path, visits)
        elif is_leaf(child) or (len(bodies) > 2 and not _reads_tokens(child)):
            nodes[name] = Leaf(here, names_in(child, here))
        else:
            inner: list[str] = []
            parts, sure = plain_parts(child, here, passes, inner, lists)
            certain = certain and sure
            if name == bodies[-1][0]:
                head += inner
            else:
                parts.append(Leaf(joined(here, "head"), inner))
            nodes[name] = Series(parts)
    head += [p for name, child in tops for p in names_in(child, joined(path, name))]
    for name, holder in holders.items():
        within = next(leaves(nodes[holder])).parameters if holder in nodes else head
        within += names_in(module._modules[name], joined(path, name))  # type: ignore[arg-type]
    head += [joined(path, name) for name in own if by_name(name)]
    first = [joined(path, name) for name in own if not by_name(name) and name not in nodes]
    stem = Leaf(joined(path, "stem"), first, stem=True)
    if (seen or used) and visits is not None:
        twins = _twins(bodies, visits)
        return [stem, *_levels(nodes, visits, twins, last=not head)], certain
    return [stem, *nodes.values()], certain


def _length(module: nn.Module) -> int:
    """How many elements of a list have parameters; of a list of parameters, how many there are."""
    return len(list(children(module))) or sum(parameter is not None for parameter in module._parameters.values())


def _add_element(nodes: dict[str, Node], unit: str, module: nn.Module, path: str, visits: Visits) -> None:
    """A layer for an element of a list; a norm, a bias or a gain is in the layer of the operation that it follows."""
    name, _, key = unit.partition(".")
    child = module._modules[name]._modules.get(key)  # type: ignore[union-attr]
    parameter = module._modules[name]._parameters.get(key)  # type: ignore[union-attr]
    small = (
        is_normalization(unwrapped(child))
        if child is not None
        else parameter is not None and parameter.numel() == max(parameter.shape, default=1)
    )
    with_it = [other for other in nodes if visits.reaches([other], [unit])] if small else []
    names = names_in(child, joined(path, unit)) if child is not None else [joined(path, unit)]
    if with_it:
        list(leaves(nodes[with_it[-1]]))[-1].parameters += names
    else:
        nodes[unit] = Leaf(joined(path, unit), names)


def _held_by_another(inside: Sequence[tuple[str, nn.Module]]) -> dict[str, str]:
    """Children that are registered in a sibling too, which calls them: to that sibling."""
    found: dict[str, str] = {}
    for name, child in inside:
        for other, holder in inside:
            if holder is not child and any(part is child for part in holder.modules()):
                found[name] = other
    return found


def _reads_tokens(module: nn.Module) -> bool:
    """Whether a part has a table of tokens among its parts, which is its own lowest layer."""
    inside = [child for _, child in children(module)]
    return len(inside) > 1 and any(isinstance(child, nn.Embedding) for child in inside)


def _twins(bodies: Sequence[tuple[str, nn.Module]], visits: Visits) -> set[tuple[str, str]]:
    """Encoders and decoders of which each reads tokens of its own: they stand side by side."""
    return {
        (one[0], other[0]) for one in bodies for other in bodies
        if one is not other and roles.is_encoder_decoder(one, other, True) and visits.reads_tokens(other[0], one[0])
    }  # fmt: skip


def _levels(nodes: dict[str, Node], visits: Visits, twins: set[tuple[str, str]], last: bool) -> list[Node]:
    """Parts by the longest way to the output, in groups that stand side by side.

    ``last``: nothing follows, so that a decoder's last layer is the head, and its encoder ends below that.
    """
    level: dict[str, int] = {}
    for name in reversed(list(nodes)):
        above = [other for other in level if visits.reaches([name], [other]) and (name, other) not in twins]
        level[name] = 1 + max((level[other] for other in above), default=-1)
    found: list[Node] = []
    top: list[Node] = []
    for decoder in {other for _, other in twins if last and level[other] == 0}:
        node = nodes[decoder]
        if isinstance(node, Series) and len(node.parts) > 1:
            top += node.parts[-1:]
            nodes[decoder] = Series(node.parts[:-1])
    for height in sorted(set(level.values()), reverse=True):
        together = [node for name, node in nodes.items() if level[name] == height]
        found.append(together[0] if len(together) == 1 else Parallel(together))
    return [*found, *top]
