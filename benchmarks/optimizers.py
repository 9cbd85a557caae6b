"""What a step of LARS and LAMB costs, beside other people's and torch's own SGD and AdamW.

    python -m benchmarks.optimizers [--rounds 40] [--threads 1]

The parameter lists of ResNet-50 (161 tensors, 25.6 million numbers) and of a 12-layer transformer (199 tensors,
33.4 million: width 384, 30 522 words), with random gradients; no model. All optimizers take turns in one process, in
random order within each round, one step each on parameters of their own, so that what else the machine does hits all
alike. Printed: the median of each one's milliseconds, and for ours the median over rounds of the better peer's time
over ours in the same round, with a 95 % interval (bootstrap over rounds): of wall time and, on a CPU, of this process's
CPU time, which other work disturbs less. LARS and LAMB are set to do the same work as the peers: every tensor adapted,
no clipping of the global norm; ``as it comes`` is ours with biases and normalisation left out. Memory is given out as
it comes, so that a step which needs fresh memory pays for it. On a GPU, time is that until the device is done.

timm is taken from the folder that ``LIGHTNING_LR_PEERS`` names (see tests/support/timm_oracle.py); who is missing is
left out. One JSON per device in ``benchmarks/results/optimizers/``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from benchmarks._common import RESULTS, environment, markdown_table
from lightning_lr.optim import LAMB, LARS

FOLDER = RESULTS / "optimizers"
WARMUP_ROUNDS = 3
Shape = tuple[int, ...]
Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]


# ---------------------------------------------------------------------- parameter lists
def resnet50() -> Iterator[Shape]:
    """The shapes of torchvision's ResNet-50, in its order."""
    yield from [(64, 3, 7, 7), (64,), (64,)]
    channels = 64
    for width, blocks in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for block in range(blocks):
            for shape in ((width, channels, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)):
                yield from [shape, shape[:1], shape[:1]]
            if block == 0:
                yield from [(4 * width, channels, 1, 1), (4 * width,), (4 * width,)]
            channels = 4 * width
    yield from [(1000, 2048), (1000,)]


def transformer() -> Iterator[Shape]:
    """The shapes of MiniLM-L12-H384: a BERT with 12 layers of width 384 and 30 522 words."""
    width = 384
    yield from [(30_522, width), (512, width), (2, width), (width,), (width,)]
    for _ in range(12):
        for _ in range(4):
            yield from [(width, width), (width,)]
        yield from [
            (width,),
            (width,),
            (4 * width, width),
            (4 * width,),
            (width, 4 * width),
            (width,),
            (width,),
            (width,),
        ]
    yield from [(width, width), (width,)]


LISTS: dict[str, Callable[[], Iterator[Shape]]] = {"ResNet-50": resnet50, "transformer": transformer}


# ---------------------------------------------------------------------- who takes part
def contenders() -> dict[str, dict[str, Make]]:
    """For each kind: ours, others', and torch's optimizer that sets the floor."""
    lars: dict[str, Any] = {"lr": 1e-6, "momentum": 0.9, "weight_decay": 1e-4}
    lamb: dict[str, Any] = {"lr": 1e-6, "weight_decay": 0.01}
    found: dict[str, dict[str, Make]] = {
        "LARS": {
            "ours": lambda p: LARS(p, adapt="all", **lars),
            "ours, as it comes": lambda p: LARS(p, **lars),
            "torch SGD, fused": lambda p: torch.optim.SGD(p, fused=True, **lars),
            "torch SGD, foreach": lambda p: torch.optim.SGD(p, foreach=True, **lars),
        },
        "LAMB": {
            "ours": lambda p: LAMB(p, adapt="all", **lamb),
            "ours, as it comes": lambda p: LAMB(p, **lamb),
            "torch AdamW, fused": lambda p: torch.optim.AdamW(p, fused=True, **lamb),
            "torch AdamW, foreach": lambda p: torch.optim.AdamW(p, foreach=True, **lamb),
        },
    }
    timm = _timm()
    if timm is not None:
        found["LARS"]["timm"] = lambda p: timm.Lars(p, **lars)
        found["LAMB"]["timm"] = lambda p: timm.Lamb(p, max_grad_norm=None, always_adapt=True, **lamb)
    try:
        import pytorch_optimizer as others
    except ModuleNotFoundError:
        return found
    found["LARS"]["pytorch_optimizer"] = lambda p: others.LARS(p, **lars)
    found["LARS"]["pytorch_optimizer, no foreach"] = lambda p: others.LARS(p, foreach=False, **lars)
    found["LAMB"]["pytorch_optimizer"] = lambda p: others.Lamb(p, **lamb)
    found["LAMB"]["pytorch_optimizer, no foreach"] = lambda p: others.Lamb(p, foreach=False, **lamb)
    found["LAMB"]["pytorch_optimizer AdamP"] = lambda p: others.AdamP(p, **lamb)
    return found


PEERS = ("timm", "pytorch_optimizer", "pytorch_optimizer, no foreach")
"""Ours is compared with the fastest of them: pytorch_optimizer's default is foreach, on a CPU not always the faster."""


def _timm() -> Any:
    import pytest

    from tests.support.timm_oracle import import_timm

    try:
        return import_timm().optim
    except pytest.skip.Exception:
        return None


# ---------------------------------------------------------------------- measuring
def one_step(optimizer: torch.optim.Optimizer, device: torch.device) -> tuple[float, float]:
    """Wall and CPU milliseconds of a step."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter(), time.process_time()
    optimizer.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - cpu)


def parameters(shapes: Iterator[Shape], device: torch.device) -> list[nn.Parameter]:
    """Random parameters with gradients, of the sizes that they have in training."""
    generator = torch.Generator(device).manual_seed(0)
    params = [nn.Parameter(torch.randn(shape, generator=generator, device=device) * 0.05) for shape in shapes]
    for param in params:
        param.grad = torch.randn(param.shape, generator=generator, device=device) * 0.01
    return params


def measure(
    makes: dict[str, Make], name: str, rounds: int, device: torch.device
) -> dict[str, list[tuple[float, float]]]:
    """Times of every optimizer in every round; all have parameters and state of their own."""
    optimizers = {who: make(parameters(LISTS[name](), device)) for who, make in makes.items()}
    times: dict[str, list[tuple[float, float]]] = {who: [] for who in optimizers}
    order = random.Random(0)
    for number in range(WARMUP_ROUNDS + rounds):
        for who in order.sample(list(optimizers), len(optimizers)):
            spent = one_step(optimizers[who], device)
            if number >= WARMUP_ROUNDS:
                times[who].append(spent)
    return times


def ratio(times: dict[str, list[tuple[float, float]]], others: Sequence[str], clock: int) -> dict[str, float] | None:
    """Median over rounds of the fastest other's time over ours, with a 95 % bootstrap interval."""
    present = [who for who in others if who in times]
    if not present:
        return None
    better = min(present, key=lambda who: statistics.median(spent[clock] for spent in times[who]))
    ratios = [a[clock] / b[clock] for a, b in zip(times[better], times["ours"], strict=True)]
    generator = random.Random(0)
    medians = sorted(statistics.median(generator.choices(ratios, k=len(ratios))) for _ in range(2000))
    return {"median": statistics.median(ratios), "low": medians[50], "high": medians[-51]}


def summary(times: dict[str, list[tuple[float, float]]]) -> dict[str, Any]:
    """What is written down: medians, and ours against the better peer and against torch's floor."""
    clocks = {"wall": 0, "cpu": 1}
    floor = [who for who in times if who.startswith("torch") and who.endswith("fused")]
    return {
        "milliseconds": {
            who: {clock: round(statistics.median(s[i] for s in spent), 3) for clock, i in clocks.items()}
            for who, spent in times.items()
        },
        "better peer over ours": {clock: ratio(times, PEERS, i) for clock, i in clocks.items()},
        "torch fused over ours": {clock: ratio(times, floor, i) for clock, i in clocks.items()},
    }


# ---------------------------------------------------------------------- the command
def table(results: dict[str, dict[str, Any]]) -> str:
    """Everything in one Markdown table."""
    body = []
    for name, kinds in results.items():
        for kind, found in kinds.items():
            for who, spent in found["milliseconds"].items():
                faster = _text(found["better peer over ours"]["cpu"]) if who == "ours" else ""
                wall = _text(found["better peer over ours"]["wall"]) if who == "ours" else ""
                body.append([name, kind, who, f"{spent['wall']:.1f}", f"{spent['cpu']:.1f}", wall, faster])
    headings = ("list", "kind", "optimizer", "wall (ms)", "CPU (ms)", "better peer / ours, wall", "the same, CPU time")
    return markdown_table(headings, body)


def _text(found: dict[str, float] | None) -> str:
    return "" if found is None else f"{found['median']:.2f} [{found['low']:.2f}, {found['high']:.2f}]"


def main() -> None:
    """Measure on the GPU if there is one, else on the CPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=40, help="steps of each optimizer")
    parser.add_argument("--threads", type=int, default=1, help="torch's threads")
    parser.add_argument("--lists", nargs="*", choices=[*LISTS], default=[*LISTS], help="parameter lists")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    on_gpu = device.type == "cuda"
    results = {
        name: {kind: summary(measure(makes, name, arguments.rounds, device)) for kind, makes in contenders().items()}
        for name in arguments.lists
    }
    record = {
        "device": torch.cuda.get_device_name() if on_gpu else environment()["device"],
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(load, 2) for load in os.getloadavg()],
        "rounds": arguments.rounds,
        "environment": environment(),
        "results": results,
    }
    print(table(results))
    FOLDER.mkdir(parents=True, exist_ok=True)
    device = re.sub(r"[^A-Za-z0-9.]+", "_", str(record["device"]))
    path = FOLDER / f"{device}_{torch.get_num_threads()}_threads.json"
    path.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
