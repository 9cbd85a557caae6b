"""`HypergradientDescent` beside `AdaptiveWarmup`: it waits for the switch and starts from the rate that was chosen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_lr import AdaptiveWarmup, Constant, HypergradientDescent
from lightning_lr.hypergradient import RuleName
from tests.support.rounding import rounding_after
from tests.support.toy import Probe, fit, weights
from tests.support.valley_loss import EPOCHS, UPDATES, Valley, after_warmup, valley_run, warmup

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

RULES: tuple[tuple[RuleName, float], ...] = (("normalized", 0.5), ("multiplicative", 0.05), ("additive", 1e-4))


def switch_of(callback: AdaptiveWarmup) -> int:
    assert callback.machine is not None
    assert callback.machine.switched_at is not None
    return round(callback.machine.switched_at * UPDATES)


@pytest.mark.parametrize(("rule", "hyper_lr"), RULES)
@pytest.mark.parametrize("first", [True, False])
def test_the_climb_is_untouched_and_the_factor_moves_after_it(rule: RuleName, hyper_lr: float, first: bool) -> None:
    alone, climb = valley_run([warmup()]), warmup()
    learned = HypergradientDescent(hyper_lr, rule=rule)
    both = valley_run([learned, climb] if first else [climb, learned])
    switch = switch_of(climb)
    assert both.series[: switch + 1] == alone.series[: switch + 1], (
        "the first update after it has no past to learn from"
    )
    ratios = [a / b for a, b in zip(both.first[switch + 1 : -1], alone.first[switch + 1 : -1], strict=True)]
    assert any(abs(ratio - 1) > 1e-4 for ratio in ratios)
    assert all(1e-3 <= ratio <= 1e3 for ratio in ratios)


def test_switched_off_it_changes_nothing() -> None:
    assert valley_run([warmup(), HypergradientDescent(0.0)]).series == valley_run([warmup()]).series


def test_the_learning_rate_that_the_optimizer_was_given_does_not_matter() -> None:
    def run(lr: float) -> list[float]:
        def configure(module: LightningModule) -> Any:
            return torch.optim.SGD(module.parameters(), lr=lr)

        return valley_run([warmup(), HypergradientDescent(1e-4)], Valley(configure)).first

    assert run(50.0) == pytest.approx(run(0.05), rel=rounding_after(UPDATES))  # the step is rounded to fp32


@pytest.mark.parametrize(("rule", "hyper_lr"), RULES)
def test_it_resumes_exactly_before_at_and_after_the_switch(rule: RuleName, hyper_lr: float, tmp_path: Path) -> None:
    def callbacks() -> list[Any]:
        return [warmup(decay=Constant()), after_warmup(), HypergradientDescent(hyper_lr, rule=rule)]

    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    ours, probe = callbacks(), Probe()
    whole, trainer = fit([*ours, probe, save], module=Valley(), enable_checkpointing=True, max_epochs=EPOCHS)
    switch = switch_of(ours[0])
    for update in (3, switch - 1, switch, switch + 1, switch + 2, trainer.global_step - 1):
        again = Probe()
        ckpt = str(tmp_path / f"step={update}.ckpt")
        resumed, _ = fit([*callbacks(), again], module=Valley(), max_epochs=EPOCHS, ckpt_path=ckpt)
        assert again.series == probe.series[update:], update
        assert torch.equal(weights(resumed), weights(whole)), update
