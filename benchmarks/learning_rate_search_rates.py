"""Is a run that ends badly after a search one at a bad rate, or one that ends badly at many rates?

    python -m benchmarks.learning_rate_search_rates

The autoencoder with AdamW of `learning_rate_search_tasks`, 256 updates, ten seeds, at rates closer together than the
grid of `learning_rate_search`: explained variance on the test images in percent, by rate and seed. If a seed is bad at
every rate near the one that was found, a tuned rate has the same fault; if it is bad at that rate alone, the search
should have seen it. For the seed of which that was asked, the training losses below and at the rate that was found. One
JSON for all of it.
"""

from __future__ import annotations

import statistics
import sys

from benchmarks._common import RESULTS, ResultStore, environment, markdown_table, quiet_process
from benchmarks.learning_rate_search_arms import Losses
from benchmarks.learning_rate_search_tasks import UPDATES, optimizer_of, train_small, train_small_with
from lightning_lr import Cosine, LearningRateSchedule

STORE = ResultStore(RESULTS / "learning_rate_search")
NAME, TASK, OPTIMIZER = "rates", "autoencoder", "AdamW"
RATES = (3e-3, 5e-3, 7e-3, 1e-2, 1.3e-2, 1.67e-2, 2e-2, 2.5e-2, 3e-2, 4e-2, 6e-2)
SEEDS = tuple(range(1, 11))
FAR = 10.0
"""Points below the best that a seed reaches at any of the rates, from which on a run has ended badly."""
ASKED, COMPARED, WINDOW = 3, (1e-2, 1.67e-2), 16
"""The seed; the rates; updates whose mean loss is shown."""
CONFIG = {"task": TASK, "optimizer": OPTIMIZER, "rates": list(RATES), "seeds": list(SEEDS)}


def main() -> None:
    """Train; write and print."""
    quiet_process()
    record = STORE.load(NAME, CONFIG)
    if record is None:
        tests = [[train_small(TASK, OPTIMIZER, seed, rate, None)["test"] for seed in SEEDS] for rate in RATES]
        record = {"config": CONFIG, "tests": tests, "environment": environment()}
        STORE.save(NAME, record)
    if "losses" not in record:
        record["losses"] = [losses_at(rate) for rate in COMPARED]
        STORE.save(NAME, record)
    print(table(record["tests"]))
    print(course(record["losses"]))


def losses_at(rate: float) -> list[float]:
    """The training losses of the run that was asked about."""
    watch = Losses(UPDATES)
    make = optimizer_of(OPTIMIZER)
    train_small_with(TASK, make, ASKED, rate, [LearningRateSchedule(Cosine(warmup=0.05)), watch])
    return watch.losses


def course(losses: list[list[float]]) -> str:
    """The means of the losses over windows, by rate."""
    starts = range(0, UPDATES, WINDOW)
    body = [
        [f"{rate:g}", *(f"{statistics.fmean(row[start : start + WINDOW]):.4f}" for start in starts)]
        for rate, row in zip(COMPARED, losses, strict=True)
    ]
    headings = [f"seed {ASKED}: rate", *(f"{start + 1} to {start + WINDOW}" for start in starts)]
    return markdown_table(headings, body)


def table(tests: list[list[float]]) -> str:
    """A row for each rate: its mean, its worst seed, how many seeds end badly, and all of them."""
    best = [max(row[seed] for row in tests) for seed in range(len(SEEDS))]
    body = [
        [
            f"{rate:g}",
            f"{statistics.fmean(row):.1f}",
            f"{min(row):.1f}",
            str(sum(value < top - FAR for value, top in zip(row, best, strict=True))),
            *(f"{value:.1f}" for value in row),
        ]
        for rate, row in zip(RATES, tests, strict=True)
    ]
    return markdown_table(["rate", "mean", "worst", "ended badly", *(f"seed {seed}" for seed in SEEDS)], body)


if __name__ == "__main__":
    sys.exit(main())
