"""A run after branches is, to the bit, the run without them: engines, schedules, listeners, data of every kind."""

from __future__ import annotations

import argparse
import array
import collections
import itertools
import logging
import random
import types
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, IterableDataset, Subset

from lightning_lr import Cosine, CriticalBatchSize, LearningRateSearch
from lightning_lr.branches import ForkedState
from tests.support.processes import run_in_processes
from tests.support.toy import Toy, data, fit, quiet, weights
from tests.support.zero_runs import needs_deepspeed, whole_weights, zero

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

ENGINES: dict[str, tuple[int, dict[str, Any]]] = {
    "1": (1, {}),
    "2": (2, {}),
    "3": (3, {}),
    "3-nothing-persists": (3, {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}}),
    "2-offload": (2, {"offload_optimizer": True}),
    "3-offload": (3, {"offload_optimizer": True, "offload_parameters": True}),
}


class Everything(LightningModule):
    """A frozen layer, batch norm (not in bf16, where it fails under DeepSpeed on a CPU), dropout, a list, a counter, a
    step that writes into its batch."""

    def __init__(self, norm: bool = True) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.frozen = nn.Linear(6, 6).requires_grad_(False)
            self.net = nn.Sequential(
                nn.Linear(6, 8),
                nn.BatchNorm1d(8) if norm else nn.Identity(),
                nn.Tanh(),
                nn.Dropout(0.2),
                nn.Linear(8, 1),
            )
        self.losses: list[float] = []
        self.steps = 0

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.net(self.frozen(x)), y.clone())
        y.zero_()
        self.steps += 1
        self.losses.append(float(loss))
        self.log("loss", loss, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self) -> Any:
        bias = [p for n, p in self.net.named_parameters() if n.endswith("bias")]
        rest = [p for n, p in self.net.named_parameters() if not n.endswith("bias")]
        return torch.optim.AdamW([{"params": rest}, {"params": bias, "lr": 0.1}], lr=0.3)


class End(Callback):
    """What an engine holds when training ends."""

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        engine: Any = trainer.model
        self.weights = whole_weights(pl_module).tolist()
        self.buffers = [buffer.tolist() for buffer in pl_module.buffers()]
        self.optimizer = [
            [(name, torch.as_tensor(value).tolist()) for name, value in state.items()]
            for state in trainer.optimizers[0].state.values()
        ]
        self.counters = (
            engine.global_steps, engine.micro_steps, engine.skipped_steps, engine.global_samples,
            engine.optimizer.micro_step_id, vars(engine.optimizer.loss_scaler),
        )  # fmt: skip


def _zero_run(engine: str, found: float | None, at: float, **arguments: Any) -> dict[str, Any]:
    stage, settings = ENGINES[engine]
    torch.manual_seed(6)
    bounds = {} if found is None else {"min_lr": found, "max_lr": found}
    search, end = LearningRateSearch(Cosine(warmup=0.1), budget=1.0, at=(at,), **bounds), End()
    loader = DataLoader(data(96), batch_size=4, shuffle=True)
    module, trainer = fit(
        [search, end],
        module=Everything(norm="precision" not in arguments),
        loader=loader,
        max_epochs=4,
        **zero(stage, **settings),
        **arguments,
    )
    return {
        "rate": search.rate,
        "heats": [] if search.result is None else search.result.heats,
        "weights": end.weights,
        "buffers": end.buffers,
        "optimizer": end.optimizer,
        "counters": end.counters,
        "numbers": torch.rand(2).tolist(),
        "attributes": (module.steps, module.losses),
        "metrics": {k: float(v) for k, v in trainer.callback_metrics.items() if not k.startswith("lr")},
        "steps": trainer.global_step,
    }


CASES = {
    **{f"stage {engine}": (engine, {}) for engine in ENGINES},
    "stage 2, accumulated and clipped": ("2", {"accumulate_grad_batches": 2, "gradient_clip_val": 0.1}),
    "stage 3 in bf16": ("3", {"precision": "bf16-mixed"}),
    "stage 1 in bf16": ("1", {"precision": "bf16-mixed"}),
}


@needs_deepspeed
@pytest.mark.slow  # the gauntlet has the three stages
def test_an_engine_goes_on_after_a_race_as_without_one_to_the_bit(tmp_path: Path) -> None:
    raced = {name: partial(_zero_run, engine, None, 0.0, **more) for name, (engine, more) in CASES.items()}
    first, second = run_in_processes(list(raced.items()), tmp_path / "raced", 2)
    for name in CASES:
        assert isinstance(first[name], dict), (name, first[name])
    off = {name: partial(_zero_run, engine, first[name]["rate"], 0.0, **more) for name, (engine, more) in CASES.items()}
    alone, _ = run_in_processes(list(off.items()), tmp_path / "off", 2)
    for name in CASES:
        assert isinstance(alone[name], dict), alone[name]
        assert first[name]["heats"], name
        assert first[name]["rate"] == second[name]["rate"], name
        for what in set(alone[name]) - {"heats"}:
            assert alone[name][what] == first[name][what], (name, what)


# ---------------------------------------------------------------------- what a walk over objects finds
class Held(nn.Module):
    """Anything as an attribute of a module."""

    def __init__(self, thing: Any) -> None:
        super().__init__()
        self.thing = thing


def _set(name: str, value: Any) -> Callable[[Any], None]:
    return lambda thing: setattr(thing, name, value)


class Slotted:
    __slots__ = ("count",)

    def __init__(self) -> None:
        self.count = 1


def _scripted() -> Any:
    return torch.jit.script(nn.BatchNorm1d(2))


KINDS: dict[str, tuple[Callable[[], Any], Callable[[Any], None], Callable[[Any], Any]]] = {
    "a namespace": (lambda: types.SimpleNamespace(n=1), _set("n", 2), vars),
    "parsed arguments": (lambda: argparse.Namespace(n=1), _set("n", 2), vars),
    "an array": (lambda: array.array("d", [1.0, 2.0]), lambda a: a.append(3.0), list),
    "a counter": (lambda: collections.Counter("aab"), lambda c: c.update("b"), dict),
    "a chain of maps": (lambda: collections.ChainMap({"a": 1}), lambda c: c.update(a=2), dict),
    "a user dictionary": (lambda: collections.UserDict(a=1), lambda d: d.update(a=2), dict),
    "a user list": (lambda: collections.UserList([1]), lambda d: d.append(2), list),
    "a deque with an end": (lambda: collections.deque([1, 2], 2), lambda d: d.append(3), list),
    "slots": (Slotted, _set("count", 2), lambda s: s.count),
    "a list in a tuple in a dictionary": (lambda: {"a": ([1],)}, lambda d: d["a"][0].append(2), repr),
    "a generator of torch": (torch.Generator, lambda g: torch.rand(1, generator=g), lambda g: g.get_state().tolist()),
    "a generator of numpy": (lambda: np.random.default_rng(1), lambda g: g.random(), lambda g: g.bit_generator.state),
    "a generator of Python": (lambda: random.Random(1), lambda g: g.random(), lambda g: g.getstate()),
    "an array of numpy": (lambda: np.zeros(3), lambda a: a.__iadd__(1), lambda a: a.tolist()),
    "a scripted module": (_scripted, lambda m: m(torch.randn(5, 2)), lambda m: [b.tolist() for b in m.buffers()]),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_everything_that_a_step_may_change_is_put_back(kind: str) -> None:
    make, change, facts = KINDS[kind]
    thing = make()
    before, fork = facts(thing), ForkedState([Held(thing)])
    if isinstance(before, dict | list):
        before = type(before)(before)
    change(thing)
    assert facts(thing) != before, "the change changes nothing"
    fork.restore()
    assert facts(thing) == before


COUNT, NOTES, NETWORK = 0, {"seen": [1]}, nn.Linear(2, 2)


class Stats:
    """Is never made: its attributes are a program's notes."""

    steps = 0


def _helper() -> float:
    global COUNT
    COUNT += 1
    return COUNT + Stats.steps


def _closure() -> Callable[[], int]:
    count = 0

    def counts() -> int:
        nonlocal count
        count += 1
        return count

    return counts


class InCode(nn.Module):
    """Goes by everything that code can keep besides objects."""

    calls = 0
    shared: ClassVar[list[int]] = []

    def __init__(self) -> None:
        super().__init__()
        self.counts = _closure()
        self.method = types.MethodType(lambda thing: setattr(thing, "count", thing.count + 1) or thing.count, Slotted())
        self.partial = partial(lambda notes: notes.append(1) or len(notes), [])

    def forward(self, more: list[int] = []) -> list[Any]:  # noqa: B006
        InCode.calls += 1
        InCode.shared.append(1)
        Stats.steps += 1
        NOTES["seen"].append(2)
        more.append(3)
        _helper.last = getattr(_helper, "last", 0) + 1  # type: ignore[attr-defined]
        with torch.no_grad():
            NETWORK.weight.add_(1)
        found: list[Any] = [self.calls, len(self.shared), _helper(), len(NOTES["seen"]), len(more), self.counts()]
        found += [_helper.last, self.method(), self.partial(), NETWORK.weight.sum().item()]  # type: ignore[attr-defined]
        return found


def test_what_code_keeps_outside_of_objects_is_put_back() -> None:
    module = InCode()
    module()
    fork = ForkedState([module])
    first = module()
    assert all(one != two for one, two in zip(first, module(), strict=True)), "each call leaves a trace in each place"
    fork.restore()
    assert module() == first


def test_data_that_code_alone_leads_to_is_not_copied() -> None:
    data = torch.zeros(1 << 20)

    class Reads(nn.Module):
        def forward(self) -> Tensor:
            return data.sum()

    assert ForkedState([Reads()]).copied_bytes < 1 << 16


def test_two_names_of_one_tensor_are_copied_once() -> None:
    weight = nn.Parameter(torch.zeros(1000))
    module = Held([weight, weight.data, weight.detach().view(10, 100)])
    module.own = weight
    fork = ForkedState([module])
    assert fork.copied_bytes == 4000
    weight.data.add_(1)
    fork.restore()
    assert not weight.any()


def test_a_host_copy_is_no_larger_than_the_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """One copy of weights, buffers and optimizer state, however many branches there are."""
    made: list[ForkedState] = []
    build = ForkedState.__init__

    def noted(self: ForkedState, *args: Any, **kwargs: Any) -> None:
        build(self, *args, **kwargs)
        made.append(self)

    monkeypatch.setattr(ForkedState, "__init__", noted)
    module = Toy(lambda module: torch.optim.AdamW(module.parameters(), lr=0.01))
    fit([CriticalBatchSize(at=(0.5,), budget=1.0)], module=module, loader=DataLoader(data(), batch_size=2))
    tensors = [*module.parameters(), *module.buffers()]
    state = [value for of in module.trainer.optimizers[0].state.values() for value in of.values()]
    size = sum(tensor.numel() * tensor.element_size() for tensor in [*tensors, *state])
    assert 0 < sum(fork.copied_bytes for fork in made) <= size


def test_what_cannot_be_put_back_is_warned_of() -> None:
    class Draws(Toy):
        def __init__(self) -> None:
            super().__init__()
            self.numbers = itertools.count()

        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            next(self.numbers)
            return super().training_step(batch, batch_idx)

    with pytest.warns(UserWarning, match=r"Draws\.numbers is a count, and what a branch takes from it is gone"):
        fit([CriticalBatchSize(at=(0.1,), budget=1.0)], module=Draws(), loader=DataLoader(data(), batch_size=2))


# ---------------------------------------------------------------------- data
class Noisy(Dataset[Any]):
    """Draws from a generator of its own and from the global ones, and counts."""

    def __init__(self) -> None:
        self.data, self.own, self.reads = data(96), np.random.default_rng(3), 0

    def __len__(self) -> int:
        return 96

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        x, y = self.data[index]
        return x + 0.01 * (float(self.own.random()) + random.random() + float(np.random.rand())), y


class Endless(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        for index in itertools.count():
            yield data(96)[index % 96]


def _subset() -> Any:
    return DataLoader(Subset(Noisy(), range(80)), batch_size=4, shuffle=True)


def _concatenated() -> Any:
    return DataLoader(ConcatDataset([Noisy(), Subset(Noisy(), range(40))]), batch_size=4, shuffle=True)


def _several() -> Any:
    return [DataLoader(Noisy(), batch_size=4, shuffle=True), DataLoader(Noisy(), batch_size=6)]


def _workers() -> Any:
    return DataLoader(Subset(Noisy(), range(80)), batch_size=4, shuffle=True, num_workers=1, persistent_workers=True)


class FirstOfMany(Toy):
    """Takes the batch of the first of several loaders, and notes what the data have been asked."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        several = isinstance(batch[0], list | tuple)
        return super().training_step(batch[0] if several else batch, batch_idx)


LOADERS: dict[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "a part of a data set": (_subset, {}),
    "several data sets in one": (_concatenated, {}),
    "several loaders": (_several, {}),
    "an endless stream": (lambda: DataLoader(Endless(), batch_size=4), {"max_steps": 40, "max_epochs": -1}),
    "a part of a data set in a worker": (_workers, {}),
}


def _reads(loader: Any) -> list[Any]:
    found, waiting = [], [loader]
    while waiting:
        thing = waiting.pop()
        if isinstance(thing, Noisy):
            found.append((thing.reads, thing.own.bit_generator.state))
        inner = thing if isinstance(thing, list) else vars(thing).values()
        waiting += [value for value in inner if isinstance(value, Dataset | DataLoader | list)]
    return found


@pytest.mark.parametrize("name", LOADERS)
def test_the_data_go_on_as_without_branches(name: str) -> None:
    make, arguments = LOADERS[name]

    def run(callbacks: list[Callback]) -> Any:
        torch.manual_seed(4), random.seed(4), np.random.seed(4)
        loader, module = make(), FirstOfMany()
        trainer = Trainer(**quiet(callbacks=callbacks, **{"max_epochs": 2, **arguments}))
        trainer.fit(module, loader)
        numbers = torch.rand(1).item(), random.random(), np.random.rand()
        return weights(module).tolist(), numbers, _reads(loader), trainer.global_step

    callback = CriticalBatchSize(at=(0.0, 0.4), budget=1.0, largest=2)
    assert run([callback]) == run([])
    assert all(result.trials for result in callback.results)


# ---------------------------------------------------------------------- optimizers and engines of one process
def _schedule_free(module: Any) -> Any:
    kind = pytest.importorskip("pytorch_optimizer").ScheduleFreeAdamW
    return kind(module.parameters(), lr=0.01)


def _muon(module: Any) -> Any:
    matrices = [p for p in module.parameters() if p.ndim == 2]
    for p in module.parameters():
        p.requires_grad_(p.ndim == 2)
    return torch.optim.Muon(matrices, lr=0.01)


def _lamb(module: Any) -> Any:
    from lightning_lr.optim import LAMB

    return LAMB(module.parameters(), lr=0.01)


def _scheduled(module: Any) -> Any:
    optimizer = torch.optim.SGD(module.parameters(), lr=0.05)
    return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


OPTIMIZERS: dict[str, tuple[Callable[[Any], Any], dict[str, Any]]] = {
    "LBFGS": (lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3, history_size=4), {}),
    "Muon": (_muon, {}),
    "LAMB": (_lamb, {}),
    "ScheduleFree": (_schedule_free, {}),
    "a scheduler": (_scheduled, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer_goes_on_as_without_branches(name: str) -> None:
    make, arguments = OPTIMIZERS[name]

    def run(callbacks: list[Callback]) -> Any:
        torch.manual_seed(4)
        loader = DataLoader(data(48), batch_size=2, shuffle=True)
        module, trainer = fit(callbacks, module=Toy(make), loader=loader, max_epochs=2, **arguments)
        optimizer = trainer.optimizers[0].state_dict()
        state = repr(optimizer["state"])
        return weights(module).tolist(), state, torch.rand(1).item()

    callback = CriticalBatchSize(at=(0.0, 0.4), budget=1.0, largest=2)
    assert run([callback]) == run([])
    assert all(result.trials for result in callback.results)


def test_a_compiled_module_goes_on_as_without_branches() -> None:
    def run(callbacks: list[Callback]) -> Any:
        torch.manual_seed(4)
        module = Toy()
        module.head.compile(backend="eager")
        fit(callbacks, module=module, loader=DataLoader(data(48), batch_size=4, shuffle=True), max_epochs=2)
        return weights(module).tolist(), torch.rand(1).item()

    assert run([CriticalBatchSize(at=(0.4,), budget=1.0, largest=2)]) == run([])


def test_an_array_is_put_back_where_it_lies() -> None:
    """Somebody may hold its address, as a kernel in C does."""
    kept = array.array("d", [1.0, 2.0, 3.0])
    where, before = kept.buffer_info()[0], ForkedState([[kept]])
    kept[1] = 7.0
    before.restore()
    assert list(kept) == [1.0, 2.0, 3.0]
    assert kept.buffer_info()[0] == where
