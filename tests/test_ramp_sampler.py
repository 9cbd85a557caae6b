"""The samplers: micro-batches of the plan's sizes, each sample once, resumed exactly, with workers and without."""

from __future__ import annotations

from itertools import chain
from typing import Any

import pytest
import torch
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, RandomSampler, SequentialSampler

from lightning_lr.batch_size import AdaptiveRamp, CurveRamp, EpochSampler, RampBatchSampler, RampPlan, StepRamp
from lightning_lr.curves import Cosine


def flat(batches: Any) -> list[int]:
    return list(chain.from_iterable(batches))


def test_without_windows_it_is_torchs_batch_sampler() -> None:
    for drop_last in (False, True):
        ours = RampBatchSampler(SequentialSampler(range(10)), 4, drop_last)
        torchs = BatchSampler(SequentialSampler(range(10)), 4, drop_last)
        assert isinstance(ours, BatchSampler)
        assert list(ours) == list(torchs)
        assert len(ours) == len(torchs)
        assert (ours.batch_size, ours.drop_last) == (torchs.batch_size, torchs.drop_last)
        assert ours.sampler is not None
    with pytest.raises(ValueError, match="batch_size"):
        RampBatchSampler(SequentialSampler(range(10)), 0, False)


@pytest.mark.parametrize("samples", [48, 53])
def test_yields_the_plans_micro_batches_and_each_sample_once(samples: int) -> None:
    plan = RampPlan(StepRamp([0.5, 1], factor=2.0), samples, 4, max_epochs=3, max_batch_size=16, max_micro_batch_size=6)
    order = EpochSampler(samples, seed=3)
    sampler = RampBatchSampler(order, 4)
    for epoch in range(3):
        sampler.set_epoch(epoch)
        sampler.set_windows(plan.windows(epoch))
        batches = list(sampler)
        assert [len(batch) for batch in batches] == plan.windows(epoch).micro_sizes
        assert len(sampler) == len(batches) == sampler.given_out
        assert flat(batches) == list(order)
        assert sorted(flat(batches)) == list(range(samples))


def test_skipping_goes_on_where_the_epoch_was_left() -> None:
    plan = RampPlan(CurveRamp(Cosine()), 97, 4, max_epochs=2, max_batch_size=20, max_micro_batch_size=3)
    sampler = RampBatchSampler(EpochSampler(97, seed=1), 4)
    sampler.set_epoch(1)
    sampler.set_windows(plan.windows(1))
    whole = list(sampler)
    for skip in range(len(whole) + 1):
        sampler.set_windows(plan.windows(1), skip=skip)
        assert list(sampler) == whole[skip:]
        assert list(sampler) == whole[skip:]  # Lightning may make an iterator more than once
        assert len(sampler) == len(whole)  # the epoch's, as its progress bar counts
    with pytest.raises(ValueError, match="skip=1000 is not among the"):
        sampler.set_windows(plan.windows(1), skip=1000)


def test_windows_and_order_are_those_at_the_start_of_the_iteration() -> None:
    plan = RampPlan(StepRamp([1], factor=2.0), 12, 2, max_epochs=2, max_batch_size=4)
    sampler = RampBatchSampler(EpochSampler(12), 2)
    sampler.set_windows(plan.windows(0))
    started = iter(sampler)  # workers have not fetched anything yet
    order = list(sampler.sampler)
    sampler.set_epoch(1)
    sampler.set_windows(plan.windows(1))
    batches = list(started)
    assert [len(batch) for batch in batches] == [2] * 6
    assert flat(batches) == order
    assert [len(batch) for batch in sampler] == [4] * 3


def test_a_batch_that_grows_within_an_epoch_changes_only_what_was_not_given_out() -> None:
    plan = RampPlan(AdaptiveRamp(), 40, 4, max_epochs=2, max_batch_size=8, max_micro_batch_size=2)
    sampler = RampBatchSampler(EpochSampler(40, seed=5), 4)
    sampler.set_windows(plan.windows(0))
    running = iter(sampler)
    first = [next(running) for _ in range(3)]  # in the middle of the second window
    window = plan.windows(0).next_window_from(sampler.given_out)
    assert window is not None
    assert window.start == 8
    grown = plan.grown(8, epoch=0, start=window.start)
    sampler.replan(grown.windows(0))
    rest = list(running)
    assert [len(batch) for batch in first + rest] == grown.windows(0).micro_sizes
    assert len(sampler) == len(grown.windows(0).micro_sizes)
    assert flat(first + rest) == list(sampler.sampler)


def test_windows_that_were_given_out_cannot_change() -> None:
    plan = RampPlan(AdaptiveRamp(), 40, 4, max_epochs=2, max_batch_size=8)
    sampler = RampBatchSampler(SequentialSampler(range(40)), 4)
    sampler.set_windows(plan.windows(0))
    running = iter(sampler)
    next(running), next(running)
    with pytest.raises(ValueError, match="2 micro-batches have been given out"):
        sampler.replan(plan.grown(8, epoch=0, start=4).windows(0))
    assert [len(batch) for batch in running] == [4] * 8


def test_an_older_iterator_keeps_its_windows_when_the_newer_one_is_replanned() -> None:
    plan = RampPlan(AdaptiveRamp(), 40, 4, max_epochs=2, max_batch_size=8)
    sampler = RampBatchSampler(SequentialSampler(range(40)), 4)
    sampler.set_windows(plan.windows(0))
    older = iter(sampler)
    next(older)
    newer = iter(sampler)
    sampler.replan(plan.grown(8, epoch=0, start=0).windows(0))
    assert [len(batch) for batch in older] == [4] * 9
    assert sampler.given_out == 0
    assert [len(batch) for batch in newer] == [8] * 5
    assert sampler.given_out == 5


def test_a_sampler_that_ends_before_the_plan_is_an_error() -> None:
    sampler = RampBatchSampler(SequentialSampler(range(30)), 4)
    sampler.set_windows(RampPlan(StepRamp([1]), 40, 4, max_epochs=2).windows(0))
    with pytest.raises(RuntimeError, match="the sampler ended at micro-batch 7 of 10; the plan counts on 40 samples"):
        list(sampler)


def test_ranks_take_equal_shares_in_step() -> None:
    plan = RampPlan(
        StepRamp([0.5], factor=2.0), 45, 4, world_size=2, max_epochs=1, max_batch_size=8, max_micro_batch_size=3
    )
    ranks = []
    for rank in range(2):
        sampler = RampBatchSampler(DistributedSampler(range(45), 2, rank, seed=2), 2)  # type: ignore[arg-type]
        sampler.set_epoch(0)
        sampler.set_windows(plan.windows(0))
        ranks.append(list(sampler))
    assert [len(batch) for batch in ranks[0]] == [len(batch) for batch in ranks[1]] == plan.windows(0).micro_sizes
    assert set(flat(ranks[0]) + flat(ranks[1])) == set(range(45))
    assert len(flat(ranks[0])) == 23


@pytest.mark.parametrize(("workers", "persistent"), [(0, False), (2, True)])
def test_a_loader_follows_the_plan_from_epoch_to_epoch(workers: int, persistent: bool) -> None:
    plan = RampPlan(StepRamp([0.5, 1], factor=2.0), 30, 2, max_epochs=3, max_batch_size=8, max_micro_batch_size=4)
    sampler = RampBatchSampler(EpochSampler(30), 2)
    loader: DataLoader[Any] = DataLoader(
        range(30),  # type: ignore[arg-type]
        batch_sampler=sampler,
        num_workers=workers,
        persistent_workers=persistent,
    )
    for epoch in range(3):
        sampler.set_epoch(epoch)
        sampler.set_windows(plan.windows(epoch))
        assert len(loader) == len(plan.windows(epoch).micro_sizes)
        batches = [batch.tolist() for batch in loader]
        assert [len(batch) for batch in batches] == plan.windows(epoch).micro_sizes
        assert flat(batches) == list(sampler.sampler)


# ---------------------------------------------------------------------------------------------- the order
def test_order_depends_on_seed_and_epoch_alone() -> None:
    first = EpochSampler(100, seed=7)
    orders = []
    for epoch in range(3):
        first.set_epoch(epoch)
        orders.append(list(first))
        torch.rand(3)  # the global state is no part of it
    second = EpochSampler(100, seed=7)
    second.set_epoch(2)
    assert list(second) == list(second) == orders[2]
    assert orders[0] != orders[1] != orders[2]
    assert all(sorted(order) == list(range(100)) for order in orders)
    assert len(first) == 100


def test_seeds_do_not_share_orders_from_one_epoch_to_the_next() -> None:
    orders = set()
    for seed in (-1, 0, 1, 2, 42):
        sampler = EpochSampler(50, seed)
        for epoch in range(20):
            sampler.set_epoch(epoch)
            orders.add(tuple(sampler))
    assert len(orders) == 5 * 20


def test_shuffling_leaves_the_global_random_state_alone() -> None:
    state = torch.get_rng_state()
    list(EpochSampler(100))
    assert torch.equal(torch.get_rng_state(), state)
    list(RandomSampler(range(100)))  # type: ignore[arg-type]  # where torch's does not
    assert not torch.equal(torch.get_rng_state(), state)


def test_without_shuffling_it_counts() -> None:
    sampler = EpochSampler(5, shuffle=False)
    sampler.set_epoch(3)
    assert list(sampler) == [0, 1, 2, 3, 4]


def test_shuffling_moves_every_sample_everywhere() -> None:
    sampler = EpochSampler(10)
    places: set[tuple[int, int]] = set()
    for epoch in range(200):
        sampler.set_epoch(epoch)
        places.update(enumerate(sampler))
    assert len(places) == 100  # (9/10)^200 is 7e-10 for one of the 100 to be missing


def test_a_size_of_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="EpochSampler: size=0 is not allowed"):
        EpochSampler(0)
