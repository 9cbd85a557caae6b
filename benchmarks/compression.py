"""Compressed activations: memory, speed of packing, and accuracy on Fashion-MNIST.

    python -m benchmarks.compression memory | speed | accuracy [--data-dir FOLDER] [--dry-run] [--full] [--jobs 2]

``memory`` and ``speed`` print a table each and write it to ``benchmarks/results/compression_<part>.md``; ``speed`` ends
after some minutes, with what it has. ``accuracy``
trains a residual network and a vision transformer with activations in full precision and at 8, 4, auto-4 and 2 bits,
from the same seeds; one JSON per run in ``benchmarks/results/compression/``, so that it can be stopped and continued.
What is printed is the test accuracy and its difference from full precision, paired by seed, with 90 % intervals.

GACT, Liu et al. 2022, arXiv 2206.11357.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning import Callback, Trainer, seed_everything

from benchmarks._common import (
    RESULTS,
    ResultStore,
    command_line,
    environment,
    markdown_table,
    paired_interval,
    t_interval,
    write_keeping_findings,
)
from benchmarks._experiment import Experiment, facts
from benchmarks.compression_memory import ARMS, compressor_of, peak_bytes, problems, saved
from examples.classifier import Classifier
from examples.data import FashionMNISTDataModule
from examples.models import ResNet, ViT
from lightning_lr import ActivationCompression, Cosine, LearningRateSchedule
from lightning_lr.activations.compression import Size, Tally, kernels

FOLDER = RESULTS / "compression"
MODELS: dict[str, tuple[Callable[[], torch.nn.Module], float]] = {
    "resnet": (lambda: ResNet(8), 0.1),
    "vit": (lambda: ViT(depth=3), 0.05),
}
SECONDS_PER_RUN = 25.0


# ---------------------------------------------------------------------- memory
SHOWN = 6
"""Lines of a model in the table of shares."""


def memory() -> str:
    """The tables of saved bytes and peaks, and of what the bytes that are held at 4 bit consist of."""
    headings = ["model", "bits", "fp32 saved", "kept", "all saved", "rounded", "bf16 saved", "kept", "all saved",
                "rounded", "peak fp32", "peak"]  # fmt: skip
    body, shares = [], []
    for problem in problems():
        plain_peak = peak_bytes(problem, None)
        print(problem.name, flush=True)
        for arm in ARMS:
            compressor = compressor_of(problem, arm)
            row = [problem.name, arm]
            for amp in (False, True):
                tally = saved(problem, compressor, amp)
                rounded = [size for codec, size in tally.by("codec").items() if codec.endswith("bit")]
                raw, held = (sum(size[i] for size in rounded) for i in (0, 1))
                row += [_mb(tally.raw_bytes), _mb(tally.held_bytes), f"{tally.ratio:.2f}x", f"{raw / held:.2f}x"]
                if arm == "4" and not amp:
                    shares += _shares(problem.name, tally)
            peak = peak_bytes(problem, arm)
            row += [_mb(plain_peak), f"{_mb(peak)} ({plain_peak / peak:.2f}x less)"]
            body.append(row)
    parts = ["model", "operation", "codec", "fp32 saved", "kept", "share of what is kept"]
    return (
        f"{markdown_table(headings, body)}\nWhat is kept at 4 bit consists of, the largest parts:\n\n"
        f"{markdown_table(parts, shares)}"
    )


def _shares(model: str, tally: Tally) -> list[list[str]]:
    by_use: dict[tuple[str, str], Size] = {}
    for part, size in tally.parts.items():
        before = by_use.get((part.operation, part.codec), Size(0, 0))
        by_use[part.operation, part.codec] = Size(before.raw + size.raw, before.held + size.held)
    largest = sorted(by_use.items(), key=lambda item: -item[1].held)[:SHOWN]
    return [
        [model, operation, codec, _mb(size.raw), _mb(size.held), f"{size.held / tally.held_bytes:.1%}"]
        for (operation, codec), size in largest
    ]


def _mb(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


# ---------------------------------------------------------------------- speed
SPEED_SECONDS = 200.0
"""No row is begun after so long."""


def speed(numbers: int = 2**22, seconds: float = 2.0) -> str:
    """The table of packing speeds: bytes of fp32 per second of CPU time on one thread, the best of what ``seconds`` of
    CPU time allow."""
    torch.set_num_threads(1)
    begin = time.monotonic()
    x = torch.randn(numbers)
    target = torch.empty_like(x)

    def rate(action: Callable[[], Any]) -> float:
        action()
        spent: list[float] = []
        while sum(spent) < seconds:
            start = time.process_time()
            action()
            spent.append(time.process_time() - start)
        return x.nbytes / 1e9 / min(spent)

    headings = ["how", "bits", "pack GB/s", "unpack GB/s", "both GB/s"]
    body = [["copy", "", "", "", f"{rate(lambda: target.copy_(x)):.2f}"]]
    print(*body[-1], flush=True)
    left_out = []
    for bits, kind in ((bits, kind) for bits in (4, 8, 2) for kind in ("native", "eager")):
        if time.monotonic() - begin > SPEED_SECONDS:
            left_out.append(f"{kind} {bits} bit")
            continue
        chosen = kernels.Kernels(kind)
        packed = chosen.pack(x, bits, 256, (1, 2))
        pack = rate(lambda: chosen.pack(x, bits, 256, (1, 2)))  # noqa: B023
        unpack = rate(lambda: chosen.unpack(packed))  # noqa: B023
        both = 1 / (1 / pack + 1 / unpack)
        body.append([kind, str(bits), f"{pack:.2f}", f"{unpack:.2f}", f"{both:.2f}"])
        print(*body[-1], flush=True)
    load = f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    record = {"rows": [dict(zip(headings, row, strict=True)) for row in body], "load": load}
    ResultStore(FOLDER).save("speed", {"config": {}, "result": record, "environment": environment()})
    late = f" Not measured in time: {', '.join(left_out)}." if left_out else ""
    return f"{markdown_table(headings, body)}\nLoad of the machine while it was measured: {load}.{late}\n"


# ---------------------------------------------------------------------- accuracy
@dataclass(frozen=True)
class Run:
    """One training."""

    model: str
    arm: str
    seed: int
    train_size: int
    batch_size: int
    epochs: int

    @property
    def name(self) -> str:
        """A file name that no other run has."""
        size = f"images{self.train_size}_batch{self.batch_size}_epochs{self.epochs}"
        return f"{self.model}_{self.arm}_{size}_seed{self.seed}"

    @property
    def label(self) -> str:
        """The run in words."""
        return f"{self.model}, {self.arm}, seed {self.seed}"


def grid(full: bool) -> list[Run]:
    """All runs, seed by seed, so that a grid that is stopped has whole pairs."""
    seeds, size, batch, epochs = (range(5), 55_000, 128, 10) if full else (range(3), 5_120, 64, 4)
    arms = ("fp32", *ARMS)
    return [Run(model, arm, seed, size, batch, epochs) for seed in seeds for model in MODELS for arm in arms]


def train(run: Run, data_dir: str | None) -> dict[str, Any]:
    """Make one run."""
    kernels.cpu_kernels()  # compiled before the time begins
    seed_everything(run.seed, verbose=False)
    make, lr = MODELS[run.model]
    module = Classifier(make(), lr=lr)
    data = FashionMNISTDataModule(
        batch_size=run.batch_size, data_dir=data_dir, train_size=run.train_size, seed=run.seed, val_size=2_000
    )
    callbacks: list[Callback] = [LearningRateSchedule(Cosine(warmup=0.1))]
    record = Ratio()
    if run.arm != "fp32":
        bits: Any = "auto" if run.arm.startswith("auto") else int(run.arm)
        callbacks += [ActivationCompression(bits, probe_every=100, seed=run.seed), record]
    begin = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            accelerator="cpu", devices=1, max_epochs=run.epochs, callbacks=callbacks, logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            limit_val_batches=0, default_root_dir=folder,
        )  # fmt: skip
        trainer.fit(module, datamodule=data)
        spent = time.process_time() - begin
        (result,) = trainer.test(module, datamodule=data, verbose=False)
    measured = {"accuracy": result["test_acc"], "ratio": record.value, "seconds": spent}
    return {"config": facts(run), "result": measured, "environment": environment()}


class Ratio(Callback):
    """Remembers by how much the last step was compressed."""

    value = 1.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        callback = next(c for c in trainer.callbacks if isinstance(c, ActivationCompression))  # type: ignore[attr-defined]
        if callback.tally is not None:
            self.value = callback.tally.ratio


def accuracy_table(runs: Sequence[Run], experiment: Experiment[Run]) -> str:
    """Accuracies and paired differences of the runs that are there."""
    done = {Run(**record["config"]): record["result"] for record in experiment.records(runs)}
    body = []
    for model in MODELS:
        full = {run.seed: r["accuracy"] for run, r in done.items() if (run.model, run.arm) == (model, "fp32")}
        for arm in ("fp32", *ARMS):
            mine = {run.seed: r for run, r in done.items() if (run.model, run.arm) == (model, arm)}
            if not mine:
                continue
            accuracy = {seed: r["accuracy"] for seed, r in mine.items()}
            common = accuracy.keys() & full.keys()
            lost = paired_interval(accuracy, full, 0.9).text(100, 2, sign=True) if arm != "fp32" and common else ""
            ratio = statistics.fmean(r["ratio"] for r in mine.values())
            seconds = statistics.fmean(r["seconds"] for r in mine.values())
            mean = t_interval(list(accuracy.values()), 0.9).text(100)
            body.append([model, arm, str(len(mine)), mean, lost, f"{ratio:.2f}x", f"{seconds:.0f}"])
    headings = ["model", "bits", "seeds", "test accuracy %", "against fp32", "saved bytes less", "CPU seconds"]
    return f"{len(done)} of {len(runs)} runs made.\n\n{markdown_table(headings, body)}"


def accuracy(arguments: Sequence[str]) -> str:
    """Make the runs that are missing and return the table."""
    options = command_line(__doc__, "five seeds, all images, ten epochs", FOLDER, arguments)
    runs = grid(options.full)
    seconds = SECONDS_PER_RUN * (20 if options.full else 1)
    experiment = Experiment[Run].from_options(options, train, lambda run: seconds)
    experiment.show(runs)
    if not options.dry_run:
        experiment.make(runs, "accuracy")
    return accuracy_table(runs, experiment)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one part and write its table."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parts: dict[str, Callable[[], str]] = {"memory": memory, "speed": speed, "accuracy": lambda: accuracy(words[1:])}
    if words and words[0] in ("-h", "--help"):
        print(__doc__)
        sys.exit()
    if not words or words[0] not in parts:
        sys.exit(f"{__doc__}\ngive one of {', '.join(parts)}")
    table = parts[words[0]]()
    print(table)
    if "--dry-run" not in words:
        where = ", ".join(f"{name} {value}" for name, value in environment().items())
        title = f"# Compressed activations: {words[0]}\n\n`python -m benchmarks.compression {words[0]}`"
        text = f"{title}\n\n{table}\n{where}\n"
        write_keeping_findings(RESULTS / f"compression_{words[0]}.md", text)


if __name__ == "__main__":
    main()
