"""The sums of a hypergradient by torch's operations, on any device: over packed tensors, and over one where it lies."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from lightning_lr.hypergradient import directions
from lightning_lr.hypergradient.directions import flat, pieces
from lightning_lr.hypergradient.last_update import LastUpdate
from lightning_lr.hypergradient.packing import ROW, Chunk, Number, Rows, moved

PIECE = 1 << 15
"""Elements that a CPU sums in single precision; more are off by 5e-12 times their number, 8e-6 for a million."""


class PackedSums:
    """Sums over chunks, one after the other in the same memory.

    Args:
        last: the optimizer's last update.
        chunks: all of them, as ``packing.pack`` makes them.
        size: elements that one operation works on at most.
    """

    def __init__(self, last: LastUpdate, chunks: Sequence[Chunk], size: int) -> None:
        self._last, self._size = last, size
        groups = len(last.optimizer.param_groups)
        self._rows = {id(chunk): Rows.of(chunk, groups) for chunk in chunks if not chunk.alone}
        self._scratch: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def sums(self, chunk: Chunk, scale: float) -> Tensor:
        """The three sums of ``Alignment`` for each group, over the tensors of a chunk."""
        return self._of_one(chunk, scale) if chunk.alone else self._of_rows(chunk, self._rows[id(chunk)], scale)

    # ------------------------------------------------------------------ inside
    def _of_rows(self, chunk: Chunk, rows: Rows, scale: float) -> Tensor:
        """Over tensors that are packed."""
        groups, last = self._last.optimizer.param_groups, self._last
        gradient = self._packed(chunk, rows, "gradient", [p.grad for p in chunk.parameters])
        if groups[chunk.groups[0]].get("maximize", False):
            gradient.neg_()
        decay = _numbers(chunk, lambda index: directions.penalty(last.family, groups[index]))
        decoupled: Number = 0.0
        if chunk.known:
            decoupled = _numbers(chunk, lambda index: directions.decoupled_decay(last.family, last.settings_of(index)))
        theta = gradient
        if not (_is(decay, 0.0) and _is(decoupled, 0.0)):
            theta = self._packed(chunk, rows, "parameter", chunk.parameters)
        if not _is(decay, 0.0):
            directions.add(gradient, theta, rows.spread(decay * scale, gradient.dtype), gradient)
        table = torch.zeros((rows.number, 3), dtype=_precise(gradient.device), device=gradient.device)
        table[:, 1] = torch.linalg.vecdot(gradient, gradient)
        if chunk.known:
            found = self._direction(chunk, decoupled)
            vectors = [
                self._packed(chunk, rows, f"source {index}", source, found.fill if index else 0.0)
                for index, source in enumerate(found.sources)
            ]
            numbers = [rows.spread(number, gradient.dtype) for number in found.numbers]
            d = found.formula(theta, vectors, numbers, vectors[-1]).to(gradient)
            table[:, 0] = torch.linalg.vecdot(gradient, d)
            table[:, 2] = torch.linalg.vecdot(d, d)
            if not _is(found.weight, 1.0):
                weight = rows.spread(found.weight, table.dtype)
                table[:, ::2] *= weight
                table[:, 2:] *= weight
        return rows.sum_by_group(table)

    def _of_one(self, chunk: Chunk, scale: float) -> Tensor:
        """Over a tensor that is read where it lies, part by part."""
        (parameter,), (owner,) = chunk.parameters, chunk.groups
        last = self._last
        group, settings = last.optimizer.param_groups[owner], last.settings_of(owner)
        assert parameter.grad is not None
        gradient, decay = flat([parameter.grad]), directions.penalty(last.family, group)
        decoupled = directions.decoupled_decay(last.family, settings) if chunk.known else 0.0
        theta = flat([parameter]) if decay or decoupled else gradient
        found = self._direction(chunk, decoupled) if chunk.known else None
        vectors = [flat(source) for source in found.sources] if found else []
        total = torch.zeros(3, dtype=_precise(gradient.device), device=gradient.device)
        for start in range(0, gradient.numel(), self._size):
            part = slice(start, start + self._size)
            g = gradient[part]
            if group.get("maximize", False):
                g = g.neg()
            if decay:
                g = g.add(theta[part], alpha=decay * scale)
            own = _dot(g, g)
            sums = [torch.zeros_like(own), own, torch.zeros_like(own)]
            if found:
                numbers = [n.to(g.dtype) if isinstance(n, Tensor) else n for n in found.numbers]
                d = found.formula(theta[part], [vector[part] for vector in vectors], numbers, None).to(g)
                sums = [_dot(g, d), own, _dot(d, d)]
            total += torch.stack(sums)
        if found and not _is(found.weight, 1.0):
            total[::2] *= found.weight
            total[2:] *= found.weight
        table = total.new_zeros((len(last.optimizer.param_groups), 3))
        table[owner] = total
        return table

    def _direction(self, chunk: Chunk, decay: Number) -> directions.Direction:
        """Of the last update of a chunk's tensors; ``decay`` is their decoupled one."""
        last = self._last
        assert last.lr is not None
        settings = {index: last.settings_of(index) for index in dict.fromkeys(chunk.groups)}
        states = [last.optimizer.state.get(p, {}) for p in chunk.parameters] if last.family != "other" else []
        copies = [last.copies[place] for place in chunk.places if place in last.copies]
        lr = _numbers(chunk, last.lr.__getitem__)
        return directions.direction(
            last.family,
            settings[chunk.groups[0]],
            lambda of: _numbers(chunk, lambda index: of(settings[index])),
            states,
            copies,
            lr,
            decay,
        )

    def _packed(self, chunk: Chunk, rows: Rows, name: str, tensors: Sequence[Any], fill: float = 0.0) -> Tensor:
        """The tensors in rows and ``fill`` between them, shape ``(rows, ROW)``; the next chunk uses the same memory."""
        parts = pieces(tensors)
        single = parts[0].dtype in (torch.float16, torch.bfloat16)
        key = (name, torch.float32 if single else parts[0].dtype, parts[0].device)
        buffer = self._scratch.get(key)
        if buffer is None:
            room = max(other.number for other in self._rows.values()) * ROW
            buffer = self._scratch[key] = torch.full((room,), fill, dtype=key[1], device=key[2])
        vector = buffer[: rows.number * ROW]
        if fill or len(self._rows) > 1:
            vector.fill_(fill)
        torch._foreach_copy_(rows.views(name, buffer, parts), parts)
        return vector.view(rows.number, ROW)


def _numbers(chunk: Chunk, value_of: Callable[[int], float]) -> Number:
    """A number of each group for the tensors of a chunk: itself if it is the same for all."""
    values = {index: value_of(index) for index in dict.fromkeys(chunk.groups)}
    if len(set(values.values())) == 1:
        return values[chunk.groups[0]]
    device = chunk.parameters[0].device
    return moved(torch.tensor([values[index] for index in chunk.groups], dtype=_precise(device)), device)


def _is(number: Number, value: float) -> bool:
    return not isinstance(number, Tensor) and number == value


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64  # mps has none


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b of two vectors, to be added to others in double precision."""
    if a.device.type == "mps":
        return torch.dot(a, b)
    if a.device.type != "cpu" or a.numel() <= PIECE:
        return torch.dot(a, b).double()
    parts = zip(torch.split(a, PIECE), torch.split(b, PIECE), strict=True)
    return torch.stack([torch.dot(*part) for part in parts]).sum(dtype=torch.float64)
