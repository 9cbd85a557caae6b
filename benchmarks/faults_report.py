"""The table of `benchmarks.faults`: how often each run was killed, and what of it was not the uninterrupted run's."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import markdown_table, write_keeping_findings

Record = Mapping[str, Any]


def slug(name: str) -> str:
    """A configuration's name as a file's."""
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def whole(record: Record) -> bool:
    """Whether the end of a row of kills is the uninterrupted run's."""
    return not (record["failed"] or record["final"] or record["journals"])


def values(kill: Record) -> int:
    """How many values of a resume were compared: what it logged, and the state that it began with (0 in records from
    before that was written down)."""
    return int(kill["values"]) + int(kill.get("restored_values", 0))


def compared(record: Record) -> int:
    """Resumes of a row of which a value was compared; the others were killed again before they logged one."""
    return sum(values(kill) > 0 for kill in record["kills"])


def identical(record: Record) -> int:
    """Resumes of a row that were compared and are bit-identical: in their own values, and in what the row came to."""
    return sum(values(kill) > 0 and not kill["wrong"] for kill in record["kills"]) if whole(record) else 0


def resumed(record: Record) -> int:
    """Kills of a row that had left a checkpoint; after the others the run begins anew."""
    return sum(kill["checkpoint"] is not None for kill in record["kills"])


def in_words(record: Record) -> str:
    """A row of kills in a line."""
    config = record["config"]
    name = f"{config['name']}, {config['world']} process(es), seed {config['seed']}"
    return f"{name}: {identical(record)} of {compared(record)} compared resumes bit-identical"


def write(records: Sequence[Record], path: Path) -> int:
    """Print the table and write it beside the folder of the records; 1 if something was not identical."""
    names = list(dict.fromkeys((r["config"]["name"], r["config"]["world"]) for r in records))
    body = [_line(*task, [r for r in records if (r["config"]["name"], r["config"]["world"]) == task]) for task in names]
    kills = [kill for record in records for kill in record["kills"]]
    total = sum(map(identical, records))
    body.append(_line("**all**", "", records))
    headings = [
        "configuration",
        "processes",
        "kills",
        "in a save",
        "before the first checkpoint",
        "last checkpoint loads",
        "runs that ended bit-identical",
        "resumes compared",
        "of those bit-identical",
        "values compared",
    ]
    left = sum(max((kill["left_in_tmp"] for kill in record["kills"]), default=0) for record in records)
    alone = [kill for kill in kills if len(kill["codes"]) > len(kill["ranks"])]
    slowest = max((kill["seconds_to_end"] for kill in alone), default=0.0)
    ended = sum(all(code not in (0, -9) for i, code in enumerate(k["codes"]) if i not in k["ranks"]) for k in alone)
    text = (
        "# Killed and gone on with\n\n`python -m benchmarks.faults`\n\n"
        f"{len(records)} runs were killed {len(kills)} times, {sum(map(resumed, records))} times after their first"
        f" checkpoint, and went on until\nthey ended. {sum(map(whole, records))} of {len(records)} ended bit-identical"
        " to the uninterrupted run: weights, optimizer, callbacks and journals.\n"
        f"{total} of {sum(map(compared, records))} resumes that were compared are bit-identical in every value;"
        f" {len(kills) - sum(map(compared, records))} were killed again before one could be.\n"
        "Left out are the journals' lines that every process writes when it begins (`start`, `saved`), and seconds.\n\n"
        + markdown_table(headings, body)
        + f"\nOf two processes only one was killed {len(alone)} times: the other one ended with an error {ended} times,"
        f" after at most {slowest:.1f} seconds.\n"
        f"Files that a kill left in the folder for temporary files, where Lightning writes a checkpoint before it moves"
        f" it: {left}.\n"
    )
    wrong = [_exception(record) for record in records if not whole(record) or identical(record) < compared(record)]
    if wrong:
        text += "\n## Not identical\n\n" + "\n".join(wrong) + "\n"
    print(text)
    write_keeping_findings(path, text)
    return 1 if wrong else 0


def _line(name: str, world: Any, records: Sequence[Record]) -> list[str]:
    kills = [kill for record in records for kill in record["kills"]]
    saved = [kill for kill in kills if kill["checkpoint"] is not None]
    loads = sum(isinstance(kill["checkpoint"], int) for kill in saved)
    return [
        name,
        str(world),
        str(len(kills)),
        str(sum(kill["in_save"] for kill in kills)),
        str(len(kills) - len(saved)),
        f"{loads} of {len(saved)}",
        f"{sum(map(whole, records))} of {len(records)}",
        f"{sum(map(compared, records))} of {len(kills)}",
        f"{sum(map(identical, records))} of {sum(map(compared, records))}",
        f"{sum(map(values, kills)):,}",
    ]


def _exception(record: Record) -> str:
    found = [
        *record["failed"],
        *record["final"],
        *record["journals"],
        *(w for k in record["kills"] for w in k["wrong"]),
    ]
    return f"- {in_words(record)}: {'; '.join(found[:5])}"
