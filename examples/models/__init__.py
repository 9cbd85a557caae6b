"""Small networks, from scratch and pretrained: networks only, no training code."""

from examples.models.cnn import SmallCNN
from examples.models.efficientnet_lite import EfficientNetLite0
from examples.models.gpt import GPT
from examples.models.minilm import MiniLM
from examples.models.resnet import ResNet
from examples.models.vit import ViT

__all__ = ["GPT", "EfficientNetLite0", "MiniLM", "ResNet", "SmallCNN", "ViT"]
