"""Fewer activations held for backward: checkpointing by plan.

Modules: ``policy`` (the user's settings), ``blocks`` (which modules may be blocks), ``measuring`` (what they do in the
first training steps), ``chain`` and ``planner`` (where to cut), ``segment`` (how a cut is executed, and the seam for
codecs), ``wrapping`` (how a block's forward is shadowed), ``checkpointing`` (the policy at work).
"""

from lightning_lr.activations.chain import Block, Chain, Part, live_bytes, peak_bytes
from lightning_lr.activations.checkpointing import Checkpointing, CheckpointPlan
from lightning_lr.activations.planner import cut, least_peak, least_recomputation
from lightning_lr.activations.policy import CheckpointPolicy, PlanError
from lightning_lr.activations.segment import replaying, saving_segment_inputs

__all__ = [
    "Block",
    "Chain",
    "CheckpointPlan",
    "CheckpointPolicy",
    "Checkpointing",
    "Part",
    "PlanError",
    "cut",
    "least_peak",
    "least_recomputation",
    "live_bytes",
    "peak_bytes",
    "replaying",
    "saving_segment_inputs",
]
