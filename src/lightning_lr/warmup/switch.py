"""The switch test: does the smoothed loss now lie above its lowest point, and which learning rate follows from it.

Between the loss smoother and the state machine. A test is positive when the loss at the present learning rate exceeds
that at the best earlier one with a probability above ``confidence``, by the joint posterior of the two; ``patience``
positive tests in a row end the warm-up, since a rise may be a short catapult. AutoWU (Kim et al. 2021,
arXiv:2107.05855, section 3) asks for the maximum of that probability over all earlier points, which has no correction
for looking at many; here the earlier point is the argmin of the posterior mean.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from lightning_lr.gaussian_process.posterior import FEWEST_BLOCKS, Posterior
from lightning_lr.warmup.history import LossBlock
from lightning_lr.warmup.smoother import fit

DIVERGENCE_BACKOFF = 0.5
"""Share of the learning rate of a divergence that is safe: on a quadratic descent is stable below 2 / curvature and
fastest at 1 / curvature."""

BAND = 1.96
"""Standard deviations of a 95 % band."""


@dataclass(frozen=True)
class SwitchTest:
    """What one look at the history of a warm-up shows.

    Args:
        probability: that the smoothed loss at the highest learning rate exceeds that at the best earlier one.
        fell: probability that the smoothed loss at the first learning rate exceeds that at the best one.
        best_lr: learning rate at the lowest smoothed loss.
        posterior: the smoothed loss; ``None`` where there is too little to smooth.
    """

    probability: float
    fell: float
    best_lr: float
    posterior: Posterior | None


def look(blocks: Sequence[LossBlock], fallback_lr: float) -> SwitchTest:
    """Smooth a history and test it.

    Args:
        blocks: block averages, from :meth:`LossHistory.blocks`.
        fallback_lr: the best learning rate where there is no finite loss at all.

    Returns:
        The test. With fewer than 6 blocks (or one learning rate) it knows nothing: probabilities of 0, and the
        learning rate of the lowest block.
    """
    if len(blocks) < FEWEST_BLOCKS or len({block.log_lr for block in blocks}) == 1:
        lowest = min(blocks, key=lambda block: block.loss, default=None)
        return SwitchTest(0.0, 0.0, fallback_lr if lowest is None else math.exp(lowest.log_lr), None)
    posterior = fit(blocks)
    mean = posterior.mean
    last = len(mean) - 1
    # The last point is no earlier one. While the loss falls its neighbour is the best, and the probability near 0.
    return SwitchTest(
        probability=posterior.probability_above(last, int(mean[:-1].argmin())),
        fell=posterior.probability_above(0, 1 + int(mean[1:].argmin())),
        best_lr=math.exp(posterior.argmin),
        posterior=posterior,
    )


def safe_lr(test: SwitchTest, reached_lr: float, min_lr: float) -> float:
    """Learning rate after a divergence at ``reached_lr``: the best one, but at most half of that; both were tried."""
    return max(min_lr, min(test.best_lr, DIVERGENCE_BACKOFF * reached_lr))


def picture(blocks: Sequence[LossBlock], posterior: Posterior | None) -> dict[str, Any]:
    """What ``report`` draws of a test, as plain numbers: block means, posterior mean and 95 % band, over the lr."""
    drawn: dict[str, Any] = {
        "blocks": {
            "lr": [short(math.exp(block.log_lr)) for block in blocks],
            "loss": [short(block.loss) for block in blocks],
            "count": [block.count for block in blocks],
        }
    }
    if posterior is not None:
        mean, sd = posterior.mean, posterior.sd
        drawn["posterior"] = {
            "lr": list(map(short, posterior.log_lr.exp().tolist())),
            "mean": list(map(short, mean.tolist())),
            "low": list(map(short, (mean - BAND * sd).tolist())),
            "high": list(map(short, (mean + BAND * sd).tolist())),
        }
    return drawn


def short(value: float) -> float:
    """A number in a journal: seven digits, which are those of fp32; NaN and infinity stay."""
    return float(f"{value:.7g}")
