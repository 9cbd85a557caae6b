"""How far from a tuned learning rate does a search before training end, and at what price?

    python -m benchmarks.learning_rate_search [--data-dir FOLDER] [--dry-run] [--report] [--full] [--jobs 2]

`LearningRateSearch` with AdamW and with SGD (Nesterov momentum) on the tasks of `headline` (MiniLM: with all of its
sentences) and on small ones, against a tuned rate: the best of five on validation data, seed 0; the grid is moved on
where the best one is at its edge. The price is on top of the run: the race's updates as a share of the run's, where a
grid of five costs four more runs. Beside it stand the ways to train of `headline` and those of
`learning_rate_search_arms`: DoG, and successive halving over whole runs at the price of the search.

The race's constants (the length of its warm-up, how cautiously the minimum is read, the default budget, what the guard
asks for) were chosen on CNN, ViT and byte LM, seeds 1 to 3, and on three tasks made up for it: a regression, a residual
network and an LSTM; the number of rates in a heat, the floor of the caution and the guard's steps on GRU, MLP and six
more that were made up; what is done on a plateau on those of `learning_rate_search_plateaus` and, where nothing is
learned, of `learning_rate_search_nothing_learned`. GRU and MLP no longer judge it. Tasks that had no say, named here
before their first run: GRU (digits, read row by row), MLP (Friedman's first regression problem), autoencoder (digits,
noise removed), digits (an MLP with batch norm and dropout), ResNet (on digits, with LAMB), and MiniLM. All but the last
are defined in `learning_rate_search_tasks`. At 1 024 updates (CNN, ViT and byte LM: with four times the data) every
task has a grid of its own; MiniLM is not trained for so long.

One JSON per run in ``benchmarks/results/learning_rate_search/``: a run whose file exists is not made again.
"""

from __future__ import annotations

import functools
import operator
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

from benchmarks._common import ResultStore, command_line, run_all
from benchmarks.learning_rate_search_report import write
from benchmarks.learning_rate_search_runs import (
    EVERY,
    FOLDER,
    MADE_LONG,
    Config,
    LongConfig,
    arms,
    grid,
    long_runs,
    optimizers_of,
    searches,
    seeds_of,
    tuned,
    work,
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table."""
    options = command_line(__doc__, "1 024 updates, too", FOLDER, arguments)
    store = ResultStore(options.results)
    if not options.report:
        do: Callable[[Any], None] = functools.partial(work, data_dir=options.data_dir, folder=options.results)
        label = operator.attrgetter("name")

        def missing(configs: Sequence[Any]) -> list[Any]:
            return [c for c in configs if store.load(c.name, asdict(c)) is None]

        def make(configs: Sequence[Any], what: str) -> None:
            run_all(do, missing(configs), options.jobs, label, what)

        def make_grids(tasks: Sequence[str], kind: type[Config] | type[LongConfig]) -> None:
            for task in tasks:
                for optimizer in optimizers_of(task):
                    while missing(grid(task, optimizer, store, kind)):
                        make(grid(task, optimizer, store, kind), "grid")

        def tuned_runs() -> list[Config]:
            pairs = [(task, optimizer) for task in EVERY for optimizer in optimizers_of(task)]
            best = {pair: tuned(*pair, store) for pair in pairs}
            return [Config(*pair, seed, lr=lr) for pair, lr in best.items() if lr for seed in seeds_of(pair[0])]

        if options.dry_run:
            more = long_runs(MADE_LONG, store) if options.full else []
            todo = missing([*tuned_runs(), *searches(EVERY), *arms(), *more])
            print("\n".join(c.name for c in todo))
            print(f"{len(todo)} runs, and the grids of {', '.join(EVERY)}")
            return
        make_grids(EVERY, Config)
        make(tuned_runs(), "tuned")
        make(searches(EVERY), "searches")
        make(arms(), "others")
        if options.full:
            make_grids(MADE_LONG, LongConfig)
            make(long_runs(MADE_LONG, store), "long")
    write(store, options.results.parent / "learning_rate_search")


if __name__ == "__main__":
    main(sys.argv[1:])
