"""The measured gradient noise scale against the true one, for every way in which the window of an update can be cut.

The mean gradient of m samples is drawn from N(mu, tr(Sigma) / (D m) I) with |mu|^2 = 1, so that the noise scale is
tr(Sigma), whatever the weights are. ``GradientNoiseScale`` measures it in a Trainer, update by update; shown is the
ratio of the means over all measured updates, which is what its moving averages settle at.

    python -m benchmarks.noise_scale_cuts               # writes benchmarks/results/noise_scale_cuts.json and .md
    python -m benchmarks.noise_scale_cuts --only ramp   # cuts with this in their name, printed only
"""

from __future__ import annotations

import argparse
import json
import math
import os
import socket
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from benchmarks._common import RESULTS, environment, markdown_table, quiet_process
from benchmarks._processes import spawn
from lightning_lr import AdaptiveRamp, BatchSizeRamp, GradientNoiseScale

DIMENSION = 2**12
"""For a noise scale of 200; one k times as large is as hard to tell from infinity in k^2 times the dimensions."""
NEVER = AdaptiveRamp(ratio=1e12, check_every=10**6)


@dataclass(frozen=True)
class Cut:
    """One way to cut windows.

    Args:
        name: of the row.
        samples: in an epoch, over all devices.
        batch_size: of the loader.
        accumulation: micro-batches per update.
        epochs: to train.
        true: tr(Sigma), the noise scale.
        micro: ``max_micro_batch_size`` of a ramp that never grows.
        devices: processes.
        special: what else is done, see :func:`trained`.
    """

    name: str
    samples: int
    batch_size: int
    accumulation: int = 1
    epochs: int = 1
    true: float = 200.0
    micro: int | None = None
    devices: int = 1
    special: str = ""


CUTS = [
    Cut("whole windows", 16 * 8 * 60, 16, 8),
    Cut("short last window: 8, 8, 8, 2 micro-batches", 16 * 26, 16, 8, epochs=20),
    Cut("short last micro-batch: 32, 32, 32, 4", 100, 32, 4, epochs=100),
    Cut("both: 8 of 16, then 16, 16, 5", 165, 16, 8, epochs=40),
    Cut("epoch shorter than the accumulation: 3 of 8", 48, 16, 8, epochs=100),
    Cut("ramp: 4, 3, 3", 10 * 120, 10, micro=4),
    Cut("ramp: 4, 3, 3", 10 * 120, 10, micro=4, true=1000.0),
    Cut("ramp: 4, 3, 3", 10 * 120, 10, micro=4, true=10_000.0),
    Cut("ramp: 3, 3, 2, 2", 10 * 120, 10, micro=3, true=1000.0),
    Cut("ramp: 43, 43, 42", 128 * 120, 128, micro=48, true=1000.0),
    Cut("iterable data: 32, 32, 32, 4", 100, 32, 4, epochs=100, special="stream"),
    Cut("accumulation 2, from epoch 1 on 5", 16 * 12, 16, 1, epochs=25, special="scheduler"),
    Cut("training_step returns None for every third", 16 * 8 * 60, 16, 8, special="none"),
    Cut("short last window, clipped by norm", 16 * 26, 16, 8, epochs=20, special="clip norm"),
    Cut("short last window, clipped by value", 16 * 26, 16, 8, epochs=20, special="clip value"),
    Cut("short last window, bf16-mixed", 16 * 26, 16, 8, epochs=20, special="bf16-mixed"),
    Cut("2 devices, whole", 2 * 16 * 120, 16, devices=2),
    Cut("2 devices, short last window: 3, 3, 2", 2 * 16 * 8, 16, 3, epochs=30, devices=2),
    Cut("2 devices, other sizes on each", 0, 0, 4, epochs=30, devices=2, special="unequal"),
]


class Stream(IterableDataset[Any]):
    """Samples without a length."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Any:
        return iter([(torch.zeros(1),)] * self.count)


class Drawn(LightningModule):
    """A loss whose gradient is drawn."""

    def __init__(self, true: float, skips: bool, seed: int) -> None:
        super().__init__()
        self.dimension = DIMENSION if true <= 200 else 2**16 if true <= 1000 else 2**20
        self.w = torch.nn.Parameter(torch.zeros(self.dimension))
        self.true, self.skips, self.seed = true, skips, seed
        self.draw: torch.Generator | None = None

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor | None:
        if self.skips and batch_idx % 3 == 0:
            return None
        self.draw = self.draw or torch.Generator().manual_seed(100 * self.seed + self.global_rank)
        noise = torch.randn(self.dimension, generator=self.draw)
        gradient = self.dimension**-0.5 + noise * math.sqrt(self.true / (self.dimension * len(batch[0])))
        return torch.dot(self.w, gradient)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-12)


class EachUpdate(Callback):
    """What each measured update says by itself."""

    def __init__(self, noise: GradientNoiseScale) -> None:
        self.noise, self.before = noise, 0
        self.found: list[tuple[float, float]] = []

    def on_train_batch_end(self, *_: Any) -> None:
        estimator = self.noise.estimator
        if estimator.updates > self.before:
            self.before = estimator.updates
            assert estimator.squared_gradient is not None
            assert estimator.variance is not None
            self.found.append((estimator.squared_gradient, estimator.variance))


class _Attached(LightningEnvironment):
    """The processes and their group exist already."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def trained(cut: Cut) -> list[tuple[float, float]]:
    """|G|^2 and tr(Sigma) as each update of a run found them."""
    quiet_process()
    noise = GradientNoiseScale(smoothing=0.0)
    tell = EachUpdate(noise)
    others: list[Callback] = [] if cut.micro is None else [BatchSizeRamp(NEVER, max_micro_batch_size=cut.micro)]
    arguments: dict[str, Any] = {"max_epochs": cut.epochs, "accumulate_grad_batches": cut.accumulation, "devices": 1}
    if cut.devices > 1:
        strategy = DDPStrategy(cluster_environment=_Attached(), process_group_backend="gloo")
        arguments |= {"devices": cut.devices, "strategy": strategy}
    data: Any = TensorDataset(torch.zeros(cut.samples, 1)) if cut.samples else None
    loader: Any = DataLoader(data, batch_size=cut.batch_size) if data is not None else None
    match cut.special:
        case "stream":
            loader = DataLoader(Stream(cut.samples), batch_size=cut.batch_size)
            arguments |= {"max_steps": cut.epochs, "max_epochs": -1}
        case "scheduler":
            others.append(GradientAccumulationScheduler({0: 2, 1: 5}))
        case "clip norm":
            arguments["gradient_clip_val"] = 0.01
        case "clip value":
            arguments |= {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"}
        case "bf16-mixed":
            arguments["precision"] = "bf16-mixed"
        case "unequal":
            rank = torch.distributed.get_rank()
            sizes = ([16, 8, 24, 4, 12, 20], [5, 6, 32, 6, 10, 7], [8, 8, 8, 8, 8, 3], [10, 20, 30, 40, 5, 6])[rank]
            loader = DataLoader([torch.zeros(n, 1) for n in sizes], batch_size=None, collate_fn=lambda x: [x])  # type: ignore[arg-type]
            arguments["use_distributed_sampler"] = False
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        callbacks=[*others, noise, tell], accelerator="cpu", enable_model_summary=False, **quiet, **arguments
    )
    trainer.fit(Drawn(cut.true, cut.special == "none", CUTS.index(cut)), loader)
    return tell.found


def record_of(cut: Cut, found: Sequence[tuple[float, float]]) -> dict[str, Any]:
    """The ratio of the means with its 95 % interval (delta method)."""
    squared, variance = (statistics.fmean(values) for values in zip(*found, strict=True))
    ratio = variance / squared
    rest = [v - ratio * s for s, v in found]
    half = 1.96 * statistics.stdev(rest) / math.sqrt(len(rest)) / abs(squared)
    return {"cut": asdict(cut), "updates": len(found), "found": ratio, "half_width": half, "squared_gradient": squared}


def _work(rank: int, port: int, cuts: Sequence[Cut], out: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=cuts[0].devices)
    records = [record_of(cut, trained(cut)) for cut in cuts]
    if rank == 0:
        Path(out).write_text(json.dumps(records))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def records_of(cuts: Sequence[Cut]) -> list[dict[str, Any]]:
    """Measure, with one process group for each number of devices."""
    torch.set_num_threads(1)
    records = []
    for cut in cuts:
        if cut.devices == 1:
            records.append(record_of(cut, trained(cut)))
            print(row(records[-1]), flush=True)
    for devices in sorted({cut.devices for cut in cuts} - {1}):
        with socket.socket() as free, tempfile.TemporaryDirectory() as folder:
            free.bind(("127.0.0.1", 0))
            port, out = free.getsockname()[1], Path(folder) / "records.json"
            free.close()
            spawn(_work, (port, [cut for cut in cuts if cut.devices == devices], str(out)), nprocs=devices)
            records += json.loads(out.read_text())
            print(*map(row, records[-sum(cut.devices == devices for cut in cuts) :]), sep="\n", flush=True)
    return records


def row(record: dict[str, Any]) -> list[str]:
    """One line of the table."""
    cut = record["cut"]
    within = abs(record["found"] - cut["true"]) <= record["half_width"] * 2.6 / 1.96
    return [
        cut["name"],
        f"{cut['true']:,.0f}",
        f"{record['found']:,.1f} ± {record['half_width']:,.1f}",
        f"{record['squared_gradient']:.3f}",
        str(record["updates"]),
        "yes" if within else "**no**",
    ]


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    headings = ["cut", "true", "found (95 %)", "&#124;G&#124;^2 (1)", "updates", "true within 99 %"]
    return markdown_table(headings, list(map(row, records)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cuts with all of these in their name")
    chosen = parser.parse_args(arguments).only
    records = records_of([cut for cut in CUTS if all(word in cut.name for word in chosen)])
    if not chosen:
        file = RESULTS / "noise_scale_cuts.json"
        file.write_text(json.dumps({"environment": environment(), "cuts": records}, indent=1) + "\n")
        file.with_suffix(".md").write_text(f"{INTRODUCTION}\n{table(records)}")


INTRODUCTION = f"""# The measured gradient noise scale, by how windows are cut

`python -m benchmarks.noise_scale_cuts`: gradients drawn with a known noise scale in {DIMENSION} or more dimensions,
measured by `GradientNoiseScale` in a Trainer; ratio of the means over all measured updates.
"""


if __name__ == "__main__":
    main()
