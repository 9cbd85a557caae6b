"""The data of `headline`, read once per process, and the network that belongs to data which are half read."""

from __future__ import annotations

import functools
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from examples.data import FashionMNISTDataModule, PythonSourceDataModule, RottenTomatoesDataModule
from examples.models import MiniLM


class Held(LightningDataModule):
    """Three data sets that are in memory already; a batch is drawn from the first one anew in every epoch."""

    def __init__(self, batch_size: int, train_set: Any, val_set: Any, test_set: Any) -> None:
        super().__init__()
        self.batch_size, self.train_set, self.val_set, self.test_set = batch_size, train_set, val_set, test_set

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(self.train_set, self.batch_size, shuffle=True)


def rows_of(dataset: Any, first: int, last: int) -> tuple[Tensor, Tensor]:
    """Inputs and labels of some samples, as one batch."""
    indices = list(range(first, min(last, len(dataset))))
    inputs, labels = dataset.__getitems__(indices) if hasattr(dataset, "__getitems__") else dataset[indices]
    return inputs, labels


class Images(FashionMNISTDataModule):
    """Fashion-MNIST, read and checked once per process."""

    def prepare_data(self) -> None:
        pass

    def setup(self, stage: str | None = None) -> None:
        read = _read(self.data_dir, self.train_size, self.val_size)
        self.train_set, self.val_set, self.test_set = read.train_set, read.val_set, read.test_set


@functools.cache
def _read(data_dir: Any, train_size: int | None, val_size: int) -> FashionMNISTDataModule:
    data = FashionMNISTDataModule(1, data_dir, train_size=train_size, val_size=val_size)
    data.prepare_data()
    data.setup()
    return data


def images(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Fashion-MNIST with its 10 000 test images."""
    data = Images(batch_size, data_dir, train_size=train_size, val_size=val_size)
    data.setup()
    return data


CONTEXT, SOURCE_BYTES = 64, 2_000_000


@functools.cache
def _texts(train_size: int, val_size: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    source = PythonSourceDataModule(1, CONTEXT, SOURCE_BYTES)
    source.setup()
    held_out = source.val_set.tensors

    def some(tensors: tuple[Tensor, ...], count: int, seed: int) -> TensorDataset:
        chosen = torch.randperm(len(tensors[0]), generator=torch.Generator().manual_seed(seed))[:count]
        return TensorDataset(*(tensor[chosen] for tensor in tensors))

    half = len(held_out[0]) // 2
    val, test = (some(tuple(t[part] for t in held_out), val_size, 1) for part in (slice(half), slice(half, None)))
    return some(source.train_set.tensors, train_size, 0), val, test


def texts(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Pieces of the Python standard library; as many for the test as for validation, from other modules."""
    return Held(batch_size, *_texts(train_size, val_size))


TUNED_LAYERS, LENGTH = 1, 20


@functools.cache
def _half_read(train_size: int, val_size: int) -> tuple[TensorDataset, TensorDataset, TensorDataset]:
    """What the frozen layers make of the sentences: (sentences x LENGTH x width), 0 where there is no token."""
    source = RottenTomatoesDataModule(1, LENGTH, train_size=train_size, val_size=val_size, test_size=val_size)
    source.setup()
    encoder = MiniLM().eval().encoder
    encoder.encoder.layer = encoder.encoder.layer[:-TUNED_LAYERS]

    @torch.no_grad()
    def read(sentences: Any) -> TensorDataset:
        padded = torch.zeros(len(sentences), LENGTH, dtype=torch.long)
        for row, ids in zip(padded, sentences.tokens, strict=True):
            row[: len(ids)] = ids
        parts = []
        for tokens in padded.split(64):
            mask = (tokens != 0).long()
            parts.append(encoder(input_ids=tokens, attention_mask=mask).last_hidden_state * mask.unsqueeze(2))
        return TensorDataset(torch.cat(parts), sentences.labels)

    return read(source.train_set), read(source.val_set), read(source.test_set)


def sentences(batch_size: int, train_size: int, val_size: int, data_dir: str | None) -> LightningDataModule:
    """Film reviews as MiniLM's frozen layers leave them; as many for the test as for validation."""
    return Held(batch_size, *_half_read(train_size, val_size))


class MiniLMTop(nn.Module):
    """The last layers of the pretrained MiniLM, the mean over a sentence's tokens and a linear head.

    The layers below are frozen, so that what they make of a sentence is computed once: on one core a run of the whole
    network takes minutes.
    """

    def __init__(self) -> None:
        super().__init__()
        whole = MiniLM()
        self.layers = whole.encoder.encoder.layer[-TUNED_LAYERS:]
        self.dropout, self.classifier = whole.dropout, whole.classifier

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits (batch x 2) of the frozen layers' output (batch x length x width), 0 where there is no token."""
        real = (hidden != 0).any(dim=2)
        for layer in self.layers:
            made = layer(hidden, real[:, None, None, :].expand(-1, 1, hidden.shape[1], -1))
            hidden = made[0] if isinstance(made, tuple) else made
        weights = real / real.sum(dim=1, keepdim=True)
        logits: Tensor = self.classifier(self.dropout((hidden * weights.unsqueeze(2)).sum(dim=1)))
        return logits
