"""Would another reading of the race choose better rates, at the same price?

    python -m benchmarks.learning_rate_search_readings [--report]

A race of short schedules with a decay chooses rates that are too high for the GRU with AdamW; a comparison of training
losses in the run's own schedule (successive halving) chooses rates that are too low for the MLP. Here other readings,
other ways to spend the budget and longer heats are tried before anything is built: GRU and MLP of
`learning_rate_search_tasks` with AdamW, 256 updates, seven seeds. Each seed's race is kept with its losses and scores,
and what a run ends with at rates a quarter of a decade apart: what a reading gains is read from that table,
interpolated over the log rate, seed by seed. The tasks that judge the search are not looked at.

Said beforehand: a reading is built if the GRU gains 2 points or more and the MLP does not lose more than 0.3. One JSON
for each task. What came of it, `learning_rate_search_plateaus`, is
not in these races.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks._common import RESULTS, ResultStore, environment, markdown_table, quiet_process, t_interval
from benchmarks.learning_rate_search_problems import (
    WINDOW,
    WINDOWS,
    Problem,
    kept_heat,
    kept_race,
    kept_run,
    trials_of,
)
from lightning_lr.search import Heats, Trial, plan_heats, read, short_schedule

STORE = ResultStore(RESULTS / "learning_rate_search_readings")
UPDATES, BUDGET, SEEDS = 256, 128.0, range(1, 8)


def quarters(low: float, count: int) -> list[float]:
    """Rates a quarter of a decade apart."""
    return [low * 10 ** (k / 4) for k in range(count)]


RATES = {
    ("GRU", "AdamW"): quarters(0.003 * 10**0.5, 7),
    ("MLP", "AdamW"): quarters(0.003, 7),
}
PLANS = {
    "race": plan_heats(BUDGET),
    "first heat of 4, last of 22": Heats((4, 22), BUDGET, 11),
    "first heat of 4, last of 28, no guard": Heats((4, 28), BUDGET, 0),
}
"""How the budget is spent: as it is, and in other ways."""
LONGER = (32, 64)
"""Updates of further heats, half decades around the best rate of the race's last one: beyond the budget."""

Seed = dict[str, Any]
Records = dict[tuple[str, str], list[Seed]]
Reading = Callable[[Seed], float]


# ---------------------------------------------------------------------- readings
def peak_phase(trial: Trial) -> Trial:
    """A trial that is scored by the losses of its updates at half of its peak or more, after its warm-up."""
    updates = len(trial.losses)
    warm = next((n for n in range(updates) if short_schedule(n, updates) == 1.0), 0)
    high = [n for n in range(warm + 1, updates) if short_schedule(n, updates) >= 0.5]
    return Trial(trial.rate, trial.losses, tuple(trial.losses[n] for n in high) if trial.scores else ())


def by_peak(seed: Seed) -> float:
    """The choice from the losses before the decay takes hold."""
    return read([peak_phase(trial) for trial in trials_of(seed["race"]["heats"][-1])]).rate


def middle(seed: Seed) -> float:
    """The geometric mean of what both readings choose."""
    return math.sqrt(float(seed["race"]["choice"]) * by_peak(seed))


def lower(seed: Seed) -> float:
    """The lower of both, within the interval of the scores after the decay."""
    choice = read(trials_of(seed["race"]["heats"][-1]))
    return max(choice.low, min(choice.rate, by_peak(seed)))


def shifted(share: float) -> Reading:
    """The choice moved on by a share of its way from the best rate of the first heat."""

    def reading(seed: Seed) -> float:
        choice, first = float(seed["race"]["choice"]), read(trials_of(seed["race"]["heats"][0])).rate
        return choice * (choice / first) ** share

    return reading


def compared(by: float, windows: int) -> Reading:
    """The choice, or one lower ``by`` so many times, whichever has the lower loss at the end of so many windows of the
    run's own schedule."""

    def reading(seed: Seed) -> float:
        choice = float(seed["race"]["choice"])
        return min((choice, choice / by), key=lambda rate: loss_at(seed, rate, windows))

    return reading


def of_plan(plan: str) -> Reading:
    """What a race with another plan chooses, its guard included."""
    return lambda seed: float(seed[plan]["rate"])


def unguarded(seed: Seed) -> float:
    """What the race chooses, before the guard."""
    return float(seed["race"]["choice"])


def longer(updates: int) -> Reading:
    """What a longer heat chooses."""
    return lambda seed: float(seed[f"heat of {updates}"]["choice"])


def onwards(seed: Seed) -> float:
    """The choice of the heat of 64 updates, moved on by as much as from that of the race's last heat: to 256 updates it
    is as far again, in log updates."""
    return longer(64)(seed) ** 2 / unguarded(seed)


def price_of(*parts: str, plus: float = 0.0, guarded: bool = True) -> Reading:
    """Updates that a reading costs: of parts of a seed, and some more."""

    def price(seed: Seed) -> float:
        prices = [seed[part]["price"] for part in parts]
        return plus + sum(p[1 if guarded else 0] if isinstance(p, list) else p for p in prices)

    return price


def of_run(updates: int) -> Reading:
    """The price without the guard, and of two rates in the run's own schedule."""
    return price_of("race", plus=2 * updates, guarded=False)


BEST = "the best rate of the table"
AS_IT_IS, BEFORE = price_of("race"), price_of("race", guarded=False)
READINGS: dict[str, tuple[Reading, Reading]] = {
    "the last heat, guarded": (of_plan("race"), AS_IT_IS),
    "without the guard": (unguarded, BEFORE),
    "a half of it": (lambda seed: unguarded(seed) / 2, BEFORE),
    "a third of it": (lambda seed: unguarded(seed) / 3, BEFORE),
    "peak phase": (by_peak, BEFORE),
    "geometric mean of both": (middle, BEFORE),
    "the lower of both, within the interval": (lower, BEFORE),
    "shifted by a quarter of the way between heats": (shifted(0.25), BEFORE),
    "shifted by half of it": (shifted(0.5), BEFORE),
    "it or a third, 24 updates of the run's schedule": (compared(3.0, 3), of_run(24)),
    "it or a half, 24 updates": (compared(2.0, 3), of_run(24)),
    "it or a third, 40 updates": (compared(3.0, 5), of_run(40)),
    "it or a third, 64 updates": (compared(3.0, 8), of_run(64)),
    "it or a half, 64 updates": (compared(2.0, 8), of_run(64)),
    **{plan: (of_plan(plan), price_of(plan)) for plan in PLANS if plan != "race"},
    "a third heat, of 32 updates": (longer(32), price_of("race", "heat of 32", guarded=False)),
    "a third heat, of 64 updates": (longer(64), price_of("race", "heat of 64", guarded=False)),
    "of 64, and as far again": (onwards, price_of("race", "heat of 64", guarded=False)),
}


# ---------------------------------------------------------------------- what they come to
def between(points: Sequence[tuple[float, float]], rate: float) -> float:
    """A value at a rate, interpolated over the log rate, and that of the nearest one outside."""
    rate = min(max(rate, points[0][0]), points[-1][0])
    for (low, below), (high, above) in itertools.pairwise(points):
        if rate <= high:
            return below + (above - below) * math.log(rate / low) / math.log(high / low)
    return points[-1][1]


def test_at(seed: Seed, rate: float) -> float:
    """What a run at a rate ends with."""
    return between([(run["rate"], run["test"]) for run in seed["runs"]], rate)


def loss_at(seed: Seed, rate: float, windows: int) -> float:
    """The mean loss of a run at a rate in the last of so many windows; infinite beyond rates at which it is finite."""
    points = [(run["rate"], run["losses"][windows - 1]) for run in seed["runs"]]
    alive = list(itertools.takewhile(lambda point: point[1] is not None, points))
    fails = not alive or (len(alive) < len(points) and rate > 1.001 * alive[-1][0])
    return math.inf if fails else between(alive, rate)


def tuned(seeds: Sequence[Seed]) -> float:
    """The rate of the table with the best mean."""
    rates = [run["rate"] for run in seeds[0]["runs"]]
    return float(max(rates, key=lambda rate: statistics.fmean(test_at(seed, rate) for seed in seeds)))


def summary(records: Records) -> dict[str, dict[str, list[float]]]:
    """By reading and pair: points ahead of what the last heat says, guarded, half the width of the interval, the
    geometric mean of the rates, the mean price in runs (0 for the best rate of the table, which nobody is told)."""
    found: dict[str, dict[str, list[float]]] = {name: {} for name in READINGS} | {BEST: {}}
    for pair, seeds in records.items():
        for name, (reading, price) in READINGS.items():
            rates = {n: value for n, seed in enumerate(seeds) if (value := _if_there(reading, seed)) is not None}
            if rates:
                found[name][", ".join(pair)] = [
                    *_ahead([(seeds[n], rate) for n, rate in rates.items()]),
                    math.exp(statistics.fmean(map(math.log, rates.values()))),
                    statistics.fmean(price(seeds[n]) / UPDATES for n in rates),
                ]
        rate = tuned(seeds)
        found[BEST][", ".join(pair)] = [*_ahead([(seed, rate) for seed in seeds]), rate, 0.0]
    return found


def _ahead(chosen: Sequence[tuple[Seed, float]]) -> tuple[float, float]:
    interval = t_interval([test_at(seed, rate) - now(seed) for seed, rate in chosen])
    return interval.mean, interval.half_width


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """A row for each reading."""
    pairs = list(found[BEST])
    body = []
    for name, by_pair in found.items():
        if by_pair.keys() != set(pairs):
            continue
        cells = [f"{m:+.2f} ± {h:.2f} ({r:.2g}; {p:.2f})" for m, h, r, p in (by_pair[pair] for pair in pairs)]
        body.append([name, *cells])
    return markdown_table(["reading", *(f"{pair}: ahead (rate; price)" for pair in pairs)], body)


def by_rate(records: Records) -> str:
    """What runs end with, by rate; and the rate with the lowest loss so far, by updates of the run's own schedule."""
    lines = []
    for pair, seeds in records.items():
        tests = {run["rate"]: statistics.fmean(test_at(s, run["rate"]) for s in seeds) for run in seeds[0]["runs"]}
        lines.append(f"- {', '.join(pair)}: " + ", ".join(f"{test:.2f} at {rate:.2g}" for rate, test in tests.items()))
        ahead = []
        for windows in range(2, WINDOWS + 1):
            best = [min(tests, key=lambda rate: loss_at(seed, rate, windows)) for seed in seeds]
            ahead.append(f"{math.exp(statistics.fmean(map(math.log, best))):.2g} after {windows * WINDOW}")
        lines.append("  - ahead in the run's own schedule: " + ", ".join(ahead))
    return "\n".join(lines)


def now(seed: Seed) -> float:
    """What the choice of the last heat, guarded, ends with."""
    return test_at(seed, float(seed["race"]["rate"]))


def _if_there(reading: Reading, seed: Seed) -> float | None:
    try:
        return reading(seed)
    except KeyError:  # a plan or a heat that was not run with this seed
        return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Race and train what is missing; print."""
    quiet_process()
    configs = {
        pair: {"task": pair[0], "optimizer": pair[1], "rates": rates, "plans": list(PLANS), "longer": list(LONGER)}
        for pair, rates in RATES.items()
    }
    records = {
        pair: STORE.load(_name(pair), config) or {"config": config, "seeds": {}, "environment": environment()}
        for pair, config in configs.items()
    }
    if "--report" not in (sys.argv[1:] if arguments is None else arguments):
        for seed, pair in itertools.product(SEEDS, RATES):
            complete(records[pair]["seeds"].setdefault(str(seed), {}), Problem(*pair, seed), RATES[pair])
            STORE.save(_name(pair), records[pair])
    found = {pair: list(record["seeds"].values()) for pair, record in records.items() if record["seeds"]}
    figures = summary(found)
    STORE.save("readings", {"config": {"seeds": len(SEEDS)}, "figures": figures})
    print(table(figures), by_rate(found), sep="\n\n")


def _name(pair: tuple[str, str]) -> str:
    return f"readings_{pair[0]}_{pair[1]}"


def complete(kept: Seed, problem: Problem, rates: Sequence[float]) -> None:
    """Make what is missing of a seed."""
    for plan, heats in PLANS.items():
        if plan not in kept:
            kept[plan] = kept_race(problem, heats)
            if plan != "race":
                del kept[plan]["heats"]
    for updates in LONGER:
        if f"heat of {updates}" not in kept:
            best = min(trials_of(kept["race"]["heats"][-1]), key=lambda trial: trial.score)
            kept[f"heat of {updates}"] = kept_heat(problem, updates, best.rate)
    if "runs" not in kept:
        kept["runs"] = [kept_run(problem, rate, UPDATES) for rate in rates]


if __name__ == "__main__":
    sys.exit(main())
