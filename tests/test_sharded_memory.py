"""Model states by ZeRO stage: the paper's figures, closed forms, what an optimizer keeps, what is sent."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from lightning_lr.optim import LAMB, LARS
from lightning_lr.sharded_memory import (
    STAGES,
    EngineSettings,
    ModelSize,
    communication_bytes,
    communication_rounds,
    ddp_bytes,
    engine_bytes,
    paper_bytes,
    state_bytes,
)

NO_BUCKETS = EngineSettings(reduce_bucket_size=0, prefetch_bucket_size=0, persistence_threshold=0)


# ---------------------------------------------------------------------- the paper
@pytest.mark.parametrize(("stage", "gigabytes"), [(0, 120), (1, 31.4), (2, 16.6), (3, 1.9)])
def test_the_papers_figure_1(stage: Any, gigabytes: float) -> None:
    """7.5 billion parameters on 64 ranks, Adam in mixed precision, to the digits that the paper prints."""
    found = paper_bytes(ModelSize((7_500_000_000,)), stage, 64) / 1e9
    assert found == pytest.approx(gigabytes, abs=0.05)


def test_a_trillion_parameters_on_1024_ranks() -> None:
    """The paper's section 1: 16 TB of model states, about 16 GB on each of 1024 ranks."""
    assert paper_bytes(ModelSize((10**12,)), 3, 1024) == 16e12 / 1024


@given(st.lists(st.integers(1, 10**9), min_size=1), st.integers(1, 5000), st.floats(0, 16), st.booleans())
def test_a_later_stage_never_holds_more_in_the_papers_model(
    sizes: list[int], ranks: int, state: float, half: bool
) -> None:
    model = ModelSize(tuple(sizes), state_bytes=state)
    held = [paper_bytes(model, stage, ranks, half=half) for stage in STAGES]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in pairwise(held))
    if ranks == 1:
        assert held == pytest.approx([held[0]] * 4)


@given(st.integers(1, 10**9), st.integers(1, 500), st.booleans())
def test_more_ranks_never_hold_more(numbers: int, ranks: int, half: bool) -> None:
    model = ModelSize((numbers,))
    for stage in STAGES:
        assert paper_bytes(model, stage, ranks + 1, half=half) <= paper_bytes(model, stage, ranks, half=half)
        few, many = (engine_bytes(model, stage, n, half=half).peak for n in (ranks, ranks + 1))
        assert many <= few


# ---------------------------------------------------------------------- the engine
@pytest.mark.parametrize(
    ("half", "bytes_per_parameter"), [(False, (16, 12, 12, 10)), (True, (16, 9, 9, 8))], ids=["fp32", "bf16"]
)
def test_what_was_measured_for_adam_on_two_ranks(half: bool, bytes_per_parameter: tuple[int, ...]) -> None:
    """Without stage 3's bucket. `tests/test_zero_memory.py` and `benchmarks/zero_memory.py` measure it again."""
    model = ModelSize((4096,) * 50)
    for stage, expected in zip(STAGES, bytes_per_parameter, strict=True):
        assert engine_bytes(model, stage, 2, half=half, settings=NO_BUCKETS).after_backward == expected * model.numbers


@given(st.integers(1, 10**6).map(lambda n: 64 * n), st.sampled_from([1, 2, 8, 64]), st.sampled_from([0, 4, 8, 12]))
def test_in_half_precision_and_without_buckets_stages_2_and_3_are_the_papers(
    numbers: int, ranks: int, state: int
) -> None:
    model = ModelSize((numbers,), state_bytes=state)
    for stage in (0, 2, 3):
        held = engine_bytes(model, stage, ranks, half=True, settings=NO_BUCKETS).model_states  # type: ignore[arg-type]
        assert held == pytest.approx(paper_bytes(model, stage, ranks))  # type: ignore[arg-type]


def test_fp32_keeps_a_second_copy_of_the_shard() -> None:
    model = ModelSize((6400,))
    more = engine_bytes(model, 2, 64, settings=NO_BUCKETS).model_states - paper_bytes(model, 2, 64, half=False)
    assert more == 4 * 6400 / 64
    alone = engine_bytes(model, 2, 1, settings=NO_BUCKETS).model_states
    assert alone == 20 * 6400, "on one rank it costs more than no ZeRO"


def test_stage_3_pads_each_parameter_and_keeps_small_ones_whole() -> None:
    model = ModelSize((7, 100))
    assert model.shard(4) == 2 + 25
    plain = engine_bytes(model, 3, 4, settings=NO_BUCKETS)
    assert plain.model_states == (4 + 4 + 12) * 27
    whole = engine_bytes(model, 3, 4, settings=EngineSettings(persistence_threshold=7)).parameters
    assert whole == 4 * (27 + 7)


def test_stage_1_holds_whole_gradients_while_it_accumulates() -> None:
    model = ModelSize((1000,))
    alone, window = (engine_bytes(model, 1, 8, half=True, accumulation=k).gradients for k in (1, 2))
    assert (alone, window) == (250, 2000)
    assert engine_bytes(model, 2, 8, half=True, accumulation=2).gradients == 250


def test_what_is_offloaded_is_on_the_host() -> None:
    model, both = ModelSize((1000,) * 10), EngineSettings(True, True, persistence_threshold=0)
    held = engine_bytes(model, 3, 2, half=True, settings=both)
    assert held.model_states == 0
    assert held.host == (2 + 2 + 12 + 4) * 10_000 / 2
    half_way = engine_bytes(model, 2, 2, half=True, settings=EngineSettings(offload_optimizer=True))
    assert half_way.model_states == 2 * 10_000
    assert half_way.host == (12 + 2 + 4) * 10_000 / 2 + 2 * 1000


def test_frozen_parameters_have_no_gradient_and_no_state() -> None:
    model = ModelSize((0,), frozen=1000)
    assert [engine_bytes(model, s, 4, half=True, settings=NO_BUCKETS).model_states for s in STAGES] == [2000] * 3 + [
        500
    ]
    assert ddp_bytes(model).peak == 4000


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"stage": 2, "ranks": 0}, "ranks=0"),
        ({"stage": 0, "ranks": 2, "settings": EngineSettings(offload_optimizer=True)}, "take stage 1, 2 or 3"),
        ({"stage": 2, "ranks": 2, "settings": EngineSettings(offload_parameters=True)}, "only stage 3"),
    ],
)
def test_what_no_engine_does_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        engine_bytes(ModelSize((10,)), **arguments)


# ---------------------------------------------------------------------- the optimizer is asked
OPTIMIZERS: list[tuple[type[torch.optim.Optimizer], dict[str, Any], float]] = [
    (torch.optim.SGD, {"lr": 0.1}, 0),
    (torch.optim.SGD, {"lr": 0.1, "momentum": 0.9, "nesterov": True}, 4),
    (torch.optim.Adam, {}, 8),
    (torch.optim.AdamW, {"fused": True}, 8),
    (torch.optim.AdamW, {"amsgrad": True}, 12),
    (torch.optim.RMSprop, {}, 4),
    (torch.optim.RMSprop, {"centered": True, "momentum": 0.9}, 12),
    (torch.optim.Adagrad, {}, 4),
    (torch.optim.Adadelta, {}, 8),
    (torch.optim.Rprop, {}, 8),
    (LARS, {"lr": 0.1, "momentum": 0.9}, 4),
    (LAMB, {"lr": 0.1}, 8),
]


@pytest.mark.parametrize(("kind", "arguments", "kept"), OPTIMIZERS, ids=lambda v: getattr(v, "__name__", str(v)))
def test_what_an_optimizer_keeps_is_found_by_asking(
    kind: type[torch.optim.Optimizer], arguments: dict[str, Any], kept: float
) -> None:
    network = nn.Linear(30, 20)
    before = [p.clone() for p in network.parameters()]
    optimizer = kind(network.parameters(), **arguments)  # type: ignore[call-arg]
    state = {key: dict(value) for key, value in optimizer.state.items()}
    optimizer.register_step_post_hook(lambda *_: pytest.fail("the user's hook was called"))
    assert state_bytes(optimizer) == kept
    assert {key: dict(value) for key, value in optimizer.state.items()} == state, "asking changed its state"
    assert all(torch.equal(a, b) and b.grad is None for a, b in zip(before, network.parameters(), strict=True))


def test_an_optimizer_of_somebody_else_is_asked_too() -> None:
    peers = pytest.importorskip("pytorch_optimizer")
    network = nn.Linear(3, 3)
    assert state_bytes(peers.Lion(network.parameters())) == 4
    assert state_bytes(peers.AdaBelief(network.parameters())) == 8


def test_an_optimizer_whose_groups_do_not_tell_how_it_was_made_is_asked_as_it_is() -> None:
    class Made(torch.optim.SGD):
        def __init__(self, parameters: Any, secret: float) -> None:
            super().__init__(parameters, lr=secret, momentum=0.9)

    optimizer = Made(nn.Linear(2, 2).parameters(), secret=0.1)
    optimizer.register_step_post_hook(lambda *_: pytest.fail("the user's hook was called"))
    assert state_bytes(optimizer) == 4
    assert not optimizer.state


def test_groups_count_by_their_size() -> None:
    groups = [
        {"params": [nn.Parameter(torch.zeros(300))], "momentum": 0.9},
        {"params": [nn.Parameter(torch.zeros(100))], "momentum": 0.0},
    ]
    assert state_bytes(torch.optim.SGD(groups, lr=0.1)) == 3
    model = ModelSize.of(nn.Linear(3, 3).requires_grad_(False))
    assert (model.numbers, model.frozen) == (0, 12)


def test_an_optimizer_that_does_not_step_alone_is_named() -> None:
    class Asks(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            raise RuntimeError("where is my scheduler?")

    with pytest.raises(ValueError, match=r"Asks does not step on its own \(where is my scheduler"):
        state_bytes(Asks(nn.Linear(2, 2).parameters(), lr=0.1))


# ---------------------------------------------------------------------- communication
def test_the_papers_communication_and_what_accumulation_makes_of_it() -> None:
    assert [communication_rounds(stage) for stage in STAGES] == [2, 2, 2, 3]
    assert [communication_rounds(stage, 4) for stage in STAGES] == [2, 2, 5, 12]


def test_a_ring_sends_all_but_its_own_part() -> None:
    model = ModelSize((1000,))
    assert communication_bytes(model, 0, 1) == 0
    assert communication_bytes(model, 0, 4) == 2 * 1000 * 4 * 3 / 4
    assert communication_bytes(model, 3, 2, half=True) == 3 * 1000 * 2 / 2
