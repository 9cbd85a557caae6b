r"""What parameters, gradients and optimizer hold on each rank, by ZeRO stage, and what the ranks send each other.

Two models stand side by side, because one formula cannot be both. :func:`paper_bytes` is that of the ZeRO paper.
:func:`engine_bytes` is what DeepSpeed's engine holds at the end of a backward: it keeps an fp32 master of each shard
even where the model is fp32, its stage 1 holds as little as its stage 2 without accumulation, and there are buckets.
`benchmarks/zero_memory.py` measures it. Activations are not here: see :mod:`lightning_lr.memory`. Pure torch.

Source: Rajbhandari, Rasley, Ruwase & He 2020, arXiv:1910.02054; for offload Ren et al. 2021, arXiv:2101.06840.
"""

from __future__ import annotations

import inspect
import math
from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

WHOLE = 4
"""Bytes of an fp32 number."""
HALF = 2
"""Bytes of a bf16 or fp16 number."""

Stage = Literal[0, 1, 2, 3]
STAGES: tuple[Stage, ...] = (0, 1, 2, 3)


# ---------------------------------------------------------------------- the model
@dataclass(frozen=True)
class ModelSize:
    """What of a model its memory depends on.

    Args:
        trainable: numbers in each trainable parameter.
        frozen: numbers in all parameters that are not trained.
        state_bytes: what the optimizer keeps for a trainable number, in bytes: 0 for SGD, 4 with momentum, 8 for Adam.
    """

    trainable: tuple[int, ...]
    frozen: int = 0
    state_bytes: float = 2 * WHOLE

    @classmethod
    def of(cls, module: nn.Module, optimizer: Optimizer | None = None) -> ModelSize:
        """The size of a module, with the state of its optimizer (of Adam where none is given)."""
        trainable = tuple(p.numel() for p in module.parameters() if p.requires_grad)
        frozen = sum(p.numel() for p in module.parameters() if not p.requires_grad)
        return cls(trainable, frozen) if optimizer is None else cls(trainable, frozen, state_bytes(optimizer))

    @property
    def numbers(self) -> int:
        """Trainable numbers."""
        return sum(self.trainable)

    def shard(self, ranks: int) -> int:
        """Trainable numbers of a rank in stage 3, where each parameter is padded to a multiple of the ranks."""
        return sum(math.ceil(numbers / ranks) for numbers in self.trainable)


def state_bytes(optimizer: Optimizer) -> float:
    """What an optimizer keeps for each number that it trains, in bytes; the mean over its groups.

    The optimizer is asked: a copy of it steps once on small flat fp32 vectors, as ZeRO's shards are, and its state is
    counted. What does not grow with the vector (step counts) is not in it.

    Args:
        optimizer: any torch optimizer, with its hyperparameters; neither it nor its parameters change.

    Raises:
        ValueError: for an optimizer that cannot step on its own, with what it said.
    """
    total = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    kept = 0.0
    for group in optimizer.param_groups:
        few, many = 256, 512
        growth = (_kept_after_a_step(optimizer, group, many) - _kept_after_a_step(optimizer, group, few)) / (many - few)
        kept += growth * sum(p.numel() for p in group["params"]) / max(total, 1)
    return kept


def _kept_after_a_step(optimizer: Optimizer, group: dict[str, Any], numbers: int) -> int:
    parameter = nn.Parameter(torch.ones(numbers))
    parameter.grad = torch.full((numbers,), 0.5)
    try:
        with torch.enable_grad():
            copy = _alike(optimizer, group, parameter)
            copy.step(lambda: float(parameter.detach().sum()))
    except Exception as error:
        raise ValueError(
            f"state_bytes: {type(optimizer).__name__} does not step on its own ({error}); give ModelSize the bytes "
            "that it keeps for each number"
        ) from error
    return sum(t.numel() * t.element_size() for t in _tensors(copy.state[parameter]))


def _alike(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter) -> Optimizer:
    """An optimizer of the same class and hyperparameters, for another parameter and without the user's hooks."""
    kind = type(optimizer)
    taken = inspect.signature(kind).parameters
    try:
        return kind([parameter], **{key: value for key, value in group.items() if key in taken and key != "params"})
    except Exception:  # what it was made of is not in its group: its attributes then, as they are
        copy = object.__new__(kind)
        hooks = {key: OrderedDict[Any, Any]() for key in vars(optimizer) if key.endswith("_hooks")}
        copy.__dict__.update(vars(optimizer) | hooks)
        copy.state = defaultdict(dict)
        copy.param_groups = [{**group, "params": [parameter]}]
        return copy


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    parts = state.values() if isinstance(state, dict) else state if isinstance(state, Sequence) else ()
    return [] if isinstance(state, str) else [tensor for part in parts for tensor in _tensors(part)]


# ---------------------------------------------------------------------- the paper
def paper_bytes(model: ModelSize, stage: Stage, ranks: int, *, half: bool = True) -> float:
    r"""Model states of a rank in the ZeRO paper's model, in bytes.

    .. math::
        \text{0: } (p + g + K) \Psi \quad \text{1: } (p + g) \Psi + K \Psi / N \quad
        \text{2: } p \Psi + (g + K) \Psi / N \quad \text{3: } (p + g + K) \Psi / N

    with :math:`\Psi` parameters on :math:`N` ranks; :math:`p = g = 2` and :math:`K` = 4 (master) + the optimizer's
    state in mixed precision, :math:`p = g = 4` and :math:`K` = the state in fp32. For Adam in mixed precision K = 12.

    Args:
        model: its size.
        stage: 0 (data parallel), 1 (optimizer state sharded), 2 (and gradients), 3 (and parameters).
        ranks: N.
        half: mixed precision, bf16 or fp16.
    """
    number = HALF if half else WHOLE
    optimizer = model.state_bytes + (WHOLE if half else 0)
    parameters, gradients = number * (model.numbers + model.frozen), number * model.numbers
    shards = [1 if stage < 3 else ranks, 1 if stage < 2 else ranks, 1 if stage < 1 else ranks]
    return parameters / shards[0] + gradients / shards[1] + optimizer * model.numbers / shards[2]


# ---------------------------------------------------------------------- the engine
@dataclass(frozen=True)
class EngineSettings:
    """What of DeepSpeed's configuration decides about memory; the defaults are Lightning's. All in numbers, not bytes.

    Args:
        offload_optimizer: optimizer state and fp32 masters live in the host's memory (stages 1 to 3).
        offload_parameters: so do the parameters' shards (stage 3).
        reduce_bucket_size: gradients that are reduced at once. The bucket is allocated whole, however small the model.
        overlap_comm: a second bucket is filled while the first one travels (stages 1 and 2).
        persistence_threshold: parameters up to this size stay whole on every rank (stage 3).
        prefetch_bucket_size: parameters that are gathered ahead of their use (stage 3).
        max_live_parameters: gathered parameters that may be alive at a time, beside those (stage 3).
    """

    offload_optimizer: bool = False
    offload_parameters: bool = False
    reduce_bucket_size: int = 200_000_000
    overlap_comm: bool = True
    persistence_threshold: int = 100_000
    prefetch_bucket_size: int = 50_000_000
    max_live_parameters: int = 1_000_000_000


@dataclass(frozen=True)
class Held:
    """Bytes of a rank, by what they are for.

    Args:
        parameters: as the forward uses them.
        gradients: at the end of a backward.
        optimizer: its state, and the fp32 masters.
        lasting_buckets: there at the end of a backward too.
        passing_buckets: there during forward and backward only: reduce buckets, and the most that stage 3 gathers.
        host: in the host's memory, where something is offloaded.
    """

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    lasting_buckets: float = 0.0
    passing_buckets: float = 0.0
    host: float = 0.0

    @property
    def model_states(self) -> float:
        """On the device, without buckets."""
        return self.parameters + self.gradients + self.optimizer

    @property
    def after_backward(self) -> float:
        """On the device at the end of a backward."""
        return self.model_states + self.lasting_buckets

    @property
    def peak(self) -> float:
        """The most on the device at a time, without activations and without what a step needs for a moment."""
        return self.after_backward + self.passing_buckets


def ddp_bytes(model: ModelSize, *, half: bool = False) -> Held:
    """What torch's DDP holds: parameters, gradients and state, and buckets, which are a copy of the gradients
    (``gradient_as_bucket_view=False``, Lightning's default).

    Args:
        model: its size.
        half: everything is in 16 bits (``bf16-true``); ``-mixed`` precision is autocast here and changes none of it.
    """
    number = HALF if half else WHOLE
    gradients = number * model.numbers
    state = model.state_bytes * model.numbers * number / WHOLE
    return Held(number * (model.numbers + model.frozen), gradients, state, gradients)


def engine_bytes(
    model: ModelSize,
    stage: Stage,
    ranks: int,
    *,
    half: bool = False,
    accumulation: int = 1,
    settings: EngineSettings | None = None,
) -> Held:
    r"""What DeepSpeed's engine holds on a rank, in bytes.

    With b bytes for a number of the model (2 in bf16 and fp16, 4 in fp32), s bytes of optimizer state, :math:`\Psi`
    trainable parameters and N ranks, at the end of a backward:

    .. math::
        \text{0: } (2 b + s) \Psi \; (+ 4 \Psi \text{ in half precision}) \quad
        \text{1, 2: } b \Psi + (b + 4 + s) \Psi / N \quad \text{3: } (2 b + 4 + s) \Psi / N + b \cdot \text{bucket}

    Stage 1 holds whole gradients while it accumulates. With the optimizer offloaded the last term is the host's, and
    there are copies for the way: a shard of parameters and an fp32 shard of gradients in stages 1 and 2, an fp32 shard
    of gradients beside the accumulated one in stage 3.

    Args:
        model: its size.
        stage: 0 is the engine without ZeRO.
        ranks: N.
        half: whether the engine's bf16 or fp16 is on; Lightning switches it on for ``-mixed`` and for ``-true``.
        accumulation: micro-batches per update.
        settings: of the engine; Lightning's defaults where not given.

    Raises:
        ValueError: for a stage that cannot offload what is to be offloaded, or less than one rank.

    Checked with DeepSpeed 0.19.8 by `benchmarks/zero_memory.py`.
    """
    settings = settings or EngineSettings()
    if ranks < 1:
        raise ValueError(f"engine_bytes: got ranks={ranks}; there is at least one")
    if settings.offload_parameters and stage < 3:
        raise ValueError(
            f"engine_bytes: stage {stage} keeps whole parameters on the device; only stage 3 offloads them"
        )
    if settings.offload_optimizer and stage < 1:
        raise ValueError("engine_bytes: stage 0 offloads nothing; take stage 1, 2 or 3")
    number = HALF if half else WHOLE
    bucket = number * settings.reduce_bucket_size
    if stage == 0:
        masters = WHOLE * model.numbers if half else 0
        optimizer = model.state_bytes * model.numbers + masters
        return Held(number * (model.numbers + model.frozen), number * model.numbers, optimizer)
    if stage == 3:
        return _stage_3(model, ranks, number, bucket, settings)
    shard, largest = model.numbers / ranks, number * max(model.trainable, default=0)
    buckets = bucket * (1 + settings.overlap_comm)
    held = Held(
        parameters=number * (model.numbers + model.frozen),
        gradients=number * shard,
        optimizer=(WHOLE + model.state_bytes) * shard,
        passing_buckets=buckets,
    )
    if stage == 1 and accumulation > 1:  # nothing is reduced before the last backward
        held = replace(held, gradients=number * model.numbers, lasting_buckets=buckets, passing_buckets=0.0)
    if not settings.offload_optimizer:
        return held
    host = held.optimizer + (number + WHOLE) * shard + largest
    waiting = held.gradients if stage == 1 and accumulation > 1 else 0.0
    return replace(held, gradients=waiting, optimizer=0.0, lasting_buckets=held.lasting_buckets + largest, host=host)


def _stage_3(model: ModelSize, ranks: int, number: int, bucket: float, settings: EngineSettings) -> Held:
    shard = model.shard(ranks)
    parameters = number * (shard + math.ceil(model.frozen / ranks))
    gradients, optimizer = number * shard, (WHOLE + model.state_bytes) * shard
    persistent = number * sum(n for n in model.trainable if n <= settings.persistence_threshold)
    alive = settings.max_live_parameters + settings.prefetch_bucket_size
    gathered = number * min(model.numbers + model.frozen, alive) - persistent
    host = 0.0
    if settings.offload_optimizer:
        host += gradients + optimizer + WHOLE * shard
        gradients = optimizer = 0
    if settings.offload_parameters:
        host += parameters
        parameters = 0
    return Held(parameters + persistent, gradients, optimizer, bucket, max(0, gathered), host)


# ---------------------------------------------------------------------- communication
def communication_rounds(stage: Stage, accumulation: int = 1) -> int:
    r"""What a rank sends for an update, in multiples of the model's parameters.

    An all-reduce is a reduce-scatter and an all-gather, and counts 2. Stages 0 and 1 reduce once per update; stage 2
    reduces every micro-batch's gradients into shards and gathers parameters once; stage 3 gathers for each forward and
    each backward. With k micro-batches per update: 2, 2, k + 1, 3 k; the paper's 2, 2, 2, 3 are those of k = 1.
    """
    return {0: 2, 1: 2, 2: accumulation + 1, 3: 3 * accumulation}[stage]


def communication_bytes(
    model: ModelSize, stage: Stage, ranks: int, *, half: bool = False, accumulation: int = 1
) -> float:
    """What a rank sends for an update, in bytes: a ring passes on (N - 1) / N of what it reduces or gathers."""
    volume = communication_rounds(stage, accumulation) * model.numbers
    return volume * (HALF if half else WHOLE) * (ranks - 1) / ranks
