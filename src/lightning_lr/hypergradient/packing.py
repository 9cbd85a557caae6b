"""How an optimizer's tensors are put together, so that a hypergradient is a few operations whatever the model is.

Small tensors are packed together, of all groups, each from the beginning of a row of its own: sums of rows are sums
over tensors and groups then, and what differs between tensors (Adam's steps) or groups (decay) is one number for each
row. A large tensor is read where it lies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor

from lightning_lr.shards import local

ROW = 128
"""Elements of a row: few enough to waste little on biases, and to be summed in single precision."""

ALONE = 1 << 16
"""From so many elements on a CPU a tensor is read where it lies: to copy it takes longer than a few more operations."""

Number = float | Tensor
"""One number for all, or a tensor with one for each tensor of a chunk."""


@dataclass
class Chunk:
    """Tensors whose last updates are made by one formula, and are known or not."""

    known: bool
    parameters: list[Tensor] = field(default_factory=list)
    places: list[int] = field(default_factory=list)
    groups: list[int] = field(default_factory=list)
    """Index of the group of each."""
    elements: int = 0
    alone: bool = False
    """Whether it is one tensor, which is read where it lies."""


class Rows:
    """Where tensors lie in a vector of rows that begin and end with one of them; the rest of a last row is filled up.

    Args:
        sizes: elements of each tensor.
        owners: index of the group of each, none below the one before it.
        groups: number of groups.
        device: where the tensors are.
    """

    def __init__(self, sizes: Sequence[int], owners: Sequence[int], groups: int, device: torch.device) -> None:
        counts = [-(-size // ROW) for size in sizes]
        self.number = sum(counts)
        self.starts = [ROW * sum(counts[:index]) for index in range(len(counts))]
        self.tensor_of_row = moved(torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts)), device)
        self._lengths = [
            sum(count for count, owner in zip(counts, owners, strict=True) if owner == group) for group in range(groups)
        ]
        self._lengths_there = moved(torch.tensor(self._lengths), device)
        self._views: dict[str, tuple[Tensor, list[Tensor]]] = {}

    @classmethod
    def of(cls, chunk: Chunk, groups: int) -> Rows:
        """Rows for the tensors of a chunk."""
        pieces = [local(parameter) for parameter in chunk.parameters]
        sizes = [piece.numel() * (2 if piece.is_complex() else 1) for piece in pieces]
        return cls(sizes, chunk.groups, groups, pieces[0].device)

    def views(self, name: str, buffer: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The parts of ``buffer`` that the tensors have there; made once for each name."""
        made = self._views.get(name)
        if made is None or made[0] is not buffer:
            parts = [
                buffer[start : start + tensor.numel()].view(tensor.shape)
                for start, tensor in zip(self.starts, tensors, strict=True)
            ]
            made = self._views[name] = (buffer, parts)
        return made[1]

    def spread(self, value: Number, dtype: torch.dtype) -> Number:
        """One number for each row, as a column, from one for each tensor."""
        return value[self.tensor_of_row].to(dtype).unsqueeze(1) if isinstance(value, Tensor) else value

    def sum_by_group(self, table: Tensor) -> Tensor:
        """Sums over the rows of each group; the same bits whenever the rows are the same."""
        if self.number == 0:
            return table.new_zeros(len(self._lengths), *table.shape[1:])
        if table.device.type == "mps":  # has no kernel for it
            return torch.stack([part.sum(0) for part in torch.split(table, self._lengths)])
        # the other ways do not do: index_add_ adds in any order on a GPU, and a product with zeros spreads what is not
        # finite to other groups. unsafe: the lengths are not read back to be checked
        return torch.segment_reduce(table, "sum", lengths=self._lengths_there, axis=0, unsafe=True)


def pack(
    parameters: Sequence[Tensor],
    owners: Sequence[int],
    known: Sequence[bool],
    kinds: Sequence[object],
    size: float,
    alone: float,
) -> Iterator[Chunk]:
    """Chunks of the parameters that have a gradient.

    Args:
        parameters: all of the optimizer.
        owners: index of the group of each.
        known: whether its last update is.
        kinds: of each group, a key; parameters of which it differs are not packed together.
        size: elements that a chunk of more than one parameter has at most.
        alone: elements from which a parameter is a chunk of its own.

    Raises:
        ValueError: for sparse gradients.
    """
    open_chunks: dict[object, Chunk] = {}
    for place, (parameter, owner) in enumerate(zip(parameters, owners, strict=True)):
        gradient = parameter.grad
        if gradient is None:
            continue
        if gradient.layout != torch.strided:
            raise ValueError(
                f"hypergradient: parameter {place} of the optimizer (shape {tuple(parameter.shape)}) has a sparse "
                "gradient, of which no dot product with the last update is taken; use sparse=False in its embedding"
            )
        key = (
            known[place],
            kinds[owner],
            parameter.dtype,
            parameter.device,
            (parameter.device_mesh, parameter.placements) if isinstance(parameter, DTensor) else None,
        )
        # of a shard, too, the whole: every rank makes the same chunks
        elements = parameter.numel() * (2 if parameter.is_complex() else 1)
        if elements >= alone:
            yield Chunk(known[place], [parameter], [place], [owner], elements, alone=True)
            continue
        chunk = open_chunks.get(key)
        if chunk is not None and chunk.elements + elements > size:
            yield open_chunks.pop(key)
            chunk = None
        if chunk is None:
            chunk = open_chunks[key] = Chunk(known[place])
        chunk.parameters.append(parameter)
        chunk.places.append(place)
        chunk.groups.append(owner)
        chunk.elements += elements
    yield from open_chunks.values()


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor``, from the CPU, on a device, without waiting for it."""
    if device.type == "cpu":
        return tensor
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
