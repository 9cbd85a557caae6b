"""What one forward pass of a module shows: the order of its calls, and which output reaches which input."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise

NUMBER = re.compile(r"(.*\.)?[a-zA-Z_]+\d+")
"""Children that are counted through: ``conv_0``."""


@dataclass
class Visits:
    """What one forward pass of a module shows about its children.

    Args:
        position: child, element of a list (``layers.0``) or parameter of the module itself, to the place of its first
            use.
        before: each to the children and parameters that are in the input of its first call, or in what the parameter is
            first used with.
        inside: modules further down that are called directly (``body.layers.0``), to the place of their first call.
        read: child to what is in the first argument of its first call, where it has one.
        entered: child to what is in the input of any call of it or of a part of it.
        alone: children that were called, at least once, on nothing that comes from another one.
        own_input: children whose first argument, in their first call, comes from the input of the module.
        next_to: child to what is in an argument of it that is called as what an encoder made, and in no other one.
        cut: child to what reaches the input of all its calls through ``detach`` only.
        itself: what was called itself, not only in parts (``self.net.conv1(x)``) or by its weight.
        held: for each child without a forward, of which only parts are called, the same about these.
    """

    position: dict[str, int] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
    entered: dict[str, set[str]] = field(default_factory=dict)
    alone: set[str] = field(default_factory=set)
    own_input: set[str] = field(default_factory=set)
    next_to: dict[str, set[str]] = field(default_factory=dict)
    cut: dict[str, set[str]] = field(default_factory=dict)
    itself: set[str] = field(default_factory=set)
    held: dict[str, Visits] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether each child was called, or an element of it."""
        return all(any(True for _ in self._units(name)) for name in names)

    def at(self, names: Sequence[str]) -> float:
        """The place of the first call of any of some children that were called."""
        return min(self.position[unit] for name in names for unit in self._units(name))

    def reaches(self, first: Sequence[str], second: Sequence[str]) -> bool:
        """Whether the output of one child is in the input of another one."""
        sources = {unit for name in first for unit in self._units(name)}
        return any(not sources.isdisjoint(self.before[unit]) for name in second for unit in self._units(name))

    def teaches(self, first: str, second: Sequence[str]) -> bool:
        """Whether a child is in the input of another one, and not through ``detach`` alone."""
        own = set(self._units(first))
        readers = (unit for name in second for unit in self._units(name))
        return any(not (own & self.before[unit]) <= self.cut.get(unit, set()) for unit in readers)

    def enters(self, name: str, children: Sequence[str]) -> bool:
        """Whether a parameter, a child or a part of it is in the input of any call of some children."""
        units = {unit for child in children for unit in self._units(child)}
        own = {name, *self._units(name)}
        return any(not own.isdisjoint(self.entered.get(unit, set()) | self.before[unit]) for unit in units)

    def also_alone(self, children: Sequence[str]) -> bool:
        """Whether a child that reads what others make is called on something else, too: a discriminator."""
        return any(unit in self.alone for child in children for unit in self._units(child))

    def reads_tokens(self, decoder: str, next_to: str) -> bool:
        """Whether a decoder's first argument comes from the input, and what an encoder makes is in another one.

        An argument that is called so (``encoder_hidden_states``) says the same where the tokens are optional.
        """
        if next_to in self.next_to.get(decoder, ()):
            return True
        apart = decoder in self.own_input and next_to not in self.read[decoder]
        return apart and self.reaches([next_to], [decoder])

    def in_turn(self, one: str, other: str) -> bool:
        """Whether two lists are visited together, element by element."""
        a, b = ({unit.rpartition(".")[2]: self.position[unit] for unit in self._units(name)} for name in (one, other))
        shared = [i for i in a if i in b]
        return len(shared) > 1 and all(max(a[i], b[i]) < min(a[j], b[j]) for i, j in pairwise(shared))

    def feeds_itself(self, name: str) -> bool:
        """Whether the output of an element of a list is in the input of another one."""
        units = list(self._units(name))
        return any(not self.before[unit].isdisjoint(set(units) - {unit}) for unit in units)

    def feeds_nothing(self, name: str) -> bool:
        """Whether no output of a child, or of any element of it, is in the input of anything else."""
        units = set(self._units(name))
        return bool(units) and all(
            units.isdisjoint(before) for unit, before in self.before.items() if unit not in units
        )

    def within_another(self, name: str, lists: Sequence[str] = ()) -> bool:
        """Whether a child is first called between the blocks of a sibling that are called apart, and feeds them.

        ``lists``: siblings whose elements are blocks.
        """
        if name not in self.position:
            return False
        place = self.position[name]
        for other in {unit.partition(".")[0] for unit in self.before[name] if "." in unit} & {*lists} - {name}:
            units = self.elements(other)  # of a list; what stands between two lists is not between its elements
            if (
                units
                and self.position[units[-1]] > place
                and all(name in self.before[unit] for unit in units if self.position[unit] > place)
            ):
                return True
        for other in {path.partition(".")[0] for path in self.inside} - {name}:
            places = [p for path, p in self.inside.items() if re.fullmatch(rf"{re.escape(other)}\..*\d+", path)]
            if places and min(places) < self.position[name] < max(places) and name in self.entered.get(other, ()):
                return True
        return False

    def steps_of(self, names: Sequence[str] | None) -> dict[str, int]:
        """Places of the calls of some children, of elements of lists among them, and of numbered modules in them."""
        units = {**self.inside, **self.position}
        return {
            unit: place for unit, place in units.items()
            if (names is None or unit.partition(".")[0] in names)
            and (names is None or unit.rpartition(".")[2].isdigit() or NUMBER.fullmatch(unit))
        }  # fmt: skip

    def elements(self, name: str) -> list[str]:
        """The elements of a list that were called, by the place of their first call."""
        return sorted((u for u in self._units(name) if u != name), key=lambda unit: self.position[unit])

    def with_parts(self) -> Visits:
        """The same, where a child that is only called in parts reads what any of its parts reads.

        Its place is then after theirs, also where a part of it, such as an embedding, is called first. Two that read
        one another in turn stand side by side, and keep what their first call says.
        """
        before, position = dict(self.before), dict(self.position)
        for unit in self.position:
            if unit not in self.itself:
                more = self.entered.get(unit, set()) - {unit}
                before[unit] = before[unit] | {other for other in more if unit not in self.entered.get(other, ())}
                read = [self.position[other] for other in before[unit] if unit not in self.entered.get(other, ())]
                position[unit] = max([self.position[unit], *(place + 1 for place in read)])
        return replace(self, before=before, position=position)

    def joined_with(self, other: Visits) -> Visits | None:
        """The fuller of two passes, or ``None`` where they contradict one another."""
        full, part = (self, other) if len(self.position) >= len(other.position) else (other, self)
        if not part.position.keys() <= full.position.keys():
            return None
        both = sorted(part.position, key=lambda unit: part.position[unit])
        if any(full.position[a] > full.position[b] for a, b in pairwise(both)):
            return None
        if any((part.before[unit] ^ (full.before[unit] & part.position.keys())) - {unit} for unit in both):
            return None
        return full

    def says_more_than(self, other: Visits) -> bool:
        """Whether the same calls, in the same order, read at least what they read in another pass."""
        same = sorted(self.position, key=self.position.__getitem__) == sorted(
            other.position, key=other.position.__getitem__
        )
        return same and all(other.before[unit] <= self.before[unit] for unit in self.position)

    def _units(self, name: str) -> Iterator[str]:
        return (unit for unit in self.position if unit == name or unit.startswith(f"{name}."))
