"""How Lightning's loop reaches the engine: the precision plugin that ``ZeROStrategy`` puts in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from lightning.pytorch.utilities import GradClipAlgorithmType
from torch import Tensor

from lightning_lr import lightning_internals as internals
from lightning_lr.strategies.zero import changed_weights
from lightning_lr.strategies.zero import engine as zero_engine
from lightning_lr.strategies.zero.gradients import Gradients


class ZeROPrecision(DeepSpeedPrecision):
    """The engine's backward and step; Lightning decides where an update ends."""

    _clipping: Gradients | None = None

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        ends_update = internals.update_ends(model.trainer)
        with self._gradients(model).backward(ends_update):
            zero_engine.backward(model.trainer.model, tensor, ends_update, *args, **kwargs)
        if ends_update:
            changed_weights.gather_small(model.trainer.model)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        loss = closure()
        self._clipping = self._gradients(model)
        try:
            self._after_closure(model, optimizer)
        finally:
            self._clipping = None
        if loss is None:
            raise MisconfigurationException(
                "ZeROStrategy: training_step returned None for the last micro-batch of an update, and the other ranks "
                "wait for its gradients; return a loss (times 0 to leave a batch out)"
            )
        self._gradients(model).give_back()
        model.trainer.strategy.take_over_weights()  # type: ignore[attr-defined]
        if zero_engine.step(model.trainer.model, **kwargs):
            model.trainer.strategy.update_made()  # type: ignore[attr-defined]
        return loss

    def clip_gradients(
        self,
        optimizer: Any,
        clip_val: int | float = 0.0,
        gradient_clip_algorithm: GradClipAlgorithmType = GradClipAlgorithmType.NORM,
    ) -> None:
        """What ``Trainer(gradient_clip_val=...)`` or a module's ``self.clip_gradients(...)`` wants for this update."""
        if self._clipping is None:
            raise MisconfigurationException(
                "ZeROStrategy: clip_gradients was called outside configure_gradient_clipping and "
                "on_before_optimizer_step, where the engine has no whole gradient; call it in one of those"
            )
        self._clipping.clip(float(clip_val), gradient_clip_algorithm == GradClipAlgorithmType.VALUE)

    @staticmethod
    def _gradients(model: LightningModule) -> Gradients:
        gradients: Gradients = model.trainer.strategy.gradients  # type: ignore[attr-defined]
        return gradients
