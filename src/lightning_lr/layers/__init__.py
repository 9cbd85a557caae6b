"""Layers of any model: which parameters are how deep, and parameter groups with a learning rate for each."""

from lightning_lr.layers.by_optimizer import SplittersByOptimizer
from lightning_lr.layers.construction import groups_split_at_construction, split_existing
from lightning_lr.layers.discovery import Layers, discover
from lightning_lr.layers.groups import (
    LAYER,
    GroupsError,
    GroupSplitter,
    check_factors,
    check_names,
    layerwise_param_groups,
)
from lightning_lr.layers.layer_map import Layer, LayerMap
from lightning_lr.layers.names import parameters_by_name
from lightning_lr.layers.no_decay import NoWeightDecay
from lightning_lr.layers.table import layer_table
from lightning_lr.layers.unfreezing import FrozenLayers, UnfreezingOrder

__all__ = [
    "LAYER",
    "FrozenLayers",
    "GroupSplitter",
    "GroupsError",
    "Layer",
    "LayerMap",
    "Layers",
    "NoWeightDecay",
    "SplittersByOptimizer",
    "UnfreezingOrder",
    "check_factors",
    "check_names",
    "discover",
    "groups_split_at_construction",
    "layer_table",
    "layerwise_param_groups",
    "parameters_by_name",
    "split_existing",
]
