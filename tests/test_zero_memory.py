"""The engine's bytes, measured on the real DeepSpeed engine in two processes, against what is predicted."""

from __future__ import annotations

import pytest

from benchmarks.zero_memory import Case, cases, record_of, table
from tests.support.zero_runs import needs_deepspeed

pytestmark = needs_deepspeed

SHORT = {"width": 256, "depth": 4}
"""263,168 parameters in buckets of 400,000: buckets weigh more here than in the table."""

CASES = [Case(3, optimizer="momentum", **SHORT)]
MORE = [
    *(Case(stage, half, **SHORT) for half in (False, True) for stage in (0, 1, 2, 3)),  # type: ignore[arg-type]
    Case(2, half=True, offload_optimizer=True, **SHORT),
    Case(3, offload_optimizer=True, offload_parameters=True, **SHORT),
]


def _agrees(case: Case) -> None:
    record = record_of(case)
    measured, predicted = record["measured"], record["predicted"]
    assert predicted["after backward"] == pytest.approx(measured["after backward"], rel=0.05)
    # activations of 2 samples are in the first of these
    assert max(measured.values()) <= predicted["peak"] * 1.05


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_predicted_bytes_are_the_engines(case: Case) -> None:
    _agrees(case)


@pytest.mark.slow
@pytest.mark.parametrize("case", MORE, ids=lambda case: case.name)
def test_predicted_bytes_are_the_engines_in_every_stage(case: Case) -> None:
    _agrees(case)


def test_the_whole_table_has_every_stage_in_both_precisions() -> None:
    names = [case.name for case in cases()]
    assert len(set(names)) == len(names)
    for stage in range(4):
        for precision in ("fp32", "bf16"):
            for optimizer in ("Adam", "momentum", "SGD"):
                assert f"stage {stage}, {precision}, {optimizer}, 2 ranks" in names
    made = {"after backward": 2.0, "after forward": 1.0, "after step": 1.0}
    record = {"case": "a case", "measured": made, "predicted": {"after backward": 2.1, "peak": 3.0}}
    assert "| a case | 2.10 | 2.00 | +5.0% | 1.00 | 1.00 | 3.00 |" in table([record])
