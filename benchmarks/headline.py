"""A model and data that nobody has tuned, the learning rate unknown: what does the tuned baseline's quality cost?

    python -m benchmarks.headline [--data-dir FOLDER] [--dry-run] [--report] [--full] [--jobs 2]

Four tasks (`headline_tasks`, their data in `headline_data`): a small CNN and a small ViT on Fashion-MNIST, a small GPT
on the bytes of Python source, and MiniLM on film reviews. Of MiniLM the last layer and a head are trained, and what the
frozen layers below make of a sentence is computed once: made for a CPU; it needs `make finetune`. The text is the
running Python's own library, so that bits compare within one version of Python.

The baselines are AdamW and SGD with Nesterov momentum, a linear warm-up over 5 % of the run and a cosine, the learning
rate the best of five on validation data, one seed. A grid was moved up by half a decade where the best rate had been
its highest (with AdamW the CNN and MiniLM, with SGD the ViT). The search is counted in the baseline's favour: the
winner's run is the product, so that only the other rates are the price of it.

Against them stand, in one run without a search: our methods with AdamW; Lightning's learning rate finder (its samples
are counted), once with the rate that it suggests and once with the steepest fall per step of the same sweep, which it
suggested before Lightning 2.5.3; AdamW at torch's default rate; and the tuning-free optimizers of pytorch_optimizer at
their defaults (there is no DoG in it). Prodigy and D-Adaptation have the cosine that their authors recommend; for
Schedule-Free, batch norm's statistics are taken anew before each evaluation, as its authors say. The setting of
"AdaptiveWarmup, short climb" was chosen by `headline_why` on validation images of Fashion-MNIST, with other seeds; the
text tasks had no say in it.

At equal distances the metric on the test data is noted with the samples and the CPU seconds of training until then
(evaluation left out, the learning rate finder and every method's own work included). A run that diverges is given what
guessing has. The answer is the samples until the target, search included: the better tuned baseline's mean at the end,
less half a point of accuracy (MiniLM, with 400 test sentences: a point), or plus 0.02 bits per byte.

One JSON per run in ``benchmarks/results/headline/``: a run whose file exists is not made again, so the benchmark can be
stopped and continued. A table and a picture are written beside that folder; with ``--report``, at once, from the runs
that exist. The default is made for one CPU core. ``--full``: 50 000 images, 20 epochs, 5 seeds: not made.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from benchmarks import headline_report as report
from benchmarks._common import RESULTS, ResultStore, command_line
from benchmarks._experiment import Experiment, existing
from benchmarks.headline_arms import ARMS, TUNED
from benchmarks.headline_run import TUNING_SEED, Config, parameters_of, train
from benchmarks.headline_tasks import TASKS, Task

FOLDER = RESULTS / "headline"


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        name: of the files with the table and the picture.
        tasks: with the length of their runs.
        seeds: of the runs that are compared; the search has another one.
    """

    name: str
    tasks: tuple[Task, ...]
    seeds: tuple[int, ...]


DEFAULT = Protocol("headline", tuple(TASKS.values()), (1, 2, 3))
FULL = Protocol(
    "headline_full",
    tuple(replace(TASKS[name], train_size=50_000, epochs=20, cpu_seconds=130.0) for name in ("CNN", "ViT")),
    (1, 2, 3, 4, 5),
)


# ---------------------------------------------------------------------- the grid
def search(protocol: Protocol) -> list[Config]:
    """Every rate of the baselines' grids."""
    return [
        config_of(task, arm, lr, TUNING_SEED)
        for task in protocol.tasks
        for arm, rates in task.grid.items()
        for lr in rates
    ]


def compared(protocol: Protocol, best_lr: dict[tuple[str, str], float]) -> list[Config]:
    """Every arm with every seed, seed by seed, so that stopping early loses seeds; baselines at the best rates."""
    return [
        config_of(task, name, best_lr.get((task.name, name), arm.lr), seed)
        for seed in protocol.seeds
        for task in protocol.tasks
        for name, arm in ARMS.items()
        if name not in TUNED or (task.name, name) in best_lr
    ]


def best_learning_rates(protocol: Protocol, records: Sequence[dict[str, Any]]) -> dict[tuple[str, str], float]:
    """For each task and baseline whose search is complete, the rate that is best on the validation data."""
    best = {}
    for task in protocol.tasks:
        for arm, rates in task.grid.items():
            found = {
                record["config"]["lr"]: task.metric.key(record[f"val_{task.metric.name}"])
                for record in records
                if (record["config"]["model"], record["config"]["arm"]) == (task.name, arm)
            }
            if len(found) == len(rates):
                best[task.name, arm] = max(found, key=found.__getitem__)
    return best


def config_of(task: Task, arm: str, lr: float, seed: int) -> Config:
    """A run of the task."""
    sizes = (task.epochs, task.train_size, task.val_size, task.batch_size)
    return Config(task.name, arm, lr, seed, *sizes, parameters_of(task.name))


def records(store: ResultStore, protocol: Protocol = DEFAULT) -> list[dict[str, Any]]:
    """The compared runs that exist, the baselines at their best rates."""
    best = best_learning_rates(protocol, existing(store, search(protocol)))
    return existing(store, compared(protocol, best))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "50 000 images, 20 epochs, 5 seeds: hours, not measured", FOLDER, arguments)
    protocol = FULL if options.full else DEFAULT
    cost = {task.name: task.cpu_seconds for task in protocol.tasks}
    experiment: Experiment[Config] = Experiment.from_options(options, train, lambda config: cost[config.model])
    if options.dry_run:
        unknown = dict.fromkeys(((task.name, arm) for task in protocol.tasks for arm in TUNED), -1.0)
        best = unknown | best_learning_rates(protocol, experiment.records(search(protocol)))
        experiment.show([*search(protocol), *compared(protocol, best)])
        return
    searched = experiment.make(search(protocol), "search")
    found = experiment.make(compared(protocol, best_learning_rates(protocol, searched)), "compared")
    target = options.results.parent / protocol.name
    report.write(target, searched, found, protocol.tasks, tuple(ARMS), protocol.seeds)


if __name__ == "__main__":
    main(sys.argv[1:])
