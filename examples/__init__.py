"""Ordinary Lightning code on small real data: what learning-rate callbacks attach to, without knowing of them."""

from examples.classifier import Classifier
from examples.data import DigitsDataModule, FashionMNISTDataModule, PythonSourceDataModule, RottenTomatoesDataModule
from examples.language_model import LanguageModel
from examples.models import GPT, EfficientNetLite0, MiniLM, ResNet, SmallCNN, ViT

__all__ = [
    "GPT",
    "Classifier",
    "DigitsDataModule",
    "EfficientNetLite0",
    "FashionMNISTDataModule",
    "LanguageModel",
    "MiniLM",
    "PythonSourceDataModule",
    "ResNet",
    "RottenTomatoesDataModule",
    "SmallCNN",
    "ViT",
]
