"""What was decided is written down: one JSON object per line, appended as it happens.

Every callback keeps a journal ``<log_dir>/lightning_lr/<callback>.jsonl`` on rank 0, whatever logger is used, and
``report`` reads it, also while the run is still going. A line that a crash cut short is passed over. Pure Python.
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

CONTINUES = "continues"
"""In a ``start`` line: the log directory, seen from the one of this journal, of the run that this one goes on with."""


class Journal:
    """An append-only file of decisions.

    Args:
        path: the file; its folder is made at the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, update: int, event: str, **facts: Any) -> None:
        """Write one line: the update (how many were done before it), what happened, and its facts."""
        record = {"update": update, "event": event, **facts}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record)) + "\n")
        except OSError as error:  # a full disk is reported without a path
            raise OSError(error.errno, f"{error.strerror} (a journal of lightning_lr)", str(self.path)) from error

    def truncate(self, update: int) -> None:
        """Forget what was written at or after ``update``: a resumed run writes it again.

        The file is replaced as a whole, so that a crash leaves either the old one or the new one.
        """
        if not self.path.exists():
            return
        kept = [record for record in read_journal(self.path) if record["update"] < update]
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
        os.replace(temporary, self.path)


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, in order; an unreadable line (cut short by a crash) is left out."""
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if isinstance(record, dict) and isinstance(record.get("update"), int):
            records.append(record)
    return records


def _plain(value: Any) -> Any:
    # JSON has no NaN or infinity; a loss that diverged is written by its name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
