"""What layer-wise learning rates, a slanted triangle and gradual unfreezing do for a small fine-tuning.

    python -m benchmarks.layerwise [--dry-run] [--timing] [--results FOLDER]

MiniLM (22.6 million parameters, pretrained) on 512 sentences of Rotten Tomatoes, three epochs, AdamW, batch 32, bf16
autocast. Compared are one learning rate for all layers, layer-wise decay of it by 0.9, 0.8 and 0.65 (the head has the
full one), and, with the best of these decays on validation sentences, the slanted triangle of ULMFiT and then gradual
unfreezing as well; the slanted triangle without layer-wise decay tells the two apart. **Every one of the seven has its
learning rate tuned in the same way**: one run at each of four rates, a factor 2 apart, and further rates as long as
the best validation accuracy is at an end of the grid. The best rate is then run with the other seeds. A seed sets
the training sentences, the head, dropout and the order; validation and test sentences are the same for all.

One JSON per run in ``benchmarks/results/layerwise/``: a run whose file exists is not made again, so the benchmark can
be stopped and continued. A table and a picture are written beside that folder and printed. ``--timing`` measures a
training step in every phase of gradual unfreezing instead. Needs `make finetune`.

Howard & Ruder 2018, arXiv 1801.06146 (ULMFiT); Clark et al. 2020, arXiv 2003.10555 (layer-wise decay in ELECTRA).
"""

from __future__ import annotations

import argparse
import functools
import operator
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything

from benchmarks._common import RESULTS, ResultStore, clock, environment, quiet_process, run_all
from examples.classifier import Classifier
from examples.data import RottenTomatoesDataModule
from examples.models import MiniLM

SLICES = (r"embeddings\.|encoder\.layer\.[012]\.", r"encoder\.layer\.[345]\.", r"classifier\.")
"""What is unfrozen in one step, from the input: three slices for the three epochs."""
FOLDER = RESULTS / "layerwise"
SECONDS_PER_RUN = 50  # measured


@dataclass(frozen=True)
class Protocol:
    """What is compared.

    Args:
        decays: of the learning rate from layer to layer; 1.0 is one rate for all.
        learning_rates: the grid that every setting is tuned on, before it is extended.
        tuning_seeds: seeds of every rate.
        seeds: seeds of the best rate.
    """

    decays: tuple[float, ...] = (1.0, 0.9, 0.8, 0.65)
    learning_rates: tuple[float, ...] = (2.5e-5, 5e-5, 1e-4, 2e-4)
    tuning_seeds: tuple[int, ...] = (0,)
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)


@dataclass(frozen=True)
class Config:
    """One run; everything before ``lr`` is the setting that it belongs to."""

    decay: float
    schedule: str
    unfreezing: bool
    lr: float
    seed: int
    epochs: int = 3
    batch_size: int = 32
    train_size: int = 512
    val_size: int = 800
    test_size: int = 1200
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
    return Trainer(
        accelerator="cpu",
        precision=config.precision,  # type: ignore[arg-type]
        callbacks=list(callbacks),
        deterministic=True,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **arguments,
    )


def train(config: Config) -> dict[str, Any]:
    """Make one run."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    data = sentences(replace(config, decay=1.0, schedule="", unfreezing=False, lr=0.0))
    seed_everything(config.seed, verbose=False)
    module = FineTuned(MiniLM(), lr=config.lr, weight_decay=config.weight_decay, num_classes=2)
    watch = Watch()
    with tempfile.TemporaryDirectory() as folder:
        trainer = trainer_of(config, folder, [*methods(config), watch], max_epochs=config.epochs, limit_val_batches=0)
        trainer.fit(module, data)
        evaluator = trainer_of(config, folder, [])
        validated = evaluator.validate(module, data, verbose=False)[0]
        tested = evaluator.test(module, data, verbose=False)[0]
    return {
        "config": asdict(config),
        "val_accuracy": validated["val_acc"],
        "val_loss": validated["val_loss"],
        "test_accuracy": tested["test_acc"],
        "test_loss": tested["test_loss"],
        "train_losses": watch.losses,
        "epoch_seconds": watch.seconds,
        "updates": trainer.global_step,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "environment": environment(),
    }


def work(config: Config, folder: Path) -> None:
    """Make one run and write it down; in a process of its own where there are several."""
    quiet_process()
    ResultStore(folder).save(config.name, train(config))


# ---------------------------------------------------------------------- the grid
Setting = tuple[float, str, bool]
UNIFORM: Setting = (1.0, "constant", False)


def tuning_configs(setting: Setting, learning_rates: Sequence[float], protocol: Protocol) -> list[Config]:
    """Every rate with the tuning seeds."""
    return [Config(*setting, lr, seed) for lr in learning_rates for seed in protocol.tuning_seeds]


def best_learning_rate(records: Sequence[dict[str, Any]]) -> float:
    """The rate with the best mean validation accuracy; of equal ones the lower."""
    means: dict[float, list[float]] = {}
    for record in records:
        means.setdefault(record["config"]["lr"], []).append(record["val_accuracy"])
    return max(sorted(means), key=lambda lr: fmean(means[lr]))


def further_rate(records: Sequence[dict[str, Any]]) -> float | None:
    """The rate beyond the grid to try next, where the best one is at an end of it."""
    rates = sorted({record["config"]["lr"] for record in records})
    best = best_learning_rate(records)
    return {rates[0]: rates[0] / 2, rates[-1]: rates[-1] * 2}.get(best)


def load(configs: Sequence[Config], store: ResultStore) -> list[dict[str, Any]]:
    """The results that are there."""
    loaded = (store.load(config.name, asdict(config)) for config in configs)
    return [record for record in loaded if record is not None]


def make(configs: Sequence[Config], store: ResultStore, title: str) -> list[dict[str, Any]]:
    """The results of all, after making those that are missing."""
    missing = [config for config in configs if not load([config], store)]
    run_all(functools.partial(work, folder=store.folder), missing, 1, operator.attrgetter("label"), title)
    return load(configs, store)


def tune(setting: Setting, protocol: Protocol, store: ResultStore) -> list[dict[str, Any]]:
    """The tuning runs of a setting, with the grid extended until its best rate is not at an end."""
    rates = list(protocol.learning_rates)
    records = make(tuning_configs(setting, rates, protocol), store, "tuning")
    while (rate := further_rate(records)) is not None:
        rates.append(rate)
        records = make(tuning_configs(setting, rates, protocol), store, "tuning")
    return records


def best_decay(tuned: dict[Setting, list[dict[str, Any]]]) -> float:
    """The layer-wise decay whose tuned validation accuracy is best."""

    def validation(setting: Setting) -> float:
        best = best_learning_rate(tuned[setting])
        return fmean(r["val_accuracy"] for r in tuned[setting] if r["config"]["lr"] == best)

    return max((setting for setting in tuned if setting[0] != 1.0), key=validation)[0]


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dry-run", action="store_true", help="print the settings and how long the runs would take")
    parser.add_argument("--timing", action="store_true", help="measure a training step in each phase of unfreezing")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the runs' files")
    options = parser.parse_args(arguments)
    if options.dry_run:
        _show_plan(Protocol(), ResultStore(options.results))
    elif options.timing:
        print_timing()
    else:
        compare(Protocol(), ResultStore(options.results))


def compare(protocol: Protocol, store: ResultStore) -> None:
    """The whole benchmark."""
    from benchmarks import layerwise_report as report

    tuned = {s: tune(s, protocol, store) for s in ((decay, "constant", False) for decay in protocol.decays)}
    decay = best_decay(tuned)
    for setting in ((1.0, "triangle", False), (decay, "triangle", False), (decay, "triangle", True)):
        tuned[setting] = tune(setting, protocol, store)
    final = {
        setting: make([Config(*setting, best_learning_rate(of), seed) for seed in protocol.seeds], store, "seeds")
        for setting, of in tuned.items()
    }
    report.write(store.folder.parent / "layerwise", tuned, final)


def _show_plan(protocol: Protocol, store: ResultStore) -> None:
    settings = [(decay, "constant", False) for decay in protocol.decays]
    tuning = [c for setting in settings for c in tuning_configs(setting, protocol.learning_rates, protocol)]
    others = 3 * len(protocol.learning_rates) * len(protocol.tuning_seeds)
    seeds = (len(settings) + 3) * (len(protocol.seeds) - len(protocol.tuning_seeds))
    for config in tuning:
        print(config.label + ("  (done)" if load([config], store) else ""))
    runs = len(tuning) + others + seeds
    print(f"{runs} runs and those of extended grids: {clock(runs * SECONDS_PER_RUN)} on one thread, less what is done")


# ---------------------------------------------------------------------- the time of a step
def print_timing() -> None:
    """Print the time of a training step in every phase of gradual unfreezing, against all layers trained."""
    raise NotImplementedError


if __name__ == "__main__":
    main()
