"""The script that says what the package costs runs, at toy size."""

from __future__ import annotations

from benchmarks import overhead_table as overhead
from lightning_lr import Cosine, LearningRateSchedule


def test_a_cell_of_the_table() -> None:
    cell = overhead.Cell("toy", 2, 4, 2, 4, 2, 3)
    arms = {overhead.BARE: list, "schedule": lambda: [LearningRateSchedule(Cosine())]}
    record = overhead.measure(cell, arms)  # type: ignore[arg-type]
    assert record["refused"] == {}
    assert set(record["rows"]) == {"bare", "schedule"}
    assert record["rows"]["bare"]["ratio"]["median"] == 1.0
    assert record["rows"]["schedule"]["operations"] == 0, "a schedule is no work for the device"
    assert record["bare_operations"] > 10
    assert "| schedule |" in overhead.table([record])


def test_a_noise_scale_is_compared_with_updates_of_two_micro_batches() -> None:
    cell = overhead.Cell("toy", 2, 4, 2, 4, 2, 3)
    arms = {overhead.BARE: list, **{name: overhead.arms_of(cell)[name] for name in overhead.OF_TWO}}
    measured = [overhead.measure(cell, arms)["rows"] for _ in range(3)]
    assert measured[0][overhead.BARE_OF_TWO]["operations"] > 10, "a second forward and backward"
    # of each of four tensors one product in each backward and one of the sum; and what puts them together. The least:
    # the profiler also sees what other threads of the process do meanwhile
    assert 3 * 4 <= min(rows[overhead.NOISE]["operations"] for rows in measured) < 3 * 4 + 25


def test_layer_wise_decay_is_measured_where_the_groups_are_its_own() -> None:
    names = {cell.name: overhead.arms_of(cell) for cell in overhead.CELLS}
    assert overhead.FOUR in names["target"]
    assert overhead.FOUR not in names["small_1"]
    assert {"hypergradient.yaml", "digits.yaml"} < set(names["small_14"])
