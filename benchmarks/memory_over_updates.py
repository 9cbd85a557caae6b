"""Memory while a run gets long: 20 000 updates under every callback, alone and together.

    python -m benchmarks.memory_over_updates [--updates 20000] [--only bare "all together" ...] [--report]

Each method trains a small net for so many updates in a process of its own, with a CSV logger, so that journals are
written. Every tenth of the run the resident memory and the number of Python objects are read. Nothing may grow: between
the second tenth, when every buffer has been made, and the end. One JSON per method in
``benchmarks/results/memory_over_updates``, so that it can be stopped and continued, and ``memory_over_updates.md``.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import multiprocessing
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr as lr
from benchmarks._common import RESULTS, ResultStore, environment, markdown_table, write_keeping_findings

EPOCH = 200
"""Updates in an epoch."""
METHODS: dict[str, Callable[[], list[Callback]]] = {
    "bare": list,
    "all together": lambda: [
        lr.LearningRateSchedule(lr.Cosine(warmup=0.1, floor=0.1)),
        lr.LearningRateScaling(2, warmup_epochs=1),
        lr.LayerwiseLRDecay(0.9),
        lr.GradualUnfreezing(),
        lr.HypergradientDescent(1e-6),
        lr.NormalizedWeightDecay(),
        lr.GradientNoiseScale(),
        lr.GhostBatchNorm(2),
        lr.ActivationCompression(8, group_size=16),
    ],
    "LearningRateSchedule": lambda: [lr.LearningRateSchedule(lr.Cosine(warmup=0.1, floor=0.1))],
    "LearningRateScaling": lambda: [lr.LearningRateScaling(2, warmup_epochs=1)],
    "LayerwiseLRDecay": lambda: [lr.LayerwiseLRDecay(0.9)],
    "GradualUnfreezing": lambda: [lr.GradualUnfreezing()],
    "HypergradientDescent": lambda: [lr.HypergradientDescent(1e-6)],
    "NormalizedWeightDecay": lambda: [lr.NormalizedWeightDecay()],
    "GradientNoiseScale": lambda: [lr.GradientNoiseScale()],
    "GhostBatchNorm": lambda: [lr.GhostBatchNorm(2)],
    "ActivationCompression": lambda: [lr.ActivationCompression(8, group_size=16)],
    "AdaptiveWarmup": lambda: [lr.AdaptiveWarmup(1e-5, 1e-2)],
    "LearningRateSearch": lambda: [lr.LearningRateSearch(budget=0.02)],
    "BatchSizeRamp": lambda: [lr.BatchSizeRamp(lr.CurveRamp(lr.Cosine(floor=0.5)), max_batch_size=8)],
}


class Small(LightningModule):
    """A small net with batch norm, so that every method has something to do."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 1))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss: Tensor = nn.functional.mse_loss(self.net(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=0.01)


class Watch(Callback):
    """Reads memory and objects at every tenth of the run."""

    def __init__(self, updates: int) -> None:
        self.every = updates // 10
        self.found: list[dict[str, float]] = []

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step % self.every == 0 and trainer.global_step // self.every > len(self.found):
            gc.collect()
            pages = int(Path("/proc/self/statm").read_text().split()[1])
            self.found.append(
                {
                    "updates": trainer.global_step,
                    "mebibytes": pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
                    "objects": len(gc.get_objects()),
                    "seconds": time.process_time(),
                }
            )


def train(name: str, updates: int, out: str) -> None:
    """One run, in a process of its own."""
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    torch.manual_seed(0)
    x = torch.randn(4 * EPOCH, 8)
    data = DataLoader(TensorDataset(x, x.sum(1, keepdim=True).sin()), batch_size=4, drop_last=True)
    watch = Watch(updates)
    accumulation = 2 if "GradientNoiseScale" in name or name == "all together" else 1
    limit = {"max_steps": updates} if "Ramp" in name else {"max_epochs": updates * accumulation // EPOCH}
    with tempfile.TemporaryDirectory() as folder:
        Trainer(
            accelerator="cpu", devices=1, logger=CSVLogger(folder), enable_checkpointing=False, log_every_n_steps=100,
            enable_progress_bar=False, enable_model_summary=False, accumulate_grad_batches=accumulation,
            callbacks=[*METHODS[name](), watch], **limit,
        ).fit(Small(), data)  # type: ignore[arg-type]  # fmt: skip
    Path(out).write_text(json.dumps(watch.found), encoding="utf-8")


def grown(found: Sequence[dict[str, float]], what: str) -> float:
    """From the second tenth of a run to its end."""
    return found[-1][what] - found[1][what]


def table(records: Sequence[dict[str, Any]]) -> str:
    """What all methods came to, as Markdown."""
    order = {name: index for index, name in enumerate(METHODS)}
    body = []
    for record in sorted(records, key=lambda record: order[record["config"]["method"]]):
        found = record["found"]
        half = len(found) // 2
        early, late = found[half - 1]["seconds"] - found[0]["seconds"], found[-1]["seconds"] - found[half]["seconds"]
        body.append(
            [
                record["config"]["method"],
                f"{record['config']['updates']:,}",
                f"{found[1]['mebibytes']:.1f}",
                f"{grown(found, 'mebibytes'):+.1f}",
                f"{grown(found, 'objects'):+.0f}",
                f"{late / early:.2f}",
            ]
        )
    headings = ["method", "updates", "MiB after a fifth", "MiB more at the end", "objects more at the end",
                "CPU time of the later half over the earlier"]  # fmt: skip
    return (
        "# Memory over a long run\n\n`python -m benchmarks.memory_over_updates`: resident memory and Python objects "
        "of one process per method, read at every tenth of the run.\n\n" + markdown_table(headings, body)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--updates", type=int, default=20_000)
    parser.add_argument("--only", nargs="+", choices=list(METHODS), default=list(METHODS))
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of the records there are")
    parser.add_argument("--results", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    store = ResultStore(options.results / "memory_over_updates")
    for name in [] if options.report else options.only:
        config, file = {"method": name, "updates": options.updates}, name.replace(" ", "_")
        if store.load(file, config) is not None:
            continue
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/found.json"
            process = multiprocessing.get_context("spawn").Process(target=train, args=(name, options.updates, out))
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(f"{name}: ended with {process.exitcode}")
            found = json.loads(Path(out).read_text(encoding="utf-8"))
        store.save(file, {"config": config, "environment": environment(), "found": found})
        print(name, f"{grown(found, 'mebibytes'):+.1f} MiB, {grown(found, 'objects'):+.0f} objects", flush=True)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(store.folder.glob("*.json"))]
    write_keeping_findings(options.results / "memory_over_updates.md", table(records))
    print(table(records))
    return 0


if __name__ == "__main__":
    sys.exit(main())
