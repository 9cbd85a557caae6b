"""What a forward pass shows of each module of a model, by symbols or by the module's own example.

Every module's own ``forward`` is run on symbols instead of tensors (:mod:`~lightning_lr.layers.symbols`); no batch is
needed. Code that takes a value out of a tensor or leaves torch cannot be run so; then there is no answer for that
module, and the text of its ``forward``, names, and the order of definition decide.
"""

from __future__ import annotations

import inspect
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import fx, nn

from lightning_lr.layers.names import joined
from lightning_lr.layers.source_order import entries, names_in_refusal, raises, source_order
from lightning_lr.layers.stand_ins import (
    arguments_of,
    copied,
    symbolic_factories,
    undisturbed,
    with_stubs,
    without_a_trainer,
)
from lightning_lr.layers.symbols import SymbolTracer
from lightning_lr.layers.visits import Visits

DRAWS = (0.0, 1.0 - 2.0**-24)
"""What random numbers in [0, 1) are while code runs on symbols."""
Stubs = Callable[[nn.Module, nn.Module, SymbolTracer], None]
MISSING = 16
"""Keys of a batch that a forward with ``**batch`` may ask for."""


class Passes:
    """Forward passes through the modules of a model, each made when it is needed.

    Args:
        known: what an earlier pass showed, by path.
    """

    def __init__(self, known: Mapping[str, Visits] | None = None) -> None:
        self._by_path = dict(known or {})
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
        found = self._known[id(module)]
        for name, visits in found.held.items() if found is not None else ():
            self._by_path.setdefault(joined(path, name), visits)
        return found

    def order(self, module: nn.Module) -> dict[str, int]:
        """The order in which the text of ``forward`` uses a module's children and parameters, where it names them."""
        order = source_order(module)
        return {name: order[name] for name in (*module._modules.keys(), *module._parameters.keys()) if name in order}


def symbolic_pass(
    module: nn.Module, stubs: Stubs = with_stubs, tracer: type[SymbolTracer] = SymbolTracer
) -> Visits | None:
    """Run a module's ``forward`` on symbols, or through what else it is used
    (:func:`~lightning_lr.layers.source_order.entries`).

    Code that leaves blocks out at random (LayerDrop) is run with draws near 1 and near 0, and in evaluation mode; what
    calls most is the answer. Where the code asks what only a value could answer, it is run with yes and with no, and
    where it counts, with one and with more: if what is called differs by more than something left out, there is no
    answer.

    Args:
        module: is not touched.
        stubs: puts symbols and stubs into a copy of it.
        tracer: makes the symbols.
    """
    if type(module).__module__.startswith("torch.jit"):
        return None
    wanted = _with_parameters(module)
    best: Visits | None = None
    for name in entries(module):
        if best is not None and (name != "training_step" or best.has(*wanted)):
            break
        found = _fullest(Run(module, getattr(type(module), name), stubs, tracer))
        if best is None or (found is not None and len(found.position) > len(best.position)):
            best = found
    return best


def _fullest(run: Run) -> Visits | None:
    module = run.module
    wanted = _with_parameters(module)
    best: Visits | None = None
    for draw, training in ((DRAWS[1], None), (DRAWS[1], False), (DRAWS[0], None)):
        visits = _any_way(replace(run, draw=draw, training=training))
        if visits is not None and (best is None or len(visits.position) > len(best.position)):
            best = visits
        if visits is None or (visits.has(*wanted) and _whole_lists(module, visits)):
            break
    own = [name for name, parameter in module._parameters.items() if parameter is not None]
    for as_tensors in (False, True):
        if best is not None and (best.has(*wanted, *own) or as_tensors):
            break
        # an optional input may be what the others read, or what a decoder cannot do without
        more = _any_way(replace(run, optional=True, as_tensors=as_tensors))
        if best is None:
            best = more
        elif more is not None:
            best = best.joined_with(more) or best
    return best


def _any_way(run: Run) -> Visits | None:
    """What is seen whichever way the code decides; a way that the code itself refuses is none."""
    lists = [len(child) for child in run.module._modules.values() if isinstance(child, nn.ModuleList)]
    for turns in sorted({2, *(length for length in lists if length > 1)}, reverse=True):
        tracer = run.tracer(False, turns)
        found, refused = run.on(tracer)
        if found is not None or refused:
            break
    if tracer.was_asked:
        other, refused_too = run.on(run.tracer(True, turns))
        if found is None or other is None:
            found = other if refused else found if refused_too else None
        else:
            found = found.joined_with(other)
    if tracer.was_counted and found is not None:
        once, _ = run.on(run.tracer(False, 1))
        found = found if once is None else found.joined_with(once)
        most = 1 + max((len(m) for m in run.module.modules() if isinstance(m, nn.ModuleList)), default=0)
        often = run.on(run.tracer(False, most))[0] if most > turns and not tracer.was_asked else None
        if found is not None and often is not None and often.says_more_than(found):
            found = often  # of the outputs of all blocks, the code takes some by their number
    return found


@dataclass(frozen=True)
class Run:
    """A module's method on symbols.

    Args:
        module: is not touched.
        forward: the method.
        stubs: puts symbols and stubs into a copy of the module.
        tracer: makes the symbols.
        draw: what random numbers are.
        training: whether the module trains; ``None``: as it is.
        optional: whether inputs that are ``None`` by default are given.
        as_tensors: whether what is unknown is a tensor to whoever asks.
    """

    module: nn.Module
    forward: Callable[..., Any]
    stubs: Stubs
    tracer: type[SymbolTracer]
    draw: float = DRAWS[1]
    training: bool | None = None
    optional: bool = False
    as_tensors: bool = False

    def on(self, tracer: SymbolTracer) -> tuple[Visits | None, bool]:
        """What is seen, and whether the code raised an error by itself."""
        missing: list[str] = []
        without: list[str] = []
        while True:
            tracer.as_tensors = self.as_tensors
            try:
                with undisturbed(), symbolic_factories(tracer, self.draw):
                    stand_in = copied(self.module)
                    if self.training is not None:
                        stand_in.__dict__["training"] = self.training
                    self.stubs(stand_in, self.module, tracer)
                    without_a_trainer(stand_in, tracer)
                    arguments, keywords = arguments_of(self.forward, tracer, self.optional, without)
                    keywords |= {name: tracer.symbol() for name in missing}
                    tracer.returned(self.forward(stand_in, *arguments, **keywords))
                break
            except KeyError as error:  # of ``**batch``
                key = error.args[0] if error.args else None
                any_keyword = inspect.getfullargspec(self.forward).varkw
                if not isinstance(key, str) or key in missing or not any_keyword or len(missing) > MISSING:
                    return None, False
                missing.append(key)
                tracer = self.tracer(tracer.answer, tracer.turns)
            except Exception as error:  # whatever the user's code raises for a symbol
                refused = [name for name in _refused_inputs(error, self.forward) if name not in without]
                if not self.optional or not refused:
                    return None, _is_refusal(error)
                without.append(refused[-1])  # two that exclude one another: the first of them
                tracer = self.tracer(tracer.answer, tracer.turns)
        visits = tracer.finished()
        return (visits if visits.position else None), False


def _refused_inputs(error: Exception, forward: Callable[..., Any]) -> list[str]:
    """Optional inputs in the check that refused them, where it stands in ``forward`` itself."""
    trace = _last(error)
    code = inspect.unwrap(forward).__code__ if inspect.isroutine(forward) else None
    if trace is None or trace.tb_frame.f_code is not code:
        return []
    parameters = inspect.signature(forward).parameters
    names = names_in_refusal(trace.tb_frame.f_code, trace.tb_lineno)
    return [name for name in names if name in parameters and parameters[name].default is None]


def _last(error: Exception) -> types.TracebackType | None:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _is_refusal(error: Exception) -> bool:
    """Whether it is the user's code that raised, not what it called."""
    trace = _last(error)
    if trace is None or isinstance(error, fx.proxy.TraceError | NotImplementedError):
        return False
    return raises(trace.tb_frame.f_code, trace.tb_lineno)


def _with_parameters(module: nn.Module) -> list[str]:
    """The children that have something to train."""
    return [name for name, child in module._modules.items() if child is not None and list(child.parameters())]


def _whole_lists(module: nn.Module, visits: Visits) -> bool:
    """Whether each list of which an element was called had all of its elements called."""
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleList):
            called = visits.elements(name)
            if called and len(called) < sum(any(True for _ in c.parameters()) for c in child):
                return False
    return True
