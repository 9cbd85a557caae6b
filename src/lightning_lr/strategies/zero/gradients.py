"""Gradients that a module or a callback uses under ZeRO: whole where DDP has them, and an error everywhere else.

The engine keeps the gradients in pieces over the ranks, and ``parameter.grad`` is ``None``. Clipping, noise or a logged
norm that a user writes then does nothing, in silence. Here ``parameter.grad`` of what is trained is answered by
:class:`Gradients` while a fit runs: from the end of an update's last backward to its step (``on_after_backward``,
``on_before_optimizer_step``, ``configure_gradient_clipping``) it is the whole gradient, averaged over the ranks, and
what has become of it goes back to the pieces. Anywhere else reading it is an error that names the reader, as is
replacing it. That needs one all-reduce and one whole gradient per rank, so it is done only where such a hook exists.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.strategies.zero import engine as zero_engine

HOOKS = ("on_after_backward", "on_before_optimizer_step", "configure_gradient_clipping")
"""Where a gradient is whole, in Lightning's order."""

_OURS = ("lightning.", "pytorch_lightning.", "lightning_lr.")
_REAL: Any = Tensor.grad
_watched: dict[int, Gradients] = {}
"""By the ``id`` of a parameter, which its :class:`Gradients` keeps alive."""


def users_hooks(trainer: Trainer, module: LightningModule) -> list[str]:
    """The hooks of the module and its callbacks, other than Lightning's and this package's, that may use gradients."""
    return [
        f"{type(owner).__name__}.{hook}"
        for owner in (module, *trainer.callbacks)  # type: ignore[attr-defined]
        for hook in HOOKS
        if not _is_ours(owner, hook)
    ]


def _is_ours(owner: object, hook: str) -> bool:
    method = vars(owner).get(hook) or getattr(type(owner), hook, None)
    return method is None or str(getattr(method, "__module__", "lightning.")).startswith(_OURS)


class Gradients:
    """The gradients of one engine's parameters, as the module and its callbacks see them.

    Args:
        caller: names the strategy.
        optimizer: the client optimizer, before the engine replaces the parameters in its groups.
    """

    def __init__(self, caller: str, optimizer: Optimizer) -> None:
        self._caller = caller
        self._optimizer = optimizer
        self._groups = [list(group["params"]) for group in optimizer.param_groups]
        self._parameters = [p for group in self._groups for p in group if p.requires_grad]
        self._names: dict[int, str] = {}
        self._engine: Any = None
        self._gathered = False
        self._whole: dict[int, Tensor] | None = None
        self._flats: list[list[Any]] = []
        self._working = False
        self._begun = False
        self._pending = False
        self._left: set[int] = set()
        """Parameters whose gradient the engine has dropped with an update, and the module has not."""
        self.norm: float | None = None
        """Norm of the last update's gradient before it was clipped here; ``None`` where the engine clips."""

    # ------------------------------------------------------------------ as long as a fit
    def attach(self, engine: Any, gathered: bool) -> None:
        """Answer for the parameters of an engine.

        Args:
            engine: made with the optimizer.
            gathered: whether the hooks get whole gradients, the same on all ranks.
        """
        self._engine, self._gathered = engine, gathered
        self._names = {id(parameter): name for name, parameter in engine.module.named_parameters()}
        if not _watched:
            nn.Parameter.grad = property(_get, _set, _delete)  # type: ignore[assignment]
        _watched.update((id(parameter), self) for parameter in self._parameters)

    def detach(self) -> None:
        """Leave the parameters to themselves."""
        self._restore_groups()
        self._whole = None
        for parameter in self._parameters:
            _watched.pop(id(parameter), None)
        if not _watched and "grad" in vars(nn.Parameter):
            del nn.Parameter.grad
        self._parameters, self._groups, self._engine = [], [], None

    # ------------------------------------------------------------------ in the course of an update
    @contextmanager
    def backward(self, ends_update: bool) -> Iterator[None]:
        """Around the engine's backward of a micro-batch.

        Raises:
            MisconfigurationException: where DDP would add the gradient to that of the last update.
        """
        left = next((p for p in self._parameters if id(p) in self._left), None)
        if left is not None:
            raise MisconfigurationException(
                f"{self._caller}: nothing has dropped the gradient of {self._names.get(id(left), 'a parameter')} since "
                "the last update, so that DDP would add the next one to it, and the engine drops it with each update; "
                "let optimizer_zero_grad call optimizer.zero_grad(), accumulate by accumulate_grad_batches, or use "
                "strategy='ddp'"
            )
        self._begun = self._working = self._pending = True
        try:
            yield
        finally:
            self._working = False
        if ends_update:
            self.norm = None
            zero_engine.set_clip_norm(self._engine, 0.0)  # until clip() is called for this update
            if self._gathered:
                self._gather()

    def clip(self, limit: float, by_value: bool) -> None:
        """What Lightning's ``clip_gradients`` does: clip to a norm of the whole gradient, or each element."""
        if limit <= 0:
            return
        if self._whole is None:
            if by_value:
                bound = limit * zero_engine.loss_scale(self._engine)
                for _, _, piece in zero_engine.gradient_pieces(self._engine):
                    piece.clamp_(-bound, bound)
            else:
                zero_engine.set_clip_norm(self._engine, limit)
        elif by_value:
            torch.nn.utils.clip_grad_value_(self._parameters, limit)
        else:
            norm = float(torch.nn.utils.clip_grad_norm_(self._parameters, limit))
            self.norm = norm if self.norm is None else self.norm

    def give_back(self) -> None:
        """Before the engine's step: give it what the gradients have become."""
        if self._whole is not None:
            scale = zero_engine.loss_scale(self._engine)
            for parameter, start, piece in zero_engine.gradient_pieces(self._engine):
                whole = self._whole[id(parameter)].flatten()
                new = (whole[start : start + piece.numel()] * scale).to(piece)
                if not torch.equal(new, piece):
                    piece.copy_(new)
            self._whole = None
            self._restore_groups()
        self._pending = False
        self._left = {id(parameter) for parameter in self._parameters}

    def zero_grad(self, set_to_none: bool = True) -> None:
        """The client optimizer's ``zero_grad``: before an update's first backward the engine's, later as of torch.

        Raises:
            MisconfigurationException: where gradients are dropped that the engine has in shards, or would update with.
        """
        if not self._pending:
            self._left.clear()
            self._engine.optimizer.zero_grad(set_to_none)
            return
        if self._whole is None or set_to_none:
            raise self._refusal("drops", self._parameters[0], sys._getframe(1))
        for whole in self._whole.values():
            whole.zero_()

    def _gather(self) -> None:
        scale = zero_engine.loss_scale(self._engine)
        shapes = [tuple(getattr(parameter, "ds_shape", parameter.shape)) for parameter in self._parameters]
        sizes = [torch.Size(shape).numel() for shape in shapes]
        flat = torch.zeros(sum(sizes), dtype=torch.float32, device=self._engine.device)
        wholes = {id(p): whole for p, whole in zip(self._parameters, torch.split(flat, sizes), strict=True)}
        for parameter, start, piece in zero_engine.gradient_pieces(self._engine):
            wholes[id(parameter)][start : start + piece.numel()].copy_(piece)
        zero_engine.sum_over_ranks(self._engine, flat)
        flat.div_(scale)
        self._whole = {id(p): wholes[id(p)].view(shape) for p, shape in zip(self._parameters, shapes, strict=True)}
        groups = self._optimizer.param_groups
        self._flats = [group["params"] for group in groups]
        for group, parameters in zip(groups, self._groups, strict=True):
            group["params"] = parameters  # so that a hook finds them by its optimizer, too

    def _restore_groups(self) -> None:
        for group, flats in zip(self._optimizer.param_groups, self._flats, strict=False):
            group["params"] = flats
        self._flats = []

    # ------------------------------------------------------------------ parameter.grad
    def read(self, parameter: Tensor, frame: FrameType) -> Tensor | None:
        if self._working or not self._begun:
            return _REAL.__get__(parameter)  # type: ignore[no-any-return]
        if self._whole is not None:
            return self._whole[id(parameter)]
        zeroes = frame.f_code.co_name == "zero_grad"
        if not self._pending and zeroes:
            self._left.discard(id(parameter))
            return None
        raise self._refusal("drops" if zeroes else "reads", parameter, frame)

    def write(self, parameter: Tensor, value: Tensor | None, frame: FrameType) -> None:
        if self._working or not self._begun:
            _REAL.__set__(parameter, value)
        elif self._whole is not None and value is not None:
            if value.shape != self._whole[id(parameter)].shape:
                raise RuntimeError(
                    f"assigned grad has data of a different size: {tuple(value.shape)} for "
                    f"{self._names.get(id(parameter))} of {tuple(self._whole[id(parameter)].shape)}"
                )
            self._whole[id(parameter)] = value.detach()
        elif value is not None or self._pending:
            raise self._refusal("drops" if value is None else "replaces", parameter, frame)
        else:
            self._left.discard(id(parameter))

    def _refusal(self, does: str, parameter: Tensor, frame: FrameType) -> MisconfigurationException:
        name = self._names.get(id(parameter), "a parameter")
        if self._whole is not None:
            why = (
                "and the engine updates all parameters at once, also those without a gradient; multiply it by 0 "
                "(p.grad.zero_()) where a zero gradient will do, or use strategy='ddp'"
            )
        elif self._pending and not self._engine.is_gradient_accumulation_boundary():
            why = (
                "between two micro-batches of an update, where ZeRO has it in shards; do it after the last one "
                "(on_before_optimizer_step), or use strategy='ddp'"
            )
        elif self._pending:
            why = (
                "which ZeRO keeps in shards; to gather it before every update, at the cost of a whole gradient per "
                "rank, pass ZeROStrategy(gradients_in_hooks=True), or use strategy='ddp'"
            )
        else:
            why = (
                "which the engine drops with the update; do it in on_before_optimizer_step or "
                "configure_gradient_clipping, where it is whole, or use strategy='ddp'"
            )
        return MisconfigurationException(f"{self._caller}: {_reader(frame)} {does} the gradient of {name}, {why}")


# ---------------------------------------------------------------------- torch.nn.Parameter.grad while a fit runs
def _get(parameter: Tensor) -> Tensor | None:
    owner, frame = _watched.get(id(parameter)), sys._getframe(1)
    if owner is None or _looks_for_itself(frame):
        return _REAL.__get__(parameter)  # type: ignore[no-any-return]
    return owner.read(parameter, frame)


def _set(parameter: Tensor, value: Tensor | None) -> None:
    owner, frame = _watched.get(id(parameter)), sys._getframe(1)
    if owner is None or _looks_for_itself(frame):
        _REAL.__set__(parameter, value)
    else:
        owner.write(parameter, value, frame)


def _delete(parameter: Tensor) -> None:
    owner, frame = _watched.get(id(parameter)), sys._getframe(1)
    if owner is None or _looks_for_itself(frame):
        _REAL.__delete__(parameter)
    else:
        owner.write(parameter, None, frame)


def _looks_for_itself(frame: FrameType | None) -> bool:
    """Whether DeepSpeed, torch or this package reads an attribute for its own ends, as ``Module.to`` does."""
    if frame is None:
        return True
    name = str(frame.f_globals.get("__name__", ""))
    if name.startswith(("deepspeed.", "lightning_lr.")):
        return True
    if not name.startswith("torch."):
        return False
    if name.startswith(("torch.nn.utils.", "torch.optim.", "torch.amp.")) or frame.f_code.co_name == "zero_grad":
        return str((frame.f_back or frame).f_globals.get("__name__", "")).startswith("deepspeed.")
    return True


def _reader(frame: FrameType) -> str:
    """Who reads: the first that is not torch's or Lightning's."""
    user: FrameType | None = frame
    while user is not None and str(user.f_globals.get("__name__", "")).startswith(("torch.", "lightning.")):
        user = user.f_back
    user = user or frame
    code = user.f_code
    return f"{getattr(code, 'co_qualname', code.co_name)} ({code.co_filename}:{user.f_lineno})"
