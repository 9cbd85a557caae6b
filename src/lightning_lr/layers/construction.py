"""Splitting an optimizer's groups before anybody has seen them: while the optimizer is being constructed.

A scheduler that is built a line after the optimizer counts its groups, copies their learning rates, and stores both.
So groups are split inside of ``torch.optim.Optimizer.__init__``, which every optimizer calls, and which is replaced
only inside a ``with`` block. What had been built earlier (the optimizer and scheduler of a ``LightningCLI``) is split
afterwards, together with the scheduler's values per group.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from torch.optim import LBFGS, Optimizer

from lightning_lr.layers.groups import GroupsError

Split = Callable[[Iterable[Any], float], tuple[list[dict[str, Any]], list[int]]]
"""Groups and default weight decay to more groups, and which of the given ones each is a part of."""

PER_GROUP = (
    "base_lrs",
    "_last_lr",
    "lr_lambdas",
    "min_lrs",
    "max_lrs",
    "base_momentums",
    "max_momentums",
)
"""Attributes in which torch's schedulers keep a value for each group."""


@contextmanager
def groups_split_at_construction(split: Split) -> Iterator[None]:
    """Inside, every torch optimizer that is constructed gets split groups.

    Args:
        split: called with the ``params`` that the optimizer was given and its default weight decay.

    Raises:
        GroupsError: (inside) for ``LBFGS``, which knows no groups.
    """
    construct = Optimizer.__init__

    def construct_split(self: Optimizer, params: Any, defaults: dict[str, Any]) -> None:
        if not isinstance(params, Tensor):  # which torch refuses
            params, _ = split(params, defaults.get("weight_decay", 0.0) or 0.0)
        if isinstance(self, LBFGS) and len(params) > 1:
            raise GroupsError("LBFGS has one learning rate for all parameters; use another optimizer")
        construct(self, params, defaults)

    Optimizer.__init__ = construct_split  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.__init__ = construct  # type: ignore[method-assign]


def split_existing(optimizer: Optimizer, schedulers: Sequence[Any], split: Split) -> None:
    """Split the groups of an optimizer that exists already, and the values per group of its schedulers.

    Raises:
        GroupsError: for a scheduler that is not torch's and keeps lists of one value per group of its own.
    """
    groups, origin = split(optimizer.param_groups, 0.0)
    before = len(optimizer.param_groups)
    if [group.get("name") for group in groups] == [group.get("name") for group in optimizer.param_groups]:
        return  # split already
    for scheduler in schedulers if len(groups) != before else ():
        _repeat(scheduler, before, origin)
    optimizer.param_groups[:] = groups


def _repeat(scheduler: Any, before: int, origin: list[int]) -> None:
    for inner in getattr(scheduler, "_schedulers", ()):  # SequentialLR, ChainedScheduler
        _repeat(inner, before, origin)
    for name, value in vars(scheduler).items():
        if not (isinstance(value, list | tuple) and len(value) == before) or name == "_schedulers":
            continue
        if name in PER_GROUP:
            setattr(scheduler, name, [value[index] for index in origin])
        elif not type(scheduler).__module__.startswith("torch."):
            raise GroupsError(
                f"the scheduler {type(scheduler).__name__} keeps a list {name!r} that may be one value for each of the "
                f"optimizer's {before} groups, and it was built before they could be split; build optimizer and "
                "scheduler in configure_optimizers"
            )
