"""The hypergradient of a step: dot products of the gradient with the last update's direction, group by group.

On a CPU a kernel in C reads every tensor once (``cpu_sums``). Elsewhere the tensors of all groups are packed together
(``packed_sums``), so that the work is a few operations whatever the model and its groups look like. There is one table
of sums for all groups, one all-reduce where parameters are sharded, and one read of the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer

from lightning_lr.hypergradient import directions, packing
from lightning_lr.hypergradient.alignment import Alignment, read
from lightning_lr.hypergradient.cpu_sums import CpuSums, kernel
from lightning_lr.hypergradient.last_update import LastUpdate
from lightning_lr.hypergradient.packed_sums import PackedSums
from lightning_lr.hypergradient.packing import Chunk, pack
from lightning_lr.hypergradient.repeated_sums import RepeatedSums
from lightning_lr.shards import partition_of, sum_over_shards

CHUNK = 1 << 20
"""Elements that torch's operations work on at a time: 4 MB of scratch memory for each vector, and few operations."""

CHUNK_OF_DEVICE = 1 << 22
"""The same of a GPU, to which a launch costs more."""

_FACTS = attrgetter("shape", "dtype", "device")
_GRADIENT = attrgetter("grad")


class AlignmentEstimator(LastUpdate):
    r"""Measures :math:`g_t \cdot d_{t-1}` where the last update was :math:`\theta_t = \theta_{t-1} - \alpha d_{t-1}`.

    For each update, in this order: :meth:`sums` with the gradients that are about to be applied, :meth:`before_step`
    with the learning rates that are, the optimizer's step, :meth:`after_step`. A step that is not made leaves both out.

    An L2 penalty (``weight_decay`` of SGD and Adam) belongs to the gradient, as in the paper; decoupled decay (AdamW)
    belongs to the update.

    Args:
        optimizer: any torch optimizer whose updates are proportional to ``group["lr"]``.

    Raises:
        ValueError: for LBFGS, which searches its own step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        super().__init__(optimizer)
        self._signature: object = None
        self._simple: CpuSums | None = None
        self._repeated: RepeatedSums | None = None
        self._sums: list[tuple[Chunk, Callable[[float], Tensor]]] = []
        """How the parameters with a gradient are put together, and what sums over each part."""

    def sums(self, scale: float = 1.0) -> Tensor:
        """What :class:`Alignment` holds for each group, on the device of the parameters.

        Args:
            scale: what the gradients are multiplied by, where an AMP scaler's factor is still in them.

        Returns:
            shape ``(groups, 3)``.

        Raises:
            ValueError: for sparse gradients.
        """
        again = self._repeated.sums() if self._repeated is not None and scale == 1.0 else None
        if again is not None:
            return again
        without = self._moved_without_gradient()
        for parameter, penalty in without:
            parameter.grad = parameter.detach() * -penalty * scale if penalty else torch.zeros_like(parameter)
        try:
            return self._new_sums(scale)
        finally:
            if without:
                self._repeated = None
            for parameter, _ in without:
                parameter.grad = None

    def _new_sums(self, scale: float) -> Tensor:
        found, self._repeated = self._sums_now(), None
        if self._simple is not None and scale == 1.0:
            table = self._simple.sums(1.0)
            self._repeated = RepeatedSums.after(self._simple)
            return table
        if not found:
            return torch.zeros(len(self.optimizer.param_groups), 3)
        with torch.no_grad():
            return self._added_up(found, scale)

    def _moved_without_gradient(self) -> list[tuple[Tensor, float]]:
        """Parameters that the last update moved and that this one has no gradient of: their d counts, and g is 0.

        With each the penalty that will be added to its gradient, which this update leaves out too.
        """
        parameters, owners = self.all()
        absent = [place for place, g in enumerate(map(_GRADIENT, parameters)) if g is None and place not in self.idle]
        known = self.known(parameters, owners) if absent else []
        found = []
        for place in absent:
            if known[place]:
                group = self.optimizer.param_groups[owners[place]]
                penalty = directions.penalty(self.family, group)
                found.append((parameters[place], -penalty if group.get("maximize") else penalty))
        return found

    def measure(self, scale: float = 1.0) -> list[Alignment]:
        """:meth:`sums`, read from the device."""
        return read(self.sums(scale), [])[0]

    # ------------------------------------------------------------------ inside
    def _added_up(self, found: list[tuple[Chunk, Callable[[float], Tensor]]], scale: float) -> Tensor:
        """The sums over all chunks, and over the ranks that hold parts of them."""
        holders, tables = _by_holder([(chunk, sums(scale)) for chunk, sums in found])
        table = tables[0]
        if len(tables) > 1 or isinstance(holders[0], DTensor):
            stacked = torch.stack([other.to(table) for other in tables])
            table = sum_over_shards(stacked, holders).sum(0)
        if scale != 1.0:
            table = torch.stack((table[:, 0] / scale, table[:, 1] / scale**2, table[:, 2]), 1)
        partition = partition_of(holders)
        return table if partition is None else sum_over_shards(table, [partition] * len(table))

    def _sums_now(self) -> list[tuple[Chunk, Callable[[float], Tensor]]]:
        """What sums over each chunk; that of the last update, where nothing has changed."""
        parameters, owners = self.all()
        facts = list(map(_FACTS, parameters))
        given = [gradient is not None for gradient in map(_GRADIENT, parameters)]
        known, kinds = self.known(parameters, owners), self._kinds()
        signature = (list(map(id, parameters)), given, facts, owners, known, kinds, CHUNK)
        if signature != self._signature:
            self._signature = signature
            self._sums = self._put_together(parameters, owners, known, list(zip(*kinds, strict=True)))
        return self._sums

    def _put_together(
        self, parameters: list[Tensor], owners: list[int], known: list[bool], kinds: list[object]
    ) -> list[tuple[Chunk, Callable[[float], Tensor]]]:
        self._simple = None
        on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
        native = kernel() if on_cpu and any(parameter.grad is not None for parameter in parameters) else None
        if native is not None:
            chunks = list(pack(parameters, owners, known, kinds, math.inf, math.inf))
            first = chunks[0].parameters[0]
            spread = isinstance(first, DTensor) or partition_of(parameters) is not None
            parts = [CpuSums(native, self, chunk) for chunk in chunks]
            if len(parts) == 1 and not spread and not first.is_complex():  # nothing is to be added up
                self._simple = parts[0]
            return [(part.chunk, part.sums) for part in parts]
        size = CHUNK if on_cpu else max(CHUNK, CHUNK_OF_DEVICE)
        chunks = list(pack(parameters, owners, known, kinds, size, packing.ALONE if on_cpu else size))
        packed = PackedSums(self, chunks, CHUNK)
        return [(chunk, partial(packed.sums, chunk)) for chunk in chunks]

    def _kinds(self) -> list[list[Any]]:
        """What tells formulas apart, of each group: in this update, and in the last."""
        kinds = [[group.get("maximize") for group in self.optimizer.param_groups]]
        if self.family == "adam":
            kinds.append(self.column("amsgrad"))
        if self.family == "sgd":
            kinds += [self.column("nesterov"), [momentum == 0 for momentum in self.column("momentum")]]
        return kinds


def _by_holder(found: list[tuple[Chunk, Tensor]]) -> tuple[list[Tensor], list[Tensor]]:
    """One table for all chunks that are sharded alike, with one of their parameters, in an order that all ranks share.

    What else tells chunks apart may differ between ranks: whether there is a compiler, for one.
    """
    tables: dict[object, tuple[int, Tensor, Tensor]] = {}
    for chunk, table in found:
        parameter, place = chunk.parameters[0], chunk.places[0]
        key = (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None
        if key in tables:
            first, holder, known = tables[key]
            tables[key] = (min(first, place), holder if first < place else parameter, known + table.to(known))
        else:
            tables[key] = (place, parameter, table)
    ordered = sorted(tables.values(), key=lambda entry: entry[0])
    return [holder for _, holder, _ in ordered], [table for _, _, table in ordered]
