"""What each rank measures of its own loader is one fact of the run, or refused on every rank."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Sampler

from lightning_lr import (
    AdaptiveWarmup,
    BatchSizeRamp,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    Polynomial,
    StepRamp,
)
from tests.support.processes import run_in_processes
from tests.support.random_loops import Loop, drawn, largest_difference, run
from tests.support.toy import Probe, Toy, data, fit, quiet, weights
from tests.support.two_processes import ddp, run_in_two_processes
from tests.test_resume_matrix import Numbered, Reader

pytestmark = pytest.mark.filterwarnings("ignore")


class First(Sampler[int]):
    """The first samples of a data set."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def __len__(self) -> int:
        return self.count


def _adamw(module: Any) -> Any:
    return torch.optim.AdamW(module.parameters(), lr=0.05)


METHODS: dict[str, Callable[[], list[Callback]]] = {
    "schedule": lambda: [LearningRateSchedule(Polynomial(power=1.0))],
    "scaling": lambda: [LearningRateScaling(4, warmup_epochs=1)],
    "decay": lambda: [NormalizedWeightDecay()],
    "warmup": lambda: [AdaptiveWarmup(1e-3, 0.1, patience=1, check_every=1)],
    "ramp": lambda: [BatchSizeRamp(StepRamp([1], factor=2), max_batch_size=16)],
}


def _shards(method: str, samples: tuple[int, int], sizes: tuple[int, int], **arguments: Any) -> Any:
    rank = torch.distributed.get_rank()
    loader = DataLoader(data(64), batch_size=sizes[rank], sampler=First(samples[rank]))
    probe, begin = Probe("lr", "weight_decay"), time.monotonic()
    callbacks = METHODS[method]()
    try:
        module, _ = fit([*callbacks, probe], module=Toy(_adamw), loader=loader, use_distributed_sampler=False,
                        **arguments, **ddp())  # fmt: skip
    except MisconfigurationException as error:
        return str(error), time.monotonic() - begin
    return weights(module), probe.series, callbacks[0].state_dict()["clock"]


LOOPS = [
    Loop(((3,), (5,), (2,)), accumulation=2, max_epochs=3),
    Loop(((3, 5), (4, 1)), mode="max_size_cycle", max_epochs=3, max_steps=9, skips=frozenset({(1, 2)})),
    Loop(((3, 5, 2),), mode="max_size", accumulation=3, max_epochs=2, stop=(1, 2)),
    Loop(((4, 6),), mode="min_size", max_epochs=-1, max_steps=7, more=1),
    Loop(((6,),), lies=(3, 4), accumulation=2, max_epochs=3),
    Loop(((5,), (3,)), accumulation=2, max_epochs=3, resume=4),
    Loop(((5,), (3,)), max_epochs=3, resume=5),
    Loop(((5,), (3,)), accumulation=2, max_epochs=-1, seconds=11, resume=3),
    Loop(((4, 6),), mode="max_size", max_epochs=4, max_steps=30, seconds=13),
    *drawn(8),
]


def _loop(loop: Loop, folder: Path, world: int = 2) -> Any:
    return run(loop, folder, partial(ddp, devices=world)).updates


EQUAL = {name: partial(_shards, name, (21, 24), (4, 4)) for name in METHODS if name != "ramp"}
CASES: dict[str, Callable[[], Any]] = {
    **EQUAL,
    "ramp, other samples": partial(_shards, "ramp", (21, 24), (4, 4)),
    "ramp, other batch": partial(_shards, "ramp", (24, 48), (4, 8)),
    "schedule, other batch": partial(_shards, "schedule", (24, 48), (4, 8)),
    "scaling, other batch": partial(_shards, "scaling", (24, 48), (4, 8)),
    "schedule, other length": partial(_shards, "schedule", (20, 24), (4, 4)),
    "schedule, ends before": partial(_shards, "schedule", (20, 24), (4, 4), max_steps=5),
}


RESUMED: dict[str, Callable[[], list[Callback]]] = {
    "schedule": lambda: [LearningRateSchedule(Polynomial(power=1.0))],
    "ramp": lambda: [BatchSizeRamp(StepRamp([1, 2], factor=2), max_batch_size=48)],
}
KINDS = {"end of the epoch": "epoch=0", "last batch": "step=6", "middle": "step=7"}


def _numbered(method: str, world: int, ckpt_path: Path | None = None, save: Path | None = None) -> Any:
    """Three epochs of 48 numbered samples, 8 in a batch over all devices: the samples read, and each update's lr."""
    module, probe = Reader(), Probe()
    callbacks: list[Callback] = [*RESUMED[method](), probe]
    if save is not None:
        callbacks += [
            ModelCheckpoint(save, filename="{step}", every_n_train_steps=1, save_top_k=-1),
            ModelCheckpoint(save, filename="{epoch}", save_top_k=-1, save_on_train_epoch_end=True),
        ]
    trainer = Trainer(**quiet(callbacks=callbacks, max_epochs=3, enable_checkpointing=save is not None,
                              **(ddp(devices=world) if world > 1 else {})))  # fmt: skip
    try:
        trainer.fit(module, DataLoader(Numbered(48), batch_size=8 // world), ckpt_path=ckpt_path and str(ckpt_path))
    except MisconfigurationException as error:
        return str(error)
    return module.seen, probe.first


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def results(folder: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    resumes: list[tuple[str, Callable[[], Any]]] = []
    for method in RESUMED:
        _numbered(method, 1, save=folder / f"{method} 1")
        resumes.append((f"{method} saves", partial(_numbered, method, 2, save=folder / f"{method} 2")))
        for kind, file in KINDS.items():
            ckpt = folder / f"{method} 1" / f"{file}.ckpt"
            resumes.append((f"{method}, {kind}", partial(_numbered, method, 2, ckpt_path=ckpt)))
    loops = [(f"loop {index}", partial(_loop, loop, folder / str(index))) for index, loop in enumerate(LOOPS)]
    first, second = run_in_two_processes([*CASES.items(), *resumes, *loops], folder)
    for rank in (first, second):
        for result in rank.values():
            if isinstance(result, Exception):
                raise result
    return first, second


@pytest.mark.parametrize("name", EQUAL)
def test_shards_of_other_sizes_leave_the_ranks_equal(name: str, results: Any) -> None:
    first, second = results[0][name], results[1][name]
    assert torch.equal(first[0], second[0])
    assert first[1:] == second[1:]
    assert len(first[1]) == 18
    assert first[2]["samples_seen"] == 3 * (21 + 24)
    if name == "schedule":
        assert [row[0][0] for row in first[1]] == pytest.approx([0.05 * (1 - u / 18) for u in range(18)], rel=1e-12)


def test_other_batches_are_added_up(results: Any) -> None:
    for rank in results:
        assert [row[0][0] for row in rank["schedule, other batch"][1]][9] == pytest.approx(0.025)
        climb = [1 + 2 * min(1, (u + 1) / 6) for u in range(18)]  # 4 + 8 samples are 3 times 4
        lrs = [row[0][0] for row in rank["scaling, other batch"][1]]
        assert lrs == pytest.approx([0.05 * factor for factor in climb], rel=1e-12)


@pytest.mark.parametrize(
    ("case", "says"),
    [
        ("ramp, other batch", "rank 0: batch_size 4, samples 24.*rank 1: batch_size 8, samples 48"),
        ("ramp, other samples", "rank 0: batch_size 4, samples 21.*rank 1: batch_size 4, samples 24"),
        ("schedule, other length", r"different numbers of batches \(\[5, 6\], by rank\)"),
    ],
)
def test_what_cannot_be_one_fact_is_refused_on_every_rank_at_once(case: str, says: str, results: Any) -> None:
    import re

    for rank in results:
        message, seconds = rank[case]
        assert re.search(says, message), message
        assert seconds < 60


def test_a_run_that_ends_before_the_shorter_epoch_trains(results: Any) -> None:
    for rank in results:
        lrs = [row[0][0] for row in rank["schedule, ends before"][1]]
        assert lrs == pytest.approx([0.05 * (1 - u / 5) for u in range(5)], rel=1e-12)


def _are_refused(messages: list[Any]) -> None:
    """Inside an epoch another number of devices is refused on every rank."""
    for message in messages:
        assert "training goes on inside an epoch with" in message
        assert "devices" in message


def _train_on_what_is_left(found: list[Any], rates: list[float], epochs: Sequence[int]) -> None:
    """Every rank has the rates of the run that was not interrupted; together they read each sample of an epoch once."""
    for _, lrs in found:
        assert lrs == pytest.approx(rates, rel=1e-12)
    for epoch in epochs:
        assert sorted(sample for seen, _ in found for sample in seen[epoch]) == list(range(48)), "every sample once"


@pytest.mark.parametrize("direction", ["one device, then DDP", "DDP, then one device"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", RESUMED)
def test_a_checkpoint_is_gone_on_from_by_another_strategy(
    method: str, kind: str, direction: str, results: Any, folder: Path
) -> None:
    _, whole = _numbered(method, 1)
    if direction.startswith("one"):
        found = [rank[f"{method}, {kind}"] for rank in results]
    else:
        assert (
            sorted(results[0][f"{method} saves"][1])
            == sorted(results[1][f"{method} saves"][1])
            == pytest.approx(sorted(whole))
        )
        found = [_numbered(method, 1, ckpt_path=folder / f"{method} 2" / f"{KINDS[kind]}.ckpt")]
    if kind == "middle":
        _are_refused(found)
        return
    _train_on_what_is_left(found, whole[6:], epochs=(1, 2))
    assert all(sorted(seen) == [1, 2] for seen, _ in found)


@pytest.mark.parametrize("index", range(len(LOOPS)))
def test_progress_is_equal_to_the_bit_on_every_rank(index: int, results: Any) -> None:
    first, second = (rank[f"loop {index}"] for rank in results)
    assert first == second

    assert largest_difference(first, LOOPS[index]) <= 1e-12


@pytest.mark.slow
@pytest.mark.parametrize(("world", "examples"), [(2, 300), (4, 100)])
def test_progress_is_equal_on_every_rank_through_drawn_loops(world: int, examples: int, tmp_path: Path) -> None:
    made = drawn(examples)
    cases = [(str(index), partial(_loop, loop, tmp_path / str(index), world)) for index, loop in enumerate(made)]
    ranks = run_in_processes(cases, tmp_path, world)
    worst = 0.0
    for index, loop in enumerate(made):
        first = ranks[0][str(index)]
        assert isinstance(first, list), (loop, first)
        assert all(rank[str(index)] == first for rank in ranks), loop
        worst = max(worst, largest_difference(first, loop))
    resumed = sum(loop.resume is not None for loop in made)
    again = sum(loop.stop is not None or loop.more > 0 for loop in made)
    print(f"{len(made)} loops on {world} processes, {resumed} resumed, {again} fitted again: {worst:.2g} at most")
    assert worst <= 1e-12


def _resumes(method: str, world: int, saved_by: int, folder: Path) -> list[tuple[str, Callable[[], Any]]]:
    return [
        (
            f"{method}, {kind}, {saved_by}",
            partial(_numbered, method, world, ckpt_path=folder / f"{method} {saved_by}" / f"{file}.ckpt"),
        )
        for kind, file in KINDS.items()
    ]


@pytest.fixture(scope="module")
def of_four(folder: Path, results: Any) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """By the number of devices that saved and that go on: what each rank came to."""
    out, by_four, by_two = folder / "four", [], []
    for method in RESUMED:
        by_four.append((f"{method} saves", partial(_numbered, method, 4, save=folder / f"{method} 4")))
        for saved_by in (4, 2, 1):
            by_four += _resumes(method, 4, saved_by, folder)
        by_two += _resumes(method, 2, 4, folder)
    four, two = run_in_processes(by_four, out, 4), run_in_processes(by_two, out / "two", 2)
    one = [{name: case() for method in RESUMED for name, case in _resumes(method, 1, 4, folder)}]
    return {(4, 4): four, (2, 4): four, (1, 4): four, (4, 2): two, (4, 1): one}


@pytest.mark.slow
@pytest.mark.parametrize(("saved_by", "goes_on"), [(4, 4), (2, 4), (1, 4), (4, 2), (4, 1)])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", RESUMED)
def test_a_checkpoint_of_four_devices_or_for_four_is_gone_on_from(
    method: str, kind: str, saved_by: int, goes_on: int, of_four: Any
) -> None:
    _, whole = _numbered(method, 1)
    found = [rank[f"{method}, {kind}, {saved_by}"] for rank in of_four[saved_by, goes_on]]
    assert len(found) == goes_on
    if kind == "middle" and saved_by != goes_on:
        _are_refused(found)
        return
    made = 7 if kind == "middle" else 6
    _train_on_what_is_left(found, whole[made:], epochs=(1, 2) if kind != "middle" else (2,))
    if kind == "middle":  # of a loader without a state Lightning reads as many batches as are left, from its beginning
        for rank, (seen, _) in zip(of_four[saved_by, goes_on], found, strict=True):
            whole_epoch = rank[f"{method} saves"][0][1]
            assert seen[1] == (whole_epoch[4:] if method == "ramp" else whole_epoch[:10])
