"""What a forward pass shows: in which order a module calls its children, and which output reaches which input.

Every module's own ``forward`` is run on symbols instead of tensors (``torch.fx`` proxies), in a copy of the module
whose children are replaced by stubs that note who called them with what. No weight is read, nothing is computed, no
batch is needed, and the module itself is not touched. Code that decides by the values or shapes of its input cannot be
run so; then there is no answer for that module, and the text of its ``forward``, names, and the order of definition
decide.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import random
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, fx, nn

from lightning_lr.layers.names import unwrapped
from lightning_lr.layers.source_order import source_order, value_of_a_check

FACTORIES = ("arange", "zeros", "ones", "full", "empty", "rand", "randn", "tensor", "as_tensor", "linspace", "eye")
"""Functions of torch that do not pass a symbol on by themselves."""
LARGE = 4000
"""Modules with more descendants than this are not copied as deeply."""


@dataclass
class Visits:
    """What one forward pass of a module shows about its children.

    Args:
        position: child, or element of a list (``layers.0``), to the place of its first call.
        before: child to the children whose outputs are in the input of its first call.
    """

    position: dict[str, int] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)

    def has(self, *names: str) -> bool:
        """Whether each child was called, or an element of it."""
        return all(any(True for _ in self._units(name)) for name in names)

    def at(self, names: Sequence[str]) -> float:
        """The place of the first call of any of some children that were called."""
        return min(self.position[unit] for name in names for unit in self._units(name))

    def reaches(self, first: Sequence[str], second: Sequence[str]) -> bool:
        """Whether the output of one child is in the input of another one."""
        sources = {unit for name in first for unit in self._units(name)}
        return any(not sources.isdisjoint(self.before[unit]) for name in second for unit in self._units(name))

    def in_turn(self, one: str, other: str) -> bool:
        """Whether two lists are visited together, element by element."""
        a, b = ({unit.rpartition(".")[2]: self.position[unit] for unit in self._units(name)} for name in (one, other))
        shared = [i for i in a if i in b]
        return len(shared) > 1 and all(max(a[i], b[i]) < min(a[j], b[j]) for i, j in pairwise(shared))

    def _units(self, name: str) -> Iterator[str]:
        return (unit for unit in self.position if unit == name or unit.startswith(f"{name}."))


class Passes:
    """Forward passes through the modules of a model, each made when it is needed.

    Args:
        known: what an earlier pass showed, by path.
    """

    def __init__(self, known: Mapping[str, Visits] | None = None) -> None:
        self._by_path = known or {}
        self._known: dict[int, Visits | None] = {}
        self._originals: dict[int, nn.Module] = {}

    def stands_for(self, stand_in: nn.Module, original: nn.Module) -> None:
        """A question about a stand-in is answered for the original."""
        self._originals[id(stand_in)] = original

    def of(self, module: nn.Module, path: str) -> Visits | None:
        """What a forward pass of ``module`` shows, or ``None`` where it cannot be run on symbols."""
        if path in self._by_path:
            return self._by_path[path]
        module = self._originals.get(id(module), module)
        if id(module) not in self._known:
            self._known[id(module)] = symbolic_pass(module)
        return self._known[id(module)]

    def order(self, module: nn.Module) -> dict[str, int]:
        """The order in which the text of ``forward`` uses the children of a module, for those that it names."""
        order = source_order(module)
        return {name: order[name] for name in module._modules if name in order}


def symbolic_pass(module: nn.Module) -> Visits | None:
    """Run a module's ``forward`` on symbols."""
    forward = type(module).forward
    if not _is_defined(forward) or type(module).__module__.startswith("torch.jit"):
        return None
    tracer = _Tracer()
    try:
        with undisturbed(), _symbolic_factories(tracer):
            stand_in = copied(module)
            _with_stubs(stand_in, module, tracer)
            arguments, keywords = _arguments(forward, tracer)
            forward(stand_in, *arguments, **keywords)
    except Exception:  # whatever the user's code raises for a symbol
        return None
    visits = tracer.finished()
    return visits if visits.position else None


# ---------------------------------------------------------------------- symbols
class _Tracer(fx.proxy.GraphAppendingTracer):
    """Makes symbols that know which children they come from."""

    def __init__(self) -> None:
        super().__init__(fx.Graph())
        self.visits = Visits()
        self._names: list[str] = []
        self._bits: dict[str, int] = {}
        self._sources: dict[fx.Node, int] = {}
        self._parameter: dict[fx.Node, str] = {}
        self._used: dict[str, int] = {}
        self._itself: set[str] = set()

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        sources = 0
        for before in node.all_input_nodes:
            sources |= self._sources.get(before, 0)
            if before in self._parameter:
                self._used.setdefault(self._parameter[before], len(self._sources))
        self._sources[node] = sources
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, fx.Proxy):
            return a.node
        if isinstance(a, list | tuple):
            return tuple(self.create_arg(one) for one in a)
        if isinstance(a, dict):
            return {str(key): self.create_arg(one) for key, one in a.items()}
        if isinstance(a, slice):
            return tuple(self.create_arg(one) for one in (a.start, a.stop, a.step))
        if hasattr(a, "__dict__") and not isinstance(a, Tensor | nn.Module | type) and not callable(a):
            return [self.create_arg(one) for one in vars(a).values() if isinstance(one, fx.Proxy | list | tuple | dict)]
        return None  # constants have no source

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A check of the input passes; every other decision cannot be made."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename in (__file__, fx.proxy.__file__):
            frame = frame.f_back
        passes = None if frame is None else value_of_a_check(frame.f_code, frame.f_lineno)
        if passes is None:
            raise fx.proxy.TraceError("the code decides by the value of a tensor")
        return passes

    def called(self, unit: str, args: Any, kwargs: Any, itself: bool = True) -> fx.Proxy:
        """The output of a child, or of a part of it where it is not the child itself that is called."""
        made = self.create_proxy("call_function", _child, (args, kwargs), {})
        self._note(unit, self._sources[made.node], itself)
        self._sources[made.node] |= self._bit(unit)
        return made

    def parameter(self, unit: str) -> fx.Proxy:
        """A parameter or buffer; of a child where ``unit`` names one."""
        made = self.create_proxy("call_function", _child, (), {})
        if unit:
            self._sources[made.node] = self._bit(unit)
            self._parameter[made.node] = unit
        return made

    def symbol(self) -> fx.Proxy:
        """An input, or whatever else is unknown."""
        return self.create_proxy("call_function", _child, (), {})

    def finished(self) -> Visits:
        """What was seen; a child of which only a parameter was used (a table of queries) counts as an input."""
        for unit, place in self._used.items():
            if unit not in self.visits.position:
                self.visits.position[unit] = place
                self.visits.before[unit] = set()
        return self.visits

    def _bit(self, unit: str) -> int:
        if unit not in self._bits:
            self._bits[unit] = len(self._names)
            self._names.append(unit)
        return int(1 << self._bits[unit])

    def _note(self, unit: str, sources: int, itself: bool) -> None:
        """A call of the child itself says more than one of a part of it, as of a language model's embedding."""
        if unit not in self.visits.position or (itself and unit not in self._itself):
            if itself:
                self._itself.add(unit)
            self.visits.position[unit] = len(self._sources)
            self.visits.before[unit] = {name for i, name in enumerate(self._names) if sources >> i & 1}


def _child() -> None:
    """Stands for a call in the graph, which is never run."""


# ---------------------------------------------------------------------- copies
def copied(module: nn.Module) -> nn.Module:
    """A module with attributes of its own, so that nothing which is set or appended in it reaches the original."""
    stand_in: nn.Module = type(module).__new__(type(module))
    for name, value in vars(module).items():
        stand_in.__dict__[name] = value.copy() if type(value) in (list, dict, set, deque) else value
    for name in ("_trainer", "_fabric"):
        if name in stand_in.__dict__:
            stand_in.__dict__[name] = None
    for name, value in stand_in.__dict__.items():
        if "hooks" in name and isinstance(value, dict):
            stand_in.__dict__[name] = type(value)()
    return stand_in


def _with_stubs(stand_in: nn.Module, module: nn.Module, tracer: _Tracer, unit: str = "", depth: int = 0) -> None:
    """Replace a copy's parameters and buffers by symbols and its children by stubs.

    Args:
        stand_in: the copy.
        module: the original.
        tracer: makes the symbols.
        unit: the child under which calls are noted; empty at the top, whose children are units themselves.
        depth: how far down.
    """
    for values in (module._parameters, module._buffers):
        for name, value in values.items():
            if value is not None:
                stand_in.__dict__[name] = tracer.parameter(unit)
    stand_in.__dict__["_parameters"], stand_in.__dict__["_buffers"] = {}, {}
    stand_in.__dict__["_modules"] = modules = {}
    for name, child in module._modules.items():
        modules[name] = child if child is None else _stub(unwrapped(child), tracer, unit, name, depth)


def _stub(module: nn.Module, tracer: _Tracer, unit: str, name: str, depth: int) -> nn.Module:
    stub = copied(module)
    container = isinstance(module, nn.ModuleList | nn.ModuleDict) and not _is_defined(type(module).forward)
    itself = depth == 0 or (depth == 1 and unit.startswith("["))
    if depth == 0:
        here = name
    elif itself:  # an element of a list is a unit of its own
        here = f"{unit[1:]}.{name}"
    else:
        here = unit.lstrip("[")
    if not container:
        stub.__dict__["forward"] = lambda *args, **kwargs: tracer.called(here, args, kwargs, itself)
    inner = f"[{here}" if container and depth == 0 else here
    if len(module._modules) < LARGE and depth < 12:
        for values in (module._parameters, module._buffers):
            for key, value in values.items():
                if value is not None:
                    stub.__dict__[key] = tracer.parameter(here)
        stub.__dict__["_parameters"], stub.__dict__["_buffers"] = {}, {}
        stub.__dict__["_modules"] = {
            key: child if child is None else _stub(unwrapped(child), tracer, inner, key, depth + 1)
            for key, child in module._modules.items()
        }
    return stub


def _is_defined(forward: Callable[..., Any]) -> bool:
    if forward.__module__.startswith("lightning"):  # LightningModule's own: there is none
        return False
    return forward.__name__ != "_forward_unimplemented"


def _arguments(forward: Callable[..., Any], tracer: _Tracer) -> tuple[list[Any], dict[str, Any]]:
    """A symbol for each required argument, and for the first where none is required."""
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for parameter in parameters:
        required = parameter.default is parameter.empty
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and required
        if parameter.kind is parameter.KEYWORD_ONLY and required:
            keywords[parameter.name] = tracer.symbol()
        elif positional or (parameter.kind is parameter.VAR_POSITIONAL and not arguments):
            arguments.append(tracer.symbol())
    if not arguments and not keywords and parameters and parameters[0].kind is not inspect.Parameter.VAR_KEYWORD:
        arguments.append(tracer.symbol())
    return arguments, keywords


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """Inside, the user's code neither draws random numbers that later code would have drawn, nor prints, nor warns."""
    torch_state, python_state = torch.random.get_rng_state(), random.getstate()
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), torch.no_grad():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.random.set_rng_state(torch_state)
        random.setstate(python_state)


@contextlib.contextmanager
def _symbolic_factories(tracer: _Tracer) -> Iterator[None]:
    """Inside, ``torch.arange`` and its like make a symbol where they get one."""
    originals = {name: getattr(torch, name) for name in FACTORIES}

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, fx.Proxy) for value in _flat([*args, *kwargs.values()])):
                return tracer.create_proxy("call_function", _child, (args, kwargs), {})
            return original(*args, **kwargs)

        return make

    for name, original in originals.items():
        setattr(torch, name, patched(original))
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(torch, name, original)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
