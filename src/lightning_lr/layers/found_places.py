"""Where the layers that were found put the parameters of each module."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from functools import cached_property

from torch import nn

from lightning_lr.layers.layer_map import LayerMap
from lightning_lr.layers.matcher import group_matcher
from lightning_lr.layers.names import children, is_leaf, joined, unwrapped

LISTS = (nn.ModuleList, nn.ModuleDict, nn.ParameterList, nn.ParameterDict)
CONTAINERS = (*LISTS, nn.Sequential)


class Places:
    """Where the parameters of each module are, by its path.

    Args:
        model: the root.
        found: its layers.
    """

    def __init__(self, model: nn.Module, found: LayerMap) -> None:
        self.found = found
        self.module: dict[str, nn.Module] = {}
        self.inside: dict[str, list[int]] = {}
        """Identities of the parameters in a module, or of one parameter."""
        self.at: dict[str, set[int]] = {}
        """Their distances from the top."""
        self.children: dict[str, list[tuple[str, nn.Module]]] = {}
        """What has parameters in a module, by its name there."""
        self._walk(model, "")
        layer = {name: index for index, one in enumerate(found.layers) for name in one.parameters}
        self.layer = {inside[0]: layer[path] for path, inside in self.inside.items() if path in layer}
        """Index of the layer of a parameter, by its identity."""
        top = found.depth - 1
        self.distance = {one: top - found.layers[index].depth for one, index in self.layer.items()}
        """From the top, of a parameter by its identity."""
        for path, inside in self.inside.items():
            self.at[path] = {self.distance[one] for one in inside if one in self.distance}
        uses = Counter(inside[0] for path, inside in self.inside.items() if path not in self.module)
        self.shared = {
            path for path, module in self.module.items()
            if not is_leaf(module) and 2 * sum(uses[i] > 1 for i in self.inside[path]) > len(self.inside[path])
        }  # fmt: skip
        """Modules most of whose weights are in other places, too."""
        self.members: dict[int, set[int]] = {}
        for parameter, index in self.layer.items():
            self.members.setdefault(index, set()).add(parameter)
        self._kinds: dict[type[nn.Module], set[int]] = {}
        for path, module in self.module.items():
            if path and len(self.at[path]) == 1:
                self._kinds.setdefault(type(module), set()).update(self.at[path])

    def is_block(self, path: str) -> bool:
        """Whether a module is in one layer, and others of its class are elsewhere."""
        module, holder = self.module[path], self.module[path.rpartition(".")[0]]
        if len(self.at[path]) != 1:
            return False
        if not isinstance(module, CONTAINERS):
            return len(self._kinds[type(module)]) > 1
        here = path.rpartition(".")[0]
        return isinstance(holder, CONTAINERS) and any(
            type(other) is type(module) and self.at[joined(here, name)] != self.at[path]
            for name, other in children(holder)
        )

    def wholes(self, root: str) -> tuple[set[str], set[str]]:
        """Modules that are not looked into, by paths below ``root``; and these with all that is in no such one."""
        whole: set[str] = set()
        parts: set[str] = set()
        waiting = [root]
        while waiting:
            path = waiting.pop()
            module = self.module[path]
            parts |= {below(root, joined(path, name)) for name, p in module._parameters.items() if p is not None}
            for name, child in self.children[path]:
                here = joined(path, name)
                single = is_leaf(child) and not isinstance(child, CONTAINERS)
                if single or group_matcher(child) is not None or self.is_block(here):
                    whole.add(below(root, here))
                else:
                    waiting.append(here)
        return whole, parts | whole

    @cached_property
    def has_larger_blocks(self) -> bool:
        """Whether some list holds blocks of several parts, at several distances."""
        return any(
            isinstance(module, CONTAINERS)
            and len(set().union(*(self.at[joined(p, n)] for n, c in children(module) if not is_leaf(c)))) > 1
            for p, module in self.module.items()
        )

    def lone_blocks(self) -> Iterator[str]:
        """A list of one block, of a class of which other lists hold several, among the parts of the stem or head."""
        lists = {
            path: [*children(m)] for path, m in self.module.items() if isinstance(m, nn.ModuleList | nn.Sequential)
        }
        for path, inside in lists.items():
            if len(inside) != 1 or isinstance(inside[0][1], CONTAINERS) or is_leaf(inside[0][1]):
                continue
            others = [
                p for p, more in lists.items()
                if len(set().union(*(self.at[joined(p, n)] for n, c in more if type(c) is type(inside[0][1])))) > 1
            ]  # fmt: skip
            within = {self.layer[i] for i in self.inside[path] if i in self.layer}
            if others and len(within) == 1:
                name = self.name(within.pop())
                if name.rpartition(".")[2] in ("stem", "head"):
                    yield f"{path} holds a block like those of {others[0]}, but is taken for a part of {name}"

    def name(self, layer: int) -> str:
        return self.found.layers[layer].name

    def _walk(self, module: nn.Module, path: str) -> bool:
        """Note what is in a module, and say whether it has parameters."""
        inside: list[int] = []
        for name, parameter in module._parameters.items():
            if parameter is not None:
                self.inside[joined(path, name)] = [id(parameter)]
                inside.append(id(parameter))
        self.children[path] = []
        for name, child in module._modules.items():
            here = joined(path, name)
            if child is None or not self._walk(unwrapped(child), here):
                continue
            self.children[path].append((name, self.module[here]))
            inside += self.inside[here]
        if inside:
            self.module[path], self.inside[path] = module, inside
        return bool(inside)


def below(root: str, path: str) -> str:
    """A path from the root on as one from a module in it on."""
    return path[len(root) + 1 :] if root else path
