"""What DeepSpeed's engine holds on each rank, measured, against what `lightning_lr.sharded_memory` predicts.

The real engine runs on the CPU, with gloo, in as many processes as there are ranks. Counted are the storages of all
live torch tensors, each once, in bytes per parameter of the model: at the end of the forward, at the end of the
backward and after the step, all of the third update. (The process's resident memory says nothing here: it is mostly
what the allocator keeps.) On a GPU the same tensors would be alive; pinned and offloaded ones would be the host's.

    python -m benchmarks.zero_memory              # cases not yet in benchmarks/results/zero_memory.json, 8 s each
    python -m benchmarks.zero_memory --only bf16  # cases with this in their name, printed only
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import socket
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks._common import RESULTS, environment, markdown_table
from benchmarks._processes import spawn
from lightning_lr.sharded_memory import EngineSettings, Held, ModelSize, Stage, engine_bytes

OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "SGD": ("SGD", {"lr": 1e-3}),
    "momentum": ("SGD", {"lr": 1e-3, "momentum": 0.9}),
    "Adam": ("Adam", {"lr": 1e-4}),
    "AMSGrad": ("Adam", {"lr": 1e-4, "amsgrad": True}),
}
BUCKET = 400_000


LOOKS = 4
"""Times that what is held is counted."""


@dataclass(frozen=True)
class Case:
    """One engine.

    Args:
        stage: of ZeRO; 0 is DeepSpeed without it.
        half: bf16, else fp32.
        optimizer: a key of ``OPTIMIZERS``.
        ranks: processes.
        accumulation: micro-batches per update; counted is then the end of the window's first backward.
        offload_optimizer: to the host, which is the same memory here.
        offload_parameters: the same for stage 3's shards.
        persistence_threshold: parameters up to this size stay whole in stage 3.
        width: of the layers.
        depth: how many there are.
    """

    stage: Stage
    half: bool = False
    optimizer: str = "Adam"
    ranks: int = 2
    accumulation: int = 1
    offload_optimizer: bool = False
    offload_parameters: bool = False
    persistence_threshold: int = 0
    width: int = 512
    depth: int = 8

    @property
    def name(self) -> str:
        words = [f"stage {self.stage}", "bf16" if self.half else "fp32", self.optimizer, f"{self.ranks} ranks"]
        words += [f"accumulation {self.accumulation}"] * (self.accumulation > 1)
        words += ["optimizer offloaded"] * self.offload_optimizer + ["parameters offloaded"] * self.offload_parameters
        words += [f"whole up to {self.persistence_threshold:,}"] * (self.persistence_threshold > 0)
        return ", ".join(words)

    @property
    def settings(self) -> EngineSettings:
        return EngineSettings(
            self.offload_optimizer,
            self.offload_parameters,
            reduce_bucket_size=BUCKET,
            overlap_comm=False,
            persistence_threshold=self.persistence_threshold,
            prefetch_bucket_size=BUCKET,
            max_live_parameters=BUCKET,
        )

    def network(self) -> nn.Module:
        layers = (layer for _ in range(self.depth) for layer in (nn.Linear(self.width, self.width), nn.Tanh()))
        return nn.Sequential(*layers)

    def optimizer_of(self, network: nn.Module) -> torch.optim.Optimizer:
        name, arguments = OPTIMIZERS[self.optimizer]
        made: torch.optim.Optimizer = getattr(torch.optim, name)(network.parameters(), **arguments)
        return made


def cases() -> list[Case]:
    """The whole table."""
    stages: tuple[Stage, ...] = (0, 1, 2, 3)
    made = [Case(s, h, o) for o in ("Adam", "momentum", "SGD") for h in (False, True) for s in stages]
    made += [Case(s, True, "AMSGrad") for s in stages]
    made += [Case(s, h, ranks=1) for h in (False, True) for s in stages[1:]]
    made += [Case(s, h, accumulation=2) for h in (False, True) for s in stages[1:]]
    for half in (False, True):
        made += [Case(s, half, offload_optimizer=True) for s in stages[1:]]
        made += [Case(3, half, offload_optimizer=True, offload_parameters=True)]
        made += [Case(3, half, persistence_threshold=1_000_000)]
    return made


# ---------------------------------------------------------------------- measuring
def measure(case: Case) -> list[dict[str, float]]:
    """Bytes per parameter of each rank: after forward, after backward, after the step."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    os.environ["DS_ACCELERATOR"] = "cpu"  # before the first import
    # each case has processes of its own, forked from one that has done the imports
    torch.multiprocessing.get_context("forkserver").set_forkserver_preload([__name__, "deepspeed"])
    with tempfile.TemporaryDirectory() as folder:
        spawn(_rank, (port, case, folder), nprocs=case.ranks, start_method="forkserver")
        return [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(case.ranks)]


def _rank(rank: int, port: int, case: Case, folder: str) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), WORLD_SIZE=str(case.ranks), OMP_NUM_THREADS="1")
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    import deepspeed.ops
    from deepspeed.utils import logger

    logger.setLevel("ERROR")
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False  # training needs it not, and it takes a compiler
    deepspeed.init_distributed("gloo")
    counted = _train(case)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(counted))
    torch.distributed.barrier()
    os._exit(0)  # gloo's threads abort an interpreter that leaves in order, about once in twelve times


def _train(case: Case) -> dict[str, float]:
    import deepspeed

    torch.manual_seed(0)
    network = case.network()
    numbers = sum(p.numel() for p in network.parameters())
    settings = case.settings
    zero: dict[str, Any] = {
        "stage": case.stage,
        "reduce_bucket_size": settings.reduce_bucket_size,
        "allgather_bucket_size": settings.reduce_bucket_size,
        "overlap_comm": settings.overlap_comm,
        "stage3_param_persistence_threshold": settings.persistence_threshold,
        "stage3_prefetch_bucket_size": settings.prefetch_bucket_size,
        "stage3_max_live_parameters": settings.max_live_parameters,
        "stage3_max_reuse_distance": 0,
    }
    if case.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu"}
    if case.offload_parameters:
        zero["offload_param"] = {"device": "cpu"}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": case.accumulation,
        "gradient_clipping": 0.0,  # the default is 1.0
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "bf16": {"enabled": case.half},
        "steps_per_print": 10**9,
    }
    engine, *_ = deepspeed.initialize(model=network, optimizer=case.optimizer_of(network), config=config)
    x = torch.randn(2, case.width, dtype=torch.bfloat16 if case.half else torch.float32)
    counted = {}
    updates = 3
    for micro_batch in range(updates * case.accumulation):
        counting = micro_batch == (updates - 1) * case.accumulation
        loss = engine(x).float().square().mean()
        if counting:
            counted["after forward"] = live_bytes() / numbers
        engine.backward(loss)
        del loss
        if counting:
            counted["after backward"] = live_bytes() / numbers
        engine.step()
    counted["after step"] = live_bytes() / numbers
    return counted


def live_bytes() -> int:
    """Bytes of the storages of all tensors that Python can reach, each once: the least of a few looks.

    On a busy machine gloo's thread lets go of a bucket some time after everybody has it.
    """
    least = _live_bytes()
    for _ in range(LOOKS - 1):
        time.sleep(0.05)
        least = min(least, _live_bytes())
    return least


def _live_bytes() -> int:
    gc.collect()
    found: dict[int, int] = {}
    for thing in gc.get_objects():
        if not issubclass(type(thing), Tensor):  # isinstance would wake lazy proxies
            continue
        for tensor in (thing, thing.grad if thing.is_leaf else None, getattr(thing, "ds_tensor", None)):
            if tensor is not None and tensor.device.type == "cpu":
                storage = tensor.untyped_storage()
                found[storage.data_ptr()] = storage.nbytes()
    return sum(found.values())


# ---------------------------------------------------------------------- against the prediction
def predicted(case: Case) -> Held:
    """What the formulas say; host and device are one memory here."""
    network = case.network()
    model = ModelSize.of(network, case.optimizer_of(network))
    return engine_bytes(
        model, case.stage, case.ranks, half=case.half, accumulation=case.accumulation, settings=case.settings
    )


def record_of(case: Case, measured: dict[str, float] | None = None) -> dict[str, Any]:
    """A case, measured (if it is not yet) and predicted, in bytes per parameter; the rank that holds most counts."""
    numbers = sum(p.numel() for p in case.network().parameters())
    held = predicted(case)
    if measured is None:
        ranks = measure(case)
        measured = {when: round(max(rank[when] for rank in ranks), 3) for when in ranks[0]}
    said = {"after backward": (held.after_backward + held.host) / numbers, "peak": (held.peak + held.host) / numbers}
    return {"case": case.name, "config": asdict(case), "measured": measured, "predicted": said}


def table(records: Sequence[dict[str, Any]]) -> str:
    """Markdown."""
    headings = ["case", "predicted", "measured after backward", "difference"]
    headings += ["after forward", "after the step", "predicted peak"]
    body = []
    for record in records:
        measured, said = record["measured"], record["predicted"]
        error = said["after backward"] / measured["after backward"] - 1
        body.append(
            [record["case"], f"{said['after backward']:.2f}", f"{measured['after backward']:.2f}", f"{error:+.1%}"]
            + [f"{measured[when]:.2f}" for when in ("after forward", "after step")]
            + [f"{said['peak']:.2f}"]
        )
    worst = max(abs(r["predicted"]["after backward"] / r["measured"]["after backward"] - 1) for r in records)
    found = f"\nLargest difference after the backward: {worst:.1%}, in {len(records)} cases.\n"
    return markdown_table(headings, body) + found


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=[], metavar="WORD", help="cases with all of these in their name")
    chosen = parser.parse_args(arguments).only
    file = RESULTS / "zero_memory.json"
    there = json.loads(file.read_text())["cases"] if file.exists() and not chosen else []
    records = []
    for case in cases():
        if all(word in case.name for word in chosen):
            measured = next((record["measured"] for record in there if record["config"] == asdict(case)), None)
            records.append(record_of(case, measured))
            found, said = (records[-1][key]["after backward"] for key in ("measured", "predicted"))
            print(f"{case.name:70s} predicted {said:6.2f}  measured {found:6.2f}", flush=True)
            if not chosen and measured is None:
                _write(file, [*records, *(r for r in there if r["case"] not in {made["case"] for made in records})])
    if not chosen:
        title = "# Bytes per parameter and rank under ZeRO: predicted and measured\n\n"
        file.with_suffix(".md").write_text(f"{title}{INTRODUCTION}\n{table(records)}")


def _write(file: Path, records: Sequence[dict[str, Any]]) -> None:
    facts = {**environment(), "deepspeed": version("deepspeed")}
    file.write_text(json.dumps({"environment": facts, "cases": list(records)}, indent=1) + "\n")


INTRODUCTION = f"""`python -m benchmarks.zero_memory`: DeepSpeed's engine on the CPU with gloo, {Case(0).depth} linear
layers of {Case(0).width}, buckets of {BUCKET:,} numbers; live torch storages of the rank that holds most, in bytes per
parameter. With accumulation 2 the end of the window's first backward is shown. Host and device are one memory here, so
what is offloaded is in the sums.
"""


if __name__ == "__main__":
    main()
