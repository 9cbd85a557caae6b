"""What was decided is written down: one JSON object per line, appended as it happens.

Every callback keeps a journal ``<log_dir>/lightning_lr/<callback>.jsonl`` on rank 0, whatever logger is used, and
``report`` reads it, also while the run is still going. A line that a crash cut short is passed over. A journal that
cannot be written is a warning, not the end of training. Pure Python.
"""

from __future__ import annotations

import json
import math
import os
import warnings
from pathlib import Path
from typing import Any

LARGEST_UPDATE = 2**53
"""Below this, update numbers are exact in every arithmetic that a report does."""

LOGGERS, ELSEWHERE, KEPT = "loggers", "elsewhere", "logged"
"""Journals of no callback: where a run's loggers write, in another logger's directory where the journals are, and the
metrics of a run whose loggers leave no file to be read."""

CONTINUES = "continues"
"""In a ``start`` line: the log directory, seen from the one of this journal, of the run that this one continues."""


class Journal:
    """An append-only file of decisions.

    The first write that fails (a full disk, a folder without permission) warns with the path; this journal then writes
    no more, and training goes on.

    Args:
        path: the file; its folder is made at the first line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failed = False

    def append(self, update: int, event: str, **facts: Any) -> None:
        """Write one line: the update (how many were done before it), what happened, and its facts."""
        if self.failed:
            return
        record = {"update": update, "event": event, **facts}
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(_plain(record)) + "\n")
        except OSError as error:
            self._give_up(error)

    def truncate(self, update: int) -> None:
        """Forget what was written at or after ``update``: a resumed run writes it again.

        The file is replaced as a whole, so that a crash leaves either the old one or the new one.
        """
        if self.failed or not self.path.exists():
            return
        try:
            kept = [record for record in read_journal(self.path) if record["update"] < update]
            temporary = self.path.with_suffix(".tmp")
            temporary.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
            os.replace(temporary, self.path)
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self.failed = True
        warnings.warn(
            f"lightning_lr: the journal {self.path} cannot be written ({error.strerror or error}); training goes on, "
            "and `lightning-lr report` will not show what this callback decides from here on",
            stacklevel=4,
        )


class JournalFolder:
    """The journals of one run, each opened once.

    Args:
        path: their folder; ``None`` where nothing is written down.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._journals: dict[str, Journal] = {}

    def journal(self, name: str) -> Journal | None:
        """The journal of this name, the same object each time; ``None`` where nothing is written down."""
        if self.path is None:
            return None
        if name not in self._journals:
            self._journals[name] = Journal(self.path / f"{name}.jsonl")
        return self._journals[name]


def read_journal(path: Path) -> list[dict[str, Any]]:
    """All whole lines of a journal, in order; a line that is no decision (cut short, damaged) is left out."""
    if not path.is_file():  # a pipe would never end
        return []
    records = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):  # half a line, an integer of 5000 digits, 100 000 brackets
            continue
        if isinstance(record, dict) and _is_update(record.get("update")) and isinstance(record.get("event"), str):
            records.append(record)
    return records


def _is_update(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < LARGEST_UPDATE


def _plain(value: Any) -> Any:
    # JSON has no NaN or infinity; a loss that diverged is written by its name
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
