"""Computing a block a second time as the first: random state, autocast, modes, and batch norms that count once."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd


class ReplayState:
    """What besides its arguments decides what a block computes: random state and autocast."""

    def __init__(self, tensors: list[Tensor], before: ReplayState | None) -> None:
        self.device_type, self.devices = "cpu", list[int]()
        for tensor in tensors:
            if tensor.device.type not in ("cpu", "meta"):
                self.device_type = tensor.device.type
                if tensor.get_device() not in self.devices:
                    self.devices.append(tensor.get_device())
        states: list[Tensor] = [torch.get_rng_state()]
        if self.devices:
            module = torch.get_device_module(self.device_type)
            states += [module.get_rng_state(device) for device in self.devices]
        if before is not None and len(before.states) == len(states):  # no block drew a number: one copy is enough
            states = [old if torch.equal(old, new) else new for old, new in zip(before.states, states, strict=True)]
        self.states: list[Tensor] = states
        self.host = _host_state()
        if before is not None and before.host[0] == self.host[0]:
            self.host = before.host[0], self.host[1]
        self.autocast = [
            (kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind), torch.is_autocast_cache_enabled())
            for kind in dict.fromkeys(("cpu", self.device_type))
        ]

    @contextmanager
    def restored(self) -> Iterator[None]:
        module = torch.get_device_module(self.device_type) if self.devices else None
        with ExitStack() as stack:
            stack.enter_context(
                torch.random.fork_rng(self.devices, device_type=self.device_type if self.devices else "cuda")
            )
            torch.set_rng_state(self.states[0])
            for device, state in zip(self.devices, self.states[1:], strict=True):
                assert module is not None
                module.set_rng_state(state, device)
            for kind, enabled, dtype, cached in self.autocast:
                stack.enter_context(torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=cached))
            now = _host_state()
            stack.callback(_set_host_state, now)
            _set_host_state(self.host)
            yield


class BlockModes:
    """What a block is while it runs: the mode of each of its modules, its dropout rates, and its parameters.

    The module may be switched to evaluation, or a dropout rate moved, between forward and backward (in
    ``on_before_backward``, or by the training step after its forward). The plain run does not notice; nor does a block
    that is computed again in the modes that it had. A parameter that was written in the meantime cannot be put back.

    Args:
        modules: of the block, before it runs.
    """

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        self._modules = modules
        self._training = [module.training for module in modules]
        self._rates = [(module, module.p) for module in modules if isinstance(module, _DropoutNd)]
        self._versions = [(p, p._version) for module in modules for p in module._parameters.values() if p is not None]

    def block_has_run(self) -> None:
        """Take no notice of parameters that the block itself writes (an embedding's max_norm), as it will again."""
        self._versions = [(p, version) for p, version in self._versions if p._version == version]

    @contextmanager
    def restored(self, name: str) -> Iterator[None]:
        if any(p._version != version for p, version in self._versions):
            raise RuntimeError(
                f"checkpointing: a parameter of {name} was changed in place after the forward whose backward this is, "
                "so its activations cannot be computed again; make the backward first, or leave the block out by "
                "naming the other blocks in CheckpointPolicy(modules=[...])"
            )
        training = [module.training for module in self._modules]
        rates = [(module, module.p) for module, _ in self._rates]
        try:
            self._set(self._training, self._rates)
            yield
        finally:
            self._set(training, rates)

    def _set(self, training: list[bool], rates: list[tuple[_DropoutNd, float]]) -> None:
        for module, mode in zip(self._modules, training, strict=True):
            if module.training != mode:
                module.training = mode
        for dropout, rate in rates:
            dropout.p = rate


def _host_state() -> tuple[Any, Any]:
    """The state of Python's and NumPy's global generators."""
    numpy = sys.modules.get("numpy")  # what has not been imported has drawn nothing
    return random.getstate(), None if numpy is None else numpy.random.get_state()


def _set_host_state(state: tuple[Any, Any]) -> None:
    python, numpy = state
    random.setstate(python)
    if numpy is not None:
        sys.modules["numpy"].random.set_state(numpy)


@contextmanager
def statistics_written_once(modules: list[_BatchNorm]) -> Iterator[None]:
    """Let batch norms write their running statistics to copies: the first computation has updated the real ones."""
    names = ("running_mean", "running_var", "num_batches_tracked")
    real: list[tuple[_BatchNorm, str, Tensor]] = []
    try:
        for module in modules:
            for name in names if module.training else ():
                buffer = module._buffers.get(name)
                if buffer is not None:
                    real.append((module, name, buffer))
                    module._buffers[name] = buffer.clone()
        yield
    finally:
        for module, name, buffer in real:
            module._buffers[name] = buffer
