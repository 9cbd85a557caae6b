"""Labelled grey images in memory, one byte a pixel, normalised when they are read. The loaders of this package are
torch's own `DataLoader` with its own samplers; only the fetch is by batch: `__getitems__` indexes once for the whole
batch, which is about ten times faster than sample-by-sample indexing and stacking (1.1 s for 55 000)."""

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate


class ImageDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (1 x height x width float image, int64 label), image = (pixel - mean) / std.

    Args:
        images: N x height x width, uint8.
        labels: N, any integer type.
        mean: In pixel units.
        std: In pixel units.
    """

    def __init__(self, images: Tensor, labels: Tensor, mean: float, std: float) -> None:
        if len(images) != len(labels):
            raise ValueError(f"{len(images)} images and {len(labels)} labels; there must be one label an image")
        self.images, self.labels = images, labels.long()
        self.mean, self.std = mean, std

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        images, labels = self.__getitems__([index])
        return images[0], labels[0]

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        """The batch at `indices`, already collated: (len(indices) x 1 x height x width, len(indices))."""
        chosen = torch.as_tensor(indices)
        images = self.images[chosen].unsqueeze(1).float().sub_(self.mean).div_(self.std)
        return images, self.labels[chosen]


def collate(batch: Any) -> Any:
    """Leaves a batch from `__getitems__` as it is; collates the list of samples that a wrapping dataset may give."""
    return default_collate(batch) if isinstance(batch, list) else batch


def image_loader(dataset: ImageDataset, batch_size: int, num_workers: int, shuffle: bool = False) -> DataLoader[Any]:
    """A standard `DataLoader` over `dataset`."""
    return DataLoader(
        dataset,
        batch_size=batch_size,
        shuffle=shuffle,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
        collate_fn=collate,
    )
