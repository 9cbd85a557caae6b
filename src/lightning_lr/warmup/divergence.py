"""Has the loss just left the ground? A flag per update that stays on the device and is read one update later.

Beside the switch test, which looks every so many updates: a loss that is not finite, or that explodes, cannot wait for
it. The flag is copied to pinned memory asynchronously and looked at after the *next* update, so that the host waits for
work that is at most one update behind it, never for the queue. What counts as exploding is two losses in a row above a
limit (one is a spike, which the history leaves out), and so a divergence is known within 2 updates of its start.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lr.warmup.history import Block, noise_of

RISE = 3.0
"""A loss is out of bounds this many times the range of the blocks above the highest of them,"""

NOISE = 100.0
"""and this many standard deviations of one update's loss (spikes of 50 occur),"""

AGAIN = 1.0
"""and the size of the loss itself above it (at a tiny lr neither range nor noise need be of any size)."""

FINE, OUT_OF_BOUNDS, DIVERGED, NON_FINITE = 0, 1, 2, 3

Share = Callable[[Tensor], Tensor]
"""Maximum over the ranks of an int32 tensor on the loss's device."""


def limit_of(blocks: Sequence[Block]) -> float:
    """Loss above which two updates in a row count as an explosion; infinite where nothing is known yet."""
    if len(blocks) < 2:
        return math.inf
    losses = [block.loss for block in blocks]
    high, low = max(losses), min(losses)
    return high + max(RISE * (high - low), NOISE * noise_of(blocks), AGAIN * max(abs(high), abs(low)))


class DivergenceWatch:
    """Follows the loss of every update without making the host wait for the device.

    Args:
        share: the maximum over the ranks, where a run has several; every rank then knows at the same update.
    """

    def __init__(self, share: Share | None = None) -> None:
        self.share = share
        self.limit = math.inf
        """Loss above which two updates in a row count as an explosion."""
        self.known = FINE
        """The worst that has been read: ``FINE``, ``DIVERGED`` or ``NON_FINITE``."""
        self._state: Tensor | int = FINE  # of the last update
        self._copies: list[tuple[Tensor, torch.cuda.Event | None]] = []

    def observe(self, loss: Tensor | float) -> None:
        """Look at the loss of an update; a tensor on a device is looked at there."""
        if self.share is None and (not isinstance(loss, Tensor) or loss.device.type == "cpu"):
            self._observe_here(float(loss))
            return
        loss = loss.detach().reshape(()) if isinstance(loss, Tensor) else torch.tensor(loss)
        before = torch.as_tensor(self._state, dtype=torch.int32, device=loss.device)
        out = (loss > self.limit).to(torch.int32)
        state = torch.where(loss.isfinite(), out * (1 + (before == OUT_OF_BOUNDS).to(torch.int32)), NON_FINITE)
        state = state.to(torch.int32)
        self._state = state if self.share is None else self.share(state)
        self._copies.append(_copy_to_host(self._state))

    def diverged(self) -> bool:
        """Whether a divergence is known, of any update but the last one that is still under way."""
        # On a device the last update's flag is always left for the next time, even if it has arrived: when to act must
        # not depend on timing. The host waits for the one before, which is there if it is not far ahead.
        while self._copies and (len(self._copies) > 1 or _is_here(self._copies[0])):
            copy, event = self._copies.pop(0)
            if event is not None:
                event.synchronize()
            self._learn(int(copy))
        return self.known != FINE

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues; waits for what is under way."""
        return {
            "limit": self.limit,
            "known": self.known,
            "state": int(self._state),
            "in_flight": [_value(copy) for copy in self._copies],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken."""
        self.limit = float(state["limit"])
        self.known = int(state["known"])
        self._state = int(state["state"])
        self._copies = [(torch.tensor(value, dtype=torch.int32), None) for value in state["in_flight"]]

    # ------------------------------------------------------------------ inside
    def _observe_here(self, loss: float) -> None:
        if not math.isfinite(loss):
            self._state = NON_FINITE
        elif loss > self.limit:
            self._state = DIVERGED if int(self._state) == OUT_OF_BOUNDS else OUT_OF_BOUNDS
        else:
            self._state = FINE
        self._learn(int(self._state))

    def _learn(self, state: int) -> None:
        if state in (DIVERGED, NON_FINITE):
            self.known = max(self.known, state)


def _copy_to_host(state: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    if state.device.type != "cuda":  # read when it is due; on the host it is there already
        return state, None
    copy = torch.empty((), dtype=torch.int32, pin_memory=True)
    copy.copy_(state, non_blocking=True)
    event = torch.cuda.Event()  # type: ignore[no-untyped-call]
    event.record()
    return copy, event


def _is_here(pair: tuple[Tensor, torch.cuda.Event | None]) -> bool:
    copy, event = pair
    return event is None and copy.device.type == "cpu"


def _value(pair: tuple[Tensor, torch.cuda.Event | None]) -> int:
    copy, event = pair
    if event is not None:
        event.synchronize()
    return int(copy)
