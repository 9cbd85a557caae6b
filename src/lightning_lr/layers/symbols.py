"""Symbols that stand for tensors: a module's code is run on them to see which child reads what another one makes.

A symbol (a ``torch.fx`` proxy) knows which children it comes from. Children are replaced by stubs that note who called
them with what. No weight is read, nothing is computed, and the module itself is not touched. What only a value could
decide is decided by whoever makes the tracer: each ``if`` one way or the other, each loop over a symbol so many times.
"""

from __future__ import annotations

import inspect
import linecache
import operator
import types
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn

from lightning_lr.layers.source_order import kind_of_check
from lightning_lr.layers.visits import Visits

UNIT = "_lightning_lr_unit"
"""Attribute of a stub: the child that it stands for."""
OF_AN_ENCODER = ("encoder_", "memory")
"""Keywords by which a decoder is given what an encoder made, next to its own input."""


class Symbol(fx.Proxy):
    """Stands for a tensor, a shape, or whatever else the input consists of."""

    tracer: SymbolTracer

    @property  # type: ignore[misc]
    def __class__(self) -> type:  # what ``isinstance`` asks
        frame = inspect.currentframe() if object.__getattribute__(self, "tracer").as_tensors else None
        asks = frame is not None and frame.f_back is not None and asks_for_a_class(frame.f_back)
        return Tensor if asks else type(self)

    def __getattr__(self, name: str) -> _Attribute:
        return _Attribute(self, name)

    def __getitem__(self, key: Any) -> Symbol:
        return self.tracer.element(self, key)

    def __setitem__(self, key: Any, value: Any) -> None:
        self.tracer.write(self, key, value)

    def __index__(self) -> int:
        return self.tracer.length()

    def __len__(self) -> int:
        return self.tracer.length()

    def __float__(self) -> float:
        return self.tracer.value()

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        raise TypeError("NumPy would look for the values of a symbol without end")

    def __round__(self, digits: int = 0) -> Symbol:
        return self


def asks_for_a_class(frame: types.FrameType) -> bool:
    """Whether it is code in Python that asks for the class of something, as its text in this line says.

    Code in C++ asks as well, and reads the memory of what it then takes for a tensor.
    """
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno, frame.f_globals)
    return any(words in line for words in ("isinstance", "__class__"))


class _Attribute(fx.proxy.Attribute, Symbol):
    """``x.shape``, ``x.view``: a symbol that can be called."""


@dataclass(frozen=True)
class Held:
    """What is called in a child that has no forward, such as a plain ``nn.Module`` with attributes.

    Args:
        holder: that child.
        unit: what is called: a child of it, or an element of a list in it.
        itself: whether it is called itself, not only a part of it.
    """

    holder: str
    unit: str
    itself: bool = True


class SymbolTracer(fx.proxy.GraphAppendingTracer):
    """Makes symbols that know which children they come from.

    Args:
        answer: to every question that only a value could answer.
        turns: how often a loop over a symbol is gone through.
    """

    def __init__(self, answer: bool = False, turns: int = 2) -> None:
        super().__init__(fx.Graph())
        self.answer, self.turns = answer, turns
        self.was_asked = self.was_counted = False
        self.as_tensors = False
        """Whether a symbol is a tensor to ``isinstance``."""
        self._loops: dict[tuple[Any, int], int] = {}
        self.visits = Visits()
        self._names: list[str] = [""]  # an input of the module
        self._bits: dict[str, int] = {"": 0}
        self._sources: dict[fx.Node, int] = {}
        self._learning: dict[fx.Node, int] = {}
        """Of the sources, those that a gradient reaches."""
        self._written: dict[fx.Node, tuple[int, dict[int, Symbol]]] = {}
        """What a symbol came from before something was written into it, and what was written at which index."""
        self._parameter: dict[fx.Node, str] = {}
        self._used: dict[str, int] = {}
        self._own: set[str] = set()
        self._places = 0

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
        cut = kind == "call_method" and target == "detach"
        self._learning[node] = 0 if cut else self._learning_of(node.all_input_nodes)
        in_place = kind == "call_method" and str(target).endswith("_") and not str(target).endswith("__")
        if in_place and args and isinstance(args[0], fx.Node):
            self._sources[args[0]], self._learning[args[0]] = sources, self._learning[node]
        return node

    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Symbol):
            return a.node
        if isinstance(a, list | tuple):
            return tuple(self.create_arg(one) for one in a)
        if isinstance(a, dict):
            return {str(key): self.create_arg(one) for key, one in a.items()}
        if isinstance(a, slice):
            return tuple(self.create_arg(one) for one in (a.start, a.stop, a.step))
        if hasattr(a, "__dict__") and not isinstance(a, Tensor | nn.Module | type) and not callable(a):
            return [self.create_arg(one) for one in vars(a).values() if isinstance(one, Symbol | list | tuple | dict)]
        return None  # constants have no source

    def proxy(self, node: fx.Node) -> Symbol:
        return Symbol(node, self)

    def iter(self, obj: Any) -> Iterator[Any]:
        return (obj[i] for i in range(self.length()))

    def made(self, *values: Any) -> Symbol:
        """What is made of some values, whatever is done with them."""
        nodes = {symbol.node: symbol for symbol in self._symbols_in(values)}
        found = self.create_proxy("call_function", of_a_call, tuple(nodes.values()), {})
        assert isinstance(found, Symbol)
        return found

    def _symbols_in(self, value: Any) -> Iterator[Symbol]:
        if isinstance(value, Symbol):
            yield value
        elif isinstance(value, list | tuple):
            for one in value:
                yield from self._symbols_in(one)
        elif isinstance(value, dict):
            yield from self._symbols_in([*value.values()])
        elif isinstance(value, slice):
            yield from self._symbols_in([value.start, value.stop, value.step])
        elif hasattr(value, "__dict__") and not isinstance(value, Tensor | nn.Module | type) and not callable(value):
            inside = vars(value).values()
            yield from self._symbols_in([one for one in inside if isinstance(one, Symbol | list | tuple | dict)])

    def length(self) -> int:
        """Of whatever is looped over or counted."""
        self.was_counted = True
        return self.turns

    def value(self) -> float:
        """A number that fails every comparison with an ordinary one, or passes it."""
        self.was_asked = True
        return 1e30 if self.answer else 0.0

    def write(self, obj: Symbol, key: Any, value: Any) -> None:
        """Write a value into what a symbol stands for: at an index, where only that element changes, or anywhere."""
        made, node = self.made(key, value), obj.node
        before, elements = self._written.get(node, (self._sources.get(node, 0), {}))
        if isinstance(key, int) and isinstance(value, Symbol):
            elements[key] = value
        else:
            before, elements = before | self._sources[made.node], {}
        self._written[node] = before, elements
        self._sources[node] = self._sources.get(node, 0) | self._sources[made.node]
        self._learning[node] = self._learning.get(node, 0) | self._learning[made.node]

    def element(self, obj: Symbol, key: Any) -> Symbol:
        """What was written at an index, or what the symbol came from before anything was."""
        before, elements = self._written.get(obj.node, (0, {}))
        if isinstance(key, int) and key in elements:
            return elements[key]
        others = elements and isinstance(key, int) and all((key < 0) == (other < 0) for other in elements)
        found = self.create_proxy("call_function", operator.getitem, (obj, key), {})
        assert isinstance(found, Symbol)
        if others:  # the last of all may be any of those that are counted from the first
            self._sources[found.node] = before
        return found

    def to_bool(self, obj: fx.Proxy) -> bool:
        """A check of the input passes, a loop ends after some turns, and else the answer is the one that was given."""
        frame = inspect.currentframe()
        while frame is not None and frame.f_code.co_filename in (__file__, fx.proxy.__file__):
            frame = frame.f_back
        kind = "" if frame is None else kind_of_check(frame.f_code, frame.f_lineno)
        if frame is not None and kind in ("while", "break"):
            place = frame.f_code, frame.f_lineno
            self._loops[place] = self._loops.get(place, 0) + 1
            goes_on = self._loops[place] % (self.turns + 1) != 0
            self.was_counted = True
            return goes_on == (kind == "while")
        if kind in ("yes", "no"):
            return kind == "yes"
        self.was_asked = True
        return self.answer

    def called(
        self, unit: str, args: Any, kwargs: Any, itself: bool = True, path: str = "", held: Held | None = None
    ) -> Symbol:
        """The output of a child, or of a part of it where it is not the child itself that is called."""
        given = [value for value in (*args, *kwargs.values()) if isinstance(value, nn.Module) and UNIT in vars(value)]
        if given:  # a network that is given to another one is called there, on what else that gets
            args = [value for value in args if not isinstance(value, nn.Module)]
            kwargs = {key: value for key, value in kwargs.items() if not isinstance(value, nn.Module)}
            outputs = [self.called(vars(value)[UNIT], [*args, *kwargs.values()], {}) for value in given]
            kwargs |= {f"{OF_AN_ENCODER[0]}{index}": output for index, output in enumerate(outputs)}
        made = self.made(args, kwargs)
        if path:
            self.visits.inside.setdefault(path, self._place())
        if held is not None:
            self._call_of_held(held, made.node)
        first = next(iter([*args, *kwargs.values()]), None)
        if isinstance(first, Symbol) and unit not in self.visits.position:
            self.visits.read[unit] = self._named(self._sources[first.node])
            if self._sources[first.node] & 1:
                self.visits.own_input.add(unit)
        next_to = [value for key, value in kwargs.items() if key.startswith(OF_AN_ENCODER)]
        if itself and next_to:
            rest = [value for key, value in kwargs.items() if not key.startswith(OF_AN_ENCODER)]
            named = [self._named(self._sources[self.made(values).node]) for values in (next_to, [*args, *rest])]
            self.visits.next_to.setdefault(unit, named[0] - named[1])
        if itself and not self._named(self._sources[made.node]):
            self.visits.alone.add(unit)
        self._note(unit, self._sources[made.node], itself)
        cut = self._named(self._sources[made.node] & ~self._learning[made.node])
        self.visits.cut[unit] = self.visits.cut.get(unit, cut) & cut
        self.visits.entered.setdefault(unit, set()).update(self._named(self._sources[made.node]))
        self._come_from(made.node, unit)
        if held is not None:
            self._come_from(made.node, f"{held.holder}:{held.unit}")
        return made

    def _call_of_held(self, held: Held, node: fx.Node) -> None:
        visits = self.visits.held.setdefault(held.holder, Visits())
        names = {self._names[i] for i in range(1, len(self._names)) if self._sources[node] >> i & 1}
        before = {name.partition(":")[2] for name in names if name.startswith(f"{held.holder}:")} - {held.unit}
        visits.entered.setdefault(held.unit, set()).update(before)
        if held.itself and not before:
            visits.alone.add(held.unit)
        if held.unit not in visits.position or (held.itself and held.unit not in visits.itself):
            visits.position[held.unit], visits.before[held.unit] = self._place(), before
        if held.itself:
            visits.itself.add(held.unit)

    def parameter(self, unit: str, own: bool = False) -> Symbol:
        """A parameter or buffer; of a child where ``unit`` names one, or one of the module itself."""
        made = self.made()
        if own:
            self._own.add(unit)
            self._come_from(made.node, unit)
            return made
        if unit:
            self._come_from(made.node, unit)
            self._parameter[made.node] = unit
        return made

    def symbol(self) -> Symbol:
        """An input, or whatever else is unknown."""
        made = self.made()
        self._sources[made.node] = 1
        return made

    def returned(self, value: Any) -> None:
        """Told what the module's code returns."""

    def finished(self) -> Visits:
        """What was seen; a child of which only a parameter was used (a table of queries) counts as an input."""
        for unit, place in self._used.items():
            if unit not in self.visits.position:
                self.visits.position[unit] = place
                self.visits.before[unit] = set()
        self.visits.held = {name: visits.with_parts() for name, visits in self.visits.held.items()}
        return self.visits.with_parts()

    def _come_from(self, node: fx.Node, unit: str) -> None:
        bit = self._bit(unit)
        self._sources[node] |= bit
        self._learning[node] |= bit

    def _learning_of(self, nodes: Iterable[fx.Node]) -> int:
        found = 0
        for node in nodes:
            found |= self._learning.get(node, 0)
        return found

    def _bit(self, unit: str) -> int:
        if unit not in self._bits:
            self._bits[unit] = len(self._names)
            self._names.append(unit)
        return int(1 << self._bits[unit])

    def _note(self, unit: str, sources: int, itself: bool) -> None:
        """A call of the child itself says more than one of a part of it, as of a language model's embedding."""
        if unit not in self.visits.position or (itself and unit not in self.visits.itself):
            if itself:
                self.visits.itself.add(unit)
            self.visits.position[unit] = self._place()
            self.visits.before[unit] = self._named(sources)

    def _place(self) -> int:
        self._places += 2  # between two there is room for a child that is called in parts
        return self._places

    def _named(self, sources: int) -> set[str]:
        return {name for i, name in enumerate(self._names) if i and sources >> i & 1 and ":" not in name}


def of_a_call() -> None:
    """Stands for a call in the graph, which is never run."""
