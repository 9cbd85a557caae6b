"""The command line is killed as a user's job would be: `configs/everything.yaml` on Fashion-MNIST, and gone on with.

    python -m benchmarks.faults_everything [--kills 20] [--report]

``lightning-lr fit --config configs/everything.yaml --ckpt_path last`` runs as a process of its own, on one device and,
with ``--trainer.devices 2 --trainer.strategy ddp_checkpointed``, on two. :data:`SIZE` makes it a few minutes long and
has it save and log often; the rest is the file's. It is killed (SIGKILL) at random moments: while it trains, while it
writes a checkpoint, now and then while it starts; both processes at once, or one whose death the other must notice.
The very same command starts it again, until it ends. Then everything is compared with a run that nobody killed: the
last checkpoint whole (weights, buffers, optimizer, callbacks, loops), and metrics and journals as ``lightning-lr
report`` puts them together from the directories that each start got from its logger.

One JSON per row of kills in ``benchmarks/results/faults_everything/``, a table beside the folder. Nothing of the
process is changed to be killed: what it does is seen from its files.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import faults_everything_report as report
from benchmarks._common import RESULTS, ResultStore, environment
from benchmarks.faults import ANEW, differences, scratch, step_of
from lightning_lr.cli.report.resumed_run import read_whole_run
from lightning_lr.journal import read_journal

ROOT = Path(__file__).parents[1]
FOLDER = RESULTS / "faults_everything"
RUN, LAST, END = Path("runs/everything"), "last.ckpt", "end.ckpt"
SIZE = [
    *("--data.train_size", "4096", "--data.val_size", "512", "--trainer.log_every_n_steps", "1"),
    *("--trainer.callbacks.every_n_train_steps", "3"),  # the last in the file is its ModelCheckpoint
    *("--trainer.callbacks+", "ModelCheckpoint", "--trainer.callbacks.dirpath", str(RUN)),
    *("--trainer.callbacks.filename", "end", "--trainer.callbacks.enable_version_counter", "false"),
]
"""What is changed of the configuration: fewer images, a checkpoint every 3 updates, and one at the end to compare."""
TWO = ["--trainer.devices", "2", "--trainer.strategy", "ddp_checkpointed"]
PATIENCE = 300.0  # seconds for anything to happen


def command(world: int) -> list[str]:
    """What a user types, for the start as for every other one."""
    own = [sys.executable, "-m", "lightning_lr.cli"]  # `lightning-lr`, of this checkout
    return [*own, "fit", "--config", str(ROOT / "configs" / "everything.yaml"), "--ckpt_path", "last",
            *SIZE, *(TWO if world == 2 else [])]  # fmt: skip


# ---------------------------------------------------------------------- the process
@dataclass
class Job:
    """A start of the command, watched through what it writes."""

    folder: Path
    number: int
    process: subprocess.Popen[bytes]
    before: set[Path] = field(default_factory=set)

    @classmethod
    def begin(cls, world: int, folder: Path, number: int) -> Job:
        before = set((folder / RUN).glob("version_*"))
        data = Path(os.environ.get("FASHION_MNIST_DIR", ROOT / "data" / "fashion-mnist"))
        paths = [str(ROOT / "src"), str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
        environ = os.environ | {
            "PYTHONPATH": os.pathsep.join(paths),
            "FASHION_MNIST_DIR": str(data.resolve()),
            "TMPDIR": str(folder / "tmp"),  # where a checkpoint is written before it is renamed
            "OMP_NUM_THREADS": "1",
        }
        with (folder / f"said{number}.txt").open("wb") as said:
            process = subprocess.Popen(
                command(world), cwd=folder, env=environ, stdout=said, stderr=said, start_new_session=True
            )
        return cls(folder, number, process, before)

    @property
    def logs(self) -> Path | None:
        """The directory that this start got from its logger, once training has begun."""
        new = [p for p in (self.folder / RUN).glob("version_*") if p not in self.before]
        return next((p for p in new if (p / "lightning_lr").is_dir()), None)

    @property
    def updates(self) -> int | None:
        """Updates that were made, as the newest line of the stopwatch says; ``None`` before training begins."""
        if self.logs is None:
            return None
        journals = [self.logs / "lightning_lr" / f"{name}.jsonl" for name in ("layerwise", "seconds")]
        noted = [int(r["update"]) for path in journals if path.exists() for r in read_journal(path)]
        return max(noted, default=None)

    def wait(self, until: Callable[[], bool], pause: float = 0.02) -> bool:
        """Wait for something; False if the process ended before."""
        begin = time.monotonic()
        while not until():
            if self.process.poll() is not None:
                return False
            if time.monotonic() - begin > PATIENCE:
                self.kill_all()
                raise TimeoutError(f"nothing happened for {PATIENCE:.0f} seconds:\n{self.said}")
            time.sleep(pause)
        return self.process.poll() is None

    def ranks(self) -> list[int]:
        """The process of each rank: the one that was started, and the one that Lightning started from it."""
        own = self.process.pid
        listed = Path(f"/proc/{own}/task/{own}/children").read_text().split()
        return [own, *(int(p) for p in listed if b"lightning_lr" in Path(f"/proc/{p}/cmdline").read_bytes())]

    def kill_all(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)

    def end(self) -> tuple[int, float]:
        """Wait until nothing of it is left: the exit code of rank 0, and the seconds that it took."""
        begin = time.monotonic()
        while time.monotonic() - begin < PATIENCE:
            code = self.process.poll()
            if code is not None and not self.group_lives():
                return code, time.monotonic() - begin
            time.sleep(0.02)
        self.kill_all()
        raise TimeoutError(f"a process did not end within {PATIENCE:.0f} seconds:\n{self.said}")

    def group_lives(self) -> bool:
        try:
            os.killpg(self.process.pid, 0)
        except ProcessLookupError:
            return False
        return True

    @property
    def said(self) -> str:
        return (self.folder / f"said{self.number}.txt").read_text(encoding="utf-8", errors="replace")[-3000:]


# ---------------------------------------------------------------------- what a run leaves
@dataclass
class Left:
    """What is compared."""

    end: dict[str, Any]
    metrics: dict[str, dict[int, float]]
    journals: dict[str, list[dict[str, Any]]]

    @classmethod
    def of(cls, folder: Path) -> Left:
        newest = max((folder / RUN).glob("version_*"), key=lambda path: int(path.name.split("_")[1]))
        record = read_whole_run(newest)
        return cls(
            _without(str(folder.resolve()), torch.load(folder / RUN / END, weights_only=True)),
            {name: dict(zip(series.steps, series.values, strict=True)) for name, series in record.metrics.items()},
            {name: [r for r in records if r["event"] not in ANEW] for name, records in record.journals.items()},
        )


def _without(folder: str, value: Any) -> Any:
    """A checkpoint without the folder that the run was in, and without the number of its logger's directory."""
    if isinstance(value, dict):
        return {key: _without(folder, v) for key, v in value.items() if key != "lightning_lr"}
    if isinstance(value, list | tuple):
        return [_without(folder, v) for v in value]
    return value.replace(folder, "") if isinstance(value, str) else value


def values_wrong(one: Left, other: Left) -> tuple[list[str], list[str]]:
    """Logged values that differ from ``one``'s, and those that are not there, as ``name at step``."""
    wrong, missing = [], []
    for name in {**one.metrics, **other.metrics}:
        expected, found = one.metrics.get(name, {}), other.metrics.get(name, {})
        for step in sorted({**expected, **found}):
            if step not in found:
                missing.append(f"{name} at {step}")
            elif repr(found[step]) != repr(expected.get(step)):
                wrong.append(f"{name} at {step}: {found[step]!r}, not {expected.get(step)!r}")
    return sorted(wrong), sorted(missing)


# ---------------------------------------------------------------------- a row of kills
def uninterrupted(world: int) -> Left:
    with scratch() as folder:
        job = Job.begin(world, folder, 0)
        job.wait(lambda: False)
        code, _ = job.end()
        if code:
            raise RuntimeError(f"{world} process(es) ended with {code}\n{job.said}")
        return Left.of(folder)


def row_of_kills(world: int, kills: int, seed: int, reference: Left) -> dict[str, Any]:
    """Kill a run so many times and let it end; what was compared and what differed."""
    chance = random.Random(f"everything {world} {seed}")
    total = int(reference.end["global_step"])
    made: list[dict[str, Any]] = []
    with scratch() as folder:
        while True:
            job = Job.begin(world, folder, len(made))
            kill = _kill(job, chance, world, total, kills) if len(made) < kills else None
            if kill is None:
                job.wait(lambda: False)
            code, seconds = job.end()
            if kill is None or code == 0:
                break
            last = folder / RUN / LAST
            kill |= {
                "code": code,
                "seconds_to_end": round(seconds, 3),
                "checkpoint": step_of(last) if last.exists() else None,
                "left_in_tmp": len([p for p in (folder / "tmp").iterdir() if p.is_file()]),
            }
            made.append(kill)
            print(f"  kill {len(made)}: {kill}", flush=True)
        left = Left.of(folder) if code == 0 else None
        wrong, missing = ([], []) if left is None else values_wrong(reference, left)
        return {
            "kills": made,
            "failed": [] if left is not None else [job.said],
            "end": [] if left is None else differences(reference.end, left.end),
            "journals": [] if left is None else differences(reference.journals, left.journals),
            "wrong": wrong,
            "missing": missing,
            "values": sum(map(len, reference.metrics.values())),
            "updates": total,
            "switch": _switch(reference),
            "largest_batch": max(reference.metrics["batch/size"].values()),
            "environment": environment(),
        }


def _switch(left: Left) -> list[Any]:
    """Why and after how many updates the warm-up ended."""
    lines = left.journals["adaptive_warmup"]
    return next(([r["event"], r["update"] + 1] for r in lines if r["action"] != "continue"), [])


def _kill(job: Job, chance: random.Random, world: int, total: int, kills: int) -> dict[str, Any] | None:
    """Kill at a random moment; ``None`` if the run ended before."""
    moment = chance.choices(["training", "saving", "starting"], [5, 4, 1])[0]
    who = "all" if world == 1 else chance.choice(["all", 0, 1])
    ahead, fine = chance.randint(1, max(2, 2 * total // (kills + 1))), chance.random()
    reached = None
    if moment == "starting":
        time.sleep(fine * 8)
        who = "all"
    else:
        if not job.wait(lambda: job.updates is not None):
            return None
        began = job.updates or 0
        if not job.wait(lambda: (job.updates or 0) >= min(began + ahead, total)):
            return None
        if moment == "training":
            time.sleep(fine * 0.5)
        else:
            tmp = job.folder / "tmp"
            known = set(os.listdir(tmp))
            if not job.wait(lambda: bool(set(os.listdir(tmp)) - known), pause=0):
                return None
            time.sleep(fine * 0.002)
        reached = job.updates
    if job.process.poll() is not None:
        return None
    if who == "all":
        job.kill_all()
    else:
        os.kill(job.ranks()[int(who)], signal.SIGKILL)
    return {"moment": moment, "killed": who, "reached": reached}


# ---------------------------------------------------------------------- the command
def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of each run")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--world", type=int, choices=(1, 2), help="processes; else one, then two")
    parser.add_argument("--report", action="store_true", help="kill nothing, write the table of what there is")
    parser.add_argument("--results", type=Path, default=FOLDER, help="folder of the files")
    options = parser.parse_args(arguments)
    store = ResultStore(options.results)
    for world in [] if options.report else [options.world] if options.world else [1, 2]:
        config = {"world": world, "kills": options.kills, "seed": options.seed, "command": _shown(world)}
        name = f"{world}_{options.seed}"
        record = store.load(name, config)
        if record is None:
            record = {"config": config, **row_of_kills(world, options.kills, options.seed, uninterrupted(world))}
            store.save(name, record)
        print(report.in_words(record), flush=True)
    records = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(options.results.glob("*.json"))]
    return report.write(records, options.results.with_suffix(".md"))


def _shown(world: int) -> str:
    return " ".join(["lightning-lr", *command(world)[3:]]).replace(str(ROOT) + os.sep, "")


if __name__ == "__main__":
    sys.exit(main())
