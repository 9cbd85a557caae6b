"""Checkpoints that are folders, complete or absent, even if the process that writes or removes one is killed.

A file can be replaced in one move, a folder cannot: it is written under a temporary name, the one that was there is
moved away, and it is moved in. At no step is there a name that ends in ``.ckpt``, and so could be taken for a
checkpoint, on anything but a whole one. Between the two moves the whole one is the one before, ``X.previous.ckpt``:
where X is ``last``, ``Trainer.fit(ckpt_path="last")`` finds it by that name.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def beside(path: Path) -> Path:
    """Where a folder for ``path`` is written until it is whole."""
    return path.with_name(f"{path.name}.partial")


def previous(path: Path) -> Path:
    """Where the whole folder that was at ``path`` is, for the moment until the next one is there."""
    return path.with_name(f"{path.stem}.previous{path.suffix}")


def publish(path: Path) -> None:
    """Put the folder at :func:`beside` in the place of ``path``; one process does it, when all have written."""
    aside = previous(path)
    if os.path.lexists(path):
        remove(aside)  # of a process that was killed here, and older
        os.rename(path, aside)
    os.rename(beside(path), path)
    remove(aside)


def remove(path: Path) -> None:
    """Remove a folder (or file) under another name, so that no part of it is ever found under this one."""
    doomed = path.with_name(f"{path.name}.removed")
    for there in (doomed, path):  # the first: of a process that was killed here
        if not os.path.lexists(there):
            continue
        if there == path:
            os.rename(path, doomed)
        if doomed.is_dir() and not doomed.is_symlink():
            shutil.rmtree(doomed)
        else:
            doomed.unlink()
