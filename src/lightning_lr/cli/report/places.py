"""Where the parts of a run are: the journals lie with its first local logger, the metrics with any of them.

A run with several loggers, or with one whose data lie elsewhere (W&B, MLflow), has two more journals
(``lightning_internals/logs.py``): ``loggers.jsonl`` lists where each logger writes, and ``elsewhere.jsonl`` in another
logger's directory names the folder of the journals. Both are read here, so that a report can begin at any of them.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lightning_lr.journal import ELSEWHERE, LOGGERS, read_journal

FOLDER = "lightning_lr"


@dataclass(frozen=True)
class Place:
    """Where a logger wrote.

    Args:
        logger: its class.
        path: its directory, or MLflow's database.
        run: the run's id in a database; empty elsewhere.
    """

    logger: str
    path: Path
    run: str = ""


def journal_folder_of(directory: Path) -> Path:
    """The folder of a run's journals, beginning at the directory of any of its loggers."""
    own = directory / FOLDER
    for record in reversed(read_journal(own / f"{ELSEWHERE}.jsonl")):
        named = record.get("journals")
        if isinstance(named, str) and "\0" not in named:
            return own / named
    return own


def places_of(journals: Path) -> list[Place]:
    """Where the loggers of a run wrote, in their order; empty where one directory has everything.

    Args:
        journals: the folder of its journals.
    """
    places = []
    for record in read_journal(journals / f"{LOGGERS}.jsonl")[-1:]:
        listed = record.get(LOGGERS)
        for entry in listed if isinstance(listed, list) else ():
            if not isinstance(entry, dict) or "path" not in entry:
                continue
            if all(isinstance(value, str) and "\0" not in value for value in entry.values()):
                places.append(Place(entry.get("logger", ""), journals / entry["path"], entry.get("run", "")))
    return places
