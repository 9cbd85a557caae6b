"""What the blocks do in a real training step: who is called after whom, what each saves, how long it takes.

The first training steps run with every outermost candidate as a segment of its own, so watching needs little memory and
no extra forward, draws no random number and logs nothing twice.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from itertools import chain as joined
from itertools import pairwise
from time import perf_counter, thread_time
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_lr.activations.blocks import Candidate, longest_chains
from lightning_lr.activations.chain import Block, Chain
from lightning_lr.activations.segment import saving_segment_inputs
from lightning_lr.nested import Mark, tensors_in, version_of

Sizes = dict[int, int]
"""Bytes of storages, by address."""


def storages(tensors: Sequence[Tensor], left_out: set[int] | None = None) -> Sizes:
    """The storages under some tensors; meta tensors and the like have none."""
    found: Sizes = {}
    for tensor in tensors:
        try:
            storage = tensor.untyped_storage()
            address, size = storage.data_ptr(), storage.nbytes()
        except (NotImplementedError, RuntimeError):  # sparse, or a subclass without a storage
            continue
        if size and not (left_out and address in left_out):
            found[address] = size
    return found


def total_bytes(tensors: Sequence[Tensor]) -> int:
    """Of the storages under some tensors."""
    return sum(storages(tensors).values())


def parameter_storages(network: nn.Module) -> set[int]:
    """Addresses of parameters and buffers, which are there whether saved or not."""
    return set(storages([*network.parameters(), *network.buffers()]))


@dataclass
class Call:
    """A candidate's call.

    Args:
        candidate: who.
        inputs: storages of its arguments.
        producers: earlier calls that returned one of them.
        inside_of: calls that had not ended when it began.
        given_bytes: of all its arguments, parameters and buffers among them.
    """

    candidate: Candidate
    inputs: Sizes
    producers: set[int]
    inside_of: tuple[int, ...]
    given_bytes: int
    outputs: Sizes = field(default_factory=dict)
    saved: Sizes = field(default_factory=dict)
    held_outside: set[int] = field(default_factory=set)
    in_place: bool = False
    seconds: float = 0.0


class Recorder:
    """Watches one training step.

    Args:
        network: whose parameters are not counted.
        synchronize: waits for the device, so that times are those of the block; ``None`` where nothing is timed or the
            device does not run behind.
    """

    def __init__(self, network: nn.Module, synchronize: Callable[[], None] | None = None) -> None:
        self._left_out = parameter_storages(network)
        self._synchronize = synchronize or (lambda: None)
        # without a device to wait for, this thread's own time: other work on the machine does not count
        self._clock = thread_time if synchronize is None else perf_counter
        self._active: list[int] = []
        self._returned: list[tuple[Mark, int]] = []
        self._outside: Sizes = {}
        self._log: list[tuple[int, int, int, tuple[int, ...]]] = []
        self.calls: list[Call] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Count what is saved outside of the candidates."""

        def pack(tensor: Tensor) -> Tensor:
            if not saving_segment_inputs():
                self.saw(tensor)
            return tensor.detach()  # never the tensor itself: an output that refers to itself would stay alive

        with saved_tensors_hooks(pack, lambda tensor: tensor):
            yield

    def saw(self, tensor: Tensor) -> None:
        """A tensor was saved, wherever the step is now."""
        for address, size in storages([tensor], self._left_out).items():
            for index in self._active:
                self.calls[index].saved[address] = size
            if not self._active:
                self._outside[address] = size
            self._log.append((address, size, len(self.calls), tuple(self._active)))

    def run(self, candidate: Candidate, args: tuple[Any, ...], kwargs: dict[str, Any], block: Callable[[], Any]) -> Any:
        """The output of ``block``, watched as the call of ``candidate``."""
        given = tensors_in((args, kwargs))
        versions = [version_of(tensor) for tensor in given]
        producers = {index for mark, index in self._returned if any(mark.is_still(tensor) for tensor in given)}
        call = Call(candidate, storages(given, self._left_out), producers, tuple(self._active), total_bytes(given))
        call.held_outside = call.inputs.keys() & self._outside.keys()
        index = len(self.calls)
        self.calls.append(call)
        self._active.append(index)
        try:
            self._synchronize()
            begin = self._clock()
            output = block()
            self._synchronize()
            call.seconds = self._clock() - begin
        finally:
            self._active.remove(index)
        returned = tensors_in(output)
        call.outputs = storages(returned, self._left_out)
        call.in_place = any(version_of(tensor) != before for tensor, before in zip(given, versions, strict=True))
        self._returned += [(Mark(tensor), index) for tensor in returned]
        return output

    def chains(self, choose: bool = True) -> tuple[list[Candidate], Chain] | None:
        """The blocks to use, in the order of their calls, and what they cost; ``None`` where nothing was called.

        Args:
            choose: whether blocks may be left out where others overlap or are longer chains.
        """
        found = self._linked_calls()
        if choose:
            found = [found[i] for i in longest_chains([[self.calls[c].candidate for c in chain] for chain in found])]
        if not found:
            return None
        chosen = sorted(joined.from_iterable(found))
        follows = {later: earlier for chain in found for earlier, later in pairwise(chain)}
        outside, after = self._outside_of(chosen)
        blocks, candidates = list[Block](), list[Candidate]()
        for position, index in enumerate(chosen):
            call, before = self.calls[index], follows.get(index)
            linked = before is not None and chosen[position - 1] == before
            common = self.calls[before].inputs.keys() if before is not None and linked else set[int]()
            entering = {a: size for a, size in call.inputs.items() if a not in common}
            blocks.append(
                Block(
                    name=call.candidate.name,
                    input_bytes=sum(size for a, size in entering.items() if a not in call.held_outside),
                    own_bytes=sum(s for a, s in call.saved.items() if a not in call.inputs and a not in call.outputs),
                    output_bytes=sum(size for a, size in call.outputs.items() if a not in call.inputs),
                    saves_input=any(a in call.saved for a in entering),
                    saves_output=any(a in call.saved and a not in call.inputs for a in call.outputs),
                    seconds=call.seconds,
                    linked=linked,
                    in_place=call.in_place,
                    outside_bytes=outside[position],
                )
            )
            candidates.append(call.candidate)
        return candidates, Chain(tuple(blocks), after)

    def _linked_calls(self) -> list[list[int]]:
        """Chains of calls, longest first: each on what the one before returned, and inside of as many candidates."""
        free = set(range(len(self.calls)))
        chains: list[list[int]] = []
        while free:
            best: dict[int, list[int]] = {}
            for index in sorted(free):
                candidate = self.calls[index].candidate
                like = [p for p in self.calls[index].producers if p in best and self._alike(p, candidate)]
                best[index] = [*max((best[p] for p in like), key=len, default=[]), index]
            longest = max(best.values(), key=len)
            chains.append(longest)
            free -= set(longest)
        return sorted(chains)

    def _alike(self, index: int, candidate: Candidate) -> bool:
        other = self.calls[index].candidate
        return (other.level, other.leaf) == (candidate.level, candidate.leaf)

    def _outside_of(self, chosen: list[int]) -> tuple[list[int], int]:
        """Bytes saved before each of the chosen calls and after the last, inside of none."""
        per_call: list[Sizes] = [{} for _ in range(len(chosen) + 1)]
        last_outputs = self.calls[chosen[-1]].outputs.keys() & self.calls[chosen[-1]].saved.keys()
        seen: set[tuple[int, int]] = set()
        for address, size, calls_begun, active in self._log:
            if any(index in active for index in chosen):
                continue
            # what a candidate saves is gone at its end, and its addresses are used again
            key = (active[0] if active else -1, address)
            if key in seen or (not active and address in last_outputs):
                continue
            seen.add(key)
            per_call[sum(index < calls_begun for index in chosen)][address] = size
        sums = [sum(sizes.values()) for sizes in per_call]
        return sums[:-1], sums[-1]


def with_siblings(
    chosen: Sequence[Candidate], chain: Chain, candidates: Sequence[Candidate], called: set[Candidate]
) -> tuple[list[Candidate], Chain]:
    """The chain as if every block of it had been called: LayerDrop and the like leave some out of a step.

    A block that was not called is a candidate of the same class and depth as the chain's, in the same container. It
    costs what the nearest block before it in that container does, or the nearest after it.

    Args:
        chosen: the blocks of the chain, in the order of their calls.
        chain: what they cost.
        candidates: every candidate, in the order of their definition.
        called: those that the step called.
    """
    blocks, costs = list(chosen), list(chain.blocks)
    for candidate in candidates:
        if candidate in called or candidate in blocks:
            continue
        alike = [other for other in candidates if _are_siblings(candidate, other) and other in blocks]
        if not alike:
            continue
        place = candidates.index(candidate)
        before = [other for other in alike if candidates.index(other) < place]
        if before:
            at = blocks.index(before[-1])
            cost = replace(costs[at], linked=True, input_bytes=costs[at].output_bytes, outside_bytes=0)
            at += 1
        else:
            at = blocks.index(alike[0])
            cost = costs[at]
            costs[at] = replace(cost, linked=True, input_bytes=cost.output_bytes, outside_bytes=0)
        blocks.insert(at, candidate)
        costs.insert(at, replace(cost, name=candidate.name))
    return blocks, replace(chain, blocks=tuple(costs))


def _are_siblings(one: Candidate, other: Candidate) -> bool:
    same_container = one.name.rpartition(".")[0] == other.name.rpartition(".")[0]
    return same_container and type(one.module) is type(other.module) and one.level == other.level


def with_seconds(chain: Chain, timed: Sequence[Chain]) -> Chain:
    """The chain with the shortest time of each block over several steps; the first step also warms up."""
    fastest: dict[str, float] = {}
    for other in timed:
        for block in other.blocks:
            fastest[block.name] = min(block.seconds, fastest.get(block.name, block.seconds))
    blocks = (replace(block, seconds=fastest.get(block.name, block.seconds)) for block in chain.blocks)
    return replace(chain, blocks=tuple(blocks))


def synchronizer(device: torch.device) -> Callable[[], None] | None:
    """Waits until the device has done what it was given; ``None`` for a CPU."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    return lambda: module.synchronize(device)
