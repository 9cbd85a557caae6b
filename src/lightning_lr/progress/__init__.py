"""How far a run is, counted in samples: the shape of a run, and the clock that walks through it.

Curves are functions of progress in [0, 1]. Counting updates or epochs would bend them as soon as the batch changes,
so progress is *samples*: those consumed before an update, over those of the whole run. :class:`RunShape` says how
many there will be (the same arithmetic serves ``plan``, before there is a Trainer), :class:`SampleClock` where the
run is now. Where a loader does not tell its batch sizes (a batch sampler of the user's own), one micro-batch counts
as one unit instead. Pure Python; no Lightning, no torch.
"""

from lightning_lr.progress.clock import SampleClock, walk
from lightning_lr.progress.shape import Batch, EpochShape, RunShape

__all__ = ["Batch", "EpochShape", "RunShape", "SampleClock", "walk"]
