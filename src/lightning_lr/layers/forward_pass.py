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
import re
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
DRAWS = (0.0, 1.0 - 2.0**-24)
"""What random numbers in [0, 1) are while code runs on symbols."""
NUMBER = re.compile(r"(.*\.)?[a-zA-Z_]+\d+")
"""Children that are counted through: ``conv_0``."""
OF_A_TRAINER = (
    "log", "log_dict", "manual_backward", "optimizers", "lr_schedulers", "toggle_optimizer", "untoggle_optimizer",
)  # fmt: skip
"""Methods of a LightningModule that need a Trainer."""
LARGE = 4000
"""Modules with more descendants than this are not copied as deeply."""


@dataclass
class Visits:
    """What one forward pass of a module shows about its children.

    Args:
        position: child, element of a list (``layers.0``) or parameter of the module itself, to the place of its first
            use.
        before: each to the children and parameters that are in the input of its first call, or in what the parameter is
            first used with.
        inside: modules further down that are called directly (``body.layers.0``), to the place of their first call.
        read: child to what is in the first argument of its first call, where it has one.
        entered: child to what is in the input of any call of it or of a part of it.
    """

    position: dict[str, int] = field(default_factory=dict)
    before: dict[str, set[str]] = field(default_factory=dict)
    inside: dict[str, int] = field(default_factory=dict)
    read: dict[str, set[str]] = field(default_factory=dict)
    entered: dict[str, set[str]] = field(default_factory=dict)

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

    def enters(self, name: str, children: Sequence[str]) -> bool:
        """Whether a parameter of the module is in the input of any call of some children, or of their parts."""
        units = {unit for child in children for unit in self._units(child)}
        return any(name in self.entered.get(unit, ()) or name in self.before[unit] for unit in units)

    def in_turn(self, one: str, other: str) -> bool:
        """Whether two lists are visited together, element by element."""
        a, b = ({unit.rpartition(".")[2]: self.position[unit] for unit in self._units(name)} for name in (one, other))
        shared = [i for i in a if i in b]
        return len(shared) > 1 and all(max(a[i], b[i]) < min(a[j], b[j]) for i, j in pairwise(shared))

    def feeds_itself(self, name: str) -> bool:
        """Whether the output of an element of a list is in the input of another one."""
        units = list(self._units(name))
        return any(not self.before[unit].isdisjoint(set(units) - {unit}) for unit in units)

    def feeds_nothing(self, name: str) -> bool:
        """Whether no output of a child, or of any element of it, is in the input of anything else."""
        units = set(self._units(name))
        return bool(units) and all(
            units.isdisjoint(before) for unit, before in self.before.items() if unit not in units
        )

    def within_another(self, name: str) -> bool:
        """Whether a child is called once, between the blocks of a sibling that are called apart, and feeds them."""
        if name not in self.position:
            return False
        for other in {path.partition(".")[0] for path in self.inside} - {name}:
            places = [p for path, p in self.inside.items() if re.fullmatch(rf"{re.escape(other)}\..*\d+", path)]
            if places and min(places) < self.position[name] < max(places) and name in self.entered.get(other, ()):
                return True
        return False

    def steps_of(self, names: Sequence[str] | None) -> dict[str, int]:
        """Places of the calls of some children, of elements of lists among them, and of numbered modules in them."""
        units = {**self.inside, **self.position}
        return {
            unit: place for unit, place in units.items()
            if (names is None or unit.partition(".")[0] in names)
            and (names is None or unit.rpartition(".")[2].isdigit() or NUMBER.fullmatch(unit))
        }  # fmt: skip

    def elements(self, name: str) -> list[str]:
        """The elements of a list that were called, by the place of their first call."""
        return sorted((u for u in self._units(name) if u != name), key=lambda unit: self.position[unit])

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
        """The order in which the text of ``forward`` uses a module's children and parameters, where it names them."""
        order = source_order(module)
        return {name: order[name] for name in (*module._modules, *module._parameters) if name in order}


def symbolic_pass(module: nn.Module) -> Visits | None:
    """Run a module's ``forward`` on symbols, or a LightningModule's ``training_step`` where it has no forward.

    Code that leaves blocks out at random (LayerDrop) is run with draws near 1 and near 0, and in evaluation mode; what
    calls most is the answer.
    """
    forward = type(module).forward
    if not _is_defined(forward):
        forward = getattr(type(module), "training_step", forward)
    if not _is_defined(forward) or type(module).__module__.startswith("torch.jit"):
        return None
    wanted = [name for name, child in module._modules.items() if child is not None and list(child.parameters())]
    best: Visits | None = None
    for draw, training in ((DRAWS[1], None), (DRAWS[1], False), (DRAWS[0], None)):
        visits = _run(module, forward, draw, training)
        if visits is not None and (best is None or len(visits.position) > len(best.position)):
            best = visits
        if visits is None or (visits.has(*wanted) and _whole_lists(module, visits)):
            break
    return best


def _run(module: nn.Module, forward: Callable[..., Any], draw: float, training: bool | None) -> Visits | None:
    tracer = _Tracer()
    try:
        with undisturbed(), _symbolic_factories(tracer, draw):
            stand_in = copied(module)
            if training is not None:
                stand_in.__dict__["training"] = training
            _with_stubs(stand_in, module, tracer)
            _without_a_trainer(stand_in, tracer)
            arguments, keywords = _arguments(forward, tracer)
            forward(stand_in, *arguments, **keywords)
    except Exception:  # whatever the user's code raises for a symbol
        return None
    visits = tracer.finished()
    return visits if visits.position else None


def _whole_lists(module: nn.Module, visits: Visits) -> bool:
    """Whether each list of which an element was called had all of its elements called."""
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleList):
            called = visits.elements(name)
            if called and len(called) < sum(any(True for _ in c.parameters()) for c in child):
                return False
    return True


def _without_a_trainer(stand_in: nn.Module, tracer: _Tracer) -> None:
    """What a LightningModule's step asks of its Trainer gives a symbol in a copy, and does nothing else."""
    if hasattr(type(stand_in), "training_step"):
        for name in OF_A_TRAINER:
            stand_in.__dict__[name] = lambda *args, **kwargs: tracer.symbol()
        stand_in.__dict__["_trainer"] = _AnyTrainer(tracer)


class _AnyTrainer:
    """A Trainer of which everything is unknown."""

    def __init__(self, tracer: _Tracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> fx.Proxy:
        return self._tracer.symbol()


# ---------------------------------------------------------------------- symbols
class _Tracer(fx.proxy.GraphAppendingTracer):
    """Makes symbols that know which children they come from."""

    def __init__(self) -> None:
        super().__init__(fx.Graph())
        self.visits = Visits()
        self._names: list[str] = [""]  # an input of the module
        self._bits: dict[str, int] = {"": 0}
        self._sources: dict[fx.Node, int] = {}
        self._parameter: dict[fx.Node, str] = {}
        self._used: dict[str, int] = {}
        self._own: set[str] = set()
        self._places = 0
        self._itself: set[str] = set()

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        sources = 0
        for before in node.all_input_nodes:
            sources |= self._sources.get(before, 0)
            if before in self._parameter:
                self._used.setdefault(self._parameter[before], self._place())
        for before in node.all_input_nodes:
            alone = self._sources.get(before, 0)
            name = self._names[alone.bit_length() - 1] if alone and not alone & (alone - 1) else ""
            if name in self._own and name not in self.visits.position and sources != alone:
                self._note(name, sources & ~alone, True)
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

    def called(self, unit: str, args: Any, kwargs: Any, itself: bool = True, path: str = "") -> fx.Proxy:
        """The output of a child, or of a part of it where it is not the child itself that is called."""
        made = self.create_proxy("call_function", _child, (args, kwargs), {})
        if path:
            self.visits.inside.setdefault(path, self._place())
        first = next(iter([*args, *kwargs.values()]), None)
        if isinstance(first, fx.Proxy) and unit not in self.visits.position:
            self.visits.read[unit] = self._named(self._sources[first.node])
        self._note(unit, self._sources[made.node], itself)
        self.visits.entered.setdefault(unit, set()).update(self._named(self._sources[made.node]))
        self._sources[made.node] |= self._bit(unit)
        return made

    def parameter(self, unit: str, own: bool = False) -> fx.Proxy:
        """A parameter or buffer; of a child where ``unit`` names one, or one of the module itself."""
        made = self.create_proxy("call_function", _child, (), {})
        if own:
            self._own.add(unit)
            self._sources[made.node] = self._bit(unit)
            return made
        if unit:
            self._sources[made.node] = self._bit(unit)
            self._parameter[made.node] = unit
        return made

    def symbol(self) -> fx.Proxy:
        """An input, or whatever else is unknown."""
        made = self.create_proxy("call_function", _child, (), {})
        self._sources[made.node] = 1
        return made

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
            self.visits.position[unit] = self._place()
            self.visits.before[unit] = self._named(sources)

    def _place(self) -> int:
        self._places += 1
        return self._places

    def _named(self, sources: int) -> set[str]:
        return {name for i, name in enumerate(self._names) if i and sources >> i & 1}


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


def _with_stubs(stand_in: nn.Module, module: nn.Module, tracer: _Tracer) -> None:
    """Replace a copy's parameters and buffers by symbols and its children by stubs.

    Args:
        stand_in: the copy.
        module: the original.
        tracer: makes the symbols.
    """
    for name, parameter in module._parameters.items():
        if parameter is not None:
            stand_in.__dict__[name] = tracer.parameter(name, own=True)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            stand_in.__dict__[name] = tracer.parameter("")
    stand_in.__dict__["_parameters"], stand_in.__dict__["_buffers"] = {}, {}
    stand_in.__dict__["_modules"] = modules = {}
    made: dict[int, nn.Module] = {}
    # what is registered by itself and in a list is called by its own name
    inside = sorted(module._modules.items(), key=lambda part: isinstance(part[1], nn.ModuleList | nn.ModuleDict))
    for name, child in inside:
        modules[name] = child if child is None else _stub(child, tracer, "", name, 0, made, name)
    stand_in.__dict__["_modules"] = {name: modules[name] for name in module._modules}
    for name, value in stand_in.__dict__.items():
        if not name.startswith("_"):
            stand_in.__dict__[name] = _with_stubs_in(value, made)


def _with_stubs_in(value: Any, made: dict[int, nn.Module], depth: int = 0) -> Any:
    """A plain list, tuple or dict with stubs in the places of modules that are registered too."""
    if isinstance(value, nn.Module):
        return made.get(id(value), value)
    if type(value) in (list, tuple) and depth < 3:
        return type(value)(_with_stubs_in(one, made, depth + 1) for one in value)
    if type(value) is dict and depth < 3:
        return {key: _with_stubs_in(one, made, depth + 1) for key, one in value.items()}
    return value


def _stub(
    module: nn.Module, tracer: _Tracer, unit: str, name: str, depth: int, made: dict[int, nn.Module], path: str
) -> nn.Module:
    if id(module) in made:
        return made[id(module)]
    whole, module = module, unwrapped(module)
    made[id(whole)] = stub = copied(module)
    container = isinstance(module, nn.ModuleList | nn.ModuleDict) and not _is_defined(type(module).forward)
    itself = depth == 0 or (depth == 1 and unit.startswith("["))
    if depth == 0:
        here = name
    elif itself:  # an element of a list is a unit of its own
        here = f"{unit[1:]}.{name}"
    else:
        here = unit.lstrip("[")
    if not container:
        inner = "" if itself else path
        stub.__dict__["forward"] = lambda *args, **kwargs: tracer.called(here, args, kwargs, itself, inner)
    below = f"[{here}" if container and depth == 0 else here
    if len(module._modules) < LARGE and depth < 12:
        listed = depth == 0 and isinstance(module, nn.ParameterList | nn.ParameterDict)
        for key, value in module._parameters.items():
            if value is not None:
                stub.__dict__[key] = tracer.parameter(f"{here}.{key}", own=True) if listed else tracer.parameter(here)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                stub.__dict__[key] = tracer.parameter(here)
        stub.__dict__["_parameters"], stub.__dict__["_buffers"] = {}, {}
        stub.__dict__["_modules"] = {
            key: child if child is None else _stub(child, tracer, below, key, depth + 1, made, f"{path}.{key}")
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
def _symbolic_factories(tracer: _Tracer, draw: float) -> Iterator[None]:
    """Inside, ``torch.arange`` and its like make a symbol where they get one, and every draw in [0, 1) is the same."""
    originals = {name: getattr(torch, name) for name in FACTORIES}
    drawn = random.random

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, fx.Proxy) for value in _flat([*args, *kwargs.values()])):
                return tracer.create_proxy("call_function", _child, (args, kwargs), {})
            made = original(*args, **kwargs)
            return made.fill_(draw) if original is originals["rand"] else made

        return make

    for name, original in originals.items():
        setattr(torch, name, patched(original))
    random.random = lambda: draw
    try:
        yield
    finally:
        random.random = drawn
        for name, original in originals.items():
            setattr(torch, name, original)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value
