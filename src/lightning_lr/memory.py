"""What a training step holds in memory for its backward: predicted by a plan, and measured while it runs.

Saved activations are counted by saved-tensor hooks, each storage once and parameters not at all, which works on every
device; on an accelerator the allocator's own peak is read as well.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_lr.activations.chain import Block, Chain
from lightning_lr.activations.checkpointing import Checkpointing, CheckpointPlan
from lightning_lr.activations.measuring import parameter_storages, storages
from lightning_lr.activations.planner import cut
from lightning_lr.activations.policy import CheckpointPolicy, PlanError
from lightning_lr.activations.segment import Holder, observe_holders
from lightning_lr.patching import buffers_put_back

Step = Callable[[], Tensor]
"""A forward with its loss, as in ``training_step``."""


class _SavedTensor:
    """A tensor in the graph, for as long as the graph holds it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()


class LiveBytes:
    """Counts the saved bytes that are alive, and the most that ever were.

    Args:
        network: whose parameters and buffers are not counted.
    """

    def __init__(self, network: nn.Module) -> None:
        self._network = network
        self._left_out = parameter_storages(network)
        self._users: dict[int, int] = {}
        self._module_stack: list[str] = []
        self.live = 0
        self.peak = 0
        self.by_module: dict[str, int] = {}
        """Bytes saved in forward, by the innermost module that ran; what is computed again in backward is not here."""

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Encloses forward and backward."""
        hooks = [hook for name, module in self._network.named_modules() for hook in self._follow(name, module)]
        try:
            with observe_holders(self._filled), saved_tensors_hooks(self._pack, lambda saved: saved.tensor):
                yield
        finally:
            for hook in hooks:
                hook.remove()

    def _follow(self, name: str, module: nn.Module) -> list[Any]:
        def enter(*_: Any) -> None:
            self._module_stack.append(name)

        def leave(*_: Any) -> None:
            if self._module_stack:
                self._module_stack.pop()

        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, always_call=True)]

    def _pack(self, tensor: Tensor) -> _SavedTensor:
        saved = _SavedTensor(tensor)
        new = self._count(saved, saved.tensor)
        if new:
            where = self._module_stack[-1] if self._module_stack else ""
            self.by_module[where] = self.by_module.get(where, 0) + new
        return saved

    def _filled(self, holder: Holder) -> None:
        assert holder.value is not None
        self._count(holder, holder.value)

    def _count(self, owner: Any, tensor: Tensor) -> int:
        new = 0
        for address, size in storages([tensor], self._left_out).items():
            users = self._users.get(address, 0)
            self._users[address] = users + 1
            new += 0 if users else size
            weakref.finalize(owner, self._release, address, size)
        self.live += new
        self.peak = max(self.peak, self.live)
        return new

    def _release(self, address: int, size: int) -> None:
        self._users[address] -= 1
        if not self._users[address]:
            del self._users[address]
            self.live -= size


@dataclass(frozen=True)
class MeasuredBytes:
    """What a training step held.

    Args:
        saved_at_end_of_forward: bytes.
        peak_saved: the most bytes of saved activations at a time, in forward or backward.
        by_module: bytes saved in forward, by the innermost module that ran.
        peak_allocated: the allocator's peak above what was allocated before; ``None`` on a CPU.
    """

    saved_at_end_of_forward: int
    peak_saved: int
    by_module: dict[str, int] = field(default_factory=dict)
    peak_allocated: int | None = None


def measure_saved(network: nn.Module, step: Step, device: torch.device | str = "cpu") -> MeasuredBytes:
    """Run ``step`` and its backward, and count.

    Args:
        network: with a plain forward, or one that a :class:`~lightning_lr.activations.Checkpointing` has changed.
        step: returns the loss.
        device: where it runs.
    """
    device = torch.device(device)
    allocator = None if device.type == "cpu" else torch.get_device_module(device)
    before = 0
    if allocator is not None:
        allocator.reset_peak_memory_stats(device)
        before = allocator.memory_allocated(device)
    ledger = LiveBytes(network)
    with ledger.counting():
        loss = step()
        forward = ledger.live
        loss.backward()  # type: ignore[no-untyped-call]
    allocated = None if allocator is None else allocator.max_memory_allocated(device) - before
    return MeasuredBytes(forward, ledger.peak, dict(ledger.by_module), allocated)


def predict_checkpointing(
    network: nn.Module, step: Step, policy: CheckpointPolicy, device: torch.device | str = "cpu"
) -> CheckpointPlan:
    """The plan that a policy makes for this step, from forwards alone.

    Buffers, gradients and the random state are as before afterwards.

    Raises:
        PlanError: where the policy refuses: names that do not exist, no blocks, a budget that no plan reaches.
    """
    device = torch.device(device)
    devices = [] if device.type == "cpu" else [device]
    checkpointing = Checkpointing(network, policy, device)
    try:
        rng = torch.random.fork_rng(devices, device_type=device.type if devices else "cuda")
        with buffers_put_back(network), rng:
            for _ in range(checkpointing.steps_to_watch):
                with checkpointing.step():
                    step()
    finally:
        checkpointing.undo()
    if checkpointing.plan is None:
        raise PlanError("predict_checkpointing: the step calls none of the blocks; name others in modules=[...]")
    return checkpointing.plan


def extrapolate_checkpointing(
    network: nn.Module, step: Callable[[int], Tensor], samples: int, policy: CheckpointPolicy, measured: tuple[int, int]
) -> CheckpointPlan:
    r"""The plan for a batch that is too large to try out, from two small ones.

    A block's bytes are :math:`a + b \cdot` samples (what is saved for each sample, and what does not grow, as copies of
    weights under autocast), so two batches give them for any other.

    Args:
        network: on the CPU.
        step: forward and loss for a batch of so many samples.
        samples: of the batch that is planned.
        policy: how to cut.
        measured: samples of the two small batches, the smaller first.

    Raises:
        PlanError: where the policy refuses, or the two batches are not computed by the same blocks.
    """
    watched = replace(policy, segments="every_block", memory_budget=None)
    few, many = (predict_checkpointing(network, partial(step, n), watched).chain for n in measured)
    if [block.name for block in few.blocks] != [block.name for block in many.blocks]:
        raise PlanError("extrapolate_checkpointing: the blocks that run are not the same at every step")

    def at(a: int, b: int) -> int:
        return max(0, round(a + (b - a) * (samples - measured[0]) / (measured[1] - measured[0])))

    def block(a: Block, b: Block) -> Block:
        return replace(
            b,
            input_bytes=at(a.input_bytes, b.input_bytes),
            own_bytes=at(a.own_bytes, b.own_bytes),
            output_bytes=at(a.output_bytes, b.output_bytes),
            outside_bytes=at(a.outside_bytes, b.outside_bytes),
        )

    blocks = tuple(block(a, b) for a, b in zip(few.blocks, many.blocks, strict=True))
    chain = Chain(blocks, at(few.outside_bytes, many.outside_bytes))
    budget = policy.memory_budget if isinstance(policy.memory_budget, int) else None
    return CheckpointPlan(chain, cut(chain, policy, budget), budget)
