"""How Lightning's loop reaches the engine: the precision plugin that ``ZeROStrategy`` puts in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule
from lightning.pytorch.plugins.precision import DeepSpeedPrecision
from torch import Tensor

from lightning_lr import lightning_internals as internals
from lightning_lr.strategies.zero import engine as zero_engine


class ZeROPrecision(DeepSpeedPrecision):
    """The engine's backward and step, with Lightning as the one who says where an update ends."""

    def backward(  # type: ignore[override]
        self, tensor: Tensor, model: LightningModule, optimizer: Any, *args: Any, **kwargs: Any
    ) -> None:
        engine = model.trainer.model
        zero_engine.backward(engine, tensor, internals.update_ends(model.trainer), *args, **kwargs)

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Any, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        loss = closure()
        self._after_closure(model, optimizer)
        if loss is None:
            raise MisconfigurationException(
                "ZeROStrategy: training_step returned None for the last micro-batch of an update, and the other ranks "
                "wait for its gradients; return a loss (times 0 to leave a batch out)"
            )
        if zero_engine.step(model.trainer.model, **kwargs):
            model.trainer.strategy.update_made()  # type: ignore[attr-defined]
        return loss
