"""What ``plan`` shows about activations: the segments of a checkpointed strategy and the bytes that are left.

Nothing of the run is needed but the module and a batch of its data: two forwards of a few samples are measured on this
machine's CPU and extrapolated to the batch of the run.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from lightning_lr.activations import CheckpointPolicy
from lightning_lr.activations.compression import ActivationCompressor, CompressionSettings, Size, described
from lightning_lr.cli.errors import described as described_error
from lightning_lr.memory import LiveBytes, extrapolate_checkpointing
from lightning_lr.nested import batch_tensors, samples_in, with_samples
from lightning_lr.patching import buffers_put_back
from lightning_lr.strategies import CheckpointedDDPStrategy, CheckpointedStrategy, ZeROStrategy

FEW, MANY = 4, 8
"""Samples of the two forwards."""
PACKED_FEW, PACKED_MANY = 32, 64
"""The same under compression, which leaves tensors of fewer numbers than a group has as they are."""


def configured_policy(strategy: Any) -> CheckpointPolicy | None:
    """The policy of a strategy that checkpoints, as a configuration has it: a name, or ``class_path`` and more."""
    known = (CheckpointedStrategy, CheckpointedDDPStrategy)
    if isinstance(strategy, str):
        return CheckpointPolicy() if strategy in [cls.strategy_name for cls in known] else None
    name = str(strategy.get("class_path", "")) if strategy is not None and hasattr(strategy, "get") else ""
    name = name.rsplit(".", 1)[-1]
    if name not in [cls.__name__ for cls in (*known, ZeROStrategy)]:
        return None
    init_args = strategy.get("init_args") or {}
    given = init_args.get("checkpointing" if name == ZeROStrategy.__name__ else "policy")
    if given is None and name == ZeROStrategy.__name__:
        return None  # without the argument it keeps everything
    if given is None or isinstance(given, CheckpointPolicy):
        return given or CheckpointPolicy()
    return CheckpointPolicy(**dict(vars(given) if not isinstance(given, Mapping) else given))


def stepping(batch: Any, precision: Any) -> Callable[[LightningModule, int], Tensor] | None:
    """The training step of a module on a few samples of a batch, which repeat where it has fewer.

    ``None`` for a batch without tensors.
    """
    samples = samples_in(batch)
    if samples is None:
        return None
    enough = with_samples(batch, max(samples, MANY))  # made once: what is cut from it takes no memory of its own
    mixed = "mixed" in str(precision)

    def step(module: LightningModule, few: int) -> Tensor:
        autocast: AbstractContextManager[Any] = torch.autocast("cpu", torch.bfloat16) if mixed else nullcontext()
        with warnings.catch_warnings(), autocast:
            warnings.simplefilter("ignore")  # self.log without a Trainer
            loss = module.training_step(with_samples(enough, few), 0)
        assert loss is not None
        return loss["loss"] if isinstance(loss, Mapping) else loss

    return step


def _tried(model: LightningModule, batch: Any, precision: Any, notes: list[str]) -> Callable[[int], Tensor] | None:
    """The step, if it works here; else a note."""
    step = stepping(batch, precision)
    if step is None:
        notes.append(f"activations are not planned: the batch ({type(batch).__name__}) holds no tensors")
        return None
    try:
        with buffers_put_back(model), torch.random.fork_rng(devices=[]):
            step(model, FEW)
    except Exception as error:  # most often: the step asks for its Trainer
        notes.append(
            f"activations are not planned: {type(model).__name__}.training_step does not work without a Trainer "
            f"({described_error(error)})"
        )
        return None
    return partial(step, model)


def saved_bytes(
    policy: CheckpointPolicy | None,
    compressor: ActivationCompressor | None,
    model: LightningModule,
    batch: Any,
    samples: int,
    precision: Any,
    notes: list[str],
) -> float | None:
    """What a rank keeps for the backward of a micro-batch at the peak, in bytes; ``None``, and a note, where the module
    needs a Trainer.

    Args:
        policy: of checkpointing; ``None`` keeps everything.
        compressor: of what is kept; ``None`` for none.
        model: that is trained; nothing in it changes but the random state.
        batch: of its data.
        samples: of the micro-batch in question.
        precision: the Trainer's.
        notes: where a reason goes.

    Raises:
        PlanError: where the policy refuses.
    """
    step = _tried(model, batch, precision, notes)
    if step is None:
        return None
    if policy is not None:
        kept = extrapolate_checkpointing(
            model, step, samples or samples_in(batch) or MANY, policy, (FEW, MANY)
        ).peak_bytes
        return float(kept)
    few, many = (_kept(model, step, n, compressor) for n in (FEW, MANY))
    return max(0.0, few + (many - few) * (samples - FEW) / (MANY - FEW))


def _kept(
    model: LightningModule, step: Callable[[int], Tensor], samples: int, compressor: ActivationCompressor | None
) -> float:
    ledger = LiveBytes(model)
    with buffers_put_back(model), torch.random.fork_rng(devices=[]):
        if compressor is not None:
            with compressor.compressing() as tally:
                step(samples)
            return float(tally.held_bytes)
        with ledger.counting():
            loss = step(samples)
            kept = float(ledger.live)
        del loss  # it holds the graph
    return kept


def activation_summary(
    policy: CheckpointPolicy, model: LightningModule, batch: Any, precision: Any, notes: list[str]
) -> dict[str, str]:
    """What the policy does to a micro-batch like this one; nothing, and a note, where the module needs a Trainer.

    Raises:
        PlanError: where the policy refuses this network or this batch.
    """
    samples = samples_in(batch)
    step = _tried(model, batch, precision, notes)
    if step is None or samples is None:
        return {}
    if policy.memory_budget == "auto":
        notes.append("memory_budget='auto' is decided by the memory that is free in training; shown is no budget")
    plan = extrapolate_checkpointing(model, step, samples, policy, (FEW, MANY))
    return {"activations": f"{plan.describe()}, per device and micro-batch of {samples} ({plan.recomputed:.0%} of the "
            "blocks' forward is repeated)"}  # fmt: skip


def compression_summary(
    settings: CompressionSettings, model: LightningModule, batch: Any, precision: Any, notes: list[str]
) -> dict[str, str]:
    """What compression makes of a micro-batch like this one, by codec; nothing, and a note, as above."""
    samples = samples_in(batch)
    step = _tried(model, batch, precision, notes)
    if step is None or samples is None:
        return {}
    whole = samples <= PACKED_MANY
    few, many = (
        _packed(settings.compressor(model, 0), step, batch, n)
        for n in ((samples, samples) if whole else (PACKED_FEW, PACKED_MANY))
    )
    beyond = 0.0 if whole else (samples - PACKED_FEW) / (PACKED_MANY - PACKED_FEW)

    def at(codec: str, which: int) -> int:
        a, b = (sizes.get(codec, Size(0, 0))[which] for sizes in (few, many))
        return max(0, round(a + (b - a) * beyond))

    sizes = {codec: Size(at(codec, 0), at(codec, 1)) for codec in many}
    until = "" if isinstance(settings.bits, int) else ", until sensitivities are measured"
    return {"saved activations": f"{described(sizes)}; per device and micro-batch of {samples}{until}"}


def _packed(
    compressor: ActivationCompressor, step: Callable[[int], Tensor], batch: Any, samples: int
) -> dict[str, Size]:
    """Bytes by codec that one forward of so many samples saves."""
    with torch.random.fork_rng(devices=[]), compressor.compressing(batch_tensors(batch)) as tally:
        step(samples)
    return tally.by("codec")
