"""Small real data sets as `LightningDataModule`s."""

from examples.data.digits import DigitsDataModule
from examples.data.fashion_mnist import FashionMNISTDataModule
from examples.data.python_source import PythonSourceDataModule
from examples.data.rotten_tomatoes import RottenTomatoesDataModule

__all__ = ["DigitsDataModule", "FashionMNISTDataModule", "PythonSourceDataModule", "RottenTomatoesDataModule"]
