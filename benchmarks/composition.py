"""What stands beside what: trains every pair, or has it refused, and prints the matrix.

    python -m benchmarks.composition [--out benchmarks/results/composition.md]

Each pair fits a small net for 18 updates and is held against the product of the closed forms of its two parts: learning
rate, weight decay, batch and parameter groups at every update, averages and noise scale, and everything given back in
the end. A pair with a strategy over several devices does so in two processes, and is held against plain DDP as well.
The parts and their forms are in `tests/support/composition.py`. Takes about two minutes on two cores.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException

from tests.support import composition as c
from tests.support.processes import run_in_processes

RIGHT, REFUSED, WRONG = "✓", "-", "WRONG"


def outcome(pair: Sequence[c.Part]) -> tuple[str, str]:
    """What becomes of a pair, and the error's words."""
    recorder = c.Recorder()
    with tempfile.TemporaryDirectory() as folder:
        try:
            c.check(c.train(pair, Path(folder), recorder))
        except MisconfigurationException as refusal:
            return (WRONG if recorder.path else REFUSED), str(refusal)
        except Exception as error:  # an error in the middle is what this looks for
            return WRONG, f"{type(error).__name__}: {error}"
    return RIGHT, ""


def outcomes_over_devices() -> dict[tuple[str, str], tuple[str, str]]:
    """The same for all pairs with a strategy over several devices, trained by two processes."""
    pairs = [pair for pair in c.pairs() if c.spread(pair)]
    with tempfile.TemporaryDirectory() as folder:
        ran = run_in_processes(c.cases(pairs, Path(folder)), Path(folder))
    return {(a.name, b.name): _outcome_of(ran, (a, b)) for a, b in pairs}


def _outcome_of(ran: Sequence[dict[str, Any]], pair: tuple[c.Part, c.Part]) -> tuple[str, str]:
    found = ran[0][c.key(pair)]
    if isinstance(found, tuple):
        return (WRONG if found[1] else REFUSED), found[0]
    try:
        under_ddp = c.key(c.beside_ddp(pair))
        c.like_ddp(pair, [rank[c.key(pair)] for rank in ran], [rank[under_ddp] for rank in ran])
    except AssertionError as error:
        return WRONG, str(error)
    return RIGHT, ""


def own_schedulers() -> list[str]:
    """The lines about a module with a scheduler of its own."""
    rows, counts = [], Counter[str]()
    for parts in c.scheduled():
        marks = []
        for choice in c.CHOICES:
            if choice != "multiply" and not c.chooses(parts):
                marks.append("")
                continue
            mark, words = outcome(c.beside_a_scheduler(parts, choice))
            if choice == "refuse" and (mark != REFUSED or "module_scheduler" not in words):
                mark = WRONG
            if choice != "refuse" and mark == REFUSED:
                mark = WRONG
            marks.append(mark if mark != WRONG else f"{WRONG}: {words}")
            counts[mark] += 1
        rows.append(f"| {' and '.join(p.name for p in parts)} | " + " | ".join(marks) + " |")
    return [
        "",
        "## Beside the module's own scheduler",
        "",
        f"The module returns an ExponentialLR, stepped after every update. {len(rows)} rows, our callbacks alone and "
        f"in pairs, by `module_scheduler`: {counts[RIGHT]} train right, {counts[REFUSED]} are refused before training, "
        f"{counts[WRONG]} are wrong. Replaced, the learning rate is the product of the callbacks' closed forms at "
        "every update; multiplied, that times the scheduler's; in the end the optimizer holds the scheduler's value. "
        "Callbacks without the argument multiply.",
        "",
        "| | " + " | ".join(c.CHOICES) + " |",
        "|---|" + ":-:|" * len(c.CHOICES),
        *rows,
    ]


def matrix() -> str:
    """The table as Markdown."""
    over_devices = outcomes_over_devices()
    found = {(a.name, b.name): over_devices.get((a.name, b.name)) or outcome((a, b)) for a, b in c.pairs()}
    otherwise = {(a.name, b.name): outcome((a, b))[0] for a, b in c.OTHERWISE}
    for pair, mark in otherwise.items():
        if found[pair][0] == REFUSED and mark == RIGHT:
            found[pair] = f"({RIGHT})", found[pair][1]
    counts = Counter(mark for mark, _ in found.values())
    lines = [
        "# What stands beside what",
        "",
        f"Printed by `python -m benchmarks.composition`. {len(found)} pairs: {counts[RIGHT]} train right, "
        f"{counts[REFUSED]} are refused before training, {counts[f'({RIGHT})']} are refused in one setting and train "
        f"right in another, {counts[WRONG]} are wrong, {len(c.pairs()) - len(found)} untested.",
        "",
        f"{RIGHT} trains right: at every update the learning rate is the product of the two closed forms, and the "
        "batch, the groups, the weight decay and what else the two do is what it is alone; optimizer and module are "
        f"given back in the end. {REFUSED} refused before training, with the reason below. ({RIGHT}) depends on the "
        "settings, see below. Two optimizers, two strategies and two of Lightning's callbacks are no pair of ours. A "
        "pair with a strategy over several devices is trained by two processes, and its weights at every update are "
        "those of plain DDP.",
        "",
    ]
    lines += [f"{number}. {part.name}" for number, part in enumerate(c.PARTS, start=1)]
    lines += ["", "| | " + " | ".join(str(n) for n in range(2, len(c.PARTS) + 1)) + " |"]
    lines += ["|---|" + ":-:|" * (len(c.PARTS) - 1)]
    for row in c.OURS:
        marks = [found.get((row.name, column.name), ("",))[0] for column in c.PARTS[1:]]
        if any(marks):
            lines.append(f"| {row.name} | " + " | ".join(marks) + " |")
    lines += ["", "Neither is ours, and together they fail:", ""]
    lines += [f"- **{first} with {second}**: {why}." for (first, second), why in c.OTHERS.items()]
    lines += ["", "Refused:", ""]
    for (first, second), (mark, words) in found.items():
        if mark != RIGHT:
            settings = [(a.setting, b.setting) for a, b in c.OTHERWISE if (a.name, b.name) == (first, second)]
            right = "; ".join(" and ".join(filter(None, setting)) for setting in settings)
            note = f" Trains right with: {right}." if right and mark != WRONG else ""
            lines.append(f"- **{first} with {second}**{' WRONG' if mark == WRONG else ''}: {words}.{note}")
    lines += own_schedulers()
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table there as well")
    out = parser.parse_args().out
    warnings.filterwarnings("ignore")
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    table = matrix()
    print(table)
    if out is not None:
        out.write_text(table)
    if WRONG in table:
        raise SystemExit("some pair is wrong")


if __name__ == "__main__":
    main()
