"""Remember what an engine trains, and put it back to the bit, so that a branch can be trained from it.

Between two updates the engine holds no gradient: what it would go on from are its flat vectors (the weights that the
module shares with it up to stage 2, this rank's pieces of them in stage 3, and the fp32 masters), the client
optimizer's state on them, the loss scaler, its counters and marks. The client optimizer is forked as any other. Every
rank forks its own shards, and all restore at the same time.

Checked against DeepSpeed 0.19.8, whose privates are used here.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_lr.branches import ForkedState
from lightning_lr.strategies.zero.gradients import Gradients


class ForkedEngine:
    """The state of an engine at the moment of construction.

    Args:
        engine: between two updates.
        gradients: what ``parameter.grad`` is to the module under this engine.
    """

    def __init__(self, engine: Any, gradients: Gradients) -> None:
        self._sharded = sharded = engine.optimizer
        self._third = hasattr(sharded, "fp32_partitioned_groups_flat")
        self._partition()
        parameters = list(engine.module.parameters())
        vectors = self._vectors(parameters)
        self.leave_out: list[Any] = [*vectors, *self._held_elsewhere(parameters)]
        """What a fork of module and optimizer must not enter: it is remembered here."""
        copies: dict[tuple[int, int], Tensor] = {}
        for vector in vectors:  # without autocast some of them are one
            copies.setdefault((vector.data_ptr(), vector.numel()), vector.detach().to("cpu", copy=True))
        self._copies = [(vector, copies[vector.data_ptr(), vector.numel()]) for vector in vectors]
        self.copied_bytes = sum(copy.numel() * copy.element_size() for copy in copies.values())
        """Size of the copies on the host."""
        self._marks = ForkedState(
            [engine, sharded, sharded.loss_scaler, gradients],
            leave_out=[engine.module, sharded.optimizer, *self.leave_out],
            tensors=False,
        )

    def restore(self) -> None:
        """Put everything back, in place. What stage 3 had gathered is in pieces again, and gathered when needed."""
        self._partition()
        with torch.no_grad():
            for vector, copy in self._copies:
                vector.detach().copy_(copy)
        self._marks.restore()

    # ------------------------------------------------------------------ inside
    def _partition(self) -> None:
        """Gathered parameters are copies of the pieces; dropped, they cannot be older than these."""
        if self._third:
            self._sharded._partition_all_parameters()

    def _vectors(self, parameters: list[Any]) -> list[Tensor]:
        sharded = self._sharded
        if not self._third:
            return [*sharded.bit16_groups_flat, *sharded.single_partition_of_fp32_groups]
        trained = {id(parameter) for group in sharded.fp16_groups for parameter in group}
        frozen = [p.ds_tensor for p in parameters if hasattr(p, "ds_tensor") and id(p) not in trained]
        return [*sharded.fp16_partitioned_groups_flat, *sharded.fp32_partitioned_groups_flat, *frozen]

    def _held_elsewhere(self, parameters: list[Any]) -> list[Tensor]:
        """The parameters that are views of the vectors, or have their values in pieces."""
        if self._third:
            return [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
        return [parameter for group in self._sharded.bit16_groups for parameter in group]


def why_not_forked(engine: Any) -> str | None:
    """Why an engine's state cannot be put back; ``None`` where it can."""
    sharded = engine.optimizer
    if getattr(sharded, "swap_optimizer", False) or getattr(sharded, "params_in_nvme_and_cpu", False):
        return "it keeps a part of its state on NVMe; offload to 'cpu'"
    if getattr(sharded, "zenflow", False):
        return "ZenFlow steps the host's part of an update later"
    return None
