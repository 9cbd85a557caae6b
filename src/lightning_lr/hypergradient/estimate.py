"""The hypergradient of a step: dot products of the gradient with the last update's direction, group by group.

The tensors of all groups are packed together (see ``packing``) and large ones cut, so that the work is a few operations
on vectors of about a million elements whatever the model and its groups look like; there is one table of sums for all
groups, one all-reduce where parameters are sharded, and one read of the device.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Optimizer

from lightning_lr.hypergradient import directions
from lightning_lr.hypergradient.alignment import Alignment, read
from lightning_lr.hypergradient.directions import flat, pieces
from lightning_lr.hypergradient.packing import ROW, Chunk, Number, moved, pack
from lightning_lr.shards import flat_of, local, partition_of, sum_over_shards

CHUNK = 1 << 20
"""Elements that a CPU works on at a time: 4 MB of scratch memory for each vector, and few operations."""

CHUNK_OF_DEVICE = 1 << 22
"""The same of a GPU, to which a launch costs more."""

PIECE = 1 << 15
"""Elements that a CPU sums in single precision; more are off by 5e-12 times their number, 8e-6 for a million."""

_FACTS = attrgetter("shape", "dtype", "device")


class AlignmentEstimator:
    r"""Measures :math:`g_t \cdot d_{t-1}` where the last update was :math:`\theta_t = \theta_{t-1} - \alpha d_{t-1}`.

    For each update, in this order: :meth:`sums` with the gradients that are about to be applied, :meth:`before_step`
    with the learning rates that are, the optimizer's step, :meth:`after_step`. A step that is not made leaves both out.

    An L2 penalty (``weight_decay`` of SGD and Adam) belongs to the gradient, as in the paper; decoupled decay (AdamW)
    belongs to the update. What is kept from step to step: nothing for SGD with momentum, Adam and AdamW; a copy of the
    gradients for plain SGD and Nesterov momentum; a copy of the parameters, which becomes the last update, for other
    optimizers.

    Args:
        optimizer: any torch optimizer whose updates are proportional to ``group["lr"]``.

    Raises:
        ValueError: for LBFGS, which searches its own step.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                "hypergradient: got LBFGS, which evaluates several steps in one; use a first-order optimizer"
            )
        self.optimizer = optimizer
        self.family = directions.family(optimizer)
        self.lr: list[float] | None = None
        """Learning rate of each group in the last update; ``None`` before the first."""
        self._settings: list[dict[str, Any]] = []
        """What else each group's last update was made with: betas, momentum, decay."""
        self._idle: set[int] = set()
        """Parameters (by their place in the optimizer) that the last update left out for want of a gradient."""
        self._copies: dict[int, Tensor] = {}
        self._open: list[int] = []
        self._signature: object = None
        self._chunks: list[Chunk] = []
        self._scratch: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        """Memory that chunks are packed into, one after the other."""

    # ------------------------------------------------------------------ measuring
    @torch.no_grad()
    def sums(self, scale: float = 1.0) -> Tensor:
        """What :class:`Alignment` holds for each group, on the device of the parameters.

        Args:
            scale: what the gradients are multiplied by, where an AMP scaler's factor is still in them.

        Returns:
            shape ``(groups, 3)``.

        Raises:
            ValueError: for sparse gradients.
        """
        chunks = self._current_chunks()
        if not chunks:
            return torch.zeros(len(self.optimizer.param_groups), 3)
        tables = [self._rows_sums(chunk, scale) if chunk.rows else self._lone_sums(chunk, scale) for chunk in chunks]
        holders = [chunk.parameters[0] for chunk in chunks]
        table = torch.stack([found.to(tables[0]) for found in tables])
        if any(isinstance(holder, DTensor) for holder in holders):
            table = sum_over_shards(table, holders)
        table = table.sum(0) if len(tables) > 1 else table[0]
        if scale != 1.0:
            table = torch.stack((table[:, 0] / scale, table[:, 1] / scale**2, table[:, 2]), 1)
        partition = partition_of(holders)
        return table if partition is None else sum_over_shards(table, [partition] * len(table))

    def measure(self, scale: float = 1.0) -> list[Alignment]:
        """:meth:`sums`, read from the device."""
        return read(self.sums(scale), [])[0]

    # ------------------------------------------------------------------ walking with the optimizer
    @torch.no_grad()
    def before_step(self, lr: Sequence[float], scale: float = 1.0) -> None:
        """The gradients that are there now are about to be applied, with these learning rates."""
        self.lr = list(map(float, lr))
        groups = self.optimizer.param_groups
        parameters, owners = self._all()
        self._idle = {place for place, p in enumerate(parameters) if p.grad is None}
        self._open = []
        kept = [directions.keeps(self.family, group) for group in groups]
        places = [place for place, owner in enumerate(owners) if kept[owner] != "nothing" and place not in self._idle]
        if not places:
            return
        copied = [place for place in places if kept[owners[place]] == "gradient"]
        self._open = [place for place in places if kept[owners[place]] == "update"]
        of_gradients = set(copied)
        self._copy(places, [parameters[p].grad if p in of_gradients else parameters[p] for p in places])
        if copied and scale != 1.0:
            torch._foreach_div_([self._copies[place] for place in copied], scale)
        for index, group in enumerate(groups):
            decay = directions.penalty(self.family, group)
            if kept[index] != "gradient" or not (decay or group["maximize"]):
                continue
            own = [place for place in copied if owners[place] == index]
            copies = [self._copies[place] for place in own]
            if copies and group["maximize"]:
                torch._foreach_neg_(copies)
            if copies and decay:
                torch._foreach_add_(copies, [local(parameters[place]).detach() for place in own], alpha=decay)

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimizer has stepped: a copy of the parameters becomes the last update."""
        self._settings = [directions.settings_of(group) for group in self.optimizer.param_groups]
        if self._open:
            parameters, _ = self._all()
            after = [local(parameters[place]).detach() for place in self._open]
            torch._foreach_sub_([self._copies[place] for place in self._open], after)
            self._open = []

    # ------------------------------------------------------------------ resuming
    def state_dict(self) -> dict[str, Any]:
        """Numbers and, where copies are kept, tensors; of sharded parameters see :meth:`shards`."""
        whole = self._whole()
        copies = {place: copy.cpu().clone() for place, copy in self._copies.items() if place in whole}
        return {"lr": self.lr, "settings": self._settings, "idle": sorted(self._idle), "copies": copies}

    def shards(self) -> dict[int, Tensor]:
        """The copies of sharded parameters, which are other ones on every rank, and go back by :meth:`load_shards`.

        A run that resumes without them leaves one update unmeasured.
        """
        whole = self._whole()
        return {place: copy.cpu().clone() for place, copy in self._copies.items() if place not in whole}

    @property
    def keeps_copies(self) -> bool:
        """Whether anything is copied from step to step; the same on every rank."""
        return any(directions.keeps(self.family, group) != "nothing" for group in self.optimizer.param_groups)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; the optimizer's own state has been restored as well."""
        self.lr = None if state["lr"] is None else list(state["lr"])
        self._settings = [dict(settings) for settings in state.get("settings", ())]  # not in checkpoints of 0.1
        self._idle = set(state["idle"])
        self._signature = None
        parameters, _ = self._all()
        self._copies = {
            place: copy.to(local(parameters[place]).device, copy=True)
            for place, copy in state["copies"].items()
            if place < len(parameters) and copy.shape == local(parameters[place]).shape
        }

    def load_shards(self, shards: dict[int, Tensor]) -> None:
        """What :meth:`shards` was on this rank, after :meth:`load_state_dict`; the engine may hold the parameters."""
        self._copies |= shards

    # ------------------------------------------------------------------ inside
    def _all(self) -> tuple[list[Tensor], list[int]]:
        """All parameters, by their places in the optimizer, and the group of each."""
        groups = self.optimizer.param_groups
        parameters = [parameter for group in groups for parameter in group["params"]]
        return parameters, [index for index, group in enumerate(groups) for _ in group["params"]]

    def _whole(self) -> set[int]:
        """Places of the parameters that are no shards. In ZeRO's stage 3 there are none between steps."""
        placed = enumerate(self._all()[0])
        return {place for place, p in placed if not isinstance(p, DTensor) and flat_of(p) is None}

    def _fit(self, place: int, parameter: Tensor) -> None:
        """A copy that was loaded goes to the parameter's device, or is dropped where it is of another shard."""
        copy, piece = self._copies.get(place), local(parameter)
        if copy is None or (copy.device == piece.device and copy.shape == piece.shape):
            return
        del self._copies[place]
        if copy.shape == piece.shape:
            self._copies[place] = copy.to(piece.device)

    def _copy(self, places: Sequence[int], tensors: Sequence[Any]) -> None:
        sources = [local(tensor).detach() for tensor in tensors]
        for place, source in zip(places, sources, strict=True):
            held = self._copies.get(place)
            if held is None or held.shape != source.shape or held.dtype != source.dtype or held.device != source.device:
                self._copies[place] = torch.empty_like(source, memory_format=torch.contiguous_format)
        torch._foreach_copy_([self._copies[place] for place in places], sources)

    def _last(self, group: int) -> dict[str, Any]:
        """What a group's last update was made with; the group itself where that was not kept."""
        return self._settings[group] if group < len(self._settings) else self.optimizer.param_groups[group]

    def _current_chunks(self) -> list[Chunk]:
        """How the parameters with a gradient are packed; as for the last update, where nothing has changed."""
        groups = self.optimizer.param_groups
        parameters, owners = self._all()
        if self._copies:
            for place, parameter in enumerate(parameters):
                self._fit(place, parameter)
        last = [self._last(index) for index in range(len(groups))]
        known = self._known(parameters, owners, last)
        kinds = [
            (group.get("maximize"), settings.get("nesterov"), settings.get("amsgrad"), settings.get("momentum") == 0)
            for group, settings in zip(groups, last, strict=True)
        ]
        signature = (
            [id(parameter) for parameter in parameters],
            [parameter.grad is None for parameter in parameters],
            list(map(_FACTS, parameters)),
            owners,
            known,
            kinds,
            CHUNK,
        )
        if signature != self._signature:
            self._signature, self._scratch = signature, {}
            device = parameters[0].device.type if parameters else "cpu"
            size = CHUNK if device == "cpu" else max(CHUNK, CHUNK_OF_DEVICE)
            self._chunks = list(pack(parameters, owners, known, kinds, size))
        return self._chunks

    def _known(self, parameters: Sequence[Tensor], owners: Sequence[int], last: Sequence[dict[str, Any]]) -> list[bool]:
        """Of which parameters the last update is known."""
        lr, kind, idle = self.lr or [], self.family, self._idle
        usable = [index < len(lr) and directions.invertible(kind, s, lr[index]) for index, s in enumerate(last)]
        if not any(usable):
            return [False] * len(parameters)
        needs = [directions.needs(kind, settings) for settings in last]
        state, copies, found = self.optimizer.state, self._copies, []
        for place, (parameter, owner) in enumerate(zip(parameters, owners, strict=True)):
            copy, buffer = needs[owner]
            found.append(
                usable[owner]
                and place not in idle
                and (not copy or place in copies)
                and (buffer is None or state.get(parameter, {}).get(buffer) is not None)
            )
        return found

    # ------------------------------------------------------------------ sums of a chunk
    def _rows_sums(self, chunk: Chunk, scale: float) -> Tensor:
        """The three sums of :class:`Alignment` for each group, over tensors that are packed."""
        rows, groups = chunk.rows, self.optimizer.param_groups
        assert rows is not None
        gradient = self._packed(chunk, "gradient", [p.grad for p in chunk.parameters])
        if groups[chunk.groups[0]].get("maximize", False):
            gradient.neg_()
        decay = self._numbers(chunk, lambda index: directions.penalty(self.family, groups[index]))
        decoupled: Number = 0.0
        if chunk.known:
            decoupled = self._numbers(chunk, lambda index: directions.decoupled_decay(self.family, self._last(index)))
        theta = gradient
        if not (_is(decay, 0.0) and _is(decoupled, 0.0)):
            theta = self._packed(chunk, "parameter", chunk.parameters)
        if not _is(decay, 0.0):
            directions.add(gradient, theta, rows.spread(decay * scale, gradient.dtype), gradient)
        table = torch.zeros((rows.number, 3), dtype=_precise(gradient.device), device=gradient.device)
        table[:, 1] = torch.linalg.vecdot(gradient, gradient)
        if chunk.known:
            found = self._direction(chunk, decoupled)
            vectors = [
                self._packed(chunk, f"source {index}", source, found.fill if index else 0.0)
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

    def _lone_sums(self, chunk: Chunk, scale: float) -> Tensor:
        """The same over a tensor that is read where it lies, piece by piece."""
        (parameter,), (owner,) = chunk.parameters, chunk.groups
        group, settings = self.optimizer.param_groups[owner], self._last(owner)
        assert parameter.grad is not None
        gradient, decay = flat([parameter.grad]), directions.penalty(self.family, group)
        decoupled = directions.decoupled_decay(self.family, settings) if chunk.known else 0.0
        theta = flat([parameter]) if decay or decoupled else gradient
        found = self._direction(chunk, decoupled) if chunk.known else None
        vectors = [flat(source) for source in found.sources] if found else []
        total = torch.zeros(3, dtype=_precise(gradient.device), device=gradient.device)
        for start in range(0, gradient.numel(), CHUNK):
            part = slice(start, start + CHUNK)
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
        table = total.new_zeros((len(self.optimizer.param_groups), 3))
        table[owner] = total
        return table

    def _direction(self, chunk: Chunk, decay: Number) -> directions.Direction:
        """Of the last update of a chunk's tensors; ``decay`` is their decoupled one."""
        assert self.lr is not None
        settings = {index: self._last(index) for index in dict.fromkeys(chunk.groups)}
        states = [self.optimizer.state.get(p, {}) for p in chunk.parameters] if self.family != "other" else []
        copies = [self._copies[place] for place in chunk.places if place in self._copies]
        lr = self._numbers(chunk, self.lr.__getitem__)
        return directions.direction(
            self.family,
            settings[chunk.groups[0]],
            lambda of: self._numbers(chunk, lambda index: of(settings[index])),
            states,
            copies,
            lr,
            decay,
        )

    def _numbers(self, chunk: Chunk, value_of: Callable[[int], float]) -> Number:
        """A number of each group for the tensors of a chunk: itself if it is the same for all."""
        values = {index: value_of(index) for index in dict.fromkeys(chunk.groups)}
        if len(set(values.values())) == 1:
            return values[chunk.groups[0]]
        device = chunk.parameters[0].device
        return moved(torch.tensor([values[index] for index in chunk.groups], dtype=_precise(device)), device)

    def _packed(self, chunk: Chunk, name: str, tensors: Sequence[Any], fill: float = 0.0) -> Tensor:
        """The tensors in rows and ``fill`` between them, shape ``(rows, ROW)``; the next chunk uses the same memory."""
        rows, parts = chunk.rows, pieces(tensors)
        assert rows is not None
        single = parts[0].dtype in (torch.float16, torch.bfloat16)
        key = (name, torch.float32 if single else parts[0].dtype, parts[0].device)
        packed = [other.rows for other in self._chunks if other.rows is not None]
        buffer = self._scratch.get(key)
        if buffer is None:
            room = max(other.number for other in packed) * ROW
            buffer = self._scratch[key] = torch.full((room,), fill, dtype=key[1], device=key[2])
        vector = buffer[: rows.number * ROW]
        if fill or len(packed) > 1:
            vector.fill_(fill)
        torch._foreach_copy_(rows.views(name, buffer, parts), parts)
        return vector.view(rows.number, ROW)


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
