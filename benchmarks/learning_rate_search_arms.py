"""What `learning_rate_search` compares the search with: tuning-free optimizers, range tests, successive halving."""

from __future__ import annotations

import functools
import statistics
from dataclasses import dataclass, replace
from typing import Any, Literal

from lightning import Callback, LightningModule, Trainer

from benchmarks.dog import DoG
from benchmarks.headline_arms import ARMS, Arm
from benchmarks.headline_tasks import TASKS
from benchmarks.learning_rate_search_large import points, train_large
from benchmarks.learning_rate_search_tasks import SMALL, UPDATES, optimizer_of, train_small_with
from lightning_lr import AdaptiveWarmup, Cosine, HypergradientDescent, LearningRateSchedule, LearningRateSearch

HALVING = "successive halving"
OF_HEADLINE = (
    "AdaptiveWarmup",
    "LearningRateFinder",
    "LearningRateFinder, per step",
    "Prodigy",
    "DAdaptAdam",
    "ScheduleFreeAdamW",
)
"""Arms of `headline`, AdamW or a relative of it."""
VALLEY = "finder, fastai's valley"
OTHERS = (*OF_HEADLINE, VALLEY, "DoG", HALVING)
FOLLOWED = "search + HypergradientDescent"
"""The search at its default budget, and the rate adapted during the run."""
TWICE = ("search again, same price", "search again, twice the price")
"""A second search at 30 % of the run: the default budget divided, or as much again."""

RUNGS = (16, 32, 64)
"""Updates at which rates are given up: of five two, then one, then one. Beside the run that is kept they cost
2 x 16 + 32 + 64 updates, half of a run of 256, which is what the search costs."""
KEPT = (3, 2, 1)
WINDOW = 8
"""Updates whose mean loss is compared."""
RATES = (1e-3, 3e-3, 1e-2, 3e-2, 1e-1)


@dataclass(frozen=True)
class ArmConfig:
    """One run of another way to find a learning rate."""

    task: str
    arm: str
    seed: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return f"{self.task}_{self.arm}_seed{self.seed}".replace(", ", "-").replace(" ", "-")


class Losses(Callback):
    """Keeps the losses of a run, and ends it after some updates."""

    def __init__(self, until: int) -> None:
        self.until, self.losses = until, list[float]()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        self.losses.append(float(outputs["loss"]))
        if trainer.global_step >= self.until:
            trainer.should_stop = True


class Priced(LearningRateSearch):
    """Keeps the prices and rates of all its races."""

    def __init__(self, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.races = list[tuple[float, float]]()

    def _search_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        before = self.result
        super()._search_if_due(trainer, module)
        if self.result is not None and self.result is not before:
            self.races.append((self.result.price, self.result.rate))


def _warmup_cosine() -> list[Callback]:
    return [LearningRateSchedule(Cosine(warmup=0.05))]


def _search_and_follow() -> list[Callback]:
    return [Priced(), HypergradientDescent(rule="normalized", bounds=(0.1, 10.0))]


def _search_twice(budget: float | Literal["auto"]) -> list[Callback]:
    return [Priced(budget=budget, at=(0.0, 0.3))]


def valley(finder: Any) -> float | None:
    """What fastai takes from a sweep by default: the middle third of the longest fall of the smoothed loss.

    The longest fall is the longest subsequence of falling losses; it is read as a stretch of so many updates that ends
    where the subsequence does. The first tenth of the sweep and its last five updates are left out, as there.

    Source: ``fastai.callback.schedule.valley``, fastai 2.7.
    """
    skipped = len(finder.results["loss"]) // 10
    losses, rates = finder.results["loss"][skipped:-5], finder.results["lr"][skipped:-5]
    if not losses:
        return None
    longest = list[int]()
    """By update, falling losses up to it."""
    for n, loss in enumerate(losses):
        longest.append(1 + max((longest[m] for m in range(n) if losses[m] > loss), default=0))
    end = max(range(len(losses)), key=longest.__getitem__)
    third = longest[end] / 3
    return float(rates[end - longest[end] + int(third) + int(third / 2)])


MINE = {
    VALLEY: Arm(optimizer_of("AdamW"), 1e-3, _warmup_cosine, valley),
    "DoG": Arm(lambda parameters, lr: DoG(parameters), 1.0, list),
    FOLLOWED: Arm(optimizer_of("AdamW"), 1.0, _search_and_follow),
    TWICE[0]: Arm(optimizer_of("AdamW"), 1.0, functools.partial(_search_twice, "auto")),
    TWICE[1]: Arm(optimizer_of("AdamW"), 1.0, functools.partial(_search_twice, 1.0)),
}
"""Arms that `headline` does not have."""


def run_arm(config: ArmConfig, data_dir: str | None) -> dict[str, Any]:
    """One run: its test metric in points, and its price in runs on top of the one that is kept."""
    if config.arm == HALVING:
        return _halve(config, data_dir)
    arm = MINE.get(config.arm) or ARMS[config.arm]
    if config.task in SMALL:
        methods = arm.callbacks()
        try:
            values = train_small_with(config.task, arm.optimizer, config.seed, arm.lr, methods, arm.reading)
        except RuntimeError as error:
            if not any(isinstance(method, AdaptiveWarmup) for method in methods) or "AdaptiveWarmup" not in str(error):
                raise
            return {"test": 0.0, "price": 0.0, "rate": None}
        races = [race for method in methods if isinstance(method, Priced) for race in method.races]
        if races:
            prices, rates = zip(*races, strict=True)
            return {"test": values["test"], "price": sum(prices) / UPDATES, "rate": rates[-1], "rates": list(rates)}
        return {"test": values["test"], "price": values["finder"] / UPDATES, "rate": values["found"]}
    record = train_large(config.task, arm, arm.lr, config.seed, data_dir)
    price = record["finder_samples"] / max(record["samples"] - record["finder_samples"], 1)
    return {"test": points(config.task, record, "test"), "price": price, "rate": record["found_lr"]}


def _halve(config: ArmConfig, data_dir: str | None) -> dict[str, Any]:
    """The five rates of the grid in the run's own schedule, given up by their training loss; the last one trains on.

    A run that is continued is one that is made again from the start, since every run is deterministic.
    """
    adamw = optimizer_of("AdamW")

    def losses_at(rate: float) -> list[float]:
        watch = Losses(RUNGS[-1])
        methods: list[Callback] = [*_warmup_cosine(), watch]
        if config.task in SMALL:
            train_small_with(config.task, adamw, config.seed, rate, methods)
        else:
            arm = replace(ARMS["AdamW, tuned"], callbacks=lambda: methods)
            train_large(config.task, arm, rate, config.seed, data_dir, looks=False)
        return watch.losses

    rates = TASKS[config.task].grid["AdamW, tuned"] if config.task in TASKS else RATES
    curves = {rate: losses_at(rate) for rate in rates}
    left = list(rates)
    for rung, kept in zip(RUNGS, KEPT, strict=True):
        left = sorted(left, key=lambda rate: _recent(curves[rate], rung))[:kept]
    rate = left[0]
    if config.task in SMALL:
        test = train_small_with(config.task, adamw, config.seed, rate, _warmup_cosine())["test"]
    else:
        test = points(config.task, train_large(config.task, ARMS["AdamW, tuned"], rate, config.seed, data_dir), "test")
    counts = (len(rates), *KEPT)
    extra = sum((before - after) * rung for before, after, rung in zip(counts, counts[1:], RUNGS, strict=False))
    return {"test": test, "price": extra / UPDATES, "rate": rate}


def _recent(losses: list[float], rung: int) -> float:
    """The mean of the last losses before a rung, infinite where the run has ended before it."""
    value = statistics.fmean(losses[rung - WINDOW : rung]) if len(losses) >= rung else float("inf")
    return value if value == value else float("inf")
