"""Fashion-MNIST as a `LightningDataModule`: 60 000 + 10 000 images of 28 x 28 pixels, ten kinds of clothing.
Where the files come from is decided in `fashion_mnist_files`. Xiao, Rasul and Vollgraf 2017, arXiv:1708.07747."""

from pathlib import Path
from typing import Any

import torch
from lightning import LightningDataModule
from torch.utils.data import DataLoader

from examples.data import fashion_mnist_files as files
from examples.data.images import ImageDataset, image_loader

_MEAN, _STD = 0.2860 * 255, 0.3530 * 255  # of the 60 000 training images


class FashionMNISTDataModule(LightningDataModule):
    """Fashion-MNIST; validation images are taken from the 60 000, the 10 000 are the test set.

    The files are looked for in `data_dir`, in the cache folder (`$FASHION_MNIST_DIR`, or `data/fashion-mnist` below the
    working directory) and where Debian's package `dataset-fashion-mnist` puts them; else they are downloaded to the
    cache folder. Their checksums are verified when they are read.

    Args:
        batch_size: Samples per batch and process.
        data_dir: A folder with the four idx files, `.gz` or plain.
        num_workers: Loader processes; 0 is fastest for data in memory.
        train_size: Number of training images, the first after a seeded shuffle; None: all that validation leaves.
        val_size: Number of validation images; they do not depend on `train_size`.
        seed: Of the split into training and validation images.
        normalize: Mean 0 and standard deviation 1; else pixels from 0 to 1.

    Raises:
        ValueError: The sizes do not fit into the 60 000 images (at setup).
        FileNotFoundError: The files are nowhere and cannot be fetched.
        CorruptFileError: A file's checksum is wrong.
    """

    def __init__(
        self,
        batch_size: int = 128,
        data_dir: str | Path | None = None,
        num_workers: int = 0,
        train_size: int | None = None,
        val_size: int = 5000,
        seed: int = 0,
        normalize: bool = True,
    ) -> None:
        super().__init__()
        self.batch_size = batch_size
        self.data_dir = data_dir
        self.num_workers = num_workers
        self.train_size, self.val_size = train_size, val_size
        self.seed = seed
        self.mean, self.std = (_MEAN, _STD) if normalize else (0.0, 255.0)

    def prepare_data(self) -> None:
        files.fetch_if_missing(self.data_dir)

    def setup(self, stage: str | None = None) -> None:
        folder = files.require_folder(self.data_dir)
        if stage != "test":
            images, labels = files.load(folder, "train")
            available = len(images) - self.val_size
            train_size = available if self.train_size is None else self.train_size
            if not (self.val_size > 0 and 0 < train_size <= available):
                raise ValueError(
                    f"train_size={self.train_size} and val_size={self.val_size} must be above 0 and add up to at most "
                    f"{len(images)}"
                )
            order = torch.randperm(len(images), generator=torch.Generator().manual_seed(self.seed))
            val, train = order[: self.val_size], order[self.val_size :][:train_size]
            self.train_set = ImageDataset(images[train], labels[train], self.mean, self.std)
            self.val_set = ImageDataset(images[val], labels[val], self.mean, self.std)
        if stage in (None, "test"):
            self.test_set = ImageDataset(*files.load(folder, "t10k"), self.mean, self.std)

    def train_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.train_set, self.batch_size, self.num_workers, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.val_set, self.batch_size, self.num_workers)

    def test_dataloader(self) -> DataLoader[Any]:
        return image_loader(self.test_set, self.batch_size, self.num_workers)
