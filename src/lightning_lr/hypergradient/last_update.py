"""What is remembered of an optimizer's last update, so that its direction is known when the next gradient is there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, itemgetter, mul
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Optimizer

from lightning_lr.hypergradient import directions
from lightning_lr.saved_state import ANYTHING, INDEX, NUMBER, TENSOR, by, keys, later, optional, several
from lightning_lr.shards import flat_of, local

_GRADIENT, _PARAMETERS = attrgetter("grad"), itemgetter("params")
_COLUMNS = {key: itemgetter(place) for place, key in enumerate(directions.READ)}
_SIMPLE, _NUMBERS = frozenset((float, int, bool, tuple, type(None))), frozenset((float, int))


class LastUpdate:
    r"""Learning rates, settings and copies of an optimizer's last update.

    For each update, in this order: :meth:`before_step` with the learning rates that are about to be applied, the
    optimizer's step, :meth:`after_step`. A step that is not made leaves both out.

    What is kept from step to step: nothing but numbers for SGD with momentum, Adam and AdamW; a copy of the gradients
    for plain SGD and Nesterov momentum; a copy of the parameters, which becomes the last update, for other optimizers.

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
        self._rows: list[list[Any]] = []
        """What else each group's last update was made with (betas, momentum, decay), in the order of ``READ``."""
        self._settings: list[dict[str, Any]] | None = None
        """The same by name, once somebody has asked."""
        self.copies: dict[int, Tensor] = {}
        """What was copied of each parameter, by its place in the optimizer."""
        self._idle: set[int] = set()
        """Parameters that the last update left out for want of a gradient."""
        self._open: list[int] = []
        self._lengths: list[int] = []
        self._owners: list[int] = []

    # ------------------------------------------------------------------ walking with the optimizer
    def before_step(self, lr: Sequence[float], scale: float = 1.0) -> None:
        """The gradients that are there now are about to be applied, with these learning rates.

        Args:
            lr: of each group.
            scale: what the gradients are multiplied by, where an AMP scaler's factor is still in them.
        """
        self.lr = list(map(float, lr))
        gradients = list(map(_GRADIENT, self.parameters()))
        self._idle = {place for place, gradient in enumerate(gradients) if gradient is None}
        self._open = []
        if self.family != "adam":
            with torch.no_grad():
                self._keep(gradients, scale)

    def _keep(self, gradients: list[Tensor | None], scale: float) -> None:
        """Copy what the direction of this update will follow from."""
        groups = self.optimizer.param_groups
        parameters, owners = self.all()
        kept = [directions.keeps(self.family, group) for group in groups]
        places = [place for place, owner in enumerate(owners) if kept[owner] != "nothing" and place not in self._idle]
        if not places:
            return
        copied = [place for place in places if kept[owners[place]] == "gradient"]
        self._open = [place for place in places if kept[owners[place]] == "update"]
        of_gradients = set(copied)
        self._copy(places, [gradients[p] if p in of_gradients else parameters[p] for p in places])
        if copied and scale != 1.0:
            torch._foreach_div_([self.copies[place] for place in copied], scale)
        for index, group in enumerate(groups):
            decay = directions.penalty(self.family, group)
            if kept[index] != "gradient" or not (decay or group["maximize"]):
                continue
            own = [place for place in copied if owners[place] == index]
            copies = [self.copies[place] for place in own]
            if copies and group["maximize"]:
                torch._foreach_neg_(copies)
            if copies and decay:
                torch._foreach_add_(copies, [local(parameters[place]).detach() for place in own], alpha=decay)

    def after_step(self) -> None:
        """The optimizer has stepped: a copy of the parameters becomes the last update."""
        groups = self.optimizer.param_groups
        rows = [list(map(group.get, directions.READ)) for group in groups]
        self._rows = rows if _is_plain(rows) else [list(map(directions.plain, row)) for row in rows]
        self._settings = None
        if self._open:
            with torch.no_grad():
                self._measure()

    def _measure(self) -> None:
        """Make updates of the copies of parameters."""
        parameters = self.parameters()
        after = [local(parameters[place]).detach() for place in self._open]
        torch._foreach_sub_([self.copies[place] for place in self._open], after)
        self._open = []

    # ------------------------------------------------------------------ reading
    def parameters(self) -> list[Tensor]:
        """All parameters, by their places in the optimizer."""
        return list(chain.from_iterable(map(_PARAMETERS, self.optimizer.param_groups)))

    def all(self) -> tuple[list[Tensor], list[int]]:
        """All parameters, by their places in the optimizer, and the group of each."""
        lengths = list(map(len, map(_PARAMETERS, self.optimizer.param_groups)))
        if lengths != self._lengths:
            self._lengths = lengths
            self._owners = [index for index, length in enumerate(lengths) for _ in range(length)]
        return self.parameters(), self._owners

    @property
    def settings(self) -> list[dict[str, Any]]:
        """What else each group's last update was made with, as plain numbers."""
        if self._settings is None:
            self._settings = [
                {
                    key: list(value) if type(value) is tuple else value
                    for key, value in zip(directions.READ, row, strict=True)
                    if value is not None
                }
                for row in self._rows
            ]
        return self._settings

    def column(self, key: str) -> list[Any]:
        """One of the settings for every group; that of the group itself where none was kept."""
        rows, groups = self._rows, self.optimizer.param_groups
        if len(rows) < len(groups):
            rows = [*rows, *([group.get(name) for name in directions.READ] for group in groups[len(rows) :])]
        return list(map(_COLUMNS[key], rows))[: len(groups)]

    def settings_of(self, group: int) -> dict[str, Any]:
        """What a group's last update was made with; the group itself where that was not kept."""
        return self.settings[group] if group < len(self.settings) else self.optimizer.param_groups[group]

    def known(self, parameters: Sequence[Tensor], owners: Sequence[int]) -> list[bool]:
        """Of which parameters the last update is known."""
        lr, kind, idle = self.lr or [], self.family, self._idle
        if kind == "adam" and not idle and len(lr) >= len(self.optimizer.param_groups):
            largest = max(map(mul, self.column("weight_decay"), lr), default=0.0)
            if largest < 1:  # as everywhere: without a look at each group
                state = self.optimizer.state
                return ["exp_avg" in state.get(parameter, ()) for parameter in parameters]
        settings = [self.settings_of(index) for index in range(len(self.optimizer.param_groups))]
        usable = [index < len(lr) and directions.invertible(kind, s, lr[index]) for index, s in enumerate(settings)]
        if not any(usable):
            return [False] * len(parameters)
        for place, parameter in enumerate(parameters if self.copies else ()):
            self._fit(place, parameter)
        state, copies = self.optimizer.state, self.copies
        needs = [directions.needs(kind, s) for s in settings]
        found = []
        for place, (parameter, owner) in enumerate(zip(parameters, owners, strict=True)):
            copy, buffer = needs[owner]
            found.append(
                usable[owner]
                and place not in idle
                and (not copy or place in copies)
                and (buffer is None or state.get(parameter, {}).get(buffer) is not None)
            )
        return found

    # ------------------------------------------------------------------ resuming
    SAVED: ClassVar = keys(
        {
            "lr": optional(several(NUMBER)),
            "settings": later(several(by(str, ANYTHING))),
            "idle": several(INDEX),
            "copies": by(int, TENSOR),
        }
    )
    """The form of :meth:`state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Numbers and, where copies are kept, tensors; of sharded parameters see :meth:`shards`."""
        whole = self._whole()
        copies = {place: copy.cpu().clone() for place, copy in self.copies.items() if place in whole}
        return {"lr": self.lr, "settings": self.settings, "idle": sorted(self._idle), "copies": copies}

    def shards(self) -> dict[int, Tensor]:
        """The copies of sharded parameters, which are other ones on every rank, and go back by :meth:`load_shards`.

        A run that resumes without them leaves one update unmeasured.
        """
        whole = self._whole()
        return {place: copy.cpu().clone() for place, copy in self.copies.items() if place not in whole}

    @property
    def keeps_copies(self) -> bool:
        """Whether anything is copied from step to step; the same on every rank."""
        return any(directions.keeps(self.family, group) != "nothing" for group in self.optimizer.param_groups)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where ``state`` was taken; the optimizer's own state has been restored as well."""
        self.lr = None if state["lr"] is None else list(state["lr"])
        saved = state.get("settings", ())  # not in checkpoints of 0.1
        self._rows = [list(map(settings.get, directions.READ)) for settings in saved]
        self._idle, self._settings = set(state["idle"]), None
        parameters = self.parameters()
        self.copies = {
            place: copy.to(local(parameters[place]).device, copy=True)
            for place, copy in state["copies"].items()
            if place < len(parameters) and copy.shape == local(parameters[place]).shape
        }

    def load_shards(self, shards: dict[int, Tensor]) -> None:
        """What :meth:`shards` was on this rank, after :meth:`load_state_dict`; the engine may hold the parameters."""
        self.copies |= shards

    # ------------------------------------------------------------------ inside
    def _whole(self) -> set[int]:
        """Places of the parameters that are no shards. In ZeRO's stage 3 there are none between steps."""
        placed = enumerate(self.parameters())
        return {place for place, p in placed if not isinstance(p, DTensor) and flat_of(p) is None}

    def _fit(self, place: int, parameter: Tensor) -> None:
        """A copy that was loaded goes to the parameter's device, or is dropped where it is of another shard."""
        copy, piece = self.copies.get(place), local(parameter)
        if copy is None or (copy.device == piece.device and copy.shape == piece.shape):
            return
        del self.copies[place]
        if copy.shape == piece.shape:
            self.copies[place] = copy.to(piece.device)

    def _copy(self, places: Sequence[int], tensors: Sequence[Any]) -> None:
        sources = [local(tensor).detach() for tensor in tensors]
        for place, source in zip(places, sources, strict=True):
            held = self.copies.get(place)
            if held is None or held.shape != source.shape or held.dtype != source.dtype or held.device != source.device:
                self.copies[place] = torch.empty_like(source, memory_format=torch.contiguous_format)
        torch._foreach_copy_([self.copies[place] for place in places], sources)


def _is_plain(rows: list[list[Any]]) -> bool:
    """Whether what was read from the groups are numbers, which cannot change in place as tensors and lists do."""
    if not _SIMPLE.issuperset(map(type, chain.from_iterable(rows))):
        return False
    pairs = [value for value in map(_COLUMNS["betas"], rows) if value is not None]
    return _NUMBERS.issuperset(map(type, chain.from_iterable(pairs)))
