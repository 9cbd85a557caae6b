"""The tests that start DeepSpeed's real engine, again and again: each run has to pass, abort nothing, leave nothing.

    python -m benchmarks.zero_runs [--runs 20] [--files tests/test_zero_strategy.py ...] [--report]

gloo's threads can abort a process that ends as Python does, about once in twelve times: what is handled has to show
over many runs. Each is a fresh pytest. Noted are its exit code and last line, signs of an abort in what all print, and
processes of its session that are there two seconds after its end. One record per run is added to
``benchmarks/results/zero_runs.json``, so that it can be stopped and continued, and ``zero_runs.md`` is written.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks._common import RESULTS, environment, markdown_table, write_keeping_findings

FILES = ("tests/test_zero_strategy.py",)
SIGNS = ("terminate called", "Fatal Python error", "Aborted", "core dumped", "Segmentation fault", "SIGABRT")
GRACE = 2.0  # seconds in which what a run has started may still be ending


def session(sid: int) -> list[int]:
    """Processes of a session that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            state, _, _, of = stat.read_text().rpartition(")")[2].split()[:4]
            if int(of) == sid and state not in "ZX":
                found.append(int(stat.parent.name))
    return found


def one_run(files: Sequence[str]) -> dict[str, Any]:
    """A fresh pytest; what became of it."""
    begin = time.monotonic()
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *files]
    run = subprocess.Popen(
        command, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    said, _ = run.communicate()
    seconds = time.monotonic() - begin
    time.sleep(GRACE)
    left = session(run.pid)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    return {
        "files": list(files),
        "code": run.returncode,
        "said": said.strip().splitlines()[-1] if said.strip() else "",
        "signs": [line for line in said.splitlines() if any(sign in line for sign in SIGNS)],
        "left": len(left),
        "seconds": round(seconds, 1),
        "load": round(os.getloadavg()[0], 1),
        "git": environment()["git"],
    }


def good(record: dict[str, Any]) -> bool:
    """Whether all tests passed, nothing was aborted and nothing is left."""
    return record["code"] == 0 and not record["signs"] and not record["left"]


def in_a_row(records: Sequence[dict[str, Any]]) -> int:
    """Good runs since the last one that was not."""
    count = 0
    for record in reversed(records):
        if not good(record):
            break
        count += 1
    return count


def table(records: Sequence[dict[str, Any]]) -> str:
    body = []
    for files in dict.fromkeys(tuple(record["files"]) for record in records):
        same = [record for record in records if tuple(record["files"]) == files]
        seconds = sorted(record["seconds"] for record in same)
        body.append(
            [
                " ".join(f"`{file}`" for file in files),
                str(len(same)),
                str(sum(record["code"] == 0 for record in same)),
                str(sum(bool(record["signs"]) for record in same)),
                str(sum(record["left"] > 0 for record in same)),
                str(in_a_row(same)),
                f"{seconds[0]:.0f} to {seconds[-1]:.0f}",
            ]
        )
    headings = ["files", "runs", "passed", "with an abort", "left a process", "good in a row, to the last", "seconds"]
    return (
        "# The tests on DeepSpeed's real engine, run again and again\n\n`python -m benchmarks.zero_runs`: each run is "
        f"a fresh pytest, on {os.cpu_count()} cores.\n\n" + markdown_table(headings, body)
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20, help="how many to add to those that there are")
    parser.add_argument("--files", nargs="+", default=FILES, help="what pytest is given")
    parser.add_argument("--report", action="store_true", help="add none, write the table of those that there are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of zero_runs.json and zero_runs.md")
    options = parser.parse_args(arguments)
    file = options.results / "zero_runs.json"
    records: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8")) if file.exists() else []
    for _ in range(0 if options.report else options.runs):
        records.append(one_run(options.files))
        file.write_text(json.dumps(records, indent=1) + "\n", encoding="utf-8")
        print({key: records[-1][key] for key in ("code", "said", "signs", "left", "seconds")}, flush=True)
    write_keeping_findings(options.results / "zero_runs.md", table(records))
    print(table(records))
    return 0 if all(map(good, records)) else 1


if __name__ == "__main__":
    sys.exit(main())
