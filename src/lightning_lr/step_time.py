r"""How long a run takes on machines that are not here, from a few numbers that are given or measured.

A rank needs :math:`a + b m` seconds for the forward and backward of a micro-batch of m samples, u for an update, and
the bytes that it sends over its bandwidth, plus a latency for each collective, to agree with the others. Everything is
counted one after the other: what an engine overlaps makes the run faster than this. Pure torch; no Lightning.
"""

from __future__ import annotations

import copy
import math
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn
from torch.optim import Optimizer

Step = Callable[[nn.Module, int], Tensor]
"""Forward and loss of a module for so many samples."""


@dataclass(frozen=True)
class StepTime:
    """What one rank needs, in seconds.

    Args:
        micro_batch: a, for any micro-batch, however small.
        sample: b, for each of its samples.
        update: u, of the optimizer.

    Raises:
        ValueError: for a negative time.
    """

    micro_batch: float
    sample: float
    update: float = 0.0

    def __post_init__(self) -> None:
        if min(self.micro_batch, self.sample, self.update) < 0:
            raise ValueError(f"StepTime: got {self}; no time is negative")


@dataclass(frozen=True)
class Network:
    """What the ranks are joined by.

    Args:
        bandwidth: bytes per second that a rank sends; infinite where sending costs nothing.
        latency: seconds for each collective, whatever its size.

    Raises:
        ValueError: for a bandwidth that is not positive, a latency below 0.
    """

    bandwidth: float = math.inf
    latency: float = 0.0

    def __post_init__(self) -> None:
        if not self.bandwidth > 0 or self.latency < 0:
            raise ValueError(f"Network: got {self}; bandwidth is above 0, latency at least 0")

    def seconds(self, sent: float, collectives: int) -> float:
        """To send so many bytes in so many collectives."""
        return sent / self.bandwidth + self.latency * collectives


def collectives(stage: Literal[0, 1, 2, 3], accumulation: int = 1) -> int:
    """Collectives of an update, each over the whole model: one all-reduce without ZeRO; a reduce-scatter and an
    all-gather in stage 1; those of each micro-batch in stages 2 and 3."""
    return {0: 1, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[stage]


def run_seconds(
    step: StepTime, samples: float, micro_batches: float, updates: int, communication: float = 0.0
) -> float:
    r"""Seconds for a part of a run: :math:`a M + b S + (u + c) U`.

    Args:
        step: a, b and u.
        samples: S, that one rank sees.
        micro_batches: M, that one rank computes.
        updates: U.
        communication: c, seconds of communication per update.
    """
    return step.micro_batch * micro_batches + step.sample * samples + (step.update + communication) * updates


# ---------------------------------------------------------------------- measuring
def measure_step_time(
    module: nn.Module,
    step: Step,
    optimizer: Optimizer | None = None,
    *,
    samples: Sequence[int] = (4, 16),
    repeats: int = 5,
    clock: Callable[[], float] = time.perf_counter,
) -> StepTime:
    """Measure a, b and u on this machine's CPU, on a copy: module and optimizer stay as they are.

    Of each size the median of some repetitions is taken, after one that is not counted; a and b are the least-squares
    line through them, neither below 0.

    Args:
        module: that is trained.
        step: forward and loss for so many samples.
        optimizer: of its parameters; without it u is 0.
        samples: sizes of micro-batches that are tried, at least two different ones.
        repeats: of each.
        clock: seconds.

    Raises:
        ValueError: where no line goes through the sizes.
    """
    if len(set(samples)) < 2:
        raise ValueError(f"measure_step_time: got samples={list(samples)}; a line needs two different sizes")
    module, optimizer = copy.deepcopy((module, optimizer))
    for parameter in module.parameters():
        with suppress(RuntimeError):
            parameter.grad = None

    def timed(work: Callable[[], object]) -> float:
        seconds = []
        for _ in range(repeats + 1):
            begin = clock()
            work()
            seconds.append(clock() - begin)
        return statistics.median(seconds[1:])

    def forward_and_backward(size: int) -> None:
        step(module, size).backward()  # type: ignore[no-untyped-call]

    fixed, each = _line(samples, [timed(lambda size=size: forward_and_backward(size)) for size in samples])  # type: ignore[misc]
    return StepTime(fixed, each, 0.0 if optimizer is None else timed(optimizer.step))


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope of the least-squares line, neither negative."""
    slope, intercept = statistics.linear_regression(x, y)
    if intercept < 0:  # the best line through the origin
        return 0.0, sum(a * b for a, b in zip(x, y, strict=True)) / sum(a * a for a in x)
    return (intercept, slope) if slope >= 0 else (statistics.fmean(y), 0.0)
