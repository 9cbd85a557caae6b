"""What layer-wise learning rates, a slanted triangle and gradual unfreezing do for a small fine-tuning.

    python -m benchmarks.layerwise [--dry-run] [--timing] [--results FOLDER]

MiniLM (22.6 million parameters, pretrained) on 256 sentences of Rotten Tomatoes, three epochs, AdamW, batch 16, bf16
autocast. Compared are one learning rate for all layers, layer-wise decay of it by 0.9, 0.8 and 0.65 (the head has the
full one), and, with 0.8, the slanted triangle of ULMFiT and then gradual unfreezing as well; the triangle without
layer-wise decay tells the two apart. **The learning rate of each decay is tuned in the same way**, at a constant rate:
one run at each of three rates a factor 2 apart (four for one rate for all layers), and up to two further rates beyond
an end of the grid at which the validation accuracy is best. The triangle's peak is twice the rate so found, which makes
the mean rate of the run about the same (0.52 of the peak). The settings are then run with five other seeds. A seed sets
the training sentences, the head, dropout and the order; validation and test sentences are the same for all.

One JSON per run in ``benchmarks/results/layerwise/``: a run whose file exists is not made again, so the benchmark can
be stopped and continued. A table and a picture are written beside that folder and printed. ``--timing`` measures a
training step in every phase of gradual unfreezing instead. Needs `make finetune`.

Howard & Ruder 2018, arXiv 1801.06146 (ULMFiT); Clark et al. 2020, arXiv 2003.10555 (layer-wise decay in ELECTRA).
"""

from __future__ import annotations

import argparse
import functools
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from torch.utils.data import DataLoader

from benchmarks._common import RESULTS, environment, quiet_process
from benchmarks._experiment import Experiment, Record, facts
from benchmarks._training import quiet_trainer
from examples.classifier import Classifier
from examples.data import RottenTomatoesDataModule
from examples.models import MiniLM

SLICES = (r"embeddings\.|encoder\.layer\.[012]\.", r"encoder\.layer\.[345]\.", r"classifier\.")
"""What is unfrozen in one step, from the input: three slices for the three epochs."""
FOLDER = RESULTS / "layerwise"
SECONDS_PER_RUN = 15  # measured


Setting = tuple[float, str, bool]
"""Decay, schedule, unfreezing."""


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        settings: decay of the learning rate from layer to layer (1.0 is one rate for all), schedule, unfreezing; the
            first is what the others are held against.
        learning_rates: the grid that every decay is tuned on, before it is extended; the first setting's begins one
            rate lower.
        extensions: rates by which a grid is extended at most.
        tuning_seed: seed of every rate; its runs see the validation sentences only.
        seeds: seeds of the best rate; their runs see the test sentences only.
    """

    settings: tuple[Setting, ...] = (
        (1.0, "constant", False),
        (0.8, "constant", False),
        (0.9, "constant", False),
        (0.65, "constant", False),
        (1.0, "triangle", False),
        (0.8, "triangle", False),
        (0.8, "triangle", True),
    )
    learning_rates: tuple[float, ...] = (5e-5, 1e-4, 2e-4)
    extensions: int = 2
    tuning_seed: int = 0
    seeds: tuple[int, ...] = (1, 2, 3, 4, 5)


@dataclass(frozen=True)
class Config:
    """One run; everything before ``lr`` is the setting that it belongs to."""

    decay: float
    schedule: str
    unfreezing: bool
    lr: float
    seed: int
    epochs: int = 3
    batch_size: int = 16
    train_size: int = 256
    val_size: int = 400
    test_size: int = 800
    max_length: int = 32
    weight_decay: float = 0.01
    precision: str = "bf16-mixed"

    @property
    def setting(self) -> tuple[float, str, bool]:
        """What is compared: decay, schedule, unfreezing."""
        return self.decay, self.schedule, self.unfreezing

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        unfreezing = "_unfreezing" if self.unfreezing else ""
        return f"decay{self.decay:g}_{self.schedule}{unfreezing}_lr{self.lr:g}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        unfreezing = ", unfreezing" if self.unfreezing else ""
        return f"decay {self.decay:g}, {self.schedule}{unfreezing}, lr {self.lr:g}, seed {self.seed}"


# ---------------------------------------------------------------------- one run
class FineTuned(Classifier):
    """The example's classifier with the optimizer that transformers are fine-tuned with."""

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=self.weight_decay, fused=True)


class Watch(Callback):
    """Keeps the mean loss and the seconds of every epoch's training steps."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.seconds: list[float] = []
        self._loss = 0.0
        self._begin = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._loss, self._begin = 0.0, time.thread_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._loss += outputs["loss"].item()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.losses.append(self._loss / trainer.num_training_batches)
        self.seconds.append(round(time.thread_time() - self._begin, 2))


@functools.lru_cache(maxsize=2)
def sentences(config: Config) -> RottenTomatoesDataModule:
    """The data of runs with the same seed."""
    data = RottenTomatoesDataModule(
        config.batch_size,
        config.max_length,
        config.train_size,
        config.val_size,
        config.test_size,
        train_seed=config.seed,
    )
    data.setup()
    return data


def methods(config: Config) -> list[Callback]:
    """What is attached to the run."""
    from lightning_lr import GradualUnfreezing, LayerwiseLRDecay, LearningRateSchedule, SlantedTriangle

    callbacks: list[Callback] = []
    if config.decay != 1.0:
        callbacks.append(LayerwiseLRDecay(config.decay, no_weight_decay=()))
    if config.schedule == "triangle":
        callbacks.append(LearningRateSchedule(SlantedTriangle()))
    if config.unfreezing:
        callbacks.append(GradualUnfreezing(layers=list(SLICES)))
    return callbacks


def trainer_of(config: Config, folder: str, callbacks: Sequence[Callback], **arguments: Any) -> Trainer:
    """A silent Trainer on one CPU."""
    return quiet_trainer(folder, callbacks, precision=config.precision, **arguments)


def train(config: Config) -> Record:
    """Make one run, and evaluate it on the test sentences or, to tune, on the validation sentences."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    data = sentences(replace(config, decay=1.0, schedule="", unfreezing=False, lr=0.0))
    seed_everything(config.seed, verbose=False)
    module = FineTuned(MiniLM(), lr=config.lr, weight_decay=config.weight_decay, num_classes=2)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, folder, [*methods(config), watch], max_epochs=config.epochs, limit_val_batches=0)
        trainer.fit(module, data)
        evaluator = trainer_of(config, folder, [])
        evaluate = evaluator.validate if config.seed == Protocol().tuning_seed else evaluator.test
        found = evaluate(module, data, verbose=False)[0]
    return {
        "config": facts(config),
        **{name: found[name] for name in sorted(found)},
        "train_losses": watch.losses,
        "epoch_seconds": watch.seconds,
        "updates": trainer.global_step,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the grid
def first_rates(setting: Setting, protocol: Protocol) -> list[float]:
    """The grid before it is extended."""
    rates = list(protocol.learning_rates)
    return [rates[0] / 2, *rates] if setting == protocol.settings[0] else rates


def best_learning_rate(records: Sequence[Record]) -> float:
    """The rate with the best validation accuracy; of equal ones the lower."""
    by_rate = sorted(records, key=lambda record: record["config"]["lr"])
    return float(max(by_rate, key=lambda record: record["val_acc"])["config"]["lr"])


def rate_of(setting: Setting, records: Sequence[Record]) -> float:
    """The rate that a setting is run with: the best constant one of its decay, twice that as a triangle's peak."""
    return best_learning_rate(records) * (2.0 if setting[1] == "triangle" else 1.0)


def further_rate(records: Sequence[Record]) -> float | None:
    """The rate beyond the grid to try next, where the best one is at an end of it."""
    rates = sorted(record["config"]["lr"] for record in records)
    best = best_learning_rate(records)
    return rates[0] / 2 if best == rates[0] else rates[-1] * 2 if best == rates[-1] else None


def tuning(setting: Setting, protocol: Protocol, experiment: Experiment[Config]) -> tuple[list[Record], list[Config]]:
    """What is there of the tuning of a setting's decay, and what is to be made next (nothing: it is finished)."""
    setting = (setting[0], "constant", False)
    rates = first_rates(setting, protocol)
    for extension in range(protocol.extensions + 1):
        configs = [Config(*setting, rate, protocol.tuning_seed) for rate in rates]
        records, missing = experiment.records(configs), experiment.missing(configs)
        rate = further_rate(records) if not missing else None
        if missing or rate is None or extension == protocol.extensions:
            break
        rates.append(rate)
    return records, missing


def next_runs(protocol: Protocol, experiment: Experiment[Config]) -> list[Config]:
    """What can be made now, in the order in which it matters: tuning, then seed by seed, so that stopping early loses
    seeds and not settings."""
    tuned = {setting: tuning(setting, protocol, experiment) for setting in protocol.settings}
    waiting = dict.fromkeys(config for _, missing in tuned.values() for config in missing)
    if waiting:
        return list(waiting)
    return experiment.missing(
        Config(*setting, rate_of(setting, records), seed)
        for seed in protocol.seeds
        for setting, (records, _) in tuned.items()
    )


# ---------------------------------------------------------------------- the command
def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print what would be made next")
    parser.add_argument("--runs", type=int, help="stop after this many runs; the table has what is there")
    parser.add_argument("--timing", action="store_true", help="measure a training step in each phase of unfreezing")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the runs' files")
    options = parser.parse_args(arguments)
    protocol = Protocol()
    experiment = Experiment[Config](options.results, train, lambda config: SECONDS_PER_RUN)
    if options.timing:
        print_timing()
    elif options.dry_run:
        experiment.show(next_runs(protocol, experiment))
    else:
        compare(protocol, experiment, options.runs)


def compare(protocol: Protocol, experiment: Experiment[Config], limit: int | None = None) -> None:
    """Make what is missing, at most ``limit`` runs, and write the report once every setting is tuned."""
    from benchmarks import layerwise_report as report

    left = limit
    while runs := next_runs(protocol, experiment)[:left]:
        experiment.make(runs, "fine-tuning")
        left = None if left is None else left - len(runs)
    tuned = {setting: tuning(setting, protocol, experiment) for setting in protocol.settings}
    if any(missing for _, missing in tuned.values()):
        print("the learning rates are not tuned yet; run it again")
        return
    final = {
        setting: experiment.records(Config(*setting, rate_of(setting, of), seed) for seed in protocol.seeds)
        for setting, (of, _) in tuned.items()
    }
    if not all(final.values()):
        print("there is no table before every setting has a run; run it again")
        return
    constant = {setting: of for setting, (of, _) in tuned.items() if setting[1:] == ("constant", False)}
    report.write(experiment.store.folder.parent / "layerwise", constant, final)


# ---------------------------------------------------------------------- the time of a step
class StepTimes(Callback):
    """Seconds of this thread in each training step, from the batch being there to the update being made."""

    def __init__(self) -> None:
        self.by_epoch: dict[int, list[float]] = {}
        self._begin = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._begin = time.thread_time()

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self.by_epoch.setdefault(trainer.current_epoch, []).append(time.thread_time() - self._begin)


def step_seconds(steps: int = 8, batch_size: int = 32, length: int = 32) -> list[float]:
    """The shortest training step in each phase: one phase an epoch, the last trains everything.

    The same random token ids in every step; the shortest, since a shared machine only ever adds to a step.
    """
    from lightning_lr import GradualUnfreezing

    seed_everything(0, verbose=False)
    tokens = torch.randint(1000, 20_000, (batch_size, length))
    batches = DataLoader([(tokens, torch.arange(batch_size) % 2)] * steps, batch_size=None)
    times = StepTimes()
    config = Config(1.0, "constant", True, 1e-4, 0)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, folder, [GradualUnfreezing(layers=list(SLICES)), times], max_epochs=len(SLICES))
        trainer.fit(FineTuned(MiniLM(), lr=config.lr, num_classes=2), batches)
    return [min(seconds) for _, seconds in sorted(times.by_epoch.items())]


def print_timing() -> None:
    """Print the time of a training step in every phase of gradual unfreezing, against all layers trained."""
    quiet_process()
    seconds = step_seconds()
    for phase, spent in enumerate(seconds):
        share = spent / seconds[-1]
        print(f"{phase + 1} of {len(seconds)} slices train: {spent * 1000:.0f} ms a step, {share:.2f} of full training")


if __name__ == "__main__":
    main()
