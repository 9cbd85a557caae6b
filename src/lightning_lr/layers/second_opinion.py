"""A second opinion on the layers that were found: do they go the way that data goes through the model?

The first opinion is put together from module to module by rules. This one knows none of them. It runs the whole model
on symbols (:mod:`~lightning_lr.layers.whole_pass`) and compares which part reads what another one makes with how far
both are taken to be from the top. What contradicts is said in words, and becomes part of the warning with the table.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property
from itertools import combinations, pairwise, permutations

from torch import nn

from lightning_lr.layers.found_places import CONTAINERS, LISTS, Places, below
from lightning_lr.layers.layer_map import LayerMap
from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import children, is_leaf, is_normalization, is_single_layer, joined, outer_paths, within
from lightning_lr.layers.source_order import is_defined
from lightning_lr.layers.whole_pass import Seen, whole_pass

SAID = 3
"""Contradictions that are named; of more, the number."""


def contradictions(model: nn.Module, found: LayerMap) -> list[str]:
    """What contradicts the way of the data, in words; nothing where a model brings timm's ``group_matcher``.

    Args:
        model: unwrapped; is not touched.
        found: its layers. A parameter that is in none (of a copy) is not judged.
    """
    if group_matcher(model) is not None:
        return []
    places = Places(model, found)
    said = _said(places, thoroughly=False)
    if said:
        said = _said(places, thoroughly=True)
    return said if len(said) <= SAID else [*said[:SAID], f"and {len(said) - SAID} more of the kind"]


def _said(places: Places, thoroughly: bool) -> list[str]:
    said = [*places.lone_blocks()]
    for path, seen, whole in _passes(places, "", thoroughly):
        said += _Judgement(places, path, seen, whole).contradictions()
    return list(dict.fromkeys(said))


def _passes(places: Places, path: str, thoroughly: bool) -> Iterator[tuple[str, Seen, set[str]]]:
    """Passes of a model; of what cannot be run within it, or is not called, passes of its own."""
    module = places.module[path]
    whole, parts = places.wholes(path)
    runs = not isinstance(module, LISTS) or is_defined(type(module).forward)
    seen = whole_pass(module, whole, parts, thoroughly) if runs else Seen()
    if seen.reads:
        yield path, seen, whole
    called = {outer for one in (*seen.reads, *seen.along) for outer in outer_paths(one)}
    waiting = [name for name, _ in children(module)]
    while waiting:
        inner = waiting.pop()
        here = joined(path, inner)
        if inner in whole or len(places.at[here]) < 2:
            continue
        if inner in seen.failed or inner not in called:
            yield from _passes(places, here, thoroughly)
        else:
            waiting += [joined(inner, name) for name, _ in children(places.module[here])]


class _Judgement:
    """What contradicts one pass.

    Args:
        places: where the parameters are.
        root: path of the module that was run.
        seen: what the pass shows, by paths below it.
        whole: modules that were not looked into.
    """

    def __init__(self, places: Places, root: str, seen: Seen, whole: set[str]) -> None:
        self.places, self.root, self.seen, self.whole = places, root, seen, whole
        inside = {part: places.inside.get(joined(root, part), []) for part in seen.reads}
        owners = Counter(one for parameters in inside.values() for one in parameters)
        # a tied weight is in the lowest of its places, which says nothing about the others
        shared = {part for part in inside if any(joined(root, outer) in places.shared for outer in outer_paths(part))}
        own = {
            part: [i for i in ids if i in places.layer and owners[i] == 1]
            for part, ids in inside.items() if part not in shared
        }  # fmt: skip
        self.at = {part: {places.distance[i] for i in ids} for part, ids in own.items() if ids}
        """Part to its distances from the top."""
        self.layers = {part: {places.layer[i] for i in own[part]} for part in self.at}
        self.own = own
        self.readers: dict[str, set[str]] = {}
        for part, reads in seen.reads.items():
            for other in reads:
                self.readers.setdefault(other, set()).add(part)
        self.parts_in: dict[str, list[str]] = {}
        for part in self.at:
            for outer in outer_paths(part):
                self.parts_in.setdefault(outer, []).append(part)

    def contradictions(self) -> Iterator[str]:
        """All of them, in words."""
        for lower, upper in self._inversions():
            yield f"{self._full(upper)} reads what {self._full(lower)} makes, but is taken to be below it"
        yield from self._recurrent()
        yield from self._gaps()
        yield from self._floating()
        yield from self._lists()
        for one, other in self._unlike():
            yield f"{self._full(one)} and {self._full(other)}, read by the same parts, are taken to be at two heights"

    def _inversions(self) -> Iterator[tuple[str, str]]:
        for upper, at in self.at.items():
            below = [
                part for part in self.seen.reads[upper]
                if part in self.at and max(self.at[part]) < min(at) and not within(part, upper)
                and not within(upper, part) and self._follows(part, upper)
            ]  # fmt: skip
            if below:
                yield min(below, key=lambda part: (max(self.at[part]), part)), upper

    def _recurrent(self) -> Iterator[str]:
        """Stacked recurrent layers of torch, which are one module, in another order than theirs."""
        for part in self.at:
            module = self.places.module.get(self._full(part))
            if isinstance(module, nn.RNNBase):
                weights = [getattr(module, f"weight_hh_l{index}") for index in range(module.num_layers)]
                at = [self.places.distance.get(id(weight), 0) for weight in weights]
                if any(upper > lower for lower, upper in pairwise(at)):
                    yield f"the layers of {self._full(part)} are taken to be {', '.join(map(str, at))} from the top"

    def _follows(self, lower: str, upper: str) -> bool:
        """Whether one part reads what another one makes, in every call, and not the other way round.

        A decoder that reads tokens of its own, and an encoder in another argument, stands next to the encoder.
        """
        seen = self.seen
        if lower not in seen.always[upper] or upper in seen.reads[lower]:
            return False
        for outer in outer_paths(upper):
            if outer in seen.own_input and self._beside(lower, outer):
                tower = [
                    part for part in seen.reads[upper]
                    if self._beside(part, outer) and (part == lower or self._linked(part, lower))
                ]  # fmt: skip
                if len(set().union(*(self.at.get(part, set()) for part in tower))) > 1:
                    return False
        return True

    def _beside(self, part: str, outer: str) -> bool:
        return part not in self.seen.along[outer] and not within(part, outer)

    def _linked(self, one: str, other: str) -> bool:
        return one in self.seen.reads[other] or other in self.seen.reads.get(one, ())

    def _gaps(self) -> Iterator[str]:
        """Layers of which nothing is read by the layer right above, though something is by a higher one."""
        parts_of: dict[int, list[str]] = {}
        for part, layers in self.layers.items():
            for layer in layers if len(layers) == 1 else ():
                parts_of.setdefault(layer, []).append(part)
        levels = set().union(*self.at.values())
        for layer, parts in parts_of.items():
            if set().union(*(self.own[part] for part in parts)) != self.places.members[layer]:
                continue  # a part of it was not called
            readers = set().union(*(self.readers.get(part, set()) for part in parts)) - {*parts}
            at, top = min(self.at[parts[0]]), self._top(readers)
            if levels.isdisjoint(range(top + 1, at)) or self.seen.returned.isdisjoint({*parts, *readers}):
                continue
            if not any(self._has_twin(part, at) for part in parts):
                what = f"{at - top} below what reads it" if readers else f"{at} below the top, though nothing reads it"
                yield f"{self.places.name(layer)} is taken to be {what}"

    def _floating(self) -> Iterator[str]:
        """Parts that are next to nothing that they read, nor to anything that reads them."""
        for part, at in self.at.items():
            near = [self.at[other] for other in self.seen.reads[part] if other in self.at]
            readers = self.readers.get(part, set())
            if len(at) != 1 or not near or not readers or self.seen.returned.isdisjoint({part, *readers}):
                continue
            here = min(at)
            apart = min(map(min, near)) > here + 1 and self._top(readers) < here - 1
            if apart and not self._has_twin(part, here):
                yield f"{self._full(part)} is taken to be next to nothing that it reads or that reads it"

    def _top(self, readers: set[str]) -> int:
        return max((max(self.at[part]) for part in readers if part in self.at), default=0)

    def _has_twin(self, part: str, at: int) -> bool:
        """Whether another element of its list is at the same height, and read by what is right above."""
        for element in outer_paths(part):
            holder = element.rpartition(".")[0]
            if isinstance(self.places.module.get(self._full(holder)), LISTS):
                twins = [other for other in self.parts_in.get(holder, ()) if not within(other, element)]
                if any(
                    self.at[other] == {at} and self._top(self.readers.get(other, set())) >= at - 1 for other in twins
                ):
                    return True
        return False

    def _lists(self) -> Iterator[str]:
        """Elements of a list that follow one another in one layer, or side by side."""
        for holder, module in self.places.module.items():
            if not isinstance(module, CONTAINERS) or not within(holder, self.root):
                continue
            path = below(self.root, holder)
            if any(outer in self.whole or self._is_alternative(outer) for outer in (outer_paths(path) if path else ())):
                continue
            names = [n for n, c in children(module) if not is_normalization(c)]
            names += [n for n, p in module._parameters.items() if p is not None and p.ndim > 1]
            elements = [element for name in names if (element := joined(path, name)) in self.parts_in]
            at = {element: self.places.at[joined(self.root, element)] for element in elements}
            pairs = [(a, b) for a, b in permutations(elements, 2) if len(at[a]) == 1 and at[a] == at[b]]
            apart = [pair for pair in pairs if self._layers(pair[0]).isdisjoint(self._layers(pair[1]))]
            found = next((pair for pair in apart if self._feeds(*pair)), None)
            if found is not None and not isinstance(module, nn.ParameterList | nn.ParameterDict):
                yield f"{self._full(found[1])} reads what {self._full(found[0])} makes, but is taken to be next to it"
            elif self._holds_blocks(module, holder) and len(set(map(frozenset, at.values()))) == 1:
                alike = (pair for pair in pairs if self._kind(pair[0]) is self._kind(pair[1]))
                found = next((pair for pair in alike if self._feeds(*pair)), None)
                if found is not None:
                    lower, upper = found
                    yield f"{self._full(upper)} reads what {self._full(lower)} makes, but both are taken for one layer"

    def _holds_blocks(self, module: nn.Module, holder: str) -> bool:
        """Whether what follows one another in a container counts as layers: not small parts next to larger blocks."""
        inside = [child for _, child in children(module) if not is_normalization(child)]
        if any(type(child) in self._in_blocks for child in inside if not is_single_layer(child)):
            return False
        if isinstance(module, nn.Sequential):
            return self.places.at[holder] != {0} and any(not is_leaf(child) for child in inside)
        if isinstance(module, nn.ParameterList | nn.ParameterDict):
            return True
        return any(not is_single_layer(child) for child in inside) or not self.places.has_larger_blocks

    @cached_property
    def _in_blocks(self) -> set[type]:
        """Classes of which blocks consist."""
        blocks = (self.places.module[self._full(path)] for path in self.whole)
        return {type(part) for block in blocks for part in block.modules() if part is not block}

    def _is_alternative(self, element: str) -> bool:
        """Whether an element of a list stands next to all others of its class: an expert, one head of several."""
        holder = element.rpartition(".")[0]
        module = self.places.module.get(self._full(holder))
        if not isinstance(module, LISTS) or element not in self.parts_in:
            return False
        kind = self._kind(element)
        others = [joined(holder, name) for name, child in children(module) if type(child) is kind]
        others = [other for other in others if other != element and other in self.parts_in]
        return bool(others) and not any(self._feeds(element, o) or self._feeds(o, element) for o in others)

    def _feeds(self, lower: str, upper: str) -> bool:
        return any(self._follows(a, b) for a in self.parts_in[lower] for b in self.parts_in[upper])

    def _layers(self, path: str) -> set[int]:
        return set().union(*(self.layers[part] for part in self.parts_in[path]))

    def _unlike(self) -> Iterator[tuple[str, str]]:
        """Two of one class that are read by the same parts, of which neither comes before the other, at two heights."""
        alike: dict[tuple[type, frozenset[str]], list[str]] = {}
        for part, at in self.at.items():
            module = self.places.module.get(self._full(part))
            if module is not None and len(at) == 1 and part in self.readers:
                alike.setdefault((type(module), frozenset(self.readers[part])), []).append(part)
        for parts in alike.values():
            for one, other in combinations(parts, 2):
                a, b = self.seen.reads[one], self.seen.reads[other]
                if self.at[one] != self.at[other] and (a == b or not (a <= b or b <= a)):
                    yield one, other
                    break

    def _kind(self, path: str) -> type:
        return type(self.places.module.get(self._full(path)))

    def _full(self, path: str) -> str:
        return joined(self.root, path) if path else self.root
