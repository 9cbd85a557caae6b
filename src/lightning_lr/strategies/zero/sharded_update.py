"""ZeRO's update as one step of the client optimizer, on flat vectors of which every tensor's place is known.

DeepSpeed steps the client optimizer once per parameter group (stages 1 and 2) or part of a group (stage 3), the other
groups hidden, on vectors without a trace of the tensors in them. What looks at whole tensors (a trust ratio) or at the
whole update (a hypergradient) is wrong there, silently. :class:`ShardedUpdate` knows where each tensor lies, and holds
each part's step back until the gradients of all are complete, averaged, unscaled and clipped; then the optimizer makes
one step, with all groups, as torch's contract has it. What the engine does with a part after its step is done again.

Checked against DeepSpeed 0.19.8, whose privates are used here and in ``zero_engine``, nowhere else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr.patching import override_on_instance
from lightning_lr.shards import Flat, FlatSegment, Partition, Whole, describe_flat


class ShardedUpdate:
    """Makes the engine's updates whole.

    Args:
        optimizer: the client optimizer before the engine has it, its groups still holding the module's parameters.
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self._groups: list[list[Tensor]] = [list(group["params"]) for group in optimizer.param_groups]
        self._before: list[Callable[[], None]] = []
        self._padding: list[tuple[Tensor, slice]] = []
        self._vectors: list[Tensor] = []
        self._held: list[Tensor | None] = []
        self._sharded: Any = None
        self._undo: Callable[[], None] | None = None
        self.in_parts: str | None = "no engine has been attached"
        """Why the optimizer steps in parts, so that nothing sees a whole update; ``None`` where it does not."""

    # ------------------------------------------------------------------ what a strategy and its callbacks ask
    def attach(self, engine: Any) -> None:
        """Take over the steps of an engine that was made with the optimizer."""
        sharded = engine.optimizer
        self.in_parts = _in_parts(sharded)
        if self.in_parts is not None:
            return
        third = hasattr(sharded, "fp32_partitioned_groups_flat")
        self._sharded = sharded
        self._vectors = sharded.fp32_partitioned_groups_flat if third else sharded.single_partition_of_fp32_groups
        self._describe(_places_in_parts(sharded) if third else _places(sharded), _process_group(sharded))
        step = self._third if third else self._first_and_second
        self._undo = override_on_instance(sharded, "_optimizer_step", step)

    def detach(self) -> None:
        """Give the engine its steps back."""
        if self._undo is not None:
            self._undo()
            self._undo = None
        self._before, self._padding, self._vectors, self._groups, self._sharded = [], [], [], [], None

    def before_update(self, act: Callable[[], None]) -> Callable[[], None]:
        """Call ``act`` before each step, where the gradients are in the optimizer's groups as it will use them.

        Not called for an update that the engine skips. Returns a function that undoes this.
        """
        self._before.append(act)
        return lambda: self._before.remove(act) if act in self._before else None

    @contextmanager
    def unnoticed(self) -> Iterator[None]:
        """Inside, nothing that was given to :meth:`before_update` is called."""
        told, self._before = self._before, []
        try:
            yield
        finally:
            self._before = told

    # ------------------------------------------------------------------ where the tensors are
    def _describe(self, places: Iterator[tuple[Tensor, int, int, int]], process_group: Any) -> None:
        tensors: list[Whole] = []
        index_of: dict[int, int] = {}
        for group, parameters in enumerate(self._groups):
            for place, parameter in enumerate(parameters):
                if parameter.requires_grad:
                    index_of[id(parameter)] = len(tensors)
                    shape = getattr(parameter, "ds_shape", parameter.shape)
                    tensors.append(Whole(group, place, tuple(shape)))
        device = self._vectors[0].device
        if dist.get_backend(process_group) == "nccl" and device.type == "cpu":  # offloaded
            device = torch.device("cuda", torch.cuda.current_device())
        partition = Partition(tuple(tensors), len(self._vectors), process_group, device)
        segments: list[list[FlatSegment]] = [[] for _ in self._vectors]
        for parameter, part, start, elements in places:
            if elements > 0:
                segments[part].append(FlatSegment(index_of[id(parameter)], start, start + elements))
        for vector, own in zip(self._vectors, segments, strict=True):
            own.sort(key=lambda segment: segment.start)
            describe_flat(vector, Flat(tuple(own), partition))
            end = 0
            for segment in [*own, FlatSegment(-1, vector.numel(), vector.numel())]:
                if segment.start > end:
                    self._padding.append((vector, slice(end, segment.start)))
                end = segment.stop

    # ------------------------------------------------------------------ one step for all
    def _all_are_here(self, part: int) -> bool:
        """Note a part whose gradient is ready; whether it was the last."""
        self._held.append(self._vectors[part].grad)
        return part == len(self._vectors) - 1

    def _step(self) -> None:
        optimizer: Optimizer = self._sharded.optimizer
        held, self._held = self._held, []
        for vector, gradient in zip(self._vectors, held, strict=True):
            vector.grad = gradient
        with torch.no_grad():
            # stage 3 leaves it uninitialised; at 0, no sum over a vector and no step sees it
            for vector, padding in self._padding:
                vector[padding].zero_()
                if vector.grad is not None:
                    vector.grad[padding].zero_()
        for act in list(self._before):
            act()
        optimizer.step()

    def _first_and_second(self, group: int) -> None:
        if not self._all_are_here(group):
            return
        sharded = self._sharded
        gradients = [*self._held]
        self._step()
        for index, vector in enumerate(self._vectors[:-1]):
            rank = dist.get_rank(group=sharded.real_dp_process_group[index])
            sharded.parallel_partitioned_bit16_groups[index][rank].data.copy_(vector.data)
        for vector, gradient in zip(self._vectors, gradients, strict=True):
            vector.grad = gradient if sharded.cpu_offload else None
        sharded._lazy_init_hp_params_optimizer_state()

    def _third(self, part: int) -> None:
        if not self._all_are_here(part):
            return
        sharded = self._sharded
        gradients, groups = [*self._held], sharded.optimizer.param_groups
        for group in groups:
            group["params"] = []
        for index, vector in enumerate(self._vectors):
            groups[sharded.sub_group_to_group_id[index]]["params"].append(vector)
        try:
            self._step()
        finally:
            for group in groups:
                group["params"] = []
        for index in range(len(self._vectors) - 1):
            sharded._reassign_or_swap_out_partitioned_parameters(index)
        for vector, gradient in zip(self._vectors, gradients, strict=True):
            vector.grad = gradient if sharded.offload_optimizer else None


# ---------------------------------------------------------------------- what DeepSpeed knows
def _in_parts(sharded: Any) -> str | None:
    """Why the parts of an update cannot be held back; ``None`` if they can."""
    stages = ("DeepSpeedZeroOptimizer", "DeepSpeedZeroOptimizer_Stage3")
    if type(sharded).__name__ not in stages:
        return f"the engine's {type(sharded).__name__} is none of ZeRO's stages 1 to 3"
    if getattr(sharded, "swap_optimizer", False) or getattr(sharded, "params_in_nvme_and_cpu", False):
        return "stage 3 with NVMe has one part of the optimizer's state in memory at a time; offload to 'cpu'"
    if getattr(sharded, "offload_optimizer", False) and getattr(sharded, "partial_offload", 1.0) != 1.0:
        return "stage 3 with an offload ratio below 1 steps a part of the parameters with an optimizer of its own"
    if getattr(sharded, "zenflow", False):
        return "ZenFlow steps the host's part of an update later"
    if getattr(sharded, "torch_autocast_gradscaler", None) is not None:
        return "torch_autocast in fp16 unscales each part by itself; use precision='16-mixed' or 'bf16-mixed'"
    if getattr(sharded, "use_muon", False) or type(sharded.optimizer).__name__ == "MuonWithAuxAdam":
        return "Muon makes its updates before the optimizer's step"
    ranks = dist.get_process_group_ranks(_process_group(sharded))
    if any(dist.get_process_group_ranks(group) != ranks for group in _process_groups(sharded)):
        return "experts are shared out among other processes than the rest of the parameters"
    return None


def _process_group(sharded: Any) -> Any:
    return sharded.dp_process_group


def _process_groups(sharded: Any) -> list[Any]:
    if hasattr(sharded, "fp32_partitioned_groups_flat"):
        groups = [parameter.ds_process_group for part in sharded.fp16_groups for parameter in part]
    else:
        groups = list(sharded.real_dp_process_group)
    return list({id(group): group for group in groups}.values())


def _places(sharded: Any) -> Iterator[tuple[Tensor, int, int, int]]:
    """Stages 1 and 2: each tensor, its group's vector, and where this rank's fragment of it lies in there."""
    for index, parameters in enumerate(sharded.bit16_groups):
        for parameter in parameters:
            if parameter._hp_mapping is not None:
                address = parameter._hp_mapping.get_hp_fragment_address()
                yield parameter, index, int(address.start), int(address.numel)


def _places_in_parts(sharded: Any) -> Iterator[tuple[Tensor, int, int, int]]:
    """Stage 3, where every tensor is cut into as many equal pieces as there are ranks, the last of them padded."""
    for parameters in sharded.fp16_groups:
        for parameter in parameters:
            part, start, length = sharded.grad_position[sharded.get_param_id(parameter)]
            before = dist.get_rank(group=parameter.ds_process_group) * int(length)
            yield parameter, int(part), int(start), min(int(length), int(parameter.ds_numel) - before)
