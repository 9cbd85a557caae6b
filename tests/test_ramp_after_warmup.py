"""`BatchSizeRamp(begin="after_warmup")`: the ramp waits for the switch of an `AdaptiveWarmup`."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_lr import AdaptiveRamp, AdaptiveWarmup, BatchSizeRamp, Constant, Cosine, CurveRamp, GradientNoiseScale
from lightning_lr.cli.plan.epoch import epoch_of
from lightning_lr.cli.plan.walk import make_plan
from lightning_lr.progress import RunShape
from tests.support.rounding import rounding
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.support.valley_loss import EPOCHS, UPDATES, Means, Record, Valley, after_warmup, valley_run, warmup

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# ---------------------------------------------------------------------- with a ramp
def ramped(order: int = 0, **arguments: Any) -> tuple[AdaptiveWarmup, BatchSizeRamp, list[int], Probe]:
    class Sizes(Callback):
        def on_train_batch_start(
            self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
        ) -> None:
            sizes.append(len(batch[0]))

    sizes: list[int] = []
    callback, ramp = (
        warmup(decay=Constant()),
        after_warmup(),
    )
    both: list[Callback] = [callback, ramp][:: 1 - 2 * order]
    probe = valley_run([*both, Sizes()], **arguments)
    return callback, ramp, sizes, probe


def test_ramp_begins_after_the_switch_and_ends_with_the_run() -> None:
    callback, ramp, sizes, probe = ramped()
    machine = callback.machine
    assert machine is not None
    assert machine.switched_at is not None
    assert ramp._growth.begin_samples is not None
    switch = round(machine.switched_at * UPDATES)
    begin = ramp._growth.begin_samples // 8
    assert switch <= begin <= switch + 3, "later only by what has been prefetched"
    assert sizes[:begin] == [8] * begin
    assert sum(sizes) == 48 * EPOCHS
    assert probe.first[switch:begin] == pytest.approx([machine.peak_lr] * (begin - switch))
    # lr / batch is on the curve, which runs from the beginning of the ramp to the end of the run
    done = [sum(sizes[:update]) for update in range(len(sizes))]
    whole = [
        u for u in range(begin, len(sizes)) if (done[u] + sizes[u]) % 48
    ]  # else the end of the epoch may have cut it
    shares = [(done[u] - ramp._growth.begin_samples) / (48 * EPOCHS - ramp._growth.begin_samples) for u in whole]
    path = [machine.peak_lr / 8 * (1 + math.cos(math.pi * share)) / 2 for share in shares]
    assert [probe.first[u] / sizes[u] for u in whole] == pytest.approx(path, rel=1e-9)
    assert sizes[-1] == 24


def test_the_order_of_ramp_and_warmup_does_not_matter() -> None:
    assert ramped(0)[3].series == ramped(1)[3].series


def test_ramp_after_the_warmup_with_max_steps() -> None:
    callback, ramp, sizes, probe = ramped(max_steps=50, max_epochs=-1)
    assert len(probe.series) == 50
    assert callback.machine is not None
    assert ramp._growth.begin_samples is not None
    assert sizes[-1] == 24
    assert probe.first[-1] < 0.05 * callback.machine.peak_lr  # type: ignore[operator]


def test_ramp_after_the_warmup_resumes_exactly(tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole_ramp, probe = after_warmup(), Probe()
    whole, _ = fit(
        [warmup(decay=Constant()), whole_ramp, probe, save],
        module=Valley(),
        enable_checkpointing=True,
        max_epochs=EPOCHS,
    )
    begin = (whole_ramp._growth.begin_samples or 0) // 8
    for update in (5, begin - 3, begin - 2, begin - 1, begin, begin + 7):
        ramp, again = after_warmup(), Probe()
        resumed, _ = fit(
            [warmup(decay=Constant()), ramp, again],
            module=Valley(), max_epochs=EPOCHS, ckpt_path=str(tmp_path / f"step={update}.ckpt"),
        )  # fmt: skip
        assert again.series == probe.series[update:], update
        assert torch.equal(weights(resumed), weights(whole)), update


def test_adaptive_ramp_grows_only_after_the_warmup() -> None:
    ramp = BatchSizeRamp(
        AdaptiveRamp(ratio=100.0, check_every=1), max_micro_batch_size=4, max_batch_size=24, begin="after_warmup"
    )
    callback = warmup(decay=Constant())
    valley_run([callback, ramp, GradientNoiseScale()])
    assert ramp._growth.growths
    first = ramp._growth.growths[0]
    assert first.epoch * 48 + first.start >= (ramp._growth.begin_samples or math.inf)


def test_plan_of_a_ramp_after_the_warmup_shows_a_range() -> None:
    shape = RunShape(epoch_of(480, 8), max_epochs=10)
    callbacks: list[Any] = [AdaptiveWarmup(decay=Constant()), BatchSizeRamp(CurveRamp(Cosine()), begin="after_warmup")]
    for callback in callbacks:
        callback.setup(type("Plan", (), {"callbacks": callbacks})(), Toy(), "fit")
    plan = make_plan(shape, callbacks)
    fewest, _, most, *_ = plan.summary["updates"].split()
    assert int(fewest) < int(most) == plan.shape.total_updates < 600
    assert plan.summary["updates"].endswith("(shown) against 600 with a fixed batch")
    assert plan.rows[0].batch_size == 8
    assert plan.rows[-1].batch_size == 48  # a tenth of the training set


def test_ramp_and_warmup_that_do_not_fit_together_are_refused() -> None:
    curve = CurveRamp(Cosine())
    with pytest.raises(MisconfigurationException, match="begin='after_warmup' without AdaptiveWarmup"):
        fit([BatchSizeRamp(curve, begin="after_warmup")])
    with pytest.raises(MisconfigurationException, match="both would let the noise scale fall; set decay=Constant"):
        fit([BatchSizeRamp(curve, begin="after_warmup"), warmup(decay=Cosine())], max_epochs=EPOCHS)
    with pytest.raises(MisconfigurationException, match="set begin='after_warmup'"):
        fit([BatchSizeRamp(curve), warmup(decay=Constant())], max_epochs=EPOCHS)
    with pytest.raises(ValueError, match="got begin='later'; allowed are"):
        BatchSizeRamp(curve, begin="later")  # type: ignore[arg-type]


def test_micro_batches_of_a_ramp_are_weighted_by_their_samples() -> None:
    _, y = data(44).tensors
    expected = [float(y[start : start + 8].mean()) for start in range(0, 44, 8)]
    callback = Record(1e-6, 1e-5, max_warmup=0.9, confidence=1 - 1e-12, decay=Constant())
    ramp = BatchSizeRamp(CurveRamp(Cosine()), max_micro_batch_size=3, begin="after_warmup")
    fit([callback, ramp], module=Means(), loader=DataLoader(data(44), batch_size=8), max_epochs=4)
    assert callback.losses[:6] == pytest.approx(expected, abs=rounding(16))  # windows of 3 + 3 + 2 and 2 + 2
