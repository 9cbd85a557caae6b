"""`ActivationCompression`: keep what the backward needs at a few bits."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import Tensor
from torch.optim import Optimizer

from lightning_lr import lightning_internals as internals
from lightning_lr.activations.compression import (
    ActivationCompressor,
    Tally,
    described,
    probe,
    reallocate,
    size_ratio,
    summed,
)
from lightning_lr.activations.compression.settings import CompressionSettings
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.checks import is_list
from lightning_lr.nested import batch_tensors, first_samples
from lightning_lr.panels import MetricPanel
from lightning_lr.progress import RunShape, SampleClock
from lightning_lr.saved_state import INDEX, WHOLE, by, keys, later, optional


class ActivationCompression(MethodCallback):
    r"""Round the activations that wait for the backward to ``bits`` bits, without bias.

    Groups of ``group_size`` numbers share a range of :math:`2^b - 1` steps and are rounded stochastically, so that the
    expected gradient is that of full precision for everything that is linear in the activation; outputs of ReLU keep
    their zeros, masks and indices are kept exactly. The forward is not changed, nor are random numbers. Parameters,
    losses and statistics of norms are never rounded; query and key of fused attention get at least 8 bits.

    It costs time: every activation is packed and unpacked once. Without a GPU it is of use for experiments only.

    Args:
        bits: bits per number: 8, 4 or 2; ``"auto"`` gives each tensor one of these by how much its rounding moves the
            gradient, so that all numbers together have at most ``average_bits``.
        average_bits: for ``"auto"``, from 2 to 8. Two bf16 numbers per group come on top.
        group_size: numbers that share a range, a power of two from 16; a tensor with fewer stays as it is.
        probe_every: for ``"auto"``, updates from one measurement of sensitivities to the next. One takes a forward and,
            for each rounded tensor, a backward of the first ``probe_samples`` samples.
        skip: names of modules, as in ``named_modules``, in which nothing is rounded.
        probe_samples: samples of a micro-batch that the measurement uses.
        seed: of the rounding's noise; ``None`` for that of the run: the one given to ``seed_everything``, else to
            ``torch.manual_seed``. Ranks round differently under one seed, and a resume goes on with its noise.

    Raises:
        ValueError: for settings out of range.
        MisconfigurationException: before training, for a module in ``skip`` that does not exist, for a compiled module,
            and for strategies that shard parameters.

    Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357).
    """

    name = "compression"
    saves: ClassVar = {
        "compression": optional(keys({"forwards": INDEX, "allocation": by(str, INDEX), "seed": later(WHOLE)})),
        "probed_at": WHOLE,
    }
    panels = (
        MetricPanel(
            "compressed\nactivations",
            ("compression/bits", "compression/ratio"),
            units=(" bits, mean of\nwhat is rounded", "x less saved"),
            limits=(0.0, None),
            height=1.8,
        ),
    )

    def __init__(
        self,
        bits: int | str = 4,
        average_bits: float = 4.0,
        group_size: int = 256,
        probe_every: int = 1000,
        skip: Sequence[str] = (),
        probe_samples: int = 8,
        seed: int | None = None,
    ) -> None:
        super().__init__()
        if not (is_list(skip) and all(isinstance(name, str) for name in skip)):
            raise ValueError(f"ActivationCompression: got skip={skip!r}; give a list of module names, or an empty one")
        self.settings = CompressionSettings(
            bits, average_bits, group_size, probe_every, tuple(skip), probe_samples, seed
        )
        self.bits, self.average_bits, self.group_size, self.probe_every = bits, average_bits, group_size, probe_every
        self.skip, self.probe_samples, self.seed = skip, probe_samples, seed
        self._compressor: ActivationCompressor | None = None
        self._state: dict[str, Any] | None = None
        self._batch: list[Tensor] = []
        self._probed_at = -1
        self._sizes_noted = False
        self._update = 0
        self._undo: Any = None
        self._first = False

    @property
    def tally(self) -> Tally | None:
        """What the last micro-batch saved, raw and compressed; None before training and after it."""
        return None if self._compressor is None else self._compressor.tally

    # ------------------------------------------------------------------ what the method defines
    def check_manual(self, trainer: Trainer, module: LightningModule) -> None:
        if self.bits == "auto":
            raise MisconfigurationException(
                "ActivationCompression: got bits='auto', which measures by running training_step without an update, "
                "and under manual optimization the updates are made in it; give bits=8, 4 or 2"
            )

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        caller = type(self).__name__
        compiled = internals.is_compiled(module)
        if compiled is not None:
            raise MisconfigurationException(
                f"{caller}: {compiled} is compiled (torch.compile), where saved tensors are neither seen one by one "
                "nor with what they are saved for; train without torch.compile, or let the compiler save memory "
                "(torch._functorch.config.activation_memory_budget) instead of this callback"
            )
        if not internals.holds_whole_parameters(trainer):
            raise MisconfigurationException(
                f"{caller}: {type(trainer.strategy).__name__} shards parameters, and gathered ones would be taken for "
                "activations; use one device, DDP, or ZeRO stage 1 or 2"
            )
        if self.bits == "auto" and internals.takes_the_iterator(module):
            raise MisconfigurationException(
                f'{caller}: bits="auto" measures on a part of the batch, but training_step takes the iterator '
                "(dataloader_iter); give 8, 4 or 2"
            )
        try:
            self._compressor = self.settings.compressor(module, trainer.global_rank, self._run_seed(trainer))
        except ValueError as error:
            raise MisconfigurationException(f"{caller}: {error}") from error
        if self._state is not None:
            self._go_on_from(self._state)

    def factor(self, clock: SampleClock) -> float:
        return 1.0

    def summary(self, shape: RunShape) -> dict[str, str]:
        auto = isinstance(self.bits, str)
        bits = self.average_bits if isinstance(self.bits, str) else self.bits
        predicted = size_ratio(bits, self.group_size, torch.float32), size_ratio(bits, self.group_size, torch.bfloat16)
        return {
            "activations": f"at {f'8, 4 or 2 bits, {bits:g} on average,' if auto else f'{bits} bits'} in groups of "
            f"{self.group_size}; what is rounded takes 1/{predicted[0]:.2f} of fp32, 1/{predicted[1]:.2f} of bf16"
        }

    def metrics(self, clock: SampleClock, optimizer: Optimizer, lr: list[float]) -> dict[str, float]:
        tally = self.tally
        return {} if tally is None else {"compression/bits": tally.mean_bits, "compression/ratio": tally.ratio}

    def dry_run_context(self, module: LightningModule, batch: Any) -> AbstractContextManager[Any]:
        assert self._compressor is not None
        # the copy has its own names and parameters
        trial = self.settings.compressor(module, self._compressor.rank, self._compressor.seed)
        trial.allocation = self._compressor.allocation
        return trial.compressing(batch_tensors(batch))

    def fixed_on_resume(self, state: Mapping[str, Any], inside_epoch: bool) -> dict[str, str]:
        measured = (state.get("compression") or {}).get("allocation")
        return {"bits": "the bits that were measured for each tensor are in the checkpoint"} if measured else {}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self._first = True
        self._undo = internals.around_training_step(trainer, self._compressing)
        self._sizes_noted = False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self._batch = batch_tensors(batch)
        if self._first and hasattr(trainer.strategy, "watch_apart") and not internals.takes_the_iterator(pl_module):
            # a checkpointed strategy: what is kept depends on its plan, which is made of what is seen without rounding
            trainer.strategy.watch_apart(batch)
        self._first = False
        run = self._run
        if run is None or self._compressor is None:
            return
        self._update = update = run.clock.updates
        if self.bits != "auto":
            return
        if update % self.probe_every == 0 and update != self._probed_at:
            self._probed_at = update
            self._probe(trainer, pl_module, batch, update)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note_sizes()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self._batch = []

    # ------------------------------------------------------------------ state
    def state_dict(self) -> dict[str, Any]:
        if self._compressor is not None:
            self._state = self._compressor.state_dict()
        return {**super().state_dict(), "compression": self._state, "probed_at": self._probed_at}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        self._state, self._probed_at = state_dict["compression"], state_dict["probed_at"]
        if self._compressor is not None and self._state is not None:  # an engine restores after on_fit_start
            self._go_on_from(self._state)

    def start_fresh(self) -> None:
        super().start_fresh()
        self._state, self._probed_at = None, -1

    # ------------------------------------------------------------------ inside
    @staticmethod
    def _run_seed(trainer: Trainer) -> int:
        """The seed of the run on rank 0, which is the one that a checkpoint keeps."""
        given = os.environ.get("PL_GLOBAL_SEED", "")  # where seed_everything leaves it
        return int(trainer.strategy.broadcast(int(given) if given.isdigit() else torch.initial_seed()))

    def _go_on_from(self, state: Mapping[str, Any]) -> None:
        assert self._compressor is not None
        before = state.get("seed", 0)  # 0 was the default when checkpoints had no seed
        self._compressor.load_state_dict({**state, "seed": before if self.seed is None else self.seed})

    def _compressing(self) -> AbstractContextManager[Any]:
        assert self._compressor is not None
        return self._compressor.compressing(self._batch)

    def _probe(self, trainer: Trainer, module: LightningModule, batch: Any, update: int) -> None:
        assert self._compressor is not None
        few = first_samples(batch, self.probe_samples)
        sensitivities = probe(
            self._compressor,
            lambda: internals.detached_training_step(trainer, module, few),
            module.parameters(),
            [*self._batch, *batch_tensors(few)],
        )
        if trainer.world_size > 1:  # one decision for all, made of what all have seen
            everybody: list[Any] = [None] * trainer.world_size
            torch.distributed.all_gather_object(everybody, sensitivities)
            sensitivities = summed(everybody)
        reallocate(self._compressor, sensitivities, self.average_bits)
        self._sizes_noted = False
        if not internals.is_fast_dev_run(trainer):
            spread = Counter(self._compressor.allocation.values())
            each = ", ".join(f"{bits} bits for {count}" for bits, count in sorted(spread.items()))
            rank_zero_info(f"ActivationCompression: measured at update {update:,}; {each} tensors")
        journal = self._run.journal(self.name) if self._run is not None else None
        if journal is not None:
            facts = {name: {"sensitivity": c, "numbers": count} for name, (c, count) in sensitivities.items()}
            journal.append(update, "allocation", bits=dict(self._compressor.allocation), measured=facts)

    def _note_sizes(self) -> None:
        """Write down what the first micro-batch saved, and the first one after each allocation."""
        journal = self._run.journal(self.name) if self._run is not None else None
        tally = self.tally
        if self._sizes_noted or journal is None or tally is None or not tally.held_bytes:
            return
        self._sizes_noted = True
        journal.append(
            self._update,
            "saved",
            plain_bytes=tally.raw_bytes,
            held_bytes=tally.held_bytes,
            codecs=tally.by("codec"),
            modules=tally.by("module"),
            facts={"saved activations": f"{described(tally.by('codec'))}; last counted, of one micro-batch"},
        )

    def _leave(self, trainer: Trainer) -> None:
        if self._undo is not None:
            self._undo()
            self._undo = None
        if self._compressor is not None:
            self._state = self._compressor.state_dict()
            self._compressor = None
        self._batch = []
        super()._leave(trainer)
