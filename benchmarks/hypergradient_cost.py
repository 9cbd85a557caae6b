"""What a hypergradient costs: time and memory of the ResNet's training step with it, without it, and with a faithful
implementation that goes tensor by tensor.

    python -m benchmarks.hypergradient --cost

A step is forward, backward and optimizer step on 128 images of 28 x 28 pixels, without a Trainer, so that nothing else
is measured. The three kinds of step are made in turn, in random order within each round, so that what else the machine
does hits all alike; what is added is timed apart as well. CPU time of this process, one thread. The tensor-by-tensor
implementation is the reference code's way, with its defects left out: all learning rates change together and nothing is
concatenated; it reads one number per tensor and dot product from the device, and recomputes Adam's direction tensor by
tensor.

A second table has the time on the clock, of AdamW and 25 million parameters, with one thread and with every number of
threads up to the machine's: the sums alone, the optimizer's step, and a copy of the parameters, in turn.
"""

from __future__ import annotations

import json
import os
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812
from torch.optim import Optimizer

from benchmarks._common import environment, markdown_table, one_thread_steady_memory
from benchmarks.overhead import median_with_interval
from examples.models import ResNet
from lightning_lr.hypergradient import AlignmentEstimator, FactorLearner

ROUNDS, REPEATS = 15, 5
LARGE, TENSORS = 25_000_000, 8
"""Parameters for the times in several threads, and the tensors that they are in."""
MOST_THREADS = 8
OPTIMIZERS: dict[str, Callable[[Any], Optimizer]] = {
    "SGD": lambda p: torch.optim.SGD(p, 0.01),
    "SGD, momentum": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9),
    "SGD, Nesterov": lambda p: torch.optim.SGD(p, 0.01, momentum=0.9, nesterov=True),
    "Adam": lambda p: torch.optim.Adam(p, 1e-3),
    "AdamW": lambda p: torch.optim.AdamW(p, 1e-3),
    "RMSprop": lambda p: torch.optim.RMSprop(p, 1e-3),
}


class Ours:
    """The package's method, as the callback calls it."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.estimator = AlignmentEstimator(optimizer)
        self.learner = FactorLearner("additive", 1e-8, self.estimator.family)
        self.base = [group["lr"] for group in optimizer.param_groups]

    def before_step(self) -> None:
        alignments = self.estimator.measure()
        factors = self.learner.refine(alignments, self.base, self.base)
        lr = [base * factor for base, factor in zip(self.base, factors, strict=True)]
        for group, value in zip(self.optimizer.param_groups, lr, strict=True):
            group["lr"] = value
        self.estimator.before_step(lr)
        self.learner.applied(alignments, self.base)

    def after_step(self) -> None:
        self.estimator.after_step()

    def memory(self) -> int:
        return sum(copy.numel() for copy in self.estimator.state_dict()["copies"].values())


class PerTensor:
    """The paper's equations, one tensor after the other."""

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.last: dict[Tensor, Tensor] = {}

    @torch.no_grad()
    def before_step(self) -> None:
        for group in self.optimizer.param_groups:
            dot = gradients = directions = 0.0
            for p in group["params"]:
                direction = self._direction(group, p)
                if direction is not None:
                    dot += torch.dot(p.grad.reshape(-1), direction.reshape(-1)).item()
                    directions += torch.dot(direction.reshape(-1), direction.reshape(-1)).item()
                gradients += torch.dot(p.grad.reshape(-1), p.grad.reshape(-1)).item()
                if not self._has_state(group):
                    self.last[p] = p.grad.clone()
            group["lr"] = group["lr"] + 1e-8 * dot

    def after_step(self) -> None:
        pass

    def memory(self) -> int:
        return sum(copy.numel() for copy in self.last.values())

    def _has_state(self, group: dict[str, Any]) -> bool:
        return isinstance(self.optimizer, torch.optim.Adam) or (group["momentum"] > 0 and not group["nesterov"])

    def _direction(self, group: dict[str, Any], p: Tensor) -> Tensor | None:
        state = self.optimizer.state[p]
        if isinstance(self.optimizer, torch.optim.Adam):
            if not state:
                return None
            step = state["step"].item()
            mean = state["exp_avg"] / (1 - group["betas"][0] ** step)
            square = state["exp_avg_sq"] / (1 - group["betas"][1] ** step)
            return mean / (square.sqrt() + group["eps"])
        if self._has_state(group):
            return state.get("momentum_buffer")
        last = self.last.get(p)
        return last + group["momentum"] * state["momentum_buffer"] if last is not None and group["nesterov"] else last


Method = Ours | PerTensor | None


def measure(name: str, depth: int) -> dict[str, Any]:
    """One optimizer on one ResNet."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(10, (128,))
    arms: dict[str, tuple[nn.Module, Optimizer, Method]] = {}
    kinds: tuple[type[Ours] | type[PerTensor] | None, ...] = (None, Ours)
    if name not in ("AdamW", "RMSprop"):  # the reference code has neither
        kinds = (None, Ours, PerTensor)
    for kind in kinds:
        network = ResNet(depth)
        optimizer = OPTIMIZERS[name](network.parameters())
        arms["bare" if kind is None else kind.__name__] = (network, optimizer, kind and kind(optimizer))

    def step(network: nn.Module, optimizer: Optimizer, method: Method) -> float:
        begin = time.process_time()
        optimizer.zero_grad()
        F.cross_entropy(network(images), labels).backward()  # type: ignore[no-untyped-call]
        if method is not None:
            method.before_step()
        optimizer.step()
        if method is not None:
            method.after_step()
        return time.process_time() - begin

    for arm in arms.values():
        for _ in range(3):
            step(*arm)
    order = random.Random(1)
    ratios: dict[str, list[float]] = {arm: [] for arm in arms}
    bare_times = []
    for _ in range(ROUNDS):
        seconds = {arm: step(*arms[arm]) for arm in order.sample(list(arms), len(arms))}
        bare_times.append(seconds["bare"])
        for arm in arms:
            ratios[arm].append(seconds[arm] / seconds["bare"])
    spent = _added({arm: method for arm, (_, _, method) in arms.items() if method is not None}, order)
    added = {arm: statistics.median(seconds) for arm, seconds in spent.items()}
    slower = [a / b for a, b in zip(spent.get("PerTensor", []), spent["Ours"], strict=False)]
    bare = statistics.median(bare_times)
    parameters = sum(p.numel() for p in arms["bare"][0].parameters())
    ours = arms["Ours"][2]
    assert ours is not None
    return {
        "optimizer": name,
        "depth": depth,
        "tensors": len(list(arms["bare"][0].parameters())),
        "parameters": parameters,
        "bare_ms": 1e3 * bare,
        "whole step": {arm: median_with_interval(ratios[arm]) for arm in arms if arm != "bare"},
        "added_ms": {arm: 1e3 * seconds for arm, seconds in added.items()},
        "tensor by tensor over ours": median_with_interval(slower) if slower else None,
        "ratio": {arm: 1 + seconds / bare for arm, seconds in added.items()},
        "copies": ours.memory() / parameters,
    }


def _added(methods: dict[str, Ours | PerTensor], order: random.Random) -> dict[str, list[float]]:
    """CPU seconds that each method adds to a step, timed apart from the step, in turn: one number per round, in which
    gradients and state are what the last step left."""
    rounds: dict[str, list[float]] = {arm: [] for arm in methods}
    for _ in range(4 * ROUNDS):
        for arm in order.sample(list(methods), len(methods)):
            begin = time.process_time()
            for _ in range(REPEATS):
                methods[arm].before_step()
                methods[arm].after_step()
            rounds[arm].append((time.process_time() - begin) / REPEATS)
    return rounds


def in_threads() -> list[dict[str, Any]]:
    """Milliseconds on the clock that the sums, a step and a copy take, by the number of torch's threads."""
    parameters = [nn.Parameter(torch.randn(LARGE // TENSORS)) for _ in range(TENSORS)]
    optimizer = torch.optim.AdamW(parameters, 1e-5)
    copy = [torch.empty_like(p) for p in parameters]
    for p in parameters:
        p.grad = torch.randn_like(p)
    method, before = Ours(optimizer), torch.get_num_threads()
    work: dict[str, Callable[[], Any]] = {
        "sums": method.estimator.sums,
        "step": optimizer.step,
        "copy": lambda: torch._foreach_copy_(copy, [p.detach() for p in parameters]),
    }
    rows, order = [], random.Random(1)
    try:
        for _ in range(3):  # the first sums have no direction, the second find out what to read
            method.before_step()
            optimizer.step()
            method.after_step()
        for threads in range(1, min(MOST_THREADS, os.cpu_count() or 1) + 1):
            torch.set_num_threads(threads)
            taken: dict[str, list[float]] = {name: [] for name in work}
            for round_ in range(ROUNDS + 2):
                for name in order.sample(list(work), len(work)):
                    begin = time.perf_counter()
                    work[name]()
                    if round_ >= 2:
                        taken[name].append(1e3 * (time.perf_counter() - begin))
                    method.estimator.before_step(method.base)
                    method.after_step()
            rows.append({"threads": threads, **{name: median_with_interval(ms) for name, ms in taken.items()}})
    finally:
        torch.set_num_threads(before)
    return rows


def _interval(found: dict[str, float], digits: int) -> str:
    return f"{found['median']:.{digits}f} [{found['low']:.{digits}f}, {found['high']:.{digits}f}]"


def _times(found: dict[str, float]) -> str:
    return f"{_interval(found, 1)} x"


def main(out: Path) -> None:
    """Measure, print and write down."""
    one_thread_steady_memory()
    rows = []
    for depth in (14,):
        for name in OPTIMIZERS:
            rows.append(measure(name, depth))
            row = rows[-1]
            print(row["optimizer"], depth, row["added_ms"], row["ratio"], row["copies"], flush=True)
    body = []
    for row in rows:
        ours, other = row["added_ms"]["Ours"], row["added_ms"].get("PerTensor")
        whole, slower = row["whole step"]["Ours"], row["tensor by tensor over ours"]
        body.append(
            [
                f"ResNet-{row['depth']} ({row['tensors']} tensors)",
                row["optimizer"],
                f"{row['bare_ms']:.1f}",
                f"{ours:.2f}",
                "" if slower is None else f"{other:.2f}: {_times(slower)}",
                f"{row['ratio']['Ours']:.4f}",
                _interval(whole, 3),
                f"{row['copies']:.0f}",
            ]
        )
    headings = ["network", "optimizer", "bare step, ms", "added, ms", "tensor by tensor, ms", "(bare + added) / bare",
                "whole steps, ratio [95 %]", "copies of the model kept"]  # fmt: skip
    threads = in_threads()
    names = ("sums", "step", "copy")
    table_of_threads = markdown_table(
        ["threads", "sums, ms", "AdamW's step, ms", "copy of the parameters, ms"],
        [[str(row["threads"]), *(_interval(row[name], 1) for name in names)] for row in threads],
    )
    text = (
        f"{markdown_table(headings, body)}\nTime on the clock with {LARGE:,} parameters in {TENSORS} tensors, by the "
        f"number of threads.\n\n{table_of_threads}"
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    load = f"{environment()['device']}, one thread but where said, load of the machine {os.getloadavg()[0]:.0f}."
    out.with_suffix(".md").write_text(f"# Cost of a hypergradient\n\n{load}\n\n{text}", encoding="utf-8")
    record = {"environment": environment(), "load": os.getloadavg(), "rounds": ROUNDS, "rows": rows, "threads": threads}
    out.with_suffix(".json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(text)
