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
from lightning_lr.base_rates import base_learning_rates
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.callbacks.compatibility import Clash
from lightning_lr.callbacks.optimizers import Indices
from lightning_lr.callbacks.run import CountSamples
from lightning_lr.learning_rate import HyperparameterWriter
from lightning_lr.progress import RunShape, SampleClock

LIST_PER_GROUP = re.compile(r"xpected \d+ (lr_lambdas|min_lrs|values for)|the same length as optimizer\.param_groups")
"""The error of torch's schedulers for a list that has not one value for each group."""


class LayerwiseLRDecay(MethodCallback):
    r"""Multiply the learning rate of each layer by :math:`\text{decay}^d`, :math:`d` its distance from the top.

    The module stays as it is. While its ``configure_optimizers`` runs, every optimizer that it constructs gets its
    groups split by layer, so that a scheduler built in the same method sees the final groups; options of existing
    groups are kept. The factor is a multiplier over what the scheduler sets, so no scheduler can erase it. Layers are
    found as by :func:`lightning_lr.layers.discover`; the table of layers is printed once.

    Args:
        decay: factor from one layer to the one below, in (0, 1]; 1 splits by weight decay alone.
        layers: ``"auto"``, or regular expressions from input to head: the first that matches a parameter's name wins.
        head_factor: factor on the learning rate of the top layer.
        no_weight_decay: which parameters get none: ``"auto"`` for biases, norms, tokens, position embeddings and
            biases, ``A_log`` and ``D`` of state-space layers, and what the model's ``no_weight_decay()`` lists;
            ``"vectors"`` for biases, norms and what is listed alone; or regular expressions;
            an empty list for no exemption. The table shows what is exempt and why.
        count_samples: samples in a batch, where neither the sampler nor the batch's first tensor shows it.
        optimizers: indices of the optimizers to act on, in the order of ``configure_optimizers``; ``None`` for all. To
            tell them apart ``configure_optimizers`` is called twice, and the others keep their groups as they are.

    Raises:
        MisconfigurationException: where layers cannot be found, nothing can be trained, or a
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
        no_weight_decay: Literal["auto", "vectors"] | Sequence[str] = "auto",
        count_samples: CountSamples | None = None,
        optimizers: Indices = None,
    ) -> None:
        super().__init__(count_samples, optimizers)
        methods.check_factors("LayerwiseLRDecay", decay, head_factor)
        methods.check_names("LayerwiseLRDecay", layers=layers, no_weight_decay=no_weight_decay)
        self.decay = float(decay)
        self.layers = layers
        self.head_factor = float(head_factor)
        self.no_weight_decay = no_weight_decay
        self._splitter: methods.SplittersByOptimizer | None = None
        self._made: dict[Optimizer, list[dict[str, Any]]] = {}
        """The groups as they were made: a sharding engine puts its own tensors in the place of the parameters."""
        self._structure: dict[int, list[list[Any]]] = {}
        """Name and size of each group, by the place of the optimizer."""
        self._saved_structure: dict[int, list[list[Any]]] = {}
        self._table = ""
        self._factors: dict[int, tuple[float, ...]] = {}
        self._undo: Callable[[], None] | None = None

    def factor(self, clock: SampleClock) -> tuple[float, ...]:
        return next(iter(self._factors.values()))

    def factor_of(self, writer: HyperparameterWriter, clock: SampleClock) -> tuple[float, ...]:
        factors, groups = self._factors[writer.index], writer.optimizer.param_groups
        if len(factors) != len(groups):  # the module has added some during the run
            added = tuple(self._group_factor(group) for group in groups[len(factors) :])
            factors = self._factors[writer.index] = (*factors, *added)
        return factors

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
        tables = []
        for index, optimizer in enumerate(optimizers):
            if not self.acts_on(index):
                continue
            groups = self._made[optimizer]
            parameters = [parameter for group in groups for parameter in group["params"]]
            if not any(parameter.requires_grad for parameter in parameters):
                raise MisconfigurationException(
                    f"LayerwiseLRDecay: all {len(parameters)} parameters of the optimizer are frozen "
                    "(requires_grad=False), so nothing would be trained; unfreeze some layers"
                )
            own = [scheduler for scheduler in schedulers if getattr(scheduler, "optimizer", None) is optimizer]
            table = methods.layer_table(groups, self._group_factor, base_learning_rates(optimizer, own))
            if any(group.get("weight_decay") for group in groups) and self._splitter.exempt_because:
                table += f"\n{self._splitter.exempt_because}"
            tables.append(table if len(optimizers) == 1 else f"optimizer {index}\n{table}")
            self._structure[index] = _structure(groups)
        self._table = "\n".join(tables)
        self._check_resumed()

    def check(self, trainer: Trainer, module: LightningModule) -> None:
        rank_zero_info(f"LayerwiseLRDecay: {self._summary()}")

    def start(self, writer: HyperparameterWriter, shape: RunShape) -> None:
        self._factors[writer.index] = tuple(self._group_factor(group) for group in writer.optimizer.param_groups)

    # ------------------------------------------------------------------ state
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(trainer, pl_module, checkpoint)
        for index, state in enumerate(checkpoint.get("optimizer_states") or []):
            if isinstance(state, dict) and "param_groups" in state:
                self._saved_structure[index] = _structure(state["param_groups"])
        self._check_resumed()

    # ------------------------------------------------------------------ inside
    def _configure(self, module: LightningModule, configure: Callable[[], Any]) -> Any:
        """The module's ``configure_optimizers`` with optimizers whose groups are split."""
        unchosen = self._parameters_unchosen(configure)
        splitters = methods.SplittersByOptimizer(
            module, self.layers, self.decay != 1.0 or self.head_factor != 1.0, self.no_weight_decay, unchosen
        )
        try:
            with methods.groups_split_at_construction(splitters.split):
                returned = configure()
            optimizers, schedulers = internals.configured_optimizers(returned)
            for optimizer in optimizers:
                own = [scheduler for scheduler, _, _ in schedulers if scheduler.optimizer is optimizer]
                methods.split_existing(optimizer, own, splitters.split)
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
        self._splitter = splitters
        self._made = {o: [{**g, "params": list(g["params"])} for g in o.param_groups] for o in optimizers}
        return returned

    def _parameters_unchosen(self, configure: Callable[[], Any]) -> set[int]:
        """Parameters of the optimizers that stay as they are, by a first call whose optimizers are thrown away."""
        if self.optimizers is None:
            return set()
        optimizers, _ = internals.configured_optimizers(configure())
        others = [optimizer for index, optimizer in enumerate(optimizers) if not self.acts_on(index)]
        return {id(parameter) for other in others for group in other.param_groups for parameter in group["params"]}

    def _summary(self) -> str:
        maps = self._splitter.maps if self._splitter else []
        how = "".join(f", {len(found.layers)} layers by {found.how}" for found in maps)
        return f"x {self.decay:g} per layer{how}" + (f"\n{self._table}" if self._table else "")

    def _group_factor(self, group: dict[str, Any]) -> float:
        found = self._splitter.map_of(group) if self._splitter else None
        layer = group.get(methods.LAYER)
        return found.factor(layer, self.decay, self.head_factor) if found and layer is not None else 1.0

    def _check_resumed(self) -> None:
        for index, now in self._structure.items():
            saved = self._saved_structure.get(index)
            if saved is None or saved == now:
                continue
            tokens = (
                "; one from before tokens and position embeddings were exempt resumes with no_weight_decay='vectors'"
                if self.no_weight_decay == "auto" and _by_layer(saved) == _by_layer(now)
                else ""
            )
            raise MisconfigurationException(
                f"LayerwiseLRDecay: the checkpoint's optimizer has {len(saved)} parameter groups "
                f"({_shown(saved)}), this run's has {len(now)} ({_shown(now)}); resume with the layers and "
                f"no_weight_decay of the run that wrote it, or load its weights only{tokens}"
            )

    def _leave(self, trainer: Trainer) -> None:
        super()._leave(trainer)
        self._restore()

    def _restore(self) -> None:
        if self._undo is not None:
            self._undo()
        self._undo = None
        self._splitter = None
        self._made = {}
        self._structure, self._saved_structure, self._factors = {}, {}, {}


def _structure(groups: Sequence[dict[str, Any]]) -> list[list[Any]]:
    """Name and number of parameters of each group."""
    return [[group.get("name"), len(group["params"])] for group in groups]


def _by_layer(structure: Sequence[Sequence[Any]]) -> dict[str, int]:
    """Number of parameters of each layer, with and without weight decay together."""
    sizes: dict[str, int] = {}
    for name, count in structure:
        layer = str(name).removesuffix("/no_decay")
        sizes[layer] = sizes.get(layer, 0) + count
    return sizes


def _shown(structure: Sequence[Sequence[Any]]) -> str:
    some = ", ".join(f"{name or 'unnamed'}: {count}" for name, count in structure[:3])
    return some + (", ..." if len(structure) > 3 else "")
