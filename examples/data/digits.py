"""scikit-learn's handwritten digits as a `LightningDataModule`: 1797 images of 8 x 8 pixels that come with the library,
so nothing is fetched. A test half of the UCI set of Alpaydin and Kaynak (1998)."""

from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from examples.data.images import ImageDataset, image_loader


class DigitsDataModule(LightningDataModule):
    """Digits, split by class into train, validation and test; normalised by the training part's mean and std.

    Args:
        batch_size: Samples per batch and process.
        num_workers: Loader processes; 0 is fastest for data in memory.
        seed: Of the split, which depends on nothing else.
        val_fraction: Share of the 1797 images used for validation.
        test_fraction: Share of the 1797 images used for testing.

    Raises:
        ValueError: The fractions leave no training images.
    """

    def __init__(
        self,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        val_fraction: float = 0.1,
        test_fraction: float = 0.2,
    ) -> None:
        super().__init__()
        if not (val_fraction > 0 and test_fraction > 0 and val_fraction + test_fraction < 1):
            raise ValueError(
                f"val_fraction={val_fraction} and test_fraction={test_fraction} must both be above 0 "
                "and add up to less than 1"
            )
        self.batch_size = batch_size
        self.num_workers = num_workers
        self.seed = seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction

    def setup(self, stage: str | None = None) -> None:
        images, labels = _load_digits()
        train, val, test = self._split(labels)
        pixels = images[train].float()
        mean, std = pixels.mean().item(), pixels.std().item()
        self.train_set, self.val_set, self.test_set = (
            ImageDataset(images[part], labels[part], mean, std) for part in (train, val, test)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.train_set, self.batch_size, self.num_workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.val_set, self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.test_set, self.batch_size, self.num_workers)

    def _split(self, labels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Indices of the train, validation and test images; each class is cut in the same proportions."""
        generator = torch.Generator().manual_seed(self.seed)
        parts: tuple[list[Tensor], ...] = ([], [], [])
        for digit in range(10):
            members = (labels == digit).nonzero().flatten()
            members = members[torch.randperm(len(members), generator=generator)]
            val_count, test_count = (round(len(members) * f) for f in (self.val_fraction, self.test_fraction))
            sizes = [len(members) - val_count - test_count, val_count, test_count]
            for part, chunk in zip(parts, torch.split(members, sizes), strict=True):
                part.append(chunk)
        train, val, test = (torch.cat(part) for part in parts)
        return train, val, test


def _load_digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "DigitsDataModule needs scikit-learn; install it, or this project's extra `examples`"
        ) from error
    images, labels = load_digits(return_X_y=True)
    return torch.from_numpy(images).reshape(-1, 8, 8).to(torch.uint8), torch.from_numpy(labels)
