"""Ordinary Lightning code on small real data: what learning-rate callbacks attach to, without knowing of them."""

from examples.classifier import Classifier
from examples.data import DigitsDataModule, FashionMNISTDataModule
from examples.models import ResNet, SmallCNN, ViT

__all__ = ["Classifier", "DigitsDataModule", "FashionMNISTDataModule", "ResNet", "SmallCNN", "ViT"]
