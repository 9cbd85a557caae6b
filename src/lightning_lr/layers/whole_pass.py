"""A forward pass through a whole model on symbols, with the hierarchy of calls kept.

Each module runs its own ``forward`` on what it is really given; only parts that are said to be one whole are stubs. A
module whose code cannot be run so is a stub, too, with all that is in it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import fx, nn

from lightning_lr.layers.forward_pass import DRAWS, Run
from lightning_lr.layers.names import joined, unwrapped
from lightning_lr.layers.source_order import entries, is_defined
from lightning_lr.layers.stand_ins import LARGE, copied, lists_last, stub_of, with_parameters_of, with_stubs_in
from lightning_lr.layers.symbols import Symbol, SymbolTracer, of_a_call

WAYS: tuple[dict[str, Any], ...] = ({}, {"optional": True})
"""How code is run until all that is looked for was called: as it is, and with optional inputs."""
MORE_WAYS: tuple[dict[str, Any], ...] = (
    {"training": False},
    {"draw": DRAWS[0]},
    {"optional": True, "as_tensors": True},
)
"""How it is run besides, to be thorough, or where nothing was seen."""
METADATA = ("dtype", "device", "shape", "layout", "ndim", "requires_grad", "is_cuda")
"""What code looks up in a tensor without reading its values."""

CHOICES = ("argmax", "argmin", "argsort", "multinomial", "bernoulli", "eq", "ne", "lt", "le", "gt", "ge", "long", "int")
"""What gives a choice or a number of something, through which no gradient goes."""


@dataclass
class Seen:
    """What passes of a whole model show. A part is a path: of a stub, or of a parameter of what is no stub.

    Args:
        reads: each part that was called or used to what is in the input of any of its calls.
        always: each to what is in the input of all its calls, and not through ``detach`` alone.
        along: each, and each module that was called, to what came there through first arguments in all its calls.
        own_input: parts and modules to which an input of the model came through first arguments.
        returned: parts that are in what the model returns.
        failed: modules whose code could not be run on what they were given.
    """

    reads: dict[str, set[str]] = field(default_factory=dict)
    always: dict[str, set[str]] = field(default_factory=dict)
    along: dict[str, set[str]] = field(default_factory=dict)
    own_input: set[str] = field(default_factory=set)
    returned: set[str] = field(default_factory=set)
    failed: set[str] = field(default_factory=set)

    def add(self, other: Seen) -> None:
        """Take in what another pass shows."""
        for mine, new in ((self.always, other.always), (self.along, other.along)):
            for name, found in new.items():
                mine[name] = mine[name] & found if name in mine else found
        for name, found in other.reads.items():
            self.reads.setdefault(name, set()).update(found)
        self.own_input |= other.own_input
        self.returned |= other.returned
        self.failed |= other.failed


def whole_pass(model: nn.Module, whole: Container[str], wanted: Collection[str], thoroughly: bool = False) -> Seen:
    """What passes of a whole model show.

    Args:
        model: unwrapped; is not touched.
        whole: paths of the modules that are stubs.
        wanted: parts that should be called; where some are not, the code is run in further ways.
        thoroughly: whether it is run with every answer to what only a value could decide, too.
    """

    def with_stubs(stand_in: nn.Module, module: nn.Module, tracer: SymbolTracer) -> None:
        _fill(stand_in, module, "", tracer, whole, {id(module): stand_in})

    seen = Seen()
    for name in entries(model):
        if seen.reads and (name != "training_step" or seen.reads.keys() >= {*wanted}):
            break
        for way in (*WAYS, *MORE_WAYS):
            if seen.reads and (seen.reads.keys() >= {*wanted} or (way in MORE_WAYS and not thoroughly)):
                break
            for one in _answers(Run(model, getattr(type(model), name), with_stubs, WholeTracer, **way), thoroughly):
                seen.add(one)
    return seen


def _answers(run: Run, thoroughly: bool) -> Iterator[Seen]:
    """What is seen; also with the other answer to what only a value could decide, and with more of what is counted."""
    tracer, found = _once(run, False, 2)
    yield found
    lists = [len(module) for module in run.module.modules() if isinstance(module, nn.ModuleList)]
    if tracer.was_asked and thoroughly:
        yield _once(run, True, 2)[1]
    if tracer.was_counted and lists and thoroughly:
        yield _once(run, False, 1 + max(lists))[1]


def _once(run: Run, answer: bool, turns: int) -> tuple[WholeTracer, Seen]:
    made: list[WholeTracer] = []

    def tracer(answer: bool, turns: int) -> SymbolTracer:
        made.append(WholeTracer(answer, turns))
        return made[-1]

    Run(**{**vars(run), "tracer": tracer}).on(tracer(answer, turns))
    return made[-1], made[-1].seen()


def _fill(
    stand_in: nn.Module, module: nn.Module, path: str, tracer: SymbolTracer, whole: Container[str],
    made: dict[int, nn.Module],
) -> None:  # fmt: skip
    with_parameters_of(stand_in, module, tracer)
    for name, parameter in module._parameters.items():
        if parameter is not None:
            stand_in.__dict__[name] = tracer.parameter(joined(path, name), own=True)
    for name, buffer in module._buffers.items():
        if buffer is not None:
            stand_in.__dict__[name] = tracer.parameter("")
    stand_in.__dict__["_parameters"], stand_in.__dict__["_buffers"] = {}, {}
    modules: dict[str, nn.Module | None] = {}
    for name, inner in lists_last(module):
        modules[name] = None if inner is None else _part(inner, joined(path, name), tracer, whole, made)
    stand_in.__dict__["_modules"] = {name: modules[name] for name in module._modules}
    for name, value in stand_in.__dict__.items():
        if not name.startswith("_"):
            stand_in.__dict__[name] = with_stubs_in(value, made)


def _part(
    child: nn.Module, path: str, tracer: SymbolTracer, whole: Container[str], made: dict[int, nn.Module]
) -> nn.Module:
    if id(child) in made:
        return made[id(child)]
    module = unwrapped(child)
    scripted = isinstance(module, torch.jit.ScriptModule)
    if scripted or "forward" in vars(module) or len(module._modules) >= LARGE or path in whole:
        return stub_of(child, tracer, "", path, 0, made, path, later=True)
    made[id(child)] = made[id(module)] = stand_in = copied(module)
    _fill(stand_in, module, path, tracer, whole, made)
    own = type(module).forward
    if is_defined(own):
        stand_in.__dict__["forward"] = lambda *args, **kwargs: tracer.entered(path, own, stand_in, args, kwargs)  # type: ignore[attr-defined]
    return stand_in


class WholeTracer(SymbolTracer):
    """Follows, besides, what is in every call, and what comes all the way through first arguments."""

    def __init__(self, answer: bool = False, turns: int = 2) -> None:
        self._along: dict[fx.Node, int] = {}
        self._target: Any = None
        self._seen = Seen()
        super().__init__(answer, turns)

    def seen(self) -> Seen:
        """What the pass showed."""
        seen, visits = self._seen, self.visits
        for unit, before in visits.before.items():
            seen.reads[unit] = (visits.entered.get(unit, set()) | before) - {unit}
            seen.always[unit] = seen.always.get(unit, before) - visits.cut.get(unit, set())
            seen.along.setdefault(unit, before)
        for unit in self._used:
            seen.reads.setdefault(unit, set())
        return seen

    def entered(self, path: str, forward: Callable[..., Any], module: nn.Module, args: Any, kwargs: Any) -> Any:
        """A module that is no stub is called."""
        self._note_way(path, self.made(args, kwargs), args, kwargs)
        try:
            return forward(module, *args, **kwargs)
        except Exception:  # whatever the user's code raises for a symbol
            self._seen.failed.add(path)
            return self.called(path, args, kwargs)

    def called(
        self, unit: str, args: Any, kwargs: Any, itself: bool = True, path: str = "", held: Any = None
    ) -> Symbol:
        made = super().called(unit, args, kwargs, itself, path, held)
        sources = 0
        for node in made.node.all_input_nodes:
            sources |= self._sources[node]
        named = self._named(sources)
        self._seen.always[unit] = self._seen.always.get(unit, named) & named
        self._along[made.node] = self._note_way(unit, made, args, kwargs) | self._bit(unit)
        return made

    def _note_way(self, path: str, made: Symbol, args: Any, kwargs: Any) -> int:
        first = self.made(next(iter([*args, *kwargs.values()]), None)).node.all_input_nodes
        along = self._along_of(first or made.node.all_input_nodes)
        ways = self._named(along)
        self._seen.along[path] = self._seen.along.get(path, ways) & ways
        if along & 1:
            self._seen.own_input.add(path)
        return along

    def returned(self, value: Any) -> None:
        self._seen.returned |= self._named(self._sources[self.made(value).node])

    def create_node(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **more: Any) -> fx.Node:
        self._target = target
        node = super().create_node(kind, target, args, kwargs, *rest, **more)
        looked_up = (target is getattr and args[1] in METADATA) or (kind == "call_method" and target == "size")
        if str(getattr(target, "__name__", target)) in CHOICES:
            self._learning[node] = 0
        if looked_up:
            self._sources[node] = self._learning[node] = 0
        self._along[node] = 0 if looked_up else self._along_of(node.all_input_nodes)
        if kind == "call_method" and str(target).endswith("_") and not str(target).endswith("__"):
            for before in node.all_input_nodes[:1]:
                self._along[before] = self._along[node]
        return node

    def create_arg(self, a: Any) -> Any:
        return a if isinstance(a, str) else super().create_arg(a)

    def write(self, obj: Symbol, key: Any, value: Any) -> None:
        super().write(obj, key, value)
        self._along[obj.node] = self._along_of([obj.node, self.made(value).node])

    def symbol(self) -> Symbol:
        made = super().symbol()
        self._along[made.node] = 1
        return made

    def _come_from(self, node: fx.Node, unit: str) -> None:
        super()._come_from(node, unit)
        self._along[node] = self._along.get(node, 0) | self._bit(unit)

    def _note(self, unit: str, sources: int, itself: bool) -> None:
        next_to = unit in self._own and self._target is of_a_call  # an argument next to others reads none of them
        super()._note(unit, 0 if next_to else sources, itself)

    def _along_of(self, nodes: Iterable[fx.Node]) -> int:
        found = 0
        for node in nodes:
            found |= self._along.get(node, 0)
        return found
