"""What a forward pass on a module's ``example_input_array`` shows, for every module that it calls.

The pass runs in a copy of the module's tree with hooks, first on fake tensors, which have shapes and no values; where
the code needs values, on real ones without gradients. Which outputs reach which inputs is followed through every
function of torch. Nothing that the pass sets, counts or draws is left behind.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from lightning_lr.layers.names import joined, unwrapped
from lightning_lr.layers.stand_ins import copied, undisturbed
from lightning_lr.layers.visits import Visits


def example_pass(model: nn.Module) -> dict[str, Visits]:
    """What each called module shows, by path; nothing where there is no example or it cannot be run."""
    example = getattr(model, "example_input_array", None)
    if example is None:
        return {}
    for mode in (FakeTensorMode(allow_non_fake_inputs=True), contextlib.nullcontext()):
        watch = _Watch()
        try:
            with undisturbed(), mode:
                stand_in = _tree(model, {})
                watch.hook(stand_in)
                with watch:
                    _call(stand_in, example, next(model.parameters()).device)
        except Exception:  # whatever the user's code raises for a fake tensor
            continue
        return watch.visits()
    return {}


def _call(model: nn.Module, example: Any, device: torch.device) -> None:
    example = _moved(example, device)
    if isinstance(example, Mapping):
        model(**example)
    elif isinstance(example, tuple):
        model(*example)
    else:
        model(example)


def _moved(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return value.detach().clone().to(device)
    if isinstance(value, Mapping):
        return {key: _moved(one, device) for key, one in value.items()}
    if type(value) in (list, tuple):
        return type(value)(_moved(one, device) for one in value)
    return value


def _tree(module: nn.Module, known: dict[int, nn.Module]) -> nn.Module:
    """A copy of the module and all below it, in evaluation mode, with the same parameters and buffers of its own."""
    module = unwrapped(module)
    if id(module) not in known:
        known[id(module)] = made = copied(module)
        made.__dict__["training"] = False
        made.__dict__["_parameters"] = dict(module._parameters)
        made.__dict__["_buffers"] = {n: b if b is None else b.clone() for n, b in module._buffers.items()}
        made.__dict__["_modules"] = {n: m if m is None else _tree(m, known) for n, m in module._modules.items()}
    return known[id(module)]


class _Watch(TorchFunctionMode):
    """Follows which modules' outputs are in which tensor; a set of modules is the bits of a number."""

    def __init__(self) -> None:
        super().__init__()
        self._calls: dict[str, int] = {}
        """Path to what was in its first input."""
        self._all_calls: dict[str, list[int]] = {}
        self._first_argument: dict[str, int] = {}
        self._bits: dict[str, int] = {}
        self._sources: dict[int, int] = {}
        self._alive: list[Tensor] = []
        self._containers: set[str] = set()

    def hook(self, model: nn.Module) -> None:
        """Watch every module below ``model``, which has no hooks of its own."""
        for path, module in model.named_modules():
            self._bits[path] = 1 << len(self._bits)
            if isinstance(module, nn.ModuleList | nn.ModuleDict):
                self._containers.add(path)
            module.register_forward_pre_hook(partial(self._before, path), with_kwargs=True)
            module.register_forward_hook(partial(self._after, path), with_kwargs=True)

    def _before(self, path: str, module: nn.Module, args: Any, kwargs: Any) -> None:
        if not path:
            for tensor in _tensors([args, kwargs]):
                self._put(tensor, self._bits[""])
        sources = self._of([args, kwargs])
        if path not in self._first_argument:
            self._first_argument[path] = self._of(next(iter([*args, *kwargs.values()]), None))
        self._calls.setdefault(path, sources)
        self._all_calls.setdefault(path, []).append(sources)

    def _after(self, path: str, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        sources = self._of([args, kwargs]) | self._bits[path]
        for tensor in _tensors(output):
            self._put(tensor, sources | self._sources.get(id(tensor), 0))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        sources = self._of([args, kwargs])
        if sources:
            for tensor in _tensors(output):
                self._put(tensor, sources | self._sources.get(id(tensor), 0))
        return output

    def _of(self, values: Any) -> int:
        found = 0
        for tensor in _tensors(values):
            found |= self._sources.get(id(tensor), 0)
        return found

    def _put(self, tensor: Tensor, sources: int) -> None:
        if id(tensor) not in self._sources:
            self._alive.append(tensor)
        self._sources[id(tensor)] = sources

    def visits(self) -> dict[str, Visits]:
        """What was seen, by the path of the module that made the calls."""
        found: dict[str, Visits] = {}
        for caller in self._calls:
            unit_of = {path: unit for path in self._calls if (unit := self._unit(path, caller))}
            visits = Visits()
            for place, (path, unit) in enumerate(unit_of.items()):
                itself = path == joined(caller, unit)
                inputs = [
                    {u for p, u in unit_of.items() if u != unit and sources & self._bits[p]}
                    for sources in self._all_calls[path]
                ]
                visits.entered.setdefault(unit, set()).update(*inputs)
                if itself and not all(inputs):
                    visits.alone.add(unit)
                if unit not in visits.position or (itself and unit not in visits.itself):
                    visits.position[unit] = place
                    visits.before[unit] = inputs[0]
                    first = self._first_argument[path]
                    visits.read[unit] = {u for p, u in unit_of.items() if u != unit and first & self._bits[p]}
                    if first & self._calls[caller]:
                        visits.own_input.add(unit)
                if itself:
                    visits.itself.add(unit)
            if visits.position:
                found[caller] = visits.with_parts()
        return found

    def _unit(self, path: str, caller: str) -> str | None:
        """The child of ``caller`` (or the element of a list among them) that ``path`` lies in."""
        if path == caller or (caller and not path.startswith(f"{caller}.")):
            return None
        parts = path[len(caller) + 1 if caller else 0 :].split(".")
        listed = joined(caller, parts[0]) in self._containers and len(parts) > 1
        return ".".join(parts[: 2 if listed else 1])


def _tensors(value: Any, depth: int = 0) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif depth < 6:
        inner: Iterable[Any] = ()
        if isinstance(value, Mapping):
            inner = value.values()
        elif isinstance(value, list | tuple):
            inner = value
        elif hasattr(value, "__dict__") and not isinstance(value, nn.Module | type):
            inner = vars(value).values()
        for one in inner:
            yield from _tensors(one, depth + 1)
