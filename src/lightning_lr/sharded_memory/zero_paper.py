"""The ZeRO paper's model: what a rank holds, and what it sends for an update."""

from __future__ import annotations

from lightning_lr.sharded_memory.model_size import HALF, WHOLE, ModelSize, Stage


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
