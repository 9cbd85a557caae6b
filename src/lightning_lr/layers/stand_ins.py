"""Copies of a module that symbols go through: children replaced by stubs, and nothing of the original touched."""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import random
import warnings
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import torch
from torch import nn

from lightning_lr.layers.names import unwrapped
from lightning_lr.layers.source_order import is_defined
from lightning_lr.layers.symbols import UNIT, Held, Symbol, SymbolTracer

FACTORIES = (
    "arange", "zeros", "ones", "full", "empty", "rand", "randn", "randint", "randperm", "normal", "tensor", "as_tensor",
    "linspace", "logspace", "eye", "tril_indices", "triu_indices", "hann_window", "finfo", "iinfo",
)  # fmt: skip
"""Functions of torch that do not pass a symbol on by themselves."""
MATHS = ("sqrt", "ceil", "floor", "log", "log2", "exp", "pow", "prod")
"""Functions of ``math`` that would ask a symbol for its value."""
CHECKS = ("_check", "_check_with", "_check_value", "_check_index", "_check_type", "_check_tensor_all")
"""torch's own checks of a condition; they pass."""
OF_A_TRAINER = (
    "log", "log_dict", "manual_backward", "optimizers", "lr_schedulers", "toggle_optimizer", "untoggle_optimizer",
)  # fmt: skip
"""Methods of a LightningModule that need a Trainer."""
OF_A_PARAMETER = ("device", "dtype", "requires_grad")
"""What code looks up in a parameter without reading its values."""
LARGE = 4000
"""Modules with more descendants than this are not copied as deeply."""


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


def with_stubs(stand_in: nn.Module, module: nn.Module, tracer: SymbolTracer) -> None:
    """Replace a copy's parameters and buffers by symbols and its children by stubs.

    Args:
        stand_in: the copy.
        module: the original.
        tracer: makes the symbols.
    """
    with_parameters_of(stand_in, module, tracer)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            stand_in.__dict__[name] = tracer.parameter(name, own=True)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            stand_in.__dict__[name] = tracer.parameter("")
    stand_in.__dict__["_parameters"], stand_in.__dict__["_buffers"] = {}, {}
    stand_in.__dict__["_modules"] = modules = {}
    made: dict[int, nn.Module] = {}
    for name, child in lists_last(module):
        modules[name] = child if child is None else stub_of(child, tracer, "", name, 0, made, name)
    stand_in.__dict__["_modules"] = {name: modules[name] for name in module._modules}
    for name, value in stand_in.__dict__.items():
        if not name.startswith("_"):
            stand_in.__dict__[name] = with_stubs_in(value, made)


def lists_last(module: nn.Module) -> list[tuple[str, nn.Module | None]]:
    """Children, lists last: what is registered by itself and in a list is called by its own name."""
    return sorted(module._modules.items(), key=lambda part: isinstance(part[1], nn.ModuleList | nn.ModuleDict))


def with_parameters_of(stand_in: nn.Module, module: nn.Module, tracer: SymbolTracer) -> None:
    """``next(self.parameters()).device`` in somebody's code: a symbol for each, which comes from nothing."""

    def parameters(recurse: bool = True) -> Iterator[Symbol]:
        for parameter in module.parameters(recurse):
            symbol, floating = tracer.made(), parameter.is_floating_point()
            vars(symbol).update({name: getattr(parameter, name) for name in OF_A_PARAMETER})
            vars(symbol)["is_floating_point"] = lambda floating=floating: floating
            yield symbol

    if type(module).parameters is nn.Module.parameters:
        stand_in.__dict__["parameters"] = parameters


def with_stubs_in(value: Any, made: dict[int, nn.Module], depth: int = 0) -> Any:
    """A plain list, tuple or dict with stubs in the places of modules that are registered too."""
    if isinstance(value, nn.Module):
        return made.get(id(value), value)
    if type(value) in (list, tuple) and depth < 3:
        return type(value)(with_stubs_in(one, made, depth + 1) for one in value)
    if type(value) in (dict, OrderedDict, defaultdict) and depth < 3:
        replaced = value.copy()
        replaced.update((key, with_stubs_in(one, made, depth + 1)) for key, one in value.items())
        return replaced
    return value


def stub_of(
    module: nn.Module,
    tracer: SymbolTracer,
    unit: str,
    name: str,
    depth: int,
    made: dict[int, nn.Module],
    path: str,
    held: Held | None = None,
    later: bool = False,
) -> nn.Module:
    """A copy of a child that notes its calls instead of running.

    Args:
        module: the child, or a part of it.
        tracer: notes the calls.
        unit: what it is a part of.
        name: of the child, or of the part in what holds it.
        depth: how far below the child it is.
        made: stubs that there are, by the identity of what they stand for.
        path: of the part, from the child down.
        held: what it is to a child without a forward.
        later: whether its own parts are made when one of them is looked up.
    """
    if id(module) in made:
        return made[id(module)]
    whole, module = module, unwrapped(module)
    scripted = isinstance(module, torch.jit.ScriptModule)  # its parts are called by TorchScript
    made[id(whole)] = stub = nn.Module() if scripted else copied(module)
    container = isinstance(module, nn.ModuleList | nn.ModuleDict) and not is_defined(type(module).forward)
    itself = depth == 0 or (depth == 1 and unit.startswith("["))
    if depth == 0:
        here = name
    elif itself:  # an element of a list is a unit of its own
        here = f"{unit[1:]}.{name}"
    else:
        here = unit.lstrip("[")
    if itself and not container:
        stub.__dict__[UNIT] = here
    if not container:
        inner = "" if itself else path
        stub.__dict__["forward"] = lambda *args, **kwargs: tracer.called(here, args, kwargs, itself, inner, held)
    below = f"[{here}" if container and depth == 0 else here
    with_parameters_of(stub, module, tracer)
    if scripted:
        return stub
    if len(module._modules) < LARGE and depth < 12:
        listed = depth == 0 and isinstance(module, nn.ParameterList | nn.ParameterDict)
        for key, value in module._parameters.items():
            if value is not None:
                stub.__dict__[key] = tracer.parameter(f"{here}.{key}", own=True) if listed else tracer.parameter(here)
        for key, buffer in module._buffers.items():
            if buffer is not None:
                stub.__dict__[key] = tracer.parameter(here)
        stub.__dict__["_parameters"], stub.__dict__["_buffers"] = {}, {}

        def part(key: str) -> nn.Module | None:
            inside, holder = module._modules[key], _held(held, module, name, depth, key)
            if inside is None:
                return None
            return stub_of(inside, tracer, below, key, depth + 1, made, f"{path}.{key}", holder)

        parts = MadeLater(module._modules, part) if later else {key: part(key) for key in module._modules}
        stub.__dict__["_modules"] = parts
    return stub


class MadeLater(dict[str, nn.Module | None]):
    """Parts of a stub, all of them made when one is looked up."""

    def __init__(self, names: Iterable[str], make: Callable[[str], nn.Module | None]) -> None:
        super().__init__(dict.fromkeys(names))
        self._make: Callable[[str], nn.Module | None] | None = make

    def _made(self) -> None:
        if self._make is not None:
            make, self._make = self._make, None
            for name in self:
                self[name] = make(name)

    def __getitem__(self, key: str) -> nn.Module | None:
        self._made()
        return super().__getitem__(key)

    def get(self, key: str, default: Any = None) -> Any:
        self._made()
        return super().get(key, default)

    def values(self) -> Any:
        self._made()
        return super().values()

    def items(self) -> Any:
        self._made()
        return super().items()


def _held(above: Held | None, module: nn.Module, name: str, depth: int, key: str) -> Held | None:
    """What a child of ``module`` is to the module without a forward that holds it."""
    listed = isinstance(module, nn.ModuleList | nn.ModuleDict)
    if above is None:
        return Held(name, key) if depth == 0 and not listed and not is_defined(type(module).forward) else None
    if listed and above.itself and "." not in above.unit:
        return Held(above.holder, f"{above.unit}.{key}")
    return Held(above.holder, above.unit, False)


def arguments_of(
    forward: Callable[..., Any], tracer: SymbolTracer, optional: bool = False, without: Sequence[str] = ()
) -> tuple[list[Any], dict[str, Any]]:
    """A symbol for each required argument, and for the first where none is required.

    ``optional``: also for each that is None by default, apart from those in ``without``.
    """
    parameters = list(inspect.signature(forward).parameters.values())[1:]
    arguments: list[Any] = []
    keywords: dict[str, Any] = {}
    for parameter in parameters:
        required = parameter.default is parameter.empty or (
            optional and parameter.default is None and parameter.name not in without
        )
        positional = parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and required
        skipped = positional and len(arguments) < [p.name for p in parameters].index(parameter.name)
        if (parameter.kind is parameter.KEYWORD_ONLY and required) or skipped:
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
def symbolic_factories(tracer: SymbolTracer, draw: float) -> Iterator[None]:
    """Inside, ``torch.arange`` and its like make a symbol where they get one, and every draw in [0, 1) is the same."""
    originals = {(torch, name): getattr(torch, name) for name in FACTORIES}
    originals |= {(math, name): getattr(math, name) for name in MATHS}
    checks = {(torch, name): getattr(torch, name) for name in CHECKS}
    drawn, filled = random.random, torch.rand

    def patched(original: Callable[..., Any]) -> Callable[..., Any]:
        def make(*args: Any, **kwargs: Any) -> Any:
            if any(isinstance(value, Symbol) for value in _flat([*args, *kwargs.values()])):
                return tracer.made(args, kwargs)
            made = original(*args, **kwargs)
            return made.fill_(draw) if original is filled else made

        return make

    def passing(original: Callable[..., Any]) -> Callable[..., Any]:
        def check(*args: Any, **kwargs: Any) -> Any:
            return None if any(isinstance(value, Symbol) for value in args) else original(*args, **kwargs)

        return check

    for (owner, name), original in originals.items():
        setattr(owner, name, patched(original))
    for (owner, name), original in checks.items():
        setattr(owner, name, passing(original))
    random.random = lambda: draw
    try:
        yield
    finally:
        random.random = drawn
        for (owner, name), original in (originals | checks).items():
            setattr(owner, name, original)


def _flat(values: Sequence[Any]) -> Iterator[Any]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _flat(value)
        else:
            yield value


def without_a_trainer(stand_in: nn.Module, tracer: SymbolTracer) -> None:
    """What a LightningModule's step asks of its Trainer gives a symbol in a copy, and does nothing else."""
    if hasattr(type(stand_in), "training_step"):
        for name in OF_A_TRAINER:
            stand_in.__dict__[name] = lambda *args, **kwargs: tracer.symbol()
        stand_in.__dict__["manual_backward"] = lambda loss, *args, **kwargs: tracer.returned(loss)
        stand_in.__dict__["_trainer"] = _AnyTrainer(tracer)


class _AnyTrainer:
    """A Trainer of which everything is unknown."""

    def __init__(self, tracer: SymbolTracer) -> None:
        self._tracer = tracer

    def __getattr__(self, name: str) -> Symbol:
        return self._tracer.symbol()
