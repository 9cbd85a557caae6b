"""What checkpointing saves and what it costs: bytes held for backward, and step time, against the plain run.

    python -m benchmarks.activations

Four tables. (1) Bytes of a net of 36 like layers by the number of segments, in layers' activations. (2) Recomputed time
under a budget against the best of all possible cuts, for random chains of 12 blocks. (3) Saved bytes at the peak,
predicted from the first training steps and measured by hooks, for a ResNet, a ViT and a GPT. (4) Time of a training
step with checkpointing over the plain one: the two run in turn in random order, CPU time of this process, median of the
pairs' ratios with a 95 % interval (bootstrap over pairs); beside it the share of forward in the plain step and of the
blocks' forward that is repeated, whose product is about what theory adds, and ``torch.utils.checkpoint`` around each
block. One thread. About 5 core-minutes; ``--pairs`` makes
it shorter. One JSON in ``benchmarks/results/activations/``.
"""

from __future__ import annotations

import argparse
import copy
import json
import random
import statistics
import time
from collections.abc import Callable
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from benchmarks._common import environment
from benchmarks.overhead import median_with_interval
from examples.models import ResNet, ViT
from lightning_lr.activations import (
    Block,
    Chain,
    Checkpointing,
    CheckpointPlan,
    CheckpointPolicy,
    Part,
    cut,
    least_peak,
    peak_bytes,
)
from lightning_lr.activations.blocks import candidates
from lightning_lr.activations.chain import recomputed_seconds
from lightning_lr.memory import measure_saved, predict_checkpointing

RESULTS = Path(__file__).parent / "results" / "activations"
CPU = torch.device("cpu")


# ---------------------------------------------------------------------- networks
class GPT(nn.Module):
    """torch's encoder layers under a causal mask."""

    def __init__(self, depth: int = 12, dim: int = 64, context: int = 64, vocabulary: int = 64) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocabulary, dim)
        self.position = nn.Parameter(torch.zeros(context, dim))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(dim, 4, 4 * dim, 0.0, "gelu", batch_first=True, norm_first=True)
            for _ in range(depth)
        )
        self.head = nn.Linear(dim, vocabulary)
        self.register_buffer("mask", nn.Transformer.generate_square_subsequent_mask(context), persistent=False)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.embedding(tokens) + self.position
        for block in self.blocks:
            hidden = block(hidden, src_mask=self.mask)
        logits: Tensor = self.head(hidden).flatten(0, 1)
        return logits


class Layers(nn.Module):
    """36 like layers."""

    def __init__(self, depth: int = 36, width: int = 64) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(48 if i == 0 else width, width), nn.Tanh()) for i in range(depth)
        )

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


NETS: dict[str, tuple[Callable[[], nn.Module], Callable[[], Tensor]]] = {
    "ResNet-20": (lambda: ResNet(depth=20, width=16), lambda: torch.randn(32, 1, 28, 28)),
    "ViT, 12 blocks": (lambda: ViT(dim=64, depth=12, mlp_ratio=4.0), lambda: torch.randn(32, 1, 28, 28)),
    "GPT, 12 blocks": (GPT, lambda: torch.randint(64, (8, 64))),
}
POLICIES: dict[str, CheckpointPolicy] = {
    "sqrt": CheckpointPolicy(),
    "every block": CheckpointPolicy("every_block"),
    "budget: half": CheckpointPolicy(memory_budget=1),
    "budget: sqrt's": CheckpointPolicy(memory_budget=2),
}


TORCHS = "torch's, every block"
"""``torch.utils.checkpoint`` around each block, for comparison."""


def loss_of(net: nn.Module, data: Tensor, bf16: bool = False) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        logits = net(data)
    return functional.cross_entropy(logits.float(), torch.arange(len(logits)) % logits.shape[-1])


# ---------------------------------------------------------------------- tables
def segments_table() -> list[dict[str, Any]]:
    """Saved bytes of 36 like layers by number of segments; an activation of a layer is the unit, the input has 0.75."""
    net, x = Layers(), torch.randn(128, 48)
    unit = 128 * 64 * 4

    def step() -> Tensor:
        return net(x).square().sum()

    rows = [
        {"segments": 0, "formula": 36.75, "predicted": None, "measured": measure_saved(net, step).peak_saved / unit}
    ]
    for segments in (1, 2, 3, 4, 6, 9, 12, 18, 36):
        plan, measured = _followed(net, step, CheckpointPolicy(segments))
        formula = segments + 36 / segments - 0.25
        predicted = plan.peak_bytes / unit
        rows.append({"segments": segments, "formula": formula, "predicted": predicted, "measured": measured / unit})
    print("36 like layers: saved bytes at the peak, in activations of a layer (k + n/k, less 0.25: the smaller input)")
    for row in rows:
        name = "plain" if not row["segments"] else f"k = {row['segments']}"
        print(f"  {name:8s} formula {row['formula']:6.2f}  measured {row['measured']:6.2f}")
    return rows


def brute_force_table(chains: int) -> list[dict[str, float]]:
    """Recomputed time of the plan over that of the best cut, for random chains of 12 blocks and random budgets."""
    rows = []
    for seed in range(chains):
        chain = random_chain(seed)
        least, plain = least_peak(chain), peak_bytes(chain, [Part(0, len(chain), False)])
        budget = int(least + random.Random(seed).random() * (plain - least))
        parts = cut(chain, CheckpointPolicy(), budget)
        best = best_of_all_cuts(chain, budget)
        assert peak_bytes(chain, parts) <= budget
        ratio = recomputed_seconds(chain, parts) / best if best else 1.0
        rows.append({"budget_share": budget / plain, "ratio": ratio})
    worst = max(row["ratio"] for row in rows)
    print(f"{chains} random chains of 12 blocks: recomputed time over the best of all cuts, worst {worst:.4f}")
    return rows


def random_chain(seed: int, blocks: int = 12) -> Chain:
    draw = random.Random(seed)
    borders = [draw.randint(1, 4_000_000) for _ in range(blocks + 1)]
    return Chain(
        tuple(
            Block(
                str(i),
                borders[i],
                draw.randint(0, 20_000_000),
                borders[i + 1],
                saves_input=draw.random() < 0.8,
                saves_output=draw.random() < 0.3,
                seconds=draw.uniform(0.01, 1.0),
                linked=i > 0,
            )
            for i in range(blocks)
        ),
        draw.randint(0, 3_000_000),
    )


def best_of_all_cuts(chain: Chain, budget: int) -> float:
    """The least recomputed seconds within the budget, by trying every cut."""
    n = len(chain)

    def best(start: int, held: int, exit_is_live: bool) -> float:
        if start == n:
            return 0.0 if held + chain.outside_bytes <= budget else float("inf")
        kept = held + chain.saved(start, start + 1, entrance=not exit_is_live)
        found = best(start + 1, kept, chain.blocks[start].saves_output) if kept <= budget else float("inf")
        kept = held + (0 if exit_is_live else chain.blocks[start].input_bytes)
        for stop in range(start + 1, n + 1):
            if kept + chain.saved(start, stop, entrance=False) > budget:
                break
            found = min(found, chain.seconds(start, stop) + best(stop, kept, False))
        return found

    return best(0, 0, False)


def memory_table() -> list[dict[str, Any]]:
    """Predicted and measured peaks."""
    rows: list[dict[str, Any]] = []
    print(
        f"{'saved at the peak':16s} {'':6s} {'':14s} {'plain MB':>9s} {'predicted':>9s} {'measured':>9s} {'saved':>6s}"
    )
    for name, (make, draw) in NETS.items():
        net, data = make(), draw()
        for bf16 in (False, True):

            def step(net: nn.Module = net, data: Tensor = data, bf16: bool = bf16) -> Tensor:
                return loss_of(net, data, bf16)

            plain = measure_saved(net, step).peak_saved
            for label, policy in POLICIES.items():
                plan, measured = _followed(net, step, _with_budget(label, policy, net, step, plain))
                row = {"net": name, "precision": "bf16" if bf16 else "fp32", "policy": label, "plain": plain,
                       "predicted": plan.peak_bytes, "measured": measured, "recomputed": plan.recomputed}  # fmt: skip
                rows.append(row)
                print(
                    f"{name:16s} {row['precision']:6s} {label:14s} {plain / 1e6:9.2f} {plan.peak_bytes / 1e6:9.2f} "
                    f"{measured / 1e6:9.2f} {plain / measured:5.1f}x  predicted/measured "
                    f"{plan.peak_bytes / measured:.3f}",
                    flush=True,
                )
    return rows


def _with_budget(
    label: str, policy: CheckpointPolicy, net: nn.Module, step: Callable[[], Tensor], plain: int
) -> CheckpointPolicy:
    """Half of the plain run's bytes, or as many as the square root of n segments take."""
    if policy.memory_budget is None:
        return policy
    half = label == "budget: half"
    bytes_ = plain // 2 if half else predict_checkpointing(net, step, CheckpointPolicy()).peak_bytes
    return CheckpointPolicy(memory_budget=bytes_)


def _followed(net: nn.Module, step: Callable[[], Tensor], policy: CheckpointPolicy) -> tuple[CheckpointPlan, int]:
    checkpointing = Checkpointing(net, policy, CPU)

    def bracketed() -> Tensor:
        with checkpointing.step():
            return step()

    while checkpointing.steps_to_watch:
        bracketed().backward()  # type: ignore[no-untyped-call]
    measured = measure_saved(net, bracketed).peak_saved
    checkpointing.undo()
    assert checkpointing.plan is not None
    return checkpointing.plan, measured


def time_table(pairs: int) -> list[dict[str, Any]]:
    """Time of a step with checkpointing over the plain one."""
    rows: list[dict[str, Any]] = []
    for name, (make, draw) in NETS.items():
        data = draw()
        plain = make()
        step = partial(loss_of, plain, data)
        plain_bytes = measure_saved(plain, step).peak_saved
        timed = predict_checkpointing(plain, step, CheckpointPolicy(memory_budget=2 * plain_bytes)).chain
        torchs = copy.deepcopy(plain)
        for candidate in candidates(torchs):
            if candidate.level == 0:
                candidate.module.forward = partial(checkpoint, candidate.module.forward, use_reentrant=False)  # type: ignore[method-assign]
        for label, policy in [*POLICIES.items(), (TORCHS, None)]:
            checked = copy.deepcopy(plain) if policy is not None else torchs
            checkpointing = (
                None
                if policy is None
                else Checkpointing(checked, _with_budget(label, policy, plain, step, plain_bytes), CPU)
            )
            nets = {False: (plain, None), True: (checked, checkpointing)}
            seconds: dict[bool, list[float]] = {False: [], True: []}
            forward: list[float] = []
            order = random.Random(1)
            for index in range(pairs + 5):
                for which in order.sample([False, True], 2):
                    net, active = nets[which]
                    begin = time.process_time()
                    with active.step() if active is not None else nullcontext():
                        loss = loss_of(net, data)
                    half = time.process_time()
                    loss.backward()  # type: ignore[no-untyped-call]
                    if index >= 5:
                        seconds[which].append(time.process_time() - begin)
                        forward += [] if which else [(half - begin) / seconds[which][-1]]
            repeated = 1.0
            if checkpointing is not None:
                checkpointing.undo()
                assert checkpointing.plan is not None
                repeated = recomputed_seconds(timed, checkpointing.plan.parts) / timed.seconds(0, len(timed))
            ratios = [ours / bare for ours, bare in zip(seconds[True], seconds[False], strict=True)]
            row = {
                "net": name,
                "policy": label,
                **median_with_interval(ratios),
                "repeated": repeated,
                "forward_share": statistics.median(forward),
                "plain_ms": 1e3 * statistics.median(seconds[False]),
            }
            rows.append(row)
            print(
                f"{name:16s} {label:20s} time {row['median']:.3f} [{row['low']:.3f}, {row['high']:.3f}] of plain "
                f"({row['plain_ms']:.1f} ms, {row['forward_share']:.0%} of it forward); {row['repeated']:.0%} of the "
                "blocks' forward repeated",
                flush=True,
            )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=60, help="pairs of steps per row of the time table")
    parser.add_argument("--chains", type=int, default=100, help="random chains of 12 blocks")
    tables: dict[str, Callable[[], list[Any]]] = {
        "segments": segments_table,
        "brute_force": lambda: brute_force_table(arguments.chains),
        "memory": memory_table,
        "time": lambda: time_table(arguments.pairs),
    }
    parser.add_argument("--tables", nargs="+", choices=tables, default=list(tables), help="the others stay as they are")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / "checkpointing.json"
    result = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    for name in arguments.tables:
        torch.manual_seed(0)
        result[name] = {"environment": environment(), "rows": tables[name]()}
        path.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
