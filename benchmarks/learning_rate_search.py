"""How far from a tuned learning rate does a search before training end, and at what price?

    python -m benchmarks.learning_rate_search [--data-dir FOLDER] [--dry-run] [--report] [--full] [--jobs 2]

`LearningRateSearch` with AdamW and with SGD (Nesterov momentum) on the tasks of `headline`, at their length of 256
updates (MiniLM: 96), against the tuned rates of `headline`: the best of five on validation data, seed 0. The price is
on top of the run: the race's updates as a share of the run's, where a grid of five costs four more runs. Beside it
stand the ways to train of `headline` and those of `learning_rate_search_arms`: DoG, and successive halving over whole
runs at the price of the search.

The race's constants (the length of its warm-up, how cautiously the minimum is read, the default budget, what the guard
asks for) were chosen on CNN, ViT and byte LM, seeds 1 to 3, and on three tasks made up for it: a regression, a residual
network and an LSTM; the number of rates in a heat, the floor of the caution and the guard's steps on GRU, MLP and six
more that were made up; what is done on a plateau on those of `learning_rate_search_plateaus`. GRU and MLP no longer
judge it. Tasks that had no say, named here before their first run: GRU (digits, read row by row), MLP (Friedman's first
regression problem), autoencoder (digits, noise removed), digits (an MLP with batch norm and dropout), ResNet (on
digits, with LAMB), and MiniLM. All but the last are defined in `learning_rate_search_tasks`, with a grid of five that
is moved on where the best rate is at its edge. At 1 024 updates the small tasks have a grid of their own; on CNN, ViT
and byte LM (four times the data) the tuned rate is the best of five that a loop apart from Lightning made once, by its
test metric: in favour of the grid.

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
    CHOSEN_ON,
    FOLDER,
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
from benchmarks.learning_rate_search_tasks import SMALL


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table."""
    options = command_line(__doc__, "MiniLM and 1 024 updates, too", FOLDER, arguments)
    store = ResultStore(options.results)
    if not options.report:
        do: Callable[[Any], None] = functools.partial(work, data_dir=options.data_dir, folder=options.results)
        label = operator.attrgetter("name")
        tasks = [*CHOSEN_ON, *SMALL]

        def missing(configs: Sequence[Any]) -> list[Any]:
            return [c for c in configs if store.load(c.name, asdict(c)) is None]

        def make(configs: Sequence[Any], what: str) -> None:
            run_all(do, missing(configs), options.jobs, label, what)

        def make_grids(kind: type[Config] | type[LongConfig]) -> None:
            for task in SMALL:
                for optimizer in optimizers_of(task):
                    while missing(grid(task, optimizer, store, kind)):
                        make(grid(task, optimizer, store, kind), "grid")

        if options.dry_run:
            tasks = [*tasks, "MiniLM"] if options.full else tasks
            more = long_runs(tasks, store) if options.full else []
            todo = missing([*searches(tasks), *arms(), *more])
            print("\n".join(c.name for c in todo))
            print(f"{len(todo)} runs, and the grids of {', '.join(SMALL)}")
            return
        make_grids(Config)
        pairs = [(task, optimizer) for task in SMALL for optimizer in optimizers_of(task)]
        make([Config(*pair, seed, lr=tuned(*pair, store)) for pair in pairs for seed in seeds_of(pair[0])], "tuned")
        make(searches(list(SMALL)), "small tasks")
        make(arms(), "others")
        make(searches(tasks), "searches")
        if options.full:
            make_grids(LongConfig)
            make(long_runs(list(SMALL), store), "small tasks, long")
            make([*long_runs(CHOSEN_ON, store), *searches(["MiniLM"])], "long runs and MiniLM")
    write(store, options.results.parent / "learning_rate_search")


if __name__ == "__main__":
    main(sys.argv[1:])
