"""Layers of any model: which parameters are how deep, and parameter groups with a learning rate for each."""

from lightning_lr.layers.discovery import discover
from lightning_lr.layers.layer_map import Layer, LayerMap
from lightning_lr.layers.names import parameters_by_name

__all__ = ["Layer", "LayerMap", "discover", "parameters_by_name"]
