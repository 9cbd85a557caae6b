"""The learning rate, found by trying: a race of short complete schedules over a few rates.

:mod:`settings` defines what is searched, :mod:`heats` how a budget of updates is spent, :mod:`race` runs the heats with
whatever trains a branch, :mod:`decades` tells where to go on from after the first one, :mod:`reading` reads the scores
of the last one by a Gaussian process. Pure torch.

Why a race and not a range test: a sweep moves the weights, so that its loss at one rate depends as much on the rates
before; and a loss at full rate ranks rates by their noise floor, which a decay removes. In the race every rate starts
from the same weights, sees the same batches with the same random numbers, and is judged after its own decay to zero.

Sources: racing, Maron & Moore 1994; successive halving, Jamieson & Talwalkar 2016, arXiv:1502.07943; the bias of short
horizons, Wu et al. 2018, arXiv:1803.02021.
"""

from lightning_lr.search.heats import Heats, plan_heats, share_of
from lightning_lr.search.kinds import Start, start_of
from lightning_lr.search.race import Race, short_schedule
from lightning_lr.search.reading import Choice, choose, read
from lightning_lr.search.result import SearchResult
from lightning_lr.search.settings import Budget, SearchSettings
from lightning_lr.search.trial import Trial

__all__ = [
    "Budget",
    "Choice",
    "Heats",
    "Race",
    "SearchResult",
    "SearchSettings",
    "Start",
    "Trial",
    "choose",
    "plan_heats",
    "read",
    "share_of",
    "short_schedule",
    "start_of",
]
