"""How steady is what `LearningRateSearch` chooses, and what does a race cost in seconds?

    python -m benchmarks.learning_rate_search_choice

Small tasks of `learning_rate_search_tasks`, 256 updates, the default budget; only the searches are made. 20 seeds; the
loss times 1e-3 and 1e3; a batch with shuffled labels in every race, among those that its last heat trains on; a loss
that is nan from a rate on. A scaled loss is another problem to AdamW, whose eps is not scaled, and is rounded anew,
which a rate beyond the edge of stability makes larger from update to update. So the loss is scaled in three ways: as it
comes; with eps, in double precision; with eps, by 2^-10 and 2^10, which no rounding sees. Beside it stands how far the
score of each rate of the last heat moves. The race's CPU seconds are held against as many updates of the run that
follows, and its price against its budget. One JSON for all of it.
"""

from __future__ import annotations

import math
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.utils.data import DataLoader

from benchmarks._common import RESULTS, ResultStore, environment, quiet_process
from benchmarks.learning_rate_search_tasks import SMALL, UPDATES, Small, optimizer_of
from lightning_lr import LearningRateSearch, find_learning_rate
from lightning_lr.search import SearchResult

STORE = ResultStore(RESULTS / "learning_rate_search")
NAME, CONFIG = "choice", {"seeds": 20, "tasks": list(SMALL)}
PAIRS = tuple((name, optimizer) for name, task in SMALL.items() for optimizer in task.optimizers)
SEEDS, FEW, TIMES = range(1, 21), range(1, 4), range(1, 6)
BY, BY_POWERS_OF_TWO = (1.0, 1e-3, 1e3), (1.0, 2.0**-10, 2.0**10)
POISONED_AMONG = 20
NAN_FROM = 0.02
SCALED = {
    "as it comes, single precision": {"by": BY, "with_eps": False, "double": False},
    "eps with it, double precision": {"by": BY, "with_eps": True, "double": True},
    "eps with it, powers of two, single precision": {"by": BY_POWERS_OF_TWO, "with_eps": True, "double": False},
}


class Disturbed(Small):
    """A small task whose loss is scaled, whose labels are shuffled in one batch, or which breaks above a rate."""

    scale, poisoned, breaks_from = 1.0, -1, math.inf

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        broken = self.trainer.optimizers[0].param_groups[0]["lr"] >= self.breaks_from
        return super().training_step(batch, batch_idx) * (math.nan if broken else self.scale)


def found(
    task: str,
    optimizer: str,
    seed: int,
    scale: float = 1.0,
    poison: bool = False,
    breaks: bool = False,
    double: bool = False,
    with_eps: bool = False,
) -> SearchResult:
    """What a search finds."""
    train, _, _ = SMALL[task].data()
    seed_everything(seed, verbose=False)
    make = optimizer_of(optimizer)
    if optimizer == "AdamW":  # with a gradient of 1e-3 of its size, an eps of 1e-8 would be another optimizer
        eps = 1e-14 * (scale if with_eps else 1.0)
        make = lambda parameters, lr: torch.optim.AdamW(parameters, lr, eps=eps, weight_decay=0.01)  # noqa: E731
    module = Disturbed(SMALL[task], make, 1.0)
    if double:
        module.double()
    module.scale, module.breaks_from = scale, NAN_FROM if breaks else math.inf
    count = [0]

    def collate(rows: Any) -> Any:
        x, y = (torch.stack(part) for part in zip(*rows, strict=True))
        count[0] += 1
        if poison and count[0] == 3 + seed % POISONED_AMONG:
            y = y[torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))]
        return (x.double() if double else x), y

    loader = DataLoader(train, 32, shuffle=True, collate_fn=collate)
    return find_learning_rate(_trainer(), module, loader)


def scaled(seed: int, by: Sequence[float], **how: bool) -> dict[str, Any]:
    """The rates that the GRU's search finds when the loss is scaled, and the scores of its last heat, scaled back."""
    results = [found("GRU", "AdamW", seed, factor, **how) for factor in by]
    scores = [
        {f"{t['rate']:.3g}": statistics.fmean(t["scores"]) / factor for t in result.heats[-1] if t["scores"]}
        for result, factor in zip(results, by, strict=True)
    ]
    return {"rates": [result.rate for result in results], "scores": scores}


def _trainer(*callbacks: Callback) -> Trainer:
    return Trainer(
        max_steps=UPDATES,
        max_epochs=-1,
        callbacks=list(callbacks),
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class Timed(LearningRateSearch):
    """Takes the time of its race, and of the run after it."""

    race = run = 0.0

    def _search_if_due(self, trainer: Trainer, module: LightningModule) -> None:
        begin, before = time.process_time(), self.result
        super()._search_if_due(trainer, module)
        if self.result is not before:
            self.race = time.process_time() - begin
            self.run = time.process_time()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.run = time.process_time() - self.run
        super().on_train_end(trainer, pl_module)


def times(task: str, optimizer: str, seed: int) -> list[float]:
    """CPU seconds of a race and of the run after it, and the race's price in updates."""
    train, _, _ = SMALL[task].data()
    seed_everything(seed, verbose=False)
    search = Timed()
    _trainer(search).fit(Small(SMALL[task], optimizer_of(optimizer), 1.0), DataLoader(train, 32, shuffle=True))
    assert search.result is not None
    return [search.race, search.run, search.result.price]


def spread(rates: Sequence[float]) -> float:
    """The largest over the smallest."""
    return max(rates) / min(rates)


def main() -> None:
    """Search; write and print."""
    quiet_process()
    record: dict[str, Any] = STORE.load(NAME, CONFIG) or {"config": CONFIG, "environment": environment()}

    def by_seed(task: str, optimizer: str, **how: bool) -> list[list[float]]:
        return [[(r := found(task, optimizer, seed, **how)).rate, r.price] for seed in SEEDS]

    parts: dict[str, Callable[[], Any]] = {
        "seeds": lambda: {f"{task}, {optimizer}": by_seed(task, optimizer) for task, optimizer in PAIRS},
        "times": lambda: {f"{t}, {o}": [times(t, o, seed) for seed in TIMES] for t, o in PAIRS},
        "scaled": lambda: {name: [scaled(seed, **how) for seed in FEW] for name, how in SCALED.items()},  # type: ignore[arg-type]
        "nan": lambda: [found("GRU", "AdamW", seed, breaks=True).rate for seed in FEW],
        "poisoned": lambda: {f"{t}, {o}": by_seed(t, o, poison=True) for t, o in PAIRS[:1]},
    }
    for part, made in parts.items():
        if part not in record:
            record[part] = made()
            STORE.save(NAME, record)
    print(told(record))


def told(record: dict[str, Any]) -> str:
    """The record in words."""
    lines = []
    for pair, found_by_seed in record["seeds"].items():
        rates, prices = zip(*found_by_seed, strict=True)
        middle = sorted(rates)[len(rates) // 10 : len(rates) - len(rates) // 10]
        lines.append(
            f"- {pair}: {min(rates):.2g} to {max(rates):.2g}, a factor of {spread(rates):.1f} over {len(rates)} seeds, "
            f"{spread(middle):.1f} over the {len(middle)} in the middle; {min(prices):.0f} to {max(prices):.0f} updates"
        )
    for pair, found_by_seed in record["poisoned"].items():
        rates = [rate for rate, _ in found_by_seed]
        moved = [max(a / b, b / a) for a, (b, _) in zip(rates, record["seeds"][pair], strict=True)]
        lines.append(
            f"- {pair}, a batch with shuffled labels in the race: the choice moves by a factor of "
            f"{statistics.median(moved):.2f} in the median, {max(moved):.2f} at most; {spread(rates):.1f} over seeds"
        )
    for name, seeds in record["scaled"].items():
        lines.append(f"- the loss scaled, {name}: {_moved(seeds)}")
    lines.append(f"- nan from a rate of {NAN_FROM} on: {min(record['nan']):.2g} to {max(record['nan']):.2g}")
    for pair, taken in record["times"].items():
        ratios = sorted(race / run / (price / UPDATES) for race, run, price in taken)
        ours, theirs = (
            statistics.median(column) for column in zip(*((r / p, n / UPDATES) for r, n, p in taken), strict=True)
        )
        lines.append(
            f"- {pair}: the race takes {statistics.median(ratios) - 1:+.0%} of its share of updates in CPU seconds "
            f"({ratios[0] - 1:+.0%} to {ratios[-1] - 1:+.0%}, {len(ratios)} runs): {1e3 * ours:.2f} ms an update, "
            f"{1e3 * theirs:.2f} ms in the run"
        )
    return "\n".join(lines)


def _moved(seeds: list[dict[str, Any]]) -> str:
    """How far choice and scores move at most."""
    choice = max(abs(rate / each["rates"][0] - 1.0) for each in seeds for rate in each["rates"])
    by_rate: dict[str, list[float]] = {}
    for each in seeds:
        first, *others = each["scores"]
        for rate, score in first.items():
            by_rate.setdefault(rate, []).extend(abs(other[rate] / score - 1.0) for other in others if rate in other)
    scores = ", ".join(f"{max(by_rate[rate]):.2g} at {rate}" for rate in sorted(by_rate, key=float) if by_rate[rate])
    return f"the choice differs by {choice:.2%} at most; a score by {scores}"


if __name__ == "__main__":
    sys.exit(main())
