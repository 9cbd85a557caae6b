"""What a module consists of, from input to head, while its layers are put together."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from lightning_lr.layers.names import joined
from lightning_lr.layers.tree import Leaf, Node, Series, leaves, lowest


@dataclass
class Reading:
    """What a module consists of, from input to head.

    Args:
        stem: parameters that are the stem.
        lead: parameters before the first block of a first stage: the stem where there is no other.
        parts: the layers.
        norms: parameters of norms right after the layers.
        after: parameters that follow the layers.
        head: parameters that are the head by name.
    """

    stem: list[str] = field(default_factory=list)
    lead: list[str] = field(default_factory=list)
    parts: list[Node] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    head: list[str] = field(default_factory=list)

    def follow(self, other: Reading, path: str, with_stem: bool = False) -> None:
        """Append what comes next; what stands between two sets of blocks belongs to the first block after it.

        Args:
            other: what comes next.
            path: its name.
            with_stem: the stem of ``other`` stays a layer of its own, as that of a language model above a tower.
        """
        if not self.parts:
            self.stem += other.stem
            self.lead += other.lead
        elif other.parts:
            between = [*self.after, *self.head, *other.stem, *other.lead]
            with_stem = with_stem and bool(between)  # norms alone make no layer
            between = [*self.norms, *between]
            self.norms, self.after, self.head = [], [], []
            if with_stem:
                self.parts.append(Leaf(joined(path, "stem"), between))
            else:
                lowest(other.parts[0]).parameters[:0] = between
        else:
            self.after += [*other.stem, *other.lead]
        self.parts += other.parts
        self.end_with(other)

    def end_with(self, other: Reading) -> None:
        """What follows the layers of another one follows those of this one, too."""
        self.norms += other.norms
        self.after += other.after
        self.head += other.head

    def tree(self, path: str = "", head: bool = True) -> Series:
        """Stem, blocks and head as a series."""
        stem = [*self.stem]
        if self.lead and stem and self.parts:
            next(leaves(self.parts[0])).parameters[:0] = self.lead
        else:
            stem += self.lead
        top = [Leaf(joined(path, "head"), [*self.norms, *self.after, *self.head])] if head else []
        return Series([Leaf(joined(path, "stem"), stem, stem=True), *self.parts, *top])


def own_of(module: nn.Module, path: str) -> list[str]:
    return [joined(path, name) for name, p in module._parameters.items() if p is not None]
