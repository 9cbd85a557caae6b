"""The kernel's sums of one update after the other, where all that changes is what does at every update.

To find out what the kernel is to read costs several times what reading a small network does. What it was given last is
kept here, and with it whatever that followed from; each time everything is compared that could have changed since, and
where anything has, ``cpu_sums`` finds out anew.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from itertools import chain
from operator import attrgetter, is_, itemgetter, mul
from typing import Any

from torch import Tensor

from lightning_lr.hypergradient.cpu_sums import ADAM, DECAY, LR, NO_DIRECTION, SCALED, SETTINGS, CpuSums
from lightning_lr.hypergradient.last_update import LastUpdate

_GRADIENT, _DTYPE, _ON_CPU = attrgetter("grad"), attrgetter("dtype"), attrgetter("is_cpu")
_TENSOR = frozenset((Tensor,))


class RepeatedSums:
    """The sums of :class:`CpuSums`, again and again.

    Args:
        sums: that have just been made with a scale of 1, over all parameters that have a gradient.
    """

    def __init__(self, sums: CpuSums) -> None:
        assert sums.job is not None
        last, chunk = sums.last, sums.chunk
        self._last, self._job, self._formula = last, sums.job, sums.formula
        self._all = last.all()[0]
        self._parameters, self._places, self._sizes = chunk.parameters, chunk.places, sums.sizes
        self._idle = set(range(len(self._all))) - set(self._places)
        self._rows, self._states = last.rows, last.states()
        self._own = [self._states[place] for place in self._places]
        self._sources = _sources(sums)
        self._apart = last.column("decoupled_weight_decay") if self._formula == ADAM else []
        self._now = _now(last)
        self._dtype = {sums.dtype}
        self._strides = list(map(Tensor.stride, self._parameters))
        self._contiguous = all(map(Tensor.is_contiguous, self._parameters))
        self._others = list(chain.from_iterable(sums.read))
        self._pointers = list(map(Tensor.data_ptr, self._others))
        kept = self._tensors_now()
        self._fits = (
            kept is not None
            and len(kept) == len(self._others)
            and all(map(is_, kept, self._others))  # nothing was converted, no parameter is a piece of another
            and sums.as_they_are
        )

    @classmethod
    def after(cls, sums: CpuSums) -> RepeatedSums | None:
        """Those, where they can be repeated."""
        if sums.formula == NO_DIRECTION or sums.job is None:
            return None
        repeated = cls(sums)
        return repeated if repeated._fits else None

    def sums(self) -> Tensor | None:
        """The three sums of ``Alignment`` for each group; ``None`` where something else has changed."""
        if not self._set_settings():
            return None
        gradients, others = list(map(_GRADIENT, self._parameters)), self._tensors_now()
        if others is None or not _TENSOR.issuperset(map(type, gradients)) or not all(map(is_, others, self._others)):
            return None
        parameters, sizes = self._parameters, self._sizes
        if not (
            list(map(Tensor.data_ptr, others)) == self._pointers
            and list(map(Tensor.numel, gradients)) == sizes == list(map(Tensor.numel, parameters))
            and self._lie_as_before(gradients)
            and self._lie_as_before(parameters)
            and set(map(_DTYPE, gradients)) == self._dtype
            and all(map(_ON_CPU, gradients))
        ):
            return None
        self._job.addresses[: len(gradients)] = array("q", map(Tensor.data_ptr, gradients))
        return self._job.run()

    # ------------------------------------------------------------------ inside
    def _lie_as_before(self, tensors: list[Tensor]) -> bool:
        if self._contiguous:
            return all(map(Tensor.is_contiguous, tensors))
        return list(map(Tensor.stride, tensors)) == self._strides

    def _tensors_now(self) -> list[Any] | None:
        """What would be read besides gradients."""
        try:
            return [*self._parameters, *self._sources(self._own)]
        except KeyError:
            return None

    def _set_settings(self) -> bool:
        """Give the kernel the numbers of the last update; returns whether nothing else has changed."""
        last = self._last
        lr = last.lr
        if (
            lr is None
            or last.all()[0] is not self._all
            or last.states() is not self._states
            or last.rows is not self._rows
            or last.idle != self._idle
            or len(lr) != len(last.optimizer.param_groups)
            or (self._idle and any(self._all[place].grad is not None for place in self._idle))
            or _now(last) != self._now
        ):
            return False
        if self._formula == ADAM:
            if not max(map(mul, last.decays, lr)) < 1:
                return False
            decays = [decay if apart else 0.0 for decay, apart in zip(last.decays, self._apart, strict=True)]
            self._job.settings[DECAY::SETTINGS] = array("d", decays)
        elif self._formula == SCALED and min(lr) <= 0:
            return False
        self._job.settings[LR::SETTINGS] = array("d", lr)
        return True


def _sources(sums: CpuSums) -> Callable[[list[dict[str, Any]]], list[Any]]:
    """What finds the tensors that directions are made of, from the states of the parameters."""
    if sums.formula == ADAM:
        read = itemgetter("exp_avg", sums.second, "step")
        return lambda states: list(chain.from_iterable(zip(*map(read, states), strict=True)))
    last, copied, second = sums.last, sums.chunk.places if sums.copied else [], sums.second
    if second is None:
        return lambda states: list(map(last.copies.get, copied))
    of_state = itemgetter(second)
    return lambda states: [*map(last.copies.get, copied), *map(of_state, states)]


def _now(last: LastUpdate) -> list[Any]:
    """What the coming update's sign and penalty follow from, of each group."""
    groups = last.optimizer.param_groups
    if last.family == "adam" and "decoupled_weight_decay" in last.keys:
        now = list(map(itemgetter("maximize", "decoupled_weight_decay"), groups))
        return now if all(apart for _, apart in now) else [*now, *(group["weight_decay"] for group in groups)]
    if last.family == "other":
        return [group.get("maximize") for group in groups]
    return list(map(itemgetter("maximize", "weight_decay"), groups))
