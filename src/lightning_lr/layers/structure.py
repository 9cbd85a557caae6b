"""What a module is to the order of layers: whether blocks are in it, and whether it is a list of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from torch import nn

from lightning_lr.layers import roles
from lightning_lr.layers.forward_pass import Passes
from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import children, is_leaf, is_normalization, is_single_layer

Named = tuple[str, nn.Module]


class Structure:
    """Answers about the modules of a model.

    Args:
        model: the root, unwrapped.
        passes: what forward passes show.
    """

    def __init__(self, model: nn.Module, passes: Passes) -> None:
        self.passes = passes
        self.guesses: list[str] = []
        """What was decided by names and by definition order without evidence, in words."""
        # leaf layers in a Sequential count only in a model that has no larger blocks anywhere
        self.small = False
        lists = [list(children(module)) for module in model.modules() if isinstance(module, nn.ModuleList)]
        kinds = [Counter(type(child) for _, child in inside if not is_single_layer(child)) for inside in lists]
        self._blocks = {kind for counted in kinds for kind, count in counted.items() if count > 1}
        """Classes of which some list holds several."""
        self.small = not self.bears("", model)

    def bears(self, name: str, module: nn.Module) -> bool:
        """Whether blocks are somewhere in a module."""
        if group_matcher(module) is not None or self.is_list(name, module) or is_stacked_rnn(module):
            return True
        inside = list(children(module))
        if self.counted(module, inside) or self._in_turn(module, inside):
            return True
        return any(self.bears(n, child) for n, child in inside if not self.is_aside(module, n))

    def _in_turn(self, module: nn.Module, inside: Sequence[Named], path: str = "?") -> bool:
        """Whether lists of leaf layers are visited in turn, each element reading the one before: gates of highways."""
        lists = [
            name for name, child in inside
            if isinstance(child, nn.ModuleList) and len(child) > 1
            and all(is_leaf(c) and not is_normalization(c) for _, c in children(child))
        ]  # fmt: skip
        visits = self.passes.of(module, path) if len(lists) > 1 else None
        return visits is not None and any(
            visits.has(one, other) and visits.in_turn(one, other) and visits.feeds_itself(one)
            for one, other in pairwise(lists)
        )

    def counted(self, module: nn.Module, inside: Sequence[Named], path: str = "?") -> set[str]:
        """Names of children that are counted through; those that a forward pass shows side by side are no series."""
        names = roles.numbered(inside)
        visits = self.passes.of(module, path) if names else None
        families: dict[str, list[str]] = {}
        for name in names:
            if (found := roles.NUMBERED.fullmatch(name)) is not None:
                families.setdefault(found.group(1), []).append(name)
        for family in families.values() if visits is not None else ():
            small = all(not self.bears(name, child) for name, child in inside if name in family)
            if visits is None or not small or not visits.has(*family):
                continue
            if not any(visits.enters(one, [other]) for one in family for other in family if one != other):
                names -= {*family}
        return names

    def is_aside(self, parent: nn.Module, name: str, path: str = "?") -> bool:
        """Whether a child's modules are alternatives by its name, and no forward pass shows that they are a series."""
        if not roles.SIDE_BY_SIDE.fullmatch(name):
            return False
        part_of_a_block = roles.SMALL.fullmatch(name) or (not self.small and "branch" in name)  # of an Inception
        if isinstance(parent._modules.get(name), nn.Sequential) and not part_of_a_block:
            return False  # the elements of a Sequential follow one another, whatever it is called
        visits = self.passes.of(parent, path)
        return visits is None or not visits.feeds_itself(name)

    def is_list(self, name: str, module: nn.Module) -> bool:
        """Whether a container holds blocks that follow one another."""
        names = [n for n, _ in children(module)]
        is_dict = isinstance(module, nn.ModuleDict) and (type(module) is nn.ModuleDict or all(map(str.isdigit, names)))
        if not (is_dict or isinstance(module, nn.ModuleList | nn.Sequential)):
            return False
        inside = [
            (n, child) for n, child in children(module)
            if (not is_normalization(child) if self.small else not is_single_layer(child))
        ]  # fmt: skip
        kinds = Counter(type(child) for _, child in inside)
        repeated = any(count > 1 for count in kinds.values())
        if is_dict:
            counted = all(roles.NUMBERED.fullmatch(n) for n, _ in inside) or roles.BLOCKS.fullmatch(name) is not None
            return repeated and counted and not roles.are_towers(n for n, _ in inside)
        if repeated or len(inside) != 1 or self.small:
            return repeated
        alike = isinstance(module, nn.ModuleList) and type(inside[0][1]) in self._blocks
        return alike or roles.BLOCKS.fullmatch(name) is not None


def is_stacked_rnn(module: nn.Module) -> bool:
    return isinstance(module, nn.RNNBase) and module.num_layers > 1
