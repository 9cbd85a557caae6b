"""A callback's state in a checkpoint that is not what it saved: cut, changed by hand, or of another version.

The states are those of real fits. At every place of each of them a key is taken away, one is added, and the value is
replaced by something of another type and by NaN; each is refused with the callback's name and the place.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lr import LearningRateSchedule, Polynomial, __version__
from lightning_lr.saved_state import COUNT, SHARE, faults_in, keys, record_of, several
from tests.support.toy import fit
from tests.test_run_places import EACH, _normed_adamw

pytestmark = pytest.mark.filterwarnings("ignore")

OPEN = ("run", "heats", "held", "trials", "band", "tensors", "optimizers", "settings[", "shards")
"""Places below which anything may stand: text that is compared, pictures, optimizer states."""
MEASURED = ("pending[1]", "under_way", "gradients", "reference[", "limit", "memories", "squares")
"""What was measured may be NaN."""
MAY_BE_MISSING = (
    "settings", "run", "tuned_lr", "clock.counts", "clock.samples_counted", "clock.progress", "clock.place",
    "clock.update_made", "clock.update_seconds", "batch", "begin_samples", "measured", "micro_batch_size",
    "steps_by_hand", ".settings", ".warning", ".held", ".optimizers", ".shards", "compression.seed",
)  # fmt: skip
"""Of earlier versions' checkpoints."""


@functools.cache
def saved(name: str) -> tuple[Callback, dict[str, Any]]:
    """A callback that is new, and the state of one like it in the midst of a fit."""

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
            if trainer.global_step == 7 and not states:
                states.append(copy.deepcopy(member.state_dict()))

    states: list[dict[str, Any]] = []
    member = EACH[name]()[0]
    more = {"accumulate_grad_batches": 2} if name == "noise scale" else {}
    fit([member, Save()], module=_normed_adamw(), max_epochs=3, **more)
    (fresh,) = EACH[name]()
    return fresh, states[0]


@dataclass
class Harm:
    """A state with one fault."""

    place: str
    state: Any


def harms(state: dict[str, Any]) -> Iterator[Harm]:
    """Every one of the faults at every place of a state."""

    def put(way: list[Any], value: Any) -> dict[str, Any]:
        other = copy.deepcopy(state)
        inner: Any = other
        for key in way[:-1]:
            inner = inner[key]
        if value is del_:
            del inner[way[-1]]
        else:
            inner[way[-1]] = value
        return other

    del_ = object()

    def walk(value: Any, way: list[Any], place: str) -> Iterator[Harm]:
        if any(part in f"{place}[" if part.endswith("[") else part == place.split(".")[-1] for part in OPEN) and way:
            return
        if isinstance(value, dict):
            named = all(isinstance(key, str) for key in value) and place not in ("settings", "compression.allocation")
            for key, entry in value.items():
                inner = f"{place}.{key}" if place else str(key)
                late = any(inner == known or (known[0] == "." and inner.endswith(known)) for known in MAY_BE_MISSING)
                if named and not late and inner != "copies":
                    yield Harm(f"has no {inner}", put([*way, key], del_))
                yield from walk(entry, [*way, key], inner)
            if named and "copies" not in place:
                inner = f"{place}.more" if place else "more"
                yield Harm(f"has {inner}, which this version does not know", put([*way, "more"], 1))
        elif isinstance(value, list):
            for index, entry in enumerate(value):
                yield from walk(entry, [*way, index], f"{place}[{index}]")
        if way:
            yield Harm(f"has {place} {{1, 2}}", put(way, {1, 2}))
        if way and isinstance(value, float) and not any(part in place for part in MEASURED):
            yield Harm(f"has {place} nan", put(way, math.nan))

    yield from walk(state, [], "")


@pytest.mark.parametrize("name", EACH)
def test_every_place_of_a_state_is_looked_at_before_it_is_read(name: str) -> None:
    fresh, state = saved(name)
    caller = type(fresh).__name__
    fresh.load_state_dict(copy.deepcopy(state))
    tried = 0
    for harm in harms(state):
        (another,) = EACH[name]()
        with pytest.raises(MisconfigurationException) as refused:
            another.load_state_dict(harm.state)
        words = str(refused.value)
        assert words.startswith(f"{caller}: its state in the checkpoint {harm.place}"), harm.place
        assert words.endswith("resume from another, or train from its weights alone")
        tried += 1
    assert tried >= (3 if name == "ghosts" else 25)


@pytest.mark.parametrize("name", EACH)
@pytest.mark.parametrize("state", [{}, [], None, "state", 3.0], ids=repr)
def test_what_is_no_state_at_all_is_refused(name: str, state: Any) -> None:
    (fresh,) = EACH[name]()
    with pytest.raises(MisconfigurationException, match=f"^{type(fresh).__name__}: its state in the checkpoint"):
        fresh.load_state_dict(state)


@pytest.mark.parametrize("name", EACH)
def test_a_state_without_what_earlier_versions_did_not_save_is_read(name: str) -> None:
    fresh, state = saved(name)
    for key in [key for key in ("settings", "run", "tuned_lr") if key in state]:
        (fresh,) = EACH[name]()
        fresh.load_state_dict({other: value for other, value in state.items() if other != key})


def test_a_harmed_checkpoint_is_refused_before_training(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit([*EACH["search"](), save], max_epochs=2, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    checkpoint["callbacks"]["LearningRateSearch"]["search"]["rate"] = math.nan
    torch.save(checkpoint, tmp_path / "harmed.ckpt")
    with pytest.raises(MisconfigurationException, match=r"LearningRateSearch: .*has search\.rate nan, where a number"):
        fit(EACH["search"](), max_epochs=2, ckpt_path=str(tmp_path / "harmed.ckpt"))


@pytest.mark.parametrize("by", ["0.10.0", "99.1.0rc1"])
def test_a_state_of_a_newer_version_is_refused_by_the_versions(tmp_path: Path, by: str) -> None:
    """What this version does not know may be what the method goes on from, so that nothing is left out in silence."""
    save = ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1)
    fit([*EACH["search"](), save], max_epochs=2, enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "epoch=0.ckpt", weights_only=True)
    assert checkpoint["lightning_lr"]["version"] == __version__
    checkpoint["lightning_lr"]["version"] = by
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    fit(EACH["search"](), max_epochs=2, ckpt_path=str(tmp_path / "newer.ckpt"))  # it holds nothing that is new
    checkpoint["callbacks"]["LearningRateSearch"]["clock"]["tempo"] = 1
    torch.save(checkpoint, tmp_path / "newer.ckpt")
    with pytest.raises(MisconfigurationException) as refused:
        fit(EACH["search"](), max_epochs=2, ckpt_path=str(tmp_path / "newer.ckpt"))
    assert str(refused.value) == (
        "LearningRateSearch: its state in the checkpoint has clock.tempo, which this version does not know; it was "
        f"saved by lightning_lr {by}, and this is {__version__}: resume with that version or a later one, or train "
        "from its weights alone"
    )
    checkpoint["lightning_lr"]["version"] = "0.1.0"
    torch.save(checkpoint, tmp_path / "harmed.ckpt")
    with pytest.raises(MisconfigurationException, match="the checkpoint was changed after it was saved"):
        fit(EACH["search"](), max_epochs=2, ckpt_path=str(tmp_path / "harmed.ckpt"))


def test_a_run_that_writes_no_journal_signs_its_checkpoints_too(tmp_path: Path) -> None:
    fit([LearningRateSchedule(Polynomial()), ModelCheckpoint(tmp_path, filename="last")], enable_checkpointing=True)
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["lightning_lr"] == {"version": __version__}


def test_a_subclass_may_save_more() -> None:
    class Own(LearningRateSchedule):
        name = "own"

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "mine": 3}

    class Said(Own):
        name = "said"
        saves = {"mine": COUNT}  # noqa: RUF012

        def state_dict(self) -> dict[str, Any]:
            return {**super().state_dict(), "mine": 3}

    for kind in (Own, Said):
        kind(Polynomial()).load_state_dict(kind(Polynomial()).state_dict())
    Own(Polynomial()).load_state_dict({**Own(Polynomial()).state_dict(), "mine": "three"})
    with pytest.raises(MisconfigurationException, match=r"^Said: its state in the checkpoint has mine 'three', where"):
        Said(Polynomial()).load_state_dict({**Said(Polynomial()).state_dict(), "mine": "three"})
    with pytest.raises(MisconfigurationException, match=r"^Own: .*has no clock"):
        Own(Polynomial()).load_state_dict({"mine": 3})


def test_a_form_names_at_most_three_faults() -> None:
    found = faults_in({"a": [1, -1, -2, -3, -4]}, keys({"a": several(COUNT)}))
    assert found.count("where a number from 0") == 3
    assert found.endswith(", and more")
    assert faults_in({"a": []}, keys({"a": several(COUNT)})) == ""


def test_a_record_knows_its_fields() -> None:
    @dataclass
    class Record:
        at: float
        size: int
        why: str = ""

    form = record_of(Record)
    assert faults_in({"at": 0.5, "size": 3}, form) == ""
    assert faults_in({"at": "x", "size": 3.5, "why": 1}, form).count(", where") == 3
    assert "has no size" in faults_in({"at": 0.5}, form)


def test_a_share_may_be_above_one_by_a_rounding() -> None:
    """0.1 ten times is 1 - 1e-16 or 1 + 2e-16, by the order; what is really above 1 is a fault."""
    assert not list(SHARE.faults("share", 1.0000000000000002))
    assert list(SHARE.faults("share", 1.0 + 1e-9))
    assert list(SHARE.faults("share", -1e-16))
