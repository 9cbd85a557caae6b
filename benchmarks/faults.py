"""What is left of a run that is killed: small runs of every method, killed at random moments and gone on with.

    python -m benchmarks.faults [--kills 200] [--report] [--only WORDS]

A child process trains one of the configurations of `benchmarks.faults_runs`, on one or two processes, and saves a
checkpoint every 3 updates as Lightning's ``ModelCheckpoint`` does. It is killed (SIGKILL) at a random moment, two times
in five from within the saving of a checkpoint; of two processes both or only one, whose death the other must notice.
Then it is started again with ``ckpt_path="last"`` and another seed, up to 8 kills in a row, until it ends. Before it
trains, every attempt writes down the weights, buffers, optimizer state and callbacks' state that it begins with, which
are compared with the uninterrupted run's at that update. A resume counts as bit-identical if at least one value of it
was compared, that state and every metric that it logged are the uninterrupted run's to the last bit, and so are our
journals, weights, buffers, optimizer state and callbacks' state at the end of the row.

One JSON per row of kills in ``benchmarks/results/faults/``, so that it can be stopped and continued. The processes are
forked from one that has imported everything and has not computed anything: a kill takes a second or two.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import select
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch

from benchmarks import faults_report as report
from benchmarks import faults_runs as runs
from benchmarks._common import RESULTS, ResultStore, environment
from benchmarks._processes import end_with_parent
from lightning_lr.journal import read_journal
from lightning_lr.strategies.zero.checkpoint import TAG, saved_in

FOLDER = RESULTS / "faults"
KILLS_IN_A_ROW = 8
ANEW = ("start", "saved")
"""Lines of the journals at the first update of every process: that it began, and the bytes that compression keeps then
(whose bits and ratio are metrics too, and compared at every update)."""
PATIENCE = 900.0  # seconds without a word from a child, or until the survivor of two has ended


# ---------------------------------------------------------------------- processes
@dataclass
class Attempt:
    """One or two child processes that train, and what they have said."""

    pids: list[int]
    pipe: int
    said: list[tuple[float, str]] = field(default_factory=list)
    _rest: bytes = b""

    @classmethod
    def begin(cls, name: str, world: int, folder: Path, number: int) -> Attempt:
        read, write = os.pipe()
        pids, starter = list[int](), os.getpid()
        for rank in range(world):
            pid = os.fork()
            if pid == 0:
                end_with_parent(starter)
                os.close(read)
                tempfile.tempdir = str(folder / "tmp")  # where Lightning writes before it renames
                runs.child(name, world, rank, folder, number, write)
            pids.append(pid)
        os.close(write)
        return cls(pids, read)

    def listen(self, until: float | None = None, for_word: str | None = None) -> bool:
        """Read until a time or a word; whether it came to that before the pipe ended."""
        while until is None or time.monotonic() < until:
            wait = PATIENCE if until is None else max(0.0, until - time.monotonic())
            ready, _, _ = select.select([self.pipe], [], [], wait)
            if not ready:
                if until is None:
                    raise TimeoutError(f"a child has said nothing for {PATIENCE:.0f} seconds")
                return True
            some = os.read(self.pipe, 65536)
            if not some:
                return False
            *lines, self._rest = (self._rest + some).split(b"\n")
            self.said += [(time.monotonic(), line.decode()) for line in lines]
            if for_word is not None and any(line.decode().startswith(for_word) for line in lines):
                return True
        return True

    def kill(self, ranks: list[int]) -> None:
        for rank in ranks:
            os.kill(self.pids[rank], signal.SIGKILL)

    def end(self) -> tuple[list[int], float]:
        """Wait for all to end; their exit codes (negative: the signal) and the seconds it took. None is left."""
        begin, codes = time.monotonic(), dict[int, int]()
        while len(codes) < len(self.pids):
            for pid in self.pids:
                if pid not in codes:
                    ended, status = os.waitpid(pid, os.WNOHANG)
                    if ended:
                        codes[pid] = os.waitstatus_to_exitcode(status)
            if time.monotonic() - begin > PATIENCE:
                for pid in set(self.pids) - set(codes):
                    os.kill(pid, signal.SIGKILL)
                raise TimeoutError(f"a child did not end within {PATIENCE:.0f} seconds: {codes}")
            time.sleep(0.01)
        self.listen(time.monotonic() + 0.05)
        os.close(self.pipe)
        return [codes[pid] for pid in self.pids], time.monotonic() - begin

    @property
    def began_at(self) -> int | None:
        """The update that training began at."""
        return next((int(word.split()[1]) for _, word in self.said if word.startswith("start")), None)

    @property
    def reached(self) -> int:
        return max((int(word.split()[1]) for _, word in self.said if word.startswith("update")), default=0)


# ---------------------------------------------------------------------- what a run leaves
Rows = dict[int, dict[str, str]]


def metrics(path: Path) -> Rows:
    """Every value of a CSV log by step and name, as it is written; a line that a kill cut short is left out."""
    rows: Rows = {}
    if not path.exists():
        return rows
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    if lines and not lines[-1].endswith("\n"):
        lines.pop()
    for row in csv.DictReader(lines):
        values = rows.setdefault(int(row.pop("step")), {})
        values.update({name: value for name, value in row.items() if value not in ("", None)})
    return rows


def decisions(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """Our journals without what is written anew whenever training goes on, and without the clock on the wall."""
    journals = sorted((folder / runs.LOGS / "lightning_lr").glob("*.jsonl"))
    journals = [path for path in journals if path.stem != "seconds"]
    return {path.stem: [line for line in read_journal(path) if line["event"] not in ANEW] for path in journals}


def differences(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested values are not the same to the last bit."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape and _bits(one) == _bits(other)
        return [] if same else [where]
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [*one, *(key for key in other if key not in one)]
        missing = object()
        return [
            d for key in keys for d in differences(one.get(key, missing), other.get(key, missing), f"{where}/{key}")
        ]
    if isinstance(one, list | tuple) and isinstance(other, list | tuple) and len(one) == len(other):
        return [d for i, (a, b) in enumerate(zip(one, other, strict=True)) for d in differences(a, b, f"{where}/{i}")]
    return [] if one == other or (one != one and other != other) else [where]


def _bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().view(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b""


def leaves(value: Any) -> int:
    """How many tensors and plain values a nested value has: what a comparison of it compares."""
    if isinstance(value, dict):
        return sum(map(leaves, value.values()))
    return sum(map(leaves, value)) if isinstance(value, list | tuple) else 1


def newest_checkpoint(folder: Path) -> Path | None:
    """What ``ckpt_path="last"`` takes."""
    return max(folder.glob("last*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)


# ---------------------------------------------------------------------- the uninterrupted run
@dataclass
class Reference:
    """An uninterrupted run."""

    rows: Rows
    journals: dict[str, list[dict[str, Any]]]
    final: dict[str, Any]
    states: dict[int, dict[str, Any]]
    """By update: before the first one, and at every checkpoint."""
    seconds: float
    save_seconds: float


def uninterrupted(name: str, world: int) -> Reference:
    with scratch() as folder:
        attempt = Attempt.begin(name, world, folder, runs.UNINTERRUPTED)
        attempt.listen()
        codes, _ = attempt.end()
        if any(codes):
            raise RuntimeError(f"{name}, {world} process(es): {codes}\n{(folder / runs.ERRORS).read_text()}")
        times = {word: moment for moment, word in attempt.said}
        saves = [times[word.replace("saving", "saved")] - times[word] for word in times if word.startswith("saving")]
        return Reference(
            metrics(folder / runs.LOGS / "metrics.csv"),
            decisions(folder),
            torch.load(folder / runs.FINAL, weights_only=False),
            states_of(folder),
            max(times.values()) - times["start 0"],
            median(saves),
        )


def states_of(folder: Path) -> dict[int, dict[str, Any]]:
    """The states of an uninterrupted run: the one that it began with, and those at its checkpoints."""
    first = torch.load(folder / runs.RESTORED, weights_only=False)
    return {first["updates"]: first, **torch.load(folder / runs.STATES, weights_only=False)}


@contextmanager
def scratch() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix="lightning_lr_faults_"))
    (folder / "tmp").mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ---------------------------------------------------------------------- a row of kills
def row_of_kills(name: str, world: int, seed: int, reference: Reference) -> dict[str, Any]:
    """Kill a run up to 8 times and let it end; what was compared and what differed."""
    chance = random.Random(f"{name} {world} {seed}")
    kills: list[dict[str, Any]] = []
    with scratch() as folder:
        number = 0
        while True:
            attempt = Attempt.begin(name, world, folder, number)
            kill = _kill(attempt, chance, reference, world) if number < KILLS_IN_A_ROW else None
            if kill is None:
                attempt.listen()
            codes, seconds = attempt.end()
            if number > 0:
                kills[-1] |= comparison(attempt, folder, reference)
            if kill is None or all(code == 0 for code in codes):
                break
            newest = newest_checkpoint(folder)
            kill |= {
                "reached": attempt.reached,
                "seconds_to_end": round(seconds, 3),
                "codes": codes,
                "checkpoint": None if newest is None else step_of(newest),
                "left_in_tmp": len([*(folder / "tmp").iterdir(), *folder.glob("*.partial"), *folder.glob("*.removed")]),
            }
            kills.append(kill)
            number += 1
        failed = [] if all(code == 0 for code in codes) else [(folder / runs.ERRORS).read_text()[-2000:]]
        final = torch.load(folder / runs.FINAL, weights_only=False) if not failed else {}
        return {
            "kills": kills,
            "failed": failed,
            "final": differences(reference.final, final),
            "journals": differences(reference.journals, decisions(folder)),
            "updates": reference.final["updates"],
            "environment": environment(),
        }


def _kill(attempt: Attempt, chance: random.Random, reference: Reference, world: int) -> dict[str, Any] | None:
    """Kill at a random moment; ``None`` if the run ended before."""
    who = [0] if world == 1 else chance.choice([[0], [1], [0, 1]])
    in_save = chance.random() < 0.4
    wait = chance.random() * 2 * reference.seconds / (KILLS_IN_A_ROW + 1)
    fine = chance.random()
    if not attempt.listen(for_word="start") or not attempt.listen(time.monotonic() + wait):
        return None
    if in_save:
        if not attempt.listen(for_word="saving"):
            return None
        time.sleep(fine * 1.2 * reference.save_seconds)
    attempt.kill(who)
    attempt.listen(time.monotonic() + 0.05)
    last = next((word for _, word in reversed(attempt.said)), "")
    return {"ranks": who, "last_word": last, "in_save": last.startswith("saving")}


def step_of(checkpoint: Path) -> int | str:
    try:
        if checkpoint.is_dir():  # under ZeRO, a shard for each process
            saved, shards = saved_in(checkpoint), [*(checkpoint / TAG).glob("*_optim_states.pt")]
            for shard in shards:
                torch.load(shard, weights_only=False)
            whole = len(shards) == saved["dp_world_size"]
            return int(saved["global_step"]) if whole else f"{len(shards)} shards"
        return int(torch.load(checkpoint, weights_only=False, map_location="cpu")["global_step"])
    except Exception as error:
        return f"{type(error).__name__}: {error}"


def comparison(attempt: Attempt, folder: Path, reference: Reference) -> dict[str, Any]:
    """Metrics and first state of an attempt against the uninterrupted run's; both are removed for the next attempt."""
    path = folder / runs.LOGS / "metrics.csv"
    rows = metrics(path)
    path.unlink(missing_ok=True)
    restored = attempt.began_at
    wrong = [
        f"step {step}: {name}={value}, not {reference.rows.get(step, {}).get(name)}"
        for step, values in rows.items()
        for name, value in values.items()
        if reference.rows.get(step, {}).get(name) != value
    ]
    if rows and min(rows) != restored:
        wrong.append(f"the first step logged is {min(rows)}, training went on at {restored}")
    state, began = folder / runs.RESTORED, 0
    if state.exists():
        found, differs = restored_state(state, reference.states)
        began = leaves(found)
        wrong += [f"restored at {restored}: {where}" for where in differs]
        state.unlink()
    return {
        "restored": restored,
        "restored_values": began,
        "values": sum(map(len, rows.values())),
        "steps": len(rows),
        "wrong": wrong[:20],
    }


def restored_state(file: Path, states: dict[int, dict[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """The state that an attempt began with, and where it is not the uninterrupted run's at that update."""
    found: dict[str, Any] = torch.load(file, weights_only=False)
    return found, differences(states.get(found["updates"]), found)


# ---------------------------------------------------------------------- the command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--kills", type=int, default=200, help="how many that leave a checkpoint, earlier ones included"
    )
    parser.add_argument("--only", default="", help="words of one configuration's name")
    parser.add_argument("--report", action="store_true", help="kill nothing, write the table of what there is")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the files")
    options = parser.parse_args(arguments)
    store = ResultStore(options.results)
    tasks = [task for task in runs.tasks() if options.only in task[0]]
    references: dict[tuple[str, int], Reference] = {}
    made = seed = 0
    if not options.report:
        runs.import_before_forking()
    while not options.report and made < options.kills:
        for name, world in tasks:
            if made >= options.kills:
                break
            config = {"name": name, "world": world, "seed": seed, "kills_in_a_row": KILLS_IN_A_ROW}
            file = f"{report.slug(name)}_{world}_{seed}"
            record = store.load(file, config)
            if record is None:
                reference = references.get((name, world)) or uninterrupted(name, world)
                references[name, world] = reference
                record = {"config": config, **row_of_kills(name, world, seed, reference)}
                store.save(file, record)
            made += report.resumed(record)
            print(f"{made}/{options.kills} kills  {report.in_words(record)}", flush=True)
        seed += 1
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.results.glob("*.json"))]
    return report.write(records, options.results.with_suffix(".md"))


if __name__ == "__main__":
    sys.exit(main())
