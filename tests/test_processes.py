"""Ranks end with the process that started them, also where it is killed and they wait for each other inside gloo."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

REPOSITORY = Path(__file__).parents[1]
LIMIT = 300.0
"""Seconds to start and to end on a busy machine; left alone, the ranks stay for a thousand."""


def stay(folder: Path) -> None:
    """Do not end by yourself: the first rank in Python, deaf to Ctrl-C as a Trainer is, the second one inside gloo."""
    rank = torch.distributed.get_rank()
    (folder / f"part{rank}").write_text(str(os.getpid()))
    os.rename(folder / f"part{rank}", folder / f"pid{rank}")
    if rank == 1:
        torch.distributed.barrier()
    for _ in range(1000):
        with suppress(KeyboardInterrupt):
            time.sleep(1)


def _alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to end a process with its parent")
@pytest.mark.slow  # an interpreter of its own, which imports everything
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_ranks_end_with_the_process_that_started_them(how: signal.Signals, tmp_path: Path) -> None:
    script = (
        # a shell starts what runs in the background with SIGINT ignored
        "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from functools import partial\nfrom pathlib import Path\n"
        "from tests.support.processes import run_in_processes\nfrom tests.test_processes import stay\n"
        f"folder = Path({str(tmp_path)!r})\nrun_in_processes([('stay', partial(stay, folder))], folder)\n"
    )
    path = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": path}, stderr=subprocess.DEVNULL
    )
    pids: list[int] = []
    try:
        begin = time.monotonic()
        while len(pids) < 2 and time.monotonic() - begin < LIMIT and parent.poll() is None:
            time.sleep(0.1)
            pids = [int(file.read_text()) for file in sorted(tmp_path.glob("pid*"))]
        assert len(pids) == 2, "both ranks are at work"
        assert all(map(_alive, pids))
        parent.send_signal(how)
        assert parent.wait(LIMIT) != 0
        begin = time.monotonic()
        while any(map(_alive, pids)) and time.monotonic() - begin < LIMIT:
            time.sleep(0.05)
        assert not any(map(_alive, pids))
    finally:
        parent.kill()
        parent.wait()
        for pid in filter(_alive, pids):
            os.kill(pid, signal.SIGKILL)
