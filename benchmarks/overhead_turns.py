"""Several Trainers that take turns in one process, so that what else the machine does hits all of them alike."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from lightning.pytorch import Callback, LightningModule, Trainer


class _OverError(Exception):
    """Ends a run whose turns are all taken."""


@dataclass
class Turns:
    """One Trainer's part: it waits for its turn after every few updates.

    Args:
        start: makes the Trainer with the callback that it is given, and fits; called in a thread of its own.
    """

    start: Callable[[Callback], None]
    seconds: list[float] = field(default_factory=list)
    """CPU time of the process in each turn, per update."""
    failed: BaseException | None = None
    over: bool = False

    def __post_init__(self) -> None:
        self._go, self._done = threading.Semaphore(0), threading.Semaphore(0)
        self._updates = 0
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def take(self, updates: int) -> float:
        """Make so many updates; CPU seconds of one of them."""
        self._updates = updates
        begin = time.process_time()
        self._go.release()
        self._done.acquire()
        spent = (time.process_time() - begin) / updates
        if self.failed is not None:
            raise self.failed
        return spent

    def stop(self) -> None:
        """End the run."""
        self.over = True
        self._go.release()
        self._thread.join()

    def _run(self) -> None:
        self._go.acquire()
        torch.set_num_threads(1)
        try:
            self.start(_Waiting(self))
        except _OverError:
            pass
        except BaseException as error:
            self.failed = error
        self.over = True
        self._done.release()

    def updated(self) -> None:
        """An update is made."""
        self._updates -= 1
        if self._updates > 0:
            return
        self._done.release()
        self._go.acquire()
        if self.over:
            raise _OverError


class _Waiting(Callback):
    """The last of a Trainer's callbacks. In the bare one it is the only one, so the bare one has a callback as well."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns
        self.updates = 0

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *args: object) -> None:
        if trainer.global_step > self.updates:  # not after a micro-batch that was accumulated
            self.updates = trainer.global_step
            self.turns.updated()


def take_turns(
    starts: Mapping[str, Callable[[Callback], None]], rounds: int, block: int, warmup: int = 5
) -> dict[str, list[float]]:
    """CPU seconds per update of each run, round by round.

    Args:
        starts: makes and fits a Trainer with the callback that it is given, for each run.
        rounds: turns that each has, in random order within a round.
        block: updates in a turn.
        warmup: updates that each makes before the first round.
    """
    order = random.Random(1)
    runs = {name: Turns(start) for name, start in starts.items()}
    try:
        for run in runs.values():
            run.take(warmup)
        found: dict[str, list[float]] = {name: [] for name in runs}
        for _ in range(rounds):
            for name in order.sample(list(runs), len(runs)):
                found[name].append(runs[name].take(block))
    finally:
        for run in runs.values():
            run.stop()
    return found
