"""What our callbacks cost: CPU time of an update with them against the bare Trainer's, in turn, in one process.

    python -m benchmarks.overhead_table

Every callback alone, four together, and the callbacks of every recipe in ``configs/``, on AdamW and networks of linear
layers whose bare step takes about 1, 5 and 30 ms on an idle core, with 1, 14 and 50 parameter groups.
``GradientNoiseScale``, which compares micro-batches and does nothing in updates of one, makes updates of two here, and
is compared with a bare Trainer that does. Each is a Trainer in a thread of its own; they take turns of a few updates,
in random order within a round, so that what else the machine does hits all alike. The bare Trainer has the callback
that waits, and no other; one and four callbacks that do nothing stand in the table for what Lightning's calls alone
cost. A search of the learning rate, which comes before the first update, is not in it, nor is ``GhostBatchNorm``: these
networks have no batch norm. Printed: medians of the rounds' differences and ratios with 95 % intervals (bootstrap over
rounds); "bare again" is what the measurement itself is worth. Apart from that, one update of each is profiled:
operations that compute something (kernels, on a GPU), and what is kept between updates. One thread. One JSON per cell
in ``benchmarks/results/overhead_table/cells``; what is there is not measured again.
"""

from __future__ import annotations

import argparse
import gc
import logging
import os
import statistics
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader, TensorDataset

import lightning_lr
from benchmarks._common import ResultStore, environment, markdown_table
from benchmarks.overhead import median_with_interval
from benchmarks.overhead_turns import take_turns
from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    Cosine,
    CurveRamp,
    GradientNoiseScale,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
)
from lightning_lr.activations.compression.cpu_kernels import cpu_kernels

RESULTS = Path(__file__).parent / "results" / "overhead_table"
CONFIGS = Path(__file__).parent.parent / "configs"
UPDATES = 1_000_000
"""Of the runs, as planned; they end when all turns are taken."""

BARE, AGAIN, ONE_GROUP = "bare", "bare again", "bare, all in one group"
BARE_OF_TWO, NOISE = "bare, two micro-batches an update", "GradientNoiseScale"
OF_TWO = (BARE_OF_TWO, NOISE)
"""Arms whose updates are of two micro-batches."""
EMPTY, FOUR_EMPTY = "an empty callback", "four empty callbacks"
FOUR = "schedule + layer-wise + hypergradient + normalized decay"
Make = Callable[[], list[Callback]]

ALONE: dict[str, Make] = {
    "LearningRateSchedule": lambda: [LearningRateSchedule(Cosine(warmup=0.1))],
    "LearningRateScaling": lambda: [LearningRateScaling(8, warmup_epochs=0.5)],
    "LayerwiseLRDecay": lambda: [LayerwiseLRDecay(0.9)],
    "NormalizedWeightDecay": lambda: [NormalizedWeightDecay()],
    "HypergradientDescent": lambda: [HypergradientDescent(rule="normalized")],
    # two tests at most, which the median does not see: what one costs is in adaptive_warmup_cost
    "AdaptiveWarmup, climbing": lambda: [
        AdaptiveWarmup(1e-5, 1e-3, max_warmup=0.99, confidence=1 - 1e-12, patience=1, check_every=10_000)
    ],
    "BatchSizeRamp, constant": lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))],
    NOISE: lambda: [GradientNoiseScale()],
    FOUR: lambda: [
        LearningRateSchedule(Cosine(warmup=0.1)),
        LayerwiseLRDecay(0.9),
        HypergradientDescent(rule="normalized"),
        NormalizedWeightDecay(),
    ],
}


@dataclass(frozen=True)
class Cell:
    """One size of step and number of groups; ``layers`` linear layers have twice as many tensors."""

    name: str
    layers: int
    width: int
    batch: int
    groups: int
    block: int
    rounds: int = 40


CELLS = (
    # the step of 3.5 ms (on an idle core) for which the four together have a target
    Cell("target", 6, 160, 64, 12, 4, 150),
    Cell("small_1", 7, 32, 16, 1, 4),
    Cell("small_14", 7, 32, 16, 14, 4),
    Cell("large_14", 7, 384, 256, 14, 1),
    Cell("small_50", 25, 32, 16, 50, 3),
    Cell("middle_14", 7, 160, 64, 14, 2),
    Cell("large_1", 7, 384, 256, 1, 1),
    Cell("middle_1", 7, 160, 64, 1, 2),
    Cell("middle_50", 25, 96, 32, 50, 2),
    Cell("large_50", 25, 224, 160, 50, 1),
)


class Linears(LightningModule):
    """Linear layers whose tensors are dealt out to groups; with one tensor in each, as layer-wise decay makes them."""

    def __init__(self, cell: Cell) -> None:
        super().__init__()
        layers = [layer for _ in range(cell.layers) for layer in (nn.Linear(cell.width, cell.width), nn.ReLU())]
        self.net = nn.Sequential(*layers)
        self.groups = cell.groups

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return self.net(batch[0]).square().mean()  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.AdamW:
        parameters = list(self.net.parameters())
        groups = [{"params": parameters[index :: self.groups]} for index in range(self.groups)]
        for index, group in enumerate(groups if self.groups > 1 else []):
            group["weight_decay"] = 0.0 if index % 2 else 0.01  # type: ignore[assignment]  # biases have none
        return torch.optim.AdamW(groups, lr=1e-3)


def recipes() -> dict[str, Make]:
    """The callbacks of this package in every configuration, by its name."""
    found: dict[str, Make] = {}
    for path in sorted(CONFIGS.glob("*.yaml")):
        given = (yaml.safe_load(path.read_text(encoding="utf-8")).get("trainer") or {}).get("callbacks") or []
        own = [entry for entry in given if hasattr(lightning_lr, entry["class_path"])]
        own = [entry for entry in own if entry["class_path"] != "GhostBatchNorm"]  # there are no batch norms here
        if own and not any(entry["class_path"].endswith("LearningRateSearch") for entry in own):
            found[path.name] = lambda own=own: [_made(entry) for entry in own]  # type: ignore[misc]
    return found


def _made(value: Any) -> Any:
    if isinstance(value, dict) and "class_path" in value:
        arguments = {key: _made(argument) for key, argument in value.get("init_args", {}).items()}
        return getattr(lightning_lr, value["class_path"].rpartition(".")[2])(**arguments)
    if isinstance(value, list):
        return [_made(entry) for entry in value]
    if isinstance(value, str) and isinstance(getattr(lightning_lr, value, None), type):
        return getattr(lightning_lr, value)()  # a class by its name alone
    return value


def starter(cell: Cell, make: Make, accumulation: int = 1) -> Callable[[Callback], None]:
    """What makes a Trainer with these callbacks and the one that it is given, and fits."""

    def start(waiting: Callback) -> None:
        data = TensorDataset(torch.randn(cell.batch * 50, cell.width))
        trainer = Trainer(
            max_epochs=UPDATES // 50,
            accumulate_grad_batches=accumulation,
            accelerator="auto",
            devices=1,
            callbacks=[*make(), waiting],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Linears(cell), DataLoader(data, batch_size=cell.batch))

    return start


# ---------------------------------------------------------------------- one update, profiled
class Profiled(Callback):
    """Profiles the fourth update and looks at what is kept after it."""

    VIEWS = ("view", "as_strided", "detach", "select", "slice", "t", "transpose", "unsqueeze", "squeeze", "expand",
             "reshape", "alias", "empty", "empty_like", "empty_strided", "resize_", "split", "permute", "item",
             "_local_scalar_dense", "set_", "lift_fresh", "is_nonzero", "result_type", "unbind", "flatten")  # fmt: skip

    def __init__(self) -> None:
        self.operations = self.kept = 0
        self._profile: profile | None = None

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step == 3 and self._profile is None:
            kinds = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
            self._profile = profile(activities=kinds, acc_events=True)
            self._profile.start()
        elif trainer.global_step == 4 and self._profile is not None:
            self._profile.stop()
            events = self._profile.events() or []
            kernels = [event for event in events if event.device_type != torch.autograd.DeviceType.CPU]
            leaves = [
                event
                for event in events
                if event.name.startswith("aten::")
                and not any(child.name.startswith("aten::") for child in event.cpu_children)
                and event.name.removeprefix("aten::") not in self.VIEWS
            ]
            self.operations = len(kernels or leaves)
            gc.collect()
            held = [found for found in gc.get_objects() if type(found) in (Tensor, nn.Parameter)]
            storages = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
            self.kept = sum(storages.values())
            trainer.should_stop = True


def profiled(cell: Cell, make: Make, accumulation: int) -> tuple[int, int]:
    """Operations of an update that compute something, and bytes of tensors after it."""
    gc.collect()
    seen = Profiled()
    starter(cell, make, accumulation)(seen)
    return seen.operations, seen.kept


# ---------------------------------------------------------------------- a cell
def arms_of(cell: Cell) -> dict[str, Make]:
    """What is compared; layer-wise decay makes groups of its own unless there is one for each tensor."""
    fixed: dict[str, Make] = {BARE: list, AGAIN: list, EMPTY: lambda: _empty(1), FOUR_EMPTY: lambda: _empty(4)}
    arms = {**fixed, **ALONE, BARE_OF_TWO: list, **recipes()}
    if cell.name == "target":
        arms = {**fixed, ONE_GROUP: list, **ALONE, BARE_OF_TWO: list}
    layered = cell.groups == 2 * cell.layers
    return {
        name: make for name, make in arms.items() if layered or not any(isinstance(c, LayerwiseLRDecay) for c in make())
    }


def _empty(number: int) -> list[Callback]:
    return [type(f"Empty{index}", (Callback,), {})() for index in range(number)]


def measure(cell: Cell, arms: dict[str, Make]) -> dict[str, Any]:
    """Cost of each arm in a cell; those that are refused, with the reason."""
    refused, operations = {}, {}
    for name, make in arms.items():
        try:
            operations[name] = profiled(_cell_of(name, cell), make, _accumulation(name))
        except Exception as error:  # a recipe for another network or optimizer
            refused[name] = str(error).splitlines()[0]
    starts = {name: starter(_cell_of(name, cell), arms[name], _accumulation(name)) for name in operations}
    seconds = take_turns(starts, cell.rounds, cell.block)
    rows = {}
    for name, own in seconds.items():
        reference = BARE_OF_TWO if name == NOISE else BARE
        bare = seconds[reference]
        rows[name] = {
            "microseconds": median_with_interval([1e6 * (a - b) for a, b in zip(own, bare, strict=True)]),
            "ratio": median_with_interval([a / b for a, b in zip(own, bare, strict=True)]),
            "operations": operations[name][0] - operations[reference][0],
            "kept_bytes": operations[name][1] - operations[reference][1],
        }
    return {
        "config": asdict(cell),
        "environment": environment(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU",
        "load": os.getloadavg()[0],
        "bare_ms": 1e3 * statistics.median(seconds[BARE]),
        "bare_operations": operations[BARE][0],
        "rows": rows,
        "refused": refused,
    }


def _accumulation(arm: str) -> int:
    return 2 if arm in OF_TWO else 1


def _cell_of(arm: str, cell: Cell) -> Cell:
    return replace(cell, groups=1) if arm == ONE_GROUP else cell


# ---------------------------------------------------------------------- the table
def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown, one table per cell."""
    text = "# What our callbacks cost\n\n`python -m benchmarks.overhead_table`: CPU time over the bare Trainer's.\n"
    for record in records:
        cell = record["config"]
        text += (
            f"\n## {cell['layers']} linear layers of {cell['width']}, batch {cell['batch']}, {cell['groups']} "
            f"{'group' if cell['groups'] == 1 else 'groups'}: bare {record['bare_ms']:.1f} ms\n\n"
        )
        body = []
        for name, row in record["rows"].items():
            if name != BARE:
                us, ratio = row["microseconds"], row["ratio"]
                body.append(
                    [
                        name,
                        f"{us['median']:.0f} [{us['low']:.0f}, {us['high']:.0f}]",
                        f"{ratio['median']:.3f} [{ratio['low']:.3f}, {ratio['high']:.3f}]",
                        f"{row['operations']}",
                        f"{row['kept_bytes'] / 1024:.0f}",
                    ]
                )
        text += markdown_table(["", "added, µs", "of the bare update", "operations added", "kept, KiB"], body)
        if record["refused"]:
            text += f"\nRefused for this network: {', '.join(sorted(record['refused']))}.\n"
    machine = records[0]["environment"]["device"] if records else ""
    loads = sorted(record["load"] for record in records)
    return text + (
        f"\n{machine}, one thread, load of the machine {loads[0]:.0f} to {loads[-1]:.0f}.\n" if loads else ""
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=[cell.name for cell in CELLS], nargs="+", help="these cells")
    parser.add_argument("--rounds", type=int, help="turns of each arm")
    parser.add_argument("--arms", nargs="+", help="these arms only")
    parser.add_argument("--out", type=Path, default=RESULTS / "cells", help="folder of the JSON files")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.set_num_threads(1)
    cpu_kernels()  # compiled now, if they never were: a short run of small tensors does without
    store, records = ResultStore(arguments.out), []
    for cell in CELLS:
        if arguments.only and cell.name not in arguments.only:
            continue
        if arguments.rounds:
            cell = Cell(**{**asdict(cell), "rounds": arguments.rounds})
        record = store.load(cell.name, asdict(cell))
        if record is None:
            arms = arms_of(cell)
            chosen = arguments.arms and [BARE, AGAIN, BARE_OF_TWO, *arguments.arms]
            record = measure(cell, {name: make for name, make in arms.items() if not chosen or name in chosen})
            store.save(cell.name, record)
        records.append(record)
        print(table([record]), flush=True)
    if not arguments.only:
        arguments.out.parent.with_suffix(".md").write_text(table(records), encoding="utf-8")


if __name__ == "__main__":
    main()
