"""What is remembered of an optimizer's last update, so that its direction is known when the next gradient is there."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from operator import attrgetter, is_, itemgetter, mul
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import LBFGS, Optimizer

from lightning_lr.hypergradient import directions
from lightning_lr.saved_state import ANYTHING, INDEX, NUMBER, TENSOR, by, keys, later, optional, several
from lightning_lr.shards import flat_of, local

_GRADIENT, _PARAMETERS, _DECAY = attrgetter("grad"), itemgetter("params"), itemgetter("weight_decay")
_SIMPLE, _NUMBERS = frozenset((float, int, bool, tuple, type(None))), frozenset((float, int))
_NOTHING: dict[str, Any] = {}


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
        self.keys, self._read = directions.reader(optimizer)
        self.rows: list[tuple[Any, ...]] = []
        """What else each group's last update was made with (betas, momentum), by ``keys``; the same list while it
        stays the same."""
        self.decays: list[Any] = []
        """The same of the weight decay."""
        self._plain = False  # whether these rows are numbers
        self._settings: list[dict[str, Any]] | None = None
        """All of it by name, once somebody has asked."""
        self.copies: dict[int, Tensor] = {}
        """What was copied of each parameter, by its place in the optimizer."""
        self.idle: set[int] = set()
        """Parameters that the last update left out for want of a gradient."""
        self._open: list[int] = []
        self._parameters: list[Tensor] = []
        self._lengths: list[int] = []
        self._owners: list[int] = []
        self._held: tuple[list[Tensor], list[dict[str, Any]]] = [], []
        """What the optimizer's state held, and what of it belongs to the parameters."""
        self._states: list[dict[str, Any]] = []

    # ------------------------------------------------------------------ walking with the optimizer
    def before_step(self, lr: Sequence[float], scale: float = 1.0) -> None:
        """The gradients that are there now are about to be applied, with these learning rates.

        Args:
            lr: of each group.
            scale: what the gradients are multiplied by, where an AMP scaler's factor is still in them.
        """
        self.lr = list(map(float, lr))
        gradients = list(map(_GRADIENT, self.all()[0]))
        self.idle = {place for place, gradient in enumerate(gradients) if gradient is None}
        self._open = []
        if self.family != "adam":
            with torch.no_grad():
                self._keep(gradients, scale)

    def _keep(self, gradients: list[Tensor | None], scale: float) -> None:
        """Copy what the direction of this update will follow from."""
        groups = self.optimizer.param_groups
        parameters, owners = self.all()
        kept = [directions.keeps(self.family, group) for group in groups]
        places = [place for place, owner in enumerate(owners) if kept[owner] != "nothing" and place not in self.idle]
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
        if self.family == "other":
            decays = [group.get("weight_decay") for group in groups]
        else:
            decays = list(map(_DECAY, groups))
        self.decays = decays if _NUMBERS.issuperset(map(type, decays)) else list(map(directions.plain, decays))
        rows = list(map(self._read, groups))
        if not (self._plain and rows == self.rows):
            self._plain = _is_plain(rows)
            self.rows = rows if self._plain else [tuple(map(directions.plain, row)) for row in rows]
        self._settings = None
        if self._open:
            with torch.no_grad():
                self._measure()

    def _measure(self) -> None:
        """Make updates of the copies of parameters."""
        parameters = self.all()[0]
        after = [local(parameters[place]).detach() for place in self._open]
        torch._foreach_sub_([self.copies[place] for place in self._open], after)
        self._open = []

    # ------------------------------------------------------------------ reading
    def all(self) -> tuple[list[Tensor], list[int]]:
        """All parameters, by their places in the optimizer, and the group of each; the same lists while they stay."""
        held = list(map(_PARAMETERS, self.optimizer.param_groups))
        lengths, parameters = list(map(len, held)), list(chain.from_iterable(held))
        if lengths != self._lengths or not all(map(is_, parameters, self._parameters)):
            self._parameters, self._lengths, self._held = parameters, lengths, ([], [])
            self._owners = [index for index, length in enumerate(lengths) for _ in range(length)]
        return self._parameters, self._owners

    def states(self) -> list[dict[str, Any]]:
        """What the optimizer holds of each parameter that :meth:`all` has found, empty where that is nothing; the same
        list while it stays."""
        state = self.optimizer.state
        keys, values = self._held  # of other parameters, nothing
        if not (len(state) == len(keys) > 0 and all(map(is_, state, keys)) and all(map(is_, state.values(), values))):
            self._held = list(state), list(state.values())
            self._states = [state.get(parameter, _NOTHING) for parameter in self.all()[0]]
        return self._states

    @property
    def settings(self) -> list[dict[str, Any]]:
        """What else each group's last update was made with, as plain numbers."""
        if self._settings is None:
            keys = (*self.keys, "weight_decay")
            self._settings = [
                {
                    key: list(value) if type(value) is tuple else value
                    for key, value in zip(keys, (*row, decay), strict=True)
                    if value is not None
                }
                for row, decay in zip(self.rows, self.decays, strict=True)
            ]
        return self._settings

    def column(self, key: str) -> list[Any]:
        """One of the settings for every group; that of the group itself where none was kept."""
        groups = self.optimizer.param_groups
        if key == "weight_decay":
            known = self.decays
        else:
            known = list(map(itemgetter(self.keys.index(key)), self.rows)) if key in self.keys else []
        return [*known, *(group.get(key) for group in groups[len(known) :])][: len(groups)]

    def settings_of(self, group: int) -> dict[str, Any]:
        """What a group's last update was made with; the group itself where that was not kept."""
        return self.settings[group] if group < len(self.settings) else self.optimizer.param_groups[group]

    def known(self, parameters: Sequence[Tensor], owners: Sequence[int]) -> list[bool]:
        """Of which parameters the last update is known."""
        lr, kind, idle = self.lr or [], self.family, self.idle
        if kind == "adam" and not idle and len(lr) >= len(self.optimizer.param_groups):
            largest = max(map(mul, self.column("weight_decay"), lr), default=0.0)
            if largest < 1:  # as everywhere: without a look at each group
                return ["exp_avg" in state for state in self.states()]
        settings = [self.settings_of(index) for index in range(len(self.optimizer.param_groups))]
        usable = [index < len(lr) and directions.invertible(kind, s, lr[index]) for index, s in enumerate(settings)]
        if not any(usable):
            return [False] * len(parameters)
        for place, parameter in enumerate(parameters if self.copies else ()):
            self._fit(place, parameter)
        states, copies = self.states(), self.copies
        needs = [directions.needs(kind, s) for s in settings]
        found = []
        for place, (state, owner) in enumerate(zip(states, owners, strict=True)):
            copy, buffer = needs[owner]
            found.append(
                usable[owner]
                and place not in idle
                and (not copy or place in copies)
                and (buffer is None or state.get(buffer) is not None)
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
        return {"lr": self.lr, "settings": self.settings, "idle": sorted(self.idle), "copies": copies}

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
        self.rows = [tuple(map(settings.get, self.keys)) for settings in saved]
        self.decays = [settings.get("weight_decay") for settings in saved]
        self.idle, self._settings, self._plain = set(state["idle"]), None, False
        parameters = self.all()[0]
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
        placed = enumerate(self.all()[0])
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


def _is_plain(rows: list[tuple[Any, ...]]) -> bool:
    """Whether what was read from the groups are numbers, which cannot change in place as tensors and lists do."""
    values = list(chain.from_iterable(rows))
    pairs = chain.from_iterable(value for value in values if type(value) is tuple)
    return _SIMPLE.issuperset(map(type, values)) and _NUMBERS.issuperset(map(type, pairs))
