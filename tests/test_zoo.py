"""A small part of the zoo (`python -m benchmarks.zoo` is the whole): true depth by each family, and unfreezing."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from benchmarks import checkpointed_models, zoo
from lightning_lr import LayerwiseLRDecay, NormalizedWeightDecay
from lightning_lr.layers import FrozenLayers, UnfreezingOrder, discover
from lightning_lr.optim import LAMB, LARS
from tests.support.timm_oracle import import_timm
from tests.test_layer_order import Parts, Stage
from tests.test_layers import bert, clip, gpt2, t5, transformers

DEPTHS = {
    "transformers/sequence classification/bert": 14,
    "transformers/sequence classification/distilbert": 8,
    "transformers/sequence classification/xlm": 14,
    "transformers/sequence classification/flaubert": 14,
    "transformers/sequence classification/bart": 14,
    "transformers/causal language model/gpt_neox": 46,
    "transformers/causal language model/llama": 34,
    "transformers/image classification/pvt": 10,
    "transformers/image classification/poolformer": 14,
    "transformers/image classification/swin": 14,
    "transformers/image classification/convnext": 20,
    "timm/vision_transformer/test_vit": 8,
    "timm/features/swin_tiny_patch4_window7_224": 13,
    "timm/features/convnext_atto": 13,
    "torchvision/classification/resnet18": 10,
    "torchvision/classification/swin_t": 14,
}


def makers() -> dict[str, Callable[[], nn.Module]]:
    transformers()
    import_timm()
    return {key: make for source in zoo.SOURCES.values() for key, make in source()}


def test_depths_of_well_known_models() -> None:
    known = makers()
    rows = {key: zoo.examine(key, known[key])[0] for key in DEPTHS if key in known}
    assert len(rows) >= 15
    assert {key: row["depth"] for key, row in rows.items()} == {key: DEPTHS[key] for key in rows}
    assert not [key for key, row in rows.items() if row["order errors"] or not row["covered"] or row["warned"]]


def stages() -> nn.Module:
    return Parts(stem=nn.Linear(8, 8), stage1=Stage(2), stage2=Stage(1), head=nn.Linear(8, 2))


def xlm() -> nn.Module:
    t = transformers()
    return t.XLMForSequenceClassification(t.XLMConfig(vocab_size=50, emb_dim=16, n_layers=2, n_heads=2))


def mamba() -> nn.Module:
    t = transformers()
    return t.MambaForCausalLM(t.MambaConfig(vocab_size=50, hidden_size=16, state_size=4, num_hidden_layers=2))


class Rotation(nn.Module):
    """A block with complex weights."""

    def __init__(self) -> None:
        super().__init__()
        self.phase = nn.Parameter(torch.ones(4, 4, dtype=torch.complex64))
        self.out = nn.Linear(4, 4)


def odd() -> nn.Module:
    """Channels last below complex weights, and half precision on top."""
    stem = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    blocks = nn.ModuleList([Rotation(), Rotation()])
    return Parts(stem=stem, blocks=blocks, head=nn.Linear(4, 2).bfloat16())


OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adamw": partial(torch.optim.AdamW, lr=0.1, weight_decay=0.1),
    "lars": partial(LARS, lr=1.0, weight_decay=0.1, momentum=0.9),
    "lamb": partial(LAMB, lr=0.1, weight_decay=0.1),
}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("make", [bert, gpt2, t5, clip, xlm, mamba, stages, odd])
def test_nothing_moves_before_its_turn_and_everything_in_the_end(make: Callable[[], nn.Module], optimizer: str) -> None:
    """Tied weights (GPT-2, T5, Mamba), half precision (CLIP), and one frozen by the user, with momentum and decay."""
    torch.manual_seed(0)
    model = make()
    if make is clip:
        model = model.bfloat16()
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    still = next(iter(model.parameters()))
    if make is stages:
        still.requires_grad_(False)
    found = discover(model)
    distance = {name: found.depth - 1 - layer.depth for layer in found.layers for name in layer.parameters}
    steps = OPTIMIZERS[optimizer](model.parameters())
    order = UnfreezingOrder(model)
    frozen = FrozenLayers(model, order)
    first: dict[str, int] = {}
    for epoch in range(found.depth):
        frozen.freeze(order.begun(epoch))
        before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter) if parameter.requires_grad else None
        steps.step()
        for name, parameter in model.named_parameters():
            if not torch.equal(parameter, before[name]):
                first.setdefault(name, epoch)
    expected = {name: place for name, place in distance.items() if make is not stages or name != name_of[id(still)]}
    assert first == expected


def test_a_sparse_table_stays_until_its_turn() -> None:
    blocks = nn.ModuleList(nn.TransformerEncoderLayer(4, 2, 4) for _ in range(2))
    model = Parts(embed=nn.Embedding(8, 4, sparse=True), blocks=blocks, head=nn.Linear(4, 2))
    table, order = model.embed.weight, UnfreezingOrder(model)
    frozen, steps = FrozenLayers(model, order), torch.optim.SGD(model.parameters(), 0.1)
    start = table.detach().clone()  # type: ignore[union-attr]
    moved = []
    for epoch in range(4):
        frozen.freeze(order.begun(epoch))
        steps.zero_grad()
        if table.requires_grad:
            model.embed(torch.tensor([1, 2])).sum().backward()  # type: ignore[operator]
            assert table.grad.is_sparse  # type: ignore[union-attr]
        steps.step()
        moved.append(not torch.equal(table, start))  # type: ignore[arg-type]
    assert moved == [False, False, False, True]


class Language(LightningModule):
    """A GPT-2 whose output is tied to its embedding, with frozen positions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = gpt2()
        self.net.transformer.wpe.weight.requires_grad_(False)  # type: ignore[union-attr]

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        loss: Tensor = self.net(batch, labels=batch).loss
        return loss

    def configure_optimizers(self) -> Any:
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


def test_normalized_decay_beside_layers_on_tied_and_frozen_weights() -> None:
    module = Language()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[LayerwiseLRDecay(0.5), NormalizedWeightDecay(0.5)],
    )  # fmt: skip
    trainer.fit(module, DataLoader([torch.randint(0, 50, (6,)) for _ in range(8)], batch_size=4))
    still = {name for name, parameter in module.named_parameters() if torch.equal(parameter, before[name])}
    assert still == {"net.transformer.wpe.weight"}
    decays = {str(group["name"]): group["weight_decay"] for group in trainer.optimizers[0].param_groups}
    assert {decay for name, decay in decays.items() if name.endswith("no_decay")} == {0.0}
    assert len({decay for name, decay in decays.items() if not name.endswith("no_decay")} - {0.0}) == 1


# ---------------------------------------------------------------------- the committed tables
def test_no_model_of_the_zoo_is_wrong_in_silence() -> None:
    rows = {key: row for key, row in json.loads(zoo.FILE.read_text()).items() if "verdict" in row}
    assert len(rows) >= 350
    assert not [key for key, row in rows.items() if row["verdict"] == "wrong" or not row["covered"]]
    by_matcher = [row for key, row in rows.items() if key.startswith("timm/") and row["how"] == "timm group_matcher"]
    assert len(by_matcher) >= 95, "every parameter at timm's own distance"
    assert all(row["verdict"] == "right" for row in by_matcher)
    assert zoo.TABLE.read_text() == zoo.report(json.loads(zoo.FILE.read_text()))


def test_no_gradient_of_transformers_models_differs_under_checkpointing() -> None:
    found = json.loads(checkpointed_models.FILE.read_text())
    rows = {(name, case): row for name, model in found.items() for case, row in model.items()}
    assert set(found) == set(checkpointed_models.KINDS)
    assert not [key for key, row in rows.items() if row.get("differ") or row.get("losses differ")]
    assert not [key for key, row in rows.items() if "fails" in row]
    assert checkpointed_models.TABLE.read_text() == checkpointed_models.report(found)
