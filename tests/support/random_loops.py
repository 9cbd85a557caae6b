"""Loops drawn at random, a run of Lightning through each, and the plain replay that it is held against.

The replay knows nothing of this package: it walks through epochs and micro-batches as Lightning documents its loop, and
writes down the share of the budget before each update as a fraction.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.utilities import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.progress import SampleClock
from tests.support.toy import quiet

MODES = ("min_size", "max_size", "max_size_cycle")  # "sequential" is refused by Lightning's fit


@dataclass(frozen=True)
class Loop:
    """A loop, and what happens to it.

    Args:
        lengths: batches of each loader in each epoch; the last entry holds for all epochs after it.
        lies: batches that an iterable of one loader yields, in each epoch, for the length that it tells; or None.
        mode: of the CombinedLoader, where there are several loaders.
        limit: ``limit_train_batches``.
        accumulation: micro-batches per update.
        max_epochs: or -1.
        max_steps: or -1.
        seconds: after which a ``Timer`` ends the run, where each micro-batch takes one; 0 for none.
        skips: (epoch, batch) at which ``on_train_batch_start`` returns -1.
        stop: (epoch, batch) in which a first run raises, or None.
        resume: updates after which a checkpoint is gone on from, or None.
        more: epochs (or steps, where these end the run) that a second fit of the same Trainer adds.
    """

    lengths: tuple[tuple[int, ...], ...]
    lies: tuple[int, ...] | None = None
    mode: str = "max_size_cycle"
    limit: int | float = 1.0
    accumulation: int = 1
    max_epochs: int = 2
    max_steps: int = -1
    seconds: int = 0
    skips: frozenset[tuple[int, int]] = frozenset()
    stop: tuple[int, int] | None = None
    resume: int | None = None
    more: int = 0

    def loaders_in(self, epoch: int) -> tuple[int, ...]:
        return self.lengths[min(epoch, len(self.lengths) - 1)]

    def told(self, epoch: int) -> int:
        """Batches of an epoch by what the loaders tell."""
        lengths = self.loaders_in(epoch)
        limited = [min(n, self.limit) if isinstance(self.limit, int) else int(n * self.limit) for n in lengths]
        return min(limited) if self.mode == "min_size" else max(limited)

    def given(self, epoch: int) -> int:
        """Batches of an epoch that come."""
        if self.lies is None:
            return self.told(epoch)
        return min(self.told(epoch), self.lies[min(epoch, len(self.lies) - 1)])


@st.composite
def loops(draw: st.DrawFn) -> Loop:
    loaders = draw(st.integers(1, 3))
    epochs = draw(st.integers(1, 4))
    lengths = draw(st.lists(st.tuples(*[st.integers(1, 7)] * loaders), min_size=1, max_size=epochs).map(tuple))
    lies = None
    if loaders == 1 and draw(st.booleans()):
        lies = tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=epochs)))
    limit = draw(st.one_of(st.just(1.0), st.integers(1, 8), st.sampled_from([0.5, 0.75]) if not lies else st.just(1.0)))
    if isinstance(limit, float) and any(int(n * limit) == 0 for row in lengths for n in row):
        limit = 1.0
    accumulation = draw(st.integers(1, 4))
    end = draw(st.sampled_from(["epochs", "steps", "both", "time", "all"]))
    skips = frozenset(draw(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 5)), max_size=2)))
    loop = Loop(
        lengths, lies, draw(st.sampled_from(MODES)), limit, accumulation,
        -1 if end in ("steps", "time") else epochs, -1 if end in ("epochs", "time") else draw(st.integers(1, 12)),
        draw(st.integers(1, 30)) if end in ("time", "all") else 0, skips,
    )  # fmt: skip
    if end == "steps" and lies and loop.given(100) < min(accumulation, loop.told(100)):
        loop = _with(loop, accumulation=1)  # no update would ever be made
    event = draw(st.sampled_from(["none", "stop", "resume", "more"]))
    if event == "stop":
        loop = _with(loop, stop=(draw(st.integers(0, epochs - 1)), draw(st.integers(0, 6))))
    elif event == "resume":
        loop = _with(loop, resume=draw(st.integers(1, 12)))
    elif event == "more" and not loop.seconds:
        loop = _with(loop, more=draw(st.integers(1, 2)))
    return loop


def _with(loop: Loop, **changes: Any) -> Loop:
    return Loop(**{**vars(loop), **changes})


def drawn(count: int) -> list[Loop]:
    """The same loops whenever it is called, for processes that all have to run the same."""
    found: list[Loop] = []

    @settings(max_examples=count, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
    @given(loops())
    def collect(loop: Loop) -> None:
        found.append(loop)

    collect()
    return found[:count]


# ---------------------------------------------------------------------- the replay
class _RaisedError(Exception):
    """The run stops here."""


def replay(loop: Loop) -> list[Fraction]:
    """The share of the budget before each update that is made, over all fits."""
    updates = _replay(loop, None)
    return updates if loop.resume is None or loop.resume >= len(updates) else _replay(loop, loop.resume)


def _replay(loop: Loop, resume: int | None) -> list[Fraction]:
    updates: list[Fraction] = []
    place = [0, 0]  # epoch that comes next, updates made
    time_is_up = False

    def fit(max_epochs: int, max_steps: int, stop: tuple[int, int] | None) -> None:
        nonlocal time_is_up
        spent = begun = 0  # seconds, also before the window; a Timer begins anew with every fit
        if time_is_up:
            return
        while place[0] != max_epochs and place[1] != max_steps:
            epoch, told, given = place[0], loop.told(place[0]), loop.given(place[0])
            start = 0
            batch = -1
            while batch + 1 < given:
                batch += 1
                if (epoch, batch) == stop:
                    raise _RaisedError
                if (epoch, batch) in loop.skips:
                    break
                spent += 1
                if (batch + 1) % loop.accumulation == 0 or batch + 1 == told:
                    shares = []
                    if max_epochs != -1:
                        shares.append((epoch + Fraction(start, told)) / max_epochs)
                    if max_steps != -1:
                        shares.append(Fraction(place[1], max_steps))
                    if loop.seconds:
                        shares.append(min(Fraction(1), Fraction(begun, loop.seconds)))
                    updates.append(max(shares))
                    start, begun = batch + 1, spent
                    place[1] += 1
                    if place[1] == max_steps:
                        break
                    if place[1] == resume and batch + 1 < told and loop.lies is not None:
                        # a loader that is no part of the checkpoint begins anew inside the epoch
                        given = min(told, batch + 1 + loop.lies[min(epoch, len(loop.lies) - 1)])
                if loop.seconds and spent >= loop.seconds:
                    time_is_up = True
                    return
            place[0] += 1
            begun = spent  # what is left of a window is not trained on

    with suppress(_RaisedError):
        fit(loop.max_epochs, loop.max_steps, loop.stop)
    if loop.stop is not None:
        fit(loop.max_epochs, loop.max_steps, None)
    if loop.more:
        by_steps = loop.max_steps != -1
        fit(
            loop.max_epochs if loop.max_epochs == -1 else loop.max_epochs + loop.more,
            loop.max_steps + 3 * loop.more if by_steps else -1,
            None,
        )
    return updates


# ---------------------------------------------------------------------- the run
class Places(MethodCallback):
    """Writes down the progress of each update that is made, and never changes a learning rate."""

    name = "places"

    def __init__(self) -> None:
        super().__init__()
        self.next = math.nan
        self.updates: list[float] = []
        self.widths: list[float] = []
        self.ends: list[float] = []
        """Progress after each update."""

    def factor(self, clock: SampleClock) -> float:
        self.next, self.width = clock.progress, clock.width
        return 1.0

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Any) -> None:
        super().on_before_optimizer_step(trainer, pl_module, optimizer)
        assert self._run is not None
        self.updates.append(self.next)
        self.widths.append(self.width)
        self.ends.append(self._run.clock.progress)


class Ticking(Timer):
    """Time passes by a second with each micro-batch; faster on ranks above 0, whose clocks are not asked."""

    def __init__(self, seconds: int) -> None:
        super().__init__({"seconds": seconds})
        self._ticks = 0.0

    def time_elapsed(self, stage: Any = "train") -> float:
        return self._offset + self._ticks

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._ticks = 0.0

    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        self._ticks += 1 + trainer.global_rank / 2
        super().on_train_batch_end(trainer, *args, **kwargs)


class Lying(IterableDataset[Any]):
    """Tells one length and has another."""

    def __init__(self, told: int, given: int) -> None:
        self.told, self.given = told, given

    def __len__(self) -> int:
        return self.told

    def __iter__(self) -> Iterator[Any]:
        return iter(torch.ones(self.given, 1))


class Module(LightningModule):
    """Reads what the loop says, whatever the loaders are; its loss is a number."""

    def __init__(self, loop: Loop) -> None:
        super().__init__()
        self.loop, self.stop = loop, loop.stop
        self.weight = nn.Linear(1, 1)

    def train_dataloader(self) -> Any:
        epoch = self.trainer.current_epoch
        if self.loop.lies is not None:
            told = self.loop.loaders_in(epoch)[0]
            lied = self.loop.lies[min(epoch, len(self.loop.lies) - 1)]
            return DataLoader(Lying(told, lied), batch_size=1)
        made = [DataLoader(TensorDataset(torch.ones(n, 1)), batch_size=1) for n in self.loop.loaders_in(epoch)]
        if len(made) == 1:
            return made[0]
        return CombinedLoader({str(i): loader for i, loader in enumerate(made)}, self.loop.mode)  # type: ignore[arg-type]

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        place = (self.trainer.current_epoch, batch_idx)
        if place == self.stop:
            self.stop = None
            raise _RaisedError
        return -1 if place in self.loop.skips else None

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.weight(torch.ones(1, 1)).sum()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


def run(loop: Loop, folder: Path, where: Callable[[], dict[str, Any]] = dict) -> Places:
    """Train through the loop and whatever happens to it; the places of the last of its runs."""

    def trainer_with(*callbacks: Callback) -> Trainer:
        timer = [Ticking(loop.seconds)] if loop.seconds else []
        return Trainer(
            **quiet(
                callbacks=[*timer, *callbacks], max_epochs=loop.max_epochs, max_steps=loop.max_steps,
                limit_train_batches=loop.limit, accumulate_grad_batches=loop.accumulation,
                reload_dataloaders_every_n_epochs=1, enable_checkpointing=loop.resume is not None,
                use_distributed_sampler=False, **where(),
            )
        )  # fmt: skip

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        places = Places()
        if loop.resume is not None:
            save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
            trainer_with(places, save).fit(Module(loop))
            if loop.resume < len(places.updates):
                made, places = places.updates[: loop.resume], Places()
                trainer_with(places).fit(Module(loop), ckpt_path=str(folder / f"step={loop.resume}.ckpt"))
                places.updates = made + places.updates
            return places
        module, trainer = Module(loop), trainer_with(places)
        with suppress(_RaisedError):
            trainer.fit(module)
        if loop.stop is not None:
            trainer.fit(module)
        if loop.more:
            if loop.max_steps != -1:
                trainer.fit_loop.epoch_loop.max_steps += 3 * loop.more
            if loop.max_epochs != -1:
                assert trainer.fit_loop.max_epochs is not None
                trainer.fit_loop.max_epochs += loop.more
            trainer.fit(module)
        return places


def largest_difference(updates: list[float], loop: Loop) -> float:
    """Between the progress before each update of a run and the replay's."""
    expected = replay(loop)
    assert len(updates) == len(expected), (len(updates), len(expected), loop)
    differences = [abs(Fraction(a) - b) for a, b in zip(updates, expected, strict=True)]
    return float(max(differences, default=0))
