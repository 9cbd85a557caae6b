"""What stands beside what: the parts, each with its closed form, and a run that is held against the product of two.

A part is one of our callbacks, strategies or optimizers, or one of Lightning's own callbacks (and its strategy for
FSDP2). Every pair with at least one of ours either trains right or is refused before training by an error that names
both. `REFUSED` lists the refused ones; `test_composition.py` runs them all, and `python -m benchmarks.composition`
prints the table.

A strategy over several devices joins by one more `Part`, with `joins` and what it refuses. Its pairs are trained by two
processes, of one group for all of them: the closed forms hold there as well, and what has none (the noise scale, the
weights themselves) is what it is under plain DDP.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BackboneFinetuning,
    BatchSizeFinder,
    EarlyStopping,
    GradientAccumulationScheduler,
    LearningRateFinder,
    LearningRateMonitor,
    ModelCheckpoint,
    StochasticWeightAveraging,
)
from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.strategies import Strategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ExponentialLR
from torch.optim.swa_utils import SWALR, get_ema_avg_fn
from torch.utils.data import DataLoader, DistributedSampler

from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointedDDPStrategy,
    CheckpointedStrategy,
    CheckpointPolicy,
    Constant,
    Cosine,
    CriticalBatchSize,
    GhostBatchNorm,
    GradientNoiseScale,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    LearningRateSearch,
    NormalizedWeightDecay,
    StepRamp,
)
from lightning_lr.batch_size import GradientNoiseEstimator
from lightning_lr.callbacks.base import MethodCallback, members_of
from lightning_lr.optim import LAMB, LARS
from lightning_lr.strategies import consolidate
from tests.support.rounding import rounding, rounding_after
from tests.support.toy import data, quiet
from tests.support.two_processes import WORLD, ddp, fsdp2, shard
from tests.support.zero_runs import assembled, whole, zero

try:
    from lightning.pytorch.callbacks import WeightAveraging
except ImportError:  # it came with Lightning 2.6
    WeightAveraging = None
TRIALS = 1 if WeightAveraging is None else 2
"""Until a `BatchSizeFinder` that starts at 2 has found `FOUND`: before 2.6 it doubled once more after the last."""

SAMPLES, EPOCHS, BATCH = 48, 3, 8
FOUND = 4
"""What the batch size finder comes to."""
DECAY = 0.9
"""Of the module's own scheduler, per update."""
SWA_FROM = 1
"""Epoch (0-based) from which SWA averages."""


# ---------------------------------------------------------------------- the user's side
class Net(LightningModule):
    """A backbone with batch norm and a head; what finders, fine-tuning and ghost batch norm ask of a module."""

    def __init__(self, make_optimizer: Callable[[list[nn.Parameter], float], Optimizer], devices: int = 1) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            # no bias: batch norm takes it away, so that its gradient is rounding, of which LAMB makes whole steps
            self.backbone = nn.Sequential(nn.Linear(6, 16, bias=False), nn.BatchNorm1d(16), nn.Tanh())
            self.head = nn.Linear(16, 1)
        self.lr, self.batch_size = 0.01, BATCH // devices
        self.groups: list[list[str]] = []
        """Names of the parameters in each group, where the optimizer itself does not have them (ZeRO)."""
        self._make_optimizer, self._devices = make_optimizer, devices

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self.head(self.backbone(x)), y)
        self.log("train_loss", loss)
        return loss

    def configure_optimizers(self) -> Optimizer:
        optimizer = self._make_optimizer([p for p in self.parameters() if p.requires_grad], self.lr)
        names = {parameter: name for name, parameter in self.named_parameters()}
        self.groups = [[names[p] for p in group["params"]] for group in optimizer.param_groups]
        return optimizer

    def groups_of(self, optimizer: Optimizer) -> list[tuple[dict[str, Any], str]]:
        """Each parameter's group and name."""
        names = {parameter: name for name, parameter in self.named_parameters()}
        known = all(p in names for group in optimizer.param_groups for p in group["params"])
        if not known or not any(group["params"] for group in optimizer.param_groups):
            return [(g, name) for g, own in zip(optimizer.param_groups, self.groups, strict=True) for name in own]
        return [(group, names[p]) for group in optimizer.param_groups for p in group["params"]]

    def train_dataloader(self) -> DataLoader[Any]:
        """Several devices deal 0, 2, 4 .. and 1, 3, 5 .., so that the global batches are those of one."""
        sampler = DistributedSampler(data(SAMPLES), shuffle=False) if self._devices > 1 else None
        return DataLoader(data(SAMPLES), batch_size=self.batch_size, sampler=sampler)


class ShardedNet(Net):
    """FSDP2, as Lightning asks for it: the module shards itself."""

    def configure_model(self) -> None:
        shard(self, self.backbone, self.head, self)


class ScheduledNet(Net):
    """With an LR scheduler of its own, stepped after every update."""

    def configure_optimizers(self) -> Any:
        optimizer = super().configure_optimizers()
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": ExponentialLR(optimizer, DECAY), "interval": "step"},
        }


class Memory(Logger):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[tuple[int, dict[str, float]]] = []

    name = "memory"
    version = "0"

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        self.rows.append((step or 0, dict(metrics)))

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        pass


# ---------------------------------------------------------------------- what is recorded
@dataclass(frozen=True)
class At:
    """An update: its epoch, the samples before it and in it."""

    epoch: int
    before: int
    size: int

    @property
    def end(self) -> int:
        return self.before + self.size


class Recorder(Callback):
    """What every update really used, read from the optimizer and the batches alone."""

    def __init__(self) -> None:
        self.path: list[At] = []
        self.lr: list[dict[str, float]] = []
        self.decay: list[dict[str, float]] = []
        self.weights: list[dict[str, Tensor]] = []
        self.final: dict[str, Tensor] = {}
        self.hyper: list[dict[str, float]] = []
        self.seen: list[Any] = []
        self.averaged: dict[str, Tensor] = {}
        self.noise = GradientNoiseEstimator(0.95)
        self._samples = self._before = 0
        self._micro: list[tuple[int, list[Tensor | None]]] = []
        self._hook: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, Net)

        def record(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            groups = pl_module.groups_of(optimizer)
            self.path.append(At(trainer.current_epoch, self._before, self._samples))
            self.lr.append({name: float(group["lr"]) for group, name in groups})
            self.decay.append({name: float(group.get("weight_decay", 0)) for group, name in groups})
            self.hyper.append(self._hypergradient(trainer, groups))
            self._before, self._samples = self._before + self._samples, 0

        self._hook = trainer.optimizers[0].register_step_post_hook(record)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._samples += len(batch[0]) * trainer.world_size
        if trainer.current_epoch == EPOCHS and not self.averaged:  # the epoch that SWA adds
            self.averaged = _weights(pl_module)
        self.seen.append(type(pl_module.backbone[1]).__name__)
        if trainer.world_size > 1:
            return
        first = not self._micro  # what is in p.grad then is the last update's, and will be zeroed
        grads = [p.grad.clone() if p.grad is not None and not first else None for p in pl_module.parameters()]
        self._micro.append((len(batch[0]), grads))

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The noise scale of one device, from what accumulated in ``p.grad`` at each micro-batch."""
        if trainer.world_size > 1:
            return
        parts, micro = [*self._micro, (0, [p.grad for p in pl_module.parameters()])], []
        for (size, before), (_, after) in pairwise(parts):
            kept = [(a, b) for a, b in zip(after, before, strict=True) if a is not None]
            share = [a - b if b is not None else a for a, b in kept]
            micro.append((size, float(sum((len(self._micro) * s).square().sum() for s in share))))
        self._micro = []
        if len(micro) > 1 and trainer.current_epoch < EPOCHS:
            total = sum(size for size, _ in micro)
            small = sum(norm for _, norm in micro) / len(micro)
            big = float(sum(p.grad.square().sum() for p in pl_module.parameters() if p.grad is not None))
            self.noise.update(small, big, round(total / len(micro)), total)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if len(self.weights) < len(self.path):
            self.weights.append(_weights(pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.final = _weights(pl_module)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()

    @staticmethod
    def _hypergradient(trainer: Trainer, groups: list[tuple[dict[str, Any], str]]) -> dict[str, float]:
        found = [m for m in members_of(trainer) if isinstance(m, HypergradientDescent)]
        if not found or found[0]._run is None:
            return {}
        writer = found[0]._run.writer
        index = {id(group): i for i, group in enumerate(writer.optimizer.param_groups)}
        return {name: writer.factors(index[id(group)])["hypergradient"] for group, name in groups}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    """All of them, whole on every rank."""
    with whole(module):
        return {name: assembled(p.detach()).clone() for name, p in module.named_parameters()}


@dataclass
class Outcome:
    """A run that came to its end."""

    module: Net
    trainer: Trainer
    callbacks: list[Callback]
    recorded: Recorder
    parts: tuple[Part, ...]
    folder: Path
    lr: float
    """What the module's optimizer was made with, or what a finder put into it."""
    logger: Memory

    @property
    def path(self) -> list[At]:
        return self.recorded.path

    def the(self, kind: type[Any]) -> Any:
        return next(callback for callback in self.callbacks if isinstance(callback, kind))

    def has(self, name: str) -> bool:
        return any(part.name == name for part in self.parts)


# ---------------------------------------------------------------------- parts
Factor = Callable[[Outcome, int, str], float]


def one(run: Outcome, update: int, name: str) -> float:
    return 1.0


@dataclass(frozen=True)
class Part:
    """One thing that a Trainer can be given.

    Args:
        name: as it is imported.
        kind: which part of the table.
        make: the callbacks.
        factor: closed form of its factor on the lr of a parameter at an update, without the package.
        optimizer: makes the module's optimizer.
        needs: the optimizer that it cannot do without, where a pair does not bring one.
        strategy: of the Trainer, on one device.
        joins: Trainer arguments of a strategy over several devices, which join a running process group.
        net: the module as a strategy asks for it.
        sizes: batch of each update in an epoch.
        accumulates: "needs" two micro-batches per update, or "claims" to decide about them.
        check: what else it has done.
        epochs: after how many the run ends.
        scheduled: closed form of what it does to the lr in the manner of a scheduler: kept when we have left.
    """

    name: str
    kind: str
    make: Callable[[Path], list[Callback]] = lambda folder: []
    factor: Factor = one
    optimizer: Callable[[list[nn.Parameter], float], Optimizer] | None = None
    needs: str | None = None
    strategy: Callable[[], Strategy] | None = None
    joins: Callable[[], dict[str, Any]] | None = None
    net: type[Net] | None = None
    sizes: Callable[[int], list[int]] | None = None
    accumulates: str = ""
    check: Callable[[Outcome], None] = lambda run: None
    epochs: int = EPOCHS
    scheduled: Factor | None = None
    setting: str = field(default="", compare=False)


def _progress(run: Outcome, update: int) -> tuple[float, float]:
    at = run.path[update]
    return at.before / (SAMPLES * EPOCHS), at.size / (SAMPLES * EPOCHS)


def _cosine(run: Outcome, update: int, name: str) -> float:
    progress, width = _progress(run, update)
    if progress < 0.25:
        return min(1.0, (progress + width) / 0.25)
    return 0.1 + 0.9 * (1 + math.cos(math.pi * (progress - 0.25) / 0.75)) / 2


def _climb(run: Outcome, update: int, name: str) -> float:
    return min(1.0, sum(_progress(run, update)) / 0.5)


def _scaling(run: Outcome, update: int, name: str) -> float:
    k = run.path[0].size / 2
    return 1 + (k - 1) * min(1.0, run.path[update].end / SAMPLES)


def _warmup(run: Outcome, update: int, name: str) -> float:
    return _warmup_at(run, update, decays=True)


def _warmup_then_constant(run: Outcome, update: int, name: str) -> float:
    return _warmup_at(run, update, decays=False)


def _warmup_at(run: Outcome, update: int, decays: bool) -> float:
    """From 0.02 to 0.08 over half the run without a switch before (it would have to be certain), then from min_lr."""
    switch = next((at.end for at in run.path if at.end >= SAMPLES * EPOCHS / 2), math.inf) / (SAMPLES * EPOCHS)
    progress, _ = _progress(run, update)
    if progress < switch:
        return min(0.08, 0.02 * 4 ** (2 * progress)) / run.lr
    return 0.02 * ((1 + math.cos(math.pi * (progress - switch) / (1 - switch))) / 2 if decays else 1.0) / run.lr


def _searched(run: Outcome, update: int, name: str) -> float:
    """The race has one rate to choose from, and leaves nothing but the choice."""
    return 0.02 * _cosine(run, update, name) / run.lr


def _layerwise(run: Outcome, update: int, name: str) -> float:
    return 0.5 if name.startswith("backbone") else 1.0


def _hyper(run: Outcome, update: int, name: str) -> float:
    return run.recorded.hyper[update][name]


def _hyper_learns(run: Outcome) -> None:
    seen = {value for update in run.recorded.hyper for value in update.values()}
    assert len(seen) > 2, "the factor moves"
    assert all(0.5 <= value <= 2 for value in seen)


def _noise_is_measured(run: Outcome) -> None:
    found = run.the(GradientNoiseScale).estimator
    if run.trainer.world_size > 1:  # held against DDP's, see `like_ddp`
        assert found.updates > 0
        return
    assert found.updates == run.recorded.noise.updates > 0
    assert math.isclose(found._squared_gradient, run.recorded.noise._squared_gradient, rel_tol=1e-3, abs_tol=1e-6)
    assert math.isclose(found._variance, run.recorded.noise._variance, rel_tol=1e-3, abs_tol=1e-6)


def _thaws(run: Outcome) -> None:
    before, weights = dict(Net(run.module._make_optimizer).named_parameters()), run.recorded.weights
    for name in ("backbone.0.weight", "head.weight"):
        for update, at in enumerate(run.path):
            if run.has("WeightAveraging") or run.has("StochasticWeightAveraging"):
                continue
            moved = not torch.equal(weights[update][name], before[name])
            assert moved == (at.epoch > 0 or name.startswith("head")), (name, update)


def _decays_weights(run: Outcome) -> None:
    for update, at in enumerate(run.path):
        if at.epoch == EPOCHS:  # StochasticWeightAveraging's, for the statistics of batch norm: nothing is updated
            continue
        size = max(other.size for other in run.path if other.epoch == at.epoch)
        wanted = 0.05 * math.sqrt(size / (SAMPLES * EPOCHS)) / run.lr
        for name, found in run.recorded.decay[update].items():
            base = math.prod(part.factor(run, update, name) for part in run.parts if part.name in OF_THE_BASE)
            exempt = run.has("LayerwiseLRDecay") and (name.endswith("bias") or name.startswith("backbone.1"))
            assert math.isclose(found, 0.0 if exempt else wanted / base, rel_tol=1e-9), (name, update)


OF_THE_BASE = ("LayerwiseLRDecay", "LearningRateScaling", "HypergradientDescent")


def _ghosts(run: Outcome) -> None:
    assert set(run.recorded.seen) <= {"GhostBatchNorm1d", "_GhostBatchNorm1d"}, set(run.recorded.seen)


def _ramped(epoch: int) -> list[int]:
    return [[8] * 6, [16] * 3, [32, 16]][epoch]


def _swa(run: Outcome, update: int, name: str) -> float:
    """torch's own SWALR, stepped once per epoch."""
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=run.lr)
    epoch, scheduler = run.path[update].epoch, None
    for now in range(epoch + 1):
        if now == SWA_FROM:
            optimizer.param_groups[0]["initial_lr"] = 0.002
            scheduler = SWALR(optimizer, 0.002, anneal_epochs=2, anneal_strategy="linear")
        if now < epoch and scheduler is not None:
            optimizer.step()
            scheduler.step()
    return float(optimizer.param_groups[0]["lr"]) / run.lr


def _swa_averages(run: Outcome) -> None:
    """The mean of the weights at the beginnings of the epochs from SWA_FROM on.

    Looked at before the pass for batch norm's statistics: at the end of that, Lightning 2.6.6 makes one update more,
    with the gradient of the last one (also without us).
    """
    ends = [i for i, at in enumerate(run.path) if i + 1 == len(run.path) or run.path[i + 1].epoch > at.epoch]
    for name, parameter in run.recorded.averaged.items():
        mean = torch.stack([run.recorded.weights[ends[epoch - 1]][name] for epoch in range(SWA_FROM, EPOCHS)]).mean(0)
        assert torch.allclose(parameter, mean, rtol=0, atol=rounding(2 * EPOCHS)), name


def _ema(run: Outcome) -> None:
    for name, parameter in run.recorded.final.items():
        average = run.recorded.weights[0][name]
        for weights in run.recorded.weights[1:]:
            average = 0.9 * average + 0.1 * weights[name]
        assert torch.allclose(parameter, average, rtol=0, atol=rounding(3 * len(run.recorded.weights))), name


def _backbone(run: Outcome, update: int, name: str) -> float:
    return 0.1 * 2 ** (run.path[update].epoch - 1) if name.startswith("backbone.0") else 1.0


def _found_lr(run: Outcome) -> None:
    suggestion = run.the(LearningRateFinder).optimal_lr.suggestion()
    assert run.module.lr == suggestion != 0.01


def _measured(run: Outcome) -> None:
    (result,) = run.the(CriticalBatchSize).results
    assert result.trials or result.warning


def _monitors(run: Outcome) -> None:
    if run.has("HypergradientDescent"):  # known at the end of the backward alone
        return
    for update, lrs in enumerate(run.recorded.lr):
        rows = [row for step, row in run.logger.rows if step == update and any(k.startswith("lr-") for k in row)]
        logged = {value for row in rows for key, value in row.items() if key.startswith("lr-")}
        assert sorted(logged) == sorted(set(lrs.values())), update


def _saves(run: Outcome) -> None:
    file = run.folder / "last.ckpt"
    if file.is_dir():  # of an engine
        plain = run.folder / f"plain-{run.trainer.global_rank}.ckpt"
        consolidate(file, plain)
        file = plain
    saved = torch.load(file, weights_only=True)
    groups = saved["optimizer_states"][0]["param_groups"]
    assert all(math.isclose(group["lr"], run.lr, rel_tol=1e-12) for group in groups)
    for name, weights in run.recorded.weights[-1].items():
        assert torch.equal(saved["state_dict"][name], weights)


_ALL = CheckpointPolicy("every_block", modules=["backbone", "head"])


def _checkpoints(run: Outcome) -> None:
    assert "forward" not in vars(run.module.backbone)


def _sgd(parameters: list[nn.Parameter], lr: float) -> Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


def _adamw(parameters: list[nn.Parameter], lr: float) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.1)


def _adamp(parameters: list[nn.Parameter], lr: float) -> Optimizer:
    from pytorch_optimizer import AdamP

    return AdamP(parameters, lr=lr, weight_decay=0.1)


def _search_arguments() -> LearningRateSearch:
    return LearningRateSearch(Cosine(warmup=0.25, floor=0.1), 0.02, 0.02 * (1 + 1e-14), budget=1.0)


def _warmup_arguments(**more: Any) -> AdaptiveWarmup:
    return AdaptiveWarmup(0.02, 0.08, confidence=1 - 1e-12, patience=1, lr_scale=1e-9, **more)


RAMP: dict[str, Any] = {"schedule": StepRamp([1, 2], factor=2), "max_batch_size": 32, "max_micro_batch_size": 8}

OURS = [
    Part("LearningRateSchedule", "ours", lambda _: [LearningRateSchedule(Cosine(warmup=0.25, floor=0.1))], _cosine),
    Part("LearningRateScaling", "ours", lambda _: [LearningRateScaling(2, warmup_epochs=1)], _scaling),
    Part("BatchSizeRamp", "ours", lambda _: [BatchSizeRamp(**RAMP)], sizes=_ramped, accumulates="claims"),
    Part("GhostBatchNorm", "ours", lambda _: [GhostBatchNorm(4)], check=_ghosts),
    Part("GradientNoiseScale", "ours", lambda _: [GradientNoiseScale()], accumulates="needs", check=_noise_is_measured),
    Part("AdaptiveWarmup", "ours", lambda _: [_warmup_arguments()], _warmup),
    Part("LearningRateSearch", "ours", lambda _: [_search_arguments()], _searched),
    Part("CriticalBatchSize", "ours", lambda _: [CriticalBatchSize(at=(0.3,), budget=1.0)], check=_measured),
    Part("LayerwiseLRDecay", "ours", lambda _: [LayerwiseLRDecay(0.5, layers=["backbone", "head"])], _layerwise),
    Part("GradualUnfreezing", "ours", lambda _: [GradualUnfreezing(layers=["backbone", "head"])], check=_thaws),
    Part(
        "HypergradientDescent",
        "ours",
        lambda _: [HypergradientDescent(0.02, rule="multiplicative", bounds=(0.5, 2))],
        _hyper,
        check=_hyper_learns,
    ),
    Part(
        "NormalizedWeightDecay",
        "ours",
        lambda _: [NormalizedWeightDecay(0.05)],
        needs="AdamW",
        check=_decays_weights,
    ),
    Part("ActivationCompression", "ours", lambda _: [ActivationCompression(8, group_size=16)]),
    Part(
        "CheckpointedStrategy",
        "strategy",
        strategy=lambda: CheckpointedStrategy(_ALL),
        check=_checkpoints,
    ),
    Part(
        "CheckpointedDDPStrategy",
        "strategy",
        joins=lambda: ddp(partial(CheckpointedDDPStrategy, _ALL)),
        check=_checkpoints,
    ),
    Part("ZeROStrategy(stage=1)", "strategy", joins=lambda: zero(1)),
    Part("ZeROStrategy(stage=2)", "strategy", joins=lambda: zero(2)),
    Part("ZeROStrategy(stage=3)", "strategy", joins=lambda: zero(3)),
    Part("LARS", "optimizer", optimizer=lambda ps, lr: LARS(ps, lr=lr, weight_decay=1e-4, trust_coefficient=0.1)),
    Part("LAMB", "optimizer", optimizer=lambda ps, lr: LAMB(ps, lr=lr)),
    Part("AdamP", "optimizer", optimizer=_adamp),
    Part("AdamW", "optimizer", optimizer=_adamw),
    Part("SGD", "optimizer", optimizer=_sgd),
]  # fmt: skip

LIGHTNINGS = [
    Part(
        "StochasticWeightAveraging",
        "lightning",
        lambda _: [StochasticWeightAveraging(0.002, SWA_FROM + 1, annealing_epochs=2, annealing_strategy="linear")],
        _swa,
        scheduled=lambda run, update, name: _swa(run, len(run.path) - 1, name),
        check=_swa_averages,
    ),
    Part("WeightAveraging", "lightning", lambda _: [WeightAveraging(avg_fn=get_ema_avg_fn(0.9))], check=_ema),
    Part(
        "LearningRateFinder",
        "lightning",
        lambda _: [LearningRateFinder(1e-3, 0.1, num_training_steps=16, early_stop_threshold=None)],
        check=_found_lr,
    ),
    Part(
        "BatchSizeFinder",
        "lightning",
        lambda _: [BatchSizeFinder(init_val=2, max_trials=TRIALS, steps_per_trial=1)],
        sizes=lambda epoch: [FOUND] * (SAMPLES // FOUND),
    ),
    Part(
        "BackboneFinetuning",
        "lightning",
        lambda _: [BackboneFinetuning(unfreeze_backbone_at_epoch=1)],
        _backbone,
        scheduled=_backbone,
    ),
    Part(
        "EarlyStopping",
        "lightning",
        lambda _: [EarlyStopping("train_loss", stopping_threshold=1e9, check_on_train_epoch_end=True)],
        epochs=1,
    ),
    Part(
        "ModelCheckpoint",
        "lightning",
        lambda folder: [ModelCheckpoint(folder, filename="last", every_n_train_steps=1, enable_version_counter=False)],
        check=_saves,
    ),
    Part(
        "GradientAccumulationScheduler",
        "lightning",
        lambda _: [GradientAccumulationScheduler({1: 2})],
        sizes=lambda epoch: [8] * 6 if epoch == 0 else [16] * 3,
        accumulates="claims",
    ),
    Part("LearningRateMonitor", "lightning", lambda _: [LearningRateMonitor("step")], check=_monitors),
    Part("ModelParallelStrategy", "strategy", joins=fsdp2, net=ShardedNet),
]  # fmt: skip
PARTS = OURS + LIGHTNINGS
DDP = Part("DDPStrategy", "strategy", joins=ddp)
"""Not in the table: what the strategies over several devices are held against."""


def part(name: str) -> Part:
    return next(part for part in [*PARTS, DDP] if part.name == name)


WARM_UP_ALONE = Part(
    "LearningRateSchedule",
    "ours",
    lambda _: [LearningRateSchedule(Constant(warmup=0.5))],
    _climb,
    setting="a warm-up alone",
)
WARM_UP_TO_CONSTANT = Part(
    "AdaptiveWarmup", "ours", lambda _: [_warmup_arguments(decay=Constant())], _warmup_then_constant, setting="no decay"
)
RAMP_AFTER_WARM_UP = Part(
    "BatchSizeRamp",
    "ours",
    lambda _: [BatchSizeRamp(**RAMP, begin="after_warmup")],
    # the switch is after 72 samples, in the middle of epoch 1, whose milestone takes effect there
    sizes=lambda epoch: [[8] * 6, [8, 8, 8, 16, 8], [32, 16]][epoch],
    accumulates="claims",
    setting='begin="after_warmup"',
)
OTHERWISE = [
    (WARM_UP_ALONE, part("BatchSizeRamp")),
    (WARM_UP_ALONE, part("StochasticWeightAveraging")),
    (RAMP_AFTER_WARM_UP, WARM_UP_TO_CONSTANT),
]
"""Other settings of pairs that are refused in the usual ones; these train right."""

REFUSED = {
    ("LearningRateSchedule", "BatchSizeRamp"): "both lower the learning rate over the run",
    ("LearningRateSchedule", "AdaptiveWarmup"): "both lower the learning rate over the run",
    ("LearningRateSchedule", "LearningRateSearch"): "both lower the learning rate over the run|would distort the curve",
    ("LearningRateScaling", "LearningRateSearch"): "would scale what the search finds",
    ("BatchSizeRamp", "LearningRateSearch"): "both lower the learning rate over the run",
    ("AdaptiveWarmup", "LearningRateSearch"): "both lower the learning rate over the run|finds the learning rate, too",
    ("LearningRateSearch", "NormalizedWeightDecay"): "divides by the base learning rate|chooses the base learning rate",
    ("LearningRateSearch", "StochasticWeightAveraging"): "both decide about the learning rate at the end",
    ("LearningRateSearch", "LearningRateFinder"): "both find the learning rate",
    ("LearningRateScaling", "AdaptiveWarmup"): "would scale what the warm-up finds",
    ("BatchSizeRamp", "AdaptiveWarmup"): "set begin='after_warmup'|set decay=Constant",
    ("AdaptiveWarmup", "NormalizedWeightDecay"): "chooses the base learning rate during the run",
    ("NormalizedWeightDecay", "LARS"): "use one that does, for example torch.optim.AdamW or Muon",
    ("NormalizedWeightDecay", "LAMB"): "use one that does, for example torch.optim.AdamW or Muon",
    ("NormalizedWeightDecay", "SGD"): "use one that does, for example torch.optim.AdamW or Muon",
    ("LearningRateSchedule", "StochasticWeightAveraging"): "learning rate of its own .* a curve that only warms up",
    ("BatchSizeRamp", "StochasticWeightAveraging"): "both decide about the learning rate at the end",
    ("AdaptiveWarmup", "StochasticWeightAveraging"): "both decide about the learning rate at the end",
    ("HypergradientDescent", "StochasticWeightAveraging"): "both decide about the learning rate at the end",
    ("LayerwiseLRDecay", "BackboneFinetuning"): "as a group without a layer",
    ("GradualUnfreezing", "BackboneFinetuning"): "both decide which layers are frozen",
    ("NormalizedWeightDecay", "BackboneFinetuning"): "adds a group during the run",
    ("BatchSizeRamp", "GradientAccumulationScheduler"): "both decide about accumulation",
    ("BatchSizeRamp", "BatchSizeFinder"): 'set max_micro_batch_size="auto"',
    ("LearningRateScaling", "LearningRateFinder"): "must not be scaled to it again",
    ("AdaptiveWarmup", "LearningRateFinder"): "both find the learning rate",
    **{
        (f"ZeROStrategy(stage={stage})", name): reason
        for stage in (1, 2, 3)
        for name, reason in {
            "AdamP": "looks at a tensor's shape or norm, or at all tensors at once",
            "StochasticWeightAveraging": "the engine trains copies of them in shards",
            "WeightAveraging": "which the engine does not save",
            "BackboneFinetuning": "which the engine does not train",
            "BatchSizeFinder": "a batch that one process finds",
        }.items()
    },
    **{
        ("GradualUnfreezing", f"ZeROStrategy(stage={stage})"): "keeps gradients and parameters in flat buffers"
        for stage in (1, 2, 3)
    },
    ("ActivationCompression", "ZeROStrategy(stage=3)"): "gathered ones would be taken for activations",
    ("ActivationCompression", "ModelParallelStrategy"): "gathered ones would be taken for activations",
    ("GradientNoiseScale", "ModelParallelStrategy"): "averages gradients over the devices before they come",
    ("CheckpointedDDPStrategy", "BackboneFinetuning"): "DDP averages no gradient of a parameter that was frozen",
    ("CheckpointedDDPStrategy", "BatchSizeFinder"): "a batch that one process finds",
}
"""Pairs that are refused, with what the error says. Every other pair has to train right."""


OTHERS = {
    (
        "AdamP",
        "ModelParallelStrategy",
    ): "a rank raises in AdamP's first step on a DTensor, the others wait for it"
}
"""Pairs of which neither is ours, and that do not work; nothing of ours is asked that could refuse them."""


def pairs() -> list[tuple[Part, Part]]:
    """All pairs of which at least one is ours; a Trainer has one optimizer and one strategy."""
    return [
        (first, second)
        for index, first in enumerate(OURS)
        for second in PARTS[index + 1 :]
        if not (first.kind == second.kind and first.kind in ("optimizer", "strategy"))
        and (first.name, second.name) not in OTHERS
    ]


def spread(pair: Sequence[Part]) -> bool:
    """Whether it takes several processes."""
    return any(part.joins is not None for part in pair)


# ---------------------------------------------------------------------- the module's own scheduler
def _own(run: Outcome, update: int, name: str) -> float:
    return DECAY**update


def _own_at_the_end(run: Outcome, update: int, name: str) -> float:
    return DECAY ** len(run.path)


CHOICES = ("refuse", "replace", "multiply")
"""What `module_scheduler` can be."""
_SCHEDULER = Part("the module's own scheduler", "module", factor=_own, net=ScheduledNet, scheduled=_own_at_the_end)


def chooses(parts: Sequence[Part]) -> bool:
    """Whether one of the callbacks has the argument `module_scheduler`; the others multiply what a scheduler sets."""
    return any("module_scheduler" in vars(callback) for p in parts for callback in p.make(Path()))


def beside_a_scheduler(parts: Sequence[Part], choice: str) -> tuple[Part, ...]:
    """The same parts with `module_scheduler` set, and a module that has a scheduler."""

    def chosen(p: Part) -> Part:
        def make(folder: Path) -> list[Callback]:
            made = p.make(folder)
            for callback in made:
                if "module_scheduler" in vars(callback):
                    callback.module_scheduler = choice  # type: ignore[attr-defined]
            return made

        return replace(p, make=make)

    scheduler = replace(_SCHEDULER, factor=one) if choice == "replace" else _SCHEDULER
    return (*(chosen(p) for p in parts), scheduler)


def scheduled() -> list[tuple[Part, ...]]:
    """Our callbacks, each alone and each two that train right together."""
    ours = [p for p in OURS if p.kind == "ours"]
    together = [pair for pair in pairs() if pair[0] in ours and pair[1] in ours]
    return [*((p,) for p in ours), *(pair for pair in together if (pair[0].name, pair[1].name) not in REFUSED)]


# ---------------------------------------------------------------------- a run
def train(parts: Sequence[Part], folder: Path, recorder: Recorder | None = None) -> Outcome:
    """Fit the net with these parts; whatever none of them brings is plain."""
    brings = [p.optimizer for p in parts if p.optimizer is not None]
    needs = [part(p.needs).optimizer for p in parts if p.needs is not None]
    devices = WORLD if spread(parts) else 1
    net = next((p.net for p in parts if p.net is not None), Net)
    module = net((*brings, *needs, _sgd)[0], devices)  # type: ignore[arg-type]
    accumulation = {p.accumulates for p in parts}
    arguments: dict[str, Any] = {}
    if "needs" in accumulation and "claims" not in accumulation:
        found = any(p.name == "BatchSizeFinder" for p in parts)
        arguments["accumulate_grad_batches"] = 2
        module.batch_size = BATCH if found else BATCH // 2 // devices
    for p in parts:
        if p.strategy is not None:
            arguments["strategy"] = p.strategy()
        if p.joins is not None:
            arguments |= p.joins()
    recorder, logger = recorder or Recorder(), Memory()
    callbacks = [callback for p in parts for callback in p.make(folder)]
    saves = any(isinstance(callback, ModelCheckpoint) for callback in callbacks)
    trainer = Trainer(
        **quiet(callbacks=[*callbacks, recorder], max_epochs=EPOCHS, logger=logger, log_every_n_steps=1,
                enable_checkpointing=saves, default_root_dir=str(folder), **arguments)
    )  # fmt: skip
    trainer.fit(module)
    return Outcome(module, trainer, callbacks, recorder, tuple(parts), folder, module.lr, logger)


def check(run: Outcome) -> None:
    """Whether a run is what its parts say: the product of their factors, their batches, and nothing left behind."""
    _check_path(run)
    for update, lrs in enumerate(run.recorded.lr):
        for name, lr in lrs.items():
            wanted = run.lr * math.prod(p.factor(run, update, name) for p in run.parts)
            assert math.isclose(lr, wanted, rel_tol=1e-9), f"update {update}, {name}: lr {lr}, not {wanted}"
    for p in run.parts:
        p.check(run)
    for name, weights in run.recorded.final.items():
        assert torch.isfinite(weights).all(), name
    began = dict(Net(_sgd).named_parameters())
    assert any(not torch.equal(w, began[name]) for name, w in run.recorded.final.items()), "something was learned"
    _check_given_back(run)


def _check_path(run: Outcome) -> None:
    deciding = [p.sizes for p in run.parts if p.sizes is not None]
    epochs = min(p.epochs for p in run.parts)
    sizes = deciding[0] if deciding else lambda epoch: [BATCH] * (SAMPLES // BATCH)
    if run.has("BatchSizeFinder") and run.has("GradientNoiseScale"):
        sizes = lambda epoch: [2 * FOUND] * (SAMPLES // FOUND // 2)  # noqa: E731
    wanted, before = [], 0
    for epoch in range(epochs):
        for size in sizes(epoch):
            wanted.append(At(epoch, before, size))
            before += size
    if run.has("StochasticWeightAveraging"):  # see _swa_averages
        wanted.append(At(EPOCHS, before, SAMPLES))
    assert run.path == wanted, [at.size for at in run.path]


def _check_given_back(run: Outcome) -> None:
    scheduled = [p.scheduled for p in run.parts if p.scheduled is not None]
    for group, name in run.module.groups_of(run.trainer.optimizers[0]):
        factors = [value(run, len(run.path) - 1, name) for value in scheduled]
        assert math.isclose(group["lr"], run.lr * math.prod(factors), rel_tol=1e-12), name
    ours = any(isinstance(callback, MethodCallback) for callback in run.callbacks)
    left = {"lr_scheduler_step", "configure_optimizers", "configure_gradient_clipping", "training_step", "log"}
    assert not (left & set(vars(run.module))) or not ours
    assert "process_dataloader" not in vars(run.trainer.strategy)
    assert "train_step_context" not in vars(run.trainer.precision_plugin)
    assert type(run.module.backbone[1]) is nn.BatchNorm1d
    assert all(p.requires_grad for p in run.module.parameters()) or run.has("BackboneFinetuning")


# ---------------------------------------------------------------------- several processes
Facts = dict[str, Any]
Case = tuple[str, Callable[[], Any]]


def key(parts: Sequence[Part]) -> str:
    return "-".join(p.name + (f" ({p.setting})" if p.setting else "") for p in parts)


def _train_and_check(names: Sequence[str], folder: str) -> Facts | tuple[str, bool]:
    """On one rank: what a pair did, which its closed forms have agreed to; or why it is refused, and whether late."""
    recorder, place = Recorder(), Path(folder, "-".join(names))
    place.mkdir(exist_ok=True, parents=True)
    try:
        run = train([part(name) for name in names], place, recorder)
    except MisconfigurationException as refusal:
        return str(refusal), bool(recorder.path)
    check(run)
    noise = [c.estimator for c in run.callbacks if isinstance(c, GradientNoiseScale)]
    return {
        "path": [(at.epoch, at.before, at.size) for at in run.path],
        "lr": recorder.lr,
        "decay": recorder.decay,
        "weights": [*recorder.weights, recorder.final],
        "noise": [value for n in noise for value in (n._squared_gradient, n._variance)],
        "module lr": run.module.lr,
    }


def cases(wanted: Sequence[Sequence[Part]], folder: Path) -> list[Case]:
    """The runs of pairs (or parts alone) that take several processes, and those of DDP that they are held against."""
    names = dict.fromkeys(tuple(p.name for p in parts) for parts in wanted)
    others = dict.fromkeys(tuple(p.name for p in beside_ddp(parts)) for parts in wanted)
    return [("-".join(n), partial(_train_and_check, n, str(folder))) for n in dict.fromkeys([*others, *names])]


def beside_ddp(parts: Sequence[Part]) -> tuple[Part, ...]:
    """The same with DDP in the strategy's place."""
    return tuple(DDP if p.joins is not None else p for p in parts)


ROUNDS_OTHERWISE = ("ActivationCompression", "CheckpointedDDPStrategy")
"""Checkpointing leaves other tensors to round, the inputs of segments: the weights are DDP's up to that (0.0032 was
measured, where training moves them by up to 0.22)."""


OF_TWO_SAMPLES = 0.01 / (1 - 0.9) / math.sqrt(1e-5)
"""Where two devices accumulate, batch norm has two samples and gives back the difference of terms up to 1/sqrt(its eps)
times as large, whose roundings go into the weights with the learning rate over 1 - momentum."""


def like_ddp(parts: Sequence[Part], ranks: Sequence[Facts], under_ddp: Sequence[Facts]) -> None:
    """Whether both ranks have trained what DDP trains, up to the order in which sums are made."""
    for got, wanted in zip(ranks, under_ddp, strict=True):
        assert isinstance(got, dict), got
        assert isinstance(wanted, dict), wanted
        assert got["path"] == wanted["path"]
        rounded = rounding_after(len(got["path"]))
        within = rounded * OF_TWO_SAMPLES if any(p.accumulates == "needs" for p in parts) else rounded
        within = 0.01 if tuple(p.name for p in parts) == ROUNDS_OTHERWISE else within
        for kind in ("lr", "decay"):
            for mine, theirs in zip(got[kind], wanted[kind], strict=True):
                assert mine.keys() == theirs.keys()
                assert all(math.isclose(mine[name], theirs[name], rel_tol=rounded) for name in mine), kind
        for mine, theirs in zip(got["weights"], wanted["weights"], strict=True):
            for name in mine:
                assert torch.allclose(mine[name], theirs[name], rtol=0, atol=within), name
        assert all(math.isclose(a, b, rel_tol=1e-3) for a, b in zip(got["noise"], wanted["noise"], strict=True))
        assert math.isclose(got["module lr"], wanted["module lr"], rel_tol=1e-3)
        first = ranks[0]["weights"][-1]
        assert all(torch.equal(weights, first[name]) for name, weights in got["weights"][-1].items()), "ranks agree"
