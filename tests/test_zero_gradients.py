"""Gradients that users read, clip and change in hooks under `ZeROStrategy`: DDP's, or an error that names the hook."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.utilities import grad_norm
from torch import nn

from tests.support.batches import Batches
from tests.support.rounding import rounding, rounding_after
from tests.support.toy import Toy, fit, two_groups
from tests.support.two_processes import ddp
from tests.support.zero_runs import needs_deepspeed, whole_weights, zero
from tests.test_zero_strategy import STAGES, _loader

pytestmark = needs_deepspeed

LIMIT = 0.05


class Noted(Toy):
    """Notes what its hooks read."""

    def __init__(self) -> None:
        super().__init__(two_groups)
        self.read: list[float] = []


class ClipsBeforeTheStep(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.read.append(float(nn.utils.clip_grad_norm_(self.parameters(), LIMIT)))


class ClipsByTheOptimizer(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for group in optimizer.param_groups:
            self.read.append(float(nn.utils.clip_grad_norm_(group["params"], LIMIT)))


class ClipsItself(Noted):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=LIMIT, gradient_clip_algorithm="norm")


class ClipsValues(Noted):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        self.clip_gradients(optimizer, gradient_clip_val=LIMIT, gradient_clip_algorithm="value")


class ClipsByTorch(Noted):
    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        nn.utils.clip_grad_norm_(self.parameters(), LIMIT)


class ClipsLater(Noted):
    """As the Trainer says, but from the second epoch on."""

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        if self.current_epoch:
            self.clip_gradients(
                optimizer, gradient_clip_val=gradient_clip_val, gradient_clip_algorithm=gradient_clip_algorithm
            )


class Logs(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.read += [float(value) for _, value in sorted(grad_norm(self, 2).items())]


class AddsNoise(Noted):
    def on_after_backward(self) -> None:
        generator = torch.Generator().manual_seed(self.global_step)
        for parameter in self.parameters():
            assert parameter.grad is not None
            parameter.grad += 0.1 * torch.randn(parameter.grad.shape, generator=generator)


class Zeroes(Callback):
    """Of a layer, by assignment and in place: a callback's hook."""

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        body = pl_module.body
        body.weight.grad = torch.zeros_like(body.weight.grad)
        body.bias.grad.mul_(0.5)


class ReadsLate(Noted):
    def on_train_batch_end(self, *args: Any) -> None:
        self.read.append(float(self.head.weight.grad.norm()))


class ReadsEarly(Noted):
    """Between the micro-batches of an update."""

    def on_after_backward(self) -> None:
        self.read.append(float(self.head.weight.grad.norm()))


class Drops(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        self.zero_grad()


class ZeroesAll(Noted):
    """Every second update with a zero gradient, which momentum goes on from."""

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        if self.global_step % 2:
            optimizer.zero_grad(set_to_none=False)


class ZeroesTheModule(Noted):
    def on_after_backward(self) -> None:
        if self.global_step % 2:
            self.body.zero_grad(set_to_none=False)


class ZeroesBeforehand(Noted):
    """Wherever there is nothing to lose, in each way."""

    def on_train_batch_start(self, *args: Any) -> None:
        self.optimizers().zero_grad()

    def on_before_zero_grad(self, optimizer: Any) -> None:
        optimizer.zero_grad(set_to_none=False)

    def on_before_backward(self, loss: Any) -> None:
        self.trainer.optimizers[0].zero_grad()

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Any) -> None:
        self.zero_grad()


class DropsByTheOptimizer(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        optimizer.zero_grad()


class DropsByTheModule(Noted):
    def on_after_backward(self) -> None:
        self.head.zero_grad()


class DropsByHand(Noted):
    def on_before_optimizer_step(self, optimizer: Any) -> None:
        for parameter in self.head.parameters():
            parameter.grad = None


class DropsEarly(Noted):
    """Before every micro-batch, also before the second one of an update."""

    def on_train_batch_start(self, *args: Any) -> None:
        self.optimizers().zero_grad()


class DropsUngathered(Callback):
    """A hook after which nothing is gathered."""

    def on_before_zero_grad(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        optimizer.zero_grad()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
        optimizer = trainer.optimizers[0]
        if trainer.fit_loop._should_accumulate():
            optimizer.zero_grad(set_to_none=False)


class NeverDrops(Noted):
    """Under DDP, gradients grow from update to update."""

    def optimizer_zero_grad(self, *args: Any) -> None:
        pass


class OwnBackward(Noted):
    def backward(self, loss: Any, *args: Any, **kwargs: Any) -> None:
        (2 * loss).backward()


class TouchesNothing(Noted):
    """Legitimate everywhere: drops gradients that are not there, copies and moves itself, hooks of autograd."""

    def on_train_batch_start(self, *args: Any) -> None:
        self.zero_grad()
        self.to("cpu")

    def on_fit_start(self) -> None:
        assert self.body.weight.grad is None
        self.body.weight.register_hook(lambda gradient: 0.5 * gradient)


MODULES: dict[str, tuple[type[Noted], dict[str, Any]]] = {
    "norm in on_before_optimizer_step": (ClipsBeforeTheStep, {}),
    "norm of the optimizer's parameters": (ClipsByTheOptimizer, {}),
    "clip_gradients of its own": (ClipsItself, {}),
    "clip_gradients by value": (ClipsValues, {}),
    "torch's function": (ClipsByTorch, {}),
    "from the second epoch": (ClipsLater, {"gradient_clip_val": LIMIT}),
    "norm by the Trainer": (Noted, {"gradient_clip_val": LIMIT}),
    "value by the Trainer": (Noted, {"gradient_clip_val": LIMIT, "gradient_clip_algorithm": "value"}),
    "logged norms": (Logs, {"accumulate_grad_batches": 2}),
    "noise": (AddsNoise, {}),
    "zeroed by a callback": (Noted, {}),
    "zeroed by the optimizer": (ZeroesAll, {}),
    "zeroed by a layer": (ZeroesTheModule, {}),
    "zeroed beforehand": (ZeroesBeforehand, {}),
    "nothing": (TouchesNothing, {}),
}
REFUSED: dict[str, tuple[type[Noted], dict[str, Any], str]] = {
    "late": (ReadsLate, {}, "reads the gradient of head.weight, which the engine drops with the update"),
    "early": (
        ReadsEarly,
        {"accumulate_grad_batches": 2},
        "reads the gradient of head.weight, between two micro-batches",
    ),
    "dropped": (Drops, {}, "drops the gradient of body.weight, and the engine updates all parameters at once"),
    "dropped by the optimizer": (
        DropsByTheOptimizer,
        {},
        "DropsByTheOptimizer.on_before_optimizer_step (",
    ),
    "dropped by a layer": (DropsByTheModule, {}, "drops the gradient of head.weight, and the engine updates all"),
    "dropped by hand": (DropsByHand, {}, "drops the gradient of head.weight, and the engine updates all"),
    "dropped early": (
        DropsEarly,
        {"accumulate_grad_batches": 2},
        "drops the gradient of body.weight, between two micro-batches",
    ),
    "dropped ungathered": (
        Noted,
        {"accumulate_grad_batches": 2, "callbacks": [DropsUngathered]},
        "DropsUngathered.on_train_batch_end (",
    ),
    "never dropped": (NeverDrops, {}, "nothing has dropped the gradient of body.weight since the last update"),
    "backward": (OwnBackward, {}, "OwnBackward overrides backward"),
}


def _run(name: str, stage: int | None, **engine: Any) -> dict[str, Any]:
    made, arguments = MODULES[name]
    callbacks: list[Callback] = [Zeroes()] if name.startswith("zeroed") else []
    module = made()
    strategy = ddp() if stage is None else zero(stage, **engine)
    fit(callbacks, module=module, loader=_loader(4), max_epochs=2, **strategy, **arguments)
    assert "grad" not in vars(nn.Parameter), "torch's attribute is back"
    return {"weights": whole_weights(module), "read": module.read}


def _error(case: Callable[[], Any]) -> str:
    try:
        case()
    except Exception as error:
        return str(error)
    return "nothing was raised"


def _refusal(name: str, **engine: Any) -> str:
    made, given, _ = REFUSED[name]
    arguments = dict(given)
    callbacks = [make() for make in arguments.pop("callbacks", ())]
    return _error(
        lambda: fit(callbacks, module=made(), loader=_loader(4), max_epochs=2, **zero(2, **engine), **arguments)
    )


def _soon(name: str, stage: int) -> bool:
    """Every module under one stage in turn; under the others it is slow."""
    return stage == STAGES[list(MODULES).index(name) % len(STAGES)]


@pytest.fixture(scope="module")
def ran(tmp_path_factory: Any) -> Batches:
    cases = [(f"{name}-None", partial(_run, name, None)) for name in MODULES]
    runs = {(name, stage): (f"{name}-{stage}", partial(_run, name, stage)) for name in MODULES for stage in STAGES}
    cases += [run for of, run in runs.items() if _soon(*of)]
    logged, own = "logged norms", "clip_gradients of its own"
    cases += [(f"offloaded-{stage}", partial(_run, own, stage, offload_optimizer=True)) for stage in (2, 3)]
    cases += [("engine clips", partial(_run, own, 2, gradients_in_hooks=False))]
    cases += [("engine clips values", partial(_run, "clip_gradients by value", 3, gradients_in_hooks=False))]
    cases += [("not gathered", partial(_error, partial(_run, logged, 2, gradients_in_hooks=False)))]
    cases += [(f"refused-{name}", partial(_refusal, name)) for name in REFUSED]
    slow = [run for of, run in runs.items() if not _soon(*of)]
    return Batches(tmp_path_factory.mktemp("gradients"), cases, slow)


def _same(got: Any, want: Any) -> None:
    assert isinstance(want, dict), want
    assert isinstance(got, dict), got
    # ten updates; each case moves the weights by more than 1e-3, see below
    assert float((got["weights"] - want["weights"]).abs().max()) < rounding_after(10)
    # gradients of 16 terms, by the end a twentieth of them
    assert got["read"] == pytest.approx(want["read"], rel=rounding(16 * 20))


@pytest.mark.parametrize(
    ("name", "stage"),
    [
        pytest.param(name, stage, marks=() if _soon(name, stage) else pytest.mark.slow)
        for name in MODULES
        for stage in STAGES
    ],
)
def test_what_hooks_do_to_gradients_is_done_as_under_ddp(ran: Batches, name: str, stage: int) -> None:
    for got in ran[f"{name}-{stage}"]:
        _same(got, ran[f"{name}-None"][0])


def test_clipping_changes_the_weights(ran: Batches) -> None:
    """Else the comparisons above would show nothing."""
    free = ran["nothing-None"][0]["weights"]
    for name in MODULES:
        if name not in ("nothing", "logged norms"):
            assert float((ran[f"{name}-None"][0]["weights"] - free).abs().max()) > 1e-3, name


def test_an_offloaded_optimizer_and_the_engines_own_clipping(ran: Batches) -> None:
    want = ran["clip_gradients of its own-None"][0]
    for name in ("offloaded-2", "offloaded-3", "engine clips"):
        _same(ran[name][0], want)
    _same(ran["engine clips values"][0], ran["clip_gradients by value-None"][0])


@pytest.mark.parametrize("name", REFUSED)
def test_a_gradient_that_is_not_there_is_an_error(ran: Batches, name: str) -> None:
    for said in ran[f"refused-{name}"]:
        assert REFUSED[name][2] in said


def test_without_gathering_reading_is_an_error_that_names_the_hook_and_the_setting(ran: Batches) -> None:
    told = ran["not gathered"][0]
    assert "on_before_optimizer_step (" in told
    assert "gradients_in_hooks=True" in told
