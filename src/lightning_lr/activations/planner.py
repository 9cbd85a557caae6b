"""Where to cut a chain: Chen's equal segments, or the least recomputation under a memory budget.

Under a budget, dynamic programming from the first block to the last. What is ahead depends on what was decided only by
the bytes that are held, and by whether the last output is among them; of two cuts that hold as much, the one that
recomputes less is kept. The result is the optimum of :mod:`~lightning_lr.activations.chain`'s model, exactly as long as
the amounts that differ are few; where they are many, one is followed of each narrow band of amounts.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from lightning_lr.activations.chain import Chain, Part, peak_bytes
from lightning_lr.activations.policy import CheckpointPolicy, PlanError

LABELS = 6_000
"""Ways to cut that are followed, over all blocks; bounds the planner's time to a second or two."""

KEEP_LAST = 1.1
"""The last segment is kept, not recomputed, if the peak grows by no more than this."""


def cut(chain: Chain, policy: CheckpointPolicy, budget: int | None = None) -> tuple[Part, ...]:
    """The parts of a chain under a policy.

    Args:
        chain: the measured blocks.
        policy: how to cut.
        budget: bytes, where the policy has a memory budget.

    Raises:
        PlanError: for more segments than blocks, or a budget that no plan reaches.
    """
    if budget is not None:
        return least_recomputation(chain, budget)
    if policy.segments == "every_block":
        counts = [len(run) for run in chain.runs()]
    elif policy.segments == "sqrt":
        counts = [round(math.sqrt(len(run))) for run in chain.runs()]
    else:
        counts = _distributed(int(policy.segments), [len(run) for run in chain.runs()])
    parts = [part for run, k in zip(chain.runs(), counts, strict=True) for part in equal_segments(chain, run, k)]
    kept = [*parts[:-1], Part(parts[-1].start, parts[-1].stop, recompute=False)]
    return tuple(kept if peak_bytes(chain, kept) <= KEEP_LAST * peak_bytes(chain, parts) else parts)


def equal_segments(chain: Chain, run: range, segments: int) -> list[Part]:
    """As many blocks in each of ``segments`` segments, as far as blocks that write into their input allow."""
    edges = {run.start + round(len(run) * k / segments) for k in range(segments)}
    starts = sorted(edge for edge in edges if edge == run.start or chain.may_start(edge))
    parts = [Part(start, stop, True) for start, stop in zip(starts, [*starts[1:], run.stop], strict=True)]
    if not chain.may_start(run.start):  # what comes before its first block cannot be recomputed with it
        parts[0] = Part(parts[0].start, parts[0].stop, False)
    return parts


def least_recomputation(chain: Chain, budget: int) -> tuple[Part, ...]:
    """The parts with the least recomputed time whose peak is within ``budget`` bytes.

    Raises:
        PlanError: where no parts are; the message gives the least possible.
    """
    fronts: list[dict[bool, list[_Label]]] = [{False: [], True: []} for _ in range(len(chain) + 1)]
    fronts[0][False] = [_Label(0, 0.0, None, None)]
    for start in range(len(chain)):
        for exit_is_live, labels in fronts[start].items():
            for label in _thinned(_undominated(labels), LABELS // len(chain)):
                for part, held, live, saves_output in _parts_from(chain, start, exit_is_live, label.held):
                    if live <= budget:
                        seconds = label.seconds + (chain.seconds(part.start, part.stop) if part.recompute else 0.0)
                        fronts[part.stop][saves_output].append(_Label(held, seconds, part, label))
    ends = [label for labels in fronts[-1].values() for label in labels if label.held + chain.outside_bytes <= budget]
    if not ends:
        least = least_peak(chain)
        raise PlanError(
            f"CheckpointPolicy: memory_budget={budget} bytes is less than any plan reaches; the least possible for "
            f"this batch is {least} bytes. Raise the budget or lower the loader's batch_size"
        )
    best: _Label | None = min(ends, key=lambda label: (label.seconds, label.held))
    parts: list[Part] = []
    while best is not None and best.part is not None:
        parts.append(best.part)
        best = best.before
    return _joined(parts[::-1])


def least_peak(chain: Chain) -> int:
    """The smallest peak in bytes that any parts have."""
    low, high = 0, peak_bytes(chain, [Part(0, len(chain), recompute=False)])
    while low < high:  # for a given peak, holding less is never worse, so one amount per block decides
        middle = (low + high) // 2
        low, high = (low, middle) if _reaches(chain, middle) else (middle + 1, high)
    return low


class _Label(NamedTuple):
    """A way to cut the blocks up to here: bytes it holds, seconds it recomputes, its last part, the rest of it."""

    held: int
    seconds: float
    part: Part | None
    before: _Label | None


def _parts_from(chain: Chain, start: int, exit_is_live: bool, held: int) -> Iterator[tuple[Part, int, int, bool]]:
    """Every next part: itself, bytes held after it, bytes live in its backward, whether its output is held."""
    block = chain.blocks[start]
    base = held + chain.outside(start, start + 1)
    kept = base + chain.saved(start, start + 1, entrance=not exit_is_live)
    yield Part(start, start + 1, False), kept, kept, block.saves_output and chain.linked(start + 1)
    if not chain.may_start(start):
        return
    base += 0 if exit_is_live else block.input_bytes
    again, live = 0, True
    for stop in range(start + 1, len(chain) + 1):
        inner = chain.blocks[stop - 1]
        if stop - 1 > start:
            if not chain.linked(stop - 1):
                return
            base += inner.outside_bytes
        again += inner.input_bytes if inner.saves_input and not live else 0
        again += inner.own_bytes + (inner.output_bytes if inner.saves_output else 0)
        live = inner.saves_output
        yield Part(start, stop, True), base, base + again, False


def _reaches(chain: Chain, budget: int) -> bool:
    least: list[dict[bool, int]] = [{} for _ in range(len(chain) + 1)]
    least[0][False] = 0
    for start in range(len(chain)):
        for exit_is_live, held in list(least[start].items()):
            for part, after, live, saves_output in _parts_from(chain, start, exit_is_live, held):
                if live <= budget:
                    least[part.stop][saves_output] = min(after, least[part.stop].get(saves_output, after))
    return any(held + chain.outside_bytes <= budget for held in least[-1].values())


def _undominated(labels: Sequence[_Label]) -> list[_Label]:
    front: list[_Label] = []
    for label in sorted(labels, key=lambda label: (label.held, label.seconds)):
        if not front or label.seconds < front[-1].seconds:
            front.append(label)
    return front


def _thinned(front: list[_Label], most: int) -> list[_Label]:
    """At most about ``most`` of the labels: the first of each band of held bytes, and the one that recomputes least."""
    if len(front) <= most:
        return front
    low, grain = front[0].held, (front[-1].held - front[0].held) / most
    bands = {math.floor((label.held - low) / grain): label for label in reversed(front)}
    return [*sorted(bands.values(), key=lambda label: label.held), front[-1]]


def _joined(parts: Sequence[Part]) -> tuple[Part, ...]:
    """Neighbours that are kept as one part."""
    joined: list[Part] = []
    for part in parts:
        if joined and not part.recompute and not joined[-1].recompute:
            part = Part(joined.pop().start, part.stop, False)
        joined.append(part)
    return tuple(joined)


def _distributed(segments: int, lengths: Sequence[int]) -> list[int]:
    """Segments for each run, by its share of the blocks; at least one each."""
    blocks = sum(lengths)
    if segments > blocks:
        raise PlanError(
            f"CheckpointPolicy: segments={segments}, but there are {blocks} blocks; give at most {blocks}, "
            "or 'every_block'"
        )
    return [max(1, min(length, round(segments * length / blocks))) for length in lengths]
