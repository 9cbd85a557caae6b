"""Every pair of ours with ours and with Lightning's trains right, or is refused before training; see composition.py."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateFinder
from torch.utils.data import BatchSampler, DataLoader

from lightning_lr import BatchSizeRamp, StepRamp
from tests.support import composition
from tests.support.batches import Batches
from tests.support.composition import (
    OTHERS,
    OTHERWISE,
    OURS,
    PARTS,
    REFUSED,
    Part,
    Recorder,
    WeightAveraging,
    beside_ddp,
    check,
    like_ddp,
    pairs,
    part,
    spread,
    train,
)
from tests.support.toy import data, fit

pytestmark = pytest.mark.filterwarnings("ignore")
Pair = tuple[Part, Part]
named = composition.key
DEEPSPEED = importlib.util.find_spec("deepspeed") is not None
STAGES = tuple(f"ZeROStrategy(stage={stage})" for stage in (1, 2, 3))


def _refused(pair: Pair) -> bool:
    return (pair[0].name, pair[1].name) in REFUSED


def _runs(parts: Sequence[Part]) -> bool:
    return DEEPSPEED or not any(p.name in STAGES for p in parts)


RIGHT = [pair for pair in pairs() if not _refused(pair) and not spread(pair)]
ALONE = [(p,) for p in PARTS if p.joins is not None and _runs((p,))]
SPREAD = [pair for pair in pairs() if spread(pair) and _runs(pair)]
"""Pairs with a strategy over several devices."""


NAMES = [p.name for p in PARTS]
OPTIMIZERS = [p.name for p in PARTS if p.kind == "optimizer"]


def _soon(parts: Sequence[Part]) -> bool:
    """Whether it is run every time; the rest is slow.

    Over several devices the two strategies that take the least time, in turn over what they are paired with. On one
    device every pair, but with one optimizer of the five in turn.
    """
    quick = [name for name in (STAGES[1], "CheckpointedDDPStrategy") if name in [p.name for p in parts]]
    others = [NAMES.index(p.name) for p in parts if p.name not in (*quick, *OPTIMIZERS)]
    if spread(parts):
        turn = (STAGES[1], "CheckpointedDDPStrategy")[sum(others) % 2]
        return bool(quick) and (len(parts) == 1 or quick[0] == turn)
    used = [p.name for p in parts if p.name in OPTIMIZERS]
    return not used or len(parts) == 1 or used[0] == OPTIMIZERS[sum(others) % len(OPTIMIZERS)]


def over(several: Sequence[Sequence[Part]]) -> pytest.MarkDecorator:
    slow = pytest.mark.slow
    return pytest.mark.parametrize(
        "parts", [pytest.param(p, id=named(p), marks=() if _soon(p) else slow) for p in several]
    )


@pytest.fixture(autouse=True)
def _skip_what_is_not_there(request: pytest.FixtureRequest) -> None:
    if "AdamP" in request.node.name:
        pytest.importorskip("pytorch_optimizer")
    if WeightAveraging is None and re.search("(?<!Stochastic)WeightAveraging", request.node.name):
        pytest.skip("Lightning has WeightAveraging from 2.6 on")


@pytest.mark.parametrize("alone", [p for p in PARTS if p.joins is None], ids=lambda p: p.name)
def test_alone_it_does_what_its_closed_form_says(alone: Part, tmp_path: Path) -> None:
    check(train([alone], tmp_path))


@pytest.mark.parametrize(
    "pair", [pytest.param(p, id=named(p), marks=() if _soon(p) else pytest.mark.slow) for p in [*RIGHT, *OTHERWISE]]
)
def test_a_pair_is_the_product_of_the_two(pair: Pair, tmp_path: Path) -> None:
    check(train(pair, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*RIGHT, *OTHERWISE], ids=named)
def test_the_order_in_the_trainer_does_not_matter(pair: Pair, tmp_path: Path) -> None:
    check(train(pair[::-1], tmp_path))


@pytest.mark.parametrize(
    "turned", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["as listed", "turned round"]
)
@pytest.mark.parametrize("names", [n for n in REFUSED if not spread([part(name) for name in n])], ids="-".join)
def test_a_pair_is_refused_before_training_with_both_names(
    names: tuple[str, str], turned: bool, tmp_path: Path
) -> None:
    pair, recorder = (part(names[0]), part(names[1])), Recorder()
    with pytest.raises(MisconfigurationException, match=REFUSED[names]) as refused:
        train(pair[::-1] if turned else pair, tmp_path, recorder)
    assert all(name in str(refused.value) for name in names)
    assert not recorder.path, "nothing was trained"


ALONE_OR_SLOW = [
    pytest.param(parts, id=named(parts), marks=() if len(parts) == 1 else pytest.mark.slow)
    for parts in composition.scheduled()
]


@pytest.mark.parametrize("choice", composition.CHOICES)
@pytest.mark.parametrize("parts", ALONE_OR_SLOW)
def test_beside_the_modules_own_scheduler_it_is_what_module_scheduler_says(
    parts: Sequence[Part], choice: str, tmp_path: Path
) -> None:
    """Replaced: the product of the parts; multiplied: that and the scheduler; its values are left in the end."""
    if choice != "multiply" and not composition.chooses(parts):
        pytest.skip("no argument module_scheduler: it multiplies")
    beside = composition.beside_a_scheduler(parts, choice)
    if choice != "refuse":
        check(train(beside, tmp_path))
        return
    recorder = Recorder()
    with pytest.raises(MisconfigurationException, match=r"ExponentialLR.*argument module_scheduler"):
        train(beside, tmp_path, recorder)
    assert not recorder.path, "nothing was trained"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Batches:
    """What two processes did."""
    folder = tmp_path_factory.mktemp("several")
    soon, slow = (
        composition.cases([p for p in [*ALONE, *SPREAD] if _soon(p) == wanted], folder / str(wanted))
        for wanted in (True, False)
    )
    return Batches(folder, soon, slow)


@over([*ALONE, *(pair for pair in SPREAD if not _refused(pair))])
def test_over_several_devices_a_pair_is_the_product_of_the_two_and_trains_what_ddp_trains(
    parts: Sequence[Part], ran: Batches
) -> None:
    like_ddp(parts, ran[named(parts)], ran[named(beside_ddp(parts))])


@over([pair for pair in SPREAD if _refused(pair)])
def test_over_several_devices_a_pair_is_refused_before_training_with_both_names(parts: Pair, ran: Batches) -> None:
    for said, late in ran[named(parts)]:
        assert re.search(REFUSED[parts[0].name, parts[1].name], said)
        assert all(p.name.partition("(")[0] in said for p in parts)
        assert not late, "nothing was trained"


def test_no_pair_is_left_out() -> None:
    together = {(a.name, b.name) for a, b in pairs() if not _refused((a, b))} | set(REFUSED)
    optimizers, strategies = ([p for p in PARTS if p.kind == kind] for kind in ("optimizer", "strategy"))
    assert len(OURS) == 23
    assert len(PARTS) == 33
    assert (len(optimizers), len(strategies)) == (5, 6)
    of_ours, beside = len(OURS) * (len(OURS) - 1) // 2, len(OURS) * (len(PARTS) - len(OURS))
    assert len(together) == len(pairs()) == of_ours + beside - 5 * 4 // 2 - 6 * 5 // 2 - len(OTHERS)


def test_a_loader_that_fit_was_given_comes_back_after_a_finder_and_a_ramp() -> None:
    """The finder has the loader taken over twice."""
    loader = DataLoader(data(), batch_size=8)
    before = loader.batch_sampler
    finder = LearningRateFinder(1e-3, 0.1, num_training_steps=16, early_stop_threshold=None, update_attr=False)
    ramp = BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=32, max_micro_batch_size=8)
    fit([finder, ramp], loader=loader)
    assert loader.batch_sampler is before
    assert type(before) is BatchSampler
    assert torch.stack([x for x, _ in loader.dataset]).equal(torch.cat([x for x, _ in loader]))
