"""What our callbacks cost: step time with them attached against the bare Trainer, in turn, in one process.

    python -m benchmarks.overhead

One run of the small CNN (batch 128 of 28 x 28 images) in which our callbacks are taken out of the Trainer's list and
put back every few steps, in random order within each pair of blocks, so that what else the machine does hits both
alike. Printed: the median of the pairs' ratios with a 95 % interval (bootstrap over pairs), of wall time and of this
process's CPU time (which other work disturbs less), and the same for blocks that are both bare: the noise of the
method. One thread, so that torch's threads do not wait for each other on a busy machine. One JSON in
``benchmarks/results/overhead/``.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import platform
import random
import statistics
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader, TensorDataset

from examples import Classifier, SmallCNN
from lightning_lr import AdaptiveWarmup, Cosine, CurveRamp, LearningRateScaling, LearningRateSchedule
from lightning_lr.callbacks import BatchSizeRamp

RESULTS = Path(__file__).parent / "results" / "overhead"
WARMUP_STEPS = 20

ARMS: dict[str, Callable[[], list[Callback]]] = {
    "bare against bare": lambda: [],
    "LearningRateSchedule": lambda: [LearningRateSchedule(Cosine(warmup=0.1))],
    "LearningRateScaling": lambda: [LearningRateScaling(64, warmup_epochs=0.5)],
    "LearningRateSchedule + LearningRateScaling": lambda: [
        LearningRateSchedule(Cosine(warmup=0.1)),
        LearningRateScaling(64, warmup_epochs=0.5),
    ],
    # two tests at most, which the median does not see: what one costs is in adaptive_warmup_cost
    "AdaptiveWarmup, climbing": lambda: [
        AdaptiveWarmup(1e-5, 1e-3, max_warmup=0.99, confidence=1 - 1e-12, patience=1, check_every=400)
    ],
    "BatchSizeRamp, constant": lambda: [BatchSizeRamp(CurveRamp(Cosine(floor=1.0)))],
}


class Alternate(Callback):
    """Takes the callbacks under test out and in, block by block, and times each block.

    Args:
        tested: the callbacks under test.
        pairs: pairs of blocks, one with and one without.
        block: updates in a block.
    """

    def __init__(self, tested: list[Callback], pairs: int, block: int) -> None:
        self.tested = tested
        self.block = block
        order = random.Random(1)
        self.blocks = [attached for _ in range(pairs) for attached in order.sample([True, False], 2)]
        self.seconds: list[tuple[float, float]] = []
        self._all: list[Callback] = []
        self._start = (0.0, 0.0)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._all = list(trainer.callbacks)  # type: ignore[attr-defined]

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        done = trainer.global_step - WARMUP_STEPS
        if done < 0 or done % self.block:
            return
        now = (time.perf_counter(), time.process_time())
        if done:
            self.seconds.append((now[0] - self._start[0], now[1] - self._start[1]))
        if len(self.seconds) < len(self.blocks):
            attached = self.blocks[len(self.seconds)]
            # a new list: Lightning is walking through the old one
            trainer.callbacks = [c for c in self._all if attached or c not in self.tested]  # type: ignore[attr-defined]
        self._start = (time.perf_counter(), time.process_time())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.callbacks = self._all  # type: ignore[attr-defined]

    def ratios(self) -> list[tuple[float, float]]:
        """With over without, of wall and of CPU time, pair by pair."""
        found = []
        for index in range(0, len(self.blocks), 2):
            with_us, without = (index, index + 1) if self.blocks[index] else (index + 1, index)
            pair = zip(self.seconds[with_us], self.seconds[without], strict=True)
            found.append(tuple(ours / bare for ours, bare in pair))
        return found  # type: ignore[return-value]

    def bare_ms(self) -> float:
        """Median wall time of a bare step."""
        bare = [wall for (wall, _), attached in zip(self.seconds, self.blocks, strict=True) if not attached]
        return 1e3 * statistics.median(bare) / self.block


def median_with_interval(ratios: Sequence[float]) -> dict[str, float]:
    """Median and its 95 % bootstrap interval."""
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[-51]}


def measure(name: str, pairs: int, block: int, with_logger: bool) -> dict[str, Any]:
    """One run with one set of callbacks."""
    tested = ARMS[name]()
    alternate = Alternate(tested, pairs, block)
    steps = WARMUP_STEPS + 2 * pairs * block
    data = TensorDataset(torch.randn(128 * 20, 1, 28, 28), torch.randint(10, (128 * 20,)))
    with TemporaryDirectory() as folder:
        trainer = Trainer(
            max_epochs=-(-steps // 20),
            max_steps=steps,
            devices=1,
            callbacks=[alternate, *tested],
            logger=CSVLogger(folder) if with_logger else False,
            default_root_dir=folder,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(Classifier(SmallCNN(), lr=0.01), DataLoader(data, batch_size=128))
    wall, cpu = zip(*alternate.ratios(), strict=True)
    row = {
        "wall": median_with_interval(wall),
        "cpu": median_with_interval(cpu),
        "bare_ms": alternate.bare_ms(),
    }
    shown = "  ".join(
        f"{c} {row[c]['median']:.4f} [{row[c]['low']:.4f}, {row[c]['high']:.4f}]" for c in ("wall", "cpu")
    )
    print(
        f"{name:44s} {'CSVLogger' if with_logger else 'no logger'}  {shown}  bare {row['bare_ms']:.2f} ms", flush=True
    )
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=301, help="pairs of blocks per row")
    parser.add_argument("--block", type=int, default=2, help="updates per block")
    parser.add_argument("--only", choices=ARMS, help="measure this row anew and keep the others of the file")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    result: dict[str, Any] = {
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU {platform.machine()}",
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    path = RESULTS / f"{str(result['device']).replace(' ', '_')}.json"
    before = json.loads(path.read_text()) if arguments.only and path.exists() else {}
    for with_logger in (False, True):
        logger = "CSVLogger" if with_logger else "no logger"
        result[logger] = before.get(logger, {})
        for name in [arguments.only] if arguments.only else ARMS:
            row = measure(name, arguments.pairs, arguments.block, with_logger)
            result[logger][name] = {**row, "pairs": arguments.pairs, "block": arguments.block}
    RESULTS.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
