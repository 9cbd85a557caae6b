"""`LayerwiseLRDecay`: a smaller learning rate for each layer further down, whatever the module's optimizer is."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any, Literal

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning_utilities.core.rank_zero import rank_zero_info
from torch.optim import Optimizer

from lightning_lr import layers as methods
from lightning_lr import lightning_internals as internals
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock

LIST_PER_GROUP = re.compile(r"xpected \d+ (lr_lambdas|min_lrs|values for)|the same length as optimizer\.param_groups")
"""What torch's schedulers say about a list that has not one value for each group."""


class LayerwiseLRDecay(MethodCallback):
    r"""Multiply the learning rate of each layer by :math:`\text{decay}^d`, :math:`d` its distance from the top.

    The module stays as it is. While its ``configure_optimizers`` runs, every optimizer that it constructs gets its
    groups split by layer, so that a scheduler built in the same method sees the final groups; options of existing
    groups are kept. The factor is a multiplier over what the scheduler says, so no scheduler can erase it. Layers are
    found as by :func:`lightning_lr.layers.discover`; the table of layers is printed once.

    Args:
        decay: factor from one layer to the one below, in (0, 1]; 1 splits by weight decay alone.
        layers: ``"auto"``, or regular expressions from input to head: the first that matches a parameter's name wins.
        head_factor: factor on the learning rate of the top layer.
        no_weight_decay: which parameters get none: ``"auto"`` for biases, norms, tokens, position embeddings and
            biases, ``A_log`` and ``D`` of state-space layers, and what the model's ``no_weight_decay()`` lists; or
            regular expressions; an empty list for no exemption. The table shows what is exempt and why.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor tells.

    Raises:
        MisconfigurationException: where layers cannot be found, nothing can be trained, there are two optimizers, or a
            scheduler was given a list with one value per group of the module's own.

    Source: Howard & Ruder 2018, arXiv 1801.06146; Clark et al. 2020, arXiv 2003.10555; decay=1 is "no bias decay" of
    He et al. 2019, arXiv 1812.01187.

    Example::

        Trainer(callbacks=[LayerwiseLRDecay(0.8), LearningRateSchedule(SlantedTriangle())])
    """

    name = "layerwise"
    lr_role = "base"
    refuses = (
        Clash(
            BaseFinetuning,
            "it adds the parameters that it unfreezes as a group without a layer, with a learning rate of its own",
            "use GradualUnfreezing, which adds no group",
        ),
    )

    def __init__(
        self,
        decay: float = 0.8,
        layers: Literal["auto"] | Sequence[str] = "auto",
        head_factor: float = 1.0,
        no_weight_decay: Literal["auto"] | Sequence[str] = "auto",
        count_samples: CountSamples | None = None,
    ) -> None:
        super().__init__(count_samples)
        methods.check_factors("LayerwiseLRDecay", decay, head_factor)
        methods.check_names("LayerwiseLRDecay", layers=layers, no_weight_decay=no_weight_decay)
        self.decay = float(decay)
        self.layers = layers
        self.head_factor = float(head_factor)
        self.no_weight_decay = no_weight_decay
        self._splitter: methods.GroupSplitter | None = None
        self._made: dict[Optimizer, list[dict[str, Any]]] = {}
        """The groups as they were made: a sharding engine puts its own tensors in the place of the parameters."""
        self._structure: list[list[Any]] = []
        self._saved_structure: list[list[Any]] | None = None
        self._table = ""
        self._factors: list[float] = []
        self._undo: Callable[[], None] = lambda: None

    def factor(self, clock: SampleClock) -> list[float]:
        return self._factors

    def summary(self, shape: RunShape) -> dict[str, str]:
        return {"layer-wise lr": self._summary()}

    # ------------------------------------------------------------------ hooks, in the Trainer's order
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage != "fit":
            return
        self._restore()
        self._undo = internals.around_configure_optimizers(
            pl_module, lambda configure: self._configure(pl_module, configure)
        )

    def check_optimizers(self, optimizers: Sequence[Optimizer], schedulers: Sequence[Any]) -> None:
        super().check_optimizers(optimizers, schedulers)
        if self._splitter is None:
            raise MisconfigurationException(
                "LayerwiseLRDecay: the optimizer was not made by the module's configure_optimizers (or the method was "
                "replaced after setup), so its groups could not be split; use layerwise_param_groups where it is made"
            )
        groups = self._made[optimizers[0]]
        parameters = [parameter for group in groups for parameter in group["params"]]
        if not any(parameter.requires_grad for parameter in parameters):
            raise MisconfigurationException(
                f"LayerwiseLRDecay: all {len(parameters)} parameters of the optimizer are frozen "
                "(requires_grad=False), so nothing would be trained; unfreeze some layers"
            )
        self._table = methods.layer_table(groups, self._group_factor)
        if any(group.get("weight_decay") for group in groups) and self._splitter.exempt_because:
            self._table += f"\n{self._splitter.exempt_because}"
        self._structure = _structure(groups)
        self._check_resumed()

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        rank_zero_info(f"LayerwiseLRDecay: {self._summary()}")

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self._factors = [self._group_factor(group) for group in writer.optimizer.param_groups]

    # ------------------------------------------------------------------ state
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        states = checkpoint.get("optimizer_states")
        if states and isinstance(states[0], dict) and "param_groups" in states[0]:
            self._saved_structure = _structure(states[0]["param_groups"])
            self._check_resumed()

    # ------------------------------------------------------------------ inside
    def _configure(self, module: LightningModule, configure: Callable[[], Any]) -> Any:
        """The module's ``configure_optimizers`` with optimizers whose groups are split."""
        by_layer = self.decay != 1.0 or self.head_factor != 1.0
        try:
            splitter = methods.GroupSplitter(module, self.layers, by_layer, self.no_weight_decay)
        except ValueError as error:
            raise MisconfigurationException(f"LayerwiseLRDecay: {error}") from error
        try:
            with methods.groups_split_at_construction(splitter.split):
                returned = configure()
            optimizers, schedulers = internals.configured_optimizers(returned)
            for optimizer in optimizers:
                methods.split_existing(optimizer, [scheduler for scheduler, _, _ in schedulers], splitter.split)
        except methods.GroupsError as error:
            raise MisconfigurationException(f"LayerwiseLRDecay: {error}") from error
        except ValueError as error:
            if not LIST_PER_GROUP.search(str(error)):
                raise
            raise MisconfigurationException(
                f"LayerwiseLRDecay: a scheduler was given a list with one value per parameter group ({error}), but "
                "groups are split by layer before it is built; give it one value for all groups (the factors of the "
                "layers apply on top), or use layerwise_param_groups in the module instead of this callback"
            ) from error
        self._splitter = splitter
        self._made = {o: [{**g, "params": list(g["params"])} for g in o.param_groups] for o in optimizers}
        return returned

    def _summary(self) -> str:
        found = self._splitter.map if self._splitter else None
        how = f", {len(found.layers)} layers by {found.how}" if found else ""
        return f"x {self.decay:g} per layer{how}" + (f"\n{self._table}" if self._table else "")

    def _group_factor(self, group: dict[str, Any]) -> float:
        found = self._splitter.map if self._splitter else None
        layer = group.get(methods.LAYER)
        return found.factor(layer, self.decay, self.head_factor) if found and layer is not None else 1.0

    def _check_resumed(self) -> None:
        saved, now = self._saved_structure, self._structure
        if saved and now and saved != now:
            raise MisconfigurationException(
                f"LayerwiseLRDecay: the checkpoint's optimizer has {len(saved)} parameter groups "
                f"({_shown(saved)}), this run's has {len(now)} ({_shown(now)}); resume with the layers and "
                "no_weight_decay of the run that wrote it, or load its weights only"
            )

    def _leave(self, trainer: Trainer) -> None:
        super()._leave(trainer)
        self._restore()

    def _restore(self) -> None:
        self._undo()
        self._undo = lambda: None
        self._splitter = None
        self._made = {}
        self._structure = []
        self._saved_structure = None


def _structure(groups: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Name and number of parameters of each group."""
    return [[group.get("name"), len(group["params"])] for group in groups]


def _shown(structure: Sequence[Sequence[Any]]) -> str:
    some = ", ".join(f"{name or 'unnamed'}: {count}" for name, count in structure[:3])
    return some + (", ..." if len(structure) > 3 else "")
