"""A callback written outside the package is trained, planned, reported, resumed and refused like the others."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.callbacks import ModelCheckpoint, StochasticWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from matplotlib.figure import Figure
from torch.optim import AdamW

from lightning_lr import AdaptiveWarmup, LearningRateSchedule, MethodCallback, NormalizedWeightDecay, Polynomial
from lightning_lr.callbacks import Clash, MetricPanel
from lightning_lr.cli.plan.walk import make_plan
from lightning_lr.cli.report.metric_panels import declared_panels
from lightning_lr.cli.report.picture import save_report_picture
from lightning_lr.cli.report.record import find_run, read_run
from lightning_lr.curves import Phase
from lightning_lr.progress import EpochShape, RunShape, SampleClock
from tests.support.toy import Probe, ResumableLoader, Toy, data, fit

LR = 0.05  # of the toy's optimizer
UPDATES = 12  # 2 epochs of 48 samples in batches of 8


class Breathing(MethodCallback):
    """Everything that a callback can declare about itself."""

    name = "breathing"
    refuses = (Clash(StochasticWeightAveraging, "it averages at a learning rate of its own"),)
    panels = (MetricPanel("depth of\nbreath", ("breathing/depth",), units=(" of 1",), reference=1.0),)

    def __init__(self, depth: float = 0.5, label: str = "calm") -> None:
        super().__init__()
        self.depth = depth
        self.label = label

    def factor(self, clock: SampleClock) -> float:
        return 1 - self.depth * math.sin(math.pi * clock.progress) ** 2

    def metrics(self, clock: SampleClock, optimizer: Any, lr: list[float]) -> dict[str, float]:
        return {"breathing/depth": self.depth}

    def phases(self, shape: RunShape) -> tuple[Phase, ...]:
        return (Phase("in", 0.0, 0.5), Phase("out", 0.5, 1.0))

    def summary(self, shape: RunShape) -> dict[str, str]:
        return {"breathing": f"{self.depth:g} deep, {self.label}"}

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        return {"depth": "a breath is not cut"}


def expected(update: int, depth: float = 0.5) -> float:
    return 1 - depth * math.sin(math.pi * update / UPDATES) ** 2


@pytest.mark.parametrize(
    ("attributes", "said"),
    [
        ({}, r"SlowBreath: got no name; write a line such as name = 'slow_breath' in the class"),
        ({"name": 3}, r"SlowBreath: got name=3; write"),
        ({"name": "lr/slow"}, r"SlowBreath: got name='lr/slow'; write"),
        ({"name": property(lambda self: "slow")}, r"SlowBreath: got name=<property"),
    ],
)
def test_a_class_without_a_usable_name_cannot_be_defined(attributes: dict[str, Any], said: str) -> None:
    with pytest.raises(TypeError, match=said):
        type("SlowBreath", (MethodCallback,), attributes)


def test_a_class_without_a_factor_says_what_to_define() -> None:
    class Nothing(MethodCallback):
        name = "nothing"

    with pytest.raises(NotImplementedError, match=r"Nothing: define factor\(self, clock\)"):
        fit([Nothing()], max_epochs=2)


def test_it_multiplies_with_the_others_in_training_and_in_the_plan() -> None:
    probe = Probe()
    fit([Breathing(), LearningRateSchedule(Polynomial(power=1.0)), probe], max_epochs=2)
    lrs = [LR * expected(t) * (1 - t / UPDATES) for t in range(UPDATES)]
    assert probe.first == pytest.approx(lrs, rel=1e-6)  # products of fp64 numbers
    shape = RunShape(EpochShape(6, 8, 48), max_epochs=2)
    methods = [Breathing(), LearningRateSchedule(Polynomial(power=1.0))]
    planned = make_plan(shape, methods, [Toy().configure_optimizers()])
    assert list(planned.lr[0]) == pytest.approx(lrs, rel=1e-6)
    assert planned.summary["breathing"] == "0.5 deep, calm"


def test_the_report_draws_what_the_class_declares(tmp_path: Path) -> None:
    fit([Breathing()], max_epochs=2, logger=CSVLogger(tmp_path), log_every_n_steps=1)
    record = read_run(find_run(tmp_path))
    assert record.summary["breathing"] == "0.5 deep, calm"
    assert record.phases["breathing"] == (Phase("in", 0.0, 0.5), Phase("out", 0.5, 1.0))
    (panel,) = declared_panels(record)
    assert (panel.label, panel.has(record)) == ("depth of\nbreath", True)
    ax = Figure().add_subplot()
    panel.draw(ax, record)
    assert list(ax.lines[0].get_ydata()) == [1.0, 1.0]
    assert list(ax.lines[1].get_ydata()) == [0.5] * UPDATES
    save_report_picture(record, "Report", tmp_path / "report.png")
    assert (tmp_path / "report.png").is_file()
    for path in tmp_path.rglob("breathing.jsonl"):  # drawn from what is on disk: the class is not needed
        assert json.loads(path.read_text().splitlines()[0])["panels"][0]["metrics"] == ["breathing/depth"]


def test_a_resume_keeps_what_the_class_fixes_and_lets_the_rest_change(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="half", every_n_train_steps=8)
    fit([Breathing(), save], loader=ResumableLoader(data(), 8), enable_checkpointing=True, max_epochs=2)
    path, probe = str(tmp_path / "half.ckpt"), Probe()
    fit([Breathing(label="other"), probe], loader=ResumableLoader(data(), 8), ckpt_path=path, max_epochs=2)
    assert probe.first == pytest.approx([LR * expected(t) for t in range(8, UPDATES)], rel=1e-6)
    said = "Breathing: got depth=0.25, and the checkpoint was made with depth=0.5: a breath is not cut"
    with pytest.raises(MisconfigurationException, match=said):
        fit([Breathing(0.25)], loader=ResumableLoader(data(), 8), ckpt_path=path, max_epochs=2)


def test_what_it_refuses_is_refused() -> None:
    class Sigh(Breathing):
        refuses = (Clash(AdaptiveWarmup, "it breathes by itself", "let it"),)

    with pytest.raises(MisconfigurationException, match="Breathing: StochasticWeightAveraging is attached too, and it"):
        fit([Breathing(), StochasticWeightAveraging(0.1)])
    with pytest.raises(MisconfigurationException, match=r"Sigh: AdaptiveWarmup is attached too, and it .*; let it"):
        fit([Sigh(), AdaptiveWarmup()])
    with pytest.raises(MisconfigurationException, match="Sigh is attached too, and both have the name 'breathing'"):
        fit([Breathing(), Sigh()])


def test_a_multiplier_of_the_base_rate_does_not_scale_the_decay() -> None:
    class Doubled(MethodCallback):
        name = "doubled"

        def factor(self, clock: SampleClock) -> float:
            return 2.0

    class Base(Doubled):
        name = "doubled_base"
        lr_role = "base"

    decays = {}
    for method in (Doubled, Base):
        module = Toy(lambda m: AdamW(m.parameters(), lr=0.01, weight_decay=0.1))
        probe = Probe("weight_decay")
        fit([method(), NormalizedWeightDecay(), probe], module=module, max_epochs=2)
        decays[method.name] = probe.first[0]
    assert decays["doubled"] == pytest.approx(2 * decays["doubled_base"])
