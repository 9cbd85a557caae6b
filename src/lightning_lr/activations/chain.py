"""The chain of blocks as the planner sees it: bytes and seconds of each, and what a cut into parts costs.

The model is the chain of Rotor (Herrmann et al. 2019, arXiv:1911.13214), restricted to what is executed here: the
chain is cut into contiguous parts; a part is either *kept* (its blocks save what they save anyway) or *recomputed* (its
input is kept, and in backward all of it is computed again once and then derived). Rotor's full model also recomputes
inside of a recomputed part, for more than one extra forward.

Bytes are of storages, counted once: what a block saves is its input, its output, both or neither, and its own. At the
end of forward all that is kept is live. When backward reaches a part, what the later ones kept is gone; while a
recomputed part is derived, everything that it saves is live together with what it and the earlier parts keep.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Block:
    """What a block costs in a plain run.

    Args:
        name: of the module.
        input_bytes: of what must be kept to compute the block again.
        own_bytes: saved for backward, neither its input nor its output.
        output_bytes: of what the block returns.
        saves_input: whether its input is among what it saves for backward.
        saves_output: whether its output is.
        seconds: of its forward.
        linked: whether its input is the output of the block before.
        in_place: whether it writes into its input, so that it cannot be computed again from there.
        outside_bytes: saved between the block before and this one, by neither.
    """

    name: str
    input_bytes: int
    own_bytes: int
    output_bytes: int = 0
    saves_input: bool = True
    saves_output: bool = False
    seconds: float = 1.0
    linked: bool = True
    in_place: bool = False
    outside_bytes: int = 0


@dataclass(frozen=True)
class Chain:
    """Blocks in the order of their calls, and bytes saved after the last (head and loss)."""

    blocks: tuple[Block, ...]
    outside_bytes: int = 0

    def __len__(self) -> int:
        return len(self.blocks)

    def linked(self, index: int) -> bool:
        """Whether a block goes on from the one before; no block goes on from before the first or after the last."""
        return 0 < index < len(self.blocks) and self.blocks[index].linked

    def may_start(self, index: int) -> bool:
        """Whether a recomputed part may begin at this block."""
        return not self.blocks[index].in_place

    def runs(self) -> list[range]:
        """The stretches of linked blocks; no segment reaches over their ends."""
        starts = [i for i in range(len(self)) if not self.linked(i)]
        return [range(start, stop) for start, stop in zip(starts, [*starts[1:], len(self)], strict=True)]

    def saved(self, start: int, stop: int, entrance: bool) -> int:
        """Bytes that blocks ``start`` to ``stop`` save; with ``entrance``, the input of the first among them."""
        total, live = 0, not entrance
        for index in range(start, stop):
            block = self.blocks[index]
            if block.saves_input and not live:
                total += block.input_bytes
            total += block.own_bytes + (block.output_bytes if block.saves_output else 0)
            live = block.saves_output and self.linked(index + 1)
        return total

    def outside(self, start: int, stop: int) -> int:
        """Bytes saved before blocks ``start`` to ``stop``, by none of them."""
        return sum(block.outside_bytes for block in self.blocks[start:stop])

    def seconds(self, start: int, stop: int) -> float:
        """Forward time of blocks ``start`` to ``stop``."""
        return sum(block.seconds for block in self.blocks[start:stop])


@dataclass(frozen=True)
class Part:
    """Blocks ``start`` to ``stop`` (not included), kept or recomputed."""

    start: int
    stop: int
    recompute: bool


def live_bytes(chain: Chain, parts: Sequence[Part]) -> list[int]:
    """Live saved bytes when backward reaches each part, and first of all at the end of forward."""
    held: list[int] = []
    live, exit_is_live = 0, False
    for part in parts:
        exit_is_live = exit_is_live and chain.linked(part.start)
        live += chain.outside(part.start, part.stop)
        if part.recompute:
            live += 0 if exit_is_live else chain.blocks[part.start].input_bytes
            exit_is_live = False
        else:
            live += chain.saved(part.start, part.stop, entrance=not exit_is_live)
            exit_is_live = chain.blocks[part.stop - 1].saves_output
        held.append(live)
    again = [chain.saved(p.start, p.stop, entrance=False) if p.recompute else 0 for p in parts]
    return [live + chain.outside_bytes, *(h + a for h, a in zip(held, again, strict=True))]


def peak_bytes(chain: Chain, parts: Sequence[Part]) -> int:
    """The most saved bytes that are live at a time."""
    return max(live_bytes(chain, parts))


def recomputed_seconds(chain: Chain, parts: Sequence[Part]) -> float:
    """Forward time that is spent a second time."""
    return sum(chain.seconds(part.start, part.stop) for part in parts if part.recompute)
