"""The examples under manual optimization, with several optimizers or a scheduler of their own: each with a schedule,
layer-wise rates and hypergradients."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.utils.data import TensorDataset

from examples.actor_critic import ActorCritic
from examples.data.fashion_mnist_files import find_folder
from examples.distillation import Distillation
from examples.gan import GAN
from examples.hugging_face_style import FineTuned
from examples.self_supervised import BYOL
from lightning_lr import Constant, Cosine, HypergradientDescent, LayerwiseLRDecay, LearningRateSchedule
from lightning_lr.cli import main
from tests.support.manual import Steps
from tests.support.toy import ResumableLoader, fit, weights
from tests.support.two_processes import ddp, run_in_two_processes

REPOSITORY = Path(__file__).parents[1]
SAMPLES, BATCH, EPOCHS = 32, 8, 3
UPDATES = SAMPLES // BATCH * EPOCHS
PIXELS, WIDTH = 12, 6


class StillGAN(GAN):
    """Its noise is made of the images, so that a batch has the same on one process as on two."""

    def noise_for(self, images: Tensor) -> Tensor:
        return torch.sin(40 * images[:, : self.latent])


class StillBYOL(BYOL):
    def view(self, images: Tensor) -> Tensor:
        return images + self.noise * torch.sin(40 * images)


class Greedy(ActorCritic):
    def act(self, logits: Tensor) -> Tensor:
        return logits.argmax(1)


MAKE: dict[str, Callable[[], LightningModule]] = {
    "gan": lambda: StillGAN(PIXELS, 4, WIDTH, lr=0.01),
    "byol": lambda: StillBYOL(PIXELS, WIDTH, 0.9, lr=0.01),
    "actor-critic": lambda: Greedy(PIXELS, 3, WIDTH),
    "distillation": lambda: Distillation(PIXELS, WIDTH, 3, lr=0.01),
    "Hugging Face": lambda: FineTuned(PIXELS, WIDTH, 3, lr=0.01, warmup=0.25),
}
RATES = {"gan": [0.01, 0.01], "byol": [0.01], "actor-critic": [1e-3, 3e-3], "distillation": [0.01]}
DEPTH = {"gan": 3, "byol": 5, "actor-critic": 3, "distillation": 3, "Hugging Face": 3}
LAYERS: dict[str, Any] = {  # what is not trained lies below what is
    "byol": [r"^average", r"^encoder\.(\d+)", r"^predictor\.(\d+)"],
    "distillation": [r"^teacher", r"^student\.(\d+)"],
}


def module_of(name: str) -> LightningModule:
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return MAKE[name]()


def images() -> TensorDataset:
    generator = torch.Generator().manual_seed(7)
    return TensorDataset(
        torch.randn(SAMPLES, PIXELS, generator=generator), torch.randint(0, 3, (SAMPLES,), generator=generator)
    )


def trained(
    name: str, callbacks: list[Callback], rank: int = 0, ranks: int = 1, **arguments: Any
) -> tuple[LightningModule, Steps]:
    steps = Steps()
    loader = ResumableLoader(images(), BATCH // ranks, rank, ranks)
    module, _ = fit(
        [*callbacks, steps],
        module=module_of(name),
        loader=loader,
        max_epochs=EPOCHS,
        use_distributed_sampler=False,
        **arguments,
    )
    return module, steps


def methods(name: str, hyper_lr: float | None = None, choice: str = "replace") -> list[Callback]:
    return [
        LearningRateSchedule(Cosine(), module_scheduler=choice),  # type: ignore[arg-type]
        LayerwiseLRDecay(0.5, layers=LAYERS.get(name, "auto")),
        HypergradientDescent(hyper_lr, rule="normalized"),
    ]


def cosine(update: int) -> float:
    return (1 + math.cos(math.pi * update / UPDATES)) / 2


@pytest.mark.filterwarnings("ignore:.*repeated blocks")
@pytest.mark.parametrize("name", MAKE)
def test_off_is_bare_to_the_bit(name: str) -> None:
    bare, _ = trained(name, [])
    off: list[Callback] = [
        LearningRateSchedule(Constant()),
        LayerwiseLRDecay(1.0, no_weight_decay=[]),
        HypergradientDescent(0.0),
    ]
    assert torch.equal(weights(trained(name, off)[0]), weights(bare))
    assert not torch.equal(weights(bare), weights(module_of(name))), "it trains"


@pytest.mark.filterwarnings("ignore:.*repeated blocks")
@pytest.mark.parametrize("name", MAKE)
def test_every_step_of_every_optimizer_has_the_closed_form(name: str) -> None:
    _, steps = trained(name, methods(name, 0.0))
    for index, base in enumerate(RATES.get(name, [0.01])):
        assert len(steps.of[index]) == UPDATES
        for update, lrs in enumerate(steps.of[index]):
            wanted = {base * cosine(update) * 0.5**distance for distance in range(DEPTH[name])}
            assert sorted(set(lrs)) == pytest.approx(sorted(wanted), rel=1e-12), (index, update)
    if name == "Hugging Face":
        _, both = trained(name, methods(name, 0.0, "multiply"))
        own = [update / 3 if update < 3 else (UPDATES - update) / (UPDATES - 3) for update in range(UPDATES)]
        assert [max(lrs) for lrs in both.of[0]] == pytest.approx(
            [0.01 * factor * cosine(update) for update, factor in enumerate(own)], rel=1e-12
        )


@pytest.mark.filterwarnings("ignore:.*repeated blocks")
@pytest.mark.parametrize("name", MAKE)
def test_a_resumed_run_is_the_uninterrupted_one_to_the_bit(name: str, tmp_path: Path) -> None:
    save = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, steps = trained(name, [*methods(name), save], enable_checkpointing=True)
    per_batch = len(steps.of)
    # estimated_stepping_batches makes Lightning read the loader before it is told where to go on
    for batch in (4, 8) if name == "Hugging Face" else (2, 7):
        path = str(tmp_path / f"step={batch * per_batch}.ckpt")
        resumed, again = trained(name, methods(name), ckpt_path=path)
        assert all(again.of[index] == steps.of[index][batch:] for index in steps.of)
        assert torch.equal(weights(resumed), weights(whole))


def in_two(name: str) -> tuple[Tensor, dict[int, Any]]:
    rank = torch.distributed.get_rank()
    find_unused = functools.partial(DDPStrategy, find_unused_parameters=True)
    module, steps = trained(name, methods(name), rank, 2, precision="64-true", **ddp(find_unused))
    return weights(module), steps.of


@pytest.mark.filterwarnings("ignore:.*repeated blocks")
def test_two_processes_equal_one(tmp_path: Path) -> None:
    """In double precision, so that nothing but the order of sums is left: in float32 that grows to 1e-3, since Adam's
    first steps divide a gradient by its own size, however much of it is rounding."""
    ranks = run_in_two_processes([(name, partial(in_two, name)) for name in MAKE], tmp_path)
    for name in MAKE:
        one, steps = trained(name, methods(name), precision="64-true")
        first, second = ranks[0][name], ranks[1][name]
        assert not isinstance(first, Exception), first
        assert torch.equal(first[0], second[0])
        for index, of_one in steps.of.items():
            assert first[1][index] == second[1][index]
            for got, want in zip(first[1][index], of_one, strict=True):
                assert got == pytest.approx(want, rel=1e-9), (name, index)
        assert (first[0] - weights(one)).abs().max() < 1e-9, name


@pytest.mark.parametrize("name", ["gan", "byol", "actor_critic", "distillation", "hugging_face_style"])
def test_configuration_trains_and_is_planned(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Path(__file__).parents[1] / "configs" / f"{name}.yaml"
    few = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=3", "--trainer.logger=false",
           "--trainer.enable_checkpointing=false", f"--trainer.default_root_dir={tmp_path}",
           "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]  # fmt: skip
    if name == "gan":  # as the file says, for who has no Fashion-MNIST
        few += ["--data=examples.DigitsDataModule", "--model.init_args.pixels=64"]
    monkeypatch.chdir(Path(__file__).parents[1])
    assert main(["plan", "--config", str(config), *few]) == 0
    assert main(["fit", "--config", str(config), *few]) == 0


@pytest.mark.slow
@pytest.mark.skipif(find_folder(REPOSITORY / "data/fashion-mnist") is None, reason="`make fashion-mnist`")
def test_the_gan_trains_on_fashion_mnist(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """An epoch as the file has it."""
    monkeypatch.chdir(REPOSITORY)
    few = ["--trainer.max_epochs=1", "--trainer.logger=false", "--trainer.enable_progress_bar=false",
           f"--trainer.default_root_dir={tmp_path}", "--trainer.accelerator=cpu"]  # fmt: skip
    assert main(["fit", "--config", "configs/gan.yaml", *few]) == 0
