"""An optimizer like another, over a parameter of one's own: to try out what a step does, without touching the run's."""

from __future__ import annotations

import inspect
from collections import OrderedDict, defaultdict
from copy import copy, deepcopy
from typing import Any

from torch import nn
from torch.optim import Optimizer


def optimizer_like(optimizer: Optimizer, group: dict[str, Any], parameter: nn.Parameter, **settings: Any) -> Optimizer:
    """An optimizer of the same class and settings over one other parameter.

    It has no state, none of the user's hooks and nothing that an LR scheduler has put around ``step``, and shares
    nothing that it writes to.

    Args:
        optimizer: any torch optimizer, at any time; it does not change.
        group: which of its parameter groups has the settings.
        parameter: what the new optimizer steps on.
        **settings: hyperparameters that differ from the group's.
    """
    own = {name: deepcopy(value) for name, value in group.items() if name != "params"} | settings
    other = _constructed(optimizer, own, parameter) or _from_attributes(optimizer)
    other.param_groups = [{**own, "params": [parameter]}]
    return other


def _constructed(optimizer: Optimizer, settings: dict[str, Any], parameter: nn.Parameter) -> Optimizer | None:
    taken = inspect.signature(type(optimizer)).parameters
    try:
        return type(optimizer)([parameter], **{name: value for name, value in settings.items() if name in taken})
    except Exception:  # its group does not hold all that its constructor takes
        return None


def _from_attributes(optimizer: Optimizer) -> Optimizer:
    other = object.__new__(type(optimizer))
    for name, value in vars(optimizer).items():
        if isinstance(value, OrderedDict) and name.endswith("_hooks"):
            value = OrderedDict[Any, Any]()
        other.__dict__[name] = copy(value) if isinstance(value, list | dict | set) else value
    other.__dict__.pop("step", None)  # an LR scheduler counts in there
    other.state = defaultdict(dict)
    return other
