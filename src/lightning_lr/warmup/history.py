"""What a warm-up remembers of its losses: a bounded number of block averages over the log learning rate.

A warm-up may last hundreds of thousands of updates and the loss smoother wants a hundred points. Neighbouring updates
have nearly the same learning rate, so their losses are averaged into blocks; when the blocks are full, neighbours are
merged and the width of a block doubles. Averages use every loss (random thinning throws information away and needs
ranks to agree on random numbers), but a single spike would shift the average of its block, so a loss far from the
median of its neighbours is first replaced by it (Hampel's identifier: Davies & Gather 1993, JASA 88:782). A spike that
is only clipped still moves its block by about one standard error, and one that is left out moves the boundaries of
all blocks after it. Non-finite losses are counted, never averaged. Pure torch.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from lightning_lr.saved_state import COUNT, NOT_NAN, NUMBER, keys, row, several

CAPACITY = 64
"""Blocks kept at most: 32 to 64 for a long warm-up, each 1.5 to 3 % of what has passed of it."""

NEIGHBOURS = 12
"""Losses to each side against which one is judged: enough to tell a spike from noise, while a change passes as one."""

REJECT = 6.0
"""Robust standard deviations (1.4826 MAD) from the local median beyond which a loss is a spike."""

HUGE = 1e100
"""Losses beyond this would overflow when they are squared."""

FEWEST_NEIGHBOURS = 5
"""With fewer finite losses in the window nothing can be called a spike."""


@dataclass(frozen=True)
class LossBlock:
    """The average of ``count`` neighbouring updates.

    Args:
        count: losses averaged.
        log_lr: mean natural log of the learning rate.
        loss: mean loss.
        squares: sum of squared deviations of the losses from their mean.
    """

    count: int
    log_lr: float
    loss: float
    squares: float = 0.0

    def merged(self, other: LossBlock) -> LossBlock:
        """The average over both blocks (Chan's update, which does not cancel for a large mean)."""
        count = self.count + other.count
        share = other.count / count
        step = other.loss - self.loss
        return LossBlock(
            count,
            self.log_lr + share * (other.log_lr - self.log_lr),
            self.loss + share * step,
            self.squares + other.squares + step * step * self.count * share,
        )


class LossHistory:
    """Losses over the log learning rate, in at most ``capacity`` block averages, whatever the length of the warm-up.

    The result does not depend on how the losses are cut into calls of :meth:`extend`.

    Args:
        capacity: blocks kept at most; even, since full blocks are merged in pairs.

    Raises:
        ValueError: if capacity is not an even number of at least 8.
    """

    def __init__(self, capacity: int = CAPACITY) -> None:
        if not isinstance(capacity, int) or capacity < 8 or capacity % 2:
            raise ValueError(f"LossHistory: capacity={capacity!r} is not allowed; give an even number of at least 8")
        self.capacity = capacity
        self.width = 1
        """Losses in a full block."""
        self.observed = 0
        """Losses seen, the non-finite ones included."""
        self.non_finite = 0
        """Losses that were NaN, infinite or as good as infinite."""
        self.spikes = 0
        """Losses that were replaced as spikes."""
        self._full: list[LossBlock] = []
        self._open = (0, 0.0, 0.0, 0.0)  # the fields of a block that is not full; no object for every update
        self._context: list[float] = []  # judged losses, which still judge others
        self._tail: list[tuple[float, float]] = []  # losses whose later neighbours have not been seen

    def extend(self, lr: Sequence[float], loss: Tensor | Sequence[float]) -> None:
        """Take updates into account, in the order in which they were made.

        Args:
            lr: learning rate of each update, above 0.
            loss: mean loss of each update; a tensor is read as a whole.
        """
        losses = loss.detach().to("cpu", torch.float64).tolist() if isinstance(loss, Tensor) else list(loss)
        if len(losses) != len(lr):
            raise ValueError(f"LossHistory: got {len(lr)} learning rates for {len(losses)} losses; give one each")
        self.observed += len(losses)
        for rate, value in zip(lr, losses, strict=True):
            if abs(value) < HUGE:
                self._tail.append((math.log(rate), float(value)))
            else:
                self.non_finite += 1
        certain = len(self._tail) - NEIGHBOURS
        if certain > 0:
            for (log_lr, value), smoothed in zip(self._tail[:certain], self._without_spikes(), strict=False):
                self._add(log_lr, smoothed)
                self.spikes += smoothed != value
            self._context = (self._context + [value for _, value in self._tail[:certain]])[-NEIGHBOURS:]
            self._tail = self._tail[certain:]

    def blocks(self) -> list[LossBlock]:
        """The block averages, in order; the last updates are judged by the neighbours that are there so far.

        All blocks hold about the same number of losses (the last one between half and one and a half times as many
        as the others), so that one noise level fits them all.
        """
        now = self._copy()
        for (log_lr, _), value in zip(self._tail, self._without_spikes(), strict=True):
            now._add(log_lr, value)
        rest = LossBlock(*now._open)
        if rest.count == 0:
            return now._full
        if not now._full or 2 * rest.count >= now.width:
            return [*now._full, rest]
        return [*now._full[:-1], now._full[-1].merged(rest)]

    # ------------------------------------------------------------------ resuming
    SAVED: ClassVar = keys(
        {
            **dict.fromkeys(("width", "observed", "non_finite", "spikes"), COUNT),
            "blocks": several(row(COUNT, NUMBER, NUMBER, NOT_NAN)),
            "open": row(COUNT, NUMBER, NUMBER, NOT_NAN),
            "context": several(NUMBER),
            "tail": several(row(NUMBER, NUMBER)),
        }
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Plain numbers from which :meth:`load_state_dict` continues, bit for bit."""
        return {
            "width": self.width,
            "observed": self.observed,
            "non_finite": self.non_finite,
            "spikes": self.spikes,
            "blocks": [list(astuple(block)) for block in self._full],
            "open": list(self._open),
            "context": list(self._context),
            "tail": [list(pair) for pair in self._tail],
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where ``state`` was taken, with the same capacity."""
        self.width = int(state["width"])
        self.observed = int(state["observed"])
        self.non_finite = int(state["non_finite"])
        self.spikes = int(state["spikes"])
        self._full = [LossBlock(*block) for block in state["blocks"]]
        count, log_lr, loss, squares = state["open"]
        self._open = (int(count), float(log_lr), float(loss), float(squares))
        self._context = list(state["context"])
        self._tail = [(log_lr, loss) for log_lr, loss in state["tail"]]

    # ------------------------------------------------------------------ inside
    def _copy(self) -> LossHistory:
        copy = LossHistory(self.capacity)
        copy.width, copy._full, copy._open = self.width, list(self._full), self._open
        return copy

    def _add(self, log_lr: float, loss: float) -> None:
        count, mean_log_lr, mean, squares = self._open  # Welford's update
        count += 1
        step = loss - mean
        mean += step / count
        self._open = (count, mean_log_lr + (log_lr - mean_log_lr) / count, mean, squares + step * (loss - mean))
        if count < self.width:
            return
        self._full.append(LossBlock(*self._open))
        self._open = (0, 0.0, 0.0, 0.0)
        if len(self._full) == self.capacity:
            pairs = zip(self._full[::2], self._full[1::2], strict=True)
            self._full = [first.merged(second) for first, second in pairs]
            self.width *= 2

    def _without_spikes(self) -> list[float]:
        """The losses of the tail, each judged by up to ``NEIGHBOURS`` losses on either side."""
        if not self._tail:
            return []
        values = torch.tensor([*self._context, *(value for _, value in self._tail)], dtype=torch.float64)
        edge = values.new_full((NEIGHBOURS,), math.nan)
        windows = torch.cat([edge, values, edge]).unfold(0, 2 * NEIGHBOURS + 1, 1)[len(self._context) :]
        values = values[len(self._context) :]
        median = windows.nanmedian(dim=1).values
        mad = (windows - median.unsqueeze(1)).abs().nanmedian(dim=1).values
        few = windows.isfinite().sum(dim=1) < FEWEST_NEIGHBOURS
        near = (values - median).abs() <= REJECT * 1.4826 * mad
        # more than half of the window equal (a constant loss): no scale to judge by
        cleaned: list[float] = torch.where(near | few | (mad == 0.0), values, median).tolist()
        return cleaned


def noise_of(blocks: Sequence[LossBlock]) -> float:
    """Standard deviation of one update's loss around its block, pooled; 0 where every block is one update."""
    freedom = sum(block.count - 1 for block in blocks)
    return math.sqrt(sum(block.squares for block in blocks) / freedom) if freedom else 0.0
