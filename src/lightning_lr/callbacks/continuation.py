"""Which log directory a run continues: recorded in its checkpoints, and in the first lines of the resumed run.

The version that saved a checkpoint is recorded there, too, for the words in which an older one refuses it. Loggers give
every start a directory of its own. A checkpoint records where its run writes its decisions, and not in a callback's
state, which is the same wherever a run writes. A run that resumes elsewhere points back, so that ``report`` can read
both as one.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_lr.journal import CONTINUES
from lightning_lr_command import __version__

SIGNATURE = "lightning_lr"
"""The key in a checkpoint."""


def sign(checkpoint: dict[str, Any], journals: Path | None) -> None:
    """Record in a checkpoint which version saves it, and where the run writes its decisions.

    Several callbacks may sign; what one of them has recorded stays.
    """
    where = {} if journals is None else {"journals": str(journals.resolve())}
    checkpoint[SIGNATURE] = {"version": __version__, **checkpoint.get(SIGNATURE, {}), **where}


def journals_of(checkpoint: Mapping[str, Any]) -> str | None:
    """Where the run that saved a checkpoint wrote its decisions; ``None`` where it has no record."""
    signature = checkpoint.get(SIGNATURE)
    return str(signature["journals"]) if isinstance(signature, Mapping) and "journals" in signature else None


def newer_version_of(checkpoint: Mapping[str, Any]) -> str | None:
    """The version that saved a checkpoint, where it is newer than this one."""
    signature = checkpoint.get(SIGNATURE)
    version = str(signature.get("version", "")) if isinstance(signature, Mapping) else ""
    return version if _numbers_of(version) > _numbers_of(__version__) else None


def _numbers_of(version: str) -> tuple[int, ...]:
    return tuple(int(number) for number in re.findall(r"\d+", version)[:3])


def continued(before: str | None, journals: Path | None, updates: int) -> dict[str, str]:
    """For a ``start`` line: the log directory that a run continues, relative to its own, where it is another one.

    Args:
        before: as :func:`journals_of` returns it.
        journals: where the run itself writes.
        updates: that were made before it started.
    """
    if before is None or journals is None or updates == 0:
        return {}
    here, there = journals.resolve(), Path(before)
    return {CONTINUES: os.path.relpath(there.parent, here.parent)} if there.is_dir() and there != here else {}
