"""The known name nearest to one that was given: torch is not imported for it."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches


def did_you_mean(given: str, known: Iterable[str], prefix: str = "") -> str:
    """``; did you mean 'X'?`` with the known name nearest to what was given, or the choice where it is small.

    Args:
        given: the unknown name.
        known: the names that there are.
        prefix: stands before each of them.
    """
    names = sorted(set(known))
    folded = {name.lower(): name for name in names}
    near = get_close_matches(given.lower(), folded, n=1, cutoff=0.6)
    if near:
        return f"; did you mean {prefix + folded[near[0]]!r}?"
    return f"; known are {', '.join(names)}" if 0 < len(names) <= 12 else ""
