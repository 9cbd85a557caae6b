"""Where chains are cut: against every possible cut, counted out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.activations import best_of_all_cuts
from lightning_lr.activations import Block, Chain, CheckpointPolicy, Part, cut, least_peak, peak_bytes
from lightning_lr.activations.chain import recomputed_seconds

MB = 1_000_000


def every_cut(chain: Chain) -> Iterator[tuple[Part, ...]]:
    """All cuts into parts that are kept or recomputed; written without the planner."""
    n = len(chain)
    for ends in itertools.product((False, True), repeat=n - 1):
        edges = [0, *(i + 1 for i, end in enumerate(ends) if end), n]
        for kinds in itertools.product((False, True), repeat=len(edges) - 1):
            parts = tuple(Part(a, b, kind) for a, b, kind in zip(edges, edges[1:], kinds, strict=False))
            if any(not a.recompute and not b.recompute for a, b in itertools.pairwise(parts)):
                continue  # the same as one kept part
            if all(not part.recompute or may_be_recomputed(chain.blocks[part.start : part.stop]) for part in parts):
                yield parts


def may_be_recomputed(blocks: tuple[Block, ...]) -> bool:
    return not blocks[0].in_place and all(block.linked for block in blocks[1:])


def by_simulation(chain: Chain, parts: tuple[Part, ...]) -> int:
    """The peak, by adding and removing every storage in turn; written without the chain's formulas."""
    blocks = chain.blocks

    def border(index: int, side: str) -> str:
        """The storage before block ``index``; one with the output of the block before where they are linked."""
        return f"border {index}" if side == "in" or (index < len(blocks) and blocks[index].linked) else f"exit {index}"

    size: dict[str, int] = {}
    saves: list[set[str]] = []
    for i, block in enumerate(blocks):
        own, entry, leaving = f"own {i}", border(i, "in"), border(i + 1, "out")
        size[own], size[leaving] = block.own_bytes, block.output_bytes
        if not (i and block.linked):
            size[entry] = block.input_bytes
        saves.append({own} | ({entry} if block.saves_input else set()) | ({leaving} if block.saves_output else set()))
    held: list[set[str]] = []
    for part in parts:
        kept = set[str]().union(*saves[part.start : part.stop])
        outside = {f"outside {i}" for i in range(part.start, part.stop)}
        size.update({f"outside {i}": blocks[i].outside_bytes for i in range(part.start, part.stop)})
        held.append(({border(part.start, "in")} if part.recompute else kept) | outside)
    live = set[str]().union(*held)
    peak = sum(size[s] for s in live) + chain.outside_bytes
    for p in reversed(range(len(parts))):
        live = set[str]().union(*held[: p + 1])
        again = set[str]()
        if parts[p].recompute:
            made = set[str]().union(*saves[parts[p].start : parts[p].stop])
            again = made - {border(parts[p].start, "in")}
        peak = max(peak, sum(size[s] for s in live) + sum(size[s] for s in again))
    return peak


@st.composite
def chains(draw: st.DrawFn, most: int) -> Chain:
    """Linked blocks hand one storage on, so the input of one is as large as the output of the one before."""
    blocks: list[Block] = []
    for i in range(draw(st.integers(1, most))):
        linked = i > 0 and draw(st.integers(0, 9)) > 0
        blocks.append(
            Block(
                name=str(i),
                input_bytes=blocks[-1].output_bytes if linked else draw(st.integers(1, 40)),
                own_bytes=draw(st.integers(0, 60)),
                output_bytes=draw(st.integers(1, 40)),
                saves_input=draw(st.booleans()),
                saves_output=draw(st.booleans()),
                seconds=draw(st.integers(1, 20)),
                linked=linked,
                in_place=i > 0 and draw(st.integers(0, 9)) == 0,
                outside_bytes=draw(st.sampled_from([0, 0, 7])),
            )
        )
    return Chain(tuple(blocks), draw(st.integers(0, 50)))


@settings(max_examples=60, deadline=None)
@given(chains(6))
def test_peak_is_that_of_the_simulation_for_every_cut(chain: Chain) -> None:
    for parts in every_cut(chain):
        assert peak_bytes(chain, parts) == by_simulation(chain, parts)


@settings(max_examples=40, deadline=None)
@given(chains(8), st.floats(0, 1))
def test_plan_under_a_budget_is_the_optimum_of_all_cuts(chain: Chain, share: float) -> None:
    every = [(by_simulation(chain, parts), recomputed_seconds(chain, parts)) for parts in every_cut(chain)]
    least, most = min(peak for peak, _ in every), max(peak for peak, _ in every)
    assert least_peak(chain) == least
    budget = int(least + share * (most - least))
    parts = cut(chain, CheckpointPolicy(), budget)
    assert by_simulation(chain, parts) <= budget
    # whole seconds, so the sums are exact
    assert recomputed_seconds(chain, parts) == min(seconds for peak, seconds in every if peak <= budget)
    with pytest.raises(ValueError, match=f"the least possible for this batch is {least} bytes"):
        cut(chain, CheckpointPolicy(), least - 1)


def _optimum_of_twelve(seed: int) -> tuple[float, float]:
    """Of a chain of 12 blocks under a budget: recomputed seconds of the plan and of the best of all cuts."""
    import random

    draw = random.Random(seed)
    borders = [draw.randint(1, 40) * MB for _ in range(13)]
    blocks = [
        Block(str(i), borders[i], draw.randint(0, 200) * MB + draw.randint(0, MB), borders[i + 1],
              seconds=draw.uniform(0.01, 1.0), linked=i > 0)
        for i in range(12)
    ]  # fmt: skip
    chain = Chain(tuple(blocks), draw.randint(0, 30) * MB)
    least, most = least_peak(chain), peak_bytes(chain, [Part(0, 12, False)])
    budget = int(least + draw.random() * (most - least))
    plan = recomputed_seconds(chain, cut(chain, CheckpointPolicy(), budget))
    return plan, best_of_all_cuts(chain, budget)


@pytest.mark.parametrize("seed", range(5))
def test_twelve_blocks_are_within_five_percent_of_brute_force(seed: int) -> None:
    plan, best = _optimum_of_twelve(seed)
    assert best - 1e-9 <= plan <= 1.05 * best + 1e-9


def like_blocks(count: int) -> Chain:
    return Chain(tuple(Block(str(i), 10, 90, 10, seconds=1.0, linked=i > 0) for i in range(count)))


@pytest.mark.parametrize(("count", "segments"), [(36, 6), (12, 3), (9, 3), (2, 1)])
def test_sqrt_cuts_equal_segments(count: int, segments: int) -> None:
    parts = cut(like_blocks(count), CheckpointPolicy())
    assert len(parts) == segments
    assert {part.stop - part.start for part in parts} == {count // segments}


def test_segments_stop_where_the_chain_is_broken_and_are_shared_out_by_length() -> None:
    blocks = [Block(str(i), 10, 90, 10, linked=i not in (0, 8)) for i in range(12)]
    chain = Chain(tuple(blocks), outside_bytes=1_000)  # a large head, so that the last segment is recomputed too
    for policy, ends in ((CheckpointPolicy(6), [2, 4, 6, 8, 10, 12]), (CheckpointPolicy(1), [8, 12])):
        parts = cut(chain, policy)
        assert [part.stop for part in parts] == ends
        assert all(part.recompute for part in parts)


def test_last_segment_is_kept_where_that_costs_no_more_than_a_tenth() -> None:
    small, large = like_blocks(16), Chain(like_blocks(16).blocks, outside_bytes=1_000)
    assert [part.recompute for part in cut(small, CheckpointPolicy(4))] == [True, True, True, False]
    assert [part.recompute for part in cut(large, CheckpointPolicy(4))] == [True] * 4


def test_many_unlike_blocks_are_planned_in_time_and_within_the_budget() -> None:
    import random
    import time

    draw = random.Random(1)
    borders = [draw.randint(1, 40) * MB for _ in range(97)]
    blocks = [
        Block(str(i), borders[i], draw.randint(0, 200 * MB), borders[i + 1], seconds=draw.random(), linked=i > 0)
        for i in range(96)
    ]
    chain = Chain(tuple(blocks))
    least, plain = least_peak(chain), peak_bytes(chain, [Part(0, 96, False)])
    begin = time.process_time()
    for budget in (least, (least + plain) // 2):
        parts = cut(chain, CheckpointPolicy(), budget)
        assert peak_bytes(chain, parts) <= budget
    assert time.process_time() - begin < 10
