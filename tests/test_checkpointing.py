"""Checkpointing without a Trainer: the same bits as the plain run, and the bytes that the theory promises."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from lightning_lr.activations import Checkpointing, CheckpointPolicy, replaying, saving_segment_inputs
from lightning_lr.activations.chain import Part
from lightning_lr.memory import measure_saved, predict_checkpointing
from tests.support.checkpointed_nets import IMAGES, NETS, Layers, gpt, resnet, vit

CPU = torch.device("cpu")
POLICIES = {
    "sqrt": CheckpointPolicy(),
    "3 segments": CheckpointPolicy(3),
    "every block": CheckpointPolicy("every_block"),
    "budget": CheckpointPolicy(memory_budget=1),
}


def loss_of(net: nn.Module, data: Tensor) -> Tensor:
    logits = net(data)
    targets = torch.arange(len(logits)) % logits.shape[-1]
    return functional.cross_entropy(logits.float(), targets)


def seeded(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return make()


def trained(
    net: nn.Module, data: Tensor, policy: CheckpointPolicy | None = None, bf16: bool = False, steps: int = 5
) -> tuple[list[Any], Checkpointing | None]:
    """Losses, gradients and state of every step; the first are watched, the rest follow the plan."""
    torch.manual_seed(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9)
    checkpointing = None if policy is None else Checkpointing(net, policy, CPU)
    seen: list[Any] = []
    for _ in range(steps):
        bracket = nullcontext() if checkpointing is None else checkpointing.step()
        with bracket, torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            loss = loss_of(net, data)
        optimizer.zero_grad()
        loss.backward()
        seen.append(loss.detach())
        seen += [p.grad.clone() for p in net.parameters() if p.grad is not None]
        seen += [buffer.clone() for buffer in net.buffers()]
        optimizer.step()
    seen += [torch.rand(1), *net.state_dict().values()]
    return seen, checkpointing


def least_budget(net: nn.Module, data: Tensor, bf16: bool) -> CheckpointPolicy:
    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return loss_of(net, data)

    with pytest.raises(ValueError, match="the least possible for this batch is") as error:
        predict_checkpointing(net, step, CheckpointPolicy(memory_budget=1))
    least = int(str(error.value).split("batch is ")[1].split()[0])
    return CheckpointPolicy(memory_budget=int(1.1 * least))


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", NETS)
def test_losses_gradients_and_buffers_are_those_of_the_plain_run(name: str, policy: str, bf16: bool) -> None:
    make, data = NETS[name]
    chosen = POLICIES[policy]
    if policy == "budget":
        chosen = least_budget(seeded(make), data, bf16)
    plain, _ = trained(seeded(make), data, bf16=bf16)
    checked, checkpointing = trained(seeded(make), data, chosen, bf16)
    assert len(plain) == len(checked)
    assert all(torch.equal(a, b) for a, b in zip(plain, checked, strict=True))
    assert checkpointing is not None
    assert checkpointing.plan is not None
    assert any(part.recompute for part in checkpointing.plan.parts)
    longest = max(part.stop - part.start for part in checkpointing.plan.parts if part.recompute)
    assert longest > 1 or policy in ("every block", "budget"), "segments of several blocks were tried"


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("name", NETS)
def test_measured_peak_is_the_predicted_one(name: str, bf16: bool) -> None:
    make, data = NETS[name]
    net = seeded(make)

    def step() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            return loss_of(net, data)

    plain = measure_saved(net, step)
    half = CheckpointPolicy(memory_budget=plain.peak_saved // 2)
    for policy in (*list(POLICIES.values())[:3], least_budget(net, data, bf16), half):
        checkpointing, bracketed = following(net, policy, step)
        plan = checkpointing.plan
        measured = measure_saved(net, bracketed)
        checkpointing.undo()
        # the issue's 10 %: what crosses the borders of blocks in other ways than as input and output is counted twice
        assert measured.peak_saved == pytest.approx(plan.peak_bytes, rel=0.1)
        assert plain.peak_saved == pytest.approx(plan.plain_bytes, rel=0.1)
        assert measured.peak_saved < plain.peak_saved


def following(net: nn.Module, policy: CheckpointPolicy, step: Callable[[], Tensor]) -> Any:
    """Checkpointing that has made its plan, and the step under it."""
    checkpointing = Checkpointing(net, policy, CPU)

    def bracketed() -> Tensor:
        with checkpointing.step():
            return step()

    for _ in range(checkpointing.steps_to_watch):
        bracketed().backward()
    return checkpointing, bracketed


def test_saved_bytes_of_36_blocks_follow_k_plus_n_over_k() -> None:
    net = seeded(Layers)
    x = torch.randn(128, 48)
    unit = 128 * 64 * 4

    def step() -> Tensor:
        return net(x).square().sum()

    # Activations of one layer's width are the unit; the input of the net has 0.75. The loss saves the last output.
    assert measure_saved(net, step).peak_saved == 36.75 * unit
    peaks = {}
    for segments in (1, 2, 3, 4, 6, 9, 12, 18, 36):
        policy = CheckpointPolicy(segments)
        checkpointing, bracketed = following(net, policy, step)
        peaks[segments] = measure_saved(net, bracketed).peak_saved
        checkpointing.undo()
        assert peaks[segments] == (segments + 36 / segments - 0.25) * unit
        assert predict_checkpointing(net, step, policy).peak_bytes == peaks[segments]
    assert min(peaks, key=peaks.__getitem__) == 6
    checkpointing, bracketed = following(net, CheckpointPolicy("sqrt"), step)
    assert measure_saved(net, bracketed).peak_saved == peaks[6]
    checkpointing.undo()


def test_allocator_sees_the_saving_too() -> None:
    net = seeded(Layers)
    x = torch.randn(2048, 48)
    unit = 2048 * 64 * 4

    def step() -> Tensor:
        return net(x).square().sum()

    def peak(step: Callable[[], Tensor]) -> float:
        for parameter in net.parameters():
            parameter.grad = None
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as run:
            step().backward()
        live, most = 0, 0
        for event in sorted(run.profiler.kineto_results.events(), key=lambda event: event.start_ns()):  # type: ignore[union-attr]
            if event.name() == "[memory]":
                live += event.nbytes()
                most = max(most, live)
        return most / unit

    plain = peak(step)
    checkpointing, bracketed = following(net, CheckpointPolicy(6), step)
    checked = peak(bracketed)
    checkpointing.undo()
    # every tensor that torch allocates, temporaries included: 36 and 11 saved ones (the input was there before), the
    # gradient that comes in, the one that goes out, their product with tanh' and the small gradients of parameters
    assert 36 <= plain < 40
    assert 11 <= checked < 15


def test_state_dict_names_hooks_and_copies_are_those_of_the_plain_network() -> None:
    net = seeded(vit)
    names, forwards = list(net.state_dict()), [block.forward for block in net.blocks]  # type: ignore[union-attr]
    checkpointing, _ = following(net, CheckpointPolicy("every_block"), lambda: loss_of(net, IMAGES))
    assert list(net.state_dict()) == names
    twin = copy.deepcopy(net)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.add_(1.0)
    net.eval(), twin.eval()
    assert not torch.equal(net(IMAGES), twin(IMAGES)), "a copy runs on its own weights"
    net.train()
    checkpointing.undo()
    assert [block.forward for block in net.blocks] == forwards  # type: ignore[union-attr]
    assert not any("forward" in vars(module) for module in net.modules())


def test_no_grad_and_eval_run_plainly() -> None:
    net = seeded(resnet)
    checkpointing, _ = following(net, CheckpointPolicy(), lambda: loss_of(net, IMAGES))
    net.eval()
    with torch.no_grad():
        assert not net(IMAGES).requires_grad
    with torch.inference_mode():
        net(IMAGES)
    net.train()
    checkpointing.undo()


def test_frozen_blocks_and_accumulation() -> None:
    def gradients(policy: CheckpointPolicy | None) -> list[Tensor | None]:
        net = seeded(gpt)
        for block in list(net.blocks)[:2]:  # type: ignore[call-overload]
            block.requires_grad_(False)
        net.embedding.weight.requires_grad_(False)
        net.position.requires_grad_(False)
        torch.manual_seed(2)
        checkpointing = None if policy is None else Checkpointing(net, policy, CPU)
        for _ in range(4):
            with nullcontext() if checkpointing is None else checkpointing.step():
                loss = loss_of(net, NETS["gpt"][1])
            loss.backward()
        return [p.grad for p in net.parameters()]

    plain = gradients(None)
    for policy in (CheckpointPolicy(2), CheckpointPolicy("every_block")):
        for a, b in zip(plain, gradients(policy), strict=True):
            assert (a is None) == (b is None)
            assert a is None or torch.equal(a, b)


class Touchy(nn.Module):
    """A forward that does something between its blocks: reads, replaces, writes in place, leaves blocks out."""

    def __init__(self, between: str) -> None:
        super().__init__()
        self.between = between
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.2)) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        collected = []
        for i, block in enumerate(self.blocks):
            if self.between == "leaves blocks out" and torch.rand(()) < 0.4:
                continue
            x = block(x)
            if self.between == "adds" and i % 2:
                x = x + 0.1 * i
            if self.between == "adds in place" and i % 3 == 2:
                x += 0.1 * i
            if self.between == "draws":
                torch.rand(i)
            if self.between == "repeats" and i == 3:
                x = self.blocks[1](self.blocks[1](x))
            collected.append(x)
        return torch.stack(collected).mean(0) if self.between == "collects" else x


@pytest.mark.parametrize(
    "between", ["nothing", "adds", "adds in place", "draws", "collects", "leaves blocks out", "repeats"]
)
def test_what_a_forward_does_between_its_blocks_is_respected(between: str) -> None:
    data = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    plain, _ = trained(seeded(lambda: Touchy(between)), data, steps=8)
    for policy in (CheckpointPolicy(2), CheckpointPolicy("every_block"), CheckpointPolicy(memory_budget=10**6)):
        checked, _ = trained(seeded(lambda: Touchy(between)), data, policy, steps=8)
        assert all(torch.equal(a, b) for a, b in zip(plain, checked, strict=True)), policy


def test_layers_that_write_into_their_input_start_no_segment() -> None:
    def make() -> nn.Module:
        layers = [m for _ in range(4) for m in (nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True))]
        return nn.Sequential(*layers)

    data = torch.randn(6, 8, generator=torch.Generator().manual_seed(3))
    plain, _ = trained(seeded(make), data)
    for policy in (CheckpointPolicy(6), CheckpointPolicy("every_block"), CheckpointPolicy()):
        checked, checkpointing = trained(seeded(make), data, policy)
        assert all(torch.equal(a, b) for a, b in zip(plain, checked, strict=True))
        assert checkpointing is not None
        assert checkpointing.plan is not None
        assert all(part.start % 3 != 2 for part in checkpointing.plan.parts)


def test_batch_norm_statistics_are_updated_twice_only_on_demand() -> None:
    once = trained(seeded(resnet), IMAGES, CheckpointPolicy("every_block"), steps=2)[0]
    twice = trained(seeded(resnet), IMAGES, CheckpointPolicy("every_block", preserve_batch_norm=False), steps=2)[0]
    assert not all(torch.equal(a, b) for a, b in zip(once, twice, strict=True))


def test_graph_that_is_kept_can_be_derived_twice_and_double_backward_works() -> None:
    net, data = seeded(lambda: Touchy("nothing")), torch.randn(6, 8)

    def derivatives(step: Callable[[], Tensor]) -> list[Tensor]:
        torch.manual_seed(4)
        loss = step()
        parameters = list(net.parameters())
        first = torch.autograd.grad(loss, parameters, create_graph=True)
        second = torch.autograd.grad(sum(g.square().sum() for g in first), parameters, retain_graph=True)
        third = torch.autograd.grad(loss, parameters)
        return [g.detach() for g in (*first, *second, *third)]

    plain = derivatives(lambda: loss_of(net, data))
    checkpointing, step = following(net, CheckpointPolicy(2), lambda: loss_of(net, data))
    checked = derivatives(step)
    checkpointing.undo()
    assert all(torch.equal(a, b) for a, b in zip(plain, checked, strict=True))


def test_nothing_is_left_when_a_graph_is_dropped_or_a_step_fails() -> None:
    net = seeded(vit)

    def tensors() -> int:
        gc.collect()
        return sum(issubclass(type(found), Tensor) for found in gc.get_objects())

    checkpointing, step = following(net, CheckpointPolicy(2), lambda: loss_of(net, IMAGES))
    step().backward()
    before = tensors()
    for _ in range(3):
        step()
        with pytest.raises(ZeroDivisionError), checkpointing.step():
            loss_of(net, IMAGES) / (1 // 0)
        step().backward()
    assert tensors() == before
    checkpointing.undo()


def test_block_that_differs_when_repeated_is_named() -> None:
    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x) if replaying() else self.layer(x).tanh().exp()

    net = nn.Sequential(nn.Linear(8, 8), Fickle(), Fickle())
    checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU)
    with checkpointing.step():
        loss = net(torch.randn(2, 8)).sum()
    with pytest.raises(RuntimeError, match="2 saved another number of tensors when it was computed again"):
        loss.backward()
    checkpointing.undo()


def test_hooks_from_outside_get_the_inputs_of_segments_and_nothing_else_of_them() -> None:
    net = seeded(lambda: Touchy("nothing"))
    data = torch.randn(6, 8)
    checkpointing, _ = following(net, CheckpointPolicy(2), lambda: net(data).sum())
    seen: list[tuple[bool, weakref.ref[Tensor]]] = []

    def pack(tensor: Tensor) -> Tensor:
        seen.append((saving_segment_inputs(), weakref.ref(tensor)))
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), checkpointing.step():
        loss = net(data).sum()
    inputs = [was_input for was_input, _ in seen]
    assert sum(inputs) == 1, "the first segment; the last is kept"
    in_backward = len(seen)
    loss.backward()
    assert len(seen) == in_backward
    checkpointing.undo()


def test_input_that_grows_makes_a_new_plan_under_a_budget() -> None:
    net = seeded(Layers)
    small, large = torch.randn(8, 48), torch.randn(16, 48)
    data = small
    checkpointing, step = following(net, CheckpointPolicy(memory_budget=40 * 8 * 64 * 4), lambda: net(data).sum())
    assert checkpointing.plan is not None
    assert checkpointing.plan.parts == (Part(0, 36, False),), "all of it fits"
    data = large
    for _ in range(2):  # one step that is careful, one that is watched
        step().backward()
    assert any(part.recompute for part in checkpointing.plan.parts)
    measured = measure_saved(net, step)
    assert measured.peak_saved <= 40 * 8 * 64 * 4
    checkpointing.undo()


def test_forward_hooks_of_a_block_run_again_only_on_demand() -> None:
    net, calls = seeded(lambda: Touchy("nothing")), []
    for block in net.blocks:  # type: ignore[union-attr]
        block.register_forward_pre_hook(lambda *_: calls.append(replaying()))
        block.register_forward_hook(lambda *_: calls.append(replaying()))
    for repeat, expected in ((False, 0), (True, 6)):
        checkpointing = Checkpointing(net, CheckpointPolicy("every_block"), CPU, repeat_hooks=repeat)
        with checkpointing.step():
            loss = loss_of(net, torch.randn(6, 8))
        calls.clear()
        loss.backward()
        checkpointing.undo()
        assert all(calls)
        # the last tensor of a block that is asked for ends its repetition, before the hook that would follow
        assert calls.count(True) == expected


def test_auto_budget_is_a_share_of_what_is_free_in_the_third_step(monkeypatch: pytest.MonkeyPatch) -> None:
    free = iter([10**9, 10**9, 3 * 10**5])
    monkeypatch.setattr(torch.cpu, "mem_get_info", lambda device: (next(free), 10**10), raising=False)
    monkeypatch.setattr(torch.cpu, "memory_reserved", lambda device: 10**5, raising=False)
    monkeypatch.setattr(torch.cpu, "memory_allocated", lambda device: 0, raising=False)
    net = seeded(vit)
    checkpointing, _ = following(net, CheckpointPolicy(memory_budget="auto"), lambda: loss_of(net, IMAGES))
    checkpointing.undo()
    assert checkpointing.plan is not None
    assert checkpointing.plan.budget == 0.8 * 4 * 10**5
    assert checkpointing.plan.peak_bytes <= checkpointing.plan.budget


def test_under_compile_of_the_network_every_block_is_a_region_of_its_own() -> None:
    net = seeded(lambda: nn.Sequential(*(nn.Sequential(*[nn.Linear(8, 8), nn.Tanh()] * 3) for _ in range(4))))
    x = torch.randn(32, 8)

    def saved_layers() -> float:
        torch._dynamo.reset()
        compiled = torch.compile(net, backend="aot_eager")
        return measure_saved(net, lambda: compiled(x).square().sum()).saved_at_end_of_forward / x.nbytes

    assert saved_layers() == 13, "the input and the output of every layer"
    checkpointing = Checkpointing(net, CheckpointPolicy(2), CPU)
    assert saved_layers() == 5, "the inputs of four blocks, and what the loss saves"
    checkpointing.undo()
    torch._dynamo.reset()


def test_names_and_values_that_do_not_exist_are_refused() -> None:
    net = seeded(vit)
    with pytest.raises(ValueError, match=r"modules names 'block', which the module does not have; did you mean blocks"):
        Checkpointing(net, CheckpointPolicy(modules=["block"]), CPU)
    with pytest.raises(ValueError, match=r"Linear has no nn.Sequential or nn.ModuleList to take blocks from"):
        Checkpointing(nn.Linear(2, 2), CheckpointPolicy(), CPU)
    with pytest.raises(ValueError, match="reads the free memory of an accelerator, and this run is on cpu"):
        Checkpointing(net, CheckpointPolicy(memory_budget="auto"), CPU)
    for arguments in ({"segments": 0}, {"segments": "half"}, {"segments": True}, {"memory_budget": 0},
                      {"memory_budget": 1.5}, {"modules": "blocks"}, {"modules": []}):  # fmt: skip
        with pytest.raises(ValueError, match="CheckpointPolicy: got"):
            CheckpointPolicy(**arguments)  # type: ignore[arg-type]
    too_many = Checkpointing(net, CheckpointPolicy(9), CPU)
    with pytest.raises(ValueError, match="segments=9, but there are 5 blocks"), too_many.step():
        loss_of(net, IMAGES)
    too_many.undo()


def test_named_modules_are_the_blocks() -> None:
    net = seeded(resnet)
    for modules, count in ((["stages.0", "stages.1"], 4), (["stages.0.1", "stages.2.0"], 2)):
        plan = predict_checkpointing(
            net, lambda: loss_of(net, IMAGES), CheckpointPolicy("every_block", modules=modules)
        )
        assert len(plan.chain) == count
