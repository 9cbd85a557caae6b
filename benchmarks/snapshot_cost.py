"""What it costs to note, before each block, what the block could change: of checkpointing, relative to the block.

    python -m benchmarks.snapshot_cost

Blocks of transformers' models (width 256, a batch of 4 x 128) and a stage of a ResNet. In one process and in turns: the
block's forward and backward (what a step spends on it), and the note that checkpointing takes of its arguments and its
own state before it, with the comparison after it. CPU time of one thread. Results: ``benchmarks/results/``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import nn

from benchmarks._common import RESULTS, environment, markdown_table, one_thread_steady_memory
from lightning_lr.activations.argument_state import ArgumentState
from lightning_lr.activations.replay_state import BlockModes

FILE, TABLE = RESULTS / "snapshot_cost.json", RESULTS / "snapshot_cost.md"
ROUNDS, NOTES = 15, 20
"""Turns, and notes in each."""
WIDTH = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 4, "num_hidden_layers": 12,
         "vocab_size": 64}  # fmt: skip


def text_block(family: str, kind: str, module: str, **more: Any) -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    """A block of the middle of a model with the arguments that the model's own forward gives it."""
    import transformers as t

    net: nn.Module = getattr(t, family + kind)(getattr(t, f"{family}Config")(**WIDTH, **more)).train()
    block, seen = net.get_submodule(module), []
    block.register_forward_pre_hook(lambda _, args, kwargs: seen.append((args, kwargs)), with_kwargs=True)
    net(torch.randint(0, 64, (4, 128)))
    block._forward_pre_hooks.clear()
    return block, *seen[0]


def resnet_stage() -> tuple[nn.Module, tuple[Any, ...], dict[str, Any]]:
    import transformers as t

    net = t.ResNetModel(t.ResNetConfig(embedding_size=32, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3]))
    return net.encoder.stages[1].layers[1].train(), (torch.randn(16, 128, 16, 16),), {}


BLOCKS: dict[str, Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]] = {
    "BERT block": lambda: text_block("Bert", "Model", "encoder.layer.6"),
    "Llama block with a cache of 12 layers": lambda: text_block("Llama", "Model", "layers.6", num_key_value_heads=2),
    "block of a ResNet-50": resnet_stage,
}


def measure(make: Callable[[], tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]) -> dict[str, Any]:
    """Seconds of a block and of a note in each turn."""
    block, args, kwargs = make()
    args = tuple(
        a.detach().requires_grad_() if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args
    )
    modules = list(block.modules())
    blocks, notes = [], []
    for turn in range(ROUNDS + 2):
        begin = time.process_time()
        output = block(*args, **{name: value for name, value in kwargs.items() if name != "past_key_values"})
        output = output[0] if isinstance(output, tuple) else output
        output.sum().backward()
        middle = time.process_time()
        for _ in range(NOTES):
            state, modes = ArgumentState((args, kwargs), False, modules), BlockModes(modules)
            modes.block_has_run()
            state.changes()
        end = time.process_time()
        if turn >= 2:
            blocks.append(middle - begin)
            notes.append((end - middle) / NOTES)
    shares = [note / spent for note, spent in zip(notes, blocks, strict=True)]
    return {"block_seconds": statistics.median(blocks), "note_seconds": statistics.median(notes), "shares": shares}


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    one_thread_steady_memory()
    torch.manual_seed(0)
    found = {name: measure(make) for name, make in BLOCKS.items()}
    FILE.write_text(json.dumps({"blocks": found, "environment": environment()}, indent=1) + "\n", encoding="utf-8")
    body = []
    for name, row in found.items():
        shares = sorted(row["shares"])
        body.append([
            name, f"{row['block_seconds'] * 1e3:.1f}", f"{row['note_seconds'] * 1e6:.0f}",
            f"{100 * statistics.median(shares):.2f} ({100 * shares[0]:.2f} to {100 * shares[-1]:.2f})",
        ])  # fmt: skip
    headings = ["block", "forward and backward, ms", "its note, us", "share, %: median (least to largest)"]
    text = (
        "# What the note before each block costs\n\n`python -m benchmarks.snapshot_cost`: CPU time, in turns in one "
        f"process, {ROUNDS} turns.\n\n{markdown_table(headings, body)}\n"
    )
    print(text)
    TABLE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
