"""Further mistakes: wrong types, unknown arguments, things in each other's place, files that are no configuration.

As in `test_mistakes.py`, each is answered in a sentence that names what was given and what to do.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn

import lightning_lr as lr
from lightning_lr.checks import name_arguments
from lightning_lr.cli import main
from tests.test_mistakes import Data, Module, config, fit, schedule

pytestmark = pytest.mark.filterwarnings("ignore")
Cosine, Schedule = lr.Cosine, lr.LearningRateSchedule


class Wants(Module):
    def __init__(self, width: int, path: str) -> None:
        super().__init__(width=width)


class Fussy(Module):
    def __init__(self, width: int = 8) -> None:
        super().__init__()
        if width != 8:
            raise ValueError("no")


class Elsewhere(LightningDataModule):
    def setup(self, stage: str) -> None:
        Path("/nope/train.csv").read_text()

    def train_dataloader(self) -> Any:
        return None


class Still(Module):
    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.0)


def parameters() -> list[nn.Parameter]:
    return [nn.Parameter(torch.ones(2, 2))]


def trainer(*callbacks: Any) -> Trainer:
    return Trainer(max_epochs=2, accelerator="cpu", logger=False, callbacks=list(callbacks), enable_progress_bar=False)


anything: Any = lr
"""The package without its types, for calls that a type checker refuses."""

PYTHON: dict[str, tuple[Callable[[], Any], str]] = {
    "a share in quotes": (lambda: anything.Cosine(warmup="0.05"), r"Cosine: warmup='0.05'.*give a share of the run"),
    "a share as true": (lambda: anything.Cosine(warmup=True), r"Cosine: warmup=True.*give a share of the run"),
    "epochs for shares": (lambda: lr.Step([3, 6]), r"Step: milestones=\[3, 6\].*give epochs / max_epochs"),
    "one milestone without a list": (lambda: anything.StepRamp(2), r"StepRamp: milestones=2 is not a list.*\[60, 120"),
    "milestones backwards": (lambda: lr.StepRamp([6, 3]), r"StepRamp: milestones=\[6, 3\].*strictly increase"),
    "an index without a list": (lambda: anything.LearningRateSchedule(Cosine(), optimizers=0), r"optimizers=0.*\[0\]"),
    "an optimizer that is not there": (
        lambda: fit(Schedule(Cosine(), optimizers=[3])),
        r"optimizers=\[3\].*returned 1; give indices from 0 to 0",
    ),
    "more curves than optimizers": (lambda: fit(Schedule([Cosine(), Cosine()])), r"2 curves for 1 optimizer"),
    "a budget in per cent": (lambda: anything.LearningRateSearch(budget="10%"), r"budget='10%'.*share.*\"auto\""),
    "bounds the wrong way round": (lambda: lr.LearningRateSearch(min_lr=1, max_lr=0.1), r"min_lr=1 above max_lr=0.1"),
    "one bound": (lambda: anything.HypergradientDescent(bounds=10), r"HypergradientDescent: got bounds=10.*\(low, high\)"),
    "a smoothing above 1": (lambda: lr.GradientNoiseScale(smoothing=2), r"GradientNoiseScale: smoothing=2.*\[0, 1\)"),
    "one point without a list": (lambda: anything.CriticalBatchSize(at=0.1), r"at=0.1.*for example \[0.1, 0.3\]"),
    "a curve for a ramp": (lambda: anything.BatchSizeRamp(Cosine()), r"schedule=Cosine\(.*StepRamp\("),
    "a batch in quotes": (lambda: anything.BatchSizeRamp(lr.StepRamp([1]), max_batch_size="512"), r"'512'.*whole number"),
    "a policy by its name": (lambda: anything.CheckpointedStrategy(policy="sqrt"), r"policy='sqrt'; give a CheckpointPolicy"),
    "a stage in quotes": (lambda: anything.ZeROStrategy(stage="2"), r"stage='2'; allowed are 1"),
    "an expression that is none": (lambda: fit(lr.LayerwiseLRDecay(layers=["("])), r"'\('.*regular expression"),
    "a choice that is none": (
        lambda: anything.LearningRateSchedule(Cosine(), module_scheduler="ignore"),
        r"module_scheduler='ignore'; allowed are",
    ),
    # in each other's place
    "the class of a callback": (lambda: fit(lr.LearningRateSearch), r"LearningRateSearch: callbacks has the class; give an object"),
    "a curve for a callback": (lambda: fit(Cosine()), r"a curve is no callback.*LearningRateSchedule\(Cosine"),
    "plan the wrong way round": (lambda: anything.plan(Module(), trainer()), r"plan: got a Module as trainer.*the order is"),
    "plan of a class": (lambda: anything.plan(trainer(), Module), r"plan: got the class Module as module; give a LightningModule"),
    "plan with a class of data": (lambda: lr.plan(trainer(), Module(), Data), r"plan: got the class Data.*give an object"),
    "plan of a network": (lambda: anything.plan(trainer(), nn.Linear(2, 2)), r"plan: got Linear\(.* as module"),
    "plan without data": (lambda: lr.plan(trainer(Schedule(Cosine())), Module()), r"Module could not set up its training data"),
    "find_learning_rate the wrong way round": (
        lambda: anything.find_learning_rate(Module(), trainer()),
        r"find_learning_rate: got a Module as trainer",
    ),
    "a report of nothing": (lambda: anything.report(None), r"report: got None; give a run's directory or a Trainer"),
    "a report of a list": (lambda: anything.report(["a", "b"]), r"report: got \['a', 'b'\].*report\(one, other\)"),
    "parameters for a module": (
        lambda: anything.layerwise_param_groups(Module().parameters(), 0.1, 0.8),
        r"layerwise_param_groups: got module=<generator.*give an nn.Module",
    ),
    # arguments that there are not
    "StepRamp": (lambda: anything.StepRamp([1], factr=2), r"StepRamp has no argument 'factr'; did you mean 'factor'\?"),
    "CheckpointPolicy": (lambda: anything.CheckpointPolicy(segment=2), r"no argument 'segment'; did you mean 'segments'\?"),
    "RampPlan": (
        lambda: anything.RampPlan(lr.StepRamp([1]), 100, 10, max_epoch=4),
        r"RampPlan has no argument 'max_epoch'; did you mean 'max_epochs'\?",
    ),
    "LARS": (lambda: anything.optim.LARS(parameters(), 0.1, momentm=0.9), r"LARS has no argument 'momentm'; did you mean 'mom"),
    "a strategy that hands arguments on": (lambda: anything.ZeROStrategy(stag=2), r"no argument 'stag'; did you mean 'stage'\?"),
    "nothing near": (lambda: anything.Cosine(x=1), r"Cosine has no argument 'x'\. It has warmup, floor"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", PYTHON)
def test_a_mistake_in_python_is_answered(mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    attempt, said = PYTHON[mistake]
    with pytest.raises(Exception) as refused:  # noqa: PT011  # which kind it is matters less than what it says
        attempt()
    text = " ".join(str(refused.value).split())
    assert re.search(said, text), text
    assert len(text) < 600, text


WARNED: dict[str, tuple[Callable[[], Any], str]] = {
    "shares for epochs": (
        lambda: fit(lr.BatchSizeRamp(lr.StepRamp([0.25, 0.5])), max_epochs=4),
        r"milestones \[0.25, 0.5\] are epochs, and all of them lie in the first of 4.*give \[1, 2\]",
    ),
    "a rate of 0": (lambda: fit(Schedule(Cosine()), module=Still()), r"SGD has lr=0.*nothing is trained"),
    "more layers than epochs": (lambda: fit(lr.GradualUnfreezing(5)), r"2 of 3 layers never train.*train for at least 11"),
    "the name of 0.1": (lambda: lr.LearningRateScaling(8, rule="sqrt"), r"rule is called lr_rule"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", WARNED)
def test_what_would_be_silent_is_warned_of(mistake: str) -> None:
    attempt, said = WARNED[mistake]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        attempt()
    assert re.search(said, " | ".join(str(warning.message) for warning in caught))


def test_the_old_name_of_a_rule_means_the_new_one() -> None:
    assert lr.LearningRateScaling(8, rule="sqrt").lr_rule == lr.LearningRateScaling(8, lr_rule="sqrt").lr_rule == "sqrt"
    with pytest.warns(DeprecationWarning, match="lr_rule"):
        lr.LearningRateScaling(8, rule="linear")


def test_what_a_strategy_hands_on_is_left_to_it() -> None:
    lr.CheckpointedDDPStrategy(find_unused_parameters=True)


@pytest.mark.parametrize("kind", [value for value in vars(lr).values() if isinstance(value, type)])
def test_every_public_class_names_the_nearest_argument(kind: type) -> None:
    init = vars(kind).get("__init__")
    before = kind.__init__  # type: ignore[misc]
    name_arguments(kind)
    assert kind.__init__ is before, "it does already"  # type: ignore[misc]
    assert init is None or init.names_arguments_of is kind


# ---------------------------------------------------------------------- the command line
def decay(**arguments: Any) -> list[Any]:
    return [{"class_path": "LayerwiseLRDecay", "init_args": arguments}]


def method(name: str, **arguments: Any) -> str:
    return config([{"class_path": name, "init_args": arguments}])


def cosine(warmup: Any) -> str:
    return config(schedule({"class_path": "Cosine", "init_args": {"warmup": warmup}}))


HERE = __name__
RUN = ["plan", "--model", f"{HERE}.Module", "--data", f"{HERE}.Data", "--config", "C"]
GOOD = config(schedule({"class_path": "Cosine"}))
FILES: dict[str, tuple[list[str], str | bytes, str]] = {
    "a word for a number": (RUN, cosine("five"), r"Cosine: warmup is 'five' \(c.yaml, line 9\); give a number$"),
    "per cent": (RUN, cosine("5%"), r"warmup is '5%' \(c.yaml, line 9\); give a number$"),
    "a list for a number": (RUN, cosine([0.1]), r"warmup is '\[0.1\]' .*give a number$"),
    "a number for a list": (RUN, config(schedule("Cosine", optimizers=0)), r"optimizers is '0' .*a list of whole numbers"),
    "a text for a list": (RUN, config(decay(layers="net.0")), r"layers is 'net.0' .*give auto or a list of texts$"),
    "a word for true or false": (RUN, method("AdaptiveWarmup", restore_best="maybe"), r"'maybe' .*give true or false$"),
    "a choice misspelt": (RUN, method("LearningRateScaling", lr_rule="squareroot"), r"give one of linear, sqrt$"),
    "half for a whole number": (RUN, method("GradualUnfreezing", epochs_per_layer=0.5), r"'0.5' .*give a whole number$"),
    "a ramp's curve without its schedule": (
        RUN,
        method("BatchSizeRamp", schedule={"class_path": "Cosine"}),
        r"Cosine at .* is no RampSchedule, but a Curve.*known are AdaptiveRamp, CurveRamp, StepRamp",
    ),
    "a strategy among the callbacks": (RUN, method("ZeROStrategy"), r"ZeROStrategy at .* is no Callback, but a Strategy"),
    "an optimizer among the callbacks": (RUN, method("torch.optim.AdamW", lr=0.1), r"is no Callback, but an Optimizer"),
    "a callback without its curve": (
        RUN,
        config(["LearningRateSchedule"]),
        r"LearningRateSchedule at trainer.callbacks\[0\] needs curve \(c.yaml, line 4\); write class_path: Learn",
    ),
    "class_path misspelt": (RUN, config([{"classpath": "LayerwiseLRDecay"}]), r"no key 'classpath'.*mean 'class_path'\?"),
    "init_args misspelt": (
        RUN,
        config([{"class_path": "LayerwiseLRDecay", "init_arg": {}}]),
        r"no key 'init_arg'.*mean 'init_args'\?",
    ),
    "a key twice": (
        RUN,
        "trainer:\n  callbacks:\n  - class_path: GhostBatchNorm\n  callbacks:\n  - class_path: LayerwiseLRDecay\n",
        r"c.yaml: 'callbacks' in line 4 stands in line 2 already, and YAML would drop that one",
    ),
    "a word for a number on the line": ([*RUN, "--trainer.max_epochs", "ten"], GOOD, r"max_epochs is 'ten'; give a whole"),
    "a module's argument of another type": (
        [*RUN, "--model.init_args.width", "wide"],
        GOOD,
        r"--model.init_args.width is 'wide'; give a whole number$",
    ),
    "a module's argument misspelt": ([*RUN, "--model.widht", "4"], GOOD, r"Module has no argument 'widht'.*'--model.width'"),
    "a module that needs arguments": (
        ["plan", "--model", f"{HERE}.Wants", "--config", "C"],
        GOOD,
        r"Wants needs width, path; give --model.width, --model.path",
    ),
    "a module that fails": (
        ["plan", "--model", f"{HERE}.Fussy", "--model.width", "4", "--config", "C"],
        GOOD,
        r"ValueError: no \(in __init__, .*test_mistakes_in_values.py, line \d+\)",
    ),
    "data that are not there": (
        ["plan", "--model", f"{HERE}.Module", "--data", f"{HERE}.Elsewhere", "--config", "C"],
        GOOD,
        r"Elsewhere could not set up its training data.*/nope/train.csv",
    ),
    "a directory for a file": (["plan", "--config", "."], "", r"\. is a directory; give the YAML file"),
    "an empty file": (["plan", "--config", "C"], "", r"c.yaml is empty; `lightning-lr init"),
    "a list": (["plan", "--config", "C"], "- a\n- b\n", r"c.yaml is no mapping; a configuration has keys such as trainer"),
    "a picture": (["plan", "--config", "C"], bytes(range(256)), r"c.yaml is no text; give the YAML file"),
    "a bracket left open": (["plan", "--config", "C"], "trainer: {a: 2\n", r"c.yaml is not valid YAML: .* line 1, column 10"),
    "a report of a file": (["report", "C"], GOOD, r"c.yaml is a file; give the directory of a run"),
}  # fmt: skip


@pytest.mark.parametrize("mistake", FILES)
def test_a_mistake_on_the_command_line_is_answered(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words, content, said = FILES[mistake]
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert main(["c.yaml" if word == "C" else word for word in words]) == 2
    answer = " ".join(capsys.readouterr().err.split())
    assert re.search(said, answer), answer
    assert len(answer) < 400, answer


def test_a_number_with_an_exponent_is_a_number(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[1])
    monkeypatch.chdir(tmp_path)
    (tmp_path / "c.yaml").write_text(cosine("1e-1"))
    assert main(["c.yaml" if word == "C" else word for word in RUN]) == 0
    assert "Cosine(warmup=0.1" in capsys.readouterr().out
