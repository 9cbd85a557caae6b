"""Which other callback cannot be attached together with one of this package, and why; :class:`Run` makes the rest work.

`StochasticWeightAveraging` and `BackboneFinetuning` read and write ``group["lr"]``. :class:`Run` shows them the
scheduled values, as it does to an LR scheduler, so that the multipliers stand on top. Where that makes no sense, or
where two callbacks decide the same thing, the class (a callback or a strategy) lists a :class:`Clash` in ``refuses``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import BatchSizeFinder, StochasticWeightAveraging


@dataclass(frozen=True)
class Clash:
    """A callback that cannot be attached together with the one whose class lists this in ``refuses``.

    Args:
        other: its class; subclasses count. ``()`` where the installed Lightning has no such class.
        why: the reason; it continues the sentence "... is attached too, and".
        then: what the user should do.
        when: a function of the callback or strategy, for a clash that depends on its settings.
    """

    other: type[Callback] | tuple[()]
    why: str
    then: str = "keep one of the two"
    when: Callable[[Any], bool] = lambda member: True


AVERAGING_SETS_THE_END = Clash(
    StochasticWeightAveraging,
    "it averages at a learning rate of its own (swa_lrs), and both decide about the learning rate at the end of "
    "the run",
    "keep one of the two, or average without a learning rate of its own by WeightAveraging",
)
BATCH_OF_ONE_PROCESS = Clash(
    BatchSizeFinder, "a batch that one process finds for itself need not be the others'", "find it on one device"
)


def refuse_incompatible(member: Any, trainer: Trainer) -> None:
    """Refuse a callback that cannot be attached together with ``member``.

    Args:
        member: a callback or a strategy of this package, whose class lists what it refuses.
        trainer: the Trainer of both.

    Raises:
        MisconfigurationException: with both names and the reason.
    """
    clashes: Sequence[Clash] = member.refuses
    for clash in clashes:
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, clash.other) and clash.when(member):
                raise MisconfigurationException(
                    f"{type(member).__name__}: {type(other).__name__} is attached too, and {clash.why}; {clash.then}"
                )
