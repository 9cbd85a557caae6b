"""`CheckpointPolicy`: how a network is cut into segments whose activations are computed again in backward."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_lr.checks import is_count, is_list

CALLER = "CheckpointPolicy"


class PlanError(ValueError):
    """A policy that this network, or this batch, cannot follow."""


@dataclass(frozen=True)
class CheckpointPolicy:
    r"""Which activations are kept for backward and which are computed again.

    A network is a chain of blocks, found by watching the first training step: elements of ``nn.Sequential`` and
    ``nn.ModuleList`` that are called one after the other, each on what the one before returned. Of n like blocks in k
    segments, ``k + n / k`` activations are held at the peak instead of n, for at most one more forward; ``k = sqrt(n)``
    is the least. A segment ends where something else touches the activation between two blocks.

    Args:
        segments: ``"sqrt"`` for the square root of the number of blocks (Chen et al.), a number of segments of as many
            blocks each, or ``"every_block"``. The last segment is kept where that adds at most a tenth to the peak.
        memory_budget: bytes that saved activations may take at their peak, the parts outside of the blocks included.
            The plan is then the one with the least recomputation that fits, by measured bytes and forward time of each
            block, and ``segments`` is not used. ``"auto"`` takes four fifths of the memory that is free on the
            accelerator in the third training step. ``None`` for no budget.
        modules: names of the blocks, or of containers whose elements are the blocks; ``None`` finds them.
        preserve_batch_norm: update the running statistics of batch norms once per forward, not when it is repeated.

    Raises:
        ValueError: for a value that is not allowed.

    Source: Chen, Xu, Zhang & Guestrin 2016, arXiv:1604.06174; the budget: the chain of Herrmann et al. 2019,
    arXiv:1911.13214, with segments that are computed again once.
    """

    segments: str | int = "sqrt"
    memory_budget: int | str | None = None
    modules: list[str] | None = None
    preserve_batch_norm: bool = True

    def __post_init__(self) -> None:
        if not is_count(self.segments) and self.segments not in ("sqrt", "every_block"):
            raise ValueError(
                f"{CALLER}: got segments={self.segments!r}; allowed are 'sqrt', 'every_block' or a number from 1"
            )
        budget = self.memory_budget
        if budget not in (None, "auto") and not is_count(budget):
            raise ValueError(
                f"{CALLER}: got memory_budget={budget!r}; allowed are None, 'auto' or a number of bytes from 1"
            )
        named = is_list(self.modules) and all(isinstance(name, str) for name in self.modules or ())
        if self.modules is not None and not (named and self.modules):
            raise ValueError(
                f"{CALLER}: got modules={self.modules!r}; give a list of module names, or None to find them"
            )
        if not isinstance(self.preserve_batch_norm, bool):
            raise ValueError(f"{CALLER}: got preserve_batch_norm={self.preserve_batch_norm!r}; give True or False")
