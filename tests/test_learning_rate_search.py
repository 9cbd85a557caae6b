"""`LearningRateSearch`: the run after a race is, to the bit, the run without one; and what the race chooses."""

from __future__ import annotations

import json
import math
import random
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torchmetrics import MeanMetric

from lightning_lr import Constant, Cosine, LearningRateSchedule, LearningRateSearch, find_learning_rate
from lightning_lr.callbacks.search_run import _result
from lightning_lr.cli import main
from lightning_lr.lightning_internals import upcoming_batches
from lightning_lr.search import Choice, Heats, Race, SearchResult, Start, Trial, choose, plan_heats, read
from lightning_lr.search.decades import leader, learned_below, learned_nothing
from lightning_lr.search.reading import after_plateau
from tests.support.toy import ResumableLoader, Toy, data, fit, quiet, two_groups, weights
from tests.support.two_processes import ddp, fsdp2, run_in_two_processes, shard

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")


# ---------------------------------------------------------------------- everything that a race could leave behind
class Augmented(Dataset[Any]):
    """Draws from every random generator there is, and counts its reads."""

    def __init__(self) -> None:
        self.data, self.own, self.reads = data(96), np.random.default_rng(3), 0

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        x, y = self.data[index]
        noise = torch.rand(6) + random.random() + np.random.rand() + float(self.own.random())
        return x + 0.01 * noise, y


class Held(nn.Module):
    """A buffer, a plain attribute, a plain tensor and a generator that training changes."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))
        self.calls, self.plain, self.generator = 0, torch.zeros(3), torch.Generator().manual_seed(5)

    def forward(self, x: Tensor) -> Tensor:
        self.steps += 1
        self.calls += 1
        self.plain += 1
        return x + 0.001 * torch.rand(x.shape, generator=self.generator)


class Everything(LightningModule):
    """Batch norm, dropout, metrics, lists, attributes, hooks with a say in training, per-step state."""

    def __init__(self, make: Callable[[Any], Any]) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.2), nn.Linear(8, 1))
        self.held, self.metric, self.make = Held(), MeanMetric(), make
        self.seen: list[int] = []
        self.outputs: list[float] | None = None
        self.batches = 0
        self.history: list[tuple[int, float]] = []
        self.facts = {"best": math.inf}

    def on_train_epoch_start(self) -> None:
        self.outputs = []  # what a training step uses is often made here

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        self.seen.append(self.global_step)
        self.batches += 1
        loss = nn.functional.mse_loss(self.held(self.net(x)), y.clone())
        y.zero_()  # a step may write into its batch
        self.metric(loss)
        self.facts["best"] = min(self.facts["best"], float(loss))
        assert self.outputs is not None
        self.outputs.append(float(loss))
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("metric", self.metric, on_epoch=True)
        return loss

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.log("norm", torch.stack([p.grad.norm() for p in self.parameters() if p.grad is not None]).sum())

    def configure_optimizers(self) -> Any:
        return self.make(self.parameters())


class Watch(Callback):
    """Counts the hooks, and what a hook on the optimizer and one on a layer see."""

    def __init__(self) -> None:
        self.hooks, self.steps, self.forwards = 0, 0, 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.optimizers[0].register_step_post_hook(self._step)
        pl_module.net[0].register_forward_hook(self._forward)

    def _step(self, *_: Any) -> None:
        self.steps += 1

    def _forward(self, *_: Any) -> None:
        self.forwards += 1

    def on_before_backward(self, *_: Any) -> None:
        self.hooks += 1

    def on_before_zero_grad(self, *_: Any) -> None:
        self.hooks += 1

    def on_train_batch_start(self, *_: Any) -> None:
        self.hooks += 1


class Stream(IterableDataset[Any]):
    """Read again from the start by every iterator."""

    def __iter__(self) -> Iterator[Any]:
        yield from data(200)


class Once(IterableDataset[Any]):
    """One iterator for ever: what is read is gone."""

    def __init__(self) -> None:
        self.stream = iter(data(400))

    def __iter__(self) -> Iterator[Any]:
        return self.stream


def adamw(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=0.3)


def sgd(parameters: Any) -> Any:
    return torch.optim.SGD(parameters, lr=7.0, momentum=0.9, nesterov=True)


def adagrad(parameters: Any) -> Any:
    return torch.optim.Adagrad(parameters, lr=0.3)  # has a state before its first step


def tensor_lr(parameters: Any) -> Any:
    return torch.optim.AdamW(parameters, lr=torch.tensor(0.3), foreach=False)


def everything(found: float | None, make: Callable[[Any], Any], loader: Callable[[], Any], **arguments: Any) -> Any:
    """All that can be compared after a run: with a race, or at the rate that it found without one."""
    seed_everything(11, verbose=False)
    module, watch = Everything(make), Watch()
    bounds = {} if found is None else {"min_lr": found, "max_lr": found}
    search = LearningRateSearch(Cosine(warmup=0.1), budget=1.0, **bounds)
    trainer = Trainer(**quiet(callbacks=[watch, search], **arguments))
    trainer.fit(module, loader())
    assert search.rate is not None
    assert (search.result is None) == (found is not None)
    optimizer = trainer.optimizers[0].state_dict()
    return search.rate, {
        "weights": weights(module).tolist(),
        "buffers": [buffer.tolist() for buffer in module.buffers()],
        "optimizer": [[(k, torch.as_tensor(v).tolist()) for k, v in s.items()] for s in optimizer["state"].values()],
        "numbers": (torch.rand(3).tolist(), random.random(), float(np.random.rand())),
        "attributes": (module.seen, module.batches, module.outputs, module.facts),
        "held": (module.held.calls, module.held.plain.tolist(), module.held.generator.get_state().tolist()),
        "watch": (watch.hooks, watch.steps, watch.forwards),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("lr")},
        "steps": trainer.global_step,
    }


def shuffled(**arguments: Any) -> Callable[[], Any]:
    return lambda: DataLoader(Augmented(), batch_size=8, shuffle=True, **arguments)


def with_generator() -> Any:
    return DataLoader(Augmented(), batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(1))


CASES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "SGD": (sgd, shuffled(), {}),
    "AdamW, clipped": (adamw, shuffled(), {"gradient_clip_val": 0.1}),
    "Adagrad": (adagrad, shuffled(), {}),
    "a learning rate that is a tensor": (tensor_lr, shuffled(), {}),
    "bf16": (adamw, shuffled(), {"precision": "bf16-mixed"}),
    "accumulation": (sgd, shuffled(), {"accumulate_grad_batches": 2}),
    "a generator of the loader's own": (adamw, with_generator, {}),
    "workers": (sgd, shuffled(num_workers=2), {}),
    "persistent workers": (sgd, shuffled(num_workers=2, persistent_workers=True), {}),
    "a stream": (sgd, lambda: DataLoader(Stream(), batch_size=4), {"max_steps": 70, "max_epochs": -1}),
    "a stream that is read once": (sgd, lambda: DataLoader(Once(), batch_size=4), {"max_steps": 70, "max_epochs": -1}),
    "an iterator": (sgd, lambda: iter(DataLoader(data(400), batch_size=4)), {"max_steps": 70, "max_epochs": -1}),
}


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(c, marks=pytest.mark.slow if c in ("Adagrad", "persistent workers", "an iterator") else ())
        for c in CASES
    ],
)
def test_the_run_after_a_race_equals_the_run_without_one_to_the_bit(case: str) -> None:
    make, loader, arguments = CASES[case]
    arguments = {"max_epochs": 6, **arguments}
    rate, raced = everything(None, make, loader, **arguments)
    _, plain = everything(rate, make, loader, **arguments)
    for what in plain:
        assert raced[what] == plain[what], what


# ---------------------------------------------------------------------- off, resumed, broken off
def test_one_candidate_trains_as_a_schedule_at_that_rate_to_the_bit() -> None:
    searched, _ = fit([LearningRateSearch(Cosine(warmup=0.1), min_lr=0.03, max_lr=0.03)])
    scheduled, _ = fit(
        [LearningRateSchedule(Cosine(warmup=0.1))],
        module=Toy(lambda module: torch.optim.SGD(module.parameters(), lr=0.03, momentum=0.9)),
    )
    assert torch.equal(weights(searched), weights(scheduled))


def test_groups_keep_their_ratio() -> None:
    search = LearningRateSearch(Constant(), budget=1.0)
    module = Toy(two_groups)
    used: list[list[float]] = []

    class Note(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            used.append([group["lr"] for group in trainer.optimizers[0].param_groups])

    fit([search, Note()], module=module, max_epochs=8)
    assert search.rate is not None
    for body, head in used:
        assert head == pytest.approx(search.rate, rel=1e-12)
        assert body == pytest.approx(search.rate / 5, rel=1e-12)


def test_a_resumed_run_does_not_search_again(tmp_path: Any) -> None:
    first = LearningRateSearch(Cosine(), budget=1.0)
    _, trainer = fit([first], max_epochs=8, max_steps=5)
    trainer.save_checkpoint(tmp_path / "5.ckpt")

    class Count(Toy):
        steps = 0

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.steps += 1
            return super().training_step(batch, batch_idx)

    module, second = Count(), LearningRateSearch(Cosine(), budget=1.0)
    fit([second], module=module, max_epochs=8, max_steps=12, ckpt_path=str(tmp_path / "5.ckpt"))
    assert module.steps == 7
    assert second.rate == first.rate
    assert second.result is not None
    assert first.result is not None
    assert second.result.facts() == first.result.facts()


def test_every_rate_begins_with_the_same_loss_though_layers_and_data_draw_random_numbers() -> None:
    seed_everything(11, verbose=False)
    search = LearningRateSearch(budget=1.0)
    Trainer(**quiet(callbacks=[search], max_epochs=4)).fit(Everything(sgd), shuffled()())
    assert search.result is not None
    assert len({trial["losses"][0] for heat in search.result.heats for trial in heat}) == 1


@pytest.mark.parametrize("case", ["SGD", "accumulation", "workers", "a generator of the loader's own", "a stream"])
def test_batches_too_large_to_keep_are_read_again_and_are_the_same(case: str, monkeypatch: Any) -> None:
    make, loader, arguments = CASES[case]

    def raced() -> tuple[Any, ...]:
        seed_everything(11, verbose=False)
        search = LearningRateSearch(budget=1.0)
        trainer = Trainer(**quiet(callbacks=[search], **{"max_epochs": 4, **arguments}))
        trainer.fit(Everything(make), loader())
        return search.rate, search.result.heats, torch.rand(2).tolist()  # type: ignore[union-attr]

    kept = raced()
    monkeypatch.setattr(upcoming_batches, "KEPT_BYTES", 0)
    assert raced() == kept


def test_no_more_batches_are_kept_than_the_bound_allows(monkeypatch: Any) -> None:
    alive: weakref.WeakSet[Tensor] = weakref.WeakSet()
    most = torch.zeros(())  # in place: a variable of the closure is put back

    def collate(samples: Any) -> Any:
        x = torch.stack([x for x, _ in samples])
        alive.add(x)
        most.clamp_(min=len(alive))
        return x, torch.stack([y for _, y in samples])

    monkeypatch.setattr(upcoming_batches, "KEPT_BYTES", 3 * 8 * 7 * 4)  # three batches of 8 samples of 7 numbers
    fit([LearningRateSearch(budget=1.0)], loader=DataLoader(data(96), 8, collate_fn=collate), max_epochs=4)
    # three that were kept before the bound was known to be too small, and what training and prefetching hold
    assert 3 <= int(most) <= 8


class Fails(Toy):
    """Raises in its n-th training step."""

    def __init__(self, at: int, error: BaseException) -> None:
        super().__init__()
        self.at, self.error, self.steps = at, error, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.steps += 1
        if self.steps == self.at:
            raise self.error
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("error", [ValueError("a fault in the step"), KeyboardInterrupt(), MemoryError()])
def test_an_exception_inside_a_branch_leaves_nothing(error: BaseException) -> None:
    module, search = Fails(9, error), LearningRateSearch(budget=1.0)
    before = weights(module)
    trainer = Trainer(**quiet(callbacks=[search], max_epochs=8))
    with pytest.raises((type(error), SystemExit)):
        trainer.fit(module, DataLoader(data(), batch_size=8))
    assert torch.equal(weights(module), before)
    assert search.rate is None
    assert module.steps in (0, 9)  # restored by the branch, then counted by nobody
    assert trainer.global_step == 0
    assert trainer.optimizers == [] or not trainer.optimizers[0].state
    assert "log" not in module.__dict__
    assert search in trainer.callbacks  # type: ignore[attr-defined]


# ---------------------------------------------------------------------- what is chosen
class Scaled(Toy):
    """The loss times a constant."""

    def __init__(self, scale: float, configure: Any) -> None:
        super().__init__(configure)
        self.scale = scale

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx) * self.scale


def adamw_of(module: LightningModule) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=1.0, eps=1e-16)


def found(module: LightningModule, **arguments: Any) -> LearningRateSearch:
    seed_everything(arguments.pop("seed", 5), verbose=False)
    search = LearningRateSearch(budget=0.5, **arguments)
    fit([search], module=module, loader=DataLoader(data(256), batch_size=8, shuffle=True), max_epochs=8, max_steps=200)
    return search


@pytest.mark.parametrize("scale", [1e-3, 1e3])
def test_the_choice_does_not_depend_on_the_scale_of_the_loss(scale: float) -> None:
    plain, scaled = found(Scaled(1.0, adamw_of)), found(Scaled(scale, adamw_of))
    assert scaled.rate == pytest.approx(plain.rate, rel=0.02)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10])
def test_where_a_scale_of_the_loss_rounds_nothing_every_score_and_the_choice_are_the_same_to_the_bit(
    scale: float,
) -> None:
    """Powers of two, and AdamW's eps scaled with the loss: the optimizer makes the very same updates."""

    def scaled_eps(module: LightningModule) -> Any:
        return torch.optim.AdamW(module.parameters(), lr=1.0, eps=1e-8 * scale)

    def usual_eps(module: LightningModule) -> Any:
        return torch.optim.AdamW(module.parameters(), lr=1.0, eps=1e-8)

    plain, scaled = found(Scaled(1.0, usual_eps)).result, found(Scaled(scale, scaled_eps)).result
    assert plain is not None
    assert scaled is not None
    assert scaled.rate == plain.rate
    for ours, theirs in zip(chain(*scaled.heats), chain(*plain.heats), strict=True):
        assert ours["scores"] == [score * scale for score in theirs["scores"]]


@pytest.mark.parametrize("lr", [1e-12, 1e6])
def test_the_users_own_rate_does_not_matter(lr: float) -> None:
    def absurd(module: LightningModule) -> Any:
        return torch.optim.SGD(module.parameters(), lr=lr, momentum=0.9)

    def sensible(module: LightningModule) -> Any:
        return torch.optim.SGD(module.parameters(), lr=0.05, momentum=0.9)

    assert found(Toy(absurd)).rate == pytest.approx(found(Toy(sensible)).rate, rel=1e-6)


class Breaks(Toy):
    """Its loss is not a number once the weights are large."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = super().training_step(batch, batch_idx)
        return loss * (torch.nan if float(self.head.weight.detach().abs().max()) > 2.0 else 1.0)


def test_a_loss_that_is_not_finite_is_a_bad_score_and_nothing_more() -> None:
    search = found(Breaks(lambda module: torch.optim.SGD(module.parameters(), lr=1.0)))
    assert search.result is not None
    assert any(not trial["scores"] for heat in search.result.heats for trial in heat)
    assert 1e-3 < search.rate < 3.0  # type: ignore[operator]


def test_too_short_a_run_takes_a_cautious_rate_and_says_so() -> None:
    search = LearningRateSearch(budget=0.1)
    with pytest.warns(
        UserWarning, match=r"2 of 18 updates \(budget=0.1\) are too few to try anything \(a race needs about 22\)"
    ):
        fit([search], module=Toy(lambda module: torch.optim.SGD(module.parameters(), lr=100.0)))
    assert search.rate == 1e-2


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"min_lr": 1.0, "max_lr": 0.1}, "min_lr=1.0 above max_lr=0.1"),
        ({"min_lr": 0.0}, "min_lr=0.0"),
        ({"budget": 0.0}, "budget=0.0"),
        ({"budget": "half"}, "budget='half'"),
        ({"at": (0.5, 0.1)}, r"at=\(0.5, 0.1\)"),
        ({"at": (1.0,)}, r"at=\(1.0,\)"),
    ],
)
def test_arguments_outside_their_range_are_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        LearningRateSearch(**arguments)


def test_a_second_method_that_decides_about_the_rate_is_refused() -> None:
    with pytest.raises(MisconfigurationException, match="LearningRateSchedule is attached too"):
        fit([LearningRateSearch(Constant()), LearningRateSchedule(Constant())])


# ---------------------------------------------------------------------- the number alone
def test_finding_a_rate_leaves_module_trainer_and_random_numbers_as_they_were() -> None:
    def run(search: bool) -> tuple[Any, ...]:
        seed_everything(4, verbose=False)
        watch, module = Watch(), Everything(adamw)
        module.schedule = torch.optim.lr_scheduler.LinearLR  # a scheduler is no obstacle
        trainer = Trainer(**quiet(callbacks=[watch], max_epochs=6))
        keys = sorted(vars(trainer))
        if search:
            result = find_learning_rate(trainer, module, shuffled()(), budget=1.0)
            assert result.low <= result.rate <= result.high
            assert result.heats
            assert keys == sorted(vars(trainer))
            assert not trainer.optimizers
            assert trainer.global_step == 0
            assert watch.hooks == watch.steps == watch.forwards == 0
        trainer.fit(module, shuffled()())
        return weights(module).tolist(), module.batches, watch.hooks, torch.rand(2).tolist(), trainer.global_step

    assert run(search=True) == run(search=False)


def test_finding_a_rate_leaves_a_generator_of_the_loaders_own_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    loader = DataLoader(data(256), batch_size=8, shuffle=True, generator=generator)
    find_learning_rate(Trainer(**quiet(max_epochs=6)), Toy(), loader, budget=0.5)
    assert torch.equal(generator.get_state(), before)


def test_the_number_is_the_callbacks() -> None:
    seed_everything(5, verbose=False)
    loader = DataLoader(data(256), batch_size=8)
    result = find_learning_rate(Trainer(**quiet(max_epochs=6)), Toy(), loader, budget=0.5)
    seed_everything(5, verbose=False)
    search = LearningRateSearch(Constant(), budget=0.5)
    fit([search], loader=loader, max_epochs=6)
    assert result.rate == search.rate
    assert "learning rate" in result._repr_html_()


# ---------------------------------------------------------------------- two processes
class Sharded(Toy):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        shard(self, self.body, self.head, self)


def _raced(strategy: str, found: float | None) -> dict[str, Any]:
    torch.manual_seed(6)
    bounds = {} if found is None else {"min_lr": found, "max_lr": found}
    search = LearningRateSearch(Cosine(warmup=0.1), budget=1.0, **bounds)

    def configure(module: Toy) -> torch.optim.Optimizer:
        return torch.optim.AdamW(module.parameters(), 0.01)

    def whole(tensor: Tensor) -> list[float]:
        values: list[float] = (tensor.full_tensor() if isinstance(tensor, DTensor) else tensor).flatten().tolist()
        return values

    module = Toy(configure) if strategy == "ddp" else Sharded(configure)
    trainer = Trainer(
        **quiet(callbacks=[search], max_epochs=5, **(ddp() if strategy == "ddp" else fsdp2())),
    )
    trainer.fit(module, DataLoader(data(96), batch_size=4, shuffle=True))
    optimizer = trainer.optimizers[0]
    return {
        "rate": search.rate,
        "heats": [] if search.result is None else search.result.heats,
        "weights": [whole(parameter.detach()) for parameter in module.parameters()],
        "moments": [whole(optimizer.state[parameter]["exp_avg_sq"]) for parameter in module.parameters()],
        "numbers": torch.rand(2).tolist(),
        "steps": trainer.global_step,
    }


STRATEGIES = ("ddp", "fsdp2")


@pytest.fixture(scope="module")
def raced(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """By rank: a race under each strategy; and, by what rank 0 has found, the run without one."""
    folder = tmp_path_factory.mktemp("raced")
    ranks = run_in_two_processes([(name, partial(_raced, name, None)) for name in STRATEGIES], folder / "raced")
    assert all(isinstance(rank[name], dict) for rank in ranks for name in STRATEGIES), ranks
    cases = [(f"{name} off", partial(_raced, name, ranks[0][name]["rate"])) for name in STRATEGIES]
    off = run_in_two_processes(cases, folder / "off")
    return [race | run for race, run in zip(ranks, off, strict=True)]


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_two_processes_choose_the_same_rate_and_begin_as_without_a_race(
    strategy: str, raced: list[dict[str, Any]]
) -> None:
    first, second = (rank[strategy] for rank in raced)
    assert first == second
    assert first["heats"]
    alone = raced[0][f"{strategy} off"]
    assert not alone["heats"]
    for what in ("weights", "moments", "numbers", "steps"):
        assert alone[what] == first[what], what


def test_a_report_draws_the_race_and_its_choice(tmp_path: Any) -> None:
    logger = CSVLogger(tmp_path, name="", version="")
    search = LearningRateSearch(budget=1.0)
    fit([search], max_epochs=8, logger=logger, log_every_n_steps=5)
    assert main(["report", str(tmp_path), "--out", str(tmp_path / "report.png")]) in (0, None)
    assert (tmp_path / "report.png").stat().st_size > 10_000
    lines = [json.loads(line) for line in (tmp_path / "lightning_lr" / "learning_rate_search.jsonl").open()]
    (searched,) = [line for line in lines if line["event"] == "searched"]
    assert searched["rate"] == search.rate
    assert searched["price"] <= 1.1 * 48


def test_the_picture_shows_the_rates_that_were_held() -> None:
    trial = {"rate": 0.1, "losses": [2.0, 1.0], "scores": [0.9]}
    held = [{"rate": 0.2, "losses": [2.0, 9.0], "scores": []}, {"rate": 0.063, "losses": [2.0, 1.5], "scores": [1.5]}]
    result = SearchResult(0.03, 0.03, 0.1, 10.0, 0.0, [[trial]], None, held=held)
    axes = result.figure().axes[0]
    named = {str(line.get_label()): line for line in axes.lines}
    assert list(named["held without a decay: stable"].get_xydata()[0]) == [0.063, 1.5]  # type: ignore[index]
    assert set(named["held without a decay: exploded"].get_xdata()) == {0.2}  # type: ignore[arg-type]


def test_on_a_plateau_the_walk_goes_up_to_the_rates_that_learn() -> None:
    """Low rates learn nothing and do next to no harm; the noise of batches, the same for all of them, ranks them."""
    noise = [math.sin(12.9898 * batch) for batch in range(64)]

    def plateau(rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        learns = 0.3 * rate >= 0.01
        losses = [2.3 - 0.05 * learns * update for update in range(updates)]
        scores = [(1.5 if learns else 2.3) + 0.01 * noise[b] + rate * (0.1 + noise[b]) for b in range(scored)]
        return losses, scores

    race = Race(Heats((8,), 1000.0), Start(3e-4, 3e-4), lambda rate: rate, plateau)
    race.run()
    first = race.trials[0]
    assert min(trial.rate for trial in first) > 1e-7  # it went down to 3e-12
    assert min(first, key=lambda trial: trial.score).rate >= 0.03


class EasyFirstBatch:
    """The first batch costs a tenth of the others; rates of 10 and more explode at the third update."""

    def __init__(self) -> None:
        self.trained: list[float] = []

    def __call__(self, rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        self.trained.append(rate)
        losses: list[float] = []
        for update in range(updates):
            learned = 0.02 * update * math.exp(-abs(math.log10(rate / 0.1)))
            loss = 0.1 if update == 0 else (5.0 + rate) ** (update - 1) if rate > 5 and update > 1 else 1.0 - learned
            losses.append(loss)
            if not goes_on(loss):
                return losses, []
        return losses, [1.0 - 0.1 * math.exp(-abs(math.log10(rate / 0.1)))] * scored


@pytest.mark.parametrize("around", [None, 0.1])
def test_a_first_batch_that_is_easy_makes_no_rate_explode(around: float | None) -> None:
    train = EasyFirstBatch()
    race = Race(Heats((8,), 400.0), Start(1e-2, 1e-2), lambda rate: rate, train, around)
    race.run()
    (heat,) = race.trials
    assert read(heat).rate == pytest.approx(0.1, rel=0.6)
    assert all(trial.scores for trial in heat if trial.rate < 5)
    assert all(not trial.scores for trial in heat if trial.rate > 5)
    assert race.spent >= sum(trial.price for trial in heat) + 2, "what was made again is paid for"
    if around is not None:
        assert max(abs(math.log10(rate / around)) for rate in train.trained) <= 1 + 1e-9, "narrow"


@pytest.mark.parametrize(
    ("scores", "share", "rate"),
    [
        ((2.3, 2.26, 1.5, math.inf), 0.05, 0.04),  # a plateau: a decade below the best nothing is learned
        ((2.3, 2.05, 1.5, 2.9), 0.3125, 0.08),
        ((2.3, 1.6, 1.5, 2.9), 0.875, 0.08),
        ((2.3, 1.5, 1.9, math.inf), None, 0.08),  # the lowest rate is a decade below the best: nothing to see
        ((1.5, 1.8, 1.9, math.inf), None, 0.08),
        ((math.inf, math.inf, math.inf, math.inf), None, 0.08),
    ],
)
def test_a_choice_after_a_plateau_is_halved(scores: tuple[float, ...], share: float | None, rate: float) -> None:
    rates = (1e-3, 1e-2, 1e-1, 1.0)
    heat = [Trial(r, (2.3,) * 8, (s,) * 4 if math.isfinite(s) else ()) for r, s in zip(rates, scores, strict=True)]
    assert learned_below(heat) == (None if share is None else pytest.approx(share, abs=1e-12))
    found = after_plateau(Choice(0.08, 0.05, 0.2, None), heat)
    assert found == Choice(rate, min(0.05, rate), 0.2, None)


NOISE = (0.03, -0.03, 0.03, -0.03)


def over_decades(scores: Sequence[float], times: float = 1.0, constant: float = 0.0) -> list[Trial]:
    """A first heat from 1e-3 on, whose scores differ by 0.03 from batch to batch; the loss may have been changed."""
    return [
        Trial(1e-3 * 10**n, (times * 2.3 + constant,) * 8, tuple(times * (score + x) + constant for x in NOISE))
        for n, score in enumerate(scores)
    ]


@pytest.mark.parametrize(
    ("scores", "nothing", "lead"),
    [
        ((2.3, 2.31, 2.4, 3.0), True, 0.1),  # harm of 0.1 is less than 15 x 0.03 and a tenth of 2.3
        ((2.3, 2.29, 2.9, 3.0), True, 0.01),  # learned: 0.01, less than 0.02 x 2.3
        ((2.3, 2.2, 2.4, 3.0), False, 0.01),  # learned: 0.1, a rate above would have done little harm
        ((2.3, 2.9, 3.0, 3.0), True, 0.001),
        ((2.3, 2.32, math.inf, math.inf), True, 0.01),
    ],
)
def test_where_nothing_is_learned_the_highest_harmless_rate_leads(
    scores: tuple[float, ...], nothing: bool, lead: float
) -> None:
    for times in (1.0, 1e-3, 1e3):  # the unit of a loss decides nothing
        heat = over_decades([score for score in scores if math.isfinite(score)], times)
        assert learned_nothing(heat) is nothing
        assert leader(heat).rate == pytest.approx(lead)


def test_a_constant_in_the_loss_is_no_plateau() -> None:
    """A fall of 0.3 is 10 times what batches differ by, whatever share of a loss of 1 002.3 it is."""
    heat = over_decades((2.3, 2.2, 2.0, 6.0), constant=1000.0)
    assert not learned_nothing(heat)
    assert leader(heat).rate == pytest.approx(0.1)


def test_a_choice_where_nothing_was_learned_is_halved_only_above_what_does_no_harm() -> None:
    heat = over_decades((2.3, 2.31, 2.4, 3.0))  # leads: 0.1
    assert after_plateau(Choice(0.2, 0.1, 0.5, None), heat).rate == pytest.approx(0.1)
    assert after_plateau(Choice(0.05, 0.02, 0.5, None), heat).rate == 0.05


@pytest.mark.parametrize(("learns", "said"), [(True, ""), (False, "at no rate from 0.001 to")])
def test_a_race_that_never_learns_says_so(learns: bool, said: str) -> None:
    def train(rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        if rate > 5:
            return [2.3, 9.9], []
        fallen = 0.2 * math.exp(-(math.log10(rate / 0.1) ** 2)) if learns and updates > 12 else 0.0
        return [2.3] * updates, [2.3 + 0.05 * rate - fallen + NOISE[n % 4] for n in range(scored)]

    race = Race(Heats((8, 18), 500.0), Start(1e-3, 1e-3), lambda rate: rate, train)
    race.run()
    assert _result(race, 0.0, *choose(race)).warning.startswith(f"LearningRateSearch: {said}" if said else "")
    assert bool(_result(race, 0.0, *choose(race)).warning) is not learns


@pytest.mark.parametrize("start", [1e-3, 1e-5])
def test_a_plateau_that_no_short_schedule_leaves_is_left_by_a_longer_one(start: float) -> None:
    """Learned is from the twelfth update on and from 0.03 on; until then a rate does the more harm the higher it is."""

    def late(rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        if rate > 0.5:
            return [2.3, 9.9], []
        learned = 1.5 * math.exp(-((math.log10(rate / 0.1) / 0.7) ** 2)) if updates > 12 and rate > 0.02 else 0.0
        scores = [2.3 + 0.1 * rate**0.5 - learned + NOISE[n % 4] for n in range(scored)]
        return [2.3] * updates, scores

    race = Race(Heats((8, 18), 500.0), Start(start, start), lambda rate: rate, late)
    race.run()
    heat, choice = choose(race)
    assert heat is race.trials[1]
    assert choice is not None
    assert 0.03 <= choice.rate <= 0.2
    assert min(trial.rate for trial in race.trials[0]) >= 0.99 * start  # the lowest does the least harm, and is no way


@pytest.mark.parametrize(
    ("second", "least", "around", "by"),
    [(0.01, 0.0, None, 2.0), (0.6, 0.0, None, 1.0), (0.01, 0.0, 0.1, 1.0), (0.01, 0.09, None, None)],
)
def test_a_race_on_a_plateau_chooses_half_of_what_its_last_heat_says(
    second: float, least: float, around: float | None, by: float | None
) -> None:
    """``second``: what the rate a decade below the best has learned in the first heat, of what the best one has."""
    first = [Trial(rate, (2.0,) * 8, (2.0 - fall,) * 4) for rate, fall in ((0.001, 0), (0.01, second), (0.1, 1))]
    last = [Trial(rate, (2.0,) * 16, (score,) * 5) for rate, score in ((0.03, 1.2), (0.1, 1.0), (0.3, 1.2))]
    race = Race(Heats((8, 16), 128.0), Start(1e-3, 1e-3), lambda rate: max(rate, least), lambda *_: ((), ()), around)
    race.trials = [first, last]
    heat, choice = choose(race)
    assert choice is not None
    assert heat is last
    assert choice.rate == (least if by is None else read(last).rate / by)


def test_a_present_rate_is_kept_where_everything_around_it_diverges() -> None:
    def diverges(rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        return [1.0, math.nan], []

    race = Race(Heats((8,), 1e6), Start(1e-2, 1e-2), lambda rate: rate, diverges, 0.03)
    race.run()
    assert min(trial.rate for heat in race.trials for trial in heat) >= 0.003 * (1 - 1e-9)
    result = _result(race, 0.5, (), None)
    assert result.rate == 0.03
    assert "around 0.03, which is kept" in result.warning


def test_a_near_tie_above_the_best_rate_does_not_hide_the_slope_below_it() -> None:
    scores = {0.01: 0.431, 0.0316: 0.2497, 0.1: 0.2651}
    noise = (0.05, -0.08, 0.06, -0.03)
    trials = [
        Trial(rate, (0.59,) * 22, tuple(score + (1 + rate) * each for each in noise)) for rate, score in scores.items()
    ]
    assert 0.025 < read(trials).rate < 0.06


def _three(scale: float = 1.0, noise: float = 0.0) -> list[Trial]:
    """Races of an MLP: three rates, differences of the size of the noise between batches."""
    scores = {0.01: 0.403, 0.0316: 0.342, 0.1: 0.417}
    return [
        Trial(
            rate,
            (scale * 0.95,) * 24,
            tuple(scale * (score + noise * math.sin(12.9898 * ((7 * i + b) % 24))) for b in range(8)),
        )
        for i, (rate, score) in enumerate(scores.items())
    ]


@pytest.mark.parametrize("noise", [0.0, 0.05, 0.2, 0.5])
def test_where_the_smoothed_score_is_flat_the_choice_stays_near_the_minimum(noise: float) -> None:
    """It fell to the lowest rate of the heat."""
    choice = read(_three(noise=noise))
    assert choice.posterior is not None
    minimum = math.exp(choice.posterior.argmin)
    assert 0.5 * minimum <= choice.rate <= minimum * (1 + 1e-9)


@pytest.mark.parametrize("scale", [2.0**-10, 2.0**10, 1e-3, 1e3, 1e-30, 1e30])
def test_the_scale_of_the_loss_does_not_matter(scale: float) -> None:
    assert read(_three(scale, 0.1)).rate == pytest.approx(read(_three(1.0, 0.1)).rate, rel=1e-6)


def test_a_rate_that_cannot_be_held_again_is_lowered_by_half_a_decade() -> None:
    race = Race(Heats((4, 12), 83.0), Start(1e-2, 1e-2), lambda rate: rate, Edge(0.01, patience=7))
    race.run()
    before = race.spent
    found = race.hold(0.3, race.trials[-1])
    assert 0 < len(race.held) < 4  # the edge is far below, and the budget ends first
    halved = len(race.held) - 1
    assert found == pytest.approx(0.3 / 2**halved / math.sqrt(10.0))
    assert before < race.spent <= 1.1 * 83.0


@pytest.mark.parametrize(
    ("name", "reason"),
    [("FSDPStrategy", "FSDPStrategy keeps the weights in flat shards"), ("DeepSpeedStrategy", "buffers of an engine")],
)
def test_strategies_whose_state_cannot_be_put_back_are_refused_by_name(
    name: str, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from lightning.pytorch import strategies

    trainer = Trainer(**quiet(callbacks=[LearningRateSearch()], max_epochs=1))
    before, module = torch.get_rng_state(), Toy()
    monkeypatch.setattr(strategies, name, type(trainer.strategy))  # the real ones need their packages, and devices
    with pytest.raises(MisconfigurationException, match=f"LearningRateSearch: the run .*{reason}"):
        trainer.fit(module, DataLoader(data(8), batch_size=4))
    assert trainer.global_step == 0
    assert torch.equal(before, torch.get_rng_state())


def test_no_branch_logs_anything() -> None:
    """The mean of an epoch is that of the run's own losses, also in the epoch of the race."""
    module = Everything(sgd)
    logged: list[float] = []

    class Losses(Callback):
        def on_train_batch_end(self, trainer: Trainer, module: Any, outputs: Any, *_: Any) -> None:
            logged.append(float(outputs["loss"]))

    seed_everything(11, verbose=False)
    trainer = Trainer(
        **quiet(callbacks=[Losses(), LearningRateSearch(Cosine(), budget=1.0)], max_epochs=1, max_steps=60)
    )
    trainer.fit(module, DataLoader(data(240), batch_size=4))
    assert float(trainer.callback_metrics["loss_epoch"]) == pytest.approx(sum(logged) / len(logged), rel=1e-5)


@pytest.mark.parametrize(
    ("worst", "limit"),
    [((), 0.25), ((3.0,) * 4, 0.25), ((0.9,) * 4, None)],
    ids=["diverged", "worse than any batch before", "only a bad score"],
)
def test_no_rate_is_chosen_within_four_times_of_one_that_failed(worst: tuple[float, ...], limit: float | None) -> None:
    scores = {0.1: 0.95, 0.2: 0.8, 0.316: 0.5}
    trials = [Trial(rate, (1.07,) * 12, (score,) * 4) for rate, score in scores.items()]
    rate = read([*trials, Trial(1.0, (1.07,) * 12, worst)]).rate
    if limit is None:
        assert rate > 0.26
    else:
        assert rate == limit


@pytest.mark.parametrize(
    ("updates", "share"),
    [(100, 0.5), (256, 0.5), (1024, 0.1984), (10_000, 0.0434), (1_000_000, 0.002016)],
)
def test_the_longer_a_run_the_smaller_the_share_of_it_that_is_spent_by_default(updates: int, share: float) -> None:
    search = LearningRateSearch()
    assert search.settings.updates(updates) / updates == pytest.approx(share, rel=2e-3)  # three digits are given above
    assert LearningRateSearch(budget=0.3).settings.updates(updates) == pytest.approx(0.3 * updates)


@pytest.mark.parametrize("budget", [64, 128, 203, 434, 936])
@pytest.mark.parametrize("narrow", [False, True])
def test_a_plan_sets_room_aside_for_the_guard_and_costs_no_more_than_the_budget(budget: float, narrow: bool) -> None:
    heats = plan_heats(budget, narrow)
    assert heats is not None
    assert heats.held >= 8
    assert heats.held == max(8, heats.lengths[-1] // 2)
    assert heats.price <= budget
    assert f"the choice held for {heats.held}" in str(heats)
    # and a schedule that is one update longer would not fit
    last = heats.lengths[-1] + 1
    longer = replace(heats, lengths=(*heats.lengths[:-1], last), held=max(8, last // 2))
    assert longer.price > budget or heats.lengths[-1] == 128


def test_a_budget_for_one_short_heat_has_no_guard() -> None:
    heats = plan_heats(25.6)
    assert heats is not None
    assert (len(heats.lengths), heats.held) == (1, 0)
    assert "held" not in str(heats)


def test_a_race_of_a_planned_budget_holds_its_choice() -> None:
    heats = plan_heats(128)
    assert heats is not None
    race = Race(heats, Start(1e-2, 1e-2), lambda rate: rate, Edge(10.0, patience=1))
    race.run()
    race.hold(read(race.trials[-1]).rate, race.trials[-1])
    assert len(race.held[0].losses) >= heats.held
    assert race.spent <= 1.1 * 128


class Edge:
    """A rate above an edge explodes once it has been at its peak for some updates, which a decay spares it."""

    def __init__(self, edge: float, patience: int) -> None:
        self.edge, self.patience = edge, patience

    def __call__(self, rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        losses, above = [], 0
        for update in range(updates):
            above += rate * schedule(update, updates) > self.edge
            losses.append(1.0 - 0.01 * update if above < self.patience else 100.0 * rate / self.edge)
            if not goes_on(losses[-1]):
                return losses, []
        return losses, [1.0 + abs(math.log10(rate / 0.3))] * scored


def test_a_rate_that_explodes_when_it_is_held_is_given_up_for_lower_ones() -> None:
    race = Race(Heats((4, 12), 200.0), Start(1e-2, 1e-2), lambda rate: rate, Edge(0.2, patience=7))
    race.run()
    chosen = read(race.trials[-1]).rate
    assert chosen == pytest.approx(0.3, rel=0.3)  # no schedule that decays has seen the edge
    assert race.hold(chosen, race.trials[-1]) == chosen / 4
    assert [trial.rate for trial in race.held] == [2.0 * chosen, chosen, chosen / 2.0]
    assert race.spent <= 1.1 * 200.0


def test_a_rate_that_stays_stable_when_it_is_held_is_kept() -> None:
    race = Race(Heats((4, 12), 200.0), Start(1e-2, 1e-2), lambda rate: rate, Edge(2.0, patience=7))
    race.run()
    assert race.hold(0.3, race.trials[-1]) == 0.3
    assert [trial.rate for trial in race.held] == [0.6]


def test_a_held_rate_that_ends_above_where_training_began_is_not_stable() -> None:
    class Drifts(Edge):
        """Above its edge the loss of a rate that is held rises, but does not explode."""

        def __call__(self, rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
            held = schedule(updates - 1, updates) == 1.0
            losses = [
                1.0 + (0.02 * update if held and rate > self.edge else -0.01 * update) for update in range(updates)
            ]
            scores = [1.6] * scored if held and rate > self.edge else [0.5 + abs(math.log10(rate / 0.3))] * scored
            return losses, scores

    race = Race(Heats((4, 12), 200.0), Start(1e-2, 1e-2), lambda rate: rate, Drifts(0.4, patience=0))
    race.run()
    assert race.hold(0.3, race.trials[-1]) == 0.15


def test_a_further_rate_above_the_best_leaves_the_guard_its_room() -> None:
    heats = plan_heats(128)
    assert heats is not None

    def rising(rate: float, updates: int, scored: int, goes_on: Any, schedule: Any) -> Any:
        # short schedules point to 0.1, longer ones upwards
        best = 0.1 if updates <= heats.lengths[0] else 10.0
        return [3.0 - 0.01 * update for update in range(updates)], [1.0 + abs(math.log10(rate / best))] * scored

    race = Race(heats, Start(1e-2, 1e-2), lambda rate: rate, rising)
    race.run()
    choice = read(race.trials[-1]).rate
    race.hold(choice, race.trials[-1])
    assert race.held
    assert len(race.held[0].losses) >= heats.held
    assert race.spent <= 1.1 * 128


def test_a_held_rate_stays_within_the_users_bounds_and_the_budget() -> None:
    race = Race(Heats((4, 12), 70.0), Start(1e-2, 1e-2), lambda rate: min(max(rate, 0.25), 0.4), Edge(0.2, patience=7))
    race.run()
    assert race.hold(0.4, race.trials[-1]) == 0.25
    assert all(trial.rate <= 0.4 for trial in race.held)
    assert race.spent <= 1.1 * 70.0


class TurnsUnstable(Toy):
    """Its loss leaves for infinity once the rate has been above an edge for a few updates."""

    def __init__(self, configure: Any, edge: float) -> None:
        super().__init__(configure)
        self.edge, self.above = edge, 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.above += self.trainer.optimizers[0].param_groups[0]["lr"] > self.edge
        return super().training_step(batch, batch_idx) * (math.inf if self.above > 12 else 1.0)


def test_a_run_does_not_begin_at_a_rate_that_explodes_only_when_it_is_held() -> None:
    def sgd_of(module: LightningModule) -> Any:
        return torch.optim.SGD(module.parameters(), lr=1.0)

    free = found(TurnsUnstable(sgd_of, math.inf))
    assert free.result is not None
    assert free.result.held[-1]["scores"], "the toy is stable at twice the chosen rate"
    bounded = found(TurnsUnstable(sgd_of, free.rate / 1.05))  # type: ignore[operator]
    assert bounded.result is not None
    assert bounded.rate <= free.rate / 2 * (1 + 1e-9)  # type: ignore[operator]
    assert not bounded.result.held[0]["scores"]


def test_a_second_search_is_narrow_and_a_resumed_run_makes_it_to_the_bit(tmp_path: Any) -> None:
    def search() -> LearningRateSearch:
        return LearningRateSearch(Cosine(warmup=0.05), budget=1.0, at=(0.0, 0.3))

    class Save(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step in (10, 20):  # before the second search, at update 15 of 48, and after it
                trainer.save_checkpoint(tmp_path / f"{trainer.global_step}.ckpt")

    def loader() -> ResumableLoader:
        return ResumableLoader(data(), 8)

    def resume_from(updates: int) -> tuple[LearningRateSearch, Tensor]:
        again = search()
        module, _ = fit([again], loader=loader(), max_epochs=8, ckpt_path=str(tmp_path / f"{updates}.ckpt"))
        return again, weights(module)

    whole = search()
    seen: dict[int, float | None] = {}

    class Rate(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            seen[trainer.global_step] = whole.rate

    module, trainer = fit([whole, Rate(), Save()], loader=loader(), max_epochs=8)
    assert trainer.global_step == 48
    first = weights(module)
    before = seen[10]
    assert before is not None
    assert whole.result is not None
    assert whole.result.at == 0.3
    (heat,) = whole.result.heats
    tried = sorted(trial["rate"] for trial in heat)
    assert any(rate == pytest.approx(before) for rate in tried)
    assert 2 <= len(tried) <= 4
    assert tried[-1] / tried[0] == pytest.approx(10 ** (0.5 * (len(tried) - 1)))

    again, weights_again = resume_from(10)  # makes the second search, not the first
    assert again.result is not None
    assert again.result.facts() == whole.result.facts()
    assert torch.equal(first, weights_again)

    again, weights_again = resume_from(20)
    assert again.rate == whole.rate
    assert torch.equal(first, weights_again)
