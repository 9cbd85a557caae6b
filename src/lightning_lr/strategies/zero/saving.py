"""Lightning's ``DeepSpeedStrategy`` with checkpoints that are written whole or not at all, see ``atomic_directory``.

Every file of a checkpoint carries the stamp of its save, see ``shard_stamps``.
"""

from __future__ import annotations

import secrets
from pathlib import Path
from typing import Any

from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_lr.strategies.zero import atomic_directory
from lightning_lr.strategies.zero import engine as zero_engine
from lightning_lr.strategies.zero.shard_stamps import stamp


class AtomicCheckpoint(DeepSpeedStrategy):
    """Writes a checkpoint's folder under a temporary name, and renames it when every process is done."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any | None = None
    ) -> None:
        """As Lightning's, but a process that is killed before the folder is whole leaves the one that was there.

        Raises:
            MisconfigurationException: where there is no engine to save.
        """
        where, save = self.broadcast((str(filepath), secrets.token_hex(8)))
        path, step = Path(where), int(checkpoint.get("global_step", 0))
        with zero_engine.stamping(self.deepspeed_engine, stamp(save, step, self.global_rank, self.world_size)):
            self._write(checkpoint, path, storage_options)

    def _write(self, checkpoint: dict[str, Any], path: Path, storage_options: Any | None) -> None:
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
