"""Every pair of ours with ours and with Lightning's trains right, or is refused before training; see composition.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from composition import OTHERWISE, OURS, PARTS, REFUSED, Part, Recorder, WeightAveraging, check, pairs, part, train
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import LearningRateFinder
from torch.utils.data import BatchSampler, DataLoader
from toy import data, fit

from lightning_lr import BatchSizeRamp, StepRamp

pytestmark = pytest.mark.filterwarnings("ignore")
Pair = tuple[Part, Part]
RIGHT = [pair for pair in pairs() if (pair[0].name, pair[1].name) not in REFUSED]


def named(pair: Pair) -> str:
    return "-".join(p.name + (f" ({p.setting})" if p.setting else "") for p in pair)


@pytest.fixture(autouse=True)
def _skip_what_is_not_there(request: pytest.FixtureRequest) -> None:
    if "AdamP" in request.node.name:
        pytest.importorskip("pytorch_optimizer")
    if WeightAveraging is None and re.search("(?<!Stochastic)WeightAveraging", request.node.name):
        pytest.skip("Lightning has WeightAveraging from 2.6 on")


@pytest.mark.parametrize("alone", PARTS, ids=lambda p: p.name)
def test_alone_it_does_what_its_closed_form_says(alone: Part, tmp_path: Path) -> None:
    check(train([alone], tmp_path))


@pytest.mark.parametrize("pair", [*RIGHT, *OTHERWISE], ids=named)
def test_a_pair_is_the_product_of_the_two(pair: Pair, tmp_path: Path) -> None:
    check(train(pair, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("pair", [*RIGHT, *OTHERWISE], ids=named)
def test_the_order_in_the_trainer_does_not_matter(pair: Pair, tmp_path: Path) -> None:
    check(train(pair[::-1], tmp_path))


@pytest.mark.parametrize("turned", [False, True], ids=["as listed", "turned round"])
@pytest.mark.parametrize("names", REFUSED, ids="-".join)
def test_a_pair_is_refused_before_training_with_both_names(
    names: tuple[str, str], turned: bool, tmp_path: Path
) -> None:
    pair, recorder = (part(names[0]), part(names[1])), Recorder()
    with pytest.raises(MisconfigurationException, match=REFUSED[names]) as refused:
        train(pair[::-1] if turned else pair, tmp_path, recorder)
    assert all(name in str(refused.value) for name in names)
    assert not recorder.path, "nothing was trained"


def test_no_pair_is_left_out() -> None:
    together = {(a.name, b.name) for a, b in RIGHT} | set(REFUSED)
    optimizers = [p for p in OURS if p.kind == "optimizer"]
    assert len(OURS) == 17
    assert len(PARTS) == 26
    of_ours, beside = len(OURS) * (len(OURS) - 1) // 2, len(OURS) * (len(PARTS) - len(OURS))
    assert len(together) == of_ours - len(optimizers) * (len(optimizers) - 1) // 2 + beside


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
