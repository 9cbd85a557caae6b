"""A report of a run whose ramp was decided on the way: it says what was made, not what was expected at the start."""

from __future__ import annotations

from pathlib import Path

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_lr import AdaptiveRamp, BatchSizeRamp, Constant, GradientNoiseScale
from lightning_lr.cli.report.record import read_run
from lightning_lr.cli.report.summary import progress_of, run_lines
from tests.support.toy import data, fit
from tests.support.valley_loss import EPOCHS, Valley, after_warmup, warmup

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


def after_the_warm_up(folder: Path) -> int:
    _, trainer = fit(
        [warmup(decay=Constant()), after_warmup()],
        module=Valley(),
        max_epochs=EPOCHS,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
    )
    return trainer.global_step


def by_the_measured_noise(folder: Path) -> int:
    callbacks: list[Callback] = [
        GradientNoiseScale(),
        # a scale that any measurement passes: grows at every check, up to the cap
        BatchSizeRamp(AdaptiveRamp(ratio=1e-9, check_every=5), max_batch_size=16, max_micro_batch_size=2),
    ]
    _, trainer = fit(
        callbacks,
        loader=DataLoader(data(48), batch_size=4),
        max_epochs=3,
        logger=CSVLogger(folder, name="", version=""),
        log_every_n_steps=1,
    )
    return trainer.global_step


@pytest.mark.parametrize("run", [after_the_warm_up, by_the_measured_noise])
def test_updates_are_those_that_were_made(run, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    made = run(tmp_path)
    record = read_run(tmp_path)
    assert record.planned_updates == made
    assert progress_of(record).finished
    lines = run_lines(record)
    said, _, fixed, *_ = lines["updates"].split()
    assert (int(said), int(fixed) > made) == (made, True), lines["updates"]
