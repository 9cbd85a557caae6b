"""Standard output of the command line, and the summary with which a plan and a report begin."""

from __future__ import annotations

from collections.abc import Mapping

from rich.console import Console
from rich.table import Table

from lightning_lr.cli.printable import cell


def terminal() -> Console:
    """Standard output; where it is no terminal (a pipe, a log of CI), wide enough for a table."""
    console = Console(highlight=False)
    return console if console.is_terminal else Console(highlight=False, width=max(console.width, 140))


def summary_block(summary: Mapping[str, str]) -> Table:
    """Headings on the left, what holds on the right."""
    block = Table.grid(padding=(0, 2))
    for heading, fact in summary.items():
        block.add_row(cell(heading, style="cyan"), cell(fact))
    return block
