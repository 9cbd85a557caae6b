"""The order of layers in models of many shapes: distances from the top, as a practitioner counts them.

Where a module can run, its forward pass decides; where it cannot (as in the skeletons here without ``forward``), names,
types and the order of definition do, and a guess is announced with the table of layers.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import relu
from torch.optim.swa_utils import AveragedModel

from lightning_lr.layers import LayerMap, discover, layerwise_param_groups
from tests.support.timm_oracle import import_timm
from tests.test_layers import TEXT, checked, transformers


def distances(model: nn.Module, silent: bool = True) -> dict[str, int]:
    """Parameter to its distance from the top; with no warning unless ``silent`` is false."""
    with warnings.catch_warnings():
        warnings.simplefilter("error" if silent else "ignore")
        found = checked(model)
    return {name: found.depth - 1 - layer.depth for layer in found.layers for name in layer.parameters}


def of(found: dict[str, int], *prefixes: str) -> list[Any]:
    """The distance of everything that begins with each prefix; several as a tuple."""
    places = [tuple(sorted({d for name, d in found.items() if name.startswith(prefix)})) for prefix in prefixes]
    return [place[0] if len(place) == 1 else place for place in places]


def block(width: int = 4) -> nn.Module:
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def attention(width: int = 8) -> nn.Module:
    return nn.MultiheadAttention(width, 2)


class Parts(nn.Module):
    """A module of parts, without a forward pass."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        for name, part in parts.items():
            setattr(self, name, part)


class Stage(nn.Module):
    def __init__(self, count: int) -> None:
        super().__init__()
        self.down = nn.Linear(8, 8)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16) for _ in range(count))


# ---------------------------------------------------------------------- stages and counted siblings
def test_stages_of_one_class_follow_one_another() -> None:
    net = Parts(stem=nn.Linear(8, 8), stage1=Stage(2), stage2=Stage(2), stage3=Stage(3), head=nn.Linear(8, 2))
    found = distances(net)
    stages = [f"stage{stage}.blocks.{i}." for stage, count in ((1, 2), (2, 2), (3, 3)) for i in range(count)]
    assert of(found, "stem", *stages, "head") == [8, 7, 6, 5, 4, 3, 2, 1, 0]
    assert of(found, "stage1.down", "stage2.down", "stage3.down") == [7, 5, 3], "with the first block of its stage"


class DoubleConv(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        layers = [nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU()]
        self.double_conv = nn.Sequential(*layers, nn.Conv2d(b, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())


class Down(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.maxpool_conv = nn.Sequential(nn.MaxPool2d(2), DoubleConv(a, b))


class Up(nn.Module):
    def __init__(self, a: int, b: int) -> None:
        super().__init__()
        self.up = nn.ConvTranspose2d(a, a // 2, 2, 2)
        self.conv = DoubleConv(a, b)


def test_unet_of_double_convolutions() -> None:
    down, up = {f"down{i}": Down(4, 4) for i in (1, 2, 3)}, {f"up{i}": Up(4, 4) for i in (1, 2, 3)}
    net = Parts(inc=DoubleConv(1, 4), **down, **up, outc=nn.Conv2d(4, 2, 1))
    assert of(distances(net), "inc", *down, *up, "outc") == [7, 6, 5, 4, 3, 2, 1, 0]


def test_unet_of_lists_with_a_middle_and_a_time_embedding() -> None:
    lists = {name: nn.ModuleList(block() for _ in range(2)) for name in ("down_blocks", "up_blocks")}
    net = Parts(
        conv_in=nn.Conv2d(1, 4, 3), time_embedding=block(), down_blocks=lists["down_blocks"], mid_block=block(),
        up_blocks=lists["up_blocks"], conv_norm_out=nn.GroupNorm(1, 4), conv_out=nn.Conv2d(4, 1, 3),
    )  # fmt: skip
    blocks = ["down_blocks.0", "down_blocks.1", "mid_block", "up_blocks.0", "up_blocks.1"]
    assert of(distances(net), "conv_in", "time_embedding", *blocks, "conv_norm_out", "conv_out") == [
        6, 6, 5, 4, 3, 2, 1, 0, 0,
    ]  # fmt: skip


def test_unet_with_numbered_encoders_and_a_bottleneck() -> None:
    names = ["enc1", "enc2", "bottleneck", "dec2", "dec1"]
    parts = {name: DoubleConv(4, 4) for name in names}
    net = Parts(**parts, up2=nn.ConvTranspose2d(4, 4, 2, 2), out=nn.Conv2d(4, 1, 1))
    assert of(distances(net), *names, "out") == [5, 4, 3, 2, 1, 0]


def test_blocks_as_attributes_and_in_a_dict() -> None:
    counted = {f"block{i}": nn.TransformerEncoderLayer(8, 2, 16) for i in range(3)}
    net = Parts(embed=nn.Linear(8, 8), **counted, head=nn.Linear(8, 2))
    assert of(distances(net), "embed", *counted, "head") == [4, 3, 2, 1, 0]
    layers = nn.ModuleDict({f"layer{i}": block() for i in range(3)})
    net = Parts(embed=nn.Linear(8, 8), layers=layers, head=nn.Linear(8, 2))
    assert of(distances(net), "embed", *(f"layers.layer{i}" for i in range(3)), "head") == [4, 3, 2, 1, 0]


@pytest.mark.parametrize("name", ["swin_tiny_patch4_window7_224", "convnext_atto", "resnet18"])
def test_timm_backbones_for_features(name: str) -> None:
    with torch.device("meta"):
        model = import_timm().create_model(name, features_only=True)
    found = checked(model)
    assert found.depth == len(found.layers) == {"resnet18": 9}.get(name, 13), "stem and blocks, no head"


# ---------------------------------------------------------------------- lists of one length
def test_lists_that_hold_one_part_of_every_layer() -> None:
    lists: dict[str, Callable[[], nn.Module]] = {
        "attentions": attention,
        "layer_norm1": lambda: nn.LayerNorm(8),
        "ffns": block,
        "layer_norm2": lambda: nn.LayerNorm(8),
    }
    made = {name: nn.ModuleList(make() for _ in range(3)) for name, make in lists.items()}
    net = Parts(embeddings=nn.Embedding(9, 8), layer_norm_emb=nn.LayerNorm(8), **made, pred_layer=nn.Linear(8, 9))
    found = distances(net)
    assert of(found, "embeddings", "layer_norm_emb", "pred_layer") == [4, 4, 0]
    for name in lists:
        assert of(found, *(f"{name}.{i}." for i in range(3))) == [3, 2, 1], name


@pytest.mark.parametrize("norms", [3, 2])
def test_graph_convolutions_with_their_norms(norms: int) -> None:
    convs, bns = (
        nn.ModuleList(m(8) for _ in range(n)) for m, n in ((lambda d: nn.Linear(d, d), 3), (nn.BatchNorm1d, norms))
    )
    found = distances(Parts(convs=convs, bns=bns, lin=nn.Linear(8, 2)))
    assert of(found, *(f"convs.{i}" for i in range(3)), "lin") == [3, 2, 1, 0]
    assert of(found, *(f"bns.{i}" for i in range(norms))) == [3, 2, 1][:norms]


def test_equally_long_lists_without_evidence_are_a_guess() -> None:
    net = Parts(
        cells=nn.ModuleList(block() for _ in range(2)),
        units=nn.ModuleList(attention() for _ in range(2)),
        fc=nn.Linear(8, 2),
    )
    with pytest.warns(UserWarning, match="is a guess: the lists cells and units are equally long") as said:
        found = discover(net)
    assert len(said) == 1
    assert "from the top  layer    first parameter" in str(said[0].message), "the table"
    assert "give layers as a list of regular expressions" in str(said[0].message)
    assert [layer.name for layer in found.layers] == ["cells.0", "cells.1", "units.0", "units.1", "head"]


def test_parts_that_are_alternatives_are_no_depth() -> None:
    decoder = Parts(
        layers=nn.ModuleList(block() for _ in range(2)),
        output_hypernetworks_mlps=nn.ModuleList(block() for _ in range(3)),
    )
    found = distances(
        Parts(vision_encoder=Parts(layers=nn.ModuleList(block() for _ in range(2))), mask_decoder=decoder)
    )
    assert of(found, "vision_encoder", "mask_decoder.layers", "mask_decoder.output") == [(3, 4), (1, 2), 0]


# ---------------------------------------------------------------------- names that are not what they seem
def test_a_final_norm_called_after_the_embedding_is_in_the_head() -> None:
    layers = nn.ModuleList(attention() for _ in range(4))
    net = Parts(embed_tokens=nn.Embedding(9, 8), layers=layers, embedding_norm=nn.LayerNorm(8))
    assert of(distances(net), "embed_tokens", "layers.0", "layers.3", "embedding_norm") == [5, 4, 1, 0]


def test_detr_whose_backbone_is_defined_last() -> None:
    layers = {"encoder": 2, "decoder": 2}
    transformer = Parts(
        **{name: Parts(layers=nn.ModuleList(attention() for _ in range(n))) for name, n in layers.items()}
    )
    backbone = Parts(
        conv1=nn.Conv2d(1, 4, 3), layer1=nn.Sequential(block(), block()), layer2=nn.Sequential(block(), block())
    )
    net = Parts(
        transformer=transformer, class_embed=nn.Linear(8, 5), bbox_embed=block(), query_embed=nn.Embedding(5, 8),
        input_proj=nn.Conv2d(4, 8, 1), backbone=backbone,
    )  # fmt: skip
    found = distances(net)
    assert of(found, "class_embed", "bbox_embed") == [0, 0]
    assert of(found, "transformer.decoder.layers.1", "transformer.decoder.layers.0") == [1, 2]
    assert of(found, "transformer.encoder.layers.1", "transformer.encoder.layers.0", "input_proj") == [3, 4, 4]
    assert of(found, "backbone.layer2.1", "backbone.layer1.0", "backbone.conv1", "query_embed") == [5, 8, 9, 9]


def test_a_decoder_that_is_defined_before_what_it_decodes() -> None:
    net = Parts(decoder=block(), encoder=Parts(layers=nn.ModuleList(attention() for _ in range(2))))
    with pytest.warns(UserWarning, match="decoder is defined before the blocks and taken for the head by its name"):
        found = discover(net)
    assert [layer.name for layer in found.layers] == ["encoder.layers.0", "encoder.layers.1", "head"]


# ---------------------------------------------------------------------- towers, and towers in series
def tower(layers: int, **more: nn.Module) -> nn.Module:
    return Parts(embeddings=nn.Embedding(9, 8), layers=nn.ModuleList(attention() for _ in range(layers)), **more)


@pytest.mark.parametrize(
    "names", [("text_model", "vision_model"), ("encoder_q", "encoder_k"), ("student", "teacher"), ("tower1", "tower2"),
              ("generator", "discriminator"), ("query_encoder", "passage_encoder"), ("actor", "critic")]
)  # fmt: skip
def test_towers_end_at_the_same_top(names: tuple[str, str]) -> None:
    parts = dict(zip(names, (tower(2), tower(2)), strict=True))
    # without a forward, a text model may as well read what a vision model makes
    found = distances(Parts(**parts, logit_scale=nn.Linear(1, 1)), silent="vision_model" not in names)
    for name in names:
        assert of(found, f"{name}.embeddings", f"{name}.layers.0", f"{name}.layers.1") == [3, 2, 1]


@pytest.mark.parametrize("connector", ["multi_modal_projector", "embed_vision"])
def test_a_language_model_above_a_vision_tower(connector: str) -> None:
    vision = tower(3, post_layernorm=nn.LayerNorm(8))
    parts = {"vision_tower": vision, "language_model": tower(4, norm=nn.LayerNorm(8)), connector: nn.Linear(8, 8)}
    found = distances(Parts(model=Parts(**parts), lm_head=nn.Linear(8, 9)))
    assert of(found, "lm_head", "model.language_model.norm") == [0, 0]
    assert of(found, *(f"model.language_model.layers.{i}" for i in range(4))) == [4, 3, 2, 1]
    assert of(found, "model.language_model.embeddings", f"model.{connector}", "model.vision_tower.post") == [5, 5, 5]
    assert of(found, *(f"model.vision_tower.layers.{i}" for i in range(3))) == [8, 7, 6]
    assert of(found, "model.vision_tower.embeddings") == [9]


def test_an_autoencoder_is_a_series_and_a_sequence_to_sequence_model_has_two_towers() -> None:
    coder = {name: nn.ModuleList(block() for _ in range(2)) for name in ("encoder", "decoder")}
    assert of(distances(Parts(**coder)), "encoder.0", "encoder.1", "decoder.0", "decoder.1") == [3, 2, 1, 0]
    t5 = Parts(shared=nn.Embedding(9, 8), encoder=tower(2), decoder=tower(2), lm_head=nn.Linear(8, 9))
    assert of(distances(t5), "encoder.layers.1", "decoder.layers.1", "shared") == [1, 1, 3]


def test_siblings_of_one_class_without_a_number_are_a_guess() -> None:
    with pytest.warns(UserWarning, match="is a guess: ham, eggs are taken to follow one another"):
        discover(Parts(ham=tower(2), eggs=tower(2)))


class WithTokenizer(nn.Module):
    """A tower that reads images where there are some, a tokenizer that training never calls, a language model."""

    def __init__(self) -> None:
        super().__init__()
        self.vision_model = tower(2)
        self.aligner = nn.Linear(8, 8)
        self.tokenizer = tower(5)
        self.language_model = tower(3)

    def forward(self, x: Tensor) -> Any:
        return self.language_model(x)


def test_what_no_forward_pass_calls_shifts_nothing_and_is_said() -> None:
    with pytest.warns(UserWarning, match="is a guess: tokenizer: called by no forward pass, and taken to feed nothing"):
        discover(WithTokenizer())
    found = distances(WithTokenizer(), silent=False)
    assert of(found, *(f"language_model.layers.{i}" for i in range(3))) == [2, 1, 0]
    assert of(found, "aligner", "language_model.embeddings") == [3, 3]
    assert of(found, *(f"vision_model.layers.{i}" for i in range(2)), "vision_model.embeddings") == [5, 4, 6]
    # as it would be alone
    assert of(found, "tokenizer.embeddings", *(f"tokenizer.layers.{i}" for i in range(5))) == [5, 4, 3, 2, 1, 0]


class WithOldBlocks(nn.Module):
    """Blocks that were kept so that old checkpoints load."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 8), nn.Linear(8, 9)
        self.blocks, self.old_blocks = tower(3).layers, tower(4).layers

    def forward(self, x: Tensor) -> Any:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class WithAligner(nn.Module):
    """Word times come from another method than the answer; its encoder stands between the two that train."""

    def __init__(self, of_words: str, called: str) -> None:
        super().__init__()
        self.add_module("audio_tower", tower(3))
        self.add_module(of_words, tower(2))
        self.add_module(called, tower(3))
        self.head, self.of_words, self.called = nn.Linear(8, 9), of_words, called

    def forward(self, x: Tensor) -> Any:
        return self.head(self._modules[self.called](self.audio_tower(x)))

    def times(self, x: Tensor) -> Any:
        return self._modules[self.of_words](self.audio_tower(x))


class Renamed(nn.Module):
    """The same blocks under two names, of which one is called."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head, self.net = nn.Linear(8, 8), nn.Linear(8, 8), tower(3)
        self.all_layers = self.net.layers

    def forward(self, x: Tensor) -> Any:
        return self.head(self.net(self.stem(x)))


@pytest.mark.parametrize(
    ("make", "idle", "trained"),
    [
        (WithOldBlocks, "old_blocks", ("blocks.2", "blocks.1", "blocks.0", "embed")),
        *(
            (
                lambda of_words=of_words, called=called: WithAligner(of_words, called),
                of_words,
                tuple(f"{called}.layers.{i}" for i in (2, 1, 0)),
            )
            for of_words in ("word_timestamp_encoder", "times_encoder", "extra")
            for called in ("language_model", "decoder", "trunk")
        ),
    ],
)
def test_parts_with_blocks_that_no_forward_pass_calls_shift_nothing_whatever_they_are_called(
    make: Callable[[], nn.Module], idle: str, trained: tuple[str, ...]
) -> None:
    with pytest.warns(UserWarning, match=f"is a guess: {idle}: called by no forward pass, and taken to feed nothing"):
        discover(make())
    found = distances(make(), silent=False)
    assert of(found, "head", *trained) == [0, *range(1, len(trained) + 1)]
    if idle == "old_blocks":
        assert of(found, *(f"old_blocks.{i}" for i in range(4))) == [4, 3, 2, 1]
    else:
        assert of(found, *(f"{idle}.{part}" for part in ("layers.1", "layers.0", "embeddings"))) == [1, 2, 3]
        low, high = of(found, "audio_tower.layers.0", "audio_tower.layers.2")
        assert low == high + 2 > 2 + len(trained)


class WithFolds(nn.Module):
    """A tower that a value of its input decides about, so that a pass without a value need not call it."""

    def __init__(self) -> None:
        super().__init__()
        self.folds, self.language_model, self.head = tower(2), tower(3), nn.Linear(8, 9)

    def forward(self, x: Tensor, proteins: Any = None) -> Any:
        if isinstance(proteins, dict):
            x = x + self.folds(proteins["tokens"])
        return self.head(self.language_model(x))


def test_what_only_an_input_that_was_not_given_leads_to_keeps_its_place_and_is_said() -> None:
    with pytest.warns(UserWarning, match="folds: called by no forward pass, and placed by its definition"):
        discover(WithFolds())
    found = distances(WithFolds(), silent=False)
    assert of(found, "head", *(f"language_model.layers.{i}" for i in (2, 1, 0))) == [0, 1, 2, 3]
    lower, upper = of(found, "folds.layers.0", "folds.layers.1")
    assert lower == upper + 1 > 4


def test_another_name_of_blocks_that_are_called_is_nothing_that_is_left_out() -> None:
    assert of(distances(Renamed()), "head", *(f"net.layers.{i}" for i in (2, 1, 0)), "stem") == [0, 1, 2, 3, 4]


class Unreadable(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.vision_model, self.text_model = tower(2), tower(3)

    def forward(self, x: Tensor) -> Any:
        raise RuntimeError(f"{float(x.sum())}")


def test_towers_that_are_told_by_their_names_alone_are_a_guess() -> None:
    with pytest.warns(UserWarning, match="are taken to stand side by side by their names"):
        discover(Unreadable())
    found = distances(Unreadable(), silent=False)
    assert of(found, "vision_model.layers.1", "text_model.layers.2") == [0, 0]


# ---------------------------------------------------------------------- recurrent layers
def test_a_stacked_rnn_has_layers() -> None:
    net = Parts(encoder=nn.Embedding(9, 8), rnn=nn.LSTM(8, 8, 3, bidirectional=True), decoder=nn.Linear(16, 9))
    found = distances(net)
    assert of(found, "encoder", "decoder") == [4, 0]
    by_layer = [{d for name, d in found.items() if f"_l{i}" in name} for i in range(3)]
    assert by_layer == [{3}, {2}, {1}]


# ---------------------------------------------------------------------- what a forward pass shows
class Shuffled(nn.Module):
    """Everything in the wrong order, and under names that say nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(4, 2)
        self.b = nn.ModuleList(block() for _ in range(2))
        self.c = nn.Linear(6, 4)
        self.d = nn.ModuleList(block() for _ in range(2))
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        batch, width = x.shape
        x = self.c(x) + torch.arange(width)[:4] * torch.rand(())
        for part in self.d:
            x = x + part(x)
        self.seen.append(x)
        self.last = x
        for part in self.b:
            x = part(x)
        assert x.dim() == 2
        return self.a(x.view(batch, -1))


def test_a_forward_pass_decides_about_the_order() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    net = Shuffled()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    torch.manual_seed(3)
    assert of(distances(net), "c", "d.0", "d.1", "b.0", "b.1", "a") == [5, 4, 3, 2, 1, 0]
    assert torch.equal(torch.rand(2), expected), "no random number was drawn"
    assert net.seen == []
    assert not hasattr(net, "last"), "the module was not touched"
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


class TwoInputs(nn.Module):
    """Two stacks of one class with names that say nothing: side by side, or one upon the other."""

    def __init__(self, side_by_side: bool) -> None:
        super().__init__()
        self.ham, self.eggs, self.out = tower(2), tower(2), nn.Linear(8, 2)
        self.side_by_side = side_by_side

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        if self.side_by_side:
            return self.out(torch.cat([self.ham(x), self.eggs(y)], dim=1).mean(1))
        return self.out(self.ham(self.eggs(x)))


def test_a_forward_pass_tells_series_from_parallel() -> None:
    both = of(distances(TwoInputs(True)), "ham.layers.0", "ham.layers.1", "eggs.layers.0", "eggs.layers.1", "out")
    assert both == [2, 1, 2, 1, 0]
    series = of(distances(TwoInputs(False)), "ham.layers.0", "ham.layers.1", "eggs.layers.0", "eggs.layers.1", "out")
    assert series == [2, 1, 4, 3, 0]


class Convolutions(nn.Module):
    """No repeated blocks: two branches of unlike length, and a norm."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 2)
        self.norm = nn.BatchNorm1d(8)
        self.conv2, self.conv1 = nn.Linear(8, 8), nn.Linear(8, 8)
        self.short = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(relu(self.norm(self.conv2(relu(self.conv1(x))))) + self.short(x))


def test_a_net_without_blocks_is_ordered_by_its_forward_pass() -> None:
    found: LayerMap = checked(Convolutions())
    assert found.how == "forward pass"
    assert of(distances(Convolutions()), "conv1", "conv2", "norm", "short", "fc") == [2, 1, 1, 1, 0]


class BackboneAndHead(nn.Module):
    """The parts of a backbone without blocks are layers, whatever its head is called."""

    def __init__(self) -> None:
        super().__init__()
        self.result, self.net = nn.Linear(2, 2), Convolutions()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.result(self.net(x))
        return out


def test_a_backbone_without_blocks_below_a_head() -> None:
    found = distances(BackboneAndHead())
    assert of(found, "net.conv1", "net.conv2", "net.norm", "net.short", "net.fc", "result") == [3, 2, 2, 2, 1, 0]


class Tasks(nn.Module):
    """A trunk and two outputs, one of them with a hidden layer."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk, self.classes, self.boxes = block(), nn.Linear(4, 2), block()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.trunk(x)
        return self.classes(x), self.boxes(x)


def test_several_outputs_are_heads() -> None:
    assert of(distances(Tasks()), "trunk.0", "trunk.2", "classes", "boxes") == [2, 1, 0, 0]


def test_generator_and_discriminator_of_plain_layers_stand_side_by_side() -> None:
    found = distances(Parts(generator=block(), discriminator=block()))
    assert of(found, "generator.0", "generator.2", "discriminator.0", "discriminator.2") == [1, 0, 1, 0]


class ShuffledUNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.out = nn.Conv2d(4, 1, 1)
        self.ups = nn.ModuleList(block() for _ in range(2))
        self.downs = nn.ModuleList(block() for _ in range(2))
        self.mid = block()

    def forward(self, x: Tensor) -> Tensor:
        skips = []
        for down in self.downs:
            x = down(x)
            skips.append(x)
        x = self.mid(x)
        for up in self.ups:
            x = up(torch.cat([x, skips.pop()], 1))
        out: Tensor = self.out(x)
        return out


def test_a_unet_in_the_order_of_its_forward_pass() -> None:
    parts = ["downs.0", "downs.1", "mid", "ups.0", "ups.1", "out"]
    assert of(distances(ShuffledUNet()), *parts) == [5, 4, 3, 2, 1, 0]


class Undecidable(LightningModule):
    """A forward pass that depends on values: its text still shows the order."""

    def __init__(self) -> None:
        super().__init__()
        self.top = nn.Linear(8, 2)
        self.later = nn.ModuleList(attention() for _ in range(2))
        self.first = nn.ModuleList(attention() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > 0:
            x = -x
        for layer in self.first:
            x = layer(x, x, x)[0]
        for layer in self.later:
            x = layer(x, x, x)[0]
        return self.top(x)


def test_the_text_of_a_forward_pass_that_cannot_be_run() -> None:
    found = distances(Undecidable(), silent=False)
    assert of(found, "first.0", "first.2", "later.0", "later.1", "top") == [5, 3, 2, 1, 0]


class WithExample(LightningModule):
    """A forward pass that depends on shapes, or on values, which an example has."""

    def __init__(self, by: str) -> None:
        super().__init__()
        self.by = by
        self.ham, self.eggs, self.top = tower(2), tower(2), nn.BatchNorm1d(8)
        self.register_buffer("calls", torch.zeros(()))
        self.example_input_array = (torch.ones(2, 3, dtype=torch.long), {"more": torch.ones(2, 3, 8)})

    def read(self, part: nn.Module, x: Tensor) -> Tensor:
        for layer in part.layers:  # type: ignore[union-attr]
            x = x + layer(x, x, x)[0]
        return x

    def forward(self, x: Tensor, more: dict[str, Tensor]) -> Tensor:
        self.calls += 1
        assert not self.training
        if (x.shape[0] > 1) if self.by == "shape" else (x.sum() > 0):
            y = self.read(self.eggs, self.eggs.embeddings(x) + more["more"])
            z = self.read(self.ham, torch.rand_like(y) + torch.cat([y, y])[:2])
        out: Tensor = self.top(z.mean(1))
        return out


@pytest.mark.parametrize("by", ["shape", "value"])
def test_an_example_input_decides_where_the_code_looks_at_it(by: str) -> None:
    module = WithExample(by)
    torch.manual_seed(1)
    expected = torch.rand(1)
    torch.manual_seed(1)
    found = distances(module)
    assert torch.equal(torch.rand(1), expected)
    assert module.training
    assert module.calls == 0
    assert not module.ham._forward_hooks
    assert of(found, "eggs.layers.0", "eggs.layers.1", "ham.layers.0", "ham.layers.1", "top") == [4, 3, 2, 1, 0]


# ---------------------------------------------------------------------- transformers
def test_transformers_models_whose_layers_lie_in_several_lists() -> None:
    t = transformers()
    with torch.device("meta"):
        xlm = t.XLMForSequenceClassification(t.XLMConfig(vocab_size=50, emb_dim=16, n_layers=12, n_heads=2))
        pvt = t.PvtForImageClassification(t.PvtConfig())
        segformer = t.SegformerForImageClassification(t.SegformerConfig())
    assert checked(xlm).depth == 14
    found = distances(xlm)
    assert of(found, "transformer.attentions.0.", "transformer.ffns.11.", "transformer.layer_norm2.0.") == [12, 1, 12]
    assert checked(pvt).depth == checked(segformer).depth == 10, "stem, eight blocks, head"


def test_llava_and_lfm2() -> None:
    t = transformers()
    text = {**TEXT, "model_type": "llama", "num_hidden_layers": 4, "num_key_value_heads": 1}
    vision = {"model_type": "clip_vision_model", "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2,
              "intermediate_size": 16, "image_size": 32, "patch_size": 8}  # fmt: skip
    with torch.device("meta"):
        llava = t.LlavaForConditionalGeneration(t.LlavaConfig(vision_config=vision, text_config=text))
        lfm2 = t.Lfm2ForCausalLM(
            t.Lfm2Config(**TEXT, num_hidden_layers=4, num_key_value_heads=1, layer_types=["conv", "full_attention"] * 2)
        )
    found = distances(llava)
    assert of(found, "lm_head", "model.language_model.layers", "model.multi_modal_projector") == [0, (1, 2, 3, 4), 5]
    assert of(found, "model.vision_tower.encoder", "model.vision_tower.embeddings") == [(6, 7, 8), 9]
    found = distances(lfm2)
    assert of(found, "model.embed_tokens", "model.layers", "model.embedding_norm") == [5, (1, 2, 3, 4), 0]


# ---------------------------------------------------------------------- copies of the trained network
class Net(nn.Module):
    def __init__(self, count: int = 3) -> None:
        super().__init__()
        self.patch = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(block() for _ in range(count))
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patch(x)
        for one in self.blocks:
            x = x + one(x)
        return self.head(self.norm(x))


class Unnamed(LightningModule):
    """Two networks of one class: only the forward pass tells that the frozen one feeds nothing that is trained."""

    def __init__(self, chained: bool) -> None:
        super().__init__()
        self.chained = chained
        self.ham = Net().requires_grad_(False)
        self.eggs = Net()

    def forward(self, x: Tensor) -> Tensor:
        return self.eggs(self.ham(x) if self.chained else x)


NET = ["patch", "blocks.0", "blocks.1", "blocks.2", "norm", "head"]


@pytest.mark.parametrize("kind", ["ema_first", "ema_last", "average", "target", "modules in a dict", "by forward pass"])
def test_a_copy_of_the_network_is_none_of_its_layers(kind: str) -> None:
    net, copy, prefixes = Net(), Net().requires_grad_(False), ["net.", "ema."]
    if kind == "ema_first":
        model: nn.Module = Parts(ema=copy, net=net)
    elif kind == "ema_last":
        model = Parts(net=net, ema=copy)
    elif kind == "average":
        model, prefixes = Parts(net=net, average=AveragedModel(net)), ["net.", "average.module."]
    elif kind == "target":
        model = Parts(online_encoder=net, predictor=nn.Linear(4, 4), target_encoder=copy)
        prefixes = ["online_encoder.", "target_encoder."]
    elif kind == "modules in a dict":
        model = Parts(teacher=nn.ModuleDict({"body": copy}), student=nn.ModuleDict({"body": net}))
        prefixes = ["student.body.", "teacher.body."]
    else:
        model, prefixes = Unnamed(chained=False), ["eggs.", "ham."]
    found = distances(model)
    for prefix in prefixes:
        assert of(found, *(prefix + name for name in NET)) == [4, 3, 2, 1, 0, 0], prefix


def test_a_frozen_network_that_feeds_its_like_is_below_it() -> None:
    found = distances(Unnamed(chained=True), silent=False)
    assert of(found, "eggs.blocks.0", "eggs.blocks.2", "eggs.head") == [3, 1, 0]
    assert of(found, "ham.patch", "ham.blocks.0", "ham.blocks.2") == [7, 6, 4]


def test_a_copy_without_gradients_leaves_the_rates_of_the_trained_network() -> None:
    model = Parts(ema=Net().requires_grad_(False), net=Net())
    groups = layerwise_param_groups(model, lr=1.0, decay=0.5)
    rates = {id(p): group["lr"] for group in groups for p in group["params"]}
    assert rates == {id(p): 0.5 ** [4, 3, 2, 1, 0, 0][i] for n, p in model.net.named_parameters()
                     for i, name in enumerate(NET) if n.startswith(name)}  # fmt: skip


# ---------------------------------------------------------------------- lists as they are called
class Listed(nn.Module):
    """A network over a list whose elements are called as ``how`` says."""

    def __init__(self, make: Callable[[], nn.Module], how: str) -> None:
        super().__init__()
        self.how = how
        self.first, self.last = nn.Linear(4, 4), nn.Linear(4, 4)
        self.members = nn.ModuleList(make() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "reversed":
            for one in reversed(self.members):
                x = one(x)
        else:
            x = torch.stack([one(x) for one in self.members]).mean(0)
        return self.last(x)


def test_the_elements_of_a_list_count_in_the_order_of_their_calls() -> None:
    assert of(distances(Listed(block, "reversed")), "first", *(f"members.{i}." for i in range(3)), "last") == [
        4, 1, 2, 3, 0,
    ]  # fmt: skip


def test_the_elements_of_a_list_that_read_the_same_input_stand_side_by_side() -> None:
    assert of(distances(Listed(block, "mean")), "first", *(f"members.{i}." for i in range(3)), "last") == [
        2, 1, 1, 1, 0,
    ]  # fmt: skip
    found = distances(Listed(lambda: Net(2), "mean"))
    for i in range(3):
        assert of(found, *(f"members.{i}.{name}" for name in ("patch", "blocks.0", "blocks.1"))) == [3, 2, 1]
    assert of(found, "members.2.head", "last") == [0, 0], "what follows the blocks is the head"


class StagesInADict(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleDict({name: nn.Sequential(block(), block()) for name in ("high", "low")})
        self.classifier = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        for name in ("low", "high"):
            x = self.stages[name](x)
        return self.classifier(x)


def test_stages_in_a_dict_count_in_the_order_of_their_calls() -> None:
    names = ["stages.low.0", "stages.low.1", "stages.high.0", "stages.high.1", "classifier"]
    assert of(distances(StagesInADict()), *names) == [4, 3, 2, 1, 0]


class LanguageModel(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(9, 4)
        self.layers = nn.ModuleList(block() for _ in range(3))
        self.lm_head = nn.Linear(4, 9)

    def forward(self, ids: Tensor | None = None, embeds: Tensor | None = None) -> Tensor:
        x = self.embed_tokens(ids) if embeds is None else embeds
        for layer in self.layers:
            x = layer(x)
        return self.lm_head(x)


class Captioner(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.llm, self.connector, self.vit = LanguageModel(), block(), Net(2)

    def forward(self, image: Tensor, ids: Tensor) -> Tensor:
        return self.llm(embeds=torch.cat([self.llm.embed_tokens(ids), self.connector(self.vit(image))], 1))


@pytest.mark.parametrize("example", [False, True])
def test_a_language_model_whose_embedding_is_called_first_is_still_above_the_tower(example: bool) -> None:
    model = Captioner()
    if example:
        model.example_input_array = (torch.zeros(1, 2, 4), torch.zeros(1, 3, dtype=torch.long))
    tower, llm = ["vit.patch", "vit.blocks.0", "vit.blocks.1"], ["llm.embed_tokens", "llm.layers.0", "llm.lm_head"]
    assert of(distances(model), *tower, "connector", *llm) == [7, 6, 5, 4, 4, 3, 0]
