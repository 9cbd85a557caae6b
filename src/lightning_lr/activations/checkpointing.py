"""`Checkpointing`: a policy at work on a network, from the first training step to the last.

It watches the first step (three under a memory budget: bytes in the first, times in the next two) with every candidate
as a segment of its own, cuts the chain that it saw, and follows that plan. Pure torch: a strategy brackets each
training step with :meth:`Checkpointing.step` and calls :meth:`Checkpointing.undo` at the end.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from lightning_lr.activations.argument_state import ArgumentState
from lightning_lr.activations.blocks import Candidate, candidates
from lightning_lr.activations.chain import Chain, Part, peak_bytes, recomputed_seconds
from lightning_lr.activations.iterators import taped
from lightning_lr.activations.measuring import Recorder, synchronizer, total_bytes, with_seconds, with_siblings
from lightning_lr.activations.planner import cut
from lightning_lr.activations.policy import CheckpointPolicy, PlanError
from lightning_lr.activations.segment import Holder, Segment
from lightning_lr.activations.wrapping import BlockForward
from lightning_lr.nested import tensors_in

TIMED_STEPS = 2
"""Steps that are timed, under a budget, after the one that counts bytes."""

FREE_SHARE = 0.8
"""Of the free memory, what ``memory_budget="auto"`` gives to activations; the rest is for what is not saved."""


@dataclass(frozen=True)
class CheckpointPlan:
    """A chain and how it is cut.

    Args:
        chain: the measured blocks, in the order of their calls.
        parts: contiguous parts of it.
        budget: bytes, where there is one.
    """

    chain: Chain
    parts: tuple[Part, ...]
    budget: int | None = None

    @property
    def plain_bytes(self) -> int:
        """Live saved bytes at the peak without checkpointing."""
        return peak_bytes(self.chain, [Part(0, len(self.chain), False)])

    @property
    def peak_bytes(self) -> int:
        """Live saved bytes at the peak, predicted."""
        return peak_bytes(self.chain, self.parts)

    @property
    def recomputed(self) -> float:
        """Share of the blocks' forward time that is spent again."""
        return recomputed_seconds(self.chain, self.parts) / (self.chain.seconds(0, len(self.chain)) or 1.0)

    def describe(self) -> str:
        """The plan in one line."""
        segments = sum(part.recompute for part in self.parts)
        repeated = sum(part.stop - part.start for part in self.parts if part.recompute)
        budget = f" of a budget of {self.budget:,}" if self.budget else ""
        return (
            f"{repeated} of {len(self.chain)} blocks are computed again, in {segments} segment{'s' * (segments != 1)}; "
            f"saved activations peak at {self.peak_bytes:,} bytes{budget}, {self.plain_bytes:,} without"
        )


class Checkpointing:
    """Applies a policy to a network by shadowing the forwards of its blocks.

    Args:
        network: whose blocks are looked for.
        policy: how to cut.
        device: where it computes.
        share: gives every process what the first one measured, so that all cut alike.
        on_plan: called with each plan as it is made.
        repeat_hooks: whether the forward hooks of a block itself run again with it (those of modules inside always do).
            For hooks that fetch the block's parameters, as ZeRO stage 3 has them.

    Raises:
        PlanError: for names in ``policy.modules`` that do not exist, a network without blocks, or
            ``memory_budget="auto"`` on a device whose free memory is not known.
    """

    def __init__(
        self,
        network: nn.Module,
        policy: CheckpointPolicy,
        device: torch.device,
        share: Callable[[Any], Any] = lambda measured: measured,
        on_plan: Callable[[CheckpointPlan], None] = lambda plan: None,
        repeat_hooks: bool = False,
    ) -> None:
        if policy.memory_budget == "auto" and not hasattr(torch.get_device_module(device), "mem_get_info"):
            raise PlanError(
                f"CheckpointPolicy: memory_budget='auto' reads the free memory of an accelerator, and this run is on "
                f"{device.type}; give a number of bytes"
            )
        self.plan: CheckpointPlan | None = None
        self._network, self._policy, self._device = network, policy, device
        self._share, self._on_plan, self._repeat_hooks = share, on_plan, repeat_hooks
        self._candidates = candidates(network, policy.modules)
        self._forwards: list[BlockForward] = []
        self._positions: dict[nn.Module, list[int]] = {}
        self._cursor = 0
        self._part_at: list[Part | None] = []
        self._open: tuple[weakref.ref[Segment], Part] | None = None
        self._inside = False
        self._recorder: Recorder | None = None
        self._timed: list[Chain] = []
        self._shared: list[Chain] | None = None
        self._measured: tuple[list[Candidate], Chain] | None = None
        self._empty_steps = 0
        self._largest_input = 0
        self._grown = False
        self._free = 0
        self._writing: set[nn.Module] = set()
        """Blocks that write into tensors of the objects that they are given (such as a cache of fixed size)."""
        self._called: set[Candidate] = set()
        self._watches = 1 if policy.memory_budget is None else 1 + TIMED_STEPS
        self._patch(self._candidates)

    # ------------------------------------------------------------------ what a strategy calls
    @property
    def steps_to_watch(self) -> int:
        """Training steps until the plan is followed."""
        return self._watches

    @contextmanager
    def step(self) -> Iterator[None]:
        """Encloses the forward of one training step, not its backward."""
        self._cursor, self._open, self._grown = 0, None, False
        switched_off = [config for config in _cache_switches(self._network) if config.use_cache is True]
        try:
            for config in switched_off:
                config.use_cache = False
            if not self._watches:
                yield
            else:
                self._free = self._free_bytes()
                timed = self._policy.memory_budget is not None and self._measured is not None
                self._recorder = Recorder(self._network, synchronizer(self._device) if timed else None)
                with self._recorder.watching():
                    yield
                self._learn(self._recorder)
        finally:
            self._recorder, self._open = None, None
            for config in switched_off:
                config.use_cache = True
        if self._grown:  # a plan for the largest input so far: watch the next step
            self._measured, self._timed, self._watches = None, [], 1
            self._unpatch()
            self._patch(self._candidates)

    def undo(self) -> None:
        """Give every block its own forward back."""
        self._unpatch()

    # ------------------------------------------------------------------ blocks
    def _patch(self, chosen: list[Candidate]) -> None:
        self._forwards = [BlockForward(c, self._call, self._policy.preserve_batch_norm) for c in chosen]

    def _unpatch(self) -> None:
        for forward in reversed(self._forwards):
            forward.undo()
        self._forwards = []

    def _call(self, block: BlockForward, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self._recorder is not None:
            call = partial(self._alone, block, args, kwargs, self._recorder)
            return self._recorder.run(block.candidate, args, kwargs, call)
        if self._inside:
            return block.original(*args, **kwargs)
        if self.plan is None or self._grown:
            return self._run(Segment(), block, args, kwargs)
        if block.candidate.module not in self._positions:  # a branch that no watched step took
            return self._run(Segment(), block, args, kwargs)
        position = self._next_position(block.candidate.module)
        if position == 0 and self._policy.memory_budget is not None and self._outgrows(args, kwargs):
            return self._run(Segment(), block, args, kwargs)
        part = self._part_at[position]
        if part is None:
            return block.original(*args, **kwargs)
        segment = self._open[0]() if self._open is not None and self._open[1] is part else None
        if segment is None or not segment.continues((args, kwargs)):
            segment = Segment()
            self._open = weakref.ref(segment), part
        return self._run(segment, block, args, kwargs)

    def _run(
        self,
        segment: Segment,
        block: BlockForward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        saved: Callable[[Holder, Tensor], None] | None = None,
        state: ArgumentState | None = None,
    ) -> Any:
        module, name = block.candidate.module, block.candidate.name
        again = module if self._repeat_hooks else None  # its forward is the original while replaying
        if state is None:
            args, kwargs = _taped(args, kwargs)
        noted = state or ArgumentState((args, kwargs), module in self._writing, block.modules)
        if noted.iterators:
            kind = type(noted.iterators[0]).__name__
            raise PlanError(
                f"checkpointing: {name} is given, or keeps, an iterator ({kind}) whose place "
                "cannot be put back when the block is computed again; give it a list, give it the iterator as an "
                "argument of its own, or leave it out by naming the other blocks in CheckpointPolicy(modules=[...])"
            )
        self._inside = True
        try:
            output = segment.run(block.original, args, kwargs, name, block.norms, saved, again, noted, block.modules)
        finally:
            self._inside = False
        if state is None and noted.overwrote:
            self._writing.add(module)
            raise RuntimeError(
                f"checkpointing: {name} wrote into a buffer, or a tensor of one of its arguments, which it did "
                "not do while it was watched, so it cannot be computed again; leave it out by naming the other "
                "blocks in CheckpointPolicy(modules=[...])"
            )
        return output

    def _alone(self, block: BlockForward, args: tuple[Any, ...], kwargs: dict[str, Any], recorder: Recorder) -> Any:
        """A watched block, as a segment of its own; one inside of another belongs to that one's segment."""
        if self._inside:
            return block.original(*args, **kwargs)
        # Held until the block ends: addresses stay different, and a block that turns out to have written into its input
        # cannot be computed again from there.
        holders: list[tuple[Holder, Tensor]] = []

        def saved(holder: Holder, tensor: Tensor) -> None:
            holders.append((holder, tensor))
            recorder.saw(tensor)

        before = [(tensor, tensor._version) for tensor in tensors_in((args, kwargs)) if not tensor.is_inference()]
        args, kwargs = _taped(args, kwargs)
        state = ArgumentState((args, kwargs), modules=block.modules)
        # a hook that lets go of the block's parameters must not run before its backward
        segment = Segment(compared=not self._repeat_hooks)
        output = self._run(segment, block, args, kwargs, saved, state)
        if state.wrote_in_place:
            self._writing.add(block.candidate.module)
        if state.wrote_in_place or any(tensor._version != version for tensor, version in before):
            for holder, tensor in holders:
                holder.value = tensor.detach()
        return output

    def _next_position(self, module: nn.Module) -> int:
        """Where in the plan this call is: the module's next place, or its first where the order is another."""
        places = self._positions[module]
        position = next((place for place in places if place >= self._cursor), places[0])
        self._cursor = position + 1
        return position

    def _outgrows(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        self._grown = total_bytes(tensors_in((args, kwargs))) > self._largest_input
        return self._grown

    # ------------------------------------------------------------------ plan
    def _learn(self, recorder: Recorder) -> None:
        seen = recorder.chains(choose=self._policy.modules is None)
        self._called |= {call.candidate for call in recorder.calls}
        if seen is not None:
            seen = with_siblings(*seen, self._candidates, {call.candidate for call in recorder.calls})
        if seen is None:
            self._empty_steps += 1
            if self._empty_steps == 3:
                self._watches = 0
                warnings.warn(
                    "CheckpointPolicy: no block was seen in three training steps; if the network is compiled, each "
                    "block is computed again on its own and a budget cannot be followed, else give modules=[...]",
                    stacklevel=2,
                )
            return
        if self._measured is None:
            self._measured = seen
            called = {call.candidate for call in recorder.calls}
            first_called = next(candidate for candidate in seen[0] if candidate in called)
            first = next(call for call in recorder.calls if call.candidate is first_called)
            self._largest_input = max(self._largest_input, first.given_bytes)
            if isinstance(self._policy.memory_budget, int):
                self._make_plan(self._policy.memory_budget)  # refuses what no plan reaches, before anything else
        else:
            self._timed.append(seen[1])
        self._watches -= 1
        if self._watches:
            return
        if self._shared is None:
            self._shared = self._share(self._timed)
        chosen, chain = self._measured
        self._measured = chosen, with_seconds(chain, self._shared)
        self._make_plan(self._free if self._policy.memory_budget == "auto" else self._policy.memory_budget)
        self._follow()

    def _make_plan(self, budget: Any) -> None:
        assert self._measured is not None
        chain = self._measured[1]
        self.plan = CheckpointPlan(chain, cut(chain, self._policy, budget), budget)

    def _follow(self) -> None:
        assert self._measured is not None
        assert self.plan is not None
        chosen, _ = self._measured
        self._unpatch()
        self._patch(list(dict.fromkeys([*chosen, *self._never_called(chosen)])))
        self._positions = {}
        for position, candidate in enumerate(chosen):
            self._positions.setdefault(candidate.module, []).append(position)
        self._part_at = [
            part if part.recompute else None for part in self.plan.parts for _ in range(part.start, part.stop)
        ]
        self._on_plan(self.plan)

    def _never_called(self, chosen: list[Candidate]) -> list[Candidate]:
        """Outermost blocks that no watched step called: each is computed again on its own when it is called."""
        return [
            candidate
            for candidate in self._candidates
            if candidate not in self._called
            and candidate.level == 0
            and not candidate.leaf
            and not any(candidate.overlaps(other) for other in chosen)
        ]

    def _free_bytes(self) -> int:
        if self._policy.memory_budget != "auto":
            return 0
        memory = torch.get_device_module(self._device)
        reserved = memory.memory_reserved(self._device) - memory.memory_allocated(self._device)
        return int(FREE_SHARE * (memory.mem_get_info(self._device)[0] + reserved))


def _cache_switches(network: nn.Module) -> list[Any]:
    """The configurations in a network that decide whether its forward fills a cache of keys and values.

    transformers' models do so in training as well, where nobody reads it; it would hold what checkpointing lets go.
    An encoder-decoder has one configuration for each half.
    """
    found: dict[int, Any] = {}
    for module in network.modules():
        config = getattr(module, "config", None)
        parts = [config, *vars(config).values()] if hasattr(config, "__dict__") else []
        found |= {id(part): part for part in parts if isinstance(getattr(part, "use_cache", None), bool)}
    return list(found.values())


def _taped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Arguments with a tape in the place of each iterator among them."""
    return tuple(map(taped, args)), {name: taped(value) for name, value in kwargs.items()}
