"""Whether growing the batch gives what decaying the learning rate gives with text and Adam, too.

    python -m benchmarks.batch_size_ramp_text [--dry-run] [--full] [--jobs 2]

The evidence of Smith et al. is images only. Here a GRU of 79 000 weights predicts the next byte of Python source, the
text of the running Python's own standard library (nothing to download; its checksum is in every result, and results of
another text are made again). Validation is on other files. Adam, and at each milestone the noise scale falls by 5:

- "decay": by the learning rate;
- "hybrid": by the batch once, lr / sqrt 5, then by the learning rate;
- "increase": by the batch up to a tenth of the sequences, with lr / sqrt 5 for each growth by 5 (the square-root rule);
- "increase, linear": by the batch at an unchanged learning rate, which is what the paper does with Adam as well.

Runs of one seed have the same initial weights and the same order of samples. The learning rate is tuned for "decay".
Equivalence was fixed before the runs as: the 90 % interval of the difference to "decay" in validation bits per byte,
paired by seed, lies inside +-0.02. One JSON per run in ``benchmarks/results/batch_size_ramp_text/``; a run whose file
exists is not made again. By default 23 runs of about half a minute of one core; ``--full`` has eight times the text.
"""

from __future__ import annotations

import functools
import hashlib
import math
import sysconfig
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from lightning import LightningModule, Trainer, seed_everything
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks import batch_size_ramp_text_report as report
from benchmarks._common import RESULTS, command_line, environment
from benchmarks._experiment import Experiment, facts
from benchmarks._training import quiet_trainer
from benchmarks.batch_size_ramp import Watch
from lightning_lr import BatchSizeRamp, StepRamp

SCHEDULES = ("decay", "hybrid", "increase", "increase, linear")
LEARNING_RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
BATCH_SIZE, MAX_MICRO_BATCH_SIZE, FACTOR = 32, 256, 5
EPOCHS, MILESTONES = 6, (3, 5)
BYTES, EMBEDDING, HIDDEN = 64, 48, 96
SEEDS, TUNING_SEEDS = tuple(range(5)), (0,)
CURVE_POINTS = 48
CPU_SECONDS_PER_BYTE = 15e-6  # measured
FOLDER = RESULTS / "batch_size_ramp_text"


@dataclass(frozen=True)
class Config:
    """One run; ``text`` is the beginning of the checksum of the text it reads."""

    schedule: str
    lr: float
    seed: int
    train_size: int
    val_size: int
    batch_size: int
    epochs: int
    milestones: tuple[int, ...]
    factor: int
    bytes: int
    hidden: int
    text: str

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        return f"{self.schedule.replace(', ', '_')}_lr{self.lr:g}_sequences{self.train_size}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.schedule}, lr {self.lr:g}, seed {self.seed}"


# ---------------------------------------------------------------------- the grid
def config(schedule: str, lr: float, seed: int, train_size: int) -> Config:
    """A run of the default protocol."""
    return Config(
        schedule=schedule,
        lr=lr,
        seed=seed,
        train_size=train_size,
        val_size=2_000,
        batch_size=BATCH_SIZE,
        epochs=EPOCHS,
        milestones=MILESTONES,
        factor=FACTOR,
        bytes=BYTES,
        hidden=HIDDEN,
        text=checksum(),
    )


def tuning_configs(train_size: int) -> list[Config]:
    """The runs of "decay" that choose the learning rate."""
    return [config("decay", lr, seed, train_size) for seed in TUNING_SEEDS for lr in LEARNING_RATES]


def configs(lr: float, train_size: int) -> list[Config]:
    """Every run at the tuned rate, seed by seed."""
    return [config(schedule, lr, seed, train_size) for seed in SEEDS for schedule in SCHEDULES]


def best_learning_rate(records: Sequence[dict[str, Any]]) -> float:
    """The rate with the fewest validation bits after the last epoch, on average."""
    bits: dict[float, list[float]] = {}
    for record in records:
        bits.setdefault(record["config"]["lr"], []).append(report.bits(record))
    return min(bits, key=lambda lr: fmean(bits[lr]))


# ---------------------------------------------------------------------- text
@functools.cache
def text() -> tuple[bytes, bytes]:
    """Source of the standard library without its tests: for training, and every tenth file for validation."""
    folder = Path(sysconfig.get_path("stdlib"))
    left_out = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    files = sorted(path for path in folder.rglob("*.py") if not left_out & set(path.relative_to(folder).parts))
    validation = files[::10]
    training = [path for path in files if path not in set(validation)]
    return b"\n".join(p.read_bytes() for p in training), b"\n".join(p.read_bytes() for p in validation)


@functools.cache
def checksum() -> str:
    """The beginning of the text's SHA-256."""
    return hashlib.sha256(b"".join(text())).hexdigest()[:12]


def sequences(source: bytes, count: int) -> TensorDataset:
    """``count`` pieces of the text that do not overlap, the same ones every time, as inputs and next bytes."""
    pieces = torch.frombuffer(bytearray(source), dtype=torch.uint8).unfold(0, BYTES + 1, BYTES + 1)
    chosen = torch.randperm(len(pieces), generator=torch.Generator().manual_seed(0))[:count]
    if len(chosen) < count:
        raise ValueError(f"the text has {len(pieces)} sequences of {BYTES} bytes; asked for {count}")
    picked = pieces[chosen].long()
    return TensorDataset(picked[:, :-1].contiguous(), picked[:, 1:].contiguous())


# ---------------------------------------------------------------------- one run
class ByteModel(LightningModule):
    """Next-byte prediction by a GRU, trained with Adam."""

    def __init__(self, lr: float, hidden: int = HIDDEN) -> None:
        super().__init__()
        self.lr = lr
        self.embedding = nn.Embedding(256, EMBEDDING)
        self.recurrent = nn.GRU(EMBEDDING, hidden, batch_first=True)
        self.readout = nn.Linear(hidden, 256)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        inputs, targets = batch
        logits = self.readout(self.recurrent(self.embedding(inputs))[0])
        return nn.functional.cross_entropy(logits.flatten(0, 1), targets.flatten())

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val_bits", self.training_step(batch, batch_idx) / math.log(2), batch_size=len(batch[0]))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), self.lr)


class WatchBits(Watch):
    """Validation bits per byte in the place of an accuracy."""

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        bits = trainer.callback_metrics["val_bits"].item()
        self.epochs.append({"samples": self.samples_seen, "updates": trainer.global_step, "val_bits": bits})


def train(config: Config, data_dir: str | None = None) -> dict[str, Any]:
    """Make one run; ``data_dir`` is not needed."""
    begin, cpu_begin = time.perf_counter(), time.process_time()
    seed_everything(config.seed, verbose=False)
    module = ByteModel(config.lr, config.hidden)
    training, validation = text()
    train_loader: DataLoader[Any] = DataLoader(sequences(training, config.train_size), config.batch_size, shuffle=True)
    val_loader: DataLoader[Any] = DataLoader(sequences(validation, config.val_size), 500)
    watch = WatchBits(config.epochs * config.train_size, CURVE_POINTS)
    mode, _, rule = config.schedule.partition(", ")
    ramp = BatchSizeRamp(
        StepRamp(config.milestones, config.factor, mode),  # type: ignore[arg-type]
        config.train_size // 10,
        MAX_MICRO_BATCH_SIZE,
        "linear" if rule else "sqrt",
    )
    with tempfile.TemporaryDirectory() as folder:
        trainer = quiet_trainer(folder, [ramp, watch], max_epochs=config.epochs, num_sanity_val_steps=0)
        trainer.fit(module, train_loader, val_loader)
    return {
        "config": facts(config),
        "updates": trainer.global_step,
        "diverged": watch.diverged,
        "seconds": round(time.perf_counter() - begin, 2),
        "cpu_seconds": round(time.process_time() - cpu_begin, 2),
        "train_curve": watch.curve,
        "epochs": watch.epochs,
        "environment": environment(),
    }


# ---------------------------------------------------------------------- the command
def seconds(config: Config) -> float:
    """CPU time of a run."""
    return CPU_SECONDS_PER_BYTE * config.bytes * config.epochs * config.train_size


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs that are missing; write and print the table and the picture."""
    options = command_line(__doc__, "eight times the text", FOLDER, arguments)
    train_size = 40_000 if options.full else 5_000
    experiment = Experiment[Config].from_options(options, train, seconds)
    tuning = tuning_configs(train_size)
    if options.dry_run:
        tuned = experiment.records(tuning)
        lr = best_learning_rate(tuned) if len(tuned) == len(tuning) else LEARNING_RATES[1]
        experiment.show([*tuning, *configs(lr, train_size)])
        return
    tuned = experiment.make(tuning, 'tuning of "decay"')
    lr = best_learning_rate(tuned)
    print(f"best lr is {lr:g}", flush=True)
    compared = experiment.make(configs(lr, train_size), "schedules")
    name = "batch_size_ramp_text_full" if options.full else "batch_size_ramp_text"
    report.write(options.results.parent / name, tuned, compared, options.full)


if __name__ == "__main__":
    main()
