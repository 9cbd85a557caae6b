"""The table of `benchmarks.faults_everything`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import markdown_table, write_keeping_findings

Record = Mapping[str, Any]
PARTS = ("failed", "end", "journals", "wrong", "missing")
VALIDATED = "val_loop.batch_progress/total"


def trained_alike(record: Record) -> bool:
    """Whether weights, optimizer, callbacks, journals and logged values are those of the other run, to the last bit.

    Not among them: how many batches Lightning has validated so far, and values that no start has logged.
    """
    return not (record["failed"] or record["journals"] or record["wrong"] or states(record))


def states(record: Record) -> list[str]:
    """What differs in the checkpoint at the end, but for Lightning's count of validated batches."""
    return [where for where in record["end"] if VALIDATED not in where]


def in_words(record: Record) -> str:
    """A row of kills in a line."""
    found = [f"{part}: {', '.join(record[part][:6])}" for part in PARTS if record[part]]
    return f"{record['config']['world']} process(es), {len(record['kills'])} kills: " + (
        "; ".join(found) or "identical"
    )


def write(records: Sequence[Record], path: Path) -> int:
    """Print the table and write it beside the folder of the records; 1 if something was not identical."""
    headings = [
        "processes", "updates", "the warm-up ends", "batch up to", "kills", "training / saving / starting",
        "unfinished files left", "states", "journals", "values alike", "values never logged",
    ]  # fmt: skip
    body = [_line(record) for record in records]
    alone = [kill for record in records for kill in record["kills"] if kill["killed"] != "all"]
    text = (
        "# The command line, killed and gone on with\n\n`python -m benchmarks.faults_everything`\n\n"
        "`configs/everything.yaml` on 4 096 images of Fashion-MNIST for 3 epochs, a checkpoint every 3 updates. The\n"
        "same command starts it and goes on with it:\n\n"
        + "".join(f"    {command}\n" for command in dict.fromkeys(record["config"]["command"] for record in records))
        + "\nCompared with a run that nobody killed: the last checkpoint whole, journals, and every logged value.\n\n"
        + markdown_table(headings, body)
        + f"\nOf two processes only one was killed {len(alone)} times; the other one had ended after at most "
        f"{max((kill['seconds_to_end'] for kill in alone), default=0.0):.1f} seconds.\n"
    )
    found = [f"- {in_words(record)}" for record in records if any(record[part] for part in PARTS)]
    if found:
        text += "\n## Exceptions\n\n" + "\n".join(found) + "\n"
    print(text)
    write_keeping_findings(path, text)
    return 0 if all(map(trained_alike, records)) else 1


def _end_of_warmup(switch: Any) -> list[Any]:
    """Why and when; the first records have the update before, and only where a test had ended it."""
    return switch if isinstance(switch, list) else [] if switch is None else ["switch", switch + 1]


def _line(record: Record) -> list[str]:
    kills = record["kills"]
    moments = [sum(kill["moment"] == moment for kill in kills) for moment in ("training", "saving", "starting")]
    return [
        str(record["config"]["world"]),
        str(record["updates"]),
        " at ".join(map(str, _end_of_warmup(record["switch"]))),
        f"{record['largest_batch']:g}",
        str(len(kills)),
        " / ".join(map(str, moments)),
        str(max((kill["left_in_tmp"] for kill in kills), default=0)),
        "differ" if states(record) else "alike",
        "differ" if record["journals"] else "alike",
        f"{record['values'] - len(record['wrong']) - len(record['missing']):,} of {record['values']:,}",
        str(len(record["missing"])),
    ]
