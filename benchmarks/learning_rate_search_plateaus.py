"""Is a lower rate better where a race ranks rates by how soon they leave a plateau?

    python -m benchmarks.learning_rate_search_plateaus [--report]

In a short schedule that begins on a plateau nearly all of the fall of the loss comes at the highest rates: in the first
heat, whose rates are a decade apart, the rate a decade below the best one has then learned next to nothing of what the
best one has, both against the lowest rate. Where it has learned less than a share of `PLATEAU`, the choice is lowered
by two, or by half a decade, before the guard. GRU and MLP of `learning_rate_search_tasks` and the problems that
`learning_rate_search_problems` made up for this, 256 updates, the default budget: what the run ends with at the choice
as it is, and lowered, each after its own guard. The other tasks, which judge the search, are not looked at.

The share was 0.4 before the first of these runs and became 0.3 when the MLP had shown 0.36; the two problems that read
the GRU's digits with another network were added while it ran. Said beforehand: it is worth building if the GRU gains 2
points and no other pair loses more than 0.3. One JSON for each pair of problem and optimizer.
"""

from __future__ import annotations

import itertools
import math
import statistics
import sys
from collections.abc import Sequence
from typing import Any

from benchmarks._common import RESULTS, ResultStore, environment, markdown_table, quiet_process, t_interval
from benchmarks.learning_rate_search_problems import PROBLEMS, Problem, by_score_alone, last_heat
from lightning_lr.search import Trial, plan_heats, read
from lightning_lr.search.decades import PLATEAU, learned_below

STORE = ResultStore(RESULTS / "learning_rate_search_readings")
UPDATES, BUDGET = 256, 128.0
SEEDS = {("GRU", "AdamW"): 10}
FEWER = 5
"""Seeds of every other pair."""
LOWERED = {"as it is": 1.0, "halved": 2.0, "half a decade lower": math.sqrt(10.0)}
PAIRS = [*((name, "AdamW") for name in PROBLEMS), *((name, "SGD") for name in list(PROBLEMS)[:4])]

Seed = dict[str, Any]


def made(problem: Problem) -> Seed:
    """A race, and a run at what it chooses, as it is and lowered."""
    heats = plan_heats(BUDGET)
    assert heats is not None
    with by_score_alone():  # what is measured is the halving, and nothing else
        race = problem.race(heats)
    heat = last_heat(race)
    choice = read(heat).rate
    found = {}
    for name, by in LOWERED.items():
        race.held.clear()
        rate = race.hold(choice / by, heat)
        same = next((each for each in found.values() if each["rate"] == rate), None)
        found[name] = same or {"rate": rate, "test": problem.run(rate, UPDATES)[0]}
    scores = [[[t.rate, t.score if t.scores else None] for t in each] for each in race.trials if each]
    return {"scores": scores, "choice": choice, "found": found}


def share_below(seed: Seed) -> float | None:
    """What the rate a decade below the best one of the first heat has learned, see ``learned_below``."""
    first = [Trial(rate, (), () if score is None else (score,)) for rate, score in seed["scores"][0]]
    return learned_below(first)


def summary(seeds: Sequence[Seed]) -> dict[str, Any]:
    """Of one pair: the shares, seeds on a plateau, what the search ends with, what lowering gains."""
    shares = [share for share in map(share_below, seeds) if share is not None]
    plateaus = [(share := share_below(seed)) is not None and share < PLATEAU for seed in seeds]
    now = [seed["found"]["as it is"] for seed in seeds]
    found = {"seeds": len(seeds), "shares": shares, "plateaus": sum(plateaus), "now": [each["test"] for each in now]}
    found["rates"] = {"as it is": [each["rate"] for each in now]}
    found["ahead"] = {}
    for name in list(LOWERED)[1:]:
        then = [seed["found"][name if flat else "as it is"] for seed, flat in zip(seeds, plateaus, strict=True)]
        ahead = t_interval([a["test"] - b["test"] for a, b in zip(then, now, strict=True)])
        found["ahead"][name] = [ahead.mean, ahead.half_width if len(seeds) > 1 else 0.0]
        found["rates"][name] = [each["rate"] for each in then]
    return found


def table(figures: dict[str, dict[str, Any]]) -> str:
    """A row for each pair of problem and optimizer."""
    body = []
    for pair, found in figures.items():
        shares = found["shares"]
        row = [pair, str(found["seeds"]), f"{min(shares):.2f} to {max(shares):.2f} ({len(shares)})" if shares else ""]
        row += [str(found["plateaus"]), f"{statistics.fmean(found['now']):.2f} ({_ends(found['rates']['as it is'])})"]
        for name, (mean, half) in found["ahead"].items():
            row.append(f"{mean:+.2f} ± {half:.2f} ({_ends(found['rates'][name])})")
        body.append(row)
    headings = [
        "problem",
        "seeds",
        "learned a decade below the best (seeds)",
        "on a plateau",
        "as the last heat says (rates)",
    ]
    return markdown_table([*headings, *(f"{name}, ahead (rates)" for name in list(LOWERED)[1:])], body)


def _ends(rates: Sequence[float]) -> str:
    return f"{min(rates):.2g} to {max(rates):.2g}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Race and train what is missing; print."""
    quiet_process()
    records = {}
    for pair in PAIRS:
        config = {"task": pair[0], "optimizer": pair[1], "lowered": list(LOWERED.values())}
        records[pair] = STORE.load(_name(pair), config) or {"config": config, "seeds": [], "environment": environment()}
    if "--report" not in (sys.argv[1:] if arguments is None else arguments):
        for optimizer, seed in itertools.product(("AdamW", "SGD"), range(1, max(SEEDS.values()) + 1)):
            for pair in (pair for pair in PAIRS if pair[1] == optimizer and seed <= SEEDS.get(pair, FEWER)):
                if len(records[pair]["seeds"]) < seed:
                    records[pair]["seeds"].append(made(Problem(*pair, seed)))
                    STORE.save(_name(pair), records[pair])
                    print(pair, seed, records[pair]["seeds"][-1], file=sys.stderr, flush=True)
    figures = {", ".join(pair): summary(record["seeds"]) for pair, record in records.items() if record["seeds"]}
    STORE.save("plateaus", {"config": {"plateau": PLATEAU}, "figures": figures})
    print(table(figures))


def _name(pair: tuple[str, str]) -> str:
    return f"plateaus_{pair[0]}_{pair[1]}".replace(", ", "-")


if __name__ == "__main__":
    sys.exit(main())
