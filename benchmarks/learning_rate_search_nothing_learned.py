"""Where does a race go on from when nothing was learned in its first heat?

    python -m benchmarks.learning_rate_search_nothing_learned [--dry-run] [--report] [--jobs 2]

By the score alone: from the best rate, or the highest that ties with it. On a plateau that is the rate that does the
least harm, so the race goes down to rates at which training never gets off the plateau. By harm: from the highest rate
that ends little higher than the lowest one, see `lightning_lr.search.decades`. The problems of
`learning_rate_search_plateaus`, most of them made up to begin on a plateau; 256 updates, the default budget; a race and
a run at what it chooses, in plain torch. What "nothing" and "little" are, and when the choice is halved then, was
chosen on seeds 1 to 20; seeds 21 to 30 were run once, afterwards.

One JSON per run in ``benchmarks/results/learning_rate_search_nothing_learned``.
"""

from __future__ import annotations

import contextlib
import statistics
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from benchmarks._common import RESULTS, command_line, environment, markdown_table, t_interval
from benchmarks._experiment import Experiment, Record
from benchmarks.learning_rate_search_plateaus import BUDGET, PAIRS, UPDATES
from benchmarks.learning_rate_search_problems import Problem, by_score_alone
from lightning_lr.search import choose, plan_heats
from lightning_lr.search.decades import learned_nothing

FOLDER = RESULTS / "learning_rate_search_nothing_learned"
WAYS = ("by score alone", "by harm")
CHOSEN_ON, AFTERWARDS = tuple(range(1, 21)), tuple(range(21, 31))


@dataclass(frozen=True)
class Config:
    """One race and the run after it."""

    problem: str
    optimizer: str
    seed: int
    way: str

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return f"{self.problem}_{self.optimizer}_{self.way}_seed{self.seed}".replace(", ", "-").replace(" ", "-")

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.problem}, {self.optimizer}, {self.way}, seed {self.seed}"


def train(config: Config, data_dir: str | None = None) -> Record:
    """Race, and run at the choice."""
    problem, heats = Problem(config.problem, config.optimizer, config.seed), plan_heats(BUDGET)
    assert heats is not None
    with by_score_alone() if config.way == WAYS[0] else contextlib.nullcontext():
        race = problem.race(heats)
        heat, choice = choose(race)
    assert choice is not None
    rate = race.hold(choice.rate, heat)
    return {
        "config": asdict(config),
        "learned_nothing": learned_nothing(race.trials[0]),
        "scores": [[[t.rate, t.score if t.scores else None] for t in each] for each in race.trials],
        "rate": rate,
        "price": race.spent / UPDATES,
        "test": problem.run(rate, UPDATES)[0],
        "environment": environment(),
    }


def configs() -> list[Config]:
    """Every problem both ways, seed by seed."""
    return [Config(*pair, seed, way) for seed in (*CHOSEN_ON, *AFTERWARDS) for pair in PAIRS for way in WAYS]


def table(records: Sequence[Record]) -> str:
    """A row for each problem: what both ways end with, and how far the second is ahead."""
    found = {tuple(record["config"].values()): record for record in records}
    rows = []
    for pair in PAIRS:
        seeds = [s for s in (*CHOSEN_ON, *AFTERWARDS) if all((*pair, s, way) in found for way in WAYS)]
        if not seeds:
            continue
        tests = {way: {s: found[(*pair, s, way)]["test"] for s in seeds} for way in WAYS}
        quiet = sum(found[(*pair, s, WAYS[1])]["learned_nothing"] for s in seeds)
        cells = [", ".join(pair), f"{quiet} of {len(seeds)}"]
        cells += [f"{statistics.fmean(of.values()):.2f} ({min(of.values()):.1f})" for of in tests.values()]
        for part in (CHOSEN_ON, AFTERWARDS):
            ahead = [tests[WAYS[1]][s] - tests[WAYS[0]][s] for s in seeds if s in part]
            cells.append(t_interval(ahead).text(sign=True) if ahead else "")
        rows.append(cells)
    headings = ["problem", "nothing learned", *(f"{way}: points (worst)" for way in WAYS)]
    return markdown_table([*headings, "ahead, seeds 1 to 20", "ahead, seeds 21 to 30"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table."""
    options = command_line(__doc__, "nothing more", FOLDER, arguments)
    experiment: Experiment[Config] = Experiment.from_options(options, train, lambda config: 1.2)
    if options.dry_run:
        experiment.show(configs())
        return
    records = experiment.make(configs(), "races")
    text = "# Where a race goes on from when nothing was learned\n\n" + table(records)
    (FOLDER.parent / f"{FOLDER.name}.md").write_text(text)
    print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
