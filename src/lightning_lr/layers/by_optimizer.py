"""The layers of a module with several optimizers: each optimizer's are those of the part that it trains."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from lightning_lr.layers.discovery import Layers
from lightning_lr.layers.groups import GroupsError, GroupSplitter, _members, _tensor
from lightning_lr.layers.layer_map import LayerMap
from lightning_lr.layers.no_decay import NoWeightDecay


class SplittersByOptimizer:
    """Splits the groups of every optimizer by the layers of the part of the module that it trains.

    An optimizer of all trainable parameters is split by the layers of the module; one of the generator's by those of
    the generator. Patterns are over the names in the module, whichever optimizer it is.

    Args:
        module: the module.
        layers: ``"auto"`` or patterns, as in :func:`discover`.
        by_layer: whether layers make groups; else only exemption from weight decay does.
        no_weight_decay: which parameters are exempt.
        left_alone: parameters, by id, whose optimizers stay as they are.
    """

    def __init__(
        self,
        module: nn.Module,
        layers: Layers,
        by_layer: bool,
        no_weight_decay: NoWeightDecay,
        left_alone: Iterable[int] = (),
    ) -> None:
        self._module, self._layers, self._by_layer = module, layers, by_layer
        self._no_weight_decay = no_weight_decay
        self._left_alone = set(left_alone)
        self._splitters: dict[int, GroupSplitter] = {}
        self._of_parameter: dict[int, GroupSplitter] = {}

    def split(self, params: Iterable[Any], default_weight_decay: float = 0.0) -> tuple[list[Any], list[int]]:
        """As :meth:`GroupSplitter.split`.

        Raises:
            GroupsError: as there, and where the layers are not found.
        """
        given = list(params)
        groups = [dict(g, params=_members(g)) for g in given] if given and isinstance(given[0], Mapping) else None
        members = given if groups is None else [member for group in groups for member in group["params"]]
        ids = {id(_tensor(member)) for member in members}
        if ids and ids <= self._left_alone:
            return given if groups is None else groups, list(range(len(given)))
        splitter = self._splitter(ids)
        self._of_parameter.update(dict.fromkeys(ids, splitter))
        return splitter.split(given if groups is None else groups, default_weight_decay)

    def map_of(self, group: Mapping[str, Any]) -> LayerMap | None:
        """The layers that a group was split by."""
        for member in group["params"][:1]:
            if id(member) in self._of_parameter:
                return self._of_parameter[id(member)].map
        return self.maps[0] if len(self.maps) == 1 else None  # an engine has put its own tensors there

    @property
    def maps(self) -> list[LayerMap]:
        """The layers of each part that was split."""
        return [splitter.map for splitter in self._splitters.values() if splitter.map is not None]

    @property
    def exempt_because(self) -> str:
        """Which parameters have no weight decay and why, in words."""
        return "\n".join(dict.fromkeys(s.exempt_because for s in self._splitters.values() if s.exempt_because))

    # ------------------------------------------------------------------ inside
    def _splitter(self, ids: set[int]) -> GroupSplitter:
        part = self._part(ids)
        if id(part) not in self._splitters:
            try:
                self._splitters[id(part)] = GroupSplitter(
                    self._module, self._layers, self._by_layer, self._no_weight_decay, part
                )
            except ValueError as error:
                raise GroupsError(str(error)) from error
        return self._splitters[id(part)]

    def _part(self, ids: set[int]) -> nn.Module:
        trained = {id(parameter) for parameter in self._module.parameters() if parameter.requires_grad}
        if self._layers != "auto" or not ids or ids >= trained:
            return self._module
        smallest, size = self._module, len(list(self._module.parameters()))
        for part in self._module.modules():
            own = {id(parameter) for parameter in part.parameters()}
            if ids <= own and len(own) < size:
                smallest, size = part, len(own)
        return smallest
