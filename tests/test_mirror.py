"""``pytorch_lightning``, the package beside ``lightning.pytorch``: what its Trainer and its classes are told."""

from __future__ import annotations

import importlib
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning
import lightning.pytorch
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch.utils.data import DataLoader

import lightning_lr
from lightning_lr import (
    CheckpointedDDPStrategy,
    CheckpointedStrategy,
    Cosine,
    GhostBatchNorm,
    LearningRateSchedule,
)
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.cli import main
from tests.support.toy import Toy, data, fit

MUTE = tuple(int(part) for part in lightning.__version__.split(".")[:2]) < (2, 6)  # of the mirror, too, by the pins
"""Whether a Trainer of the mirror refuses a callback of ours before its setup is called."""
OURS = "lightning.pytorch"
TO_DO = "write `import lightning.pytorch as pl` in place of `import pytorch_lightning as pl`"


@pytest.fixture(autouse=True, scope="module")
def _forgotten_afterwards() -> Iterator[None]:
    """Where Lightning is old, a callback that is made while the mirror is imported warns of it."""
    yield
    sys.modules.pop("pytorch_lightning", None)


def mirror() -> Any:
    """``pytorch_lightning``; Lightning itself asks for it, so that it is missing only where somebody took it away."""
    return pytest.importorskip("pytorch_lightning")


def trainer(of: str, *callbacks: Any, **settings: Any) -> Any:
    package = importlib.import_module(of)
    return package.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        **settings,
    )


def module(of: str) -> Any:
    class Module(importlib.import_module(of).LightningModule):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(torch.nn.Linear(6, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss: torch.Tensor = self.net(batch[0]).square().mean()
            return loss

        def configure_optimizers(self) -> Any:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    return Module()


def every_callback() -> list[type[lightning.pytorch.Callback]]:
    public = [getattr(lightning_lr, name) for name in lightning_lr.__all__]
    return [cls for cls in public if isinstance(cls, type) and issubclass(cls, lightning.pytorch.Callback)]


def without_arguments(cls: type[lightning.pytorch.Callback]) -> Any:
    if cls.__name__ == "LearningRateSchedule":
        return LearningRateSchedule(Cosine())
    return cls(lightning_lr.StepRamp([1])) if cls.__name__ == "BatchSizeRamp" else cls()


@pytest.mark.parametrize("cls", every_callback(), ids=lambda cls: cls.__name__)
@pytest.mark.parametrize("stage", ["fit", "validate"])
def test_every_callback_refuses_a_trainer_of_the_mirror(cls: type[lightning.pytorch.Callback], stage: str) -> None:
    callback = without_arguments(cls)
    given = type("Trainer", (), {"__module__": "pytorch_lightning.trainer.trainer", "callbacks": [callback]})
    of_a_user = type("MyTrainer", (given,), {"__module__": "project.training"})
    for made in (given(), of_a_user()):
        with pytest.raises(MisconfigurationException) as refused:
            callback.setup(made, Toy(), stage)
        assert str(refused.value).startswith(f"{cls.__name__}: got a pytorch_lightning.Trainer; allowed is a {OURS}.Tr")
        assert TO_DO in str(refused.value)


@pytest.mark.skipif(MUTE, reason="before Lightning 2.6 the mirror's Trainer refuses in its constructor")
@pytest.mark.parametrize("make", [lambda: LearningRateSchedule(Cosine()), lambda: GhostBatchNorm(4)])
def test_a_trainer_of_the_mirror_is_refused_by_name_before_training(make: Callable[[], Any]) -> None:
    mirror()
    model = module("pytorch_lightning")
    before = [weight.detach().clone() for weight in model.parameters()]
    with pytest.raises(MisconfigurationException, match=r"got a pytorch_lightning\.Trainer; allowed is"):
        trainer("pytorch_lightning", make()).fit(model, DataLoader(data(), batch_size=8))
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


@pytest.mark.skipif(not MUTE, reason="from Lightning 2.6 on our setup is reached, which refuses")
@pytest.mark.parametrize("make", [lambda: LearningRateSchedule(Cosine()), lambda: GhostBatchNorm(4)])
def test_where_the_mirror_refuses_without_a_reason_it_was_said_ahead(make: Callable[[], Any]) -> None:
    mirror()
    with pytest.warns(UserWarning, match=r"will only report 'Expected a parent'; write `import"):
        callback = make()
    with pytest.raises(ValueError, match="Expected a parent"):
        trainer("pytorch_lightning", callback)


@pytest.mark.parametrize(("version", "said"), [("2.5.0", 1), ("2.5.6", 1), ("2.6.0", 0), ("2.10.0rc1", 0)])
def test_it_is_said_ahead_by_the_version_of_the_mirror(
    version: str, said: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_lightning", SimpleNamespace(__version__=version))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        GhostBatchNorm(4)
    assert len([warning for warning in caught if "Expected a parent" in str(warning.message)]) == said


@pytest.mark.parametrize("make", [CheckpointedStrategy, CheckpointedDDPStrategy])
def test_a_strategy_that_the_mirror_refuses_says_what_it_is_for(make: Callable[[], Any]) -> None:
    mirror()
    with pytest.raises(ValueError, match=rf"{make.__name__}: for a lightning\.pytorch\.Trainer, import lightning"):  # type: ignore[attr-defined]
        trainer("pytorch_lightning", strategy=make())


@pytest.mark.parametrize("name", ["checkpointed", "zero_2"])
def test_names_of_our_strategies_are_unknown_to_the_mirror(name: str) -> None:
    mirror()
    with pytest.raises(ValueError, match=rf"strategy='{name}'.* an instance of `pytorch_lightning\.strategies"):
        trainer("pytorch_lightning", strategy=name)


@pytest.mark.parametrize(("of", "given"), [(OURS, "pytorch_lightning"), ("pytorch_lightning", OURS)])
def test_lightning_refuses_a_module_of_the_other_package(of: str, given: str) -> None:
    mirror()
    with pytest.raises(TypeError, match="must be a `LightningModule`"):
        trainer(of).fit(module(given), DataLoader(data(), batch_size=8))


@pytest.mark.parametrize("ours", [LearningRateSchedule, GhostBatchNorm], ids=lambda cls: cls.__name__)
def test_a_callback_of_the_mirror_beside_ours_is_refused(ours: type[lightning.pytorch.Callback]) -> None:
    """As an average of weights it would write the learning rate, and nobody would know it by its class."""
    callbacks = mirror().callbacks
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        callback = without_arguments(ours)
    for theirs in (callbacks.StochasticWeightAveraging(0.01), callbacks.ModelCheckpoint()):
        made = SimpleNamespace(callbacks=[callback, theirs])
        says = rf"{ours.__name__}: got pytorch_lightning\.callbacks\.{type(theirs).__name__} with it; allowed"
        with pytest.raises(MisconfigurationException, match=says):
            callback.setup(made, Toy(), "fit")  # type: ignore[arg-type]


def test_a_users_callback_that_inherits_from_the_mirrors_callback_may_stay() -> None:
    class Mine(mirror().Callback):  # type: ignore[misc]
        """A project that imports one package here and the other there."""

    callback = without_arguments(LearningRateSchedule)
    callback.setup(SimpleNamespace(callbacks=[callback, Mine()]), Toy(), "fit")  # type: ignore[arg-type]


def test_the_trainer_that_is_allowed_still_is() -> None:
    callback = LearningRateSchedule(Cosine())
    assert isinstance(callback, MethodCallback)
    fit([callback, GhostBatchNorm(4)], module=module(OURS))


@pytest.mark.parametrize("command", ["fit", "plan"])
@pytest.mark.parametrize(("argument", "base"), [("model", "LightningModule"), ("data", "LightningDataModule")])
def test_the_command_line_says_why_a_class_of_the_mirror_is_none(
    command: str, argument: str, base: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    mirror()
    (tmp_path / f"of_mirror_{argument}.py").write_text(
        f"import pytorch_lightning as pl\nclass Mine(pl.{base}):\n    pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    model = [] if argument == "model" else ["--model", "tests.support.toy.Toy"]
    assert main([command, *model, f"--{argument}", f"of_mirror_{argument}.Mine"]) == 2
    said = capsys.readouterr().err
    assert f"subclass of {base}" in said
    assert TO_DO in said


def test_the_command_line_says_nothing_of_it_otherwise(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "pytorch_lightning", raising=False)
    assert main(["fit", "--model", "collections.OrderedDict"]) == 2
    said = capsys.readouterr().err
    assert "subclass of LightningModule" in said
    assert "pytorch_lightning" not in said
