"""``benchmarks.lightning_suite``: what it says of tests that pass, are refused, or come to something else."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.lightning_suite import judged, main, record_of, table
from benchmarks.lightning_suite_expected import BY_DESIGN, Meant, in_short
from benchmarks.lightning_suite_plugin import Course, Recorder, differences, digest, refusal_in

TINY = """
import pytest, torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.loggers import CSVLogger


def trainer(folder, logger=False, **arguments):
    return Trainer(default_root_dir=folder, accelerator="cpu", devices=1, max_epochs=2, limit_train_batches=2,
                   limit_val_batches=0, logger=logger, enable_checkpointing=False, enable_progress_bar=False,
                   enable_model_summary=False, **arguments)


@pytest.mark.parametrize("steps", [2, 4])
def test_rate(tmp_path, steps):
    made = trainer(tmp_path, max_steps=steps)
    made.fit(BoringModel())
    assert made.global_step == steps
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.1 ** (1 + steps // 2))
    assert not list(tmp_path.iterdir())


def test_company(tmp_path):
    trainer(tmp_path, callbacks=StochasticWeightAveraging(swa_lrs=0.1)).fit(BoringModel())


def test_callbacks_are_counted(tmp_path):
    made = trainer(tmp_path)
    made.fit(BoringModel())
    assert len(made.callbacks) == 0


def test_metrics_are_listed(tmp_path):
    class Model(BoringModel):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)["loss"]
            self.log("a", loss)
            return loss

    made = trainer(tmp_path, CSVLogger(tmp_path), log_every_n_steps=1, callbacks=[])
    made.fit(Model())
    assert set(made.callback_metrics) == {"a"}


def test_without_a_fit(tmp_path):
    trainer(tmp_path)


def test_that_fails():
    assert False
"""


@pytest.mark.slow
def test_the_verdicts_of_a_folder(tmp_path: Path) -> None:
    tests, results = tmp_path / "tests" / "tests_pytorch", tmp_path / "results"
    tests.mkdir(parents=True)
    (tests / "test_tiny.py").write_text(TINY)
    arms = ["HypergradientDescent", "GradualUnfreezing"]
    call = ["--tests", str(tests.parent), "--files", "test_tiny.py", "--results", str(results), "--select", "test"]
    assert main([*call, "--arms", arms[0]]) == 1
    record = json.loads((results / "lightning_suite" / "test_tiny.json").read_text())
    assert record["bare"] == {"passed": 6, "failed": 1}
    assert record["tests"] == [
        "test_rate[2]", "test_rate[4]", "test_company", "test_callbacks_are_counted", "test_metrics_are_listed"
    ]  # fmt: skip
    control, hypergradient = record["arms"]["control"], record["arms"]["HypergradientDescent"]
    assert (control["passed"], list(control["others"])) == (4, ["test_callbacks_are_counted"])
    verdicts = {test: verdict for test, (verdict, _) in hypergradient["others"].items()}
    assert verdicts == {
        "test_company": "refused", "test_callbacks_are_counted": "counts callbacks",
        "test_metrics_are_listed": "different",
    }  # fmt: skip
    assert (hypergradient["passed"], hypergradient["missing"]) == (1, ["test_rate[4]"])  # one parameter set of a test
    assert "StochasticWeightAveraging is attached too" in hypergradient["others"]["test_company"][1]
    # a second call adds an arm and leaves the others as they were
    assert main([*call, "--arms", *arms]) == 1
    again = json.loads((results / "lightning_suite" / "test_tiny.json").read_text())
    assert list(again["arms"]) == ["control", *arms]
    assert again["arms"]["HypergradientDescent"] == hypergradient
    assert again["arms"]["GradualUnfreezing"]["passed"] == 2
    text = (results / "lightning_suite.md").read_text()
    assert "| HypergradientDescent | 1 | 4 | 1 | 1 | 0 | 1 | 1 |" in text
    assert "- HypergradientDescent: `test_tiny.py::test_metrics_are_listed`" in text


def test_a_difference_that_is_meant_is_told_apart() -> None:
    meant = Meant("test_hooks.py", "the test lists every hook", arms="Layer.*", why="Calls not found")
    assert meant.covers("models/test_hooks.py::test_a[1]", "LayerwiseLRDecay", "AssertionError: x\nCalls not found")
    assert not meant.covers("models/test_hooks.py::test_a[1]", "GradientNoiseScale", "Calls not found")
    assert not meant.covers("models/test_hooks.py::test_a[1]", "LayerwiseLRDecay", "fit: weights")
    assert judged("a.py", "any arm", "test_b", "different", "fit: weights") == ("different", "fit: weights")
    assert judged("a.py", "any arm", "test_b", "refused", "X: got 3 of 4.5") == ("refused", in_short("X: got 3 of 4.5"))
    assert all(case.reason for case in BY_DESIGN)


def test_a_fit_that_comes_to_something_else_is_different() -> None:
    recorder = Recorder()
    bare = Course(fits=1, events=[("fit", {"weights": "a", "lr": [1.0]})], outcome="passed")
    same = Course(fits=1, events=[("fit", {"weights": "a", "lr": [1.0]})], outcome="passed")
    other = Course(fits=1, events=[("fit", {"weights": "a", "lr": [0.5]})], outcome="passed")
    fewer = Course(fits=1, events=[], outcome="passed")
    assert differences(bare, fewer) == {"the number of fits and checkpoints"}
    recorder.courses["test"] = {"bare": bare, "control": same, "one": same, "two": other}
    assert recorder.verdict("test", "one") == ("passed", "")
    assert recorder.verdict("test", "two") == ("different", "fit: lr")
    assert recorder.verdict("test", "bare") == ("passed", "")
    assert digest({"a": 1, "b": [2.0]}) != digest({"a": 1, "b": [2.5]})


def test_a_refusal_is_an_error_that_a_callback_of_ours_raised() -> None:
    from lightning.fabric.utilities.exceptions import MisconfigurationException

    from lightning_lr import NormalizedWeightDecay

    with pytest.raises(ValueError, match="NormalizedWeightDecay: ") as ours:
        NormalizedWeightDecay(norm=-1.0)
    assert str(refusal_in(ours.value)).startswith("NormalizedWeightDecay: ")
    with pytest.raises(MisconfigurationException) as theirs:
        raise MisconfigurationException("BatchSizeRamp: said by somebody else")
    assert refusal_in(theirs.value) is None


def test_the_table_counts_what_the_records_hold() -> None:
    def line(test: str, arm: str, verdict: str, why: str = "", fits: int = 1) -> dict[str, object]:
        return {"test": f"x::{test}", "arm": arm, "verdict": verdict, "why": why, "fits": fits, "seconds": 0.1}

    arm = "GradientNoiseScale"
    lines = [line("a", "bare", "passed"), line("b", "bare", "passed"), line("c", "bare", "passed", fits=0),
             line("a", "control", "passed"), line("b", "control", "passed"),
             line("a", arm, "passed"), line("b", arm, "refused", "GradientNoiseScale: no")]  # fmt: skip
    text = table([record_of("x.py", None, lines)])
    assert "Of 3 tests in 1 files 3 passed bare, and 2 of these call `fit`." in text
    assert f"| {arm} | 1 | 2 | 1 | 1 | 0 | 0 | 0 |" in text
    assert f"- {arm}: 1 x GradientNoiseScale: no" in text
    assert "Different:" not in text
