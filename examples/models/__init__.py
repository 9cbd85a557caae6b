"""Small image classifiers: networks only, no training code."""

from examples.models.cnn import SmallCNN
from examples.models.resnet import ResNet
from examples.models.vit import ViT

__all__ = ["ResNet", "SmallCNN", "ViT"]
