"""The critical batch by branches: what is measured, what a ramp makes of it, and that the run does not notice."""

from __future__ import annotations

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_lr import (
    AdaptiveRamp,
    BatchSizeRamp,
    Constant,
    Cosine,
    CriticalBatchSize,
    LearningRateSchedule,
    LearningRateSearch,
)
from lightning_lr.batch_size import BranchSettings, CriticalBatch, measure
from lightning_lr.batch_size.critical import Branching
from tests.support.rounding import rounding_after
from tests.support.toy import ResumableLoader, Toy, data, fit, quiet, weights
from tests.support.two_processes import ddp, run_in_two_processes

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# ---------------------------------------------------------------------- the method, without a Trainer
class Plant:
    """Losses of branches by formula: batch k gains ``gain / (1 + (k - 1) slow)``, scored on noisy batches."""

    def __init__(self, slow: float, noise: float = 0.0, breaks_at: int = 1000) -> None:
        self.slow, self.noise, self.breaks_at = slow, noise, breaks_at
        self.asked: list[tuple[int, int, int, float]] = []

    def __call__(self, multiple: int, updates: int, scored: int, factor: float) -> Any:
        self.asked.append((multiple, updates, scored, factor))
        gained = 0.5 / (1.0 + (multiple - 1) * self.slow) if updates else 0.0
        if updates and multiple >= self.breaks_at:
            return [2.0, math.inf], []
        scores = [2.0 - gained + 0.3 * math.sin(i) + self.noise * math.cos(i * multiple) for i in range(scored)]
        return [2.0] * updates, scores


def measured(plant: Plant, tolerance: float = 0.1, rule: Any = "linear", largest: int = 8) -> CriticalBatch:
    settings = BranchSettings("x", (0.1,), 1.0, tolerance, largest)
    return measure(Branching.of(largest, 16), settings, rule, 32, 0.1, plant)


@pytest.mark.parametrize(
    ("slow", "multiple"),
    [(0.0, 8), (0.014, 8), (0.03, 4), (0.1, 2), (0.2, 1)],  # behind by 1 - 1 / (1 + (k - 1) slow) of what is gained
)
def test_the_largest_batch_that_loses_less_than_the_tolerance_is_critical(slow: float, multiple: int) -> None:
    result = measured(Plant(slow))
    assert result.multiple == multiple
    assert result.batch_size == 32 * multiple
    assert result.bounded == (multiple < 8)
    assert result.gained == pytest.approx(0.5)


def test_all_branches_have_the_same_samples_and_the_rate_of_the_rule() -> None:
    for rule, power in (("linear", 1.0), ("sqrt", 0.5)):
        plant = Plant(0.0)
        measured(plant, rule=rule)
        before, *branches = plant.asked
        assert before == (1, 0, 16, 1.0)
        for multiple, updates, scored, factor in branches:
            assert multiple * updates == 16
            assert scored == 16
            assert factor == pytest.approx(multiple**power, rel=1e-15)


def test_a_branch_that_diverges_is_a_batch_too_large_and_nothing_more() -> None:
    result = measured(Plant(0.0, breaks_at=4))
    assert (result.multiple, result.bounded) == (2, True)
    nothing = measured(Plant(0.0, breaks_at=1))
    assert (nothing.multiple, nothing.batch_size) == (0, None)
    assert "diverged at the present batch" in nothing.warning


@pytest.mark.parametrize(("scale", "offset"), [(1e-3, 0.0), (1e3, 0.0), (1.0, 50.0)])
def test_neither_a_factor_nor_an_offset_of_the_loss_matters(scale: float, offset: float) -> None:
    class Scaled(Plant):
        def __call__(self, *given: Any) -> Any:
            losses, scores = super().__call__(*given)
            return losses, [scale * score + offset for score in scores]

    assert measured(Scaled(0.03, 0.05)).multiple == measured(Plant(0.03, 0.05)).multiple


@pytest.mark.parametrize("budget", [10.0, 15.0, 33.0, 80.0, 500.0])
@pytest.mark.parametrize("largest", [2, 4, 8, 16])
def test_a_measurement_takes_no_more_than_its_budget(budget: float, largest: int) -> None:
    branching = Branching.within(budget, largest)
    if branching is None:
        assert budget < Branching.of(2, 6).price
        return
    plant = Plant(0.0)
    settings = BranchSettings("x", (0.1,), 1.0, 0.1, 16)
    result = measure(branching, settings, "linear", 32, 0.1, plant)
    assert result.price == pytest.approx(branching.price)
    assert result.samples == pytest.approx(branching.samples)
    assert branching.price <= budget
    assert branching.length % branching.largest == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"at": ()}, r"at=\(\)"),
        ({"at": (0.5, 0.1)}, r"at=\(0.5, 0.1\)"),
        ({"at": (1.0,)}, r"at=\(1.0,\)"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"tolerance": -0.1}, "tolerance=-0.1"),
        ({"largest": 3}, "largest=3"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        CriticalBatchSize(**arguments)
    with pytest.raises(ValueError, match=said):
        AdaptiveRamp(measure="branches", **arguments)


def test_arguments_of_the_other_measure_are_refused() -> None:
    with pytest.raises(ValueError, match=r"ratio=2.0 with measure='branches', where it has no effect"):
        AdaptiveRamp(2.0, measure="branches")
    with pytest.raises(ValueError, match=r"budget=0.5 with measure='noise_scale', where it has no effect"):
        AdaptiveRamp(budget=0.5)
    with pytest.raises(ValueError, match="lr_rule='cubic'"):
        CriticalBatchSize(lr_rule="cubic")  # type: ignore[arg-type]


# ---------------------------------------------------------------------- in a run
def by_hand(multiple: int, length: int, scored: int, lr: float, accumulation: int = 1) -> list[float]:
    """Scores of a branch from the toy's first weights, by a plain loop over larger batches."""
    module, (x, y) = Toy(), data(96).tensors
    optimizer = torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)
    size = 4 * accumulation
    for start in range(0, length * size, multiple * size):
        optimizer.zero_grad()
        batch = slice(start, start + multiple * size)
        nn.functional.mse_loss(module(x[batch]), y[batch]).backward()
        optimizer.step()
    with torch.no_grad():
        first = length * size
        return [
            float(nn.functional.mse_loss(module(x[i : i + 4]), y[i : i + 4]))
            for i in range(first, first + scored * size, 4)
        ]


@pytest.mark.parametrize("accumulation", [1, 2])
def test_a_branch_is_the_training_of_a_larger_batch(accumulation: int) -> None:
    """Against a plain loop in torch: the same samples in one larger batch, at k times the rate."""
    callback = CriticalBatchSize(at=(0.0,), budget=1.0, largest=2)
    loader = DataLoader(data(96), batch_size=4)
    fit([callback], loader=loader, max_steps=17, max_epochs=-1, accumulate_grad_batches=accumulation)
    (result,) = callback.results
    assert result.present == 4 * accumulation
    for trial in result.trials:
        expected = by_hand(trial["multiple"], 6, 6, 0.05 * trial["multiple"], accumulation)
        # another order of summation over a batch, at every update
        assert trial["scores"] == pytest.approx(expected, rel=2 * rounding_after(6 * accumulation))
    assert [trial["multiple"] for trial in result.trials] == [1, 2]


def test_the_losses_of_a_branch_are_those_of_the_step_under_accumulation() -> None:
    """Lightning divides a loss by the accumulation; a race compares losses with scores, which are not divided."""
    search = LearningRateSearch(Constant(), budget=1.0)
    fit([search], loader=DataLoader(data(96), batch_size=4), max_epochs=12, accumulate_grad_batches=4)
    assert search.result is not None
    module, (x, y) = Toy(), data(96).tensors
    first = float(nn.functional.mse_loss(module(x[:16]), y[:16]))
    for trial in search.result.heats[0]:
        assert trial["losses"][0] == pytest.approx(first, rel=1e-5)


@pytest.mark.parametrize("arguments", [{}, {"accumulate_grad_batches": 2}], ids=["plain", "accumulated"])
def test_the_run_after_a_measurement_equals_the_run_without_one_to_the_bit(arguments: dict[str, Any]) -> None:
    def run(callbacks: list[Callback]) -> tuple[Any, ...]:
        torch.manual_seed(4)
        loader = DataLoader(data(50), batch_size=4, shuffle=True)
        module, trainer = fit(callbacks, loader=loader, max_epochs=6, **arguments)
        logged = {k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("train")}
        return weights(module).tolist(), torch.rand(2).tolist(), trainer.global_step, logged

    callback = CriticalBatchSize(at=(0.0, 0.4), budget=1.0)
    assert run([callback]) == run([])
    assert [result.at for result in callback.results] == [0.0, 0.4]
    assert all(result.trials for result in callback.results)


def test_a_resumed_run_measures_the_rest_as_the_whole_run_did(tmp_path: Path) -> None:
    def run(**more: Any) -> CriticalBatchSize:
        callback = CriticalBatchSize(at=(0.2, 0.7), budget=1.0)
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=20, save_top_k=-1)
        fit([callback, save], loader=ResumableLoader(data(48), 4), max_epochs=5, enable_checkpointing=True, **more)
        return callback

    whole = run()
    again = run(ckpt_path=str(tmp_path / "step=20.ckpt"))
    assert again.results == whole.results


def _in_two_processes(ramp: bool) -> Any:
    torch.manual_seed(6)
    callback: Any = CriticalBatchSize(at=(0.1, 0.5), budget=1.0)
    if ramp:
        callback = BatchSizeRamp(AdaptiveRamp(measure="branches", at=(0.1, 0.5), budget=1.0), max_batch_size=32)
    module, trainer = fit([callback], loader=DataLoader(data(96), batch_size=4, shuffle=True), max_epochs=5, **ddp())
    results = callback.state_dict()["measured"] if ramp else [r.facts() for r in callback.results]
    return results, weights(module).tolist(), trainer.global_step


def test_two_processes_measure_the_same_with_batches_of_both(tmp_path: Path) -> None:
    cases = [("logged", partial(_in_two_processes, False)), ("ramped", partial(_in_two_processes, True))]
    first, second = run_in_two_processes(cases, tmp_path)
    for name, _ in cases:
        assert not isinstance(first[name], Exception), first[name]
        assert first[name] == second[name]
        assert first[name][0][0]["present"] == 8
        assert first[name][0][0]["trials"]


# ---------------------------------------------------------------------- the ramp
class Sizes(Callback):
    """Samples and rate of every update."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, float]] = []
        self._samples = 0

    def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, batch: Any, *_: Any) -> None:
        self._samples += len(batch[0])
        if not trainer.fit_loop._should_accumulate():
            self.seen.append((self._samples, self.rate))
            self._samples = 0

    def on_before_optimizer_step(self, trainer: Trainer, module: Any, optimizer: Any) -> None:
        self.rate = optimizer.param_groups[0]["lr"]


def smooth() -> TensorDataset:
    """Without noise between samples, so that no batch is too large."""
    x = torch.ones(96, 6)
    return TensorDataset(x, torch.full((96, 1), 0.7))


@pytest.mark.parametrize("rule", ["linear", "sqrt"])
@pytest.mark.parametrize("limit", [None, 3])
def test_a_ramp_grows_to_the_critical_batch_at_the_rate_of_the_rule(rule: Any, limit: int | None) -> None:
    schedule = AdaptiveRamp(measure="branches", at=(0.1, 0.5), budget=1.0, tolerance=0.9)
    ramp, sizes = BatchSizeRamp(schedule, 16, limit, rule), Sizes()
    module = Toy(lambda module: torch.optim.SGD(module.parameters(), lr=0.001))
    _, trainer = fit([ramp, sizes], module=module, loader=DataLoader(smooth(), batch_size=4), max_epochs=6)
    assert {size for size, _ in sizes.seen} == {4, 8, 16}
    largest = 0
    for size, rate in sizes.seen:
        largest = max(largest, size)  # the end of an epoch cuts a batch, and leaves its rate
        assert rate == pytest.approx(0.001 * (largest / 4) ** (1.0 if rule == "linear" else 0.5), rel=1e-12)
    assert trainer.global_step < 6 * 24
    assert sum(size for size, _ in sizes.seen) == 6 * 96


def test_a_ramp_by_branches_goes_with_a_curve_that_falls_and_a_resume_is_to_the_bit(tmp_path: Path) -> None:
    def run(**more: Any) -> tuple[Any, ...]:
        schedule = AdaptiveRamp(measure="branches", at=(0.1, 0.5), budget=1.0, tolerance=0.9)
        ramp, sizes = BatchSizeRamp(schedule, 16), Sizes()
        save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=12, save_top_k=-1)
        callbacks = [ramp, LearningRateSchedule(Cosine()), sizes, save]
        torch.manual_seed(5)
        loader = DataLoader(data(96), batch_size=4, shuffle=True)
        module, _ = fit(callbacks, loader=loader, max_epochs=5, enable_checkpointing=True, **more)
        return weights(module).tolist(), ramp.state_dict()["measured"], ramp.state_dict()["growths"]

    whole = run()
    assert [result["at"] for result in whole[1]] == [0.1, 0.5]
    for step in (24, 36):
        assert run(ckpt_path=str(tmp_path / f"step={step}.ckpt")) == whole, step


def test_a_checkpoint_without_measurements_goes_on() -> None:
    ramp = BatchSizeRamp(AdaptiveRamp(measure="branches"))
    state = ramp.state_dict()
    del state["measured"]
    ramp.load_state_dict(state)
    assert ramp.state_dict()["measured"] == []


# ---------------------------------------------------------------------- what is said
def test_the_journal_the_logger_and_the_terminal_have_each_measurement(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "lightning.pytorch.utilities.rank_zero")
    callback = CriticalBatchSize(at=(0.1, 0.5), budget=1.0, largest=2)
    logger = CSVLogger(tmp_path, name="", version="")
    _, trainer = fit(
        [callback], loader=DataLoader(data(48), batch_size=4), max_epochs=5, logger=logger, log_every_n_steps=1
    )
    lines = [json.loads(line) for line in (tmp_path / "lightning_lr" / "critical_batch_size.jsonl").open()]
    told = [line for line in lines if line["event"] == "measured"]
    assert [line["multiple"] for line in told] == [result.multiple for result in callback.results]
    assert [line["at"] for line in told] == [0.1, 0.5]
    assert float(trainer.callback_metrics["batch/critical"]) == callback.results[-1].batch_size
    said = [r.getMessage() for r in caplog.records if "CriticalBatchSize: critical batch" in r.getMessage()]
    assert len(said) == 2
    assert f"critical batch {callback.results[0].batch_size} at 10% of the run" in said[0]


def test_too_short_a_run_measures_nothing_and_says_so() -> None:
    callback = CriticalBatchSize()
    with pytest.warns(UserWarning, match=r"budget=0.1 of 18 updates, in 3 parts, is too short for branches"):
        fit([callback])
    assert [result.batch_size for result in callback.results] == [None] * 3


def test_several_optimizers_are_refused() -> None:
    def two(module: Any) -> Any:
        return [torch.optim.SGD(part.parameters(), lr=0.1) for part in (module.body, module.head)]

    module = Toy(two)
    module.automatic_optimization = False
    for callback in (CriticalBatchSize(), BatchSizeRamp(AdaptiveRamp(measure="branches"), 16)):
        with pytest.raises(MisconfigurationException, match="under manual optimization"):
            Trainer(**quiet(callbacks=[callback], max_epochs=2)).fit(module, DataLoader(data(), batch_size=4))
