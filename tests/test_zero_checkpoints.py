"""Checkpoints under `ZeROStrategy`: exact resume, other stages and numbers of processes, and a plain Trainer."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lr import Cosine, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.strategies import consolidate, to_universal
from tests.support.batches import Batches
from tests.support.rounding import rounding_after
from tests.support.toy import Toy, fit, two_groups, weights
from tests.support.zero_runs import Watch, needs_deepspeed, zero
from tests.test_zero_strategy import EPOCHS, STAGES, _adamw, _loader

pytestmark = needs_deepspeed

CONFIGURE: dict[str, Callable[..., Any]] = {"layerwise": _adamw, "momentum": two_groups}
BASE = {"layerwise": [0.01] * 4, "momentum": [0.02, 0.1]}
"""Learning rate of each group, before the schedule."""
SAVED, DIES = 10, 13  # updates; an epoch has 5
Case = tuple[str, int]
CASES: list[Case] = list(product(CONFIGURE, STAGES))


def _soon(case: Case) -> bool:
    """All stages with one optimizer, and the other optimizer in one; the rest is slow."""
    return case[0] == "layerwise" or case[1] == 2


def over_cases() -> pytest.MarkDecorator:
    marked = [pytest.param(c, id=f"{c[0]}-{c[1]}", marks=() if _soon(c) else pytest.mark.slow) for c in CASES]
    return pytest.mark.parametrize("case", marked)


class Dies(Callback):
    def on_train_batch_start(self, trainer: Trainer, *args: Any) -> None:
        if trainer.global_step == DIES:
            raise RuntimeError("killed")


def _callbacks(name: str) -> list[Callback]:
    schedule = LearningRateSchedule(Cosine(warmup=0.1))
    return [LayerwiseLRDecay(0.5), schedule] if name == "layerwise" else [schedule]


def _run(
    stage: int | None,
    name: str,
    world: int,
    ckpt: str | None = None,
    save: Path | None = None,
    dies: bool = False,
    configure: Any = None,
    **arguments: Any,
) -> Any:
    watch = Watch()
    callbacks: list[Callback] = [*_callbacks(name), watch, *([Dies()] if dies else [])]
    if save is not None:
        callbacks.append(ModelCheckpoint(save, filename="{step}", every_n_epochs=2, save_top_k=-1))
        arguments["enable_checkpointing"] = True
    strategy = {} if stage is None else zero(stage, devices=world)
    loader = _loader(8 // world, ranks=world)
    module = Toy(configure or CONFIGURE[name])
    try:
        _, trainer = fit(
            callbacks, module=module, loader=loader, ckpt_path=ckpt, max_epochs=EPOCHS, **{**strategy, **arguments}
        )
    except RuntimeError as error:
        if "killed" not in str(error):
            raise
        return "killed"
    return {**watch.facts(trainer), "scheduled": [g["lr"] for g in trainer.optimizers[0].param_groups]}


def _path(folder: Path, stage: int, name: str, world: int) -> Path:
    return folder / f"{name}-{stage}-{world}"


def _ckpt(folder: Path, stage: int, name: str, world: int) -> str:
    return str(_path(folder, stage, name, world) / f"step={SAVED}.ckpt")


def _universal(folder: Path, stage: int, name: str, world: int) -> str:
    return str(_path(folder, stage, name, world) / "universal")


def _convert(folder: Path, stage: int, name: str, world: int) -> None:
    if torch.distributed.get_rank() == 0:
        to_universal(_ckpt(folder, stage, name, world), _universal(folder, stage, name, world))


def _raises(case: Callable[[], Any]) -> str:
    try:
        case()
    except Exception as error:
        return str(error)
    return "nothing was raised"


def _three_groups(module: Any) -> Any:
    body = list(module.body.parameters())
    groups = [{"params": body[:1]}, {"params": body[1:]}, {"params": list(module.head.parameters())}]
    return torch.optim.SGD(groups, lr=0.02, momentum=0.9)


def _validated(stage: int, ckpt: str, world: int) -> dict[str, Any]:
    module = Toy()
    trainer = Trainer(**zero(stage, devices=world), logger=False, enable_progress_bar=False, enable_checkpointing=False)
    return dict(trainer.validate(module, _loader(40 // world, ranks=world), ckpt_path=ckpt, verbose=False)[0])


def _saving(folder: Path, world: int, soon: bool) -> list[tuple[str, Any]]:
    cases: list[tuple[str, Any]] = []
    for name, stage in CASES:
        at = (folder, stage, name, world)
        if _soon((name, stage)) == soon:
            cases += [
                (f"whole-{name}-{stage}", partial(_run, stage, name, world)),
                (f"dies-{name}-{stage}", partial(_run, stage, name, world, save=_path(*at), dies=True)),
                (f"resumed-{name}-{stage}", partial(_run, stage, name, world, ckpt=_ckpt(*at))),
                (f"convert-{name}-{stage}", partial(_convert, *at)),
            ]
    return cases


def _resuming(folder: Path, world: int, saved_by: int, soon: bool) -> list[tuple[str, Any]]:
    """From the other number of processes: in the same stage, and the one after it."""
    return [
        (
            f"universal-{name}-{stage}-{other}",
            partial(_run, other, name, world, ckpt=_universal(folder, stage, name, saved_by)),
        )
        for name, stage in CASES
        for other in (stage, stage % 3 + 1)
        if _soon((name, stage)) == soon
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("checkpoints"))


@pytest.fixture(scope="module")
def two(folder: Path) -> Batches:
    """Two processes write and resume; mismatches are refused."""
    _run(None, "momentum", 1, save=folder / "plain")
    saving = _saving(folder, 2, soon=True)
    ckpt = _ckpt(folder, 2, "momentum", 2)
    refused = [
        ("stage", partial(_raises, partial(_run, 3, "momentum", 2, ckpt=ckpt))),
        ("groups", partial(_raises, partial(_run, 2, "momentum", 2, ckpt=ckpt, configure=_three_groups))),
        ("plain file", partial(_raises, partial(_run, 2, "momentum", 2, ckpt=str(folder / "plain" / "step=10.ckpt")))),
        ("no-folder", partial(_raises, partial(_run, 2, "momentum", 2, ckpt=str(folder / "nothing.ckpt")))),
    ]
    clipped = ("clipped", partial(_run, 2, "momentum", 2, ckpt=ckpt, gradient_clip_val=1e-9))
    validated = [
        (f"validated-{stage}", partial(_validated, stage, _ckpt(folder, stage, "layerwise", 2), 2)) for stage in STAGES
    ]
    validated.append(("validated-universal", partial(_validated, 3, _universal(folder, 1, "layerwise", 2), 2)))
    soon = [*saving, *refused, clipped, *validated]
    ran = Batches(folder / "two", soon, _saving(folder, 2, soon=False))
    assert ran["stage"], "the files are there from now on"
    return ran


@pytest.fixture(scope="module")
def one(folder: Path, two: Batches) -> Batches:
    """One process goes on from two, which are asked first, and writes for two."""
    world = ("world", partial(_raises, partial(_run, 2, "momentum", 1, ckpt=_ckpt(folder, 2, "momentum", 2))))
    soon, slow = ([*_resuming(folder, 1, 2, soon), *_saving(folder, 1, soon)] for soon in (True, False))
    return Batches(folder / "one", [*soon, world], slow, world=1)


@pytest.fixture(scope="module")
def two_again(folder: Path, one: Batches) -> Batches:
    """Two processes go on from one, which is asked first."""
    soon, slow = (_resuming(folder, 2, 1, soon) for soon in (True, False))
    return Batches(folder / "again", soon, slow)


def _same(got: Any, whole: Any, exact: bool) -> None:
    assert isinstance(got, dict), got
    assert isinstance(whole, dict), whole
    assert got["updates"] == whole["updates"] == 20
    assert got["lrs"] == whole["lrs"][SAVED:], "every group has its own learning rate, and the schedule goes on"
    difference = float((got["weights"] - whole["weights"]).abs().max())
    assert difference == 0 if exact else difference < rounding_after(20)


@over_cases()
def test_a_killed_run_resumes_to_the_bit(two: Batches, one: Batches, case: Case) -> None:
    of = f"{case[0]}-{case[1]}"
    for ran in (two, one):
        assert ran[f"dies-{of}"][0] == "killed"
        _same(ran[f"resumed-{of}"][0], ran[f"whole-{of}"][0], exact=True)


@over_cases()
@pytest.mark.parametrize("next_stage", [0, 1])
def test_another_number_of_processes_goes_on(
    two: Batches, one: Batches, two_again: Batches, case: Case, next_stage: int
) -> None:
    name, stage = case
    other = stage % 3 + 1 if next_stage else stage
    whole = two[f"whole-{name}-{stage}"][0]
    _same(one[f"universal-{name}-{stage}-{other}"][0], whole, exact=False)
    _same(two_again[f"universal-{name}-{stage}-{other}"][0], whole, exact=False)
    assert len(set(whole["lrs"][-1])) == 2, "the groups have different learning rates, else this shows nothing"


@over_cases()
def test_a_plain_trainer_resumes_from_the_consolidated_file(
    two: Batches, folder: Path, tmp_path: Path, case: Case
) -> None:
    name, stage = case
    whole = two[f"whole-{name}-{stage}"][0]
    consolidate(_ckpt(folder, stage, name, 2), tmp_path / "plain.ckpt")
    consolidate(_universal(folder, stage, name, 2), tmp_path / "same.ckpt")
    plain, same = (torch.load(tmp_path / f, weights_only=False) for f in ("plain.ckpt", "same.ckpt"))
    assert plain["state_dict"].keys() == Toy().state_dict().keys()
    for key, value in plain["state_dict"].items():
        assert value.dtype == torch.float32
        assert torch.equal(value, same["state_dict"][key])
    got = _run(None, name, 1, ckpt=str(tmp_path / "plain.ckpt"))
    _same(got, whole, exact=False)


@over_cases()
def test_the_checkpoint_holds_the_scheduled_lr(two: Batches, folder: Path, case: Case) -> None:
    name, stage = case
    assert two[f"whole-{name}-{stage}"]
    base = BASE[name]
    file = next(Path(_ckpt(folder, stage, name, 2), "checkpoint").glob("*pp_rank_0_mp_rank_00_optim_states.pt"))
    saved = torch.load(file, weights_only=False)["optimizer_state_dict"]
    groups = (saved.get("base_optimizer_state") or saved.get("optimizer_state_dict"))["param_groups"]
    assert [group["lr"] for group in groups] == base


def test_the_universal_folder_is_deepspeeds(two: Batches, folder: Path, tmp_path: Path) -> None:
    """DeepSpeed's own converter, which knows Adam, writes the same tensors."""
    from argparse import Namespace

    from deepspeed.checkpoint.ds_to_universal import main

    for stage in STAGES:
        theirs = tmp_path / str(stage) / "checkpoint"
        source = str(Path(_ckpt(folder, stage, "layerwise", 2), "checkpoint"))
        main(Namespace(input_folder=source, output_folder=str(theirs), num_extract_workers=1, num_merge_workers=1,
                       keep_temp_folder=False, strict=True, inject_missing_state=True))  # fmt: skip
        ours = Path(_universal(folder, stage, "layerwise", 2), "checkpoint")
        files = sorted(file.relative_to(theirs) for file in (theirs / "zero").rglob("exp_avg*.pt"))
        assert len(files) == 8
        for file in [*files, *(f.with_name("fp32.pt") for f in files)]:
            a = torch.load(ours / file, weights_only=False)["param"]
            b = torch.load(theirs / file, weights_only=False)
            assert torch.equal(a, (b["param"] if isinstance(b, dict) else b).view(a.shape)), file


def test_mismatches_are_clear_errors(two: Batches, one: Batches) -> None:
    got = two["stage"][0]
    assert "was written under ZeRO stage 2 by 2 processes, and this run is ZeRO stage 3 by 2 processes" in got
    assert "to_universal(" in got
    assert (
        "was written under ZeRO stage 2 by 2 processes, and this run is ZeRO stage 2 by 1 process;" in one["world"][0]
    )
    assert "has 2 parameter groups of 2 + 2 parameters, this run's has 3 of 1 + 1 + 2" in two["groups"][0]
    assert "nothing.ckpt" in two["no-folder"][0]


def test_a_folder_and_a_file_are_not_taken_for_each_other(two: Batches, folder: Path) -> None:
    assert "step=10.ckpt, which is a file" in two["plain file"][0]
    with pytest.raises(Exception, match="consolidate"):
        _run(None, "momentum", 1, ckpt=_ckpt(folder, 2, "momentum", 2))


def test_nothing_but_whole_checkpoints_is_left(two: Batches, folder: Path) -> None:
    names = [path.name for path in folder.rglob("*") if path.is_dir()]
    assert [name for name in names if name.endswith((".partial", ".removed", ".previous.ckpt"))] == []
    assert f"step={SAVED}.ckpt" in names


def test_clipping_is_that_of_the_resumed_run(two: Batches) -> None:
    got, whole = two["clipped"][0], two["whole-momentum-2"][0]
    assert isinstance(got, dict), got
    assert (got["weights"] - whole["weights"]).abs().max() > 1e-4


def test_weights_are_validated_without_an_optimizer(two: Batches) -> None:
    losses = {name: two[f"validated-{name}"][0] for name in (*STAGES, "universal")}
    assert all(isinstance(loss, dict) for loss in losses.values()), losses
    values = [loss["val_loss"] for loss in losses.values()]
    assert values == pytest.approx([values[0]] * 4, abs=rounding_after(SAVED))


def test_consolidate_and_to_universal_refuse_what_they_cannot_do(two: Batches, folder: Path, tmp_path: Path) -> None:
    with pytest.raises(MisconfigurationException, match="exists already"):
        to_universal(_ckpt(folder, 1, "layerwise", 2), tmp_path)
    with pytest.raises(MisconfigurationException, match="universal checkpoint already"):
        to_universal(_universal(folder, 1, "layerwise", 2), tmp_path / "out")
    plain, _ = fit([], max_epochs=1)
    torch.save({"state_dict": plain.state_dict()}, tmp_path / "file.ckpt")
    with pytest.raises(MisconfigurationException, match="is a file without DeepSpeed's"):
        consolidate(tmp_path / "file.ckpt", tmp_path / "out")
    assert weights(plain).isfinite().all()
