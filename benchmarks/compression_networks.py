"""Compressed activations on networks that people use: saved bytes, gradients and the time of a step.

    python -m benchmarks.compression_networks [--dry-run] [--report] [--only bert,llama] [--profile mamba]

Each network has its true depth (that of its smallest published size) and a small width, random weights, a random
batch and dropout as it is by default; transformers' classes, and the ResNet and the GPT of ``examples``. In one
process, steps without compression and at 8, 4, auto-4 and 2 bits follow each other in turn. Measured are the bytes
that the hooks count, the CPU time of a step (forward and backward, one thread) relative to the bare step of its
round, and the cosine between the gradient of a step and the bare gradient of the same dropout: of one step in the
mean, and of the mean of all steps, which shows whether errors average out. One JSON per network in
``benchmarks/results/compression_networks/``. ``--profile`` measures nothing else and prints where a step at 4 bits
spends its time.

GACT, Liu et al. 2022, arXiv 2206.11357.
"""

from __future__ import annotations

import argparse
import cProfile
import os
import pstats
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from benchmarks._common import (
    RESULTS,
    ResultStore,
    environment,
    markdown_table,
    one_thread_steady_memory,
    run_all,
    write_keeping_findings,
)
from lightning_lr.activations.compression import ActivationCompressor, probe, reallocate
from lightning_lr.activations.compression.kernels import Kernels

FOLDER = RESULTS / "compression_networks"
TABLE = RESULTS / "compression_networks.md"
ARMS = ("8", "4", "auto-4", "2")
ROUNDS = 5
PROFILE_ROWS = 14
"""Steps of each arm that are counted; one more goes before."""


@dataclass(frozen=True)
class Network:
    """A network with a batch."""

    title: str
    make: Callable[[], nn.Module]
    batch: Callable[[], tuple[Tensor, ...]]
    loss: Callable[[nn.Module, tuple[Tensor, ...]], Tensor]


# ---------------------------------------------------------------------- the networks
def _transformers(kind: str, **settings: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        import transformers

        prefix = kind.split("For")[0].removesuffix("Model").removesuffix("LMHead")
        config = getattr(transformers, f"{prefix}Config")(**settings)
        made: nn.Module = getattr(transformers, kind)(config)
        return made

    return make


def _images(count: int, size: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(count, 3, size, size), torch.randint(0, 10, (count,)))


def _text(count: int, length: int, vocabulary: int = 512) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randint(0, vocabulary, (count, length)), torch.randint(0, vocabulary, (count, length)))


def _label(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]).logits, batch[1])


def _tokens(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    loss: Tensor = model(input_ids=batch[0], labels=batch[1]).loss
    return loss


def _tokens_without_cache(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    loss: Tensor = model(input_ids=batch[0], labels=batch[1], use_cache=False).loss
    return loss


def _of_examples(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return F.cross_entropy(model(batch[0]).flatten(0, -2), batch[1].flatten())


def _example(name: str, *arguments: Any) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        from examples import models

        made: nn.Module = getattr(models, name)(*arguments)
        return made

    return make


CLASSES = {"num_labels": 10}
NETWORKS: dict[str, Network] = {
    "resnet14": Network(
        "ResNet-14 of examples, 128 images of 28",
        _example("ResNet", 14),
        lambda: (torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))),
        _of_examples,
    ),
    "gpt": Network("GPT of examples, 16 x 128", _example("GPT"), _text(16, 128, 256), _of_examples),
    "resnet50": Network(
        "ResNet-50, 50 layers, 16 images of 64",
        _transformers(
            "ResNetForImageClassification", embedding_size=16, hidden_sizes=[64, 128, 256, 512], depths=[3, 4, 6, 3],
            **CLASSES,
        ),
        _images(16, 64),
        _label,
    ),
    "convnext": Network(
        "ConvNeXt, 18 blocks, 16 images of 64",
        _transformers(
            "ConvNextForImageClassification", hidden_sizes=[24, 48, 96, 192], depths=[3, 3, 9, 3], **CLASSES
        ),
        _images(16, 64),
        _label,
    ),
    "swin": Network(
        "Swin, 12 blocks, 2 images of 224",
        _transformers(
            "SwinForImageClassification", image_size=224, embed_dim=24, depths=[2, 2, 6, 2], num_heads=[1, 2, 4, 8],
            **CLASSES,
        ),
        _images(2, 224),
        _label,
    ),
    "vit": Network(
        "ViT, 12 blocks, 16 images of 64",
        _transformers(
            "ViTForImageClassification", image_size=64, patch_size=8, hidden_size=96, num_hidden_layers=12,
            num_attention_heads=4, intermediate_size=384, **CLASSES,
        ),
        _images(16, 64),
        _label,
    ),
    "bert": Network(
        "BERT, 12 blocks, 4 x 128, dropout 0.1",
        _transformers(
            "BertForMaskedLM", vocab_size=512, hidden_size=96, num_hidden_layers=12, num_attention_heads=4,
            intermediate_size=384,
        ),
        _text(4, 128),
        _tokens,
    ),
    "llama": Network(
        "Llama, 16 blocks, 4 x 128",
        _transformers(
            "LlamaForCausalLM", vocab_size=512, hidden_size=96, num_hidden_layers=16, num_attention_heads=4,
            num_key_value_heads=2, intermediate_size=256,
        ),
        _text(4, 128),
        _tokens_without_cache,
    ),
    "t5": Network(
        "T5, 12 + 12 blocks, 4 x 64, dropout 0.1",
        _transformers(
            "T5ForConditionalGeneration", vocab_size=512, d_model=96, d_kv=24, d_ff=384, num_layers=12, num_heads=4,
            decoder_start_token_id=0,
        ),
        _text(4, 64),
        _tokens_without_cache,
    ),
    "mamba": Network(
        "Mamba, 24 blocks, 2 x 16",
        _transformers("MambaForCausalLM", vocab_size=512, hidden_size=64, state_size=16, num_hidden_layers=24),
        _text(2, 16),
        _tokens_without_cache,
    ),
}  # fmt: skip


# ---------------------------------------------------------------------- measuring
def timed(
    network: Network, model: nn.Module, batch: tuple[Tensor, ...], compressor: ActivationCompressor | None
) -> float:
    """CPU seconds of one forward and backward; the gradients are those of the same dropout each time."""
    model.zero_grad(set_to_none=True)
    torch.manual_seed(1)
    begin = time.process_time()
    with nullcontext() if compressor is None else compressor.compressing(batch):
        loss = network.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return time.process_time() - begin


def measure(name: str) -> None:
    """Measure one network and save it."""
    network = NETWORKS[name]
    one_thread_steady_memory()
    torch.manual_seed(0)
    model, batch = network.make().train(), network.batch()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compressors: dict[str, ActivationCompressor | None] = {"bare": None}
    for arm in ARMS:
        compressors[arm] = ActivationCompressor(
            model, int(arm.removeprefix("auto-")), kernels=Kernels("native"), seed=len(compressors)
        )
    auto = compressors["auto-4"]
    assert auto is not None
    few = tuple(part[:2] for part in batch)
    reallocate(auto, probe(auto, lambda: network.loss(model, few), parameters, few), 4.0)

    def step(arm: str) -> tuple[Tensor, float]:
        spent = timed(network, model, batch, compressors[arm])
        return torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double(), spent

    true, _ = step("bare")
    arms: dict[str, dict[str, Any]] = {arm: {"cosines": [], "ratios": []} for arm in ARMS}
    sums = {arm: torch.zeros_like(true) for arm in ARMS}
    for arm in ARMS:
        step(arm)
    bare_seconds = []
    for _ in range(ROUNDS):
        bare_seconds.append(bare := step("bare")[1])
        for arm in ARMS:
            gradient, spent = step(arm)
            arms[arm]["cosines"].append(_cosine(gradient, true))
            arms[arm]["ratios"].append(spent / bare)
            sums[arm] += gradient
    for arm, record in arms.items():
        compressor = compressors[arm]
        assert compressor is not None
        record["cosine_of_mean"] = _cosine(sums[arm], true)
        record["raw_bytes"], record["held_bytes"] = compressor.tally.raw_bytes, compressor.tally.held_bytes
        record["mean_bits"] = compressor.tally.mean_bits
        record["codecs"] = {codec: list(size) for codec, size in compressor.tally.by("codec").items()}
        record["kept"] = _largest_kept(compressor)
    result = {"arms": arms, "bare_seconds": statistics.median(bare_seconds), "load": os.getloadavg()[0]}
    ResultStore(FOLDER).save(name, {"config": config(name), "result": result, "environment": environment()})


def profiled(name: str, bits: int = 4) -> str:
    """Where a step with compression spends its time: seconds in functions of ours and in the rest, tensors saved."""
    network = NETWORKS[name]
    one_thread_steady_memory()
    torch.manual_seed(0)
    model, batch = network.make().train(), network.batch()
    compressor = ActivationCompressor(model, bits, kernels=Kernels("native"), seed=1)

    timed(network, model, batch, compressor)
    bare, plain = timed(network, model, batch, None), timed(network, model, batch, compressor)
    profile = cProfile.Profile(time.process_time)  # CPU time: other work does not count
    profile.runcall(timed, network, model, batch, compressor)
    stats = pstats.Stats(profile)
    rows = sorted(stats.stats.items(), key=lambda row: -row[1][2])  # type: ignore[attr-defined]
    body = [
        [f"{Path(file).name}:{line} {function}" if line else function, f"{calls}", f"{own:.3f}", f"{whole:.3f}"]
        for (file, line, function), (_, calls, own, whole, _) in rows[:PROFILE_ROWS]
    ]
    sizes = [size.raw for size in compressor.tally.parts.values()]
    return (
        f"{network.title}, {bits} bits: bare step {bare:.3f} s of CPU, compressed {plain:.3f} s, "
        f"{compressor.tally.raw_bytes / 1e6:.1f} MB in {len(sizes)} kinds of saved tensors\n\n"
        + markdown_table(["function", "calls", "own s (profiled)", "with callees"], body)
    )


def config(name: str) -> dict[str, Any]:
    """What a saved file must agree with."""
    return {"network": name, "title": NETWORKS[name].title, "rounds": ROUNDS}


def _cosine(one: Tensor, other: Tensor) -> float:
    return float(one @ other / (one.norm() * other.norm()))


def _largest_kept(compressor: ActivationCompressor) -> dict[str, int]:
    """Bytes of what stayed as it is, by operation."""
    kept: dict[str, int] = {}
    for part, size in compressor.tally.parts.items():
        if part.codec == "kept":
            kept[part.operation] = kept.get(part.operation, 0) + size.held
    return dict(sorted(kept.items(), key=lambda item: -item[1])[:5])


# ---------------------------------------------------------------------- the table
def table(store: ResultStore) -> str:
    """A row per network and arm."""
    headings = ["network", "bits", "saved MB", "kept MB", "less", "cosine of a step", f"of {ROUNDS} steps' mean",
                "time of a step"]  # fmt: skip
    body, facts = [], ""
    for name, network in NETWORKS.items():
        record = store.load(name, config(name))
        if record is None:
            continue
        for arm, found in record["result"]["arms"].items():
            raw, held = found["raw_bytes"], found["held_bytes"]
            times = sorted(found["ratios"])
            body.append([
                network.title, arm, f"{raw / 1e6:.1f}", f"{held / 1e6:.2f}", f"{raw / held:.2f}x",
                f"{statistics.fmean(found['cosines']):.4f}", f"{found['cosine_of_mean']:.4f}",
                f"{statistics.median(times):.2f} ({times[0]:.2f} to {times[-1]:.2f})",
            ])  # fmt: skip
        facts = ", ".join(f"{what} {value}" for what, value in record["environment"].items())
    return (
        "# Compressed activations on networks that people use\n\n`python -m benchmarks.compression_networks`\n\n"
        f"{markdown_table(headings, body)}\n"
        f"Time of a step: CPU time over that of the bare step of its round, median (least to largest) of {ROUNDS}.\n\n"
        f"{facts}\n"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what is missing and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", help="names, separated by commas", default=",".join(NETWORKS))
    parser.add_argument("--again", action="store_true", help="measure also what is there")
    parser.add_argument("--dry-run", action="store_true", help="print what would be measured")
    parser.add_argument("--report", action="store_true", help="measure nothing, write the table")
    parser.add_argument("--profile", choices=NETWORKS, help="print where a step of one network spends its time")
    options = parser.parse_args(arguments)
    if options.profile:
        print(profiled(options.profile))
        return
    store = ResultStore(FOLDER)
    wanted = options.only.split(",")
    missing = [name for name in wanted if options.again or store.load(name, config(name)) is None]
    if options.dry_run:
        print(f"{len(missing)} of {len(wanted)} networks to be measured: {', '.join(missing)}; some minutes")
        return
    if not options.report:
        run_all(measure, missing, 1, str, "network")
    text = table(store)
    print(text)
    write_keeping_findings(TABLE, text)


if __name__ == "__main__":
    main(sys.argv[1:])
