"""Text of a run is data: names, facts and paths that somebody else wrote are shown as they are, never interpreted.

A metric's name or a journal's fact may hold escape sequences of the terminal, markup of rich or characters that turn
the writing direction. Everything that ``report`` and ``plan`` print from a run passes :func:`printable` or
:func:`cell`. (Mathtext is switched off for every picture, in ``figure.STYLE``.)
"""

from __future__ import annotations

import unicodedata

from rich.text import Text

KEPT = {"\n", "\t"}
INVISIBLE = {"Cc", "Cf", "Cs", "Zl", "Zp"}
"""Unicode's categories of control, format (bidirectional marks among them) and separator characters."""


def printable(text: object, lines: bool = False) -> str:
    r"""``text`` with every control and format character made visible.

    Args:
        text: anything; its ``str`` is taken.
        lines: keep line breaks and tabs, for text of several lines.

    Returns:
        The text to show; ``"\x1b[2J"`` becomes ``"\\x1b[2J"``.

    Example:
        >>> printable("loss\x1b[2J")
        'loss\\x1b[2J'
    """
    return "".join(_shown(character, lines) for character in str(text))


def _shown(character: str, lines: bool) -> str:
    if character.isascii() and character.isprintable():
        return character
    if lines and character in KEPT:
        return character
    if unicodedata.category(character) in INVISIBLE:
        return character.encode("unicode_escape", "backslashreplace").decode("ascii")
    return character


def cell(text: object, style: str = "") -> Text:
    """A cell of a table, or a line: ``text`` as it is, with no markup read into it."""
    return Text(printable(text, lines=True), style=style)
