"""The metrics and settings of a run in MLflow's local store: a database of SQLite, or folders; without MLflow."""

from __future__ import annotations

import math
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote


def read_database(path: Path, run: str) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """The values of each metric by step, and the parameters, of one run; empty where the database cannot be read.

    Args:
        path: the file, for example ``mlflow.db``. It is opened to be read alone.
        run: MLflow's id of the run.
    """
    metrics: dict[str, dict[int, float]] = {}
    if not path.is_file():
        return {}, {}
    try:
        with closing(sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True)) as database:
            rows = database.execute(
                "SELECT key, value, step, is_nan FROM metrics WHERE run_uuid = ? ORDER BY timestamp", (run,)
            )
            for name, value, step, is_nan in rows:
                metrics.setdefault(str(name), {})[int(step)] = math.nan if is_nan else float(value)
            parameters = dict(database.execute("SELECT key, value FROM params WHERE run_uuid = ?", (run,)))
    except (sqlite3.Error, TypeError, ValueError):
        return {}, {}
    return metrics, parameters


def read_folder(directory: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """The same from MLflow's store of files: ``metrics/NAME`` has a line "timestamp value step" for each value.

    Args:
        directory: of the run, ``mlruns/EXPERIMENT/RUN``.
    """
    metrics: dict[str, dict[int, float]] = {}
    for path in sorted((directory / "metrics").rglob("*")):
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
            words = line.split()
            try:
                value, step = float(words[1]), int(words[2])
            except (IndexError, ValueError):
                continue
            metrics.setdefault(path.relative_to(directory / "metrics").as_posix(), {})[step] = value
    parameters = {
        path.relative_to(directory / "params").as_posix(): path.read_text(encoding="utf-8", errors="replace")
        for path in sorted((directory / "params").rglob("*"))
        if path.is_file()
    }
    return metrics, parameters
