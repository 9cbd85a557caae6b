"""Parameter groups by layer: an optimizer's groups, split so that each holds one layer, with or without weight decay.

Existing groups are split, never replaced: every option that the user gave to a group (a learning rate of LoRA+, betas)
goes to all of its parts.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from lightning_lr.checks import is_rate, is_real
from lightning_lr.layers.discovery import Layers, discover
from lightning_lr.layers.layer_map import LayerMap
from lightning_lr.layers.names import parameters_by_name
from lightning_lr.layers.no_decay import NoWeightDecay, exemptions, without_weight_decay

LAYER = "layer"
"""Key of a split group: the name of its layer."""
FINISHED = "layer_decay"
"""Key of a group whose lr already contains the factor (:func:`layerwise_param_groups`)."""
Group = dict[str, Any]


class GroupsError(ValueError):
    """An optimizer's groups that cannot be split by layer."""


def check_factors(caller: str, decay: float, head_factor: float) -> None:
    """Refuse factors that make no sense.

    Raises:
        ValueError: for a decay outside (0, 1], or a head factor that is not positive and finite.
    """
    if not (is_real(decay) and 0.0 < decay <= 1.0):
        raise ValueError(f"{caller}: got decay={decay!r}; the factor from one layer to the one below is in (0, 1]")
    if not (is_rate(head_factor) and head_factor > 0.0):
        raise ValueError(
            f"{caller}: got head_factor={head_factor!r}; give a positive number within float32, 1 for none"
        )


def check_names(caller: str, **arguments: object) -> None:
    """Refuse what is neither ``"auto"`` nor a list of strings, by name; what they match is looked at with the model.

    Raises:
        ValueError: for anything else.
    """
    for name, value in arguments.items():
        of_strings = isinstance(value, list | tuple) and all(isinstance(one, str) for one in value)
        words = ("auto", "vectors") if name == "no_weight_decay" else ("auto",)
        if value not in words and not (of_strings and (value or name == "no_weight_decay")):
            given = ", ".join(f'"{word}"' for word in words)
            raise ValueError(f"{caller}: got {name}={value!r}; give {given}, or a list of regular expressions")


class GroupSplitter:
    """Splits parameter groups by layer and by weight decay.

    Args:
        module: the model that the parameters belong to.
        layers: ``"auto"`` or patterns, as in :func:`discover`.
        by_layer: whether layers make groups; else only exemption from weight decay does.
        no_weight_decay: which parameters are exempt, as in :func:`without_weight_decay`.
        part: the part of the model in which layers are looked for; by default all of it.

    Raises:
        ValueError: as :func:`discover` and :func:`without_weight_decay`.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Layers = "auto",
        by_layer: bool = True,
        no_weight_decay: NoWeightDecay = "auto",
        part: nn.Module | None = None,
    ) -> None:
        part = module if part is None else part
        self.map: LayerMap | None = discover(part, layers) if by_layer else None
        self._exempt = without_weight_decay(module, no_weight_decay)
        self.exempt_because = exemptions(part, self._exempt)
        names = parameters_by_name(part)
        self._order = {layer.name: index for index, layer in enumerate(self.map.layers)} if self.map else {}
        self._known = {id(parameter) for parameter in names.values()}
        self._layer = {id(p): self.map.layer_of(name).name for name, p in names.items()} if self.map else {}

    def split(self, params: Iterable[Any], default_weight_decay: float = 0.0) -> tuple[list[Group], list[int]]:
        """Split what an optimizer takes as its ``params``; groups that are split already stay as they are.

        Args:
            params: tensors, or (name, tensor) pairs, or groups.
            default_weight_decay: of groups without one.

        Returns:
            The groups, and for each the index of the group that it is a part of.

        Raises:
            GroupsError: where no parameter belongs to the model, or the groups have layer-wise rates already.
        """
        given = list(params)
        if not given:
            return [], []
        groups: list[Group] = list(map(dict, given)) if isinstance(given[0], Mapping) else [{"params": given}]
        for group in groups:
            group["params"] = _members(group)  # it may be an iterator
        self._check(groups)
        split: list[Group] = []
        origin: list[int] = []
        taken: set[str] = set()
        for index, group in enumerate(groups):
            parts = self._parts(group, default_weight_decay)
            prefix = "" if len(groups) == 1 else f"group_{index}/"
            for part, label in parts:
                if label is not None:
                    base = prefix if "name" not in group else "" if group["name"] == label else f"{group['name']}/"
                    part["name"] = _unique(base + label, taken)
                taken.add(str(part.get("name")))
                split.append(part)
                origin.append(index)
        return split, origin

    def _parts(self, group: Group, default_weight_decay: float) -> list[tuple[Group, str | None]]:
        """The parts of a group, with the label of each that is new."""
        decays = bool(group.get("weight_decay", default_weight_decay))
        members: list[Any] = group["params"]
        if not members and LAYER in group:  # on this rank: an optimizer that shards hands its parts to an inner one
            return [(group, None)]
        names = group.get("param_names")
        buckets: dict[tuple[int, str | None, bool], list[int]] = {}
        for position, member in enumerate(members):
            parameter = _tensor(member)
            layer = self._layer.get(id(parameter))
            exempt = decays and id(parameter) in self._exempt
            order = self._order[layer] if layer is not None else len(self._order)
            buckets.setdefault((order, layer, exempt), []).append(position)
        if len(buckets) <= 1:
            layer, exempt = next(((layer, exempt) for _, layer, exempt in buckets), (None, False))
            if (self.map is None and not exempt) or (LAYER in group and group[LAYER] == layer and not exempt):
                return [(group, None)]
        parts: list[tuple[Group, str | None]] = []
        for (_, layer, exempt), positions in sorted(buckets.items(), key=lambda item: (item[0][0], item[0][2])):
            part: Group = {**group, "params": [members[position] for position in positions]}
            if names is not None:
                part["param_names"] = [names[position] for position in positions]
            if layer is not None:
                part[LAYER] = layer
            if exempt:
                part["weight_decay"] = 0.0
            parts.append((part, self._label(layer, exempt)))
        return parts

    def _label(self, layer: str | None, exempt: bool) -> str:
        if self.map is None:
            return "no_decay" if exempt else "decay"
        return f"{layer or 'other'}/no_decay" if exempt else layer or "other"

    def _check(self, groups: Sequence[Group]) -> None:
        if any(FINISHED in group for group in groups):
            raise GroupsError(
                "the optimizer's groups come from layerwise_param_groups, whose learning rates contain the factor of "
                "their layer already; give it the module's parameters, or remove this callback"
            )
        parameters = [_tensor(member) for group in groups for member in group["params"]]
        unknown = sum(id(parameter) not in self._known for parameter in parameters)
        if not parameters or not unknown:
            return
        if unknown == len(parameters):
            raise GroupsError(
                f"none of the optimizer's {unknown} parameters is one of the module's; give it module.parameters() "
                "(with FSDP's first version, use_orig_params=True)"
            )
        if self.map is not None:
            warnings.warn(
                f"{unknown} of the optimizer's {len(parameters)} parameters are not in the module, so they have no "
                "layer; their learning rate is left as it is",
                stacklevel=4,
            )


def layerwise_param_groups(
    module: nn.Module,
    lr: float,
    decay: float,
    weight_decay: float = 0.0,
    layers: Layers = "auto",
    head_factor: float = 1.0,
    no_weight_decay: NoWeightDecay = "auto",
) -> list[Group]:
    r"""Parameter groups with a learning rate for each layer, for any torch optimizer.

    .. math:: \text{lr}_\ell = \text{lr} \cdot \text{decay}^{d_\ell}

    with :math:`d_\ell` the layer's distance from the top; the head has :math:`\text{lr} \cdot \text{head\_factor}`.

    Args:
        module: the model. Depth comes from all its parameters; those that need no gradient are in no group.
        lr: learning rate of the top.
        decay: factor from one layer to the one below, in (0, 1]; 1 makes groups for weight decay alone.
        weight_decay: of every parameter that is not exempt.
        layers: ``"auto"``, or regular expressions from input to head (:func:`discover`).
        head_factor: factor on the learning rate of the top layer.
        no_weight_decay: ``"auto"``: biases, norms, tokens, position embeddings and biases, ``A_log`` and ``D`` of
            state-space layers, and what the model's ``no_weight_decay()`` lists. ``"vectors"``: of these only biases,
            norms and what is listed. Or regular expressions.

    Returns:
        Groups from input to head with ``params``, ``lr``, ``weight_decay`` and a unique ``name``; none is empty.

    Raises:
        ValueError: for a decay outside (0, 1], patterns that match nothing, or a model without trainable parameters.

    Source: Howard & Ruder 2018 (discriminative fine-tuning), arXiv 1801.06146; Clark et al. 2020 (ELECTRA's layer-wise
    decay), arXiv 2003.10555. The stem and head are counted as in BEiT, arXiv 2106.08254.
    """
    caller = "layerwise_param_groups"
    check_factors(caller, decay, head_factor)
    check_names(caller, layers=layers, no_weight_decay=no_weight_decay)
    if not isinstance(module, nn.Module):
        raise TypeError(f"{caller}: got module={module!r}; give an nn.Module")
    for name, value in (("lr", lr), ("weight_decay", weight_decay)):
        if not is_rate(value):
            raise ValueError(f"{caller}: got {name}={value!r}; give a number that is not negative, within float32")
    trainable = [p for p in parameters_by_name(module).values() if p.requires_grad]
    if not trainable:
        raise ValueError(f"{type(module).__name__} has no parameter that needs a gradient; unfreeze some")
    splitter = GroupSplitter(module, layers, decay != 1.0 or head_factor != 1.0, no_weight_decay)
    groups, _ = splitter.split([{"params": trainable, "weight_decay": weight_decay}])
    for group in groups:
        layer = group.pop(LAYER, None)
        factor = splitter.map.factor(layer, decay, head_factor) if splitter.map and layer else 1.0
        group.setdefault("name", "all")
        group.update({"lr": lr * factor, FINISHED: decay})
    return groups


def _members(group: Group) -> list[Any]:
    params = group["params"]
    return [params] if isinstance(params, torch.Tensor) else list(params)


def _tensor(member: Any) -> Any:
    return member[1] if isinstance(member, tuple) else member


def _unique(name: str, taken: set[str]) -> str:
    if name not in taken:
        return name
    return next(f"{name}_{n}" for n in range(2, len(taken) + 3) if f"{name}_{n}" not in taken)
