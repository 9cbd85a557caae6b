"""Checkpointing of blocks that change what they are given (caches, counters), and of blocks that a step leaves out."""

from __future__ import annotations

import random
import weakref
from collections import OrderedDict, deque
from collections.abc import Callable
from typing import Any, ClassVar

import numpy
import pytest
import torch
from numpy import random as global_numpy
from numpy.random import default_rng
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torchmetrics import MeanMetric

from benchmarks.checkpointed_models import switch_cache_off
from lightning_lr.activations import Checkpointing, CheckpointPolicy, PlanError
from lightning_lr.activations.fingerprint import Fingerprint
from lightning_lr.memory import measure_saved

CPU = torch.device("cpu")
STEPS = 3


def compared(
    make: Callable[[], nn.Module], loss_of: Callable[[nn.Module], Tensor], policy: CheckpointPolicy | None = None
) -> Checkpointing:
    """Train plainly and checkpointed from the same weights and random numbers: every loss and gradient to the bit."""
    runs: list[list[Any]] = []
    checkpointing: Checkpointing | None = None
    for checkpointed in (False, True):
        torch.manual_seed(0)
        net = make().train()
        if checkpointed:
            checkpointing = Checkpointing(net, policy or CheckpointPolicy("every_block"), CPU)
        seen: list[Any] = []
        for step in range(STEPS):
            torch.manual_seed(step)
            net.zero_grad()
            if checkpointing is None:
                loss = loss_of(net)
            else:
                with checkpointing.step():
                    loss = loss_of(net)
            loss.backward()
            seen += [loss.detach(), *(p.grad for p in net.parameters() if p.grad is not None)]
        runs.append(seen)
    plain, again = runs
    assert len(plain) == len(again) > STEPS
    assert all(torch.equal(a, b) for a, b in zip(plain, again, strict=True))
    assert checkpointing is not None
    assert checkpointing.plan is not None
    assert any(part.recompute for part in checkpointing.plan.parts)
    return checkpointing


# ---------------------------------------------------------------------- objects among the arguments
class Store:
    """A cache as transformers has them: an object with a list of objects with tensors."""

    def __init__(self) -> None:
        self.layers: list[Any] = []
        self.calls = 0


class Slotted:
    __slots__ = ("calls", "layers")

    def __init__(self) -> None:
        self.layers: deque[Tensor] = deque()
        self.calls = 0


class DictStore(OrderedDict[str, Any]):
    pass


def grow(store: Any, hidden: Tensor) -> Tensor:
    """What the block reads of a store, after it has put its own into it."""
    if isinstance(store, dict):
        store["calls"] = store.get("calls", 0) + 1
        store[f"layer {len(store)}"] = hidden
        held = [value for value in store.values() if isinstance(value, Tensor)]
        return torch.cat([*held, *held[: store["calls"] % 2]]).mean(0, keepdim=True)
    store.calls += 1
    store.layers.append(hidden)
    held = list(store.layers)
    return torch.cat([*held, *held[: store.calls % 2]]).mean(0, keepdim=True)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, store: Any) -> Tensor:
        return torch.tanh(self.layer(x)) * grow(store, x)


class Net(nn.Module):
    def __init__(self, make_store: Callable[[], Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(4))
        self.make_store = make_store

    def forward(self, x: Tensor) -> Tensor:
        store = self.make_store()
        for block in self.blocks:
            x = block(x, store)
        return x.square().sum()


@pytest.mark.parametrize("policy", ["every_block", 2, "sqrt"])
@pytest.mark.parametrize("store", [Store, Slotted, DictStore, dict])
def test_a_block_sees_the_objects_that_it_changed_as_it_found_them(store: Callable[[], Any], policy: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    compared(lambda: Net(store), lambda net: net(x), CheckpointPolicy(policy))


def test_the_objects_are_as_the_plain_run_leaves_them() -> None:
    made: list[Store] = []

    def store() -> Store:
        made.append(Store())
        return made[-1]

    x = torch.randn(3, 4)
    compared(lambda: Net(store), lambda net: net(x))
    assert {(store.calls, len(store.layers)) for store in made} == {(4, 4)}


class Window(nn.Module):
    """A block that writes into a tensor of fixed size in the store, as Mamba's does."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.layer, self.index = nn.Linear(4, 4), index

    def forward(self, x: Tensor, store: Store) -> Tensor:
        state = store.layers[self.index]
        with torch.no_grad():
            state.mul_(0.5).add_(x.detach().mean())
        return torch.tanh(self.layer(x)) * (1 + state.clone())


class WindowNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Window(i) for i in range(4))

    def forward(self, x: Tensor) -> Tensor:
        store = Store()
        store.layers = [torch.ones(1) for _ in self.blocks]
        for block in self.blocks:
            x = block(x, store)
        return x.square().sum()


def test_a_tensor_that_a_block_writes_in_place_is_what_it_was() -> None:
    x = torch.randn(3, 4)
    compared(WindowNet, lambda net: net(x))


# ---------------------------------------------------------------------- what a block keeps itself
class Keeps(nn.Module):
    """A block that reads and changes what it keeps itself, or draws numbers from a generator."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.calls = kind, nn.Linear(4, 4), 0
        if kind == "spectral norm":
            self.layer = nn.utils.parametrizations.spectral_norm(self.layer)
        self.seen: list[Tensor] = []
        self.generator, self.numpy, self.python = torch.Generator().manual_seed(3), default_rng(3), random.Random(3)
        self.register_buffer("mean", torch.zeros(4))
        self._calls, self.first, self.running, self.previous = 0, True, torch.zeros(4), None
        self.metric, self.met = MeanMetric(), set[int]()

    def draw(self, x: Tensor, given: Any) -> Tensor | float:
        if self.kind == "counter":
            self.calls += 1
            return 1 / self.calls
        if self.kind == "private counter":
            self._calls += 1
            return 1 / self._calls
        if self.kind == "flag":
            was, self.first = self.first, not self.first
            return 2.0 if was else 3.0
        if self.kind == "set":
            self.met.add(len(self.met))
            return 1 / len(self.met)
        if self.kind == "tensor":
            self.running = 0.9 * self.running + x.detach().mean(0)
            return 1 + self.running
        if self.kind == "tensor in place":
            self.running.mul_(0.9).add_(x.detach().mean(0))
            return 1 + self.running.clone()
        if self.kind == "the call before":
            before, self.previous = self.previous, x.detach().mean(0)  # type: ignore[assignment]
            return 1.0 if before is None else 1 + before
        if self.kind == "attribute made late":
            before, self.late = getattr(self, "late", None), x.detach().mean(0)
            return 1.0 if before is None else 1 + before
        if self.kind == "graph of the step before":
            before, self.previous = self.previous, x.square().mean(0)  # type: ignore[assignment]
            return 1.0 if before is None else 1 + before.detach()
        if self.kind == "metric":
            self.metric.update(x.detach().mean())
            return 1 + self.metric.compute()
        if self.kind == "metric called":
            return 1 + self.metric(x.detach().mean()) + self.metric.compute()
        if self.kind == "list":
            self.seen = [*self.seen[-2:], x.detach()]
            self.seen.append(x.detach())
            return torch.stack(self.seen).mean(0)
        if self.kind.startswith("buffer"):
            with torch.no_grad():
                if self.kind == "buffer in place":
                    self.mean.mul_(0.9).add_(x.mean(0))
                else:
                    self.mean = 0.9 * self.mean + x.detach().mean(0)
            return 1 + self.mean.clone()
        if self.kind == "global":
            return random.random() + float(global_numpy.rand())
        if self.kind == "argument":
            return torch.rand(x.shape, generator=given)
        if self.kind == "generator":
            return torch.rand(x.shape, generator=self.generator)
        return self.numpy.random() + self.python.random() if self.kind == "host" else 1.0

    def forward(self, x: Tensor, given: Any) -> Tensor:
        return torch.tanh(self.layer(x) * self.draw(x, given)) + x


class KeepingNet(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        random.seed(5)
        global_numpy.seed(5)
        self.blocks = nn.ModuleList(Keeps(kind) for _ in range(4))
        self.given = torch.Generator().manual_seed(7)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x, self.given)
        return x.square().sum()


KEPT = [
    "counter",
    "private counter",
    "flag",
    "set",
    "tensor",
    "tensor in place",
    "the call before",
    "attribute made late",
    "graph of the step before",
    "metric",
    "metric called",
    "list",
    "buffer in place",
    "buffer assigned",
    "spectral norm",
    "generator",
    "argument",
    "host",
    "global",
]


@pytest.mark.parametrize("policy", ["every_block", "sqrt"])
@pytest.mark.parametrize("kind", KEPT)
def test_a_block_computes_the_same_twice_from_what_it_keeps_itself(kind: str, policy: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    nets: list[nn.Module] = []

    def make() -> nn.Module:
        nets.append(KeepingNet(kind))
        return nets[-1]

    compared(make, lambda net: net(x), CheckpointPolicy(policy))
    plain, again = (dict(net.named_buffers()) for net in nets)
    assert all(torch.equal(plain[name], again[name]) for name in plain), "and leaves the same behind"
    counts = [[(b.calls, b._calls, b.metric.update_count) for b in net.blocks] for net in nets]  # type: ignore[union-attr]
    assert counts[0] == counts[1]


# ---------------------------------------------------------------------- iterators
class Count:
    def __init__(self) -> None:
        self.calls = 0


class Elsewhere(nn.Module):
    """A block that changes something which is not noted: it is no attribute of its own, or inside of one."""

    calls = 0
    where: ClassVar = {"calls": 0}

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.layer, self.count = kind, nn.Linear(4, 4), Count()
        self.array, self.nested = numpy.zeros(1), {"calls": [0]}

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "class":
            type(self).calls += 1
        elif self.kind == "global":
            Elsewhere.where["calls"] += 1
        elif self.kind == "object":
            self.count.calls += 1
        elif self.kind == "array":
            self.array += 1
        elif self.kind == "nested":
            self.nested["calls"][0] += 1
        calls = self.calls + self.where["calls"] + self.count.calls + float(self.array[0]) + self.nested["calls"][0]
        return torch.tanh(self.layer(x)) * (1 + 0.01 * calls)


def chain(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(make() for _ in range(4)))


@pytest.mark.parametrize("kind", ["class", "global", "object", "array", "nested"])
def test_a_block_that_is_another_the_second_time_is_refused_in_the_first_step(kind: str) -> None:
    Elsewhere.calls, Elsewhere.where["calls"] = 0, 0
    net = chain(lambda: Elsewhere(kind))
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    with checkpointing.step():
        loss = net(torch.randn(3, 4)).sum()
    with pytest.raises(RuntimeError, match=r"3 gave another result.*Keep what it changes in an attribute"):
        loss.backward()


def test_an_object_that_a_block_makes_when_it_first_runs_stays() -> None:
    class Lazy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.count = nn.Linear(4, 4), None

        def forward(self, x: Tensor) -> Tensor:
            if self.count is None:
                self.count = Count()  # type: ignore[assignment]
            return torch.tanh(self.layer(x))

    net = chain(Lazy)
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    with checkpointing.step():
        loss = net(torch.randn(3, 4)).sum()
    made = [block.count for block in net]
    loss.backward()
    assert all(type(count) is Count for count in made)
    assert [block.count for block in net] == made


def test_what_a_codec_has_rounded_is_not_compared() -> None:
    """Blocks are computed again from rounded inputs there, and give something else."""
    net = chain(lambda: nn.Sequential(nn.Linear(4, 4), nn.Tanh()))
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    with checkpointing.step(), saved_tensors_hooks(lambda t: t.mul(8).round(), lambda t: t / 8):
        loss = net(torch.randn(3, 4)).sum()
    loss.backward()
    assert all(p.grad is not None for p in net.parameters())


def test_sums_in_another_order_are_the_same_result() -> None:
    x = torch.randn(1000, generator=torch.Generator().manual_seed(0))
    assert Fingerprint(x).is_of(x * (1 + 2e-7))
    assert not Fingerprint(x).is_of(x * (1 + 1e-4))
    assert Fingerprint(torch.tensor([1.0, float("nan"), float("inf")])).is_of(
        torch.tensor([1.0, float("nan"), float("inf")])
    )
    assert not Fingerprint(torch.tensor([1, 2])).is_of(torch.tensor([1, 3]))


def test_an_auxiliary_loss_in_an_attribute_is_not_held() -> None:
    """Its graph is the step's own: a note of it would keep the graph of the step before alive."""

    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.aux = nn.Linear(4, 4), torch.zeros(())

        def forward(self, x: Tensor) -> Tensor:
            y = torch.tanh(self.layer(x))
            self.aux = y.square().mean()
            return x + y

    net = chain(Routed)
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    old: weakref.ref[Tensor] | None = None
    for _ in range(STEPS):
        with checkpointing.step():
            out = net(torch.ones(3, 4))
            loss = out.sum() + sum(block.aux for block in net)
        assert old is None or old() is None
        old = weakref.ref(net[0].aux)
        loss.backward()
        assert net[0].aux is old()


# ---------------------------------------------------------------------- what others change before the backward
class Switched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.drop, self.gain = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.3), 1.0

    def forward(self, x: Tensor) -> Tensor:
        return x + self.gain * self.drop(torch.tanh(self.norm(self.layer(x)))) * (1.0 if self.training else 3.0)


def to_evaluation(net: nn.Module) -> None:
    net.eval()


def more_dropout(net: nn.Module) -> None:
    for module in net.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.9


def another_gain(net: nn.Module) -> None:
    for block in net.children():
        block.gain = 2.0


@pytest.mark.parametrize("policy", ["every_block", "sqrt"])
@pytest.mark.parametrize("change", [to_evaluation, more_dropout, another_gain])
def test_what_is_switched_between_forward_and_backward_changes_no_gradient(
    change: Callable[[nn.Module], None], policy: Any
) -> None:
    x = torch.randn(8, 4, generator=torch.Generator().manual_seed(1))

    def loss_of(net: nn.Module) -> Tensor:
        net.train()
        for block in net.children():
            block.drop.p, block.gain = 0.3, 1.0
        loss: Tensor = net(x).square().sum()
        change(net)
        return loss

    compared(lambda: chain(Switched), loss_of, CheckpointPolicy(policy))


def test_what_is_switched_stays_switched() -> None:
    net = chain(Switched)
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    with checkpointing.step():
        loss = net(torch.randn(8, 4)).sum()
    for change in (to_evaluation, more_dropout, another_gain):
        change(net)
    loss.backward()
    assert not any(module.training for module in net.modules())
    assert [(block.drop.p, block.gain) for block in net] == [(0.9, 2.0)] * 4


def test_a_parameter_that_is_written_before_the_backward_is_refused_by_its_block() -> None:
    """Plain autograd does not need the biases, and derives at the weights of the forward."""
    net = chain(Switched)
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    for step in range(2):
        with checkpointing.step():
            loss = net(torch.randn(8, 4)).sum()
        if step:
            with torch.no_grad():
                net[1].layer.bias.add_(1.0)
            with pytest.raises(RuntimeError, match="a parameter of 1 was changed in place after the forward"):
                loss.backward()
        else:
            loss.backward()


def test_a_parameter_that_the_block_itself_writes_is_no_change() -> None:
    """An embedding with max_norm writes its weight in every forward, here of a block that is called twice."""

    class Renormed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.table = nn.Linear(4, 4), nn.Embedding(3, 4, max_norm=0.5)

        def forward(self, x: Tensor) -> Tensor:
            return torch.tanh(self.layer(x)) + self.table(torch.tensor([0, 1, 2]))

    def loss_of(net: nn.Module) -> Tensor:
        return (net(torch.ones(3, 4)) * net(torch.zeros(3, 4))).sum()

    compared(lambda: chain(Renormed), loss_of)


class Taking(nn.Module):
    """A block that takes its scale, and sometimes a second one, from an iterator."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)

    def forward(self, x: Tensor, scales: Any) -> Tensor:
        scales = scales[0] if isinstance(scales, (list, tuple)) else scales
        scale = next(scales)
        return torch.tanh(self.layer(x)) * (scale + next(scales, 0.0))


class TakingNet(nn.Module):
    def __init__(self, given: Callable[[Any], Any]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Taking() for _ in range(4))
        self.given = given

    def forward(self, x: Tensor) -> Tensor:
        scales = iter([torch.tensor(float(i)) for i in range(1, 8)])
        for block in self.blocks:
            x = block(x, self.given(scales))
        return x.square().sum()


@pytest.mark.parametrize(
    "given", [lambda it: it, lambda it: (it,), lambda it: (s for s in it), lambda it: map(abs, it)]
)
@pytest.mark.parametrize("policy", ["every_block", "sqrt"])
def test_a_block_takes_the_same_from_an_iterator_again(given: Callable[[Any], Any], policy: Any) -> None:
    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    compared(lambda: TakingNet(given), lambda net: net(x), CheckpointPolicy(policy))


def test_an_iterator_in_a_list_is_refused_by_name_in_the_first_step() -> None:
    net = TakingNet(lambda it: [it])
    checkpointing = Checkpointing(net, CheckpointPolicy("sqrt"), CPU)
    with (
        pytest.raises(PlanError, match=r"blocks\.0 is given, or keeps, an iterator \(list_iterator\)"),
        checkpointing.step(),
    ):
        net(torch.randn(3, 4))


# ---------------------------------------------------------------------- transformers' models
def language_model(name: str, **config: Any) -> Callable[[], nn.Module]:
    transformers = pytest.importorskip("transformers")
    sizes = {
        "hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "num_key_value_heads": 1,
        "vocab_size": 64, "num_hidden_layers": 3, "max_position_embeddings": 64, "pad_token_id": 0, "head_dim": 8,
    }  # fmt: skip
    made = getattr(transformers, f"{name}Config")(**(config or sizes))
    suffix = "ForConditionalGeneration" if name in ("T5", "Whisper") else "ForCausalLM"
    suffix = "WithLMHeadModel" if name == "XLM" else suffix
    return lambda: getattr(transformers, name + suffix)(made)


T5 = {
    "d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 64, "num_layers": 2, "num_decoder_layers": 2,
    "decoder_start_token_id": 0,
}  # fmt: skip
MAMBA = {"vocab_size": 64, "hidden_size": 16, "state_size": 4, "num_hidden_layers": 3}
XLM = {"vocab_size": 64, "emb_dim": 16, "n_layers": 3, "n_heads": 2}


@pytest.mark.parametrize("cache", ["as it comes", "asked for"])
@pytest.mark.parametrize(
    ("name", "config"),
    [("Llama", {}), ("Gemma2", {}), ("T5", T5), ("Mamba", MAMBA), ("XLM", XLM)],
    ids=["Llama", "Gemma2", "T5", "Mamba", "XLM"],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_models_with_a_cache_train_as_without_checkpointing(name: str, config: dict[str, Any], cache: str) -> None:
    ids = torch.randint(3, 64, (2, 8), generator=torch.Generator().manual_seed(0))
    batch: dict[str, Any] = {"input_ids": ids, "labels": ids}
    if name != "Mamba":
        mask = torch.ones_like(ids)
        mask[0, :3] = 0
        batch["attention_mask"] = mask
    make, made_before = language_model(name, **config), []

    def made() -> nn.Module:
        net = make()
        if cache == "as it comes" and not made_before:  # the plain run
            switch_cache_off(net)
        made_before.append(net)
        return net

    if cache == "asked for":
        batch["use_cache"] = True
    compared(made, lambda net: net(**batch).loss)


def test_a_models_own_switch_of_its_cache_is_off_inside_training_steps_alone() -> None:
    net = language_model("T5", **T5)()
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    configs = [net.config, net.encoder.config, net.decoder.config]
    before = [config.use_cache for config in configs]
    assert any(before)
    with checkpointing.step():
        assert not any(config.use_cache for config in configs)
    assert [config.use_cache for config in configs] == before
    with pytest.raises(ValueError, match="in the step"), checkpointing.step():
        raise ValueError("in the step")
    assert [config.use_cache for config in configs] == before


# ---------------------------------------------------------------------- what a step leaves out
class Dropping(nn.Module):
    """Blocks of which some are left out, and two branches of which one is taken."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(8))
        self.other = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.GELU(), nn.Linear(8, 8)) for _ in range(2))
        self.skipped: set[int] = set()
        self.branch = False

    def forward(self, x: Tensor) -> Tensor:
        for index, layer in enumerate(self.layers):
            if index not in self.skipped:
                x = layer(x)
        for layer in self.other if self.branch else ():
            x = layer(x)
        return x.sum()


def saved_outside(checkpointing: Checkpointing, net: nn.Module, x: Tensor) -> int:
    saved = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal saved
        saved += tensor.nbytes
        return tensor

    with checkpointing.step(), saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = net(x)
    loss.backward()
    return saved


@pytest.mark.parametrize("budget", [None, 20_000])
@pytest.mark.parametrize("skipped", [{0}, {7}, {1, 4, 6, 7}, {0, 1, 2, 3, 4, 5, 6}])
def test_blocks_that_the_watched_step_left_out_are_planned_all_the_same(skipped: set[int], budget: int | None) -> None:
    policy = CheckpointPolicy("every_block") if budget is None else CheckpointPolicy(memory_budget=budget)
    x = torch.randn(64, 8)
    plans = []
    for left_out in (set[int](), skipped):
        torch.manual_seed(0)
        net = Dropping()
        checkpointing = Checkpointing(net, policy, CPU)
        net.skipped = left_out
        for _ in range(checkpointing.steps_to_watch):
            saved_outside(checkpointing, net, x)
        net.skipped = set()
        assert checkpointing.plan is not None
        names = [block.name for block in checkpointing.plan.chain.blocks]
        plans.append((names, checkpointing.plan.peak_bytes, saved_outside(checkpointing, net, x)))
    assert plans[0][0] == plans[1][0] == [f"layers.{index}" for index in range(8)]
    assert plans[1][1] == pytest.approx(plans[0][1], rel=0.1)
    assert plans[1][2] <= 1.1 * plans[0][2]


@pytest.mark.parametrize("policy", ["every_block", "sqrt", 3])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_peak_under_layer_drop_is_within_a_tenth_of_the_plan(policy: Any, seed: int) -> None:
    """Half of the blocks, at random, are left out of the watched step; the peak is that of a step that calls all."""
    torch.manual_seed(seed)
    net, x = Dropping(), torch.randn(64, 8, requires_grad=True)
    checkpointing = Checkpointing(net, CheckpointPolicy(policy), CPU)

    def step() -> Tensor:
        with checkpointing.step():
            loss: Tensor = net(x)
        return loss

    net.skipped = set(torch.randperm(8)[:4].tolist())
    step().backward()
    net.skipped = set()
    assert checkpointing.plan is not None
    assert measure_saved(net, step).peak_saved == pytest.approx(checkpointing.plan.peak_bytes, rel=0.1)


def test_a_branch_that_no_watched_step_took_is_computed_again_too() -> None:
    net, x = Dropping(), torch.randn(64, 8)
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    saved_outside(checkpointing, net, x)
    without = saved_outside(checkpointing, net, x)
    net.branch = True
    assert saved_outside(checkpointing, net, x) <= without + 2 * x.nbytes, "each keeps its input, and nothing else"
