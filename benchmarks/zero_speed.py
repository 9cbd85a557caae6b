"""Step time of `ZeROStrategy` against Lightning's own `DeepSpeedStrategy` on the same engine settings.

    python -m benchmarks.zero_speed [--rounds 4] [--report]

Two processes on gloo, one thread each, a multilayer perceptron with AdamW in fp32, stages 1, 2 and 3. Both strategies
have an engine in the same process group and train in turn, a few updates at a time, in random order within each pair of
blocks, so that what else the machine does hits both alike. A round is a pair of fresh processes; each is added to
``benchmarks/results/zero_speed.json``, so that it can be stopped and continued (delete the file to begin anew). Printed
and written to ``benchmarks/results/zero_speed.md``: the median over pairs of ours over Lightning's with a 95 % interval
(bootstrap over pairs), of the CPU time of both processes and of wall time; the same for Lightning's against itself,
which is the noise of the method; and the largest difference between the weights that both end with.

Lightning's strategy refuses everything but CUDA. Here it is lifted over its three checks of the device and is unchanged
in all else; accumulation is 1, where both mean the same.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import socket
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.utilities.seed import reset_seed
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from benchmarks._common import RESULTS, environment, markdown_table, one_thread_steady_memory, write_keeping_findings
from benchmarks._processes import spawn
from benchmarks.overhead import median_with_interval
from lightning_lr import ZeROStrategy
from lightning_lr.strategies.zero import engine as zero_engine

WORLD, WARMUP_BLOCKS, STAGES = 2, 3, (1, 2, 3)
ARMS = {"ZeROStrategy against Lightning's": ("ours", "theirs"), "Lightning's against itself": ("theirs", "theirs too")}


# ---------------------------------------------------------------------- the two strategies
class Attached(LightningEnvironment):
    """The processes exist already, and so does their process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


class LiftedDeepSpeed(DeepSpeedStrategy):
    """Lightning's, without its checks of the device."""

    def setup_environment(self) -> None:
        DDPStrategy.setup_environment(self)

    def setup_distributed(self) -> None:
        reset_seed()
        self.set_world_ranks()
        self._init_deepspeed_distributed()

    def _setup_model_and_optimizer(self, *args: Any, **kwargs: Any) -> Any:
        import deepspeed

        initialize = deepspeed.initialize

        def with_rank(*, args: argparse.Namespace, **settings: Any) -> Any:
            args.device_rank = self.local_rank  # a CPU has no index
            return initialize(args=args, **settings)

        with patch.object(deepspeed, "initialize", with_rank):
            return super()._setup_model_and_optimizer(*args, **kwargs)


def strategy(arm: str, stage: Any) -> DeepSpeedStrategy:
    """Either strategy; Lightning's gets the engine settings that ours writes out."""
    common: dict[str, Any] = {
        "cluster_environment": Attached(), "process_group_backend": "gloo", "logging_level": logging.ERROR,
    }  # fmt: skip
    ours = ZeROStrategy(stage=stage, **common)
    if arm == "ours":
        return ours
    assert ours.config is not None
    settings = {key: value for key, value in ours.config.items() if key != "gradient_accumulation_steps"}
    return LiftedDeepSpeed(config={**settings, "gradient_clipping": 0.0}, **common)


# ---------------------------------------------------------------------- what is trained
class Perceptron(LightningModule):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(*(part for _ in range(layers) for part in (nn.Linear(width, width), nn.GELU())))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return (self.body(batch) - batch).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


class OneBatch(Dataset[Tensor]):
    """The same batch as often as asked for, and another on each rank."""

    def __init__(self, batch: int, width: int, times: int) -> None:
        generator = torch.Generator().manual_seed(torch.distributed.get_rank())
        self.batch, self.times = torch.randn(batch, width, generator=generator), times

    def __len__(self) -> int:
        return self.times

    def __getitem__(self, index: int) -> Tensor:
        return self.batch


# ---------------------------------------------------------------------- in turn
class Turns:
    """Lets threads run one at a time, in a given order, and keeps the time that each turn took.

    Args:
        order: names of the threads. The last turn of each is for what comes after training and is not timed.
    """

    def __init__(self, order: Sequence[str]) -> None:
        self.order = order
        self.seconds: list[tuple[float, float]] = []
        self._changed = threading.Condition()
        self._now = 0

    def wait(self, who: str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.order[self._now] == who)

    def end(self, seconds: tuple[float, float] = (0.0, 0.0)) -> None:
        with self._changed:
            self.seconds.append(seconds)
            self._now += 1
            if self._now == len(self.order):
                self._now = 0  # nobody waits any more
            self._changed.notify_all()


class TakesTurns(Callback):
    """Makes ``block`` updates, and waits until its turn comes again."""

    def __init__(self, who: str, turns: Turns, block: int) -> None:
        self.who, self.turns, self.block = who, turns, block
        self.weights = torch.empty(0)
        self._done = 0
        self._start = (0.0, 0.0)

    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if self._done % self.block == 0:
            torch.distributed.barrier()
            self._start = (time.process_time(), time.perf_counter())

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        self._done += 1
        if self._done % self.block == 0:
            self.turns.end((time.process_time() - self._start[0], time.perf_counter() - self._start[1]))
            self.turns.wait(self.who)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        import deepspeed

        parameters = list(pl_module.parameters())
        with deepspeed.zero.GatheredParameters(parameters, enabled=hasattr(parameters[0], "ds_id")):
            self.weights = torch.cat([p.detach().flatten().clone() for p in parameters])


def train(callback: TakesTurns, stage: int, steps: int, options: argparse.Namespace, folder: str) -> None:
    """The life of one thread."""
    try:
        torch.set_num_threads(1)
        callback.turns.wait(callback.who)
        trainer = Trainer(
            accelerator="cpu", devices=WORLD, strategy=strategy(callback.who, stage), callbacks=[callback],
            max_epochs=1, max_steps=steps, logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False, default_root_dir=folder, use_distributed_sampler=False,
        )  # fmt: skip
        loader = DataLoader(OneBatch(options.batch, options.width, steps), batch_size=None)
        trainer.fit(Perceptron(options.width, options.layers), loader)
        callback.turns.end()
    except BaseException:  # the other thread would wait for ever
        traceback.print_exc()
        os._exit(1)


def compare(pair: tuple[str, str], stage: int, options: argparse.Namespace, folder: str, seed: int) -> dict[str, Any]:
    """Train both in turn; returns the seconds of each block by arm, and how far the weights are apart."""
    shuffled = random.Random(f"{stage} {seed}")
    timed = [arm for _ in range(options.pairs) for arm in shuffled.sample(pair, 2)]
    turns = Turns([*pair * WARMUP_BLOCKS, *timed, *pair])
    callbacks = [TakesTurns(arm, turns, options.block) for arm in pair]
    steps = (WARMUP_BLOCKS + options.pairs) * options.block
    threads = [threading.Thread(target=train, args=(c, stage, steps, options, folder)) for c in callbacks]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    blocks = list(zip(turns.order, turns.seconds, strict=True))[2 * WARMUP_BLOCKS : -2]
    seconds = {arm: [s for who, s in blocks if who == arm] for arm in pair}
    apart = float((callbacks[0].weights - callbacks[1].weights).abs().max())
    return {"seconds": seconds, "largest difference of a weight": apart}


# ---------------------------------------------------------------------- processes
def work(rank: int, port: int, options: argparse.Namespace, folder: str, seed: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    os.environ.update(WORLD_SIZE=str(WORLD), RANK=str(rank))
    zero_engine.choose_accelerator()
    zero_engine.prepare_cpu("zero_speed")
    one_thread_steady_memory()
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=WORLD)
    rows = []
    for stage in options.stages:
        for title, pair in ARMS.items():
            every: list[Any] = [None] * WORLD
            torch.distributed.all_gather_object(every, compare(pair, stage, options, folder, seed))
            rows.append({"stage": stage, "compared": title, **seconds_of(pair, every)})
    if rank == 0:
        Path(folder, "rows.json").write_text(json.dumps(rows))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def seconds_of(pair: tuple[str, str], ranks: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Seconds of each block, pair by pair: CPU time of all ranks together, and wall time of the slowest."""
    row: dict[str, Any] = {}
    for index, (clock, over_ranks) in enumerate((("cpu", sum), ("wall", max))):
        arms = [zip(*([s[index] for s in rank["seconds"][arm]] for rank in ranks), strict=True) for arm in pair]
        row[clock] = [[round(over_ranks(block), 6) for block in arm] for arm in arms]
    return {**row, "apart": max(rank["largest difference of a weight"] for rank in ranks)}


def measure(options: argparse.Namespace, folder: str, seed: int) -> list[dict[str, Any]]:
    """A round: both comparisons in each stage, in two fresh processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(work, (port, options, folder, seed), nprocs=WORLD)
    rows: list[dict[str, Any]] = json.loads(Path(folder, "rows.json").read_text())
    return rows


def summary(rounds: Sequence[dict[str, Any]], block: int) -> list[dict[str, Any]]:
    """Ratios over the pairs of all rounds."""
    rows = []
    for stage, title in dict.fromkeys((row["stage"], row["compared"]) for one in rounds for row in one["rows"]):
        same = [row for one in rounds for row in one["rows"] if (row["stage"], row["compared"]) == (stage, title)]
        found: dict[str, Any] = {"stage": stage, "compared": title, "apart": max(row["apart"] for row in same)}
        for clock in ("cpu", "wall"):
            first, second = ([seconds for row in same for seconds in row[clock][arm]] for arm in (0, 1))
            found[clock] = median_with_interval([a / b for a, b in zip(first, second, strict=True)])
            found[f"{clock}_ms"] = 1e3 * median_with_interval(second)["median"] / block
        rows.append({**found, "pairs": len(first)})
    return rows


# ---------------------------------------------------------------------- the table
def cells(row: dict[str, Any]) -> list[str]:
    ratios = [f"{row[c]['median']:.3f} [{row[c]['low']:.3f}, {row[c]['high']:.3f}]" for c in ("cpu", "wall")]
    times = [f"{row[f'{clock}_ms']:.1f}" for clock in ("cpu", "wall")]
    return [str(row["stage"]), row["compared"], *ratios, *times, f"{row['apart']:.1e}"]


def table(result: dict[str, Any]) -> str:
    headings = [
        "stage", "compared", "CPU time, ratio [95 %]", "wall time, ratio [95 %]", "CPU ms per step", "wall ms per step",
        "largest difference of a weight", "pairs",
    ]  # fmt: skip
    facts, rounds = result["settings"], result["rounds"]
    loads = [one["load"] for one in rounds]
    rows = summary(rounds, facts["block"])
    return (
        "# Step time of ZeROStrategy against Lightning's DeepSpeedStrategy\n\n"
        f"`python -m benchmarks.zero_speed`: {WORLD} processes of one thread on gloo, {facts['layers']} layers of "
        f"width {facts['width']}, {facts['batch']} samples per process, AdamW in fp32, {len(rounds)} rounds of "
        f"{facts['pairs']} pairs of blocks of {facts['block']} updates; {rounds[-1]['environment']['device']}, "
        f"{result['cores']} cores, load of the machine {min(loads):.0f} to {max(loads):.0f}. CPU time is that of both "
        "processes; times are Lightning's, medians.\n\n"
        + markdown_table(headings, [[*cells(row), str(row["pairs"])] for row in rows])
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=4, help="how many to add to those that there are")
    parser.add_argument("--report", action="store_true", help="add none, write the table of those that there are")
    parser.add_argument("--pairs", type=int, default=10, help="pairs of blocks per comparison and round")
    parser.add_argument("--block", type=int, default=3, help="updates per block")
    parser.add_argument("--width", type=int, default=512, help="of each layer")
    parser.add_argument("--layers", type=int, default=4, help="of the perceptron")
    parser.add_argument("--batch", type=int, default=96, help="samples per process")
    parser.add_argument("--stages", type=int, nargs="+", default=STAGES, choices=STAGES)
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of zero_speed.json and zero_speed.md")
    options = parser.parse_args(arguments)
    settings = {name: getattr(options, name) for name in ("pairs", "block", "width", "layers", "batch")}
    file = options.results / "zero_speed.json"
    result: dict[str, Any] = {"cores": os.cpu_count(), "settings": settings, "rounds": []}
    if file.exists():
        result = json.loads(file.read_text(encoding="utf-8"))
        if result["settings"] != settings or "rounds" not in result:
            parser.error(f"{file} has {result['settings']}, and {settings} was asked for; delete it to begin anew")
    for _ in range(0 if options.report else options.rounds):
        with TemporaryDirectory() as folder:
            rows = measure(options, folder, seed=len(result["rounds"]))
        result["rounds"].append({"environment": environment(), "load": os.getloadavg()[0], "rows": rows})
        file.write_text(json.dumps(result) + "\n", encoding="utf-8")
        print(f"round {len(result['rounds'])}, load {os.getloadavg()[0]:.0f}", flush=True)
    if not result["rounds"]:
        parser.error(f"there is nothing in {file}; leave --report out")
    write_keeping_findings(options.results / "zero_speed.md", table(result))
    print(table(result))


if __name__ == "__main__":
    main()
