"""`GhostBatchNorm`: batch norm over parts of a fixed size, whatever the batch."""

from __future__ import annotations

from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_lr import lightning_internals as internals
from lightning_lr.batch_size import convert_ghost_batch_norm, restore_batch_norm
from lightning_lr.callbacks import resume_checks
from lightning_lr.callbacks.pytorch_lightning_check import refuse_mirror, warn_of_mirror
from lightning_lr.saved_state import INDEX, keys


class GhostBatchNorm(Callback):
    """Let every batch norm of the module take its statistics over ghost batches of ``ghost_batch_size`` samples.

    A batch that grows then changes the gradient's noise and not also batch norm's, as the theory behind
    ``BatchSizeRamp`` asks. Layers change their class while ``fit`` runs and nothing else: parameters, buffers, names
    and checkpoints are those of batch norm, and evaluation is batch norm's.

    Args:
        ghost_batch_size: samples in a ghost, at least 2; 128 in Smith et al. 2018.

    Raises:
        MisconfigurationException: at setup, for a module without batch norm, or with ``sync_batchnorm``.

    Source: Hoffer, Hubara & Soudry 2017, arXiv 1705.08741.
    """

    def __init__(self, ghost_batch_size: int = 128) -> None:
        if not isinstance(ghost_batch_size, int) or isinstance(ghost_batch_size, bool) or ghost_batch_size < 2:
            raise ValueError(
                f"GhostBatchNorm: got ghost_batch_size={ghost_batch_size!r}; give a number of samples from 2"
            )
        warn_of_mirror(self)
        self.ghost_batch_size = ghost_batch_size
        self._converted = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        refuse_mirror(self, trainer)
        if stage != "fit":
            return
        if any(isinstance(o, GhostBatchNorm) and o is not self for o in trainer.callbacks):  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "GhostBatchNorm: two of them are attached; a batch norm has ghosts of one size, so keep one"
            )
        try:
            converted = convert_ghost_batch_norm(pl_module, self.ghost_batch_size)
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"GhostBatchNorm: {error}") from error
        if converted == 0:
            raise MisconfigurationException(
                f"GhostBatchNorm: {type(pl_module).__name__} has no batch norm layers (in __init__ or setup); remove "
                "the callback"
            )
        self._converted = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._converted:  # the module's setup or on_fit_start has attached it
            self.setup(trainer, pl_module, "fit")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._converted:
            raise MisconfigurationException(
                "GhostBatchNorm: it was attached when training had begun, where it has no effect; give it to "
                "Trainer(callbacks=[...]), or return it from the module's configure_callbacks"
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._converted = False
        restore_batch_norm(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._converted = False
        restore_batch_norm(pl_module)

    @property
    def state_key(self) -> str:
        """Where the state is in a checkpoint. Two of a kind pass the Trainer's check; :meth:`setup` refuses them."""
        return f"{super().state_key} {id(self)}" if internals.validates_callbacks() else super().state_key

    def state_dict(self) -> dict[str, Any]:
        return {"ghost_batch_size": self.ghost_batch_size}

    def __getstate__(self) -> dict[str, Any]:
        return internals.without_logging(self.__dict__)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        resume_checks.check_state(type(self).__name__, state_dict, keys({"ghost_batch_size": INDEX}))
        resume_checks.log_changed_settings(self, {name: str(value) for name, value in state_dict.items()})
