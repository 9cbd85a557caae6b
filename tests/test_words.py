"""Retired phrases of the project's early English stay out of what people read: sources, pages and configurations."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[1]
READ = [
    *sorted((REPOSITORY / "src").rglob("*.py")),
    *sorted((REPOSITORY / "docs").rglob("*.md")),
    *sorted((REPOSITORY / "configs").rglob("*.yaml")),
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
]
RETIRED = (
    "how-manieth",
    "of ours",
    "may stay",
    "may stand",
    "to be had",
    "(?:is|are|was|were|be|been|being) (?:asked|told)",
    r"beside(?![(`])",  # not the function of this name
    "leave it when",
    "a schema that is none",
    "nobody said",
    "gone on with",
    "bends? (?:no|the)",
    "stands? beside",
    "says? that",
    "(?:does|do) not tell",
)
BREAK = r"[ ]*(?:\n[ ]*(?:\#[ ]*)?|[ ])[ ]*"
"""Between two words: a space, or a line break, within a comment too."""


def retired_in(text: str) -> list[str]:
    """Each retired phrase in a text, with its line."""
    found = []
    for phrase in RETIRED:
        pattern = re.compile(rf"(?<![\w-]){phrase.replace(' ', BREAK)}(?![\w-])", re.IGNORECASE)
        found += [f"line {text[: match.start()].count(chr(10)) + 1}: {match[0]!r}" for match in pattern.finditer(text)]
    return found


def test_no_retired_phrase_is_left() -> None:
    found = {str(path.relative_to(REPOSITORY)): retired_in(path.read_text()) for path in READ}
    assert {path: phrases for path, phrases in found.items() if phrases} == {}


@pytest.mark.parametrize(
    "text",
    [
        "Beside a schedule it waits.",
        "# the engine is\n    # told where an update ends",
        "a callback of\nours",
        "The loss says that it is high enough.",
        '"""The how-manieth tensor."""',
    ],
)
def test_a_retired_phrase_is_found(text: str) -> None:
    assert len(retired_in(text)) == 1


@pytest.mark.parametrize(
    "text", ["os.rename(beside(path), path)", ":func:`beside`", "besides", "of ourselves", "hours"]
)
def test_other_words_are_none(text: str) -> None:
    assert retired_in(text) == []
