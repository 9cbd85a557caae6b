"""What DDP and DeepSpeed's engine hold on a rank."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from lightning_lr.sharded_memory.model_size import HALF, WHOLE, ModelSize, Stage


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
        max_live_parameters: gathered parameters that may be alive at a time, on top of those (stage 3).
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
    of gradients on top of the accumulated one in stage 3.

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
