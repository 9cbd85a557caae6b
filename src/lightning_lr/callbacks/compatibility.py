"""Which of Lightning's own callbacks cannot stand beside which of ours, and why; the rest is made to work by `Run`.

`ZeROStrategy` asks too, by the name ``zero``.

`StochasticWeightAveraging` and `BackboneFinetuning` read and write ``group["lr"]``. :class:`Run` shows them the
scheduled values, as it does to an LR scheduler, so that our factors stand on top. Where that makes no sense, or where
two decide about one thing, the pair is refused here.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer, callbacks
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LearningRateFinder,
    StochasticWeightAveraging,
)


@dataclass(frozen=True)
class Clash:
    """Names of multipliers (or strategies) of ours that a callback of Lightning's cannot stand beside.

    Args:
        ours: by name.
        theirs: class of the other, and its subclasses; () where Lightning has no such class.
        why: continues "... is attached too, and".
        then: what to do.
        when: asked of our callback, where it depends on its settings.
    """

    ours: tuple[str, ...]
    theirs: type[Callback] | tuple[()]
    why: str
    then: str
    when: Callable[[Any], bool] = lambda member: True


CLASHES = (
    Clash(
        ("schedule",),
        StochasticWeightAveraging,
        "it averages at a learning rate of its own (swa_lrs), which the schedule would lower to its end",
        "remove one of the two, or give a curve that only warms up: Constant(warmup=...)",
        when=lambda member: member.decays,
    ),
    Clash(
        ("adaptive_warmup", "batch_size_ramp", "hypergradient", "learning_rate_search"),
        StochasticWeightAveraging,
        "it averages at a learning rate of its own (swa_lrs), and both decide about the learning rate at the end of "
        "the run",
        "keep one of the two, or average without a learning rate of its own by WeightAveraging",
    ),
    Clash(
        ("gradual_unfreezing",),
        BaseFinetuning,
        "both decide which layers are frozen",
        "keep one of the two",
    ),
    Clash(
        ("layerwise",),
        BaseFinetuning,
        "it adds the parameters that it unfreezes as a group without a layer, with a learning rate of its own",
        "use GradualUnfreezing, which adds no group",
    ),
    Clash(
        ("normalized_weight_decay",),
        BaseFinetuning,
        "it adds a group during the run, by whose base learning rate the decay would have to be divided",
        "use GradualUnfreezing, which adds no group",
    ),
    Clash(
        ("batch_size_ramp",),
        GradientAccumulationScheduler,
        "both decide about accumulation",
        "keep one",
    ),
    Clash(
        ("batch_size_ramp",),
        BatchSizeFinder,
        "both decide about the batch",
        'remove it and set max_micro_batch_size="auto", which finds what fits',
    ),
    Clash(
        ("linear_scaling",),
        LearningRateFinder,
        "it finds a learning rate for this very batch, which must not be scaled to it again",
        "keep one of the two",
    ),
    Clash(
        ("adaptive_warmup", "learning_rate_search"),
        LearningRateFinder,
        "both find the learning rate, and the one that it finds would not be used",
        "keep one of the two",
    ),
    Clash(
        ("zero",),
        StochasticWeightAveraging,
        "it puts its average into the module's parameters, and the engine trains copies of them in shards",
        "use strategy='ddp', or remove it",
    ),
    Clash(
        ("zero",),
        getattr(callbacks, "WeightAveraging", ()),  # Lightning has it from 2.6 on
        "it keeps its average in the checkpoint's state_dict, which the engine does not save",
        "use strategy='ddp', or remove it",
    ),
    Clash(
        ("zero",),
        BaseFinetuning,
        "it adds groups to the optimizer during the run, which the engine does not train",
        "use strategy='ddp', or leave the frozen parameters out of the optimizer for the whole run",
    ),
    Clash(
        ("ddp_checkpointed",),
        BaseFinetuning,
        "DDP averages no gradient of a parameter that was frozen when it was set up, so that the ranks would drift "
        "apart once it is trained",
        "use GradualUnfreezing, which freezes later",
    ),
    Clash(
        ("zero", "ddp_checkpointed"),
        BatchSizeFinder,
        "a batch that one process finds for itself need not be the others'",
        "find it on one device",
    ),
)


def refuse_incompatible(member: Any, name: str, trainer: Trainer) -> None:
    """Complain about a callback of Lightning's that cannot stand beside ``member``, whose name is ``name``.

    Raises:
        MisconfigurationException: with both names and the reason.
    """
    for clash in CLASHES:
        if name not in clash.ours or not clash.when(member):
            continue
        for other in trainer.callbacks:  # type: ignore[attr-defined]
            if isinstance(other, clash.theirs):
                raise MisconfigurationException(
                    f"{type(member).__name__}: {type(other).__name__} is attached too, and {clash.why}; {clash.then}"
                )
