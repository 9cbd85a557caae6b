"""Many cases in one process group on gloo: processes are forked from a server that has imported everything once.

gloo's threads can abort a process that exits as Python does (``terminate called without an active exception``), after
everything is done: results go to a file, the ranks wait for each other, and then leave by ``os._exit``.
"""

from __future__ import annotations

import gc
import logging
import multiprocessing
import os
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments import LightningEnvironment

from benchmarks._processes import spawn

Cases = Sequence[tuple[str, Callable[[], Any]]]

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["tests.support.preloaded"])


class Attached(LightningEnvironment):
    """The processes exist already, and so does their process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def _work(rank: int, world: int, port: int, cases: Cases, out: str, errors_as_text: bool) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0")
    os.environ.update(WORLD_SIZE=str(world), RANK=str(rank), DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=world)
    gc.freeze()  # each engine of stage 3 collects garbage, and what was imported is none
    results: dict[str, Any] = {}
    for name, case in cases:
        try:
            results[name] = case()
        except Exception as error:
            text = f"{type(error).__name__}: {error}\n{traceback.format_exc()}"
            results[name] = text if errors_as_text else error
        torch.distributed.barrier()
    torch.save(results, Path(out) / f"{rank}.pt")
    torch.distributed.barrier()
    os._exit(0)


def run_in_processes(cases: Cases, out: Path, world: int = 2, errors_as_text: bool = True) -> list[dict[str, Any]]:
    """Run named functions (picklable, module level) on ``world`` ranks; what each returned, or its error."""
    out.mkdir(parents=True, exist_ok=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn(_work, (world, port, list(cases), str(out), errors_as_text), nprocs=world, start_method="forkserver")
    return [torch.load(out / f"{rank}.pt", weights_only=False) for rank in range(world)]
