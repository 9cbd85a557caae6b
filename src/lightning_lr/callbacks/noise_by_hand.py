"""What an update made by hand has added up: for `GradientNoiseScale` under manual optimization."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import WindowContents
from lightning_lr.batch_size.squared_norms import squared_norm
from lightning_lr.patching import override_on_instance

Measured = Callable[[list[float], float], None]
"""Takes the mean over the devices of ``[*WindowContents.sums(), sum of squared norms]``, and the squared norm of g."""


class WindowByHand:
    r"""Follows one optimizer's gradients from the moment that they are dropped to its next step.

    The backwards of one batch (a GAN's real and fake half, two losses of a network) are parts of one micro-batch: their
    gradients are added before a norm is taken. The batches of several ``training_step``\ s whose gradients the module
    accumulates are micro-batches of equal weight c. What c is (1 or 1 / accumulation) cannot be seen and need not be:
    tr(Sigma) and \|G\|^2 both have its square, and their ratio does not. Gradients that the optimizer's ``zero_grad``
    drops without a step, those of another network's loss, count for nothing.

    Args:
        trainer: the Trainer, in ``on_train_start``.
        module: its module.
        index: place of the optimizer among those of ``configure_optimizers``.
        measured: called directly before every measured step, by all ranks.
        measures: whether the next step is measured, by the number of steps before it.
    """

    def __init__(
        self, trainer: Trainer, module: LightningModule, index: int, measured: Measured, measures: Callable[[int], bool]
    ) -> None:
        self._trainer, self._module, self._measured, self._measures = trainer, module, measured, measures
        self._optimizer: Optimizer = trainer.optimizers[index]
        self.steps = 0
        """Steps of the optimizer until now."""
        self.missed = 0
        """Those of which the last backward was not ``manual_backward``, or whose gradient was changed before it."""
        self._size: int | None = None
        self._appeared: dict[Tensor, tuple[Tensor, bool, bool]] = {}
        """Gradients that have appeared and have not been added to the parameter's yet (those of ``autograd.grad`` never
        are), with whether the one there was dropped by hand, and whether it was changed."""
        self._batch: dict[Tensor, Tensor] = {}
        self._squares: dict[Tensor, Tensor] = {}
        self._contents = WindowContents()
        self._big: Tensor | None = None
        self._versions: dict[Tensor, int] = {}
        """Of the gradients after the last backward: what is changed in place since is noticed."""
        self._changed = False
        self._hooked: set[Tensor] = set()
        wrapped = module.optimizers()
        own = wrapped[index] if isinstance(wrapped, list) else wrapped
        self._undo = [
            internals.before_optimizer_step(trainer, self._optimizer, self._before_step),
            *(self._around_zero_grad(owner) for owner in (self._optimizer, own)),
        ]
        self._hook_parameters()

    def detach(self) -> None:
        """Leave the module and its optimizers as they were."""
        for undo in self._undo:
            undo()
        self._undo = []
        self._forget()

    # ------------------------------------------------------------------ in the course of a batch
    def begin_batch(self, samples: int | None) -> None:
        """Another batch of the loader, with its samples on this device."""
        self._close_batch()
        self._size = samples
        self._hook_parameters()

    def after_backward(self) -> None:
        """A ``manual_backward`` has ended: what is in the parameters is over all devices, and not clipped yet."""
        if self._batch:
            gradients = {p: p.grad for p in {**self._squares, **self._batch} if p.grad is not None}
            self._versions = {parameter: gradient._version for parameter, gradient in gradients.items()}
            squared = squared_norm(list(gradients.values()), self._module.device)
            self._big = squared / internals.gradient_scale(self._trainer) ** 2

    def _appears(self, parameter: Tensor, gradient: Tensor) -> None:
        if not self._measures(self.steps):
            return
        dropped = changed = False
        if parameter in self._batch or parameter in self._squares:
            there = parameter.grad
            dropped = there is None or (
                there._version != self._versions.get(parameter, there._version) and not bool(there.any())
            )
            changed = there is not None and there._version != self._versions.get(parameter, there._version)
        own = gradient.detach().to(torch.promote_types(gradient.dtype, torch.float32), copy=True)
        own /= internals.gradient_scale(self._trainer)
        self._appeared[parameter] = own, dropped, changed

    def _add(self, parameter: Tensor) -> None:
        """What has appeared is in the parameter's gradient now."""
        if parameter not in self._appeared:
            return
        own, dropped, changed = self._appeared.pop(parameter)
        if dropped:
            self._forget()
        else:
            self._changed |= changed
        self._big = None
        before = self._batch.get(parameter)
        self._batch[parameter] = own if before is None else before.add_(own)

    def _close_batch(self) -> None:
        if not self._batch:
            return
        for parameter, gradient in self._batch.items():
            squared = squared_norm([gradient], gradient.device)
            before = self._squares.get(parameter)
            self._squares[parameter] = squared if before is None else before + squared
        self._contents.add(self._size or math.nan, weight=1.0)
        self._batch = {}

    def _before_step(self) -> None:
        self._close_batch()
        if self._measures(self.steps) and self._contents.count:
            if self._changed:
                self._big = None
            self.missed += self._big is None
            squares = sum(self._squares.values(), squared_norm([], self._module.device))
            big = squares * math.nan if self._big is None else self._big
            own = squares.new_tensor(self._contents.sums())
            mean = self._trainer.strategy.reduce(torch.cat([own, squares.reshape(1)]), reduce_op="mean")
            *sums, big_sq_norm = torch.cat([mean, big.reshape(1)]).tolist()
            self._measured(sums, big_sq_norm)
        self.steps += 1
        self._forget()

    # ------------------------------------------------------------------ inside
    def _forget(self) -> None:
        self._appeared, self._batch, self._squares, self._contents, self._big = {}, {}, {}, WindowContents(), None
        self._versions, self._changed = {}, False

    def _hook_parameters(self) -> None:
        """See the gradients of the optimizer's parameters; some may have been frozen, or in no group, until now."""
        for group in self._optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.requires_grad and parameter not in self._hooked:
                    self._undo += [
                        parameter.register_hook(partial(self._appears, parameter)).remove,
                        parameter.register_post_accumulate_grad_hook(self._add).remove,
                    ]
                    self._hooked.add(parameter)

    def _around_zero_grad(self, owner: Any) -> Callable[[], None]:
        zero_grad = owner.zero_grad

        def zeroed(*args: Any, **kwargs: Any) -> None:
            zero_grad(*args, **kwargs)
            self._forget()

        return override_on_instance(owner, "zero_grad", zeroed)
