"""The metrics and settings in W&B's own file of a run, ``run-ID.wandb``, offline or not; without W&B installed.

The file is a log of records in blocks of 32 KiB (LevelDB's format, after a header of 7 bytes), each a message of
protobuf: https://github.com/wandb/wandb/blob/main/wandb/proto/wandb_internal.proto has the numbers of the fields.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

HEADER, BLOCK = 7, 32768
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4
HISTORY, CONFIG = 2, 5  # fields of a Record
STEP = "trainer/global_step"
"""The step at which Lightning's WandbLogger logs a value, logged with it."""


def read_wandb(path: Path) -> tuple[dict[str, dict[int, float]], dict[str, Any]]:
    """The values of each metric by step, and the hyperparameters.

    Args:
        path: the file. What is cut short or damaged at its end is left out.
    """
    metrics: dict[str, dict[int, float]] = {}
    config: dict[str, Any] = {}
    for record in _records(path.read_bytes()):
        try:
            for number, content in _fields(record):
                if number == HISTORY and isinstance(content, bytes):
                    row = dict(_item(item) for n, item in _fields(content) if n == 1 and isinstance(item, bytes))
                    step = row.pop(STEP, None)
                    if not isinstance(step, int | float) or not math.isfinite(step):
                        continue
                    media = {name.rpartition("/")[0] for name in row if name.endswith("/_type")}  # pictures, tables
                    for name, value in row.items():
                        if name.startswith("_") or name.rpartition("/")[0] in media:
                            continue
                        if isinstance(value, int | float):
                            metrics.setdefault(name, {})[int(step)] = float(value)
                elif number == CONFIG and isinstance(content, bytes):
                    config |= dict(_item(item) for n, item in _fields(content) if n == 1 and isinstance(item, bytes))
        except (IndexError, ValueError, struct.error):
            continue
    return metrics, {name: value for name, value in config.items() if not name.startswith("_")}


def _records(content: bytes) -> Iterator[bytes]:
    """The records of the log; one that spans blocks comes in pieces."""
    at, pieces = HEADER, b""
    while at + HEADER <= len(content):
        left = BLOCK - at % BLOCK
        if left < HEADER:  # padding
            at += left
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        data = content[at + HEADER : at + HEADER + length]
        if len(data) < length or kind not in (FULL, FIRST, MIDDLE, LAST):
            return
        at += HEADER + length
        pieces = data if kind in (FULL, FIRST) else pieces + data
        if kind in (FULL, LAST):
            yield pieces


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Number and content of each field of a message of protobuf."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        number, wire = key >> 3, key & 7
        content: int | float | bytes
        if wire == 0:
            content, at = _varint(message, at)
        elif wire == 1:
            (content,) = struct.unpack_from("<d", message, at)
            at += 8
        elif wire == 5:
            (content,) = struct.unpack_from("<f", message, at)
            at += 4
        elif wire == 2:
            length, at = _varint(message, at)
            content, at = message[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        yield number, content


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _item(message: bytes) -> tuple[str, Any]:
    """Name and value of a HistoryItem or ConfigItem: the value as JSON (16), or in a field of its own type."""
    key, nested, value = "", [], None
    for number, content in _fields(message):
        if number == 1 and isinstance(content, bytes):
            key = content.decode("utf-8", "replace")
        elif number == 2 and isinstance(content, bytes):
            nested.append(content.decode("utf-8", "replace"))
        elif number == 16 and isinstance(content, bytes):
            value = json.loads(content)
        elif number in (4, 5, 6):  # boolean, integer, number
            value = content
    return key or "/".join(nested), value
