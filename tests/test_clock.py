"""Progress is the share of the run's budget, at any place that a loop of Lightning can be brought to."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, given, settings

from lightning_lr.progress import Budget, Place, Span
from tests.support.random_loops import Loop, largest_difference, loops, run

pytestmark = pytest.mark.filterwarnings("ignore")


def test_the_largest_share_of_the_budget_counts() -> None:
    budget = Budget(max_epochs=4, max_updates=10, max_seconds=100.0)
    found = budget.spans(Place(epoch=1, micro_batch=3, updates=2, seconds=30.0), Span(3, 6, 6), seconds=5.0)
    assert [span.progress for span in found] == [0.2, 9 / 24, 0.3]
    assert [span.after for span in found] == [0.3, 0.5, 0.35]


def _difference(loop: Loop) -> float:
    with TemporaryDirectory() as folder:
        return largest_difference(run(loop, Path(folder)).updates, loop)


def _holds(loop: Loop) -> None:
    assert _difference(loop) <= 1e-12


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(loops())
def test_progress_is_that_of_a_plain_replay(loop: Loop) -> None:
    _holds(loop)


def test_a_batch_after_a_skipped_one_is_not_trained_on_twice_by_a_resume() -> None:
    """Lightning's totals differ after a skip, and it takes the batch that saved for an interrupted one."""
    _holds(Loop(((2,),), max_epochs=2, skips=frozenset({(0, 1)}), resume=2))
    _holds(Loop(((3,),), max_epochs=3, max_steps=8, skips=frozenset({(0, 1)}), resume=4))


@pytest.mark.slow
def test_progress_is_that_of_a_plain_replay_of_many_loops() -> None:
    found: list[float] = []

    @settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
    @given(loops())
    def holds(loop: Loop) -> None:
        found.append(_difference(loop))
        assert found[-1] <= 1e-12

    holds()
    print(f"{len(found)} loops: {max(found):.2g} at most")
