"""A block's forward, replaced on the one instance: names, parameters and state dicts stay, and it is undone exactly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from lightning_lr.activations.blocks import Candidate
from lightning_lr.activations.segment import replaying
from lightning_lr.patching import Override, override_on_instance

CallBlock = Callable[["BlockForward", tuple[Any, ...], dict[str, Any]], Any]


class BlockForward(Override):
    """Stands in a block's ``forward`` until :meth:`undo`.

    Under ``torch.compile`` of the network, where the hooks of a segment cannot follow, an outermost block becomes one
    region of torch's own checkpoint, which the compiler knows.

    Args:
        candidate: the block.
        call: gets the block's calls while gradients are recorded; everything else goes to the block directly.
        preserve_batch_norm: whether batch norms in it update their statistics once.
    """

    def __init__(self, candidate: Candidate, call: CallBlock, preserve_batch_norm: bool) -> None:
        module = candidate.module
        self.candidate = candidate
        self.original: Callable[..., Any] = module.forward
        super().__init__(module, "forward", self.original)
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm)] if preserve_batch_norm else []
        self.modules = list(module.modules())
        self._call = call
        self._outermost = candidate.level == 0
        self._undo = override_on_instance(module, "forward", self)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return self.original(*args, **kwargs)
        if torch.compiler.is_compiling():
            if self._outermost:
                return checkpoint(self.original, *args, use_reentrant=False, **kwargs)
            return self.original(*args, **kwargs)
        if replaying():
            return self.original(*args, **kwargs)
        return self._call(self, args, kwargs)

    def undo(self) -> None:
        """Give the block its own forward back."""
        self._undo()
