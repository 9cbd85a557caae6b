"""`BatchSizeRamp` over iterable data: micro-batches stay, accumulation grows, means are exact, totals where known."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_lr import AdaptiveRamp, BatchSizeRamp, Cosine, CurveRamp, GradientNoiseScale, StepRamp
from lightning_lr.batch_size.streamed_shape import StreamedShape, streamed_plan
from lightning_lr.callbacks import total_updates
from lightning_lr.progress import EpochShape, RunShape, walk
from tests.support.toy import Probe, Toy, data, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes
from tests.test_batch_size_ramp import Totals, Wide

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

SAMPLES, MICRO, EPOCHS = 53, 4, 3
BATCHES = 14  # the last has one sample


class Samples(IterableDataset[Any]):
    """The toy's samples in fp64; one share of them, and some of them passed over, where asked for."""

    def __init__(self, samples: int = SAMPLES, skip: int = 0, rank: int = 0, world: int = 1) -> None:
        self.samples, self.skip, self.rank, self.world = samples, skip, rank, world

    def __iter__(self) -> Iterator[Any]:
        rows = list(data(self.samples, dtype=torch.float64))
        skip, self.skip = self.skip, 0
        return iter(rows[self.rank :: self.world][skip:])


class Measured(Samples):
    """Says how many it has."""

    def __len__(self) -> int:
        return self.samples


class ResumableStream(DataLoader[Any]):
    """A loader that knows how many batches it has given, as Lightning lets one save."""

    def __init__(self) -> None:
        super().__init__(Samples(), batch_size=MICRO)
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        self.given = self.dataset.skip // MICRO  # type: ignore[attr-defined]
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % BATCHES}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.dataset.skip = state["given"] * MICRO  # type: ignore[attr-defined]


def loader(dataset: Any = None) -> DataLoader[Any]:
    return DataLoader(dataset or Samples(), batch_size=MICRO)


STEPS: dict[str, Any] = {"schedule": StepRamp([1, 1.7], factor=2.5), "max_batch_size": 30}
CURVE: dict[str, Any] = {"schedule": CurveRamp(Cosine(warmup=0.1)), "max_batch_size": 25}
KNOWN = {"limit_train_batches": BATCHES, "max_epochs": EPOCHS}
ENDLESS = {"max_steps": 25, "max_epochs": -1}


def updates_of(run: StreamedShape, length: int = SAMPLES, micro: int = MICRO) -> list[tuple[int, int, float]]:
    """First sample, last sample and lr factor of each update, walked by hand: an epoch ends where the data do."""
    batches, found, epoch, position = -(-length // micro), [], 0, 0
    for update in range(run.total_updates):
        window = run.plan.windows(0)[update] if run.endless else run.plan.windows(epoch).window_of(position)
        end = min(position + len(window.micro_sizes), batches)
        found.append((position * micro, min(end * micro, length), window.lr_factor))
        epoch, position = (epoch + 1, 0) if end == batches else (epoch, end)
    return found


def run_of(arguments: dict[str, Any], batches: int | None, **ends: Any) -> StreamedShape:
    shape = RunShape(EpochShape(batches, MICRO), **ends)
    return StreamedShape.of(shape, streamed_plan(arguments["schedule"], shape, arguments["max_batch_size"], "linear"))


def by_hand(updates: list[tuple[int, int, float]]) -> torch.Tensor:
    module = Wide()
    optimizer = module.configure_optimizers()
    x, y = data(SAMPLES, dtype=torch.float64).tensors
    for start, end, factor in updates:
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(x[start:end]), y[start:end]).backward()
        optimizer.step()
    return weights(module)


@pytest.mark.parametrize("arguments", [STEPS, CURVE], ids=["steps", "curve"])
def test_known_length_exact_means_and_totals(arguments: dict[str, Any]) -> None:
    run = run_of(arguments, BATCHES, max_epochs=EPOCHS)
    probe, totals, answers = Probe(), Totals(), []

    def configure(module: LightningModule) -> Any:
        answers.append(total_updates(module.trainer))
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    module, trainer = fit([BatchSizeRamp(**arguments), probe, totals], module=Wide(configure), loader=loader(),
                          validation=DataLoader(data(8, dtype=torch.float64)), **KNOWN)  # fmt: skip
    expected = updates_of(run)
    assert isinstance(module, Wide)
    assert [len(batch) for batch in module.seen] == ([MICRO] * 13 + [1]) * EPOCHS, "micro-batches are the loader's"
    assert trainer.global_step == run.total_updates == len(expected) == answers[0]
    assert len(expected) < BATCHES * EPOCHS, "it grew"
    assert probe.first == pytest.approx([0.05 * factor for *_, factor in expected], rel=1e-12)
    assert len(totals.validations) == EPOCHS
    # fp64; sums in another order. Lightning's mean of means would differ in the first digits (the last micro-batch of
    # an epoch has one sample of four)
    assert torch.allclose(weights(module), by_hand(expected), rtol=1e-11, atol=0)


def test_a_length_that_the_data_set_tells_is_known() -> None:
    module, _ = fit([BatchSizeRamp(**STEPS)], module=Wide(), loader=loader(Measured()), max_epochs=EPOCHS)
    assert torch.allclose(weights(module), by_hand(updates_of(run_of(STEPS, BATCHES, max_epochs=EPOCHS))), rtol=1e-11)


def test_unknown_length_ends_by_updates_and_epochs_close_windows() -> None:
    run, probe = run_of(CURVE, None, max_updates=25), Probe()
    module, trainer = fit([BatchSizeRamp(**CURVE), probe], module=Wide(), loader=loader(), **ENDLESS)
    expected = updates_of(run)
    sizes = [end - start for start, end, _ in expected]
    assert any(end == SAMPLES and (end - start) % MICRO for start, end, _ in expected[:-1]), "an epoch ended in between"
    assert max(sizes) == 24, "six micro-batches fit under a cap of 25"
    assert trainer.global_step == 25
    assert probe.first == pytest.approx([0.05 * factor for *_, factor in expected], rel=1e-12)
    assert probe.first[-1] < 0.05 * 0.1, "the curve ends with the run"
    assert torch.allclose(weights(module), by_hand(expected), rtol=1e-11, atol=0)


def test_the_plan_without_a_trainer_walks_the_same_run() -> None:
    for ends, batches in (({"max_epochs": EPOCHS}, BATCHES), ({"max_updates": 25}, None)):
        run = run_of(CURVE, batches, **ends)
        clocks = [(clock.updates, run.batch_at(clock.epoch, clock.micro_batch).size) for clock in walk(run)]
        assert [update for update, _ in clocks] == list(range(run.total_updates))
        assert clocks[0][1] == MICRO
        assert max(size for _, size in clocks if size is not None) == 24


@pytest.mark.parametrize("schedule", [StepRamp([1, 1.7], factor=2.5), CurveRamp(Cosine())], ids=["steps", "curve"])
def test_rounding_to_whole_micro_batches_never_raises_the_learning_rate(schedule: Any) -> None:
    run = run_of({"schedule": schedule, "max_batch_size": 40}, BATCHES, max_epochs=EPOCHS)
    windows = [window for epoch in range(EPOCHS) for window in run.plan.windows(epoch)]
    assert max(window.batch_size for window in windows) == (6 if isinstance(schedule, StepRamp) else 10)
    assert all(window.lr_factor <= 1.0 + 1e-9 for window in windows), (
        "rounded up, 2.5 micro-batches would ask for 1.2 x lr"
    )
    falls = [window.lr_factor / window.batch_size for window in windows]
    assert falls == sorted(falls, reverse=True), "the noise scale only falls"
    if isinstance(schedule, StepRamp):
        assert sorted(set(falls)) == pytest.approx([1 / 2.5**2, 1 / 2.5, 1.0]), "and is on its path"


class Everywhere(Callback):
    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        trainer.save_checkpoint(self.folder / f"{trainer.fit_loop.total_batch_idx}.ckpt")


def test_resume_with_a_loader_that_resumes_is_exact(tmp_path: Path) -> None:
    probe = Probe()
    whole, trainer = fit([Everywhere(tmp_path), BatchSizeRamp(**STEPS), probe], module=Wide(), loader=ResumableStream(),
                         **KNOWN)  # fmt: skip
    assert isinstance(whole, Wide)
    ends, done = {}, 0
    run = run_of(STEPS, BATCHES, max_epochs=EPOCHS)
    for epoch in range(EPOCHS):
        for window in run.plan.windows(epoch):
            done += 1
            ends[epoch * BATCHES + (window.start + window.size) - 1] = done
    for at in range(trainer.fit_loop.total_batch_idx):
        again = Probe()
        resumed, _ = fit([BatchSizeRamp(**STEPS), again], module=Wide(), loader=ResumableStream(), **KNOWN,
                         ckpt_path=str(tmp_path / f"{at}.ckpt"))  # fmt: skip
        assert isinstance(resumed, Wide)
        assert resumed.seen == whole.seen[at + 1 :], at
        if at in ends:
            assert again.series == probe.series[ends[at] :], at
            assert torch.equal(weights(resumed), weights(whole)), at
        else:  # what a window had accumulated is lost; the rest of it is an update, at its learning rate
            updates = sum(1 for end in ends if end < at)
            assert again.series == probe.series[updates:], at


def test_resume_of_a_run_that_ends_by_updates_keeps_its_clock(tmp_path: Path) -> None:
    """The data begin anew, as in plain Lightning; learning rates and number of updates are those of the whole run."""
    probe = Probe()
    fit([BatchSizeRamp(**CURVE), probe, Everywhere(tmp_path)], module=Wide(), loader=loader(), **ENDLESS)
    for at in (0, 5, 20, 30):
        again = Probe()
        _, trainer = fit([BatchSizeRamp(**CURVE), again], module=Wide(), loader=loader(), **ENDLESS,
                         ckpt_path=str(tmp_path / f"{at}.ckpt"))  # fmt: skip
        assert trainer.global_step == 25
        assert again.series == probe.series[-len(again.series) :], at


def test_logged_batch_size_is_in_samples() -> None:
    from tests.test_lightning_loop import Remember

    logger = Remember()
    fit([BatchSizeRamp(StepRamp([1, 2], factor=2.0), max_batch_size=8)], loader=DataLoader(_Toys(), batch_size=4),
        logger=logger, log_every_n_steps=1, limit_train_batches=12)  # fmt: skip
    assert logger.series("batch/size") == [4] * 12 + [8] * 12
    assert set(logger.series("batch/micro")) == {4}
    assert logger.series("batch/accumulation") == [1] * 12 + [2] * 12
    lr, noise = logger.series("lr/group_0"), logger.series("noise/scale")
    assert noise[0] == pytest.approx(lr[0] / 0.1 * (48 / 4 - 1))
    assert noise[-1] == pytest.approx(lr[-1] / 0.1 * (48 / 8 - 1))


class _Toys(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(data(48))


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "milestones without a length": (STEPS, ENDLESS, "StepRamp counts in epochs, and an epoch of this"),
    "no cap without a length": ({**CURVE, "max_batch_size": None}, ENDLESS, "give max_batch_size"),
    "cap below the start": ({**CURVE, "max_batch_size": 3}, ENDLESS, r"=3 is below .* \(micro 4 x world 1"),
    "no end": (CURVE, {"max_epochs": 3}, "counts epochs, and the train dataloader has no length"),
    "smaller micro-batch": ({**CURVE, "max_micro_batch_size": 2}, ENDLESS, "lower the DataLoader's batch_size"),
    "adaptive on one device": (
        {"schedule": AdaptiveRamp()}, {**KNOWN, "extra": GradientNoiseScale()}, "begin with one micro-batch"),
    "batches of its own": (CURVE, {**ENDLESS, "batch_size": None}, "makes its own batches"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_refused_before_training(case: str) -> None:
    arguments, run, message = REFUSED[case]
    run = dict(run)
    extra = [run.pop("extra")] if "extra" in run else []
    module = Toy()
    before = weights(module)
    stream = DataLoader(Samples(), batch_size=run.pop("batch_size", MICRO))
    with pytest.raises(MisconfigurationException, match=message):
        fit([BatchSizeRamp(**arguments), *extra], module=module, loader=stream, **run)
    assert torch.equal(weights(module), before)


def test_auto_has_nothing_to_find() -> None:
    module, _ = fit([BatchSizeRamp(**STEPS, max_micro_batch_size="auto")], module=Wide(), loader=loader(), **KNOWN)
    given, _ = fit([BatchSizeRamp(**STEPS)], module=Wide(), loader=loader(), **KNOWN)
    assert torch.equal(weights(module), weights(given))


# ---------------------------------------------------------------------- two processes
def _two(arguments: dict[str, Any], run: dict[str, Any]) -> Any:
    rank = torch.distributed.get_rank()
    stream = DataLoader(Samples(SAMPLES + 1, rank=rank, world=2), batch_size=MICRO // 2)
    callback, probe = BatchSizeRamp(**arguments), Probe()
    module, trainer = fit([GradientNoiseScale(), callback, probe], module=Wide(), loader=stream, **run, **ddp())
    return (
        weights(module),
        probe.series,
        trainer.global_step,
        [growth.batch_size for growth in callback._growth.growths],
    )


def test_two_processes_take_equal_shares(tmp_path: Path) -> None:
    adaptive = {"schedule": AdaptiveRamp(ratio=1e-9, growth=2.0, check_every=5), "max_batch_size": 16}
    cases = [("steps", partial(_two, STEPS, KNOWN)), ("curve", partial(_two, CURVE, ENDLESS)),
             ("adaptive", partial(_two, adaptive, KNOWN))]  # fmt: skip
    first, second = run_in_two_processes(cases, tmp_path)
    for name, _ in cases:
        for rank in (first, second):
            if isinstance(rank[name], Exception):
                raise rank[name]
        assert torch.equal(first[name][0], second[name][0])
        assert first[name][1:] == second[name][1:]
    assert first["curve"][2] == 25
    assert first["adaptive"][3] == [4, 8]  # in micro-batches of two samples: 8 and 16 samples

    shape = RunShape(EpochShape(BATCHES, MICRO // 2, None, 2), max_epochs=EPOCHS)
    run = StreamedShape.of(shape, streamed_plan(STEPS["schedule"], shape, 30, "linear"))
    updates = updates_of(run, SAMPLES + 1, MICRO)
    assert first["steps"][2] == len(updates)
    module = Wide()
    optimizer = module.configure_optimizers()
    x, y = data(SAMPLES + 1, dtype=torch.float64).tensors
    for start, end, factor in updates:
        optimizer.param_groups[0]["lr"] = 0.05 * factor
        optimizer.zero_grad()
        torch.nn.functional.mse_loss(module(x[start:end]), y[start:end]).backward()
        optimizer.step()
    assert torch.allclose(first["steps"][0], weights(module), rtol=1e-11, atol=0)
