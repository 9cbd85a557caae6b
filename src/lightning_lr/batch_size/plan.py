"""The plan of a ramp: which samples make which update, at what learning-rate factor, over a whole run.

It stands between a :class:`~lightning_lr.batch_size.schedules.RampSchedule`, which says how far the noise scale has
fallen, and the sampler and callback that carry it out; ``lightning-lr plan`` prints it without a Trainer. The rule
(:class:`BatchRule`): the batch takes its part of the fall, up to a cap and in whole samples per device, and the
learning rate takes exactly what that leaves. Source: Smith et al. 2018, arXiv:1711.00489.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal, NamedTuple, get_args

from lightning_lr.batch_size._checks import require, require_count, require_momentum, require_positive
from lightning_lr.batch_size.schedules import AdaptiveRamp, RampSchedule
from lightning_lr.batch_size.windows import EpochWindows, Window, micro_batch_sizes
from lightning_lr.curves import SNAP

LRRule = Literal["linear", "sqrt"]
