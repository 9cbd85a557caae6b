"""Gradual unfreezing: which layers of a pretrained model train in which epoch, and how the others are kept still.

The top layer trains first, then one more from the top after every ``epochs_per_layer`` epochs (Howard & Ruder 2018,
arXiv:1801.06146, section 3.3). No parameter group is added or removed: a parameter without a gradient is passed over by
every torch optimizer, with its momentum and its weight decay. Pure torch; no Lightning.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import takewhile

from torch import nn

from lightning_lr.layers.discovery import Layers, discover
from lightning_lr.layers.names import parameters_by_name, unwrapped


@dataclass(frozen=True)
class Thaw:
    """What begins to train together: the layers of one depth (several where the model has towers).

    Args:
        layers: names, from input to head.
        parameters: those of them that the user has not frozen.
    """

    layers: tuple[str, ...]
    parameters: tuple[str, ...]


class UnfreezingOrder:
    """The layers of a model in the order in which they begin to train.

    Layers of which the user has frozen every parameter have no turn of their own.

    Args:
        module: the model, as the user prepared it: what does not require a gradient now stays frozen.
        layers: ``"auto"`` or regular expressions from input to head, as for :func:`~lightning_lr.layers.discover`.
        epochs_per_layer: epochs until the next layer begins.

    Raises:
        ValueError: for ``epochs_per_layer`` below 1, patterns that do not fit, or a model without trainable parameters.
    """

    def __init__(self, module: nn.Module, layers: Layers = "auto", epochs_per_layer: int = 1) -> None:
        if not isinstance(epochs_per_layer, int) or isinstance(epochs_per_layer, bool) or epochs_per_layer < 1:
            raise ValueError(f"got epochs_per_layer={epochs_per_layer!r}; give a whole number of epochs from 1")
        found = discover(module, layers)
        trainable = _trainable(module)
        if not trainable:
            raise ValueError(
                f"every parameter of {type(unwrapped(module)).__name__} is frozen (requires_grad=False), so there is "
                "nothing to unfreeze; leave trainable what is to be trained in the end"
            )
        by_depth: dict[int, list[tuple[str, tuple[str, ...]]]] = {}
        for layer in found.layers:
            own = tuple(name for name in layer.parameters if name in trainable)
            if own:
                by_depth.setdefault(layer.depth, []).append((layer.name, own))
        self._trainable = trainable
        self.epochs_per_layer = epochs_per_layer
        self.how = found.how
        """Which convention found the layers."""
        self.thaws = tuple(
            Thaw(tuple(name for name, _ in by_depth[depth]), tuple(p for _, own in by_depth[depth] for p in own))
            for depth in sorted(by_depth, reverse=True)
        )
        """What begins to train together, the top first."""

    def holds_of(self, module: nn.Module) -> bool:
        """Whether the user has frozen nothing else in the meantime, and nothing less."""
        return _trainable(module) == self._trainable

    def begun(self, epoch: int) -> int:
        """How many thaws have begun in an epoch (from 0): at least 1."""
        return min(len(self.thaws), 1 + epoch // self.epochs_per_layer)

    def begins(self, thaw: int) -> int:
        """The epoch (from 0) in which a thaw begins."""
        return thaw * self.epochs_per_layer

    def name(self, thaw: int) -> str:
        """The layers that begin to train, in words: without the path that all blocks share."""
        return " and ".join(name[self._shared :] if "." in name else name for name in self.thaws[thaw].layers)

    @cached_property
    def _shared(self) -> int:
        """Length of the path that the names of all blocks begin with; their container's name is no part of it."""
        if self.how == "patterns":  # those are named by the user
            return 0
        paths = [name.split(".")[:-2] for thaw in self.thaws for name in thaw.layers if "." in name]
        shared = takewhile(lambda parts: len(set(parts)) == 1, zip(*paths, strict=False))
        return sum(len(parts[0]) + 1 for parts in shared) if len(paths) > 1 else 0


class FrozenLayers:
    """Keeps still what has not begun to train, and gives everything back in the end.

    Only what it has frozen itself is ever made trainable again: what the user freezes, before or during the run, stays.

    Args:
        module: the model that ``order`` was made of.
        order: which layers begin when.
        without_backward: frozen parameters do not require a gradient, which saves computing it. Else it is computed
            and dropped by :meth:`drop_gradients`, for wrappers that expect a gradient of every parameter.
        train_batch_norm: batch norms always train, with their statistics. Else those of frozen layers are in evaluation
            mode, so that a frozen layer is a fixed function.
    """

    def __init__(
        self, module: nn.Module, order: UnfreezingOrder, without_backward: bool = True, train_batch_norm: bool = False
    ) -> None:
        by_name = parameters_by_name(module)
        self.without_backward = without_backward
        norms = list(_batch_norms(module))
        free = {id(p) for norm, _ in norms for p in norm.parameters()} if train_batch_norm else set()
        self._parameters = [
            [by_name[name] for name in thaw.parameters if id(by_name[name]) not in free] for thaw in order.thaws
        ]
        thaw_of = {id(by_name[name]): i for i, thaw in enumerate(order.thaws) for name in thaw.parameters}
        self._norms: list[list[nn.Module]] = [[] for _ in order.thaws]
        for norm, neighbour in norms:
            # one whose layer the user froze altogether is left as the user set it
            if not train_batch_norm and norm.training and id(neighbour) in thaw_of:
                self._norms[thaw_of[id(neighbour)]].append(norm)
        self._still: set[int] = set()
        self._frozen: set[int] = set()
        self._begun: int | None = None

    def freeze(self, begun: int) -> None:
        """Let the first ``begun`` thaws train and keep the others still."""
        self._begun = begun
        for index, parameters in enumerate(self._parameters):
            for parameter in parameters:
                if index >= begun:
                    parameter.grad = None
                    if self.without_backward and parameter.requires_grad:
                        self._frozen.add(id(parameter))
                        parameter.requires_grad_(False)
                elif id(parameter) in self._frozen:
                    self._frozen.discard(id(parameter))
                    parameter.requires_grad_(True)
        for norm in (norm for norms in self._norms[:begun] for norm in norms if id(norm) in self._still):
            norm.training = True
            self._still.discard(id(norm))
        self.set_modes()

    @property
    def holds(self) -> bool:
        """Whether anything has been frozen yet."""
        return self._begun is not None

    def hold_all(self, parameters: Iterable[nn.Parameter], begun: int) -> bool:
        """Whether none of these is in the first ``begun`` thaws."""
        still = {id(parameter) for thaw in self._parameters[begun:] for parameter in thaw}
        return all(id(parameter) in still for parameter in parameters)

    def set_modes(self) -> None:
        """Put the batch norms of frozen layers into evaluation mode, which a ``train()`` of the module ends."""
        for norm in (norm for norms in self._norms[self._begun :] for norm in norms):
            norm.training = False
            self._still.add(id(norm))

    def drop_gradients(self) -> None:
        """Forget the gradients of frozen parameters: the optimizer passes them over."""
        for parameters in self._parameters[self._begun :]:
            for parameter in parameters:
                parameter.grad = None

    def restore(self) -> None:
        """Give the model back as the user had prepared it."""
        self.freeze(len(self._parameters))


def _trainable(module: nn.Module) -> set[str]:
    return {name for name, parameter in parameters_by_name(module).items() if parameter.requires_grad}


def _batch_norms(module: nn.Module) -> Iterator[tuple[nn.Module, nn.Parameter | None]]:
    """Every module with running statistics, and the parameter that decides its layer: its own, else the one before."""
    before: nn.Parameter | None = None
    for child in module.modules():
        own = list(child.parameters(recurse=False))
        if own:
            before = own[0]
        if getattr(child, "running_mean", None) is not None:
            yield child, before
