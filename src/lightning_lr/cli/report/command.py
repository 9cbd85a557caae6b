"""``lightning-lr report``: what a run did, from what its loggers and our callbacks wrote; also while it is going.

For several runs it shows which was better, and what each paid for the same result.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from lightning_lr.cli.errors import ConfigurationError, refusing
from lightning_lr.cli.printable import cell, printable
from lightning_lr.cli.report.comparison import BETTER, compare
from lightning_lr.cli.report.comparison_summary import comparison_summary
from lightning_lr.cli.report.record import find_run
from lightning_lr.cli.report.resumed_run import read_whole_run
from lightning_lr.cli.report.summary import picture_title, report_summary
from lightning_lr.cli.terminal import terminal


def report(words: Sequence[str]) -> None:
    """Print the report of a run, or the comparison of several, and draw it where ``--out`` is given.

    Args:
        words: the options.

    Raises:
        ConfigurationError: where there is no run, or nothing of it to draw.
    """
    parser = argparse.ArgumentParser(
        "lightning-lr report",
        description="Show what a run did and why, also while it is going; of several, which was better at what price.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "runs", type=Path, metavar="RUN_DIR", nargs="+",
        help="a logger's directory (version_N), or one above it, whose newest run is taken; several are compared",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, metavar="PNG", help="where the picture goes (any format of matplotlib); a page: .html"
    )
    several = parser.add_argument_group("several runs")
    several.add_argument("--metric", metavar="NAME", help="what is compared; else a validation score, else a loss")
    several.add_argument("--better", choices=BETTER, help="where the metric's name does not show it")
    several.add_argument(
        "--target", type=float, metavar="VALUE", help="what each run paid for this value; else the worst run's best"
    )
    given = parser.parse_args(list(words))
    directories = [find_run(directory) for directory in given.runs]
    if len(directories) > 1:
        _compare(directories, given)
    else:
        only = [f"--{name}" for name in ("metric", "better", "target") if getattr(given, name) is not None]
        if only:
            raise ConfigurationError(f"report: {' and '.join(only)} compare runs; give two run directories or more")
        _report(directories[0], given.runs[0], given.out)


def _report(directory: Path, given: Path, out: Path | None) -> None:
    record = read_whole_run(directory)
    title = f"Report of {directory}"
    if directory != given:
        title += f" (the newest run {'of' if given.is_file() else 'below'} {given})"
    console = terminal()
    console.print(report_summary(record, title))
    if out is not None:
        from lightning_lr.cli.report.picture import report_figure, save_report_picture
        from lightning_lr.cli.shown import Report

        if not record.metrics:
            raise ConfigurationError(f"report: {directory} has no metrics to draw yet (see trainer.log_every_n_steps)")
        name = printable("/".join(directory.resolve().parts[-2:]))
        with refusing(f"report: the picture could not be written to {out}: "):
            if out.suffix == ".html":
                figure, damaged = report_figure(record, picture_title(name, record))
                Report(title, report_summary(record, title), lambda: figure, record).save(out)
            else:
                damaged = save_report_picture(record, picture_title(name, record), out)
        for sentence in damaged:
            console.print(cell(f"note: {sentence}", style="yellow"))
        console.print(cell(f"picture: {out}"))


def _compare(directories: Sequence[Path], given: argparse.Namespace) -> None:
    for number, directory in enumerate(directories):
        if directory.resolve() in [other.resolve() for other in directories[:number]]:
            raise ConfigurationError(
                f"report: {directory} was given twice (of a directory above a run the newest is taken); name each run"
            )
    comparison = compare(
        [read_whole_run(directory) for directory in directories], given.metric, given.better, given.target
    )
    console = terminal()
    console.print(comparison_summary(comparison))
    if given.out is not None:
        from lightning_lr.cli.report.comparison_picture import comparison_figure, save_comparison_picture
        from lightning_lr.cli.shown import Report

        with refusing(f"report: the picture could not be written to {given.out}: "):
            if given.out.suffix == ".html":
                summary = comparison_summary(comparison)
                Report(comparison.headline, summary, lambda: comparison_figure(comparison), comparison).save(given.out)
            else:
                save_comparison_picture(comparison, given.out)
        console.print(cell(f"picture: {given.out}"))
