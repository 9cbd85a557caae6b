"""Processes that do not outlive the one that started them, however it ends.

A rank of a process group whose starter has been killed may wait for ever: torch asks Linux for a SIGINT then, which a
wait inside gloo does not notice and which Lightning takes for a wish to stop in order.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any

import torch.multiprocessing

PR_SET_PDEATHSIG = 1  # of linux/prctl.h


def end_with_parent(parent: int | None = None) -> None:
    """Have Linux kill this process when the one that started it ends; elsewhere nothing happens.

    Args:
        parent: id of the process that forked this one, which may have ended before it could be watched; ``None`` for a
            process of ``multiprocessing``, which knows its starter.
    """
    if sys.platform != "linux":
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    starter = multiprocessing.parent_process()
    ended = os.getppid() != parent if parent is not None else starter is not None and not starter.is_alive()
    if ended:
        os._exit(1)
    if starter is not None and starter.pid != os.getppid():  # a server forked this one, and lives as long as it does
        threading.Thread(target=_end_after, args=(starter,), daemon=True).start()


def _end_after(starter: Any) -> None:
    starter.join()
    os._exit(1)


def _watched(rank: int, work: Callable[..., Any], args: tuple[Any, ...]) -> None:
    end_with_parent()
    work(rank, *args)


def spawn(work: Callable[..., Any], args: tuple[Any, ...], nprocs: int, start_method: str = "spawn") -> None:
    """``torch.multiprocessing``'s, whose processes end with this one, and when an exception (Ctrl-C) ends this call.

    Args:
        work: picklable, called with the rank and ``args``.
        args: picklable.
        nprocs: how many.
        start_method: ``"spawn"`` or ``"forkserver"``.
    """
    context = torch.multiprocessing.start_processes(
        _watched, args=(work, args), nprocs=nprocs, join=False, start_method=start_method
    )
    assert context is not None
    try:
        while not context.join():
            pass
    except BaseException:
        for process in context.processes:
            process.kill()
        for process in context.processes:
            process.join()
        raise
