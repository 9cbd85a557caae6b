"""The hypergradient of a step: dot products of the gradient with the last update's direction, group by group.

Small tensors are packed (see ``packing``) and large ones cut, so that the work is a few operations on vectors of about
a million elements whatever the model looks like; there is one sum per group, one all-reduce where parameters are
sharded, and one read of the device for all groups together.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Optimizer

from lightning_lr.hypergradient import directions
from lightning_lr.hypergradient.alignment import Alignment, read
from lightning_lr.hypergradient.directions import flat
from lightning_lr.hypergradient.packing import Chunk, pack, side_by_side
from lightning_lr.shards import flat_of, local, partition_of, sum_over_shards

CHUNK = 1 << 20
"""Elements that are worked on at a time: 4 MB of scratch memory, and few launches."""

PIECE = 1 << 15
"""Elements that a CPU sums in single precision; more are off by 5e-12 times their number, 8e-6 for a million."""


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
        self._packed: Tensor | None = None
        """What :meth:`sums` has packed for the one chunk that there is, until :meth:`before_step` keeps it."""

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
        self._packed = None
        groups = len(self.optimizer.param_groups)
        if not chunks:
            return torch.zeros(groups, 3)
        found = [value for chunk in chunks for value in self._chunk_sums(chunk, scale)]
        table = torch.stack([value.to(found[0]) for value in found]).view(-1, 3)
        holders = [chunk.parameters[0] for chunk in chunks]
        if any(isinstance(holder, DTensor) for holder in holders):
            table = sum_over_shards(table, holders)
        if scale != 1.0:
            table = table / table.new_tensor([scale, scale**2, 1.0])
        owners = [chunk.group for chunk in chunks]
        if owners != list(range(groups)):
            parts = torch.split(table, [owners.count(index) for index in range(groups)])
            table = torch.stack([part.sum(0) for part in parts])
        partition = partition_of(holders)
        return table if partition is None else sum_over_shards(table, [partition] * groups)

    def measure(self, scale: float = 1.0) -> list[Alignment]:
        """:meth:`sums`, read from the device."""
        return read(self.sums(scale), [])[0]

    # ------------------------------------------------------------------ walking with the optimizer
    @torch.no_grad()
    def before_step(self, lr: Sequence[float], scale: float = 1.0) -> None:
        """The gradients that are there now are about to be applied, with these learning rates."""
        self.lr = [float(value) for value in lr]
        self._settings = [directions.settings_of(group) for group in self.optimizer.param_groups]
        self._idle, self._open = set(), []
        for group, parameters in self._placed():
            kept = directions.keeps(self.family, group)
            moving = [(place, p) for place, p in parameters if p.grad is not None]
            self._idle |= {place for place, p in parameters if p.grad is None}
            if kept == "nothing" or not moving:
                continue
            places, moved = zip(*moving, strict=True)
            if kept == "gradient" and self._keep_packed(places):
                if scale != 1.0:
                    self._chunks[0].copies[0].div_(scale)
            elif kept == "gradient":
                self._copy(places, [p.grad for p in moved])
                kept_now = [self._copies[place] for place in places]
                if scale != 1.0:
                    torch._foreach_div_(kept_now, scale)
                if group["maximize"]:
                    torch._foreach_neg_(kept_now)
                decay = directions.penalty(self.family, group)
                if decay:
                    torch._foreach_add_(kept_now, [local(p).detach() for p in moved], alpha=decay)
            else:
                self._copy(places, moved)
                self._open.extend(places)

    @torch.no_grad()
    def after_step(self) -> None:
        """The optimizer has stepped: a copy of the parameters becomes the last update."""
        self._settings = [directions.settings_of(group) for group in self.optimizer.param_groups]
        if self._open:
            everything = dict(place_and_p for _, parameters in self._placed() for place_and_p in parameters)
            moved = [local(everything[place]).detach() for place in self._open]
            torch._foreach_sub_([self._copies[place] for place in self._open], moved)
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
        parameters = dict(place_and_p for _, ps in self._placed() for place_and_p in ps)
        self._copies = {
            place: copy.to(local(parameters[place]).device, copy=True)
            for place, copy in state["copies"].items()
            if place in parameters and copy.shape == local(parameters[place]).shape
        }

    def load_shards(self, shards: dict[int, Tensor]) -> None:
        """What :meth:`shards` was on this rank, after :meth:`load_state_dict`; the engine may hold the parameters."""
        self._copies |= shards

    # ------------------------------------------------------------------ inside
    def _placed(self) -> Iterator[tuple[dict[str, Any], list[tuple[int, Tensor]]]]:
        start = 0
        for group in self.optimizer.param_groups:
            yield group, list(enumerate(group["params"], start))
            start += len(group["params"])

    def _whole(self) -> set[int]:
        """Places of the parameters that are no shards. In ZeRO's stage 3 there are none between steps."""
        placed = [place_and_p for _, parameters in self._placed() for place_and_p in parameters]
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
                self._copies.update(zip(places, side_by_side(sources), strict=True))
                self._signature = None  # the chunks know where the copies lie
                break
        torch._foreach_copy_([self._copies[place] for place in places], sources)

    def _keep_packed(self, places: Sequence[int]) -> bool:
        """Keep what was packed for the sums, if the copies of all that moves lie together as it does."""
        packed, self._packed = self._packed, None
        if packed is None or self._chunks[0].places != list(places) or len(self._chunks[0].copies) != 1:
            return False
        (copies,) = self._chunks[0].copies
        if copies.is_complex() or copies.numel() != packed.numel():
            return False
        copies.view(-1).copy_(packed)
        return True

    def _last(self, group: int) -> dict[str, Any]:
        """What a group's last update was made with; the group itself where that was not kept."""
        return self._settings[group] if group < len(self._settings) else self.optimizer.param_groups[group]

    def _current_chunks(self) -> list[Chunk]:
        """How the parameters with a gradient are packed; the same as for the last update, where nothing has changed."""
        placed = list(self._placed())
        moved = [self._moved(index, group, parameters) for index, (group, parameters) in enumerate(placed)]
        signature = (CHUNK, *(self._made_from(ps, known) for (_, ps), known in zip(placed, moved, strict=True)))
        if signature != self._signature:
            self._signature = signature
            self._chunks = []
            for index, (_, parameters) in enumerate(placed):
                self._chunks += pack(index, parameters, moved[index], self._copies, self._step_key, CHUNK)
        return self._chunks

    def _moved(self, index: int, group: dict[str, Any], parameters: Sequence[tuple[int, Tensor]]) -> set[int]:
        """Places of a group's parameters whose last update is known."""
        last = self._last(index)
        if self.lr is None or index >= len(self.lr) or not directions.invertible(self.family, last, self.lr[index]):
            return set()
        for place, parameter in parameters:
            self._fit(place, parameter)
        state, copies, kind = self.optimizer.state, self._copies, self.family
        return {
            place
            for place, parameter in parameters
            if place not in self._idle
            and directions.has_direction(kind, last, state.get(parameter, {}), copies.get(place))
        }

    def _made_from(self, parameters: Sequence[tuple[int, Tensor]], moved: set[int]) -> tuple[object, ...]:
        """All that the chunks of a group are made from: equal for two updates, they are packed alike.

        Of Adam's steps, which all count on, only which of them are equal.
        """
        steps: dict[object, int] = {}
        return tuple(
            None
            if parameter.grad is None
            else (
                id(parameter),
                parameter.dtype,
                parameter.device,
                parameter.shape,
                id(self._copies.get(place)),
                steps.setdefault(self._step_key(parameter), len(steps)) if place in moved else None,
            )
            for place, parameter in parameters
        )

    def _step_key(self, parameter: Tensor) -> object:
        return directions.batch_key(self.family, self.optimizer.state.get(parameter, {}))

    def _chunk_sums(self, chunk: Chunk, scale: float) -> list[Tensor]:
        """The three sums of :class:`Alignment` over a chunk, of gradients that are multiplied by ``scale``."""
        parameters, group = chunk.parameters, self.optimizer.param_groups[chunk.group]
        last = self._last(chunk.group)
        gradient = flat([p.grad for p in parameters if p.grad is not None])
        decay = directions.penalty(self.family, group)
        keeps = directions.keeps(self.family, group) == "gradient"
        vectors: list[Tensor] = []
        factor: float | Tensor = 1.0
        if chunk.known:
            assert self.lr is not None
            states = [self.optimizer.state.get(p, {}) for p in parameters] if self.family != "other" else []
            lr = self.lr[chunk.group]
            sources, factor, formula = directions.direction(self.family, last, states, chunk.copies, lr)
            vectors = [flat(source) for source in sources]
        needs_theta = bool(decay or (last.get("decoupled_weight_decay", False) and last["weight_decay"]))
        theta = flat(parameters) if needs_theta else gradient
        total: list[Tensor] = []
        for start in range(0, gradient.numel(), CHUNK):
            part = slice(start, start + CHUNK)
            g = gradient[part]
            if group.get("maximize", False):
                g = g.neg()
            if decay:
                g = g.add(theta[part], alpha=decay * scale)
            if keeps and len(self._chunks) == 1 and gradient.numel() <= CHUNK:
                self._packed = g
            own = _dot(g, g)
            sums = [torch.zeros_like(own), own, torch.zeros_like(own)]
            if chunk.known:
                d = formula(theta[part], *(vector[part] for vector in vectors)).to(g)
                sums = [_dot(g, d) * factor, own, _dot(d, d) * factor * factor]
            total = sums if start == 0 else [a + b for a, b in zip(total, sums, strict=True)]
        return total or [gradient.new_zeros((), dtype=torch.float64)] * 3


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """a . b of two vectors, to be added to others in double precision."""
    if a.device.type == "mps":  # which has none
        return torch.dot(a, b)
    if a.device.type != "cpu" or a.numel() <= PIECE:
        return torch.dot(a, b).double()
    pieces = zip(torch.split(a, PIECE), torch.split(b, PIECE), strict=True)
    return torch.stack([torch.dot(*piece) for piece in pieces]).sum(dtype=torch.float64)
