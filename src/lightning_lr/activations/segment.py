"""A segment: consecutive blocks of which only the inputs are kept, and whose activations are made again in backward.

The blocks of an ``nn.ModuleList`` are called by the user's own forward, so a segment of several cannot be wrapped as
one function. It need not be: while a block of the segment runs, a pair of saved-tensor hooks keeps a :class:`Holder`
in place of each tensor that autograd saves. The first holder that backward asks for makes the segment run its calls
again, one after the other, each on what the one before gave (the very object, unchanged, that the block was given; any
other tensor counts as an input of the segment and is kept). Loss and gradients are those of the plain run to the bit:
the graph is the original one, only what its nodes saved is computed twice, under the same random state and autocast.

Seam for whoever compresses activations: a segment's inputs are saved under the saved-tensor hooks that are open outside
of the blocks, and nothing else of a segment ever reaches these. :func:`saving_segment_inputs` is true while it happens,
so that a codec can give them at least 8 bits (the segment is computed again from what they decode to). Hooks must be
entered outside the forward (Lightning: the precision plugin's ``train_step_context``) and be closed before backward.

Sources: Chen et al. 2016, arXiv:1604.06174; the hooks are ``torch.autograd.graph.saved_tensors_hooks``.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from threading import local
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_lr.activations.argument_state import ArgumentChanges, ArgumentState
from lightning_lr.activations.fingerprint import Fingerprint, all_are
from lightning_lr.activations.iterators import Tape
from lightning_lr.activations.replay_state import BlockModes, ReplayState, statistics_written_once
from lightning_lr.nested import Mark, map_tensors, tensors_in

Forward = Callable[..., Any]
Path = tuple[int, int]
"""Which call, and which tensor of it."""


class _Here(local):
    """What this thread is doing; backward may run in another thread than forward."""

    replaying = False
    saving_inputs = False


_here = _Here()
_observers: list[Callable[[Holder], None]] = []


def replaying() -> bool:
    """Whether a segment is being computed again in this thread (for code in a block with side effects)."""
    return _here.replaying


def saving_segment_inputs() -> bool:
    """Whether the tensor that a saved-tensor hook is given now is the input of a segment."""
    return _here.saving_inputs


@contextmanager
def observe_holders(observer: Callable[[Holder], None]) -> Iterator[None]:
    """Show ``observer`` every holder when it is filled in backward, to count what is alive."""
    _observers.append(observer)
    try:
        yield
    finally:
        _observers.remove(observer)


class Holder:
    """Stands in the graph where autograd saved a tensor; dies with the node that saved it, and the tensor with it."""

    __slots__ = ("__weakref__", "made_of", "segment", "value")

    def __init__(self, segment: Segment, tensor: Tensor) -> None:
        self.segment = segment
        self.made_of = (tensor.shape, tensor.dtype)
        self.value: Tensor | None = None

    def fill(self, tensor: Tensor, name: str) -> None:
        if tensor.shape != self.made_of[0] or tensor.dtype != self.made_of[1]:
            raise RuntimeError(
                f"checkpointing: {name} saved a tensor of {self.made_of} in forward, and of "
                f"{(tensor.shape, tensor.dtype)} when it was computed again; it does not do the same twice (randomness "
                "outside torch, state that it changes). Leave it out by naming the other blocks in "
                "CheckpointPolicy(modules=[...])"
            )
        self.value = tensor.detach()
        for observer in _observers:
            observer(self)

    def get(self) -> Tensor:
        # The value stays: custom functions may read ctx.saved_tensors several times. The node lets go of the holder
        # as soon as it has run, unless the graph is retained.
        if self.value is None:
            self.segment.recompute()
        assert self.value is not None
        return self.value


class _AllMade(BaseException):
    """Everything that backward can ask for has been made; not an Exception, which a block may catch."""


class _Keep(torch.autograd.Function):
    """Saves tensors as any node would, so that hooks from outside see them and in-place changes are noticed."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, *tensors: Tensor) -> Tensor:
        ctx.save_for_backward(*tensors)
        return anchor.new_empty(0)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        raise AssertionError("nothing is derived from what was kept")


class KeptInputs:
    """Tensors that a segment needs from outside."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self.requires_grad = [tensor.requires_grad for tensor in tensors]
        anchor = torch.empty(0, requires_grad=True)
        _here.saving_inputs = True  # what a function saves is packed after its forward has returned
        try:
            self._node = _Keep.apply(anchor, *tensors).grad_fn  # type: ignore[no-untyped-call]
        finally:
            _here.saving_inputs = False

    def tensors(self) -> list[Tensor]:
        """The same values, cut off from the graph that made them."""
        saved = self._node.saved_tensors
        return [t.detach().requires_grad_(flag) for t, flag in zip(saved, self.requires_grad, strict=True)]


class _FromCall:
    """In the arguments of a call: a tensor that an earlier call of the segment returned."""

    def __init__(self, path: Path) -> None:
        self.path = path


class _FromOutside:
    """In the arguments of a call: a tensor that is kept."""

    def __init__(self, path: Path) -> None:
        self.path = path


class _Call:
    """One block's call: what to run, on what, and when it was."""

    def __init__(
        self,
        forward: Forward,
        name: str,
        norms: list[_BatchNorm],
        arguments: Any,
        kept: KeptInputs | None,
        replay_state: ReplayState,
    ) -> None:
        self.forward = forward
        self.name = name
        self.norms = norms
        self.arguments = arguments
        self.kept = kept
        self.replay_state = replay_state
        self.modes: BlockModes | None = None
        self.changes: ArgumentChanges | None = None
        """What the block changed in the objects that it was given."""
        self.outputs: list[Fingerprint] = []
        """Of what the block gave, where that is compared."""

    @contextmanager
    def as_at_first(self) -> Iterator[None]:
        """Inside, random state, autocast, batch norms, modes and argument objects are as when the block ran first."""
        undone = nullcontext() if self.changes is None else self.changes.undone()
        modes = nullcontext() if self.modes is None else self.modes.restored(self.name)
        with undone, modes, self.replay_state.restored(), statistics_written_once(self.norms):
            yield


class Segment:
    """Runs blocks without keeping what they save, and again when backward asks for it.

    Args:
        compared: whether what the blocks give is compared, the first time and again.
    """

    def __init__(self, compared: bool = False) -> None:
        self._compared = compared
        self._inputs: list[Fingerprint] = []
        self._calls: list[_Call] = []
        self._holders: list[weakref.ref[Holder]] = []
        self._known: list[tuple[Mark, _FromCall | _FromOutside]] = []
        self._last_outputs: list[Mark] = []

    def continues(self, arguments: Any) -> bool:
        """Whether one of the arguments is what the last block returned, as it returned it."""
        given = tensors_in(arguments)
        return any(mark.is_still(tensor) for mark in self._last_outputs for tensor in given)

    def run(
        self,
        forward: Forward,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        name: str = "the block",
        norms: list[_BatchNorm] | None = None,
        saved: Callable[[Holder, Tensor], None] | None = None,
        again: Forward | None = None,
        state: ArgumentState | None = None,
        modules: Sequence[nn.Module] = (),
    ) -> Any:
        """The block's output.

        Args:
            forward: the block.
            args: its positional arguments, as are ``kwargs`` by name.
            name: of the block, for errors.
            norms: batch norms in it whose statistics are not to be updated a second time.
            saved: called with every tensor that the block saves, while it still exists.
            again: called in backward in place of ``forward``; gives the same.
            state: of the objects among the arguments, noted just before.
            modules: of the block, whose modes and parameters are to be the same again.
        """
        index = len(self._calls)
        outside: list[Tensor] = []

        def refer(tensor: Tensor) -> Any:
            for mark, reference in self._known:
                if mark.is_still(tensor):
                    return reference
            reference = _FromOutside((index, len(outside)))
            outside.append(tensor)
            self._known.append((Mark(tensor), reference))
            return reference

        arguments = map_tensors((args, kwargs), refer)
        kept = KeptInputs(outside) if outside else None
        before = self._calls[-1].replay_state if self._calls else None
        replay_state = ReplayState(tensors_in((args, kwargs)), before)
        call = _Call(again or forward, name, norms or [], arguments, kept, replay_state)
        self._calls.append(call)
        state = state or ArgumentState((args, kwargs))
        call.modes = BlockModes(modules) if modules else None
        if self._compared:
            self._inputs += [Fingerprint(tensor) for tensor in outside]

        def pack(tensor: Tensor) -> Holder:
            holder = Holder(self, tensor)
            self._holders.append(weakref.ref(holder))
            if saved is not None:
                saved(holder, tensor)
            return holder

        with saved_tensors_hooks(pack, Holder.get):
            output = forward(*args, **kwargs)
        call.changes = state.changes()
        if call.modes is not None:
            call.modes.block_has_run()
        if self._compared:
            call.outputs = [Fingerprint(tensor) for tensor in tensors_in(output)]
        self._last_outputs = [Mark(tensor) for tensor in tensors_in(output)]
        self._known += [(mark, _FromCall((index, i))) for i, mark in enumerate(self._last_outputs)]
        return output

    def recompute(self) -> None:
        """Run every call again and fill the holders that are still needed."""
        filled = 0
        name = ""

        def fill(tensor: Tensor) -> None:
            nonlocal filled
            if filled == len(self._holders):
                self._differs(name)
            holder = self._holders[filled]()
            filled += 1
            if holder is not None:
                holder.fill(tensor, name)
            if filled == len(self._holders) and not compared:
                raise _AllMade  # what follows would be computed for nothing

        def refuse(nothing: None) -> Tensor:
            raise RuntimeError(f"checkpointing: {name} derives inside its own forward, which cannot be run again")

        kept = [call.kept.tensors() if call.kept is not None else [] for call in self._calls]
        made: list[list[Tensor]] = []
        # a codec that rounds what is kept makes another output of it
        compared = self._compared and all(
            known.is_of(tensor) for known, tensor in zip(self._inputs, [t for some in kept for t in some], strict=True)
        )

        def look_up(reference: _FromCall | _FromOutside | Tape) -> Any:
            if isinstance(reference, Tape):
                return reference.again()
            call, position = reference.path
            return (made if isinstance(reference, _FromCall) else kept)[call][position]

        was_replaying, _here.replaying = _here.replaying, True
        try:
            with torch.enable_grad():
                for call in self._calls:
                    name = call.name
                    args, kwargs = map_tensors(call.arguments, look_up, (_FromCall, _FromOutside, Tape))
                    with call.as_at_first(), saved_tensors_hooks(fill, refuse):
                        made.append(tensors_in(call.forward(*args, **kwargs)))
        except _AllMade:
            return
        finally:
            _here.replaying = was_replaying
        if filled < len(self._holders):
            self._differs(name)
        for call, outputs in zip(self._calls, made, strict=True):
            if not all_are(call.outputs, outputs):
                self._gives_another(call.name)

    def _gives_another(self, name: str) -> None:
        raise RuntimeError(
            f"checkpointing: {name} gave another result when it was computed again; its gradients would be wrong. It "
            "changes a global variable, an attribute of its class, or an array or object that it keeps, or its "
            "parameters were changed through .data after the forward. Keep what it changes in an attribute of its own "
            "(a number, tensor, list or dict), or leave it out by naming the other blocks in "
            "CheckpointPolicy(modules=[...])"
        )

    def _differs(self, name: str) -> None:
        raise RuntimeError(
            f"checkpointing: {name} saved another number of tensors when it was computed again; it does not do the "
            "same twice (randomness outside torch, state that it changes, a graph compiled anew for another shape). "
            "Leave it out by naming the other blocks in CheckpointPolicy(modules=[...])"
        )
