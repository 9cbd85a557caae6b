"""The command line ``lightning-lr``: train, and see a run before and after.

``fit``, ``validate``, ``test`` and ``predict`` are Lightning's own command line with the names of this package known to
it; ``init`` writes a first configuration, ``plan`` shows a run before it is trained, ``report`` shows it afterwards or
while it trains. Each imports what it needs when it runs.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence

from lightning_lr_command import COMMANDS, answer, usage

__all__ = ["COMMANDS", "main"]


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: the words after ``lightning-lr``; those of the process where not given.

    Returns:
        The exit code: 0, or 2 for a configuration that was refused.

    Raises:
        SystemExit: for ``COMMAND --help`` (0) and for options that do not exist (2).
        Exception: what goes wrong during training, with its traceback.
    """
    words = list(sys.argv[1:] if args is None else args)
    code = answer(words)
    if code is not None:
        return code
    command = words[0]
    if command not in COMMANDS and not command.startswith("-"):
        from lightning_lr.cli.nearest import did_you_mean

        print(f"error: no command {command!r}{did_you_mean(command, COMMANDS)}\n\n{usage()}", file=sys.stderr)
        return 2
    if os.getcwd() not in sys.path:  # as `python -m` does, so that the user's own classes are found
        sys.path.insert(0, os.getcwd())

    # Lightning's own: it is no concern of this command's users
    warnings.filterwarnings("ignore", message=r".*LeafSpec.*is deprecated")
    from lightning_lr.cli.errors import ConfigurationError, debugging

    try:
        return _run(command, words)
    except ConfigurationError as error:
        if debugging():
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2


def _run(command: str, words: list[str]) -> int:
    if command == "report":
        from lightning_lr.cli.report.command import report

        report(words[1:])
    elif command == "init":
        from lightning_lr.cli.init import init

        init(words[1:])
    elif command == "doctor":
        from lightning_lr.cli.doctor import doctor

        return doctor(words[1:])
    elif command == "plan":
        from lightning_lr.cli.plan.command import plan

        plan(words[1:])
    else:  # also for options before the command, as in `lightning-lr --config C fit`
        from lightning_lr.cli.trainer_cli import run_trainer

        run_trainer(words)
    return 0
