"""From the scores of a heat to a rate: the minimum of a Gaussian process over the log learning rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightning_lr.gaussian_process import SMALLEST_NOISE, Posterior, log_evidence
from lightning_lr.search.decades import PLATEAU, highest_harmless, learned_below, learned_nothing
from lightning_lr.search.race import Race
from lightning_lr.search.trial import Trial

LENGTHSCALES = (0.5, 0.7, 1.0, 1.4)
"""In decades: a loss after its own decay has one wide minimum."""

SIGNAL_VARIANCES = (0.5, 5.0)
"""Of standardised scores."""

NOISE_RATIOS = (0.5, 1.0, 2.0)
"""Noise variances tried, over the one that the paired differences suggest."""

CAP = 2.0
"""The score of a rate above the best one is taken for at most so many times as far above its score as the second best
is. What matters beyond the edge of stability is where it lies; how bad it gets would distort the fit."""

TIE = 0.05
"""Share of the fall that the second best is taken to be above the best one at least, for this purpose."""

CAUTION = 0.16
"""Chosen on CNN, ViT and byte LM of the headline at 256 updates, seed 1; other tasks judge it."""

LEAST = 0.5
"""Caution takes no less than this share of the rate at the minimum. Where noise leaves the smoothed score flat, it went
down to the lowest rate of the heat."""

WALL = 4.0
"""The choice is at least so many times below the lowest rate that failed in its heat. Chosen on races of CNN, ViT and
byte LM: none of them loses by it; by 5 the byte LM with SGD does, and by 10 all three do."""

PLATEAU_LOWERS = 2.0
"""The choice after a plateau is lowered by so many times. Half a decade gains no more on a GRU, and less on an LSTM."""

GRID = 201


@dataclass(frozen=True)
class Choice:
    """What a race has chosen.

    Args:
        rate: the rate.
        low: lowest rate whose score may as well be the best, within one standard deviation of the difference.
        high: highest such rate.
        posterior: the smoothed score over the log rate; ``None`` where there were fewer than three rates.
    """

    rate: float
    low: float
    high: float
    posterior: Posterior | None


def caution(updates: int) -> float:
    """Share of the fall that is given away to choose a lower rate, after schedules of so many updates.

    A short schedule likes larger rates than a long one, since the noise of a large rate has not yet cost it anything.
    """
    return CAUTION / updates


def read(trials: Sequence[Trial]) -> Choice:
    r"""Choose a rate from the scores of one heat: the lowest whose smoothed score is about the best.

    .. math:: \eta^* = \min\{\eta \le \hat\eta : \mu(\eta) \le \mu(\hat\eta) + q_n (L_0 - \mu(\hat\eta))\}

    with the minimum :math:`\hat\eta` of the posterior mean, the first loss :math:`L_0` and :math:`q_n` = 0.16 / n, see
    :func:`caution`; half of :math:`\hat\eta` at least. It is at least 4 times below the lowest rate above the best one
    that diverged, or ended with a higher loss than any batch had at the best one.

    Args:
        trials: at least one of them with a finite score.

    Raises:
        ValueError: where every one diverged.
    """
    trials = sorted(trials, key=lambda trial: trial.rate)
    finite = [trial for trial in trials if math.isfinite(trial.score)]
    if not finite:
        raise ValueError(f"read: all of {len(trials)} rates diverged; try lower ones")
    best = min(finite, key=lambda trial: trial.score)
    if len(trials) < 3:
        return Choice(best.rate, trials[0].rate, trials[-1].rate, None)
    scores = _capped(trials, best)
    centre, scale = scores.mean(), scores.std()
    if not float(scale) > 1e-12 * max(abs(best.score), 1e-300):
        return Choice(best.rate, trials[0].rate, trials[-1].rate, None)
    posterior = _fit(
        torch.tensor([math.log(trial.rate) for trial in trials], dtype=torch.float64),
        (scores - centre) / scale,
        _paired_noise(finite, best) / float(scale) ** 2,
    )
    posterior = Posterior(
        posterior.log_lr, posterior.weights, centre + scale * posterior.means, scale**2 * posterior.covariances
    )
    low, high = _interval(posterior)
    cautious = _cautious(posterior, first=trials[0].losses[0], share=caution(len(best.losses)))
    rate = max(cautious, LEAST * math.exp(posterior.argmin))
    rate = max(trials[0].rate, min(rate, _failed_above(trials, best) / WALL))
    return Choice(rate, min(low, rate), high, posterior)


def after_plateau(choice: Choice, first: Sequence[Trial]) -> Choice:
    r"""Half the choice, where training begins on a plateau.

    .. math:: (s_1 - s_{b - 1}) / (s_1 - s_b) < 0.3

    Away from a plateau a tenth of a good rate learns a good part of what that rate does, in a few updates already. On
    one it learns next to nothing: a short race shows which rate leaves the plateau first, and that is a higher one than
    is best for the rest of the run. Where no rate of the first heat has learned anything, the choice is halved if it is
    no lower than the highest that did little harm. Else it is where training goes on from with more updates, and half
    of it may not get there. What else was tried: ``benchmarks/learning_rate_search_readings.py``.

    Args:
        choice: from a later heat.
        first: the heat over decades, see :func:`learned_below` and :func:`learned_nothing`.
    """
    share = learned_below(first)
    if learned_nothing(first):
        halves = choice.rate >= highest_harmless(first).rate
    else:
        halves = share is not None and share < PLATEAU
    if not halves:
        return choice
    rate = choice.rate / PLATEAU_LOWERS
    return replace(choice, rate=rate, low=min(choice.low, rate))


def choose(race: Race) -> tuple[Sequence[Trial], Choice | None]:
    """Choose from a race: its last heat with a finite score, and the choice from it; none where every rate diverged."""
    for heat in reversed(race.trials):
        if any(math.isfinite(trial.score) for trial in heat):
            choice = read(heat)
            if race.around is None and heat is not race.trials[0]:
                choice = after_plateau(choice, race.trials[0])
            return heat, replace(choice, rate=race.within(choice.rate))
    return (), None


# ---------------------------------------------------------------------- inside
def _failed_above(trials: Sequence[Trial], best: Trial) -> float:
    """The lowest rate above the best one that diverged or ended higher than it could have begun; infinite without.

    A score is on other batches than the first loss, so it is held against the worst batch that the best rate saw.
    """
    worst = max((*best.losses, *best.scores))
    failed = (t.rate for t in trials if t.rate > best.rate and (not t.scores or t.score > worst))
    return min(failed, default=math.inf)


def _capped(trials: Sequence[Trial], best: Trial) -> Tensor:
    above = sorted(t.score - best.score for t in trials if math.isfinite(t.score) and t is not best)
    gap = max(above[0] if above else 0.0, TIE * (best.losses[0] - best.score))
    if not gap > 0.0:  # nothing has fallen, and the others have all diverged
        gap = max(abs(best.score), 1e-300)
    # only above the best rate: below it, scores are smooth, and their slope shows where the minimum is
    capped = [min(t.score, best.score + CAP * gap) if t.rate > best.rate or not t.scores else t.score for t in trials]
    return torch.tensor(capped, dtype=torch.float64)


def _paired_noise(finite: Sequence[Trial], best: Trial) -> float:
    """Variance of a score's difference to the best one's, over the batches that both were scored on."""
    variances = []
    for trial in finite:
        if trial is not best and len(trial.scores) == len(best.scores) > 1:
            differences = torch.tensor(trial.scores, dtype=torch.float64) - torch.tensor(best.scores).double()
            variances.append(float(differences.var()) / len(differences))
    return min(variances, default=0.0)


def _fit(inputs: Tensor, targets: Tensor, noise: float) -> Posterior:
    from lightning_lr.gaussian_process.model import predicted  # GPyTorch: not where it is only imported

    points = torch.linspace(float(inputs[0]), float(inputs[-1]), GRID, dtype=torch.float64)
    rows = [
        (decades * math.log(10.0), signal, max(SMALLEST_NOISE, ratio * noise))
        for decades in LENGTHSCALES
        for signal in SIGNAL_VARIANCES
        for ratio in NOISE_RATIOS
    ]
    hyperparameters = torch.tensor(rows, dtype=torch.float64)
    weights = torch.softmax(log_evidence(inputs, targets, hyperparameters), 0)
    kept = weights.topk(6).indices.sort().values
    mean, covariance = predicted(inputs, targets, hyperparameters[kept], points)
    return Posterior(points, weights[kept] / weights[kept].sum(), mean, covariance)


def _cautious(posterior: Posterior, first: float, share: float) -> float:
    """The lowest rate whose smoothed score is the best one up to ``share`` of the fall from the ``first`` loss."""
    mean = posterior.mean
    index = int(mean.argmin())
    lowest = float(mean[index])
    limit = lowest + share * max(0.0, first - lowest)
    while index > 0 and float(mean[index - 1]) <= limit:
        index -= 1
    if index == int(mean.argmin()):
        return math.exp(posterior.argmin)
    step = float(posterior.log_lr[1] - posterior.log_lr[0])
    if index == 0:
        return math.exp(float(posterior.log_lr[0]))
    over, under = float(mean[index - 1]), float(mean[index])  # between two points of the grid, so that it is continuous
    return math.exp(float(posterior.log_lr[index]) - step * (limit - under) / (over - under))


def _interval(posterior: Posterior) -> tuple[float, float]:
    mean, lowest = posterior.mean, int(posterior.mean.argmin())
    weights, cov = posterior.weights, posterior.covariances
    variance = cov.diagonal(dim1=1, dim2=2) + cov[:, lowest, lowest].unsqueeze(1) - 2.0 * cov[:, :, lowest]
    difference = posterior.means - posterior.means[:, lowest : lowest + 1]
    spread = (weights @ (variance.clamp_min(0.0) + (difference - (mean - mean[lowest])) ** 2)).sqrt()
    as_good = (mean - mean[lowest] <= spread).nonzero().flatten()
    return math.exp(float(posterior.log_lr[as_good[0]])), math.exp(float(posterior.log_lr[as_good[-1]]))
