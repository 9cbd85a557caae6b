"""ZeRO checkpoints that are not whole, or of one save: refused by name on every rank, and by the converters.

And checkpoints that are saved after `fit` has returned, and hold weights alone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lr.strategies import consolidate, to_universal
from lightning_lr.strategies.zero.shard_stamps import STAMP
from tests.support.processes import run_in_processes
from tests.support.toy import Toy, fit
from tests.support.zero_runs import Watch, needs_deepspeed, zero
from tests.test_zero_strategy import _adamw, _loader

pytestmark = needs_deepspeed

STAGES = (2, 3)
END = 4


def _run(stage: int, ckpt: Path | None = None, save: Path | None = None, epochs: int = END) -> Any:
    watch = Watch()
    callbacks: list[Callback] = [watch]
    arguments: dict[str, Any] = zero(stage)
    if save is not None:
        callbacks.append(ModelCheckpoint(save, filename="{epoch}", every_n_epochs=1, save_top_k=-1))
        arguments["enable_checkpointing"] = True
    module = Toy(_adamw)
    _, trainer = fit(callbacks, module=module, loader=_loader(4), max_epochs=epochs, ckpt_path=ckpt, **arguments)
    return module, trainer, watch.facts(trainer)


def _facts(*arguments: Any, **named: Any) -> Any:
    return _run(*arguments, **named)[2]


def _first() -> bool:
    return torch.distributed.get_rank() == 0


def _after(folder: Path, stage: int) -> Any:
    """Saves when fit has returned, goes on from that; and when weights were touched."""
    module, trainer, facts = _run(stage, epochs=2)
    after = folder / f"after-{stage}.ckpt"
    trainer.save_checkpoint(after)
    trainer.validate(module, _loader(4), verbose=False)
    trainer.save_checkpoint(folder / f"after-validate-{stage}.ckpt")
    told = ""
    if stage == 2:
        with torch.no_grad():
            module.head.weight.mul_(2)
        told = _error(lambda: trainer.save_checkpoint(folder / "touched.ckpt"))
    trainer.validate(module, _loader(4), ckpt_path=after, verbose=False)
    loaded = _error(lambda: trainer.save_checkpoint(folder / "touched.ckpt"))
    return {"told": told, "loaded": loaded, "facts": facts}


def _weights_only(folder: Path) -> str:
    _, trainer, _ = _run(2, epochs=1)
    path = folder / "weights.ckpt"
    trainer.save_checkpoint(path, weights_only=True)
    if _first():
        consolidate(path, folder / "weights.plain")
    return _error(lambda: _run(2, ckpt=path))


def _error(case: Callable[[], Any]) -> str:
    try:
        case()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing was raised"


def _half(file: Path) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])


def _exchange(one: Path, other: Path) -> None:
    a, b = one.read_bytes(), other.read_bytes()
    one.write_bytes(b)
    other.write_bytes(a)


def _damage(folder: Path, stage: int, what: str) -> tuple[str, str, str]:
    """Resume, `to_universal` and `consolidate` of a damaged copy."""
    source, copy = folder / f"runs-{stage}" / "epoch=1.ckpt", folder / f"{what} {stage}.ckpt"
    if _first():
        shutil.copytree(source, copy)
        inside = copy / "checkpoint"
        shards = [next(inside.glob(f"*pp_rank_{rank}_mp_rank_00_optim_states.pt")) for rank in (0, 1)]
        models = sorted(inside.glob("*model_states.pt"))
        if what == "another step":
            shutil.copy(folder / f"runs-{stage}" / "epoch=2.ckpt" / "checkpoint" / shards[1].name, shards[1])
        elif what == "another run":
            shutil.copy(folder / f"twin-{stage}" / "epoch=1.ckpt" / "checkpoint" / shards[1].name, shards[1])
        elif what == "exchanged":
            _exchange(*shards)
        elif what == "half a shard":
            _half(shards[1])
        elif what == "half a model":
            _half(models[-1])
        elif what == "no shard":
            shards[1].unlink()
        elif what == "no stamps":
            for file in [*shards, *models]:
                states = torch.load(file, weights_only=False)
                del states[STAMP]
                torch.save(states, file)
    torch.distributed.barrier()
    resumed = _error(partial(_run, stage, ckpt=copy))
    converted = "", ""
    if _first():
        converted = (
            _error(lambda: to_universal(copy, folder / f"{what} {stage}.universal")),
            _error(lambda: consolidate(copy, folder / f"{what} {stage}.plain")),
        )
    return resumed, *converted


DAMAGES = {
    "another step": "belong to different saves (",
    "another run": "belong to different saves (",
    "exchanged": "rank 1 wrote it; give every file its own name back",
    "half a shard": "rank_1_mp_rank_00_optim_states.pt",
    "half a model": "model_states.pt",
    "no shard": "needs exactly one: rank 1's share of the optimizer's state",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: Any) -> Path:
    return Path(tmp_path_factory.mktemp("damage"))


@pytest.fixture(scope="module")
def two(folder: Path) -> Any:
    cases: list[tuple[str, Any]] = [("weights only", partial(_weights_only, folder))]
    for stage in STAGES:
        cases += [
            (f"whole-{stage}", partial(_facts, stage, save=folder / f"runs-{stage}")),
            (f"twin-{stage}", partial(_facts, stage, save=folder / f"twin-{stage}", epochs=2)),
            (f"after-{stage}", partial(_after, folder, stage)),
            (f"resumed-{stage}", partial(_facts, stage, ckpt=folder / f"after-{stage}.ckpt")),
            (f"validated-{stage}", partial(_facts, stage, ckpt=folder / f"after-validate-{stage}.ckpt")),
        ]
        cases += [(f"{what}-{stage}", partial(_damage, folder, stage, what)) for what in [*DAMAGES, "no stamps"]]
    return run_in_processes(cases, folder / "two")


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("what", DAMAGES)
def test_a_damaged_or_mixed_checkpoint_is_refused_by_name(two: Any, folder: Path, what: str, stage: int) -> None:
    errors = [*two[0][f"{what}-{stage}"], two[1][f"{what}-{stage}"][0]]
    assert len(errors) == 4
    for error in errors:
        assert error.startswith("MisconfigurationException: "), error
        assert DAMAGES[what] in error, error
        assert what.startswith("another") is ("update 10, rank 0 of 2" in error), error
    assert not (folder / f"{what} {stage}.universal").exists()
    assert not (folder / f"{what} {stage}.plain").exists()


@pytest.mark.parametrize("stage", STAGES)
def test_a_checkpoint_without_stamps_loads_as_before(two: Any, stage: int) -> None:
    assert two[0][f"no stamps-{stage}"] == ("nothing was raised",) * 3


@pytest.mark.parametrize("stage", STAGES)
def test_saving_after_fit_is_saving_at_its_end(two: Any, stage: int) -> None:
    want = two[0][f"whole-{stage}"]
    for name in ("resumed", "validated"):
        got = two[0][f"{name}-{stage}"]
        assert isinstance(got, dict), got
        assert got["updates"] == want["updates"]
        assert torch.equal(got["weights"], want["weights"])


def test_what_cannot_be_saved_after_fit_says_so(two: Any) -> None:
    assert "weights were changed after fit had returned" in two[0]["after-2"]["told"]
    assert "weights were loaded since" in two[0]["after-2"]["loaded"]


def test_a_checkpoint_of_weights_alone_says_so(two: Any, folder: Path) -> None:
    assert "was saved with weights alone (save_weights_only=True)" in two[0]["weights only"]
    plain = torch.load(folder / "weights.plain", weights_only=False)
    assert plain["state_dict"].keys() == Toy().state_dict().keys()
    assert "optimizer_states" not in plain


def test_a_parameters_name_stays_inside_the_folder(two: Any, folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "hostile.ckpt"
    shutil.copytree(folder / "runs-2" / "epoch=1.ckpt", copy)
    for file in (copy / "checkpoint").glob("*.pt"):
        states = torch.load(file, weights_only=False)
        shards = states.get("optimizer_state_dict", {})
        for key, held in (("param_shapes", states), ("param_slice_mappings", shards)):
            if key in held:
                held[key] = [type(d)((("../../../ESCAPED" if k == "body.bias" else k), v) for k, v in d.items())
                             for d in held[key]]  # fmt: skip
        torch.save(states, file)
    with pytest.raises(MisconfigurationException, match=r"the parameter '\.\./\.\./\.\./ESCAPED' would lie outside"):
        to_universal(copy, tmp_path / "deep" / "er" / "out")
    assert not list(tmp_path.rglob("ESCAPED*"))
    assert not (tmp_path / "deep" / "er" / "out").exists()


def test_a_universal_folder_of_two_saves_or_exchanged_parameters_is_refused(
    two: Any, folder: Path, tmp_path: Path
) -> None:
    for epoch in (1, 2):
        to_universal(folder / "runs-2" / f"epoch={epoch}.ckpt", tmp_path / str(epoch))
    zero_1, zero_2 = (tmp_path / str(epoch) / "checkpoint" / "zero" for epoch in (1, 2))
    kept = tmp_path / "kept"
    shutil.copytree(zero_1, kept)
    shutil.copy(zero_2 / "body.weight" / "exp_avg.pt", zero_1 / "body.weight")
    with pytest.raises(MisconfigurationException, match=r"exp_avg.pt is from update 15 .*the rest of .*update 10"):
        consolidate(tmp_path / "1", tmp_path / "plain")
    shutil.rmtree(zero_1)
    shutil.copytree(kept, zero_1)
    (zero_1 / "body.weight" / "exp_avg_sq.pt").unlink()
    with pytest.raises(MisconfigurationException, match=r"lacks exp_avg_sq\.pt, state of the parameter body.weight"):
        consolidate(tmp_path / "1", tmp_path / "plain")
    shutil.rmtree(zero_1)
    shutil.copytree(kept, zero_1)
    _half(zero_1 / "body.bias" / "fp32.pt")
    with pytest.raises(MisconfigurationException, match=r"body\.bias/fp32\.pt .*cannot be read"):
        consolidate(tmp_path / "1", tmp_path / "plain")
    assert not list(tmp_path.glob("plain*"))


def test_consolidate_replaces_a_file_only_by_a_whole_one(
    two: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "plain.ckpt"
    out.write_text("the one before")

    def full(*arguments: Any) -> None:
        Path(arguments[1]).write_text("half")
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        consolidate(folder / "runs-2" / "epoch=1.ckpt", out)
    assert out.read_text() == "the one before"
    assert os.listdir(tmp_path) == ["plain.ckpt"]
    with pytest.raises(MisconfigurationException, match="is a folder; give the name of a file"):
        consolidate(folder / "runs-2" / "epoch=1.ckpt", tmp_path)


def test_a_conversion_that_was_killed_can_be_repeated(
    two: Any, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save, calls = torch.save, []

    def dies(*arguments: Any) -> None:
        calls.append(1)
        if len(calls) == 5:
            raise KeyboardInterrupt
        save(*arguments)

    monkeypatch.setattr(torch, "save", dies)
    with pytest.raises(KeyboardInterrupt):
        to_universal(folder / "runs-2" / "epoch=1.ckpt", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    monkeypatch.setattr(torch, "save", save)
    to_universal(folder / "runs-2" / "epoch=1.ckpt", tmp_path / "out")
    assert os.listdir(tmp_path) == ["out"]
