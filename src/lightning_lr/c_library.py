"""C sources of the package, compiled on the user's machine: once, never at import, and kept in a cache.

The sources are plain C without any header of torch or Python, so that the machine's own compiler (``CC``, else cc, gcc
or clang) makes each in a second or two. The result stays in ``$XDG_CACHE_HOME/lightning_lr``
(``~/.cache/lightning_lr``), under a name that changes with source, flags and processor.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import TypeVar

import torch

Made = TypeVar("Made")
FLAGS = ("-O3", "-std=c11", "-fPIC", "-shared", "-fno-trapping-math")
"""Comparisons may be vectorized."""


class CSource:
    """A source file of the package.

    Args:
        path: the file.
        flags: of the compiler, besides those that all have.
        wide: flags for a processor with AVX2.
        widest: besides those, for one with AVX-512.
    """

    def __init__(self, path: Path, flags: tuple[str, ...], wide: tuple[str, ...], widest: tuple[str, ...] = ()) -> None:
        self.path, self._own, self._wide, self._widest = path, flags, wide, widest

    def load(self) -> ctypes.CDLL:
        """The library, compiled now if it never was on this machine.

        Raises:
            OSError: where there is no compiler, or it fails.
        """
        with tempfile.TemporaryDirectory() as passing:
            return ctypes.CDLL(str(self._compiled(_cache() or Path(passing))))

    def made(self, make: Callable[[ctypes.CDLL], Made], check: Callable[[Made], None], warning: str) -> Made | None:
        """What ``make`` makes of the library and ``check`` accepts; None, after a warning, where any of it fails.

        Args:
            make: from the loaded library.
            check: raises where it does not compute what it should.
            warning: with ``{error}`` where the reason goes.
        """
        try:
            kernels = make(self.load())
            check(kernels)
            return kernels
        except Exception as error:  # whatever compilers, file systems and loaders raise
            hint = "a C compiler: set CC, or put cc, gcc or clang on the PATH"
            warnings.warn(warning.format(error=error, compiler=hint), stacklevel=3)
            return None

    def is_compiled(self) -> bool:
        """Whether it needs no compiling."""
        folder = _cache()
        return folder is not None and self._library(folder).exists()

    def _compiled(self, folder: Path) -> Path:
        library = self._library(folder)
        if library.exists():
            return library
        named = os.environ.get("CC", "").split()
        found = named or [path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))][:1]
        if not found:
            raise OSError("no C compiler was found")
        folder.mkdir(parents=True, exist_ok=True)
        # under a name of its own first: another process may do the same, and one that is stopped leaves no half a
        # library
        handle, unfinished = tempfile.mkstemp(suffix=".so", dir=folder)
        os.close(handle)
        try:
            command = [*found, *self._flags(), str(self.path), "-o", unfinished, "-lm"]
            done = subprocess.run(command, capture_output=True, text=True, timeout=300)
            if done.returncode:
                raise OSError(f"{found[0]} ended with {done.returncode}: {done.stderr.strip()[-300:]}")
            os.replace(unfinished, library)
        finally:
            Path(unfinished).unlink(missing_ok=True)
        return library

    def _library(self, folder: Path) -> Path:
        what = "\n".join([self.path.read_text(encoding="utf-8"), *self._flags(), platform.machine(), platform.system()])
        return folder / f"{self.path.stem}_{hashlib.sha256(what.encode()).hexdigest()[:16]}.so"

    def _flags(self) -> tuple[str, ...]:
        # the cache may be shared by other machines
        capability = torch.backends.cpu.get_cpu_capability()
        wide = self._wide if capability in ("AVX2", "AVX512") else ()
        return (*FLAGS, *self._own, *wide, *(self._widest if capability == "AVX512" else ()))


def in_threads(work: Callable[[int, int], None], parts: int, most: int) -> None:
    """Do ``work`` from one index to another on all parts, in at most so many threads and as many as torch has.

    ctypes lets go of Python's lock while a function runs.
    """
    threads = max(1, min(torch.get_num_threads(), most))
    if threads == 1:
        work(0, parts)
        return
    ends = [parts * part // threads for part in range(threads + 1)]
    for done in [_pool(os.getpid(), threads).submit(work, *part) for part in pairwise(ends)]:
        done.result()


@functools.cache
def _pool(process: int, threads: int) -> ThreadPoolExecutor:
    """Threads of this very process: those of the one that it was forked from do not run in it."""
    return ThreadPoolExecutor(threads, thread_name_prefix="lightning_lr_c")


def _cache() -> Path | None:
    """Where compiled libraries stay; None where nothing can."""
    try:
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_lr"
        folder.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError):
        return None
    return folder if os.access(folder, os.W_OK | os.X_OK) else None
