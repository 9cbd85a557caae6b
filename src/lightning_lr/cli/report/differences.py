"""What runs are called and what differs between them: read from their ``config.yaml``, else from what else they left.

Only keys that differ are shown, by the shortest name that is unambiguous. Where two runs have different classes at a
place, the classes are shown and not their arguments.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import yaml

from lightning_lr.cli.printable import printable
from lightning_lr.cli.report.record import RunRecord

CONFIG, HPARAMS = "config.yaml", "hparams.yaml"

NOT_THE_RUN = re.compile(
    r"^(config|ckpt_path|weights_only|trainer\.(logger|default_root_dir|enable_\w+|profiler|log_every_n_steps)"
    r"|trainer\.callbacks\.\[(ModelCheckpoint|OnExceptionCheckpoint|\w*ProgressBar|\w*ModelSummary"
    r"|LearningRateMonitor|DeviceStatsMonitor|Timer)[^]]*\])(\.|$)"
)
"""Keys for where a run writes and what it shows, not how it trains."""

LONGEST = 28
"""Characters of a value that are shown."""

Key = tuple[str, ...]


def names_of(directories: Sequence[Path]) -> list[str]:
    """The part of each path that distinguishes it from the others.

    Args:
        directories: of the runs, all different.
    """
    parts = [list(directory.resolve().parts) for directory in directories]
    if len(parts) == 1:
        return [printable("/".join(parts[0][-2:]))]
    while len({p[0] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[1:] for p in parts]
    while len({p[-1] for p in parts}) == 1 and all(len(p) > 1 for p in parts):
        parts = [p[:-1] for p in parts]
    return [printable("/".join(p)) for p in parts]


def differences(records: Sequence[RunRecord]) -> list[str]:
    """What sets each run apart, in one line; empty where nothing does, or nothing is written down.

    Args:
        records: the runs.
    """
    flat = _configurations(records)
    shown: list[set[Key]] = [set() for _ in flat]
    for i, j in combinations(range(len(flat)), 2):
        keys = _differing(flat[i], flat[j])
        shown[i] |= keys
        shown[j] |= keys
    every = sorted(set().union(*shown))
    short = _short(every)
    lines = []
    for keys, configuration in zip(shown, flat, strict=True):
        given = [_told(short[key], key, configuration[key]) for key in sorted(keys) if key in configuration]
        absent = [f"no {short[key]}" for key in sorted(keys) if key not in configuration]
        lines.append(", ".join(given or absent))
    return lines


# ---------------------------------------------------------------------- reading
def _configurations(records: Sequence[RunRecord]) -> list[dict[Key, Any]]:
    """The configuration of each run: its ``config.yaml`` where every run has one, else all else that it left.

    A run of a Python ``Trainer`` leaves its hyperparameters (the module's, and the settings of our callbacks) and the
    journals, which name the callbacks and what each decided.
    """
    read = [_read(record.directory / CONFIG) for record in records]
    if all(read):
        return [flattened(content) for content in read]
    return [_left_behind(record) for record in records]


def _left_behind(record: RunRecord) -> dict[Key, Any]:
    """The module's hyperparameters, the callbacks, and the settings of each; where a callback's settings are not
    written down (version 0.1), what it decided for the run."""
    hyperparameters = flattened(_read(record.directory / HPARAMS) or record.hyperparameters)
    found: dict[Key, Any] = {}
    for start in record.starts.values():
        callback = printable(start.get("callback", ""))
        place = ("callbacks", f"[{callback}]")
        settings = {key: value for key, value in hyperparameters.items() if key[0].startswith(f"{callback}/")}
        if callback:
            found[place] = callback
            found |= {(*place, key[0].partition("/")[2]): value for key, value in settings.items()}
            hyperparameters = {key: value for key, value in hyperparameters.items() if key not in settings}
        if not settings:
            facts = start.get("facts", {}).items()
            found |= {(*place, printable(heading)): printable(fact).partition("\\n")[0] for heading, fact in facts}
    return hyperparameters | found


def _read(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):  # none, half written, not UTF-8, or with objects
        return {}
    return content if isinstance(content, dict) else {}


def flattened(content: Any, at: Key = ()) -> dict[Key, Any]:
    """Every value of a configuration by its place; a class by the place where it is used, without ``init_args``."""
    if NOT_THE_RUN.match(".".join(at)) or content in (None, [], {}):  # what is not set is as if it were not there
        return {}
    if isinstance(content, dict) and "class_path" in content:
        own = {at: str(content["class_path"]).rsplit(".", 1)[-1]} if at else {}
        rest = {key: value for key, value in content.items() if key not in ("class_path", "init_args", "dict_kwargs")}
        inside = {**rest, **(content.get("init_args") or {}), **(content.get("dict_kwargs") or {})}
        return own | flattened(inside, at)
    if isinstance(content, dict):
        return {k: v for key, item in content.items() for k, v in flattened(item, (*at, str(key))).items()}
    if isinstance(content, list) and any(isinstance(item, dict) and "class_path" in item for item in content):
        found: dict[Key, Any] = {}
        seen: Counter[str] = Counter()
        for item in content:
            name = str(item["class_path"]).rsplit(".", 1)[-1] if isinstance(item, dict) else str(item)
            seen[name] += 1
            found |= flattened(item, (*at, f"[{name}]" if seen[name] == 1 else f"[{name} {seen[name]}]"))
        return found
    return {at: content}


# ---------------------------------------------------------------------- comparing
def _differing(one: dict[Key, Any], other: dict[Key, Any]) -> set[Key]:
    missing = object()
    keys = {key for key in one.keys() | other.keys() if one.get(key, missing) != other.get(key, missing)}
    return {key for key in keys if not any(key[:n] in keys for n in range(1, len(key)))}


def _short(keys: Sequence[Key]) -> dict[Key, str]:
    """The last part of each key, with what stands before it where two end alike."""
    names: dict[Key, str] = {}
    for key in keys:
        length = 1
        while length < len(key) and any(other[-length:] == key[-length:] for other in keys if other != key):
            length += 1
        names[key] = ".".join(part.strip("[]") for part in key[-length:])
    return names


def _is_item(key: Key) -> bool:
    return key[-1].startswith("[")


def _told(name: str, key: Key, value: Any) -> str:
    if _is_item(key):
        return name
    text = f"{value:g}" if isinstance(value, float) else printable(value)
    text = text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}\u2026"
    return f"{name.removesuffix('_everything')}={text}"
