"""What depth discovery found: the layers of a model from input to head, and how far each is from the top.

Only the distance from the top decides about a learning rate, so depths are counted such that all towers of a model
(text and vision, encoder and decoder) end at the same top: a shorter tower begins above depth 0, and its layers have
the factors they would have alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property


@dataclass(frozen=True)
class Layer:
    """Parameters that train with one learning rate.

    Args:
        name: shown in tables; unique in its map.
        depth: 0 is nearest the input. Layers of different towers may have the same depth.
        parameters: names in the unwrapped module; a tied weight appears once in the whole map.
    """

    name: str
    depth: int
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class LayerMap:
    """The layers of a model, every parameter in exactly one.

    Args:
        layers: from input to head; none is empty.
        how: which convention found them: ``"timm group_matcher"``, ``"repeated blocks"``, ``"patterns"`` or
            ``"definition order"``.
    """

    layers: tuple[Layer, ...]
    how: str

    @property
    def depth(self) -> int:
        """Number of depths: the highest, the head's, is ``depth - 1``."""
        return 1 + max((layer.depth for layer in self.layers), default=-1)

    def distance_from_top(self, name: str) -> int:
        """Depths between the layer called ``name`` and the top; 0 for the head."""
        return self.depth - 1 - self._by_name[name].depth

    def factor(self, name: str, decay: float, head_factor: float = 1.0) -> float:
        r"""The factor on the learning rate of the layer called ``name``.

        :math:`\text{decay}^{d}` with :math:`d` the distance from the top; the top itself gets ``head_factor``.
        """
        distance = self.distance_from_top(name)
        return decay**distance if distance else head_factor

    def layer_of(self, parameter: str) -> Layer:
        """The layer that holds the parameter called ``parameter`` in the unwrapped module."""
        return self._by_parameter[parameter]

    @cached_property
    def _by_name(self) -> dict[str, Layer]:
        return {layer.name: layer for layer in self.layers}

    @cached_property
    def _by_parameter(self) -> dict[str, Layer]:
        return {name: layer for layer in self.layers for name in layer.parameters}
