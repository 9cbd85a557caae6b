"""How much of a run is done: its budget, its shape, and the clock that reads both.

Curves are functions of progress in [0, 1], the share of the run's *budget* that is spent: updates of ``max_steps``,
epochs and the share of the present one's micro-batches of ``max_epochs``, seconds of ``max_time``, whichever is the
largest. :class:`Budget` is that arithmetic, on the loop's own counters (:class:`Place`). :class:`RunShape` is the
run as it will be if nothing changes (``plan`` walks through it before there is a Trainer), :class:`SampleClock` where
the run is now. Samples are counted separately, for reports; they do not move the curves. Pure Python; no Lightning, no
torch.
"""

from lightning_lr.progress.budget import Budget, NoEndError, Place, Span
from lightning_lr.progress.clock import SampleClock, walk
from lightning_lr.progress.shape import Batch, EpochShape, RunShape

__all__ = ["Batch", "Budget", "EpochShape", "NoEndError", "Place", "RunShape", "SampleClock", "Span", "walk"]
