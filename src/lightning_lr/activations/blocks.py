"""Which modules are blocks: elements of containers that are called one after the other.

Candidates are read off the module's structure; which of them form chains is seen while a training step runs
(:mod:`~lightning_lr.activations.measuring`). An ``nn.Sequential`` of whole blocks is looked into, one of single layers
is a block itself; single layers count as blocks only where there is nothing else.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import get_close_matches

from torch import nn

from lightning_lr.activations.policy import PlanError


@dataclass(frozen=True, eq=False)
class Candidate:
    """A module that may be a block.

    Args:
        name: in the network.
        module: itself.
        level: candidates that it is inside of.
        leaf: whether it is a single layer.
    """

    name: str
    module: nn.Module
    level: int
    leaf: bool

    def overlaps(self, other: Candidate) -> bool:
        """Whether one is inside of the other, or both are the same."""
        mine, others = self.name + ".", other.name + "."
        return mine.startswith(others) or others.startswith(mine)


def candidates(network: nn.Module, names: Sequence[str] | None = None) -> list[Candidate]:
    """Modules that may be blocks.

    Args:
        network: whose modules are looked at.
        names: of blocks, or of containers whose elements are the blocks; ``None`` for every container.

    Raises:
        PlanError: for a name that is none of the network's modules, or where there is no candidate.
    """
    modules = dict(network.named_modules())
    if names is not None:
        return _named(modules, names)
    found: dict[nn.Module, str] = {}
    for name, module in modules.items():
        if _is_container(module) and not (module in found and isinstance(module, nn.Sequential)):
            for element_name, element in _elements(name, module):
                found.setdefault(element, element_name)
    ordered = sorted(found.items(), key=lambda item: list(modules.values()).index(item[0]))
    levels = {name: sum(name.startswith(other + ".") for other in found.values()) for name in found.values()}
    chosen = [Candidate(name, module, levels[name], _is_leaf(module)) for module, name in ordered]
    chosen = [candidate for candidate in chosen if candidate.level == 0 or not candidate.leaf]
    if not chosen:
        raise PlanError(
            f"CheckpointPolicy: {type(network).__name__} has no nn.Sequential or nn.ModuleList to take blocks from; "
            "name its blocks in modules=[...]"
        )
    return chosen


def longest_chains(chains: Sequence[Sequence[Candidate]]) -> list[int]:
    """Which of several chains, possibly one inside of another's blocks, to use: the longest first.

    Args:
        chains: candidates in the order of their calls.

    Returns:
        indices of chains that do not overlap. Chains of one block, and of single layers, only where there is no other.
    """

    def rank(index: int) -> tuple[bool, bool, int, int]:
        chain = chains[index]
        return all(c.leaf for c in chain), len(chain) == 1, -len(chain), chain[0].level

    chosen: list[int] = []
    for index in sorted(range(len(chains)), key=rank):
        if chosen and rank(index)[:2] != rank(chosen[0])[:2]:
            break
        if not any(a is not b and a.overlaps(b) for other in chosen for a in chains[other] for b in chains[index]):
            chosen.append(index)
    return sorted(chosen)


def _named(modules: dict[str, nn.Module], names: Sequence[str]) -> list[Candidate]:
    blocks: dict[str, nn.Module] = {}
    for name in names:
        if name not in modules or not name:
            near = get_close_matches(name, modules, n=3, cutoff=0.4)
            hint = f"did you mean {', '.join(near)}" if near else "see named_modules() for the names"
            raise PlanError(f"CheckpointPolicy: modules names {name!r}, which the module does not have; {hint}?")
        module = modules[name]
        if isinstance(module, (nn.ModuleList, nn.Sequential)):
            blocks.update({f"{name}.{child}": element for child, element in module.named_children()})
        else:
            blocks[name] = module
    return [
        Candidate(name, module, sum(name.startswith(other + ".") for other in blocks), False)
        for name, module in blocks.items()
    ]


def _elements(name: str, container: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    for child_name, child in container.named_children():
        full_name = f"{name}.{child_name}" if name else child_name
        if isinstance(child, nn.ModuleList) or (type(child) is nn.Sequential and _holds_blocks(child)):
            yield from _elements(full_name, child)
        else:
            yield full_name, child


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.ModuleList) or (
        isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward
    )


def _holds_blocks(container: nn.Sequential) -> bool:
    return not all(_is_leaf(element) for element in container)


def _is_leaf(module: nn.Module) -> bool:
    return next(module.children(), None) is None
