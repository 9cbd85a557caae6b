"""Lightning's own tests with our callbacks on every Trainer, each set so that it changes nothing.

    python -m benchmarks.lightning_suite --tests FOLDER [--arms "all together" ...] [--files loops/test_loops.py ...]
    python -m benchmarks.lightning_suite --report

FOLDER is a checkout of Lightning's ``tests/`` (of the version that is installed); nothing of it is part of this
project. Each file is run by pytest with the plugin ``benchmarks.lightning_suite_plugin``: every test bare, and, if it
passed and called ``fit``, with a control that does nothing and with each arm. A run counts as passed if the test's
assertions hold and weights, optimizer, schedulers, loops, learning rates, the user's metrics and the random state after
every fit and in every checkpoint are those of the bare run. One record per file is written to
``benchmarks/results/lightning_suite``, so that it can be stopped and continued, and ``lightning_suite.md`` is made of
all of them.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks._common import RESULTS, ResultStore, environment, markdown_table, write_keeping_findings
from benchmarks.lightning_suite_expected import BY_DESIGN, in_short
from benchmarks.lightning_suite_plugin import (
    ARMS,
    ARMS_VARIABLE,
    BARE,
    CONTROL,
    FIRST_CASES,
    ONLY_VARIABLE,
    OUT_VARIABLE,
    SLOW,
)

PLACES = {
    "callbacks": (
        "callbacks early_stopping finetuning_callback gradient_accumulation_scheduler lr_monitor "
        "model_checkpoint_additional_cases model_checkpoint_edge_cases "
        "model_checkpoint_step_interval_val_metric pruning stochastic_weight_avg timer weight_averaging"
    ),
    "checkpointing": "checkpoint_callback_frequency model_checkpoint trainer_checkpoint",
    "core": "datamodules lightning_optimizer metric_result_integration",
    "loops": (
        "loop_state_dict loops training_epoch_loop training_loop training_loop_flow_dict training_loop_flow_scalar"
    ),
    "models": "cpu hooks restore",
    "strategies": "single_device",
    ".": "cli",
    "trainer/connectors": "callback_connector checkpoint_connector data_connector",
    "trainer/flags": (
        "barebones check_val_every_n_epoch fast_dev_run inference_mode limit_batches min_max_epochs "
        "overfit_batches val_check_interval"
    ),
    "trainer/logging_": "train_loop_logging",
    "trainer/optimization": "backward_calls manual_optimization multiple_optimizers optimizers",
    "trainer/properties": "estimated_stepping_batches",
    "trainer": "dataloaders states trainer",
    "tuner": "lr_finder scale_batch_size",
}
FILES = [str(Path(folder) / f"test_{name}.py") for folder, names in PLACES.items() for name in names.split()]
SELECT = "not spawn and not fork and not ddp and not compile and not jit and not onnx"
"""Tests that start processes or compilers take minutes each on a CPU."""
LIMIT = 3600
"""Seconds after which a run of pytest is given up."""
AT_ONCE = 4
"""Files in one run of pytest: to start one takes as long as some twenty tests."""
VERDICTS = ("passed", "refused", "by design", "counts callbacks", "different")
"""The table's columns, beside the tests that were not run because they are slow."""


# ---------------------------------------------------------------------- running
def run_files(
    tests: Path, files: Sequence[str], arms: Sequence[str], only: Sequence[str] | None, select: str
) -> dict[str, list[dict[str, Any]]]:
    """The tests of files, bare, with the control and with the arms; what the plugin wrote about each, by file."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "runs.jsonl"
        root = Path(__file__).parents[1]
        paths = [str(root), str(root / "src"), str(tests.resolve()), os.environ.get("PYTHONPATH", "")]
        variables = {
            **os.environ,
            ARMS_VARIABLE: ";".join([BARE, CONTROL, *arms]),
            OUT_VARIABLE: str(out),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            "MPLBACKEND": "agg",
            "LIGHTNING_LR_PICTURES": "0",  # half of the time of a fit of a few batches
        }
        if only is not None:
            variables[ONLY_VARIABLE] = json.dumps(list(only))
        command = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, f"--rootdir={tests.resolve()}",
                   "-p", "benchmarks.lightning_suite_plugin", "-p", "no:cacheprovider", "-p", "no:hypothesispytest",
                   "--no-header", "--tb=short", "-k", select, f"--basetemp={folder}/base",
                   *(str(tests_of(tests) / file) for file in files)]  # fmt: skip
        (Path(folder) / "cwd").mkdir()
        with open(Path(folder) / "said", "w+", encoding="utf-8") as said:
            try:
                subprocess.run(command, cwd=f"{folder}/cwd", env=variables, stdout=said, stderr=said, timeout=LIMIT)
            except subprocess.TimeoutExpired:
                print(f"{', '.join(files)}: given up after {LIMIT} s", flush=True)
            said.seek(0)
            lines = said.read().strip().splitlines()
        if not out.exists():
            if lines and "deselected" in lines[-1]:
                return {file: [] for file in files}
            raise SystemExit(f"{', '.join(files)}: no test ran\n" + "\n".join(lines[-30:]))
        print(f"{', '.join(files)}: {lines[-1] if lines else ''}", flush=True)
        found = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
        return {file: [line for line in found if line["test"].startswith(f"{_below(tests, file)}::")] for file in files}


def tests_of(folder: Path) -> Path:
    """Where the files are: below ``tests_pytorch``, or in the folder itself."""
    inside = folder.resolve() / "tests_pytorch"
    return inside if inside.is_dir() else folder.resolve()


def record_of(file: str, record: dict[str, Any] | None, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A file's record with what another run of it has brought."""
    if record is None:
        bare = [line for line in lines if line["arm"] == BARE]
        record = {
            "config": {"file": file},
            "environment": environment(),
            "bare": dict(Counter(line["verdict"] for line in bare)),
            "failed bare": {_short(line["test"]): line["why"] for line in bare if line["verdict"] == "failed"},
            "tests": [_short(line["test"]) for line in bare if line["verdict"] == "passed" and line["fits"]],
            "slow": [_short(line["test"]) for line in bare if line["fits"] and line["seconds"] > SLOW],
            "arms": {},
        }
    for arm in dict.fromkeys(line["arm"] for line in lines):
        if arm == BARE or (arm == CONTROL and CONTROL in record["arms"]):
            continue
        found = {_short(line["test"]): line for line in lines if line["arm"] == arm}
        others = {test: [line["verdict"], line["why"]] for test, line in found.items() if line["verdict"] != "passed"}
        record["arms"][arm] = {
            "git": environment()["git"],
            "passed": sum(line["verdict"] == "passed" for line in found.values()),
            "others": others,
            "missing": [test for test in record["tests"] if test not in found],
            "seconds": round(sum(line["seconds"] for line in found.values()), 1),
        }
    return record


def _short(test: str) -> str:
    return test.split("::", 1)[1]


# ---------------------------------------------------------------------- the table
def judged(file: str, arm: str, test: str, verdict: str, why: str) -> tuple[str, str]:
    """A verdict, with the differences that are meant told apart."""
    if verdict == "different":
        for case in BY_DESIGN:
            if case.covers(f"{file}::{test}", arm, why):
                return "by design", case.reason
    return verdict, in_short(why) if verdict == "refused" else why


def table(records: Sequence[dict[str, Any]]) -> str:
    """What all files came to, as Markdown."""
    tests = sum(sum(record["bare"].values()) for record in records)
    passed = sum(record["bare"].get("passed", 0) for record in records)
    fitting = sum(len(record["tests"]) for record in records)
    body, reasons, meant, wrong = [], Counter[tuple[str, str]](), Counter[tuple[str, str]](), []
    for arm in (name for name in ARMS if name != BARE):
        counts: Counter[str] = Counter()
        for record in records:
            runs = record["arms"].get(arm)
            if runs is None:
                continue
            counts["passed"] += runs["passed"]
            counts["missing"] += len(runs["missing"])
            for test, (verdict, why) in runs["others"].items():
                verdict, why = judged(record["config"]["file"], arm, test, verdict, why)
                counts[verdict] += 1
                if verdict == "refused":
                    reasons[arm, why] += 1
                if verdict == "by design":
                    meant[why, arm] += 1
                if verdict == "different":
                    wrong.append(f"- {arm}: `{record['config']['file']}::{test}`: {why[:200]}")
        if counts:
            files = sum(arm in record["arms"] for record in records)
            total = sum(counts[name] for name in VERDICTS)
            body.append([arm, str(files), str(total), *(str(counts[name]) for name in VERDICTS)])
    headings = ["arm", "files", "tests", "passed", "refused", "by design", "counts callbacks", "different"]
    slow = sum(len(record["slow"]) for record in records)
    versions = ", ".join(sorted({record["environment"]["lightning"] for record in records}))
    lines = [
        "# Lightning's own tests with our callbacks on every Trainer",
        "",
        "`python -m benchmarks.lightning_suite --tests FOLDER`, with Lightning "
        f"{versions} and the tests that pytest selects by `{SELECT}`. Of {tests} tests in {len(records)} files "
        f"{passed} passed bare, and {fitting} of these call `fit`. They ran again with each arm's callbacks in their "
        "neutral setting on every Trainer. Passed: the test's own assertions hold, and after every fit and in every "
        "checkpoint weights, optimizer, schedulers, loops, learning rates, the user's metrics and the random state are "
        "those of the bare run. Refused: a callback says before training that it cannot work there. By design: listed "
        "below with the reason. Counts callbacks: the test fails with a callback that does nothing but has a state, "
        f"too. {slow} tests that take more than {SLOW} s of CPU time bare, and all but the first {FIRST_CASES} "
        "parameter set of a test, ran with the control and all together only.",
        "",
        markdown_table(headings, body),
    ]
    if wrong:
        lines += ["Different:", "", *wrong, ""]
    if meant:
        arms_of: dict[str, list[str]] = {}
        for (why, arm), count in meant.items():
            arms_of.setdefault(why, []).append(f"{arm} {count}")
        lines += ["By design:", ""]
        lines += [f"- {why}: {', '.join(arms)}" for why, arms in arms_of.items()] + [""]
    lines += ["Refused:", ""]
    by_arm: dict[str, list[str]] = {}
    for (arm, why), count in reasons.most_common():
        by_arm.setdefault(arm, []).append(f"{count} x {why}")
    lines += [f"- {arm}: {'; '.join(whys)}" for arm, whys in by_arm.items()]
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tests", type=Path, help="a checkout of Lightning's tests/")
    parser.add_argument("--files", nargs="+", default=FILES, help="below tests_pytorch")
    parser.add_argument("--arms", nargs="+", choices=[a for a in ARMS if a not in (BARE, CONTROL)], help="all, if none")
    parser.add_argument("--select", default=SELECT, help=f"pytest's -k: {SELECT}")
    parser.add_argument("--again", action="store_true", help="also the arms that a file's record has")
    parser.add_argument("--report", action="store_true", help="run nothing, write the table of the records there are")
    parser.add_argument("--results", type=Path, default=RESULTS, help="folder of lightning_suite/ and its table")
    options = parser.parse_args(arguments)
    store = ResultStore(options.results / "lightning_suite")
    if not options.report:
        if options.tests is None:
            parser.error("give --tests, a checkout of Lightning's tests/, or --report")
        arms = [arm for arm in ARMS if arm not in (BARE, CONTROL)]
        waiting: dict[tuple[str, ...], list[str]] = {}
        for file in options.files:
            record = store.load(_name(file), {"file": file})
            known = set() if record is None or options.again else set(record["arms"])
            asked = tuple(arm for arm in arms if (not options.arms or arm in options.arms) and arm not in known)
            if asked and (record is None or record["tests"]):
                waiting.setdefault(asked, []).append(file)
        for asked, files in waiting.items():
            for first in range(0, len(files), AT_ONCE):
                now = files[first : first + AT_ONCE]
                records = {file: store.load(_name(file), {"file": file}) for file in now}
                only = [
                    f"{_below(options.tests, f)}::{t}"
                    for f, record in records.items()
                    if record
                    for t in record["tests"]
                ]
                found = run_files(options.tests, now, asked, only if all(records.values()) else None, options.select)
                for file, record in records.items():
                    store.save(_name(file), record_of(file, record, found[file]))
    written = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(store.folder.glob("*.json"))]
    text = table(written)
    write_keeping_findings(options.results / "lightning_suite.md", text)
    print(text)
    return 1 if "\nDifferent:" in text else 0


def _name(file: str) -> str:
    return re.sub(r"\W+", "-", file.removesuffix(".py"))


def _below(folder: Path, file: str) -> str:
    return str((tests_of(folder) / file).relative_to(folder.resolve()))


if __name__ == "__main__":
    sys.exit(main())
