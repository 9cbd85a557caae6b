"""Grow the batch instead of decaying the learning rate (Smith et al. 2018), as a callback.

``callback`` is the entry and holds the state that a checkpoint needs. ``settings`` (and ``after_warmup``) turns its
arguments and the Trainer's into a plan; ``loader`` makes the training loader yield the plan's micro-batches, or
``streaming`` regroups those of iterable data; ``growth`` decides after an update whether the batch grows;
``auto_micro_batch`` finds the largest micro-batch that fits in memory.
"""

from lightning_lr.callbacks.batch_size_ramp.callback import BatchSizeRamp

__all__ = ["BatchSizeRamp"]
