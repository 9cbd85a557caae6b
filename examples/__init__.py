"""Ordinary Lightning code on small real data: what learning-rate callbacks attach to, without knowing of them."""

from examples.classifier import Classifier
from examples.data import DigitsDataModule, FashionMNISTDataModule, RottenTomatoesDataModule
from examples.models import EfficientNetLite0, MiniLM, ResNet, SmallCNN, ViT

__all__ = [
    "Classifier",
    "DigitsDataModule",
    "EfficientNetLite0",
    "FashionMNISTDataModule",
    "MiniLM",
    "ResNet",
    "RottenTomatoesDataModule",
    "SmallCNN",
    "ViT",
]
