"""Small tasks of `learning_rate_search_tasks` in plain torch: runs and races of which every loss and score is kept.

Without Lightning, so that many more of them can be made; on other batches than the runs of `learning_rate_search`.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from benchmarks.learning_rate_search_tasks import SMALL, SmallTask, Split, digit_rows, optimizer_of, split
from lightning_lr import Cosine
from lightning_lr.search import Heats, Race, Trial, read, start_of
from lightning_lr.search.race import Schedule

BATCH = 32
CURVE = Cosine(warmup=0.05)
WINDOW, WINDOWS = 8, 8
"""Updates whose mean loss is kept of a run, and how many such means."""


class LastState(nn.Module):
    """A recurrent network that is asked at the end for what it has read."""

    def __init__(self, kind: type[nn.RNNBase], features: int, classes: int) -> None:
        super().__init__()
        self.net, self.head = kind(features, 32, batch_first=True), nn.Linear(32, classes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits (batch x classes) of sequences (batch x steps x features)."""
        out: Tensor = self.head(self.net(x)[0][:, -1])
        return out


def _generator() -> torch.Generator:
    return torch.Generator().manual_seed(7)


@functools.cache
def _marked() -> Split:
    """Sequences of letters of which one is marked: which one?"""
    g = _generator()
    what = torch.randint(0, 4, (4096, 8), generator=g)
    mark = torch.randint(0, 8, (4096,), generator=g)
    x = torch.cat([F.one_hot(what, 4).float(), F.one_hot(mark, 8).float().unsqueeze(2)], 2)
    return split(x, what.gather(1, mark.unsqueeze(1)).squeeze(1), 2048, 3072)


@functools.cache
def _first() -> Split:
    """Sequences of letters: which was the first one?"""
    what = torch.randint(0, 4, (4096, 8), generator=_generator())
    return split(F.one_hot(what, 4).float(), what[:, 0], 2048, 3072)


@functools.cache
def _parity() -> Split:
    """Ten signs: the product of the first three."""
    x = torch.randint(0, 2, (4096, 10), generator=_generator()).float() * 2 - 1
    return split(x, (x[:, :3].prod(1) > 0).long(), 2048, 3072)


@functools.cache
def _taught() -> Split:
    """Classes that another network has given, with noise."""
    g = _generator()
    x, first, second = (torch.randn(*shape, generator=g) for shape in ((4096, 16), (16, 24), (24, 8)))
    logits = (x @ first / 2).tanh() @ second + 0.5 * torch.randn(4096, 8, generator=g)
    return split(x, logits.argmax(1), 2048, 3072)


def _sigmoid_mlp() -> nn.Module:
    layers = [nn.Linear(16, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid(), nn.Linear(64, 64), nn.Sigmoid()]
    return nn.Sequential(*layers, nn.Linear(64, 8))


def _relu_mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 2))


def _marks_lstm() -> nn.Module:
    return LastState(nn.LSTM, 5, 4)


def _first_gru() -> nn.Module:
    return LastState(nn.GRU, 4, 4)


def _rows_lstm() -> nn.Module:
    return LastState(nn.LSTM, 8, 10)


def _rows_rnn() -> nn.Module:
    return LastState(nn.RNN, 8, 10)


PROBLEMS = {
    "GRU": SMALL["GRU"],
    "MLP": SMALL["MLP"],
    "rows, LSTM": SmallTask(_rows_lstm, digit_rows, True),
    "rows, RNN": SmallTask(_rows_rnn, digit_rows, True),
    "mark, LSTM": SmallTask(_marks_lstm, _marked, True),
    "first, GRU": SmallTask(_first_gru, _first, True),
    "parity, MLP": SmallTask(_relu_mlp, _parity, True),
    "sigmoids, MLP": SmallTask(_sigmoid_mlp, _taught, True),
}
"""Beside GRU and MLP: two that read the GRU's digits with another network, and four made up to begin on a plateau."""


class Problem:
    """One problem with one optimizer and one seed: what to train from, and on which batches."""

    def __init__(self, name: str, optimizer: str, seed: int) -> None:
        self.task, self.make, self.seed = PROBLEMS[name], optimizer_of(optimizer), seed
        self.data, _, self.test = self.task.data()
        torch.manual_seed(seed)
        self.start = self.task.network()

    def run(self, rate: float, updates: int) -> tuple[float, list[float]]:
        """A whole run at a rate, warm-up and cosine: test metric in points, the loss of every update."""

        def schedule(update: int, all_of_them: int) -> float:
            return CURVE(update / all_of_them, 1 / all_of_them)

        net, losses, _ = self._trained(self.batches(self.seed), rate, updates, math.isfinite, schedule)
        return self._points(net), losses

    def race(self, heats: Heats, around: float | None = None) -> Race:
        """A race that has been run; a single heat where it is ``around`` a rate."""

        def train(
            rate: float, updates: int, scored: int, goes_on: Callable[[float], bool], schedule: Schedule
        ) -> tuple[Sequence[float], Sequence[float]]:
            batches = self.batches(1000 + self.seed)
            net, losses, ended = self._trained(batches, rate, updates, goes_on, schedule)
            if ended:
                return losses, ()
            with torch.no_grad():
                scores = [float(self._loss(net, *next(batches))) for _ in range(scored)]
            return losses, scores if all(map(math.isfinite, scores)) else ()

        race = Race(heats, start_of(self.make(self.start.parameters(), 1.0)), lambda rate: rate, train, around)
        race.run()
        return race

    def batches(self, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Batches without an end, shuffled anew for each pass."""
        generator = torch.Generator().manual_seed(seed)
        x, y = self.data.tensors
        while True:
            for rows in torch.randperm(len(x), generator=generator).split(BATCH):
                yield x[rows], y[rows]

    # ------------------------------------------------------------------ inside
    def _trained(
        self,
        batches: Iterator[tuple[Tensor, Tensor]],
        rate: float,
        updates: int,
        goes_on: Callable[[float], bool],
        schedule: Schedule,
    ) -> tuple[nn.Module, list[float], bool]:
        net = copy.deepcopy(self.start)
        optimizer = self.make(net.parameters(), rate)
        follow = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda update: schedule(update, updates))
        losses: list[float] = []
        for _ in range(updates):
            loss = self._loss(net, *next(batches))
            losses.append(loss.item())
            if not goes_on(losses[-1]):
                return net, losses, True
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            follow.step()
        return net, losses, False

    def _loss(self, net: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(net(x), y) if self.task.classifies else F.mse_loss(net(x), y)

    @torch.no_grad()
    def _points(self, net: nn.Module) -> float:
        x, y = self.test.tensors
        out = net(x)
        if not torch.isfinite(out).all():
            return 0.0
        if self.task.classifies:
            return 100 * float((out.argmax(1) == y).double().mean())
        explained = 100 * (1 - float((out - y).square().mean()) / float((y - y.mean(0)).square().mean()))
        return max(0.0, explained)


@contextlib.contextmanager
def by_score_alone() -> Iterator[None]:
    """Races inside go on from the best score, whatever was learned, as they did until harm was looked at."""
    with mock.patch("lightning_lr.search.decades.QUIET", (-1.0, 0.0)):  # less than nothing is never learned
        yield


def last_heat(race: Race) -> list[Trial]:
    """The longest heat with a finite score, which is the one that is read."""
    for heat in reversed(race.trials):
        if any(math.isfinite(trial.score) for trial in heat):
            return heat
    raise ValueError("every rate diverged")


# ---------------------------------------------------------------------- what is kept
def kept_race(problem: Problem, heats: Heats) -> dict[str, Any]:
    """A race with everything that was tried, its choice, and what the guard has made of it."""
    with by_score_alone():
        race = problem.race(heats)
    heat = last_heat(race)
    choice = read(heat)
    before = race.spent
    rate = race.hold(choice.rate, heat)
    return {
        "heats": [[_finite(trial) for trial in each] for each in race.trials if each],
        "choice": choice.rate,
        "rate": rate,
        "price": [before, race.spent],
    }


def _finite(trial: Trial) -> dict[str, Any]:
    """A trial for a JSON, which has no infinity."""
    return trial.facts() | {"losses": [loss if math.isfinite(loss) else None for loss in trial.losses]}


def kept_heat(problem: Problem, updates: int, around: float) -> dict[str, Any]:
    """A longer heat, at whatever price."""
    race = problem.race(Heats((updates,), math.inf), around)
    return {
        "scores": [[t.rate, t.score if t.scores else None] for t in race.trials[0]],
        "choice": read(race.trials[0]).rate,
        "price": race.spent,
    }


def kept_run(problem: Problem, rate: float, updates: int) -> dict[str, Any]:
    """A run: its test metric, and the means of its first losses."""
    test, losses = problem.run(rate, updates)
    return {"rate": rate, "test": test, "losses": window_means(losses)}


def window_means(losses: Sequence[float]) -> list[float | None]:
    """Means of the losses of each eight updates; None for one that a run did not reach, or that is not finite."""
    means = [statistics.fmean(losses[k * WINDOW : (k + 1) * WINDOW] or [math.nan]) for k in range(WINDOWS)]
    return [mean if math.isfinite(mean) else None for mean in means]


def trials_of(heat: Sequence[dict[str, Any]]) -> list[Trial]:
    """A heat as the race had it."""
    return [
        Trial(t["rate"], tuple(math.inf if loss is None else loss for loss in t["losses"]), tuple(t["scores"]))
        for t in heat
    ]
