"""How the lines of a picture are drawn: steps as steps, and lines that coincide so that each is seen."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Points = tuple[Sequence[float], Sequence[float]]

FEW = 8
"""Values that a line in steps has."""

DASH = 7.0
"""Points of paper that one of several coincident lines is seen before the next."""


FAR = 3.0
"""A value this many times another, with the edge of a phase between them, has jumped there."""

RISE = 1.5
"""A value this many times the one that holds from then on has jumped; a warm-up arrives there step by step."""


def stepped(
    at: Sequence[float], values: Sequence[float], edges: Sequence[float] = (), causes: Sequence[float] = ()
) -> tuple[list[float], list[float]]:
    """The points of a line with a jump where what was logged jumped.

    Between two logged values that differ the line is slanted where it is a curve's, and vertical where the value held
    before, where it holds after a large change, where a phase changes and the value with it, and where what causes it
    has changed: at the edge of a phase if one is there, else right after the last time that it was seen.

    Args:
        at: where the values were logged, increasing.
        values: what was logged; may hold NaN.
        edges: where phases change.
        causes: what makes the values jump, such as the batch, as logged with each; empty for nothing.
    """
    x, y = list(at[:1]), list(values[:1])
    for i, ((left, right), (before, value)) in enumerate(zip(pairwise(at), pairwise(values), strict=True)):
        edge = next((edge for edge in edges if left < edge <= right), None)
        ratio = max(before, value) / min(before, value) if min(before, value) > 0 else 1.0
        held = i > 0 and values[i - 1] == before
        holds = i + 2 < len(values) and values[i + 2] == value and ratio > RISE
        caused = bool(causes) and causes[i] != causes[i + 1]
        if before != value and (held or holds or caused or (edge is not None and ratio > FAR)):
            jump = left if edge is None else edge
            x += [jump, jump]
            y += [before, value]
        x.append(right)
        y.append(value)
    return x, y


def told_apart(lines: Sequence[Points]) -> list[dict[str, Any]]:
    """What ``plot`` is to be given for each line, so that those that coincide are seen in turn; nothing for the others.

    Lines in few steps coincide where they go through the same values, as far as they go.

    Args:
        lines: the points of each.
    """
    same: dict[Any, list[int]] = {}
    for number, (x, y) in enumerate(lines):
        steps = tuple(value for i, value in enumerate(y) if i == 0 or value != y[i - 1])
        same.setdefault(steps if len(steps) <= FEW else (tuple(x), tuple(y)), []).append(number)
    styles: list[Any] = [{}] * len(lines)
    for numbers in same.values():
        longest = max(numbers, key=lambda number: max(lines[number][0], default=0.0))
        for turn, number in enumerate(number for number in numbers if number != longest):
            dashes = ((turn + 1) * DASH, (DASH, DASH * (len(numbers) - 1)))
            styles[number] = {"linestyle": dashes, "zorder": 2.1}  # above the longest, which is solid
    return styles
