"""The pytest plugin of ``benchmarks.lightning_suite``: a callback of ours on every Trainer, and what each fit came to.

A test runs bare first. If it passed and called ``fit``, it runs again for each arm: every ``Trainer`` that it makes has
the arm's callbacks beside the test's own, set so that they change nothing. After every fit and in every checkpoint the
weights, the optimizer, the schedulers, the loops, the learning rates, the user's metrics and the random state are
hashed and compared with the bare run's. Works on any pytest suite that calls ``Trainer.fit``.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import gc
import hashlib
import json
import os
import random
import re
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.connectors.checkpoint_connector import _CheckpointConnector
from torch.optim import Optimizer

import lightning_lr as lr
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock

BARE, CONTROL = "bare", "control"
ARMS_VARIABLE, OUT_VARIABLE = "LIGHTNING_SUITE_ARMS", "LIGHTNING_SUITE_OUT"
ONLY_VARIABLE = "LIGHTNING_SUITE_ONLY"
SECONDS = 120
"""After which a test is ended."""
SLOW = 0.7
"""Seconds of CPU time from which a bare test is slow: of the arms, only those in ``WHOLE`` run it."""
FIRST_CASES = 1
"""Parameter sets of one test function that arms run which are not in ``WHOLE``."""
PACKAGE = str(Path(lr.__file__).parent)


# ---------------------------------------------------------------------- arms
class Control(pl.Callback):
    """Does nothing, but has a state: what fails with it counts the callbacks or their states."""

    def state_dict(self) -> dict[str, Any]:
        return {"clock": 1}


class FlatWarmup(lr.AdaptiveWarmup):
    """A climb from the module's own learning rate to the next number above it, in a run of any length, whose rounding
    is left out."""

    def check_shape(self, shape: RunShape, optimizer: Optimizer) -> None:
        """A run too short for a test is refused, and most of Lightning's are; as in a fast_dev_run, none is made."""

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        if not self._started:
            own = max(float(rate) for rate in writer.tuned())
            self.settings = dataclasses.replace(self.settings, min_lr=own, max_lr=float(np.nextafter(own, 1)))
        super().start(writer, shape)

    def factor(self, clock: SampleClock) -> float:
        assert abs(super().factor(clock) - 1.0) < 1e-12
        return 1.0


class SearchOfOne(lr.LearningRateSearch):
    """A search among one learning rate, the module's own."""

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        own, given = max(float(rate) for rate in writer.tuned()), self.settings
        self.settings = type(given)(given.curve, own, own, given.budget, given.at)
        super().start(writer, shape)


class ZeroDecay(lr.NormalizedWeightDecay):
    """A decay of zero, in groups that begin with another one: without it there is nothing to act on."""

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        for group in (group for optimizer in optimizers for group in optimizer.param_groups):
            group["weight_decay"] = 1.0
        super().check_optimizers(optimizers, schedulers)


class IdleGhost(lr.GhostBatchNorm):
    """Ghosts as large as any batch, in a module that has, beside its own, a batch norm that holds nothing and is not
    called: without one there is nothing to act on."""

    def setup(self, trainer: pl.Trainer, pl_module: pl.LightningModule, stage: str) -> None:
        if not hasattr(pl_module, "idle_batch_norm"):
            pl_module.idle_batch_norm = torch.nn.BatchNorm1d(1, affine=False, track_running_stats=False)
        super().setup(trainer, pl_module, stage)


SINGLE: dict[str, Callable[[], list[pl.Callback]]] = {
    "LearningRateSchedule": lambda: [lr.LearningRateSchedule(lr.Constant())],
    "LearningRateScaling": lambda: [lr.LearningRateScaling(1, batch_size=1, warmup_epochs=0)],
    "LayerwiseLRDecay": lambda: [lr.LayerwiseLRDecay(1.0, no_weight_decay=[])],
    "GradualUnfreezing": lambda: [lr.GradualUnfreezing(layers=[".*"])],
    "HypergradientDescent": lambda: [lr.HypergradientDescent(0.0)],
    "GradientNoiseScale": lambda: [lr.GradientNoiseScale()],
    "ActivationCompression": lambda: [lr.ActivationCompression(4, group_size=65536)],
    "BatchSizeRamp": lambda: [lr.BatchSizeRamp(lr.CurveRamp(lr.Cosine(floor=1.0)), module_scheduler="multiply")],
    "NormalizedWeightDecay": lambda: [ZeroDecay(0.0)],
    "AdaptiveWarmup": lambda: [FlatWarmup(0.1, 0.2, decay=lr.Constant(), patience=1, module_scheduler="multiply")],
    "LearningRateSearch": lambda: [SearchOfOne(lr.Constant(), 0.1, 0.1, module_scheduler="multiply")],
    "GhostBatchNorm": lambda: [IdleGhost(2**20)],
}
TOGETHER = (
    "LearningRateSchedule",
    "LearningRateScaling",
    "LayerwiseLRDecay",
    "GradualUnfreezing",
    "HypergradientDescent",
    "GradientNoiseScale",
    "ActivationCompression",
)
ARMS: dict[str, Callable[[], list[pl.Callback]]] = {
    BARE: list,
    CONTROL: lambda: [Control()],
    "all together": lambda: [callback for name in TOGETHER for callback in SINGLE[name]()],
    "all and a ramp": lambda: [callback for name in (*TOGETHER, "BatchSizeRamp") for callback in SINGLE[name]()],
    **SINGLE,
}
GIVEN = {"NormalizedWeightDecay": "checkpoint: weight decay"}
"""What an arm gives the module itself, so that there is something to act on."""
WHOLE = (BARE, CONTROL, "all together")
"""Arms that run slow tests, too, and every parameter set."""


# ---------------------------------------------------------------------- what a fit came to
def digest(value: Any) -> str:
    """A hash of tensors, numbers and containers of them."""
    found = hashlib.sha1()

    def walk(part: Any) -> None:
        if isinstance(part, torch.Tensor):
            found.update(f"{part.dtype}{tuple(part.shape)}".encode())
            found.update(np.ascontiguousarray(part.detach().cpu().float().numpy()).tobytes())
        elif isinstance(part, dict):
            for key in sorted(part, key=str):
                found.update(str(key).encode())
                walk(part[key])
        elif isinstance(part, list | tuple):
            found.update(b"[")
            for entry in part:
                walk(entry)
        elif isinstance(part, int | float | str | bool | None):
            found.update(repr(part).encode())
        else:
            found.update(type(part).__name__.encode())

    walk(value)
    return found.hexdigest()[:12]


OWN_METRICS = (
    "lightning_lr/", "lr/", "progress/", "batch/", "noise/", "hypergradient/", "weight_decay/", "unfrozen_layers",
    "warmup/", "search/", "compression/", "trust_ratio/",
)  # fmt: skip


def users(metrics: dict[str, Any]) -> dict[str, str]:
    """The metrics of a Trainer that are not ours."""
    return {f"metric {name}": digest(value) for name, value in metrics.items() if not name.startswith(OWN_METRICS)}


def facts_of(trainer: pl.Trainer) -> dict[str, Any]:
    """What a fit came to."""
    module, optimizers = trainer.lightning_module, trainer.optimizers
    return {
        "updates": trainer.global_step,
        "epoch": trainer.current_epoch,
        "weights": digest(dict(module.state_dict())) if module is not None else None,
        "lr": [[float(group.get("lr", -1)) for group in optimizer.param_groups] for optimizer in optimizers],
        "optimizer": digest([_state_of(optimizer) for optimizer in optimizers]),
        "schedulers": digest([config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]),
        "loops": digest(trainer.fit_loop.state_dict()),
        "accumulation": trainer.accumulate_grad_batches,
        **users(dict(trainer.callback_metrics)),
        **users(dict(trainer.logged_metrics)),
        "random": digest(torch.get_rng_state()),
        "stopped": trainer.should_stop,
    }


def facts_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What a checkpoint holds."""
    return {
        "weights": digest(checkpoint.get("state_dict")),
        "optimizer": digest([_without_decay(state) for state in checkpoint.get("optimizer_states", [])]),
        "weight decay": [_decays_of(state) for state in checkpoint.get("optimizer_states", [])],
        "schedulers": digest(checkpoint.get("lr_schedulers")),
        "loops": digest(checkpoint.get("loops")),
        "hyperparameters": digest(checkpoint.get("hyper_parameters")),
        "keys": sorted(key for key in checkpoint if key != "lightning_lr"),
    }


def _state_of(optimizer: Any) -> Any:
    state = optimizer.state_dict()
    # momentum of the optimizer's next step, whichever group holds it: groups may be split
    return {key: value for key, value in state.items() if key == "state"}


def _without_decay(state: dict[str, Any]) -> dict[str, Any]:
    groups = [{key: value for key, value in group.items() if key != "weight_decay"} for group in state["param_groups"]]
    return {**state, "param_groups": groups}


def _decays_of(state: dict[str, Any]) -> list[float]:
    return [float(group.get("weight_decay", 0)) for group in state["param_groups"]]


@dataclass
class Course:
    """What one run of a test did."""

    fits: int = 0
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    refusal: str | None = None
    error: str | None = None
    outcome: str = "missing"
    seconds: float = 0.0


def refusal_in(error: BaseException) -> str | None:
    """The words of an error with which a callback of ours refuses, or ``None`` for any other."""
    seen: BaseException | None = error
    while seen is not None:
        frames = traceback.extract_tb(seen.__traceback__)
        text = str(seen)
        ours = bool(frames) and frames[-1].filename.startswith(PACKAGE)
        if ours and re.match(r"(lightning_lr|total_updates|[A-Z]\w+): ", text):
            return re.sub(r"/\S+", "PATH", text)[:300]
        seen = seen.__cause__ or seen.__context__
    return None


class Recorder:
    """The plugin's state: the arm that runs now, and the bare run of each test."""

    def __init__(self) -> None:
        self.arms = os.environ.get(ARMS_VARIABLE, BARE).split(";")
        self.only = set(json.loads(os.environ[ONLY_VARIABLE])) if os.environ.get(ONLY_VARIABLE) else None
        self.arm = BARE
        self.course = Course()
        self.courses: dict[str, dict[str, Course]] = {}

    def begin(self, test: str, arm: str) -> None:
        """A test starts under an arm; one that is not worth it is skipped."""
        of_test = self.courses.setdefault(test, {})
        if arm != BARE:
            bare = of_test.get(BARE)
            if bare is None or bare.outcome != "passed":
                pytest.skip("did not pass bare")
            if not bare.fits:
                pytest.skip("called no fit")
            if bare.seconds > SLOW and arm not in WHOLE:
                pytest.skip("slow")
            if arm not in WHOLE and not self.among_first(test):
                pytest.skip("another case of a test that has run")
        self.arm = arm
        self.course = of_test[arm] = Course()
        random.seed(7)
        np.random.seed(7)
        torch.manual_seed(7)

    def among_first(self, test: str) -> bool:
        """Whether a test is one of the first parameter sets of its function that passed bare, called ``fit`` and are
        not slow."""
        fitting = [
            name
            for name, courses in self.courses.items()
            if name.partition("[")[0] == test.partition("[")[0]
            and (bare := courses.get(BARE)) is not None
            and (bare.outcome, bool(bare.fits), bare.seconds <= SLOW) == ("passed", True, True)
        ]
        return test in fitting[:FIRST_CASES]

    def end(self, test: str, arm: str, report: Any, error: BaseException | None) -> None:
        """A phase of the test has ended: write down what it came to."""
        course = self.courses[test][arm]
        if report.when == "call" or report.outcome != "passed":
            if report.when == "call" or course.outcome != "failed":
                course.outcome = report.outcome
            if report.outcome == "failed" and error is not None:
                course.refusal = course.refusal or refusal_in(error)
                course.error = f"{type(error).__name__}: {error}"[:400]
        if report.when == "teardown":
            verdict, why = self.verdict(test, arm)
            out = os.environ.get(OUT_VARIABLE)
            if out:
                with open(out, "a", encoding="utf-8") as file:
                    line = {"test": test, "arm": arm, "verdict": verdict, "why": why, "fits": course.fits,
                            "seconds": round(course.seconds, 2)}  # fmt: skip
                    file.write(json.dumps(line) + "\n")

    def verdict(self, test: str, arm: str) -> tuple[str, str]:
        """What a run of a test came to, in a word, and why."""
        of_test = self.courses[test]
        course, bare, control = of_test[arm], of_test.get(BARE), of_test.get(CONTROL)
        if arm == BARE or bare is None:
            return course.outcome, course.error or ""
        if course.refusal is not None:
            return "refused", course.refusal
        if course.outcome != "passed":
            counts = control is not None and control.outcome != "passed" and arm != CONTROL
            return "counts callbacks" if counts else "different", course.error or course.outcome
        changed = differences(bare, course)
        if control is not None and arm != CONTROL:
            changed -= differences(bare, control)
        changed.discard(GIVEN.get(arm, ""))
        return ("different", ", ".join(sorted(changed))) if changed else ("passed", "")


def differences(bare: Course, other: Course) -> set[str]:
    """The facts in which two runs of a test differ."""
    if [kind for kind, _ in bare.events] != [kind for kind, _ in other.events]:
        return {"the number of fits and checkpoints"}
    return {
        f"{kind}: {name}"
        for (kind, facts), (_, theirs) in zip(bare.events, other.events, strict=True)
        for name in facts | theirs
        if facts.get(name) != theirs.get(name)
    }


RECORDER = Recorder()


# ---------------------------------------------------------------------- what is replaced
def _attach() -> Callable[[], None]:
    """Replace what makes, runs and saves a Trainer; returns what undoes it."""
    make, fit, dump = pl.Trainer.__init__, pl.Trainer.fit, _CheckpointConnector.dump_checkpoint

    @functools.wraps(make)
    def made(self: pl.Trainer, *args: Any, **kwargs: Any) -> None:
        given = kwargs.get("callbacks")
        more = ARMS[RECORDER.arm]()
        if more:
            kwargs["callbacks"] = [*(given if isinstance(given, list | tuple) else [given] if given else []), *more]
        make(self, *args, **kwargs)

    @functools.wraps(fit)
    def fitted(self: pl.Trainer, *args: Any, **kwargs: Any) -> Any:
        course = RECORDER.course
        course.fits += 1
        try:
            return fit(self, *args, **kwargs)
        except BaseException as error:
            course.refusal = course.refusal or refusal_in(error)
            raise
        finally:
            try:
                course.events.append(("fit", facts_of(self)))
            except Exception as error:  # mocks, half made Trainers
                course.events.append(("fit", {"not recorded": type(error).__name__}))

    @functools.wraps(dump)
    def dumped(self: Any, *args: Any, **kwargs: Any) -> Any:
        checkpoint = dump(self, *args, **kwargs)
        try:
            RECORDER.course.events.append(("checkpoint", facts_in(checkpoint)))
        except Exception as error:
            RECORDER.course.events.append(("checkpoint", {"not recorded": type(error).__name__}))
        return checkpoint

    pl.Trainer.__init__ = made  # type: ignore[method-assign]
    pl.Trainer.fit = fitted  # type: ignore[method-assign]
    _CheckpointConnector.dump_checkpoint = dumped  # type: ignore[method-assign]

    def undo() -> None:
        pl.Trainer.__init__, pl.Trainer.fit = make, fit  # type: ignore[method-assign]
        _CheckpointConnector.dump_checkpoint = dump  # type: ignore[method-assign]

    return undo


# ---------------------------------------------------------------------- pytest's hooks
def pytest_configure(config: pytest.Config) -> None:
    config.add_cleanup(_attach())


def plain(test: str) -> str:
    """A test's name without the arm in its brackets."""
    for arm in RECORDER.arms:
        for with_it, without in ((f"[{arm}-", "["), (f"-{arm}]", "]"), (f"[{arm}]", "")):
            if with_it in test:
                return test.replace(with_it, without)
    return test


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    for item in items:  # callbacks among a test's parameters are used by one run of it only
        parameters = getattr(item, "callspec", None)
        for name, value in [] if parameters is None else list(parameters.params.items()):
            with suppress(Exception):
                parameters.params[name] = copy.deepcopy(value)
    if RECORDER.only is not None:
        kept = [item for item in items if plain(item.nodeid) in RECORDER.only]
        config.hook.pytest_deselected(items=[item for item in items if plain(item.nodeid) not in RECORDER.only])
        items[:] = kept


def pytest_collection_finish() -> None:
    """A fit looks for schedulers among all objects that are alive, which takes long with all that was imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True, params=RECORDER.arms)
def _arm(request: pytest.FixtureRequest) -> Iterator[None]:
    RECORDER.begin(plain(request.node.nodeid), request.param)
    yield
    RECORDER.arm = BARE


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Iterator[None]:
    def late(signum: int, frame: Any) -> None:
        raise TimeoutError(f"the test has run for {SECONDS} s")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    begin = time.process_time()
    try:
        yield
    finally:
        RECORDER.course.seconds = time.process_time() - begin
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: Any) -> Iterator[None]:
    outcome: Any = yield
    report = outcome.get_result()
    test, arm = plain(item.nodeid), getattr(item, "callspec", None)
    name = arm.params.get("_arm") if arm is not None else None
    if name is not None and name in RECORDER.courses.get(test, {}):
        error = call.excinfo.value if call.excinfo is not None else None
        RECORDER.end(test, name, report, error)
