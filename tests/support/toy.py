"""A problem small enough to train hundreds of times: no batch norm, no dropout, samples in a fixed order."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from tempfile import mkdtemp
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler, TensorDataset

_elsewhere = mkdtemp(prefix="lightning_lr_tests_")

Configure = Callable[[LightningModule], Any]


def data(samples: int = 48, features: int = 6, dtype: torch.dtype = torch.float32) -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    x = torch.randn(samples, features, generator=generator, dtype=torch.float64)
    y = torch.sin(x @ torch.linspace(-1, 1, features, dtype=torch.float64)).unsqueeze(1)
    return TensorDataset(x.to(dtype), y.to(dtype))


class Stream(IterableDataset[Any]):
    """The same samples without a length."""

    def __init__(self, samples: int) -> None:
        self.samples = samples

    def __iter__(self) -> Iterator[Any]:
        return iter(data(self.samples))


class ResumableSampler(Sampler[int]):
    """Hands out 0 .. n-1 and begins after the samples that an interrupted epoch has already used.

    Several ranks deal 0, 2, 4 .. and 1, 3, 5 .., so that the global batches are those of one process.
    """

    def __init__(self, size: int, rank: int = 0, ranks: int = 1) -> None:
        self.dealt = range(rank, size, ranks)
        self.skip = 0

    def __iter__(self) -> Iterator[int]:
        start, self.skip = self.skip, 0
        return iter(self.dealt[start:])

    def __len__(self) -> int:
        return len(self.dealt)


class ResumableLoader(DataLoader[Any]):
    """A loader with the state that Lightning saves, so that a mid-epoch resume repeats no sample."""

    def __init__(self, dataset: Dataset[Any], batch_size: int, rank: int = 0, ranks: int = 1) -> None:
        sampler = ResumableSampler(len(dataset), rank, ranks)  # type: ignore[arg-type]
        super().__init__(dataset, batch_size=batch_size, sampler=sampler)
        self.given = 0

    def __iter__(self) -> Iterator[Any]:
        assert isinstance(self.sampler, ResumableSampler)
        self.given = self.sampler.skip // self.batch_size  # type: ignore[operator]
        for batch in super().__iter__():
            self.given += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"given": self.given % len(self)}

    def load_state_dict(self, state: dict[str, int]) -> None:
        assert isinstance(self.sampler, ResumableSampler)
        self.sampler.skip = state["given"] * self.batch_size  # type: ignore[operator]


class Toy(LightningModule):
    """A two-layer regression; ``configure`` makes the optimizer (and scheduler) as a user's module would."""

    def __init__(self, configure: Configure | None = None, features: int = 6) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(3)
            self.body = nn.Linear(features, 8)
            self.head = nn.Linear(8, 1)
        self._configure = configure

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(torch.tanh(self.body(x)))
        return out

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        x, y = batch
        self.log("val_loss", nn.functional.mse_loss(self(x), y))

    def configure_optimizers(self) -> Any:
        if self._configure is not None:
            return self._configure(self)
        return torch.optim.SGD(self.parameters(), lr=0.05, momentum=0.9)


def two_groups(module: LightningModule) -> Optimizer:
    assert isinstance(module, Toy)
    return torch.optim.SGD(
        [
            {"params": module.body.parameters(), "lr": 0.02, "name": "body"},
            {"params": module.head.parameters(), "lr": 0.1, "name": "head"},
        ],
        momentum=0.9,
    )


class Probe(Callback):
    """Records what the optimizer really used at each of its steps."""

    def __init__(self, *keys: str) -> None:
        self.keys = keys or ("lr",)
        self.series: list[list[Any]] = []
        self._hook: Any = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        def record(optimizer: Optimizer, args: Any, kwargs: Any) -> None:
            row = [[group.get(key) for key in self.keys] for group in optimizer.param_groups]
            self.series.append(row if len(self.keys) > 1 else [values[0] for values in row])

        self._hook = trainer.optimizers[0].register_step_post_hook(record)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._hook is not None:
            self._hook.remove()

    @property
    def first(self) -> list[Any]:
        return [row[0] for row in self.series]


def quiet(**arguments: Any) -> dict[str, Any]:
    """Trainer arguments of a silent run on one CPU."""
    return {
        "accelerator": "cpu",
        "default_root_dir": _elsewhere,
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        **arguments,
    }


def fit(
    callbacks: list[Callback],
    *,
    module: LightningModule | None = None,
    loader: Any = None,
    ckpt_path: str | None = None,
    validation: Any = None,
    **arguments: Any,
) -> tuple[LightningModule, Trainer]:
    """Train the toy problem; whatever is not said is small and fixed."""
    module = module if module is not None else Toy()
    loader = loader if loader is not None else DataLoader(data(), batch_size=8)
    arguments.setdefault("max_epochs", 3)
    trainer = Trainer(**quiet(callbacks=callbacks, **arguments))
    trainer.fit(module, loader, validation, ckpt_path=ckpt_path)
    return module, trainer


def weights(module: LightningModule) -> Tensor:
    return torch.cat([parameter.detach().double().flatten() for parameter in module.parameters()])
