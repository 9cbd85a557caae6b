"""The one writer of an optimizer's hyperparameters: named multipliers over scheduled values.

Several methods have a say about the learning rate of one run: a schedule, layer-wise decay, a scaling rule, an
automatic warm-up. None of them may write ``group["lr"]``; each gives this writer a *named multiplier*, and

    effective lr(group) = scheduled lr(group) x product of named multipliers(group)

*Scheduled* is whatever the user's optimizer, LR scheduler and own code set. It is kept here as the very object that was
found (never recomputed by a division), so that a scheduler which steps inside
:meth:`HyperparameterWriter.scheduled_values` reads and writes bit for bit what it would without us. Where the user
wants a scheduler to have no effect, :meth:`HyperparameterWriter.replace_schedule` puts a fixed base value in its place;
the scheduler goes on, and a checkpoint holds its values. Other hyperparameters (betas, eps, momentum, weight decay) go
through the same writer as named *transforms* of the scheduled value. Pure torch; no Lightning.
"""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from operator import is_, itemgetter, mul
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.multiplied import Multiplied, plain

Transform = Callable[[Any], Any]
"""Maps a scheduled hyperparameter (for example ``betas``) to the one in effect."""

GroupsTransform = Callable[[list[Any]], list[Any]]
"""The same for the values of all parameter groups, ``None`` where a group does not have it."""


_NUMBERS = frozenset((float, Multiplied))
_new = float.__new__
_LR = itemgetter("lr")


class _Absent:
    """Stands in the place of a hyperparameter that a group does not have."""


_ABSENT = _Absent()


class HyperparameterWriter:
    """Keeps ``scheduled`` and ``effective`` hyperparameters of one optimizer apart.

    Between calls ``group["lr"]`` holds the effective value, so that everything that reads the optimizer sees what
    will be used. Learning rates that are tensors (``capturable`` optimizers, CUDA graphs) are written in place.

    A value that somebody else wrote into a group (a module that sets ``group["lr"]`` itself) becomes the new scheduled
    value, with one warning per hyperparameter. Values are recognised by identity, so that a written value counts as
    written even where it equals the effective one. A rate that was read from a group and written back times a number
    (``group["lr"] *= 0.1``) multiplies the scheduled value by that number, see :class:`~lightning_lr.multiplied`.
    Call :meth:`settle` directly before every step of the optimizer:
    from then on the multipliers apply to what was written last, exactly once.

    Args:
        optimizer: the optimizer whose groups are written. Its current values are taken as the scheduled ones.
        base_lr: the rate of each group that the user tuned, see :mod:`lightning_lr.base_rates`; by default
            ``group["initial_lr"]``, or ``group["lr"]`` where no scheduler has set it.
        index: place of the optimizer among those of ``configure_optimizers``.
        prefix: before the name of each group, where there are several optimizers.
    """

    def __init__(
        self, optimizer: Optimizer, base_lr: Sequence[Any] | None = None, index: int = 0, prefix: str = ""
    ) -> None:
        self.optimizer, self.index, self.prefix = optimizer, index, prefix
        self._base_lr = [_copied(lr) for lr in base_lr] if base_lr is not None else None
        self._multipliers: dict[str, float | tuple[float, ...]] = {}
        self._transforms: dict[str, dict[str, GroupsTransform]] = {}
        self._scheduled: dict[str, list[Any]] = {}
        """By hyperparameter, the scheduled value of each group."""
        self._written: dict[str, list[Any]] = {}
        """By hyperparameter, what recognises the value that was written into each group, see :func:`_mark`."""
        self._readers: list[tuple[Callable[[dict[str, Any]], Any], list[Any]]] = []
        """What reads these values from a group, and what was written."""
        self._replaced: list[dict[str, Any]] = []
        self._warned: set[str] = set()
        self._inside = False
        self._stale = True  # whether what is in the groups is not what the multipliers and scheduled values make
        self._separate_shared_tensors()
        self._capture()

    # ------------------------------------------------------------------ what the methods set
    def set_multiplier(self, name: str, factor: float | Sequence[float]) -> None:
        """Set the named multiplier of the learning rate; takes effect at the next :meth:`write`.

        Args:
            name: who multiplies, for example ``"schedule"``.
            factor: one factor for all groups, or one per group. Finite and not negative.

        Raises:
            ValueError: for a factor that is negative or not finite, or a sequence of the wrong length.
        """
        before = self._multipliers.get(name)
        if factor is before and type(factor) is tuple:  # the very one that is set: it was checked then
            return
        if type(factor) is float:  # what most methods give, at every update
            if not 0.0 <= factor < math.inf:
                raise ValueError(f"multiplier {name!r}: got {factor}; a factor is finite and not negative")
            if before != factor:
                self._multipliers[name], self._stale = factor, True
            return
        if type(factor) is tuple and set(map(type, factor)) == {float}:
            factors = factor
        else:
            factors = tuple(map(float, factor)) if isinstance(factor, Sequence) else (float(factor),)
        if isinstance(factor, Sequence) and len(factors) != len(self.optimizer.param_groups):
            raise ValueError(
                f"multiplier {name!r}: got {len(factors)} factors for {len(self.optimizer.param_groups)} parameter "
                "groups; give one factor, or one per group"
            )
        for value in factors if not (math.isfinite(sum(factors)) and min(factors) >= 0.0) else ():
            if not 0.0 <= value < math.inf:
                raise ValueError(f"multiplier {name!r}: got {value}; a factor is finite and not negative")
        given = factors if isinstance(factor, Sequence) else factors[0]
        if before != given:
            self._multipliers[name], self._stale = given, True

    def remove_multiplier(self, name: str) -> None:
        """Forget the named multiplier; takes effect at the next :meth:`write`."""
        self._multipliers.pop(name, None)
        self._stale = True

    def set_transform(self, key: str, name: str, transform: Transform) -> None:
        """Set a named transform of another hyperparameter; groups without ``key`` are left alone.

        Args:
            key: the hyperparameter, for example ``"betas"``, ``"eps"``, ``"weight_decay"``. Not ``"lr"``.
            name: who transforms. Transforms of one key apply in the order in which they were first set.
            transform: scheduled value -> effective value.

        Raises:
            ValueError: for ``key="lr"``, which has multipliers.
        """
        self.set_groups_transform(key, name, lambda values: [v if v is None else transform(v) for v in values])

    def set_groups_transform(self, key: str, name: str, transform: GroupsTransform) -> None:
        """Set a transform that differs between groups; else as :meth:`set_transform`.

        Args:
            key: as there.
            name: as there.
            transform: scheduled values of all groups -> effective ones. Called at every :meth:`write`.

        Raises:
            ValueError: for ``key="lr"``.
        """
        if key == "lr":
            raise ValueError("set_transform: got key='lr'; the learning rate has named multipliers (set_multiplier)")
        self.settle()
        self._stale = True
        self._transforms.setdefault(key, {})[name] = transform
        self._manage(key)

    # ------------------------------------------------------------------ what can be read
    def group_names(self) -> list[str]:
        """The ``name`` of each group, ``group_<index>`` without one; a name of several groups has the index too."""
        names = [str(g.get("name", f"group_{i}")) for i, g in enumerate(self.optimizer.param_groups)]
        several = {name for name, count in Counter(names).items() if count > 1}
        return [f"{self.prefix}{f'{name}_{i}' if name in several else name}" for i, name in enumerate(names)]

    def scheduled(self, key: str = "lr") -> list[Any]:
        """The scheduled value of each group (``None`` where a group does not have ``key``)."""
        values = self._scheduled.get(key, [_ABSENT] * self._known)
        return [None if value is _ABSENT else value for value in values]

    def effective(self, key: str = "lr") -> list[Any]:
        """The value now in each group."""
        values = [group.get(key) for group in self.optimizer.param_groups]
        if Multiplied in set(map(type, values)):
            values = [value.plain if type(value) is Multiplied else value for value in values]
        return values

    def factors(self, group: int) -> dict[str, float]:
        """The named multipliers of one group, by its index."""
        return {name: self._factor(name, group) for name in self._multipliers}

    def products(self, names: Sequence[str]) -> list[float]:
        """The product of some of the named multipliers of each group; one that is not set is 1."""
        return self._products(name for name in names if name in self._multipliers)

    def base(self, key: str = "lr") -> list[Any]:
        """What the multipliers apply to: the scheduled value of each group, or the one in its place."""
        if not self._replaced:
            return self.scheduled(key)
        return [self._base(index, key) for index in range(self._known)]

    def tuned(self) -> list[Any]:
        """The rate of each group that the user tuned, which neither schedules nor multipliers move."""
        known = self._base_lr or []
        groups = self.optimizer.param_groups
        return [*known[: len(groups)], *(group.get("initial_lr", group.get("lr")) for group in groups[len(known) :])]

    def without(self, name: str) -> list[Any]:
        """The learning rate that each group would have without one of the multipliers."""
        products = self._products(other for other in self._multipliers if other != name)
        return [
            value if product == 1.0 else value * product for value, product in zip(self.base(), products, strict=True)
        ]

    # ------------------------------------------------------------------ writing
    def write(self) -> None:
        """Write the effective values into the groups, unless they are there."""
        if self._adopt_foreign_values() or self._stale:
            self._write_effective()
        elif self._transforms:  # may look at anything
            self._write_transformed()

    def settle(self) -> None:
        """Write again where somebody wrote into a group since the last :meth:`write`; cheap where nobody did."""
        if self._adopt_foreign_values():
            self._write_effective()

    def settle_as_tuned(self) -> bool:
        """As :meth:`settle`, before anything is trained: a rate that was written is the one that the user tuned.

        Returns:
            Whether any was.
        """
        before = self.scheduled()
        if not self._adopt_foreign_values():
            return False
        for index, (was, now) in enumerate(zip(before, self.scheduled(), strict=False)):
            own = self._base_lr is not None and index < len(self._base_lr)
            if own and was is not now and float(self._base_lr[index]) == float(was):  # type: ignore[index]
                self._base_lr[index] = _copied(now)  # type: ignore[index]
        self._write_effective()
        return True

    def replace_schedule(self, bases: Sequence[dict[str, Any]]) -> None:
        """Let fixed values stand in for what the user's schedulers write; takes effect at the next :meth:`write`.

        Args:
            bases: for each group the values by hyperparameter (``"lr"``, and what else a scheduler cycles). A value
                that the user writes by hand afterwards takes the place of the base.
        """
        self._adopt_foreign_values()
        self._stale = True
        self._replaced = [
            {key: _copied(value) for key, value in base.items() if key in group}
            for base, group in zip(bases, self.optimizer.param_groups, strict=True)
        ]
        for key in dict.fromkeys(chain.from_iterable(self._replaced)):
            self._manage(key)

    def begin_step(self, refined: bool = False) -> None:
        """The optimizer is about to step: give its kernels plain numbers, whose arithmetic costs nothing.

        Args:
            refined: whether multipliers may be others than when :meth:`write` was called, in which case :meth:`settle`
                has been called since.
        """
        if refined and self._stale:
            self._write_effective(remembering=False)
            return
        if refined and self._transforms:
            self._write_transformed()
        for group, mark in zip(self.optimizer.param_groups, self._written["lr"], strict=False):
            if type(mark) is Multiplied and group["lr"] is mark:
                group["lr"] = mark.plain

    def end_step(self) -> list[Any]:
        """The optimizer has stepped: a learning rate that is read from now on remembers the scheduled one.

        Returns:
            the rate of each group in that step.
        """
        groups = self.optimizer.param_groups
        rates = list(map(_LR, groups))
        for group, lr, mark in zip(groups, rates, self._written["lr"], strict=False):
            if type(mark) is Multiplied and lr is mark.plain:
                group["lr"] = mark
        if set(map(type, rates)) == {float}:
            return rates
        return [plain(_copied(lr)) for lr in rates]

    @contextmanager
    def scheduled_values(self) -> Iterator[None]:
        """Inside, the groups hold the scheduled values; what is changed there is the new scheduled value.

        The place for a scheduler's ``step()``: it sees exactly what it would see without us. A scheduler that steps
        others enters once.
        """
        if self._inside:
            yield
            return
        self._adopt_foreign_values()
        self._write_scheduled()
        self._inside = True
        try:
            yield
        finally:
            self._inside = False
            self._capture()
            self._write_effective()

    def values_were_put_back(self) -> None:
        """The groups were restored, from outside, to what was last written: they are not foreign values."""
        for key, written in self._written.items():
            for index, group in enumerate(self.optimizer.param_groups[: len(written)]):
                if written[index] is not _ABSENT and key in group:
                    written[index] = _mark(group[key])

    def release(self) -> None:
        """Give the optimizer back: groups hold the scheduled values again and nothing is multiplied any more."""
        self._adopt_foreign_values()
        self._write_scheduled()
        self._multipliers.clear()
        self._transforms.clear()
        self._replaced = []
        self._capture()

    def rewrite_state(self, optimizer_state: dict[str, Any]) -> None:
        """Put the scheduled values into an optimizer's ``state_dict()``, so that it can be loaded without us.

        Args:
            optimizer_state: what ``optimizer.state_dict()`` returned; its ``param_groups`` are changed in place.
        """
        self.settle()  # a value that is adopted here is multiplied here: the next settle would not see it any more
        for key, scheduled in self._scheduled.items():
            for group, value in zip(optimizer_state["param_groups"], scheduled, strict=True):
                if value is not _ABSENT:
                    group[key] = _copied(value)

    def show_scheduled(self, optimizer_state: dict[str, Any]) -> None:
        """As :meth:`rewrite_state`, of what we have written alone: what the user has is scheduled already.

        For every ``optimizer.state_dict()``, so that what the user keeps of it can be loaded at any time.
        """
        for key, scheduled in self._scheduled.items():
            for group, value, mark in zip(optimizer_state["param_groups"], scheduled, self._written[key], strict=False):
                if value is not _ABSENT and key in group and _is_marked(group[key], mark):
                    group[key] = _copied(value)

    # ------------------------------------------------------------------ inside
    def _factor(self, name: str, group: int) -> float:
        factor = self._multipliers[name]
        if isinstance(factor, float):
            return factor
        return factor[group] if group < len(factor) else 1.0  # a group that was added during the run

    def _base(self, index: int, key: str) -> Any:
        replaced = self._replaced[index] if index < len(self._replaced) else {}
        if key in replaced:
            return replaced[key]
        value = self._scheduled[key][index] if key in self._scheduled else _ABSENT
        return None if value is _ABSENT else value

    @property
    def _known(self) -> int:
        """Groups whose values are kept; one that is added during the run is not yet."""
        return len(self._scheduled["lr"])

    def _manage(self, key: str) -> None:
        """Keep the values of a hyperparameter, as they are now where they are not kept yet."""
        groups, number = self.optimizer.param_groups, self._known if self._scheduled else 0
        scheduled = self._scheduled.setdefault(key, [_ABSENT] * number)
        written = self._written.setdefault(key, [_ABSENT] * number)
        for index, group in enumerate(groups[:number]):
            if scheduled[index] is _ABSENT and key in group:
                scheduled[index], written[index] = _copied(group[key]), _mark(group[key])
        self._find_readers()

    def _find_readers(self) -> None:
        self._readers = [
            (partial(_value, key) if any(mark is _ABSENT for mark in written) else itemgetter(key), written)
            for key, written in self._written.items()
        ]

    def _capture(self) -> None:
        groups = self.optimizer.param_groups
        keys = dict.fromkeys(("lr", *self._transforms, *chain.from_iterable(self._replaced)))
        self._scheduled = {key: [_copied(group.get(key, _ABSENT)) for group in groups] for key in keys}
        self._written = {key: [_mark(group.get(key, _ABSENT)) for group in groups] for key in keys}
        self._find_readers()

    def _adopt_foreign_values(self) -> bool:
        """Take what somebody else wrote for the new scheduled value; returns whether there was any."""
        if self._inside:  # a scheduler is at work, and what it writes is captured afterwards
            return False
        groups, found = self.optimizer.param_groups, False
        if len(groups) == len(self._written["lr"]):
            for get, of_groups in self._readers:
                if not all(map(is_, map(get, groups), of_groups)):
                    break
            else:
                return False
        for group in groups[self._known :]:
            found = True
            for key, scheduled in self._scheduled.items():
                scheduled.append(_copied(group.get(key, _ABSENT)))
                self._written[key].append(_mark(group.get(key, _ABSENT)))
        if found:
            self._find_readers()
        for index, group in enumerate(groups):
            for key, written in self._written.items():
                if written[index] is _ABSENT or _is_marked(group[key], written[index]):
                    continue
                found, before = True, self._base(index, key)
                value = group[key]
                if type(value) is Multiplied:  # computed from what was in effect: the multipliers are known
                    value = group[key] = value.scheduled
                self._scheduled[key][index] = _copied(value)
                if index < len(self._replaced) and key in self._replaced[index]:
                    self._replaced[index][key] = _copied(value)
                written[index] = _mark(value)
                if isinstance(before, Tensor) or before != value:
                    self._warn_of_foreign_value(index, key, value)
        return found

    def _warn_of_foreign_value(self, index: int, key: str, value: Any) -> None:
        if key in self._warned:
            return
        self._warned.add(key)
        names = sorted(self._multipliers if key == "lr" else self._transforms.get(key, {}))
        multiplied = f"{', '.join(names)} {'applies' if len(names) == 1 else 'apply'} to it" if names else "it is used"
        known = key == "lr" and not isinstance(value, Tensor)
        computed = (
            "group['lr'] times or divided by a number multiplies the scheduled value; in any other computation use "
            "your own numbers, since group['lr'] has been multiplied already."
            if known
            else f"Compute it from your own numbers, not from group[{key!r}], which has been multiplied already."
        )
        warnings.warn(
            f"parameter group {index}: {key!r} was set to {value!r} by something other than an LR scheduler. That is "
            f"the scheduled value from now on, and {multiplied}, once, from the next optimizer step on. {computed}",
            stacklevel=4,
        )

    def _products(self, names: Iterable[str] | None = None) -> list[float]:
        """The product of each group's multipliers, or of those of some names."""
        products = [1.0] * self._known
        for name in self._multipliers if names is None else names:
            factor = self._multipliers[name]
            if factor == 1.0:
                continue
            if isinstance(factor, float):
                products = [product * factor for product in products]
            else:  # a group that was added during the run has none
                products = [*map(mul, products, factor), *products[len(factor) :]]
        return products

    def _write_effective(self, remembering: bool = True) -> None:
        """Write all values; what is in the groups is what was written last.

        Args:
            remembering: whether a multiplied rate remembers the scheduled one; else :meth:`end_step` makes it do so.
        """
        self._stale = False
        scheduled, written = self.base() if self._replaced else self._scheduled["lr"], self._written["lr"]
        marks = []
        for group, value, mark, product in zip(
            self.optimizer.param_groups, scheduled, written, self._products(), strict=True
        ):
            # x 1.0 would be the same bits; skipping it keeps the user's own object and type (such as an int lr)
            effective = value if product == 1.0 else value * product
            if effective is not value and type(effective) is float:
                rate = _new(Multiplied, effective)  # without the calls of a constructor, at every update
                rate.plain, rate.scheduled = effective, value
                if type(mark) in _NUMBERS:
                    group["lr"] = rate if remembering else effective
                    marks.append(rate)
                    continue
                effective = rate
            marks.append(_put(group, "lr", effective))
        written[:] = marks
        if self._transforms or self._replaced:
            self._write_transformed()

    def _write_transformed(self) -> None:
        """Write the effective values of what is not the learning rate, where they are others than those written."""
        for key in dict.fromkeys((*self._transforms, *chain.from_iterable(self._replaced))):
            if key == "lr":
                continue
            values, written = self.base(key), self._written[key]
            for transform in self._transforms.get(key, {}).values():
                values = transform(values)
            for index, (group, value, mark) in enumerate(
                zip(self.optimizer.param_groups, values, written, strict=True)
            ):
                if mark is _ABSENT:
                    continue
                if type(value) is float and type(mark) is float:
                    if value != mark:
                        group[key] = written[index] = value
                else:
                    written[index] = _put(group, key, value)

    def _write_scheduled(self) -> None:
        self._stale = True
        for key, scheduled in self._scheduled.items():
            written = self._written[key]
            for index, (group, value) in enumerate(zip(self.optimizer.param_groups, scheduled, strict=True)):
                if value is not _ABSENT:
                    written[index] = _put(group, key, value)

    def _separate_shared_tensors(self) -> None:
        # torch hands one default lr tensor to every group; written in place, one group would write all of them
        seen: set[int] = set()
        for group in self.optimizer.param_groups:
            for key, value in group.items():
                if key != "params" and isinstance(value, Tensor):
                    if id(value) in seen:
                        group[key] = value.clone()
                    seen.add(id(group[key]))


def factor_to(target: float, base: float) -> float:
    """The multiplier that makes ``target`` of ``base``: to the bit where floating point has one, else to a rounding."""
    factor = target / base
    for candidate in (factor, math.nextafter(factor, math.inf), math.nextafter(factor, -math.inf)):
        if base * candidate == target:
            return candidate
    return factor


def stand_still(optimizer: Optimizer) -> None:
    """Give every group a learning rate of 0, for a copy of an optimizer that steps where nothing is to be learned."""
    for group in optimizer.param_groups:
        group["lr"] = torch.zeros_like(group["lr"]) if isinstance(group["lr"], Tensor) else 0.0


def _value(key: str, group: dict[str, Any]) -> Any:
    return group.get(key, _ABSENT)


def _copied(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else value


def _put(group: dict[str, Any], key: str, value: Any) -> Any:
    """Write ``value`` (in place where the group holds a tensor) and return the mark that recognises it."""
    current = group[key]
    if isinstance(current, Tensor):
        with torch.no_grad():
            current.copy_(value) if isinstance(value, Tensor) else current.fill_(value)
    else:
        group[key] = value
    return _mark(group[key])


def _mark(value: Any) -> Any:
    """What shows whether a value is still the one that was written; for tensors without reading the device."""
    return (id(value), value._version) if isinstance(value, Tensor) else value


def _is_marked(value: Any, mark: Any) -> bool:
    if isinstance(value, Tensor):
        return isinstance(mark, tuple) and mark == (id(value), value._version)
    return value is mark or (type(mark) is Multiplied and value is mark.plain)
