"""What a first heat, over decades, shows: where to go on from, and whether training begins on a plateau.

On a plateau next to nothing is learned in a few updates. Whatever a rate does there is about as good as doing nothing,
and the lowest rate does the least harm, though training never gets off the plateau at it. So the score is not what
decides there: :func:`leader` is then the highest rate that does little harm, from which a longer heat goes on.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from lightning_lr.search.trial import Trial

TIED, ALIKE, APART = 2.0, 0.01, 0.25
"""Two scores of the first heat are a tie where their mean difference over the same batches is at most so many of its
standard errors, and at most ``APART`` of the scores' standard deviation over batches; or at most ``ALIKE`` of that. On
a plateau, where nothing is learned yet, the lowest rate does the least harm, and rates below it do nothing at all."""

QUIET = 0.02, 6.0
"""A heat has learned nothing where its best rate ends lower than its lowest one by less than the first share of that
loss, and by less than so many times what that loss differs by from batch to batch: a loss that has a large constant in
it falls by a small share of itself, and yet by more than its batches differ. Chosen, with what follows from it, on
seeds 1 to 20 of ``benchmarks/learning_rate_search_nothing_learned.py``."""

HARMLESS = 0.1, 15.0
"""A rate that ends higher than the lowest one by at most this share of that loss, and by at most so many times what its
batches differ by, has done little harm. Chosen on the same seeds."""

PLATEAU = 0.3
"""The first heat is on a plateau where the rate a decade below its best one has learned less than this share of what
that one has. Chosen on GRU (0.26 at most) and MLP (0.35 at least), seen on CNN and ViT (0.67 at least)."""


def leader(heat: Sequence[Trial]) -> Trial:
    """The rate to go on from after a heat over decades: the highest of the best ones, see :func:`learned_nothing`.

    Args:
        heat: at least one of its rates has a finite score.
    """
    return highest_harmless(heat) if learned_nothing(heat) else highest_tied(heat)


def learned_nothing(heat: Sequence[Trial]) -> bool:
    r"""Whether no rate of a heat over decades has learned anything.

    .. math:: s_1 - s_b < \min(0.02 \, |s_1|, \; 6 \, \sigma_1)

    with the mean scores :math:`s_i` by ascending rate, of the rates that did not diverge, the best one :math:`b`, and
    the standard deviation over batches :math:`\sigma_1` of what the lowest rate scores.
    """
    finite = _finite(heat)
    return bool(finite) and finite[0].score - min(trial.score for trial in finite) < _of(QUIET, finite[0])


def still_nothing(first: Sequence[Trial], later: Sequence[Trial]) -> bool:
    """Whether neither a heat over decades nor a later, longer one has learned anything.

    Their scores are on other batches, so that this is for a warning and decides nothing.
    """
    lowest = _finite(first)[:1]
    return learned_nothing(first) and min(t.score for t in later) >= lowest[0].score - _of(QUIET, lowest[0])


def highest_harmless(heat: Sequence[Trial]) -> Trial:
    r"""The highest rate that ends little higher than the lowest one that did not diverge.

    .. math:: \max\{\eta_i : s_i - s_1 \le \min(0.1 \, |s_1|, \; 15 \, \sigma_1)\}
    """
    finite = _finite(heat)
    limit = finite[0].score + _of(HARMLESS, finite[0])
    return [trial for trial in finite if trial.score <= limit][-1]


def highest_tied(heat: Sequence[Trial]) -> Trial:
    """The highest rate whose scores are no worse than the best one's, by what they differ on the same batches."""
    best = min(heat, key=lambda trial: (trial.score, -trial.rate))
    many = len(best.scores)
    spread = statistics.pstdev(best.scores)

    def tied(trial: Trial) -> bool:
        if len(trial.scores) != many:
            return False
        differences = [a - b for a, b in zip(trial.scores, best.scores, strict=True)]
        error = statistics.stdev(differences) / math.sqrt(many) if many > 1 else 0.0
        return statistics.fmean(differences) <= max(min(TIED * error, APART * spread), ALIKE * spread)

    return max((trial for trial in heat if tied(trial)), key=lambda trial: trial.rate)


def learned_below(heat: Sequence[Trial]) -> float | None:
    r"""Share of what the best rate of a heat over decades has learned that the next lower one has.

    .. math:: (s_1 - s_{b - 1}) / (s_1 - s_b)

    with the mean scores :math:`s_i` by ascending rate, of the rates that did not diverge, and the best one :math:`b`:
    what the lowest rate ends with stands for having learned nothing, since it is scored on the same batches.

    Returns:
        The share; ``None`` where no rate lies between the lowest and the best one.
    """
    scores = [trial.score for trial in _finite(heat)]
    best = min(range(len(scores)), key=scores.__getitem__, default=0)
    return None if best < 2 else (scores[0] - scores[best - 1]) / (scores[0] - scores[best])


# ---------------------------------------------------------------------- inside
def _finite(heat: Sequence[Trial]) -> list[Trial]:
    """Those that did not diverge, by ascending rate."""
    return sorted((trial for trial in heat if math.isfinite(trial.score)), key=lambda trial: trial.rate)


def _of(limit: tuple[float, float], lowest: Trial) -> float:
    """A share of the lowest rate's score, or so many times what its scores differ by, whichever is less."""
    return min(limit[0] * abs(lowest.score), limit[1] * statistics.pstdev(lowest.scores))
