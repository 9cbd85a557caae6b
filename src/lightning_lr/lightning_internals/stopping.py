"""The polite request to end, SIGTERM, where a run has several processes."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_lr.lightning_internals.ranks import maximum_over_ranks
from lightning_lr.patching import override_on_instance


def agree_on_sigterm(trainer: Trainer) -> Callable[[], None]:
    """In ``on_train_start``: let processes that get SIGTERM end at the same micro-batch; returns what undoes it.

    Lightning's handler (2.5, 2.6.6) broadcasts at once, wherever training is. Where another process waits in a
    collective of another kind, both wait for ever, and nothing is saved. Here the handler takes a note. Lightning reads
    rank 0's before each micro-batch; here all ranks' are read, so that it does not matter which of them got the signal.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._signal_connector
    composed = signal.getsignal(signal.SIGTERM)
    others = getattr(composed, "signal_handlers", None)
    if (
        trainer.world_size == 1
        or not hasattr(loop, "_broadcast_sigterm_tensor")
        or others is None
        or threading.current_thread() is not threading.main_thread()
    ):
        return lambda: None
    signalled = False

    def note(signum: int, frame: Any) -> None:
        nonlocal signalled
        signalled = True
        for handler in others:
            if callable(handler) and handler != connector._sigterm_notifier_fn:
                handler(signum, frame)

    def agree() -> None:
        anyone = torch.tensor(float(signalled), device=trainer.strategy.root_device)
        if maximum_over_ranks(anyone).item():
            connector.received_sigterm = True
            raise SIGTERMException

    signal.signal(signal.SIGTERM, note)
    unshadow = override_on_instance(loop, "_broadcast_sigterm_tensor", agree)

    def undo() -> None:
        unshadow()
        if signal.getsignal(signal.SIGTERM) is note:
            signal.signal(signal.SIGTERM, composed)

    return undo
