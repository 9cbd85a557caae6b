"""The command ``lightning-lr`` before anything is imported: its help and its version, then the command line itself.

A package of its own, since a module inside ``lightning_lr`` imports the package first, which registers strategies with
Lightning and so loads torch: several seconds for a line of help.
"""

from __future__ import annotations

import gc
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

__version__ = "0.2.0"

COMMANDS = {
    "init": "write a first configuration for a module that is given by its import path",
    "fit": "train a model as a configuration file describes",
    "validate": "evaluate a model on the validation data",
    "test": "evaluate a model on the test data",
    "predict": "run a model on the prediction data",
    "plan": "show learning rate, batch and phases of a run before it is trained",
    "doctor": "show versions, missing extras, and whether a configuration would start",
    "report": "show what a run did and why, also while it trains, or compare several",
}

__all__ = ["COMMANDS", "__version__", "answer", "main", "usage"]


def main() -> int:
    """Run ``lightning-lr`` with the words of this process; returns the exit code."""
    words = sys.argv[1:]
    code = answer(words)
    if code is None:
        if words[0] == "report":
            _skip_the_package_itself()
        with _no_garbage():
            from lightning_lr.cli import main as run
        code = run(words)
    return code


@contextmanager
def _no_garbage() -> Iterator[None]:
    """Inside, nothing is looked through for what can be thrown away, and what is made there never will be.

    What is imported stays. To look through it again and again takes a fifth of the time of an import of Lightning.
    """
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.freeze()
            gc.enable()


def answer(words: Sequence[str]) -> int | None:
    """Print what needs neither torch nor a configuration; returns the exit code, or ``None`` for everything else."""
    if not words or words[0] in ("-h", "--help"):
        print(usage())
        return 0 if words else 2
    if words[0] == "--version":
        print(f"lightning-lr {__version__}")
        return 0
    return None


def _skip_the_package_itself() -> None:
    """Let modules of ``lightning_lr`` be imported without its ``__init__``, which loads torch and all that trains.

    A report reads files and draws, in a process of its own: a run of 200 000 updates takes half of the time so.
    """
    spec = importlib.util.find_spec("lightning_lr")
    if spec is not None and "lightning_lr" not in sys.modules:
        sys.modules["lightning_lr"] = importlib.util.module_from_spec(spec)


def usage() -> str:
    """What ``lightning-lr --help`` prints."""
    commands = "\n".join(f"  {name:<10}{what}" for name, what in COMMANDS.items())
    return (
        "usage: lightning-lr COMMAND ...\n"
        "       lightning-lr --version\n\n"
        "Learning rate, batch size and memory of a Lightning run: decided, shown and resumed exactly.\n\n"
        f"commands:\n{commands}\n\n"
        "lightning-lr COMMAND --help lists its options. Examples:\n"
        "  lightning-lr init --model package.module.Class --data package.module.Data --out C\n"
        "  lightning-lr plan --config C --out plan.png\n"
        "  lightning-lr fit --config C --trainer.max_epochs 3\n"
        "  lightning-lr report RUN_DIR --out report.png\n"
        "  lightning-lr report RUN_DIR RUN_DIR --out comparison.png"
    )
