"""A run that goes on under other circumstances trains on exactly what is left, or refuses: never something between.

A cell is a kind of checkpoint, a change, and the callbacks. What is asserted are the samples that were trained on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_lr import (
    BatchSizeRamp,
    GradientNoiseScale,
    LayerwiseLRDecay,
    LearningRateSchedule,
    Polynomial,
    StepRamp,
)
from tests.support.toy import Probe, ResumableSampler, quiet

pytestmark = pytest.mark.filterwarnings("ignore")
EPOCHS = 3


class Numbered(Dataset[Tensor]):
    """Samples that are their own numbers."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Tensor:
        return torch.tensor([float(index)])


class Streamed(IterableDataset[Tensor]):
    """The same samples, one after another, of a known number."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __iter__(self) -> Iterator[Tensor]:
        return (torch.tensor([float(index)]) for index in range(self.size))


class Resumable(DataLoader[Any]):
    """A loader that goes on inside an epoch, as Lightning asks of one."""

    def __init__(self, size: int, batch_size: int) -> None:
        super().__init__(Numbered(size), batch_size=batch_size, sampler=ResumableSampler(size))
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self.sampler, ResumableSampler)
        assert self.batch_size is not None
        self.given = self.sampler.skip // self.batch_size
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.sampler, ResumableSampler)
        assert self.batch_size is not None
        self.sampler.skip = state["given"] * self.batch_size


class Reader(LightningModule):
    """Writes down which samples of which epoch it was trained on."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = nn.Linear(1, 1), nn.Linear(1, 1)
        self.seen: dict[int, list[int]] = {}
        self.crash_at: int | None = None

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if self.crash_at is not None and self.trainer.global_step == self.crash_at:
            raise RuntimeError("crash")
        self.seen.setdefault(self.trainer.current_epoch, []).extend(int(x) for x in batch.flatten())
        return self.head(self.body(batch / 48)).square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def ramp(limit: int | None = 8) -> BatchSizeRamp:
    return BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=48, max_micro_batch_size=limit)


def curve() -> LearningRateSchedule:
    return LearningRateSchedule(Polynomial(power=1.0))


class Change(NamedTuple):
    """What is another after the resume; the first run has 48 samples in micro-batches of 8."""

    size: int = 48
    batch_size: int = 8
    kind: str = "resumable"
    limit: int | None = 8
    more: tuple[tuple[str, Any], ...] = ()

    def loader(self) -> DataLoader[Any]:
        if self.kind == "iterable":
            return DataLoader(Streamed(self.size), batch_size=self.batch_size)
        if self.kind == "shuffled":
            return DataLoader(Numbered(self.size), batch_size=self.batch_size, shuffle=True)
        return Resumable(self.size, self.batch_size)


CHANGES = {
    "nothing": Change(),
    "smaller batch": Change(batch_size=4),
    "larger batch": Change(batch_size=16),
    "more samples": Change(size=96),
    "fewer samples": Change(size=24),
    "limit_train_batches": Change(more=(("limit_train_batches", 3),)),
    "micro-batch limit": Change(limit=4),
    "more accumulation": Change(more=(("accumulate_grad_batches", 2),)),
    "more epochs": Change(more=(("max_epochs", 5),)),
    "iterable": Change(kind="iterable"),
    "shuffled": Change(kind="shuffled"),
}
KINDS = ("last batch", "end of the epoch", "middle", "exception")
METHODS: dict[str, tuple[Callable[[int | None], list[Callback]], Callable[[int | None], list[Callback]]]] = {
    "schedule": (lambda limit: [curve()], lambda limit: [curve()]),
    "ramp": (lambda limit: [ramp(limit)], lambda limit: [ramp(limit)]),
    "schedule added": (lambda limit: [], lambda limit: [curve()]),
    "ramp added": (lambda limit: [GradientNoiseScale()], lambda limit: [GradientNoiseScale(), ramp(limit)]),
    "ramp taken away": (lambda limit: [GradientNoiseScale(), ramp(limit)], lambda limit: [GradientNoiseScale()]),
}
QUICK = {("schedule", True), ("ramp", False)}
SAVED = 6  # updates, the first epoch of the schedule and of the ramp


def _train(callbacks: list[Callback], change: Change, ckpt_path: str | None = None, **more: Any) -> Reader:
    module = Reader()
    module.crash_at = more.pop("crash_at", None)
    checkpointing = any(isinstance(callback, ModelCheckpoint | OnExceptionCheckpoint) for callback in callbacks)
    arguments = {"max_epochs": EPOCHS, **dict(change.more), **more}
    trainer = Trainer(**quiet(callbacks=callbacks, enable_checkpointing=checkpointing, **arguments))
    trainer.fit(module, change.loader(), ckpt_path=ckpt_path)
    return module


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str, bool], Path]:
    """By method and kind: a checkpoint of the unchanged run, made once."""
    made: dict[tuple[str, bool], Path] = {}

    def of(method: str, kind: str, by_steps: bool) -> Path:
        key = (method, by_steps)
        if key not in made:
            made[key] = folder = tmp_path_factory.mktemp("saved")
            first, _ = METHODS[method]
            ends = {"max_epochs": -1, "max_steps": 15} if by_steps else {}
            saves: list[Callback] = [
                ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1),
                ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
            ]
            _train([*first(8), *saves], Change(), **ends)
            crash: list[Callback] = [OnExceptionCheckpoint(folder, "crash")]
            with pytest.raises(RuntimeError, match="crash"):
                _train([*first(8), *crash], Change(), crash_at=SAVED + 1, **ends)
        files = {"last batch": f"step={SAVED}", "end of the epoch": "epoch=0", "middle": f"step={SAVED + 1}"}
        return made[key] / f"{files.get(kind, 'crash')}.ckpt"

    return of


def _verdict(method: str, kind: str, change: Change, path: Path, by_steps: bool) -> str:
    """Whether exactly what is left was trained on: of the second epoch, and of every whole epoch after it."""
    _, then = METHODS[method]
    ends = {"max_epochs": -1, "max_steps": 15} if by_steps else {}
    try:
        module = _train([*then(change.limit), Probe()], change, str(path), **ends)
    except (MisconfigurationException, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "stateful loaders" not in str(error):  # Lightning refuses these
            raise
        return "refused"
    inside = kind in ("middle", "exception")
    limit = dict(change.more).get("limit_train_batches")
    count = change.size if limit is None else min(change.size, limit * change.batch_size)
    expected = Counter(range(count)) if change.kind != "shuffled" else None
    epochs = sorted(module.seen)
    whole = epochs[:-1] if by_steps else epochs
    if epochs[0] != 1 or (not by_steps and epochs[-1] != dict(change.more).get("max_epochs", EPOCHS) - 1):
        return f"wrong: epochs {epochs}"
    for epoch in whole:
        seen = Counter(module.seen[epoch])
        if epoch == 1 and inside:
            # the update that was made; a resumable loader has also counted the batch that an exception lost
            taken = 16 if method in ("ramp", "ramp taken away") or kind == "exception" else 8
            if seen != Counter(range(taken, 48)):
                return f"wrong: {sorted(seen.items())}"
        elif (seen != expected) if expected is not None else (sum(seen.values()) != count or max(seen.values()) > 1):
            return f"wrong: epoch {epoch} {len(seen)} of {count} samples, {max(seen.values())} times"
    return "right"


@pytest.mark.parametrize(
    ("method", "by_steps"),
    [
        pytest.param(
            method, by_steps, id=f"{method}-{end}", marks=() if (method, by_steps) in QUICK else pytest.mark.slow
        )
        for method in METHODS
        for by_steps, end in ((False, "max_epochs"), (True, "max_steps"))
    ],
)
def test_exactly_what_is_left_is_trained_on_or_the_resume_is_refused(
    method: str, by_steps: bool, checkpoints: Callable[[str, str, bool], Path]
) -> None:
    verdicts: dict[tuple[str, str], str] = {}
    for kind in KINDS:
        for name, change in CHANGES.items():
            if by_steps and name == "more epochs":
                continue
            if "ramp" in method and name == "more accumulation" and method != "ramp taken away":
                continue  # refused in setup, by any checkpoint
            verdicts[kind, name] = _verdict(method, kind, change, checkpoints(method, kind, by_steps), by_steps)
    counted = Counter(verdict.split(":")[0] for verdict in verdicts.values())
    print(f"{method}: {len(verdicts)} cells, {dict(counted)}")
    assert {cell: verdict for cell, verdict in verdicts.items() if verdict.startswith("wrong")} == {}
    assert counted["right"] >= 10
    unchanged = {verdicts["last batch", "nothing"], verdicts["end of the epoch", "nothing"]}
    assert unchanged == {"right"}, "an unchanged run goes on"


def test_a_split_optimizer_without_its_callback_is_explained(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    _train([LayerwiseLRDecay(0.5, layers=["head", "body"]), curve(), save], Change())
    with pytest.raises(MisconfigurationException, match="split by LayerwiseLRDecay, which this Trainer does not have"):
        _train([curve()], Change(), str(tmp_path / "epoch=1.ckpt"), max_epochs=5)
