"""Converted ZeRO checkpoints trained on: every optimizer, kind of parameter and stage against an uninterrupted DDP run.

A comparison of values in a file does not see two parameters that share a count of steps; twenty updates from it do. The
model that resumes is made from another seed, so that whatever the file leaves out shows in the weights.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lr.strategies import consolidate, to_universal
from tests.support.processes import run_in_processes
from tests.support.rounding import rounding_after
from tests.support.toy import fit
from tests.support.two_processes import ddp
from tests.support.zero_models import MODELS, OPTIMIZERS
from tests.support.zero_runs import Watch, needs_deepspeed, zero
from tests.test_zero_strategy import STAGES, _loader

pytestmark = needs_deepspeed

SAVED, END = 2, 6
"""Epochs, of 5 updates each: 10 before the checkpoint, 20 from it."""
OTHER_SEED = 11
Case = tuple[str, str, int]
CASES: list[Case] = list(product(MODELS, OPTIMIZERS, STAGES))


def _soon(case: Case) -> bool:
    """Every kind of parameter under one stage; the other stages and optimizers share what these show, and are slow."""
    model, optimizer, stage = case
    return optimizer == "adamw" and stage == STAGES[list(MODELS).index(model) % len(STAGES)]


def _name(model: str, optimizer: str, stage: int) -> str:
    return f"{model}-{optimizer}-{stage}"


def _run(
    model: str,
    optimizer: str,
    stage: int | None,
    epochs: int,
    save: Path | None = None,
    ckpt: Path | None = None,
    world: int = 2,
) -> dict[str, Any]:
    """A run with the same global batches for any number of ranks; what the module held at its end."""
    arguments: dict[str, Any] = {} if world == 1 and stage is None else ddp() if stage is None else zero(stage, world)
    watch, callbacks = Watch(), []
    if save is not None:
        arguments["enable_checkpointing"] = True
        callbacks.append(ModelCheckpoint(save.parent, filename=save.stem))
    module = MODELS[model](OPTIMIZERS[optimizer], seed=3 if ckpt is None else OTHER_SEED)
    loader = _loader(8 // world, ranks=world)
    _, trainer = fit([*callbacks, watch], module=module, loader=loader, ckpt_path=ckpt, max_epochs=epochs, **arguments)
    return {**watch.facts(trainer), "large": int(module.large), "scale": float(module.scale), "told": module.told.word}


def _saved(folder: Path, name: str) -> Path:
    return folder / f"{name}.ckpt"


def _save_and_convert(folder: Path, model: str, optimizer: str, stage: int) -> None:
    name = _name(model, optimizer, stage)
    _run(model, optimizer, stage, SAVED, save=_saved(folder, name))
    if torch.distributed.get_rank() == 0:
        consolidate(_saved(folder, name), folder / f"{name}.plain")
        to_universal(_saved(folder, name), folder / f"{name}.universal")
        consolidate(folder / f"{name}.universal", folder / f"{name}.plain2")


def _other(stage: int) -> int:
    return stage % 3 + 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("conversion"))


def _in_two(folder: Path, chosen: Iterable[Case]) -> list[tuple[str, Any]]:
    cases: dict[str, Any] = {}
    for *pair, stage in chosen:
        cases["-".join(pair)] = partial(_run, *pair, None, END)
        name = _name(*pair, stage)
        cases[f"save-{name}"] = partial(_save_and_convert, folder, *pair, stage)
        ckpt = folder / f"{name}.universal"
        cases[f"universal-{name}"] = partial(_run, *pair, _other(stage), END, ckpt=ckpt)
    return list(cases.items())


def _in_one(folder: Path, chosen: Iterable[Case]) -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for *pair, stage in chosen:
        name = _name(*pair, stage)
        cases.append((f"plain-{name}", partial(_run, *pair, None, END, ckpt=folder / f"{name}.plain", world=1)))
        cases.append(
            (f"universal-{name}", partial(_run, *pair, stage, END, ckpt=folder / f"{name}.universal", world=1))
        )
    return cases


@pytest.fixture(scope="module")
def ran(folder: Path) -> Callable[[bool], tuple[Any, Any]]:
    """What two processes and one did, of the cases that are run every time or of the others."""

    @cache
    def trained(soon: bool) -> tuple[Any, Any]:
        chosen, below = [case for case in CASES if _soon(case) == soon], folder / str(soon)
        two = run_in_processes(_in_two(folder, chosen), below / "two")[0]
        return two, run_in_processes(_in_one(folder, chosen), below / "one", world=1)[0]

    return trained


def _equal(got: Any, want: Any) -> None:
    assert isinstance(want, dict), want
    assert isinstance(got, dict), got
    assert got["updates"] == want["updates"] == 5 * END
    # sums over one device or two; a shared count of steps changes each of Adam's steps of 0.01 by 6 to 12 %
    assert float((got["weights"] - want["weights"]).abs().max()) < rounding_after(5 * END)
    assert (got["large"], got["scale"], got["told"]) == (want["large"], want["scale"], want["told"])


def _storages(file: Path) -> None:
    """Every parameter has states of its own, and both ways to the plain file give the same one."""
    plain, again = (torch.load(file.with_suffix(s), weights_only=False) for s in (".plain", ".plain2"))
    states = list(plain["optimizer_states"][0]["state"].values())
    tensors = [value for state in states for value in state.values() if isinstance(value, torch.Tensor)]
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)
    (one,), (other,) = plain["optimizer_states"], again["optimizer_states"]
    torch.testing.assert_close(one["state"], other["state"], rtol=0, atol=0)
    assert one["param_groups"] == other["param_groups"]
    assert plain["state_dict"].keys() == again["state_dict"].keys()


@pytest.mark.parametrize(
    "case", [pytest.param(c, id=_name(*c), marks=() if _soon(c) else pytest.mark.slow) for c in CASES]
)
def test_training_goes_on_as_under_ddp(ran: Callable[[bool], tuple[Any, Any]], folder: Path, case: Case) -> None:
    two, one = ran(_soon(case))
    name, want = _name(*case), two[f"{case[0]}-{case[1]}"]
    assert two[f"save-{name}"] is None, two[f"save-{name}"]
    _equal(one[f"plain-{name}"], want)
    _equal(one[f"universal-{name}"], want)
    _equal(two[f"universal-{name}"], want)
    _storages(folder / f"{name}.ckpt")
