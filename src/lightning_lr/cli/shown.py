"""What ``plan`` and ``report`` show, as an object: for a terminal, a notebook, a picture or a page on disk."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console, RenderableType

if TYPE_CHECKING:
    from matplotlib.figure import Figure


MONOSPACE = "font:13px/1.2 ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;overflow-x:auto"
"""Of a table in a notebook, whose own style for text may have letters of many widths."""


class Shown:
    """A plan or a report.

    Args:
        title: one line about what it shows.
        text: what the terminal prints.
        draw: makes the figure; ``None`` where there is nothing to draw.
        data: the object behind it.
    """

    def __init__(self, title: str, text: RenderableType, draw: Callable[[], Figure] | None, data: Any) -> None:
        self.title = title
        self.data = data
        self._text = text
        self._draw = draw

    @cached_property
    def table(self) -> str:
        """What the terminal prints, as plain text."""
        return self._exported("text")

    @cached_property
    def figure(self) -> Figure | None:
        """The picture as a figure of matplotlib; ``None`` where there is nothing to draw yet."""
        return None if self._draw is None else self._draw()

    def save(self, path: str | Path) -> Path:
        """Write a page (``.html``), a text (``.txt``) or the picture.

        The page shows the picture with its values under the pointer, and the tables; it needs no network.

        Args:
            path: the file; its ending gives the format: ``.html``, ``.txt`` or any that matplotlib writes.

        Returns:
            The path.

        Raises:
            ValueError: for a picture of something that has nothing to draw yet, or an ending that nobody knows.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".html":
            from lightning_lr.cli.page import page

            path.write_text(page(self.title, self.figure, self._exported("html")), encoding="utf-8")
        elif path.suffix == ".txt":
            path.write_text(self.table, encoding="utf-8")
        elif self.figure is None:
            raise ValueError(f"{self.title}: there is nothing to draw yet; save a .html or .txt")
        else:
            self.figure.savefig(path)
        return path

    def __str__(self) -> str:
        return self.table

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {self.title}>"

    def _repr_html_(self) -> str:
        """What a notebook shows: the picture, and the table below it."""
        picture = ""
        if self.figure is not None:
            buffer = io.BytesIO()
            self.figure.savefig(buffer, format="png")
            encoded = base64.b64encode(buffer.getvalue()).decode("ascii")
            picture = f'<img alt="{html.escape(self.title)}" src="data:image/png;base64,{encoded}">'
        return f'{picture}<pre style="{MONOSPACE}">{self._exported("html")}</pre>'

    def _exported(self, kind: str) -> str:
        # in a notebook rich shows what is printed, whatever its file is, and the table would stand there twice
        console = Console(record=True, width=140, file=io.StringIO(), highlight=False, force_jupyter=False)
        console.print(self._text)
        if kind == "text":
            return "".join(f"{line.rstrip()}\n" for line in console.export_text().splitlines())
        return console.export_html(inline_styles=True, code_format="{code}")


class ShownPlan(Shown):
    """A run before it is trained; ``data`` is the :class:`~lightning_lr.cli.plan.model.Plan`."""


class Report(Shown):
    """A run during or after training, or several compared; ``data`` is the record, or the comparison."""
