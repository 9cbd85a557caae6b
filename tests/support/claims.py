"""What the documents claim, and the committed results from which each number of it is computed again.

A claim is a piece of a document's text with ``{}`` where numbers stand, and as many values. A number agrees if the
value rounds to it at the digits that are printed; a bound ("at most 0.19") if the value does not exceed it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]
NUMBER = r"[-+]?\d+(?:[ ,]\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?"


@dataclass(frozen=True)
class AtMost:
    """A value that the printed number bounds from above."""

    value: float

    def agrees(self, printed: float, digits: int) -> bool:
        return self.value <= printed


@dataclass(frozen=True)
class Rounded:
    """A value that is printed."""

    value: float

    def agrees(self, printed: float, digits: int) -> bool:
        return abs(printed - self.value) <= 0.5 * 10**-digits + 1e-9


Value = float | AtMost
Values = Callable[[], Iterable[Value]]


@dataclass(frozen=True)
class Claim:
    """A piece of text with numbers.

    Args:
        document: from the repository.
        text: with ``{}`` for each number; any white space stands for any other.
        values: what is computed again, in the text's order.
        optional: the document may do without it, as README.md may do without a number.
    """

    document: str
    text: str
    values: Values
    optional: bool = False

    @property
    def span(self) -> tuple[int, int]:
        """Where it stands in the document."""
        found = self._found()
        assert found, f"{self.document} does not have: {self.text}"
        return found.span()

    def wrong(self) -> list[str]:
        """The numbers that the results do not give."""
        found = self._found()
        if found is None and self.optional:
            return []
        if found is None:
            return [f"{self.document} does not have: {self.text}"]
        line = read(self.document).count("\n", 0, found.start()) + 1
        values, numbers = list(self.values()), found.groups()
        if len(values) != len(numbers):
            return [f"{self.document}:{line}: {len(numbers)} numbers, {len(values)} values: {self.text}"]
        said = []
        for number, value in zip(numbers, values, strict=True):
            plain = re.sub(r"(?<=\d)[ ,](?=\d{3})", "", number)
            digits = len(plain.partition(".")[2])
            value = value if isinstance(value, AtMost) else Rounded(float(value))
            if not value.agrees(float(plain), digits):
                said.append(f"{self.document}:{line}: {number}, but the results give {value.value:.{digits + 2}f}: "
                            + " ".join(found[0].split()))  # fmt: skip
        return said

    def _found(self) -> re.Match[str] | None:
        literal = [r"\s+".join(re.escape(word) for word in re.split(r"\s+", piece)) for piece in self.text.split("{}")]
        found = list(re.finditer(f"({NUMBER})".join(literal), read(self.document)))
        assert len(found) < 2, f"{self.document} has it twice: {self.text}"
        return found[0] if found else None


@cache
def read(document: str) -> str:
    return (REPOSITORY / document).read_text(encoding="utf-8")


def flat(*parts: Value | Iterable[Value]) -> list[Value]:
    """Values and groups of values in one list."""
    found: list[Value] = []
    for part in parts:
        found += [part] if isinstance(part, int | float | AtMost) else part
    return found


PM = "{} ± {}"
RANGE = "{} [{}, {}]"
