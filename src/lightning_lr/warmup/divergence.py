"""Has the loss just left the ground? Every update's loss is looked at, one update later, so that the host never waits.

In addition to the switch test, which runs every few updates: a loss that is not finite, or that explodes, cannot wait
for it. The loss is copied to pinned memory asynchronously and judged after the *next* update: the host waits for work
that is one update behind it, never for the queue. What counts as exploding is two losses in a row above a limit (one is
a spike, which the history replaces), and so a divergence is known within 2 updates of its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lr.saved_state import FLAG, MEASURED, NOT_NAN, keys, several
from lightning_lr.warmup.history import LossBlock, noise_of

RISE = 3.0
"""A loss is out of bounds this many times the range of the blocks above the highest of them,"""

NOISE = 100.0
"""and this many standard deviations of one update's loss (spikes of 50 occur),"""

AGAIN = 1.0
"""and the size of the loss itself above it (at a tiny lr neither range nor noise need be of any size)."""

Maximum = Callable[[Tensor], Tensor]
"""Maximum over the ranks of a scalar on the loss's device; finite or plus infinity."""


def limit_of(blocks: Sequence[LossBlock]) -> float:
    """Loss above which two updates in a row count as an explosion; infinite where nothing is known yet."""
    if len(blocks) < 2:
        return math.inf
    losses = [block.loss for block in blocks]
    high, low = max(losses), min(losses)
    return high + max(RISE * (high - low), NOISE * noise_of(blocks), AGAIN * max(abs(high), abs(low)))


class DivergenceWatch:
    """Follows the loss of every update without making the host wait for the device.

    Args:
        maximum: the maximum over the ranks, where a run has several; every rank then knows at the same update.
    """

    def __init__(self, maximum: Maximum | None = None) -> None:
        self.maximum = maximum
        self.limit = math.inf
        """Loss above which two updates in a row count as an explosion."""
        self.exploded = False
        """Whether an explosion is known."""
        self.non_finite = False
        """Whether a loss that is not finite is known."""
        self._out_of_bounds = False  # the last loss that was judged
        self._under_way: list[tuple[Tensor | float, torch.cuda.Event | None]] = []

    def observe(self, loss: Tensor | float) -> None:
        """Send the loss of an update on its way to the host; a tensor is a scalar."""
        if isinstance(loss, Tensor):
            loss = loss.detach()
        if self.maximum is not None:  # a maximum may lose a NaN
            loss = torch.nan_to_num(torch.as_tensor(loss), nan=math.inf, posinf=math.inf, neginf=math.inf)
            loss = self.maximum(loss)
        self._under_way.append(_sent(loss) if isinstance(loss, Tensor) else (loss, None))

    def diverged(self) -> bool:
        """Whether a divergence is known: on the host of any update, on a device of any but the last one."""
        # On a device the last loss is always left for the next time, even if it has arrived: when to act must not
        # depend on timing. The host waits for the one before, which is there if it is not far ahead.
        while self._under_way and (len(self._under_way) > 1 or _is_here(self._under_way[0])):
            self._judge(_value(self._under_way.pop(0)))
        return self.exploded or self.non_finite

    SAVED: ClassVar = keys(
        {
            "limit": NOT_NAN,
            **dict.fromkeys(("exploded", "non_finite", "out_of_bounds"), FLAG),
            "under_way": several(MEASURED),
        }
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values from which :meth:`load_state_dict` continues; waits for what is under way."""
        return {
            "limit": self.limit,
            "exploded": self.exploded,
            "non_finite": self.non_finite,
            "out_of_bounds": self._out_of_bounds,
            "under_way": [_value(pair) for pair in self._under_way],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.limit = float(state["limit"])
        self.exploded, self.non_finite = bool(state["exploded"]), bool(state["non_finite"])
        self._out_of_bounds = bool(state["out_of_bounds"])
        self._under_way = [(float(loss), None) for loss in state["under_way"]]

    # ------------------------------------------------------------------ inside
    def _judge(self, loss: float) -> None:
        out = loss > self.limit
        self.non_finite |= not math.isfinite(loss)
        self.exploded |= out and self._out_of_bounds
        self._out_of_bounds = out


def _is_here(pair: tuple[Tensor | float, torch.cuda.Event | None]) -> bool:
    loss, event = pair
    return event is None and (not isinstance(loss, Tensor) or loss.device.type == "cpu")


def _sent(loss: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if loss.device.type != "cuda":  # on the host it is here; on another device it is read when its time has come
        return loss, None
    copy = torch.empty(loss.shape, dtype=loss.dtype, pin_memory=True)
    copy.copy_(loss, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy, event


def _value(pair: tuple[Tensor | float, torch.cuda.Event | None]) -> float:
    loss, event = pair
    if event is not None:
        event.synchronize()
    return float(loss)
