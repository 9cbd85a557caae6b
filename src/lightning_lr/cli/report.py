"""``lightning-lr report``: what a run did, from what its loggers and our callbacks wrote; also while it is going."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_lr.cli.errors import ConfigurationError, refusing
from lightning_lr.cli.report_summary import report_summary
from lightning_lr.cli.run_record import find_run, read_run
from lightning_lr.cli.terminal import terminal


def report(words: Sequence[str]) -> None:
    """Print the report of a run, and draw it where ``--out`` is given.

    Args:
        words: the options.

    Raises:
        ConfigurationError: where there is no run, or nothing of it to draw.
    """
    parser = argparse.ArgumentParser(
        "lightning-lr report",
        description="Show what a run did and why, also while it is still going.",
        allow_abbrev=False,
    )
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="a logger's directory (version_N), or one above it")
    parser.add_argument("--out", type=Path, metavar="PNG", help="where the picture goes (any format of matplotlib)")
    given = parser.parse_args(list(words))
    directory = find_run(given.run)
    record = read_run(directory)
    title = f"Report of {directory}"
    if directory != given.run:
        title += f" (the newest run below {given.run})"
    console = terminal()
    console.print(report_summary(record, title))
    if given.out is not None:
        from lightning_lr.cli.report_picture import save_report_picture

        if not record.metrics:
            raise ConfigurationError(f"report: {directory} has no metrics to draw yet (see trainer.log_every_n_steps)")
        name = "/".join(directory.resolve().parts[-2:])
        with refusing(f"report: the picture could not be written to {given.out}: "):
            save_report_picture(record, f"Report of {name}", given.out)
        console.print(f"picture: {given.out}")
