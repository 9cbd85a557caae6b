"""What to do about a file that could not be written: the operating system reports why, and often not where.

Lightning writes a checkpoint into the folder for temporary files and moves it to its place as a whole, so that the one
before stays loadable. A full disk is then reported without a path, and it may be either folder's disk.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from pathlib import Path

from lightning.pytorch import Trainer
from lightning_utilities.core.rank_zero import rank_zero_warn

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def explain_failed_write(trainer: Trainer, error: BaseException) -> None:
    """Warn with the folders that this run writes to, and what is free there, where ``error`` means a full disk."""
    if not isinstance(error, OSError) or error.errno not in NO_ROOM:
        return
    folders = [str(folder) for c in trainer.checkpoint_callbacks if (folder := getattr(c, "dirpath", None))]
    if trainer.loggers and trainer.loggers[0].save_dir:
        folders.append(str(trainer.loggers[0].save_dir))
    shown = ", ".join(_with_room(folder) for folder in dict.fromkeys([*folders, tempfile.gettempdir()]))
    rank_zero_warn(
        f"lightning_lr: a file could not be written ({error}). This run writes to {shown}; the last of these is the "
        "folder for temporary files, where Lightning writes a checkpoint before it moves it (TMPDIR sets it). The "
        "checkpoint before is as it was: make room and go on from it"
    )


def _with_room(folder: str) -> str:
    if not Path(folder).exists():
        return folder
    return f"{folder} ({shutil.disk_usage(folder).free / 2**20:,.0f} MiB free)"
