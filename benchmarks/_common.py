"""What the benchmarks share: intervals over seeds, one JSON file per run so that a benchmark can be stopped and
continued, facts about the machine, and a loop over runs with a progress line."""

from __future__ import annotations

import argparse
import ctypes
import functools
import json
import logging
import math
import multiprocessing
import os
import platform
import statistics
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning
import torch
from scipy.stats import t as student  # type: ignore[import-untyped]

RESULTS = Path(__file__).parent / "results"


# ---------------------------------------------------------------------- intervals
@dataclass(frozen=True)
class Interval:
    """A mean and the half width of its confidence interval, NaN where there is one value only."""

    mean: float
    half_width: float
    count: int

    def text(self, scale: float = 1.0, digits: int = 2, sign: bool = False) -> str:
        """``mean ± half width``, both times ``scale``."""
        mean = f"{self.mean * scale:{'+' if sign else ''}.{digits}f}"
        return mean if math.isnan(self.half_width) else f"{mean} ± {self.half_width * scale:.{digits}f}"


def t_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    r"""The mean of a sample with its interval by Student's distribution.

    .. math:: \bar x \pm t_{(1 + c) / 2,\, n - 1} \; s / \sqrt n

    Args:
        values: independent runs that differ in the seed only.
        confidence: probability c that the interval covers the mean of normally distributed values.

    Raises:
        ValueError: where there is no value.

    Source: Student 1908, Biometrika 6.
    """
    if not values:
        raise ValueError("t_interval: got no values; give one per seed")
    count = len(values)
    if count == 1:
        return Interval(values[0], math.nan, 1)
    quantile = float(student.ppf((1 + confidence) / 2, count - 1))
    return Interval(statistics.fmean(values), quantile * statistics.stdev(values) / math.sqrt(count), count)


def paired_interval(values: Mapping[int, float], reference: Mapping[int, float], confidence: float = 0.95) -> Interval:
    """The mean of ``values - reference`` with its interval; both map a seed to a result, only common seeds count."""
    return t_interval([values[seed] - reference[seed] for seed in sorted(values.keys() & reference.keys())], confidence)


# ---------------------------------------------------------------------- runs on disk
class ResultStore:
    """One small JSON file per run.

    Args:
        folder: where the files are; made at the first ``save``.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def load(self, name: str, config: Mapping[str, Any]) -> dict[str, Any] | None:
        """The record of a run that was made with exactly this ``config``, or None."""
        path = self.folder / f"{name}.json"
        if not path.exists():
            return None
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return record if record["config"] == config else None

    def save(self, name: str, record: Mapping[str, Any]) -> None:
        """Write a record as a whole: a benchmark that is stopped leaves no half a file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{name}.json"
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        os.replace(temporary, path)


# ---------------------------------------------------------------------- Markdown
FINDINGS, UNWRITTEN = "## What was found", "To be written."
DOUBT = "*Written for earlier numbers; check them and remove this line.*"


def markdown_table(headings: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table with its final line break."""
    lines = [headings, ["---"] * len(headings), *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_keeping_findings(path: Path, text: str) -> None:
    """Write ``text`` and, below it, the findings that were written by hand into the file at ``path``; they are marked
    where they were written for other numbers than ``text`` has."""
    old, _, findings = path.read_text(encoding="utf-8").partition(FINDINGS) if path.exists() else ("", "", "")
    findings = findings.strip() or UNWRITTEN
    if old.strip() != text.strip() and findings != UNWRITTEN and not findings.startswith(DOUBT):
        findings = f"{DOUBT}\n\n{findings}"
    path.write_text(f"{text}\n{FINDINGS}\n\n{findings}\n", encoding="utf-8")


# ---------------------------------------------------------------------- the machine
@functools.cache
def environment() -> dict[str, str]:
    """Versions, device and git revision, as they are written beside every result."""
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "lightning_lr": version("lightning-lr") if _installed("lightning-lr") else "from source",
        "device": _processor(),
        "git": _git_revision(),
    }


def command_line(
    description: str | None, full: str, folder: Path, arguments: Sequence[str] | None = None
) -> argparse.Namespace:
    """The options that every benchmark of training runs has; ``full`` says what the whole grid is."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", help="folder with the files of Fashion-MNIST, if not in a usual place")
    parser.add_argument("--full", action="store_true", help=full)
    parser.add_argument("--dry-run", action="store_true", help="print the grid and how long it would take")
    parser.add_argument("--report", action="store_true", help="make no run, write table and picture of those there are")
    parser.add_argument("--jobs", type=int, default=1, help="processes, of one thread each")
    parser.add_argument("--results", type=Path, default=folder, help="folder of the runs' files")
    return parser.parse_args(arguments)


def quiet_process() -> None:
    """Set up the process of a training run: one thread, no time for what is overwritten anyway, no chatter."""
    one_thread_steady_memory()
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # 15 % of the time
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")


def one_thread_steady_memory() -> None:
    """One thread per process, the same sums in the same order, and freed memory that stays with the process.

    glibc hands every large block back to the system and then pays for its page faults at the next batch: at batch 4096
    that made a training step of the small CNN three times as slow. Elsewhere nothing is changed.
    """
    torch.set_num_threads(1)
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] == "glibc" and hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD, M_MMAP_MAX of malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _installed(distribution: str) -> bool:
    try:
        return bool(version(distribution))
    except ModuleNotFoundError:
        return False


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8").splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _git_revision() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        # untracked files, such as new results, do not change what was measured
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + (" with local changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


# ---------------------------------------------------------------------- many runs
def run_all(
    work: Callable[[Any], None], tasks: Sequence[Any], jobs: int, label: Callable[[Any], str], title: str
) -> None:
    """Do ``work`` on every task, in ``jobs`` processes, and print a line with the time left after each.

    Args:
        work: picklable; writes its own result.
        tasks: picklable, of similar length.
        jobs: processes; 1 works in this one.
        label: a task in words.
        title: what the tasks are.
    """
    begin = time.monotonic()
    for done, task in enumerate(_completed(work, tasks, jobs), start=1):
        spent = time.monotonic() - begin
        left = spent / done * (len(tasks) - done)
        print(f"{title} {done}/{len(tasks)}  {label(task)}  {clock(spent)} spent, {clock(left)} left", flush=True)


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"


def _completed(work: Callable[[Any], None], tasks: Iterable[Any], jobs: int) -> Iterator[Any]:
    if jobs == 1:
        for task in tasks:
            work(task)
            yield task
        return
    # spawned: a forked child would inherit torch's threads in an unknown state
    with ProcessPoolExecutor(jobs, mp_context=multiprocessing.get_context("spawn")) as pool:
        futures = {pool.submit(work, task): task for task in tasks}
        for future in as_completed(futures):
            future.result()
            yield futures[future]
