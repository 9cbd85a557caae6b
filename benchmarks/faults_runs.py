"""The runs that `benchmarks.faults` kills: small, of every method, and the child process that trains one of them.

Ten configurations: some run on one process and on two (DDP on gloo), the two of ZeRO on two. A resumed child has
another seed than the one before, so that what is not in the checkpoint shows. Each child writes down the state that it
begins with before it trains; the uninterrupted one keeps its state at every checkpoint. Data that
:class:`BatchSizeRamp` does not place itself come from a loader with a state (:class:`StatefulLoader`): with a plain
``DataLoader`` Lightning begins an interrupted epoch's data anew, whatever callbacks are attached.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, Strategy
from torch import nn
from torch.utils.data import DataLoader, Sampler, TensorDataset

from examples.classifier import Classifier
from examples.models import ResNet
from lightning_lr import (
    ActivationCompression,
    AdaptiveWarmup,
    BatchSizeRamp,
    CheckpointedDDPStrategy,
    CheckpointedStrategy,
    CheckpointPolicy,
    Constant,
    Cosine,
    CurveRamp,
    GhostBatchNorm,
    GradualUnfreezing,
    HypergradientDescent,
    LayerwiseLRDecay,
    LearningRateScaling,
    LearningRateSchedule,
    NormalizedWeightDecay,
    SlantedTriangle,
    StepRamp,
    ZeROStrategy,
)
from lightning_lr.callbacks.base import MethodCallback
from lightning_lr.optim import LAMB
from lightning_lr.strategies import consolidate
from lightning_lr.strategies.zero import engine as zero_engine

SAVE_EVERY = 3  # updates
LOGS, FINAL, ERRORS, END = "logs", "final.pt", "errors.txt", "end.ckpt"
RESTORED, STATES = "restored.pt", "states.pt"
"""The state that an attempt began with; the uninterrupted run's states by update."""
UNINTERRUPTED = -1
"""The number of the attempt that keeps its state at every checkpoint."""


# ---------------------------------------------------------------------- data
def data(samples: int = 128, shape: tuple[int, ...] = (1, 8, 8), classes: int = 4) -> TensorDataset:
    """Noisy prototypes: learnable, and the loss does not become 0."""
    generator = torch.Generator().manual_seed(11)
    labels = torch.arange(samples) % classes
    prototypes = torch.randn(classes, *shape, generator=generator)
    return TensorDataset(prototypes[labels] + torch.randn(samples, *shape, generator=generator), labels)


class ShuffledSampler(Sampler[int]):
    """Every rank's share of a permutation that depends on the epoch alone; begins where ``skip`` says, once."""

    def __init__(self, size: int, rank: int, world: int) -> None:
        self.size, self.rank, self.world = size, rank, world
        self.epoch = self.skip = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        order = torch.randperm(self.size, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        start, self.skip = self.skip, 0
        return iter(order[self.rank :: self.world][start:])

    def __len__(self) -> int:
        return self.size // self.world


class StatefulLoader(DataLoader[Any]):
    """Tells and takes how many batches of the epoch were given out, which Lightning saves and restores."""

    def __init__(self, dataset: TensorDataset, batch_size: int, rank: int, world: int) -> None:
        super().__init__(dataset, batch_size, sampler=ShuffledSampler(len(dataset), rank, world))
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        sampler = self.sampler
        assert isinstance(sampler, ShuffledSampler)
        self.given = sampler.skip // (self.batch_size or 1)
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.sampler, ShuffledSampler)
        self.sampler.skip = state["given"] * (self.batch_size or 1)


# ---------------------------------------------------------------------- modules
class Net(Classifier):
    """The examples' classifier with an optimizer of the configuration's choice."""

    make_optimizer: Callable[[Any], torch.optim.Optimizer]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())


def perceptron() -> nn.Module:
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs in (64, 16, 16):
        layers += [nn.Linear(inputs, 16), nn.BatchNorm1d(16), nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(16, 4))


def resnet() -> nn.Module:
    return ResNet(depth=8, width=4, stem_stride=1, num_classes=4)


def sgd(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=1e-3)


def adamw(parameters: Any) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=3e-3, weight_decay=0.1)


def lamb(parameters: Any) -> torch.optim.Optimizer:
    return LAMB(parameters, lr=0.02, weight_decay=0.01)


# ---------------------------------------------------------------------- configurations
@dataclass(frozen=True)
class Configuration:
    """What is trained. ``ramps``: the loader is a plain shuffled one, which the ramp takes over and places. ``zero``:
    the stage, under DeepSpeed's engine."""

    callbacks: Callable[[], list[Callback]]
    network: Callable[[], nn.Module] = perceptron
    optimizer: Callable[[Any], torch.optim.Optimizer] = sgd
    ramps: bool = False
    checkpointed: bool = False
    zero: int | None = None
    worlds: tuple[int, ...] = (1,)
    epochs: int = 4
    batch_size: int = 8


CONFIGURATIONS = {
    "ramp and ghost batch norm": Configuration(
        lambda: [BatchSizeRamp(StepRamp([1, 2], factor=2), max_micro_batch_size=16), GhostBatchNorm(4)],
        ramps=True,
        worlds=(1, 2),
    ),
    "adaptive warm-up, ramp after it": Configuration(
        lambda: [
            AdaptiveWarmup(1e-3, 10.0, patience=2, check_every=4, decay=Constant(), restore_best=True),
            BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=32, max_micro_batch_size=16, begin="after_warmup"),
        ],
        ramps=True,
        epochs=6,
    ),
    "hypergradient and schedule": Configuration(
        lambda: [HypergradientDescent(rule="normalized"), LearningRateSchedule(Cosine(warmup=0.1))],
        optimizer=adamw,
        worlds=(1, 2),
    ),
    "layer-wise, unfreezing, slanted triangle": Configuration(
        lambda: [LayerwiseLRDecay(0.7), GradualUnfreezing(), LearningRateSchedule(SlantedTriangle())],
        optimizer=adamw,
        worlds=(1, 2),
        epochs=5,
    ),
    # LAMB has its decay inside the trust ratio, so the normalized decay (which refuses it) goes with AdamW below
    "LAMB, square-root scaling, schedule": Configuration(
        lambda: [LearningRateScaling(4, lr_rule="sqrt", warmup_epochs=1), LearningRateSchedule(Cosine())],
        optimizer=lamb,
    ),
    "AdamW, square-root scaling, normalized decay": Configuration(
        lambda: [
            LearningRateScaling(4, lr_rule="sqrt", warmup_epochs=1),
            NormalizedWeightDecay(0.05),
            LearningRateSchedule(Cosine()),
        ],
        optimizer=adamw,
    ),
    "compression and checkpointing": Configuration(
        lambda: [
            ActivationCompression("auto", group_size=32, probe_every=10),
            LearningRateSchedule(Cosine()),
        ],
        network=resnet,
        checkpointed=True,
        worlds=(1, 2),
        epochs=3,
    ),
    "everything": Configuration(
        lambda: [
            AdaptiveWarmup(1e-4, 0.3, patience=2, check_every=4, restore_best=True, decay=Constant()),
            BatchSizeRamp(CurveRamp(Cosine()), max_batch_size=64, max_micro_batch_size=16, begin="after_warmup"),
            HypergradientDescent(rule="multiplicative", bounds=(0.1, 10)),
            LayerwiseLRDecay(0.9),
            GhostBatchNorm(4),
            ActivationCompression(8, group_size=32),
        ],
        network=resnet,
        optimizer=lamb,
        ramps=True,
        checkpointed=True,
        worlds=(1, 2),
        epochs=4,
    ),
    "ZeRO stage 2, layer-wise, schedule": Configuration(
        lambda: [LayerwiseLRDecay(0.7), LearningRateSchedule(Cosine(warmup=0.1))], optimizer=adamw, zero=2, worlds=(2,)
    ),
    "ZeRO stage 3, layer-wise, ramp": Configuration(
        lambda: [LayerwiseLRDecay(0.7), BatchSizeRamp(StepRamp([1, 2], factor=2), max_micro_batch_size=16)],
        ramps=True,
        zero=3,
        worlds=(2,),
    ),
}


def tasks() -> list[tuple[str, int]]:
    """Configurations and numbers of processes."""
    return [(name, world) for name, configuration in CONFIGURATIONS.items() for world in configuration.worlds]


def import_before_forking() -> None:
    """What the children would each take seconds to import."""
    import gpytorch  # type: ignore[import-untyped]  # noqa: F401

    if importlib.util.find_spec("deepspeed") is not None:
        zero_engine.choose_accelerator()
        import deepspeed  # noqa: F401


# ---------------------------------------------------------------------- the child
class Teller(TorchCheckpointIO):
    """Lightning's way of saving, said aloud before and after."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        self.tell(f"saving {checkpoint['global_step']}")
        super().save_checkpoint(checkpoint, path, storage_options)
        self.tell(f"saved {checkpoint['global_step']}")


class TellingZeRO(ZeROStrategy):
    """Says it too: DeepSpeed writes its folders itself."""

    tell: Callable[[str], None]

    def save_checkpoint(self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None) -> None:
        self.tell(f"saving {checkpoint['global_step']}")
        super().save_checkpoint(checkpoint, filepath, storage_options)
        self.tell(f"saved {checkpoint['global_step']}")


class Progress(Callback):
    """Says where training begins and where it is."""

    def __init__(self, tell: Callable[[str], None]) -> None:
        self.tell = tell

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # before the word, so that no attempt is killed without it
        folder = Path(trainer.default_root_dir)
        trainer.save_checkpoint(folder / "restored.ckpt")
        if trainer.is_global_zero:
            torch.save(state_in(folder / "restored.ckpt"), folder / RESTORED)
        self.tell(f"start {trainer.global_step}")

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.tell(f"update {trainer.global_step}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if isinstance(trainer.strategy, ZeROStrategy):  # whose shards are gone after training
            trainer.save_checkpoint(Path(trainer.default_root_dir, END))


def state_in(checkpoint: Path) -> dict[str, Any]:
    """Weights, optimizer states and our callbacks' states of a checkpoint; the shards of all ranks put together."""
    file = checkpoint
    if checkpoint.is_dir():
        file = checkpoint.with_suffix(".whole.pt")
        consolidate(checkpoint, file)
    state = torch.load(file, weights_only=False)
    if file != checkpoint:
        file.unlink()
    return {
        "weights": state["state_dict"],
        "optimizer": state["optimizer_states"],
        "callbacks": {k: v for k, v in state.get("callbacks", {}).items() if not k.startswith("ModelCheckpoint")},
        "updates": state["global_step"],
    }


class _Attached(LightningEnvironment):
    """The processes exist already, and so does their process group."""

    @property
    def creates_processes_externally(self) -> bool:
        return True


def train(name: str, world: int, rank: int, folder: Path, attempt: int, tell: Callable[[str], None]) -> None:
    """Train a configuration, or go on with it, and write down how it ended."""
    chosen = CONFIGURATIONS[name]
    seed_everything(1 if attempt <= 0 or not list(folder.glob("last*.ckpt")) else 100 + attempt, verbose=False)
    callbacks = [
        *chosen.callbacks(),
        ModelCheckpoint(
            folder,
            filename="{step}",
            every_n_train_steps=SAVE_EVERY,
            save_last=True,
            save_top_k=-1 if attempt == UNINTERRUPTED else 1,
        ),
        Progress(tell),
    ]
    module = Net(chosen.network(), num_classes=4)
    module.make_optimizer = chosen.optimizer
    trainer = Trainer(
        accelerator="cpu",
        devices=world,
        strategy=_strategy(chosen, world, tell),
        max_epochs=chosen.epochs,
        callbacks=callbacks,
        plugins=[Teller(tell)],
        default_root_dir=folder,
        logger=CSVLogger(folder, name="", version=LOGS, flush_logs_every_n_steps=1),
        log_every_n_steps=1,
        use_distributed_sampler=chosen.ramps,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    samples = data()
    loader: DataLoader[Any] = (
        DataLoader(samples, chosen.batch_size, shuffle=True)
        if chosen.ramps
        else StatefulLoader(samples, chosen.batch_size, rank, world)
    )
    trainer.fit(module, loader, ckpt_path="last")
    if rank == 0:
        if attempt == UNINTERRUPTED:
            states = [state_in(path) for path in folder.glob("step=*.ckpt")]
            torch.save({state["updates"]: state for state in states}, folder / STATES)
        if chosen.zero is not None:  # the shards of all ranks, put together
            consolidate(folder / END, folder / "end.pt")
            state = torch.load(folder / "end.pt", weights_only=False)
            weights, optimizer = state["state_dict"], state["optimizer_states"][0]
        else:
            weights, optimizer = module.state_dict(), trainer.optimizers[0].state_dict()
        torch.save(
            {
                "weights": weights,
                "optimizer": optimizer,
                "callbacks": {
                    type(callback).__name__: callback.state_dict()
                    for callback in callbacks
                    if isinstance(callback, MethodCallback)
                },
                "updates": trainer.global_step,
            },
            folder / FINAL,
        )


def _strategy(chosen: Configuration, world: int, tell: Callable[[str], None]) -> str | Strategy:
    if chosen.zero is not None:
        zero = TellingZeRO(
            stage=chosen.zero,  # type: ignore[arg-type]
            cluster_environment=_Attached(),
            process_group_backend="gloo",
            logging_level=logging.ERROR,
        )
        zero.tell = tell
        return zero
    policy = CheckpointPolicy(segments="every_block")
    if world == 1:
        return CheckpointedStrategy(policy) if chosen.checkpointed else "auto"
    arguments: dict[str, Any] = {"cluster_environment": _Attached(), "process_group_backend": "gloo"}
    return CheckpointedDDPStrategy(policy, **arguments) if chosen.checkpointed else DDPStrategy(**arguments)


def child(name: str, world: int, rank: int, folder: Path, attempt: int, pipe: int) -> None:
    """What a forked process does; never returns."""
    status = 1
    try:
        torch.set_num_threads(1)
        logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
        warnings.simplefilter("ignore")

        def tell(word: str) -> None:
            if rank == 0:
                os.write(pipe, f"{word}\n".encode())

        if world > 1:
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT="0", LOCAL_RANK=str(rank), NODE_RANK="0")
            store = torch.distributed.FileStore(str(folder / f"store{attempt}"), world)
            torch.distributed.init_process_group(
                "gloo", store=store, rank=rank, world_size=world, timeout=timedelta(seconds=600)
            )
        train(name, world, rank, folder, attempt, tell)
        status = 0
    except BaseException:
        with (folder / ERRORS).open("a", encoding="utf-8") as file:
            file.write(f"attempt {attempt} rank {rank}\n{traceback.format_exc()}\n")
    finally:
        os._exit(status)
