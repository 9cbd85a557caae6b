"""Whether branches find a batch that saves updates at an equal loss, as Merrill et al. report (43 % fewer).

    python -m benchmarks.critical_batch [--data-dir FOLDER] [--dry-run] [--full] [--report] [--jobs 2]

The CNN and the byte model of `benchmarks.headline` on more data and with a small first batch, so that there is
something to save; AdamW, square-root rule, a warm-up of 5 %. All runs of a task see as many samples. Arms:

- "fixed": the first batch throughout, under a cosine;
- "fixed x 2", "x 4", "x 8": a larger batch from the start, lr raised by the rule: what can be saved without measuring;
- "curve": `CurveRamp`, the batch grows in the place of the cosine's fall;
- "noise scale": `AdaptiveRamp()` by the gradient noise scale, which lowers noise by the batch alone;
- "branches": `AdaptiveRamp(measure="branches")` at 10, 30 and 60 % of the run under the cosine of "fixed".

The batch grows to 16 times the first at most. The learning rate is tuned for "fixed" (seed 0, on validation data), and
all arms begin with it. Equal was fixed before the runs: no worse than "fixed" by more than 0.5 points of accuracy or
0.02 bits. One JSON per run in ``benchmarks/results/critical_batch/``: a run whose file exists is not made again. By
default 3 seeds, about 25 minutes of one core; ``--full`` has 5 seeds.

Merrill et al. 2025, arXiv:2505.23971.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything

from benchmarks import critical_batch_report as report
from benchmarks._common import RESULTS, command_line, environment
from benchmarks._experiment import Experiment, facts
from benchmarks.headline_arms import WEIGHT_DECAY
from benchmarks.headline_run import evaluated
from benchmarks.headline_tasks import TASKS
from benchmarks.linear_scaling import WatchLoss
from lightning_lr import (
    AdaptiveRamp,
    BatchSizeRamp,
    Cosine,
    CurveRamp,
    GradientNoiseScale,
    LearningRateSchedule,
)

FIXED = ("fixed", "fixed x 2", "fixed x 4", "fixed x 8")
ARMS = ("fixed", "branches", "noise scale", "fixed x 4", "curve", "fixed x 2", "fixed x 8")
LEARNING_RATES = (3e-3, 1e-2, 3e-2)
TUNING_SEED, SEEDS, FULL_SEEDS = 0, (2, 3), (2, 3, 4, 5, 6)
WARMUP, LARGEST_GROWTH = 0.05, 16
JUDGED = ("multiple", "behind", "noise", "allowed")
FOLDER = RESULTS / "critical_batch"


@dataclass(frozen=True)
class Protocol:
    """The length of a task's runs."""

    train_size: int
    val_size: int
    epochs: int
    batch_size: int
    cpu_seconds: float


PROTOCOLS = {
    "CNN": Protocol(4096, 5000, 6, 16, 22.0),
    "byte LM": Protocol(4096, 256, 2, 8, 25.0),
}


@dataclass(frozen=True)
class Config:
    """One run."""

    task: str
    arm: str
    lr: float
    seed: int
    train_size: int
    val_size: int
    epochs: int
    batch_size: int
    budget: float
    tolerance: float

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return f"{self.task}_{self.arm}_lr{self.lr:g}_seed{self.seed}".replace(" ", "-")

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.task}, {self.arm}, lr {self.lr:g}, seed {self.seed}"


def config(task: str, arm: str, lr: float, seed: int) -> Config:
    """A run of the protocol."""
    p = PROTOCOLS[task]
    ramp = AdaptiveRamp(measure="branches")
    branches = (ramp.budget, ramp.tolerance) if arm == "branches" else (0.0, 0.0)
    return Config(task, arm, lr, seed, p.train_size, p.val_size, p.epochs, p.batch_size, *branches)


def tuning_configs() -> list[Config]:
    """The runs that choose the learning rate."""
    return [config(task, "fixed", lr, TUNING_SEED) for task in PROTOCOLS for lr in LEARNING_RATES]


def best_learning_rates(records: Sequence[dict[str, Any]]) -> dict[str, float]:
    """For each task the rate with the best validation metric of "fixed"."""
    best: dict[str, float] = {}
    for task in PROTOCOLS:
        metric = TASKS[task].metric
        own = {r["config"]["lr"]: r["value"] for r in records if r["config"]["task"] == task}
        best[task] = max(own, key=lambda lr, own=own, metric=metric: metric.key(own[lr]))  # type: ignore[misc]
    return best


def configs(best: dict[str, float], seeds: Sequence[int]) -> list[Config]:
    """Every run, seed by seed, so that stopping early loses seeds and not arms."""
    return [config(task, arm, best[task], seed) for seed in seeds for task in PROTOCOLS for arm in ARMS]


# ---------------------------------------------------------------------- one run
def methods(config: Config, multiple: int) -> list[Callback]:
    """The callbacks of an arm."""
    schedule, cap = LearningRateSchedule(Cosine(warmup=WARMUP)), LARGEST_GROWTH * config.batch_size
    if config.arm == "curve":
        return [BatchSizeRamp(CurveRamp(Cosine(warmup=WARMUP)), cap, lr_rule="sqrt")]
    if config.arm == "noise scale":
        ramp = BatchSizeRamp(AdaptiveRamp(), cap, config.batch_size // 2, lr_rule="sqrt")
        return [ramp, GradientNoiseScale()]
    if config.arm == "branches":
        measured = AdaptiveRamp(measure="branches", budget=config.budget, tolerance=config.tolerance)
        return [BatchSizeRamp(measured, cap, lr_rule="sqrt"), schedule]
    return [schedule]


def train(config: Config, data_dir: str | None) -> dict[str, Any]:
    """Make one run; judged on the validation data with the tuning's seed, else on the test data."""
    begin = time.process_time()
    task = TASKS[config.task]
    multiple = int(config.arm.rpartition(" ")[2]) if config.arm.startswith("fixed x") else 1
    data: Any = task.data(config.batch_size * multiple, config.train_size, config.val_size, data_dir)
    seed_everything(config.seed, verbose=False)
    lr = config.lr * multiple**0.5
    module = task.module(task.network(), lr=lr)
    module.make_optimizer = lambda parameters, lr: torch.optim.AdamW(parameters, lr, weight_decay=WEIGHT_DECAY)
    losses, callbacks = WatchLoss(), methods(config, multiple)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=config.epochs,
            callbacks=[*callbacks, losses],
            deterministic=True,
            limit_val_batches=0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
        )
        trainer.fit(module, data)
    spent = time.process_time() - begin
    held_out = data.val_set if config.seed == TUNING_SEED else data.test_set
    value = task.metric.guess
    if not losses.diverged:
        value = evaluated(module, held_out, trainer.optimizers[0], data.train_set, task.metric)
    ramp = next((callback for callback in callbacks if isinstance(callback, BatchSizeRamp)), None)
    state = {} if ramp is None else ramp.state_dict()
    measured = state.get("measured", [])
    return {
        "config": facts(config),
        "value": value,
        "train_loss": None if losses.diverged else fmean(losses.last_epoch),
        "diverged": losses.diverged,
        "updates": trainer.global_step,
        "growths": state.get("growths", []),
        "branch_updates": sum(result["price"] for result in measured),
        "branch_samples": sum(result["samples"] * result["present"] for result in measured),
        "measured": [
            {
                **{name: result[name] for name in ("at", "present", "multiple", "bounded", "gained", "price")},
                "behind": [[trial[name] for name in JUDGED] for trial in result["trials"][1:]],
            }
            for result in measured
        ],
        "cpu_seconds": round(spent, 2),
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write the table and the picture."""
    options = command_line(__doc__, "5 seeds in the place of 3", FOLDER, arguments)
    seeds = FULL_SEEDS if options.full else SEEDS
    experiment = Experiment[Config].from_options(options, train, lambda config: PROTOCOLS[config.task].cpu_seconds)
    tuning = tuning_configs()
    if options.dry_run:
        tuned = experiment.records(tuning)
        middle = dict.fromkeys(PROTOCOLS, LEARNING_RATES[1])
        experiment.show([*tuning, *configs(best_learning_rates(tuned) if len(tuned) == len(tuning) else middle, seeds)])
        return
    tuned = experiment.make(tuning, 'tuning of "fixed"')
    compared = experiment.make(configs(best_learning_rates(tuned), seeds), "arms")
    report.write(options.results.parent / "critical_batch", tuned, compared)


if __name__ == "__main__":
    main()
