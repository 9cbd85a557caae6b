"""Python's own library as text: the .py files that come with every Python, so nothing is fetched."""

import sysconfig
from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class PythonSourceDataModule(LightningDataModule):
    """Bytes of the standard library's modules, cut into texts; the last tenth is for validation.

    A sample is a text of `context` bytes and the same one byte further on. Which bytes there are depends on the version
    of Python, so losses compare within one.

    Args:
        batch_size: Texts per batch and process.
        context: Bytes in a text.
        max_bytes: How much of the library is read, in the order of the files' names.

    Raises:
        ValueError: `max_bytes` is less than ten texts for training and validation.
    """

    def __init__(self, batch_size: int = 32, context: int = 128, max_bytes: int = 1_000_000) -> None:
        super().__init__()
        if max_bytes < 20 * (context + 1):
            raise ValueError(f"max_bytes={max_bytes} must be at least 20 texts of context={context} bytes and one more")
        self.batch_size, self.context, self.max_bytes = batch_size, context, max_bytes

    def setup(self, stage: str | None = None) -> None:
        text = torch.frombuffer(bytearray(_library(self.max_bytes)), dtype=torch.uint8).long()
        cut = len(text) * 9 // 10
        self.train_set, self.val_set = self._texts(text[:cut]), self._texts(text[cut:])

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.val_set, self.batch_size)

    def _texts(self, text: Tensor) -> TensorDataset:
        count = (len(text) - 1) // self.context
        first, following = (text[start : start + count * self.context].view(count, -1) for start in (0, 1))
        return TensorDataset(first, following)


def _library(max_bytes: int) -> bytes:
    folder = Path(sysconfig.get_paths()["stdlib"])
    text = b""
    for file in sorted(folder.glob("*.py")):
        text += file.read_bytes()
        if len(text) >= max_bytes:
            break
    return text[:max_bytes]
