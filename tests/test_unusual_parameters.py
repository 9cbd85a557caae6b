"""Sparse, complex, bfloat16, channels-last, tied and frozen parameters under methods that look at every parameter."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_lr import GradualUnfreezing, LayerwiseLRDecay, NormalizedWeightDecay, layerwise_param_groups
from lightning_lr.optim import LAMB, LARS
from lightning_lr.weight_decay import normalized_weight_decay

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
BATCHES, SIZE, EPOCHS = 2, 2, 4
Configure = Callable[[Any], torch.optim.Optimizer]


class Unusual(LightningModule):
    """An embedding tied to the output, a complex, a bfloat16 and a channels-last layer, one frozen, one never used."""

    def __init__(self, configure: Configure, sparse: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.configure = configure
        self.embed = nn.Embedding(8, 4, sparse=sparse)
        self.conv = nn.Conv2d(4, 4, 3, padding=1).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.wave = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.rough = nn.Linear(4, 4, dtype=torch.bfloat16)
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.unused = nn.Linear(4, 4)
        self.out = nn.Linear(4, 8)
        if not sparse:
            self.out.weight = self.embed.weight

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids)
        x = self.conv(x.permute(0, 2, 1)[..., None]).squeeze(-1).permute(0, 2, 1)
        x = self.rough(self.frozen((x.to(torch.complex64) @ self.wave).real).bfloat16()).float()
        y: Tensor = self.out(x)
        return y

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return nn.functional.cross_entropy(self(batch).flatten(0, 1), batch.flatten())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.configure(self)


def batches() -> DataLoader[Any]:
    draw = torch.Generator().manual_seed(1)
    return DataLoader([torch.randint(0, 8, (3,), generator=draw) for _ in range(BATCHES * SIZE)], batch_size=SIZE)  # type: ignore[arg-type]


def fit(module: LightningModule, *callbacks: Callback, epochs: int = EPOCHS) -> Trainer:
    trainer = Trainer(
        accelerator="cpu", max_epochs=epochs, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=list(callbacks),
    )  # fmt: skip
    trainer.fit(module, batches())
    return trainer


def by_hand(module: Unusual, optimizer: torch.optim.Optimizer, epochs: int = EPOCHS) -> None:
    for _ in range(epochs):
        for batch in batches():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            optimizer.step()


OPTIMIZERS: dict[str, Configure] = {
    "AdamW": lambda m: torch.optim.AdamW(m.parameters(), lr=0.02, weight_decay=0.3),
    "AdamW, split": lambda m: torch.optim.AdamW(layerwise_param_groups(m, 0.02, 0.8, 0.3, layers=PATTERNS)),
    "LARS": lambda m: LARS(m.parameters(), lr=1.0, weight_decay=0.1),
    "LAMB": lambda m: LAMB(m.parameters(), lr=0.02, weight_decay=0.1),
}
PATTERNS = ["embed", "conv", "wave", "rough", "frozen|unused|out"]


def test_the_normalized_decay_is_that_of_every_kind_of_parameter() -> None:
    ours, theirs = Unusual(OPTIMIZERS["AdamW"]), Unusual(OPTIMIZERS["AdamW"])
    fit(ours, NormalizedWeightDecay(0.2))
    decay = normalized_weight_decay(0.2, SIZE, BATCHES * SIZE * EPOCHS) / 0.02
    assert decay == pytest.approx(0.2 * math.sqrt(1 / 8) / 0.02)
    by_hand(theirs, torch.optim.AdamW(theirs.parameters(), lr=0.02, weight_decay=decay))
    for (name, one), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other), name
    assert ours.out.weight is ours.embed.weight
    assert ours.conv.weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("name", ["LARS", "LAMB"])
def test_trust_ratios_of_every_kind_of_parameter(name: str) -> None:
    """Against the same optimizer over real, contiguous copies of each parameter, with the same gradients."""
    module = Unusual(OPTIMIZERS[name])
    optimizer = module.configure_optimizers()
    parameters = list(module.parameters())

    def plain(tensor: Tensor) -> Tensor:
        real = torch.view_as_real(tensor) if tensor.is_complex() else tensor
        return real.detach().clone(memory_format=torch.contiguous_format)

    copies = [nn.Parameter(plain(p), requires_grad=p.requires_grad) for p in parameters]
    again = type(optimizer)(copies, **{k: v for k, v in optimizer.defaults.items() if k in ("lr", "weight_decay")})
    for batch in batches():
        optimizer.zero_grad()
        module.training_step(batch, 0).backward()
        for copied, parameter in zip(copies, parameters, strict=True):
            copied.grad = None if parameter.grad is None else plain(parameter.grad)
        optimizer.step()
        again.step()
        for (which, _), parameter, copied in zip(module.named_parameters(), parameters, copies, strict=True):
            torch.testing.assert_close(plain(parameter), copied.detach(), msg=which)
    assert module.unused.weight.grad is None
    assert module.frozen.weight.grad is None


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "AdamW, split"])
@pytest.mark.parametrize("decay", [False, True])
def test_every_kind_of_parameter_stays_until_its_turn(optimizer: str, decay: bool) -> None:
    module = Unusual(OPTIMIZERS[optimizer])
    start = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    moved: dict[str, int] = {}

    class Watch(Callback):
        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            for name, parameter in pl_module.named_parameters():
                if not torch.equal(parameter, start[name]):
                    moved.setdefault(name, trainer.current_epoch)

    more = [LayerwiseLRDecay(0.9, layers=PATTERNS)] if decay else []
    fit(module, *more, GradualUnfreezing(layers=PATTERNS), Watch(), epochs=5)
    assert moved == {
        "out.bias": 0, "rough.weight": 1, "rough.bias": 1, "wave": 2, "conv.weight": 3, "conv.bias": 3,
        "embed.weight": 4,  # tied to the output: the lowest of its places
    }  # fmt: skip


@pytest.mark.parametrize("callback", [None, partial(LayerwiseLRDecay, 0.8, layers=PATTERNS)])
def test_split_groups_hold_every_parameter_once(callback: Any) -> None:
    module = Unusual(OPTIMIZERS["AdamW" if callback else "AdamW, split"])
    trainer = fit(module, *([callback()] if callback else []), epochs=1)
    held = [id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]]
    trained = {id(p) for p in module.parameters() if p.requires_grad}
    assert len(held) == len(set(held))
    assert trained <= set(held)
    if callback is not None:
        return  # afterwards the groups have the scheduled rate
    rate = {id(p): group["lr"] for group in trainer.optimizers[0].param_groups for p in group["params"]}
    expected = {module.embed.weight: 4, module.conv.weight: 3, module.wave: 2, module.rough.weight: 1}
    for parameter, distance in expected.items():
        assert rate[id(parameter)] == pytest.approx(0.02 * 0.8**distance)


# ---------------------------------------------------------------------- sparse gradients
def sparse_adam(module: LightningModule) -> torch.optim.Optimizer:
    return torch.optim.SparseAdam([module.embed.weight])  # type: ignore[list-item,union-attr]


def test_sparse_gradients_are_refused_by_name() -> None:
    with pytest.raises(MisconfigurationException, match=r"SparseAdam \(parameter group 0\) does not subtract"):
        fit(Unusual(sparse_adam, sparse=True), NormalizedWeightDecay())
    for name in ("LARS", "LAMB"):
        with pytest.raises(RuntimeError, match="does not support sparse gradients"):
            fit(Unusual(OPTIMIZERS[name], sparse=True))


def test_a_sparse_table_waits_for_its_turn_and_then_follows_sgd() -> None:
    sgd: Configure = lambda m: torch.optim.SGD(m.parameters(), lr=0.1)  # noqa: E731
    module = Unusual(sgd, sparse=True)
    start = copy.deepcopy(module)
    fit(module, GradualUnfreezing(layers=["embed", "."]), epochs=1)
    assert torch.equal(module.embed.weight, start.embed.weight)
    module = Unusual(sgd, sparse=True)
    fit(module, GradualUnfreezing(layers=["."]), LayerwiseLRDecay(1.0), epochs=2)
    by_hand(start, sgd(start), epochs=2)
    assert torch.equal(module.embed.weight, start.embed.weight)
    assert not torch.equal(module.embed.weight, Unusual(sgd, sparse=True).embed.weight)
