"""The table of `benchmarks.faults_everything`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import markdown_table, write_keeping_findings

Record = Mapping[str, Any]
PARTS = ("failed", "end", "journals", "wrong", "missing")


def identical(record: Record) -> bool:
    """Whether the run that was killed left what the other one left, to the last bit."""
    return not any(record[part] for part in PARTS)


def in_words(record: Record) -> str:
    """A row of kills in a line."""
    found = "bit-identical" if identical(record) else "; ".join(f"{p}: {record[p][:3]}" for p in PARTS if record[p])
    return f"{record['config']['world']} process(es), {len(record['kills'])} kills: {found}"


def write(records: Sequence[Record], path: Path) -> int:
    """Print the table and write it beside the folder of the records; 1 if something was not identical."""
    headings = ["processes", "updates", "switch at", "batch up to", "kills", "while training / saving / starting",
                "before the first checkpoint", "unfinished files left", "values compared", "bit-identical"]  # fmt: skip
    body = [_line(record) for record in records]
    alone = [kill for record in records for kill in record["kills"] if kill["killed"] != "all"]
    text = (
        "# The command line, killed and gone on with\n\n`python -m benchmarks.faults_everything`\n\n"
        "`configs/everything.yaml` on 4 096 images of Fashion-MNIST for 3 epochs, a checkpoint every 3 updates. The\n"
        "same command starts it and goes on with it:\n\n"
        + "".join(f"    {record['config']['command']}\n" for record in records)
        + "\nCompared with a run that nobody killed: the last checkpoint whole, journals, and every logged value.\n\n"
        + markdown_table(headings, body)
        + f"\nOf two processes only one was killed {len(alone)} times; the other one had ended after at most "
        f"{max((kill['seconds_to_end'] for kill in alone), default=0.0):.1f} seconds.\n"
    )
    wrong = [f"- {in_words(record)}" for record in records if not identical(record)]
    if wrong:
        text += "\n## Not identical\n\n" + "\n".join(wrong) + "\n"
    print(text)
    write_keeping_findings(path, text)
    return 1 if wrong else 0


def _line(record: Record) -> list[str]:
    kills = record["kills"]
    moments = [sum(kill["moment"] == moment for kill in kills) for moment in ("training", "saving", "starting")]
    return [
        str(record["config"]["world"]),
        str(record["updates"]),
        str(record["switch"]),
        f"{record['largest_batch']:g}",
        str(len(kills)),
        " / ".join(map(str, moments)),
        str(sum(kill["checkpoint"] is None for kill in kills)),
        str(max((kill["left_in_tmp"] for kill in kills), default=0)),
        f"{record['values']:,}",
        "yes" if identical(record) else "no",
    ]
