"""Lightning's ``DeepSpeedStrategy`` with checkpoints that are written whole or not at all, see ``atomic_directory``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch.nn import Module

from lightning_lr.strategies.zero import atomic_directory
from lightning_lr.strategies.zero import engine as zero_engine


class AtomicCheckpoint(DeepSpeedStrategy):
    """Writes the folder of a checkpoint beside its place, and moves it in when every process is done."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """As Lightning's, but a process that is killed before the folder is whole leaves the one that was there.

        Raises:
            MisconfigurationException: after training, when the engine is gone.
        """
        self._check_engine()
        path = Path(self.broadcast(filepath))
        if zero_engine.writes_later(self.deepspeed_engine):  # and moves nothing: its folder grows in its place
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        moves = self.local_rank == 0 if zero_engine.writes_on_each_node(self.deepspeed_engine) else self.is_global_zero
        if moves:
            atomic_directory.remove(atomic_directory.beside(path))  # of a process that was killed
        self.barrier()
        super().save_checkpoint(checkpoint, atomic_directory.beside(path), storage_options)  # ends with a barrier
        if moves:
            atomic_directory.publish(path)
        self.barrier()

    def remove_checkpoint(self, filepath: str | Path) -> None:
        """As Lightning's, so that a process that is killed leaves no part of it under its name."""
        if self.is_global_zero:
            atomic_directory.remove(Path(filepath))

    def _check_engine(self) -> None:
        if not isinstance(self.model, Module) or self.model is self.lightning_module:
            raise MisconfigurationException(
                f"{type(self).__name__}: a checkpoint is asked for when the engine and its shards are gone, as after "
                "Trainer.fit; save by ModelCheckpoint(save_last=True) or in on_train_end"
            )
