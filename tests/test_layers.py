"""Depth discovery and parameter groups on models that people fine-tune; timm's own are the oracle for its models."""

from __future__ import annotations

import copy
import os
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper

from lightning_lr import layerwise_param_groups
from lightning_lr.layers import LayerMap, discover, parameters_by_name
from tests.support.timm_oracle import import_timm, import_torchvision_models

os.environ.setdefault("HF_HUB_OFFLINE", "1")
TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_attention_heads": 2, "vocab_size": 50}


def transformers() -> Any:
    return pytest.importorskip("transformers", reason="transformers is not installed (extra dev)")


def bert() -> nn.Module:
    t = transformers()
    return t.BertForSequenceClassification(t.BertConfig(**TEXT, num_hidden_layers=6))


def gpt2() -> nn.Module:
    t = transformers()
    return t.GPT2LMHeadModel(t.GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=50))


def t5() -> nn.Module:
    t = transformers()
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_heads": 2, "vocab_size": 50}
    return t.T5ForConditionalGeneration(t.T5Config(**sizes, num_layers=3, num_decoder_layers=2))


def clip() -> nn.Module:
    t = transformers()
    sizes = {key: TEXT[key] for key in ("hidden_size", "intermediate_size", "num_attention_heads")}
    text = {**TEXT, "num_hidden_layers": 2}
    vision = {**sizes, "num_hidden_layers": 3, "image_size": 32, "patch_size": 16}
    return t.CLIPModel(t.CLIPConfig(text_config=text, vision_config=vision, projection_dim=8))


def checked(model: nn.Module, layers: Any = "auto") -> LayerMap:
    """The layers of a model, after checking what holds for every model."""
    found = discover(model, layers)
    names = [name for layer in found.layers for name in layer.parameters]
    assert sorted(names) == sorted(dict(model.named_parameters())), "every parameter exactly once"
    assert all(layer.parameters for layer in found.layers), "no layer is empty"
    assert len({layer.name for layer in found.layers}) == len(found.layers), "names are unique"
    depths = [layer.depth for layer in found.layers]
    assert depths == sorted(depths)
    assert set(depths) == set(range(found.depth)), "no depth is skipped"
    return found


def depths(found: LayerMap) -> dict[str, int]:
    return {layer.name: layer.depth for layer in found.layers}


def places(found: LayerMap, *names: str) -> list[int]:
    return [found.layer_of(name).depth for name in names]


# ---------------------------------------------------------------------- Hugging Face
def test_bert() -> None:
    found = checked(bert())
    assert found.how == "repeated blocks"
    assert depths(found) == {"stem": 0, **{f"bert.encoder.layer.{i}": i + 1 for i in range(6)}, "head": 7}
    assert places(found, "bert.embeddings.word_embeddings.weight", "bert.embeddings.LayerNorm.bias") == [0, 0]
    assert places(found, "bert.pooler.dense.weight", "classifier.bias") == [7, 7]
    # MAE and BEiT: stem decay^(L+1), block i decay^(L-i), head 1
    factors = [found.factor(layer.name, 0.8) for layer in found.layers]
    assert factors == pytest.approx([0.8**7, 0.8**6, 0.8**5, 0.8**4, 0.8**3, 0.8**2, 0.8, 1.0], rel=1e-12)


def test_minilm_sized_encoder_without_a_head() -> None:
    t = transformers()
    found = checked(t.BertModel(t.BertConfig(**TEXT, num_hidden_layers=6), add_pooling_layer=False))
    assert depths(found) == {"stem": 0, **{f"encoder.layer.{i}": i + 1 for i in range(6)}}
    assert found.factor("encoder.layer.5", 0.5) == 1.0, "where there is no head, the last block is the top"


def test_gpt2_whose_head_is_tied_to_its_embedding() -> None:
    model = gpt2()
    assert model.lm_head.weight is model.transformer.wte.weight  # type: ignore[union-attr]
    found = checked(model)
    assert depths(found) == {"stem": 0, "transformer.h.0": 1, "transformer.h.1": 2, "transformer.h.2": 3, "head": 4}
    assert places(found, "transformer.wte.weight", "transformer.wpe.weight") == [0, 0]
    assert found.layers[-1].parameters == ("transformer.ln_f.weight", "transformer.ln_f.bias")


def test_t5_has_two_towers_over_one_embedding() -> None:
    found = checked(t5())
    assert found.layers[0].parameters == ("shared.weight",)
    assert depths(found) == {
        "stem": 0,
        "encoder.block.0": 1,
        "encoder.block.1": 2,
        "encoder.block.2": 3,
        "decoder.block.0": 2,
        "decoder.block.1": 3,
        "head": 4,
    }


def test_clip_towers_have_their_own_depth() -> None:
    found = checked(clip())
    for tower, blocks in (("vision_model", 3), ("text_model", 2)):
        alone = [0.5 ** (blocks + 1), *(0.5 ** (blocks - i) for i in range(blocks))]
        names = [f"{tower}.stem", *(f"{tower}.encoder.layers.{i}" for i in range(blocks))]
        assert [found.factor(name, 0.5) for name in names] == alone
    head = {"logit_scale", "text_projection.weight", "visual_projection.weight", "text_model.final_layer_norm.bias"}
    assert head <= set(found.layers[-1].parameters)
    assert found.layers[-1].depth == 4


def test_bart_has_position_embeddings_in_each_tower_and_no_head() -> None:
    t = transformers()
    heads = {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    config = t.BartConfig(d_model=16, encoder_layers=3, decoder_layers=2, vocab_size=50, **heads)
    found = checked(t.BartForConditionalGeneration(config))
    assert depths(found) == {
        "stem": 0,
        "model.encoder.stem": 0,
        "model.encoder.layers.0": 1,
        "model.encoder.layers.1": 2,
        "model.encoder.layers.2": 3,
        "model.decoder.stem": 1,
        "model.decoder.layers.0": 2,
        "model.decoder.layers.1": 3,
    }, "its output layer is tied to the embedding"


@pytest.mark.parametrize(
    ("config", "model", "arguments", "blocks"),
    [
        ("ViTConfig", "ViTForImageClassification", {"num_hidden_layers": 2, "hidden_size": 16, "num_attention_heads": 2,
         "intermediate_size": 32, "image_size": 32}, 2),
        ("SwinConfig", "SwinForImageClassification", {"image_size": 32, "patch_size": 4, "embed_dim": 8,
         "depths": [2, 1], "num_heads": [2, 2], "window_size": 2}, 3),
        ("ConvNextConfig", "ConvNextForImageClassification", {"hidden_sizes": [8, 16], "depths": [1, 2],
         "num_stages": 2}, 3),
        ("ResNetConfig", "ResNetForImageClassification", {"embedding_size": 8, "hidden_sizes": [8, 16],
         "depths": [1, 2], "layer_type": "basic"}, 3),
        ("DistilBertConfig", "DistilBertForSequenceClassification", {"dim": 16, "n_layers": 3, "n_heads": 2,
         "hidden_dim": 32, "vocab_size": 50}, 3),
        ("DebertaV2Config", "DebertaV2ForSequenceClassification", {**TEXT, "num_hidden_layers": 2,
         "relative_attention": True}, 2),
        ("LlamaConfig", "LlamaForCausalLM", {**TEXT, "num_hidden_layers": 2, "num_key_value_heads": 2}, 2),
    ],
)  # fmt: skip
def test_more_of_hugging_face(config: str, model: str, arguments: dict[str, Any], blocks: int) -> None:
    t = transformers()
    found = checked(getattr(t, model)(getattr(t, config)(**arguments)))
    assert found.how == "repeated blocks"
    assert found.depth == blocks + 2, "stem, blocks, head"
    assert found.layers[0].name.endswith("stem")
    assert found.layers[-1].name == "head"


# ---------------------------------------------------------------------- timm
TIMM = {
    "test_vit": 8,
    "vit_tiny_patch16_224": 14,
    "swin_tiny_patch4_window7_224": 14,
    "convnext_atto": 14,
    "resnet18": 10,
    "efficientnet_lite0": 18,
}


@pytest.mark.parametrize("name", TIMM)
def test_timm_models_agree_with_timm(name: str) -> None:
    """Its own `param_groups_layer_decay`: scale of the learning rate, and weight decay, of every parameter."""
    timm = import_timm()
    model = timm.create_model(name)
    found = checked(model)
    assert found.how == "timm group_matcher"
    assert found.depth == TIMM[name]
    listed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    theirs = timm.optim.param_groups_layer_decay(
        model, weight_decay=0.05, no_weight_decay_list=listed, layer_decay=0.75
    )
    ours = layerwise_param_groups(model, lr=1.0, decay=0.75, weight_decay=0.05)
    scale = {id(p): (group["lr_scale"], group["weight_decay"]) for group in theirs for p in group["params"]}
    for group in ours:
        for parameter in group["params"]:
            assert (group["lr"], group["weight_decay"]) == pytest.approx(scale.pop(id(parameter)), rel=1e-12)
    assert not scale, "every parameter exactly once"


def test_final_norm_is_where_our_convention_differs_from_timm() -> None:
    """timm counts a ViT's final norm with its last block, MAE and BEiT (and we, where no model says) with the head."""
    model = import_timm().create_model("test_vit")
    asked = discover(model)
    type(model).group_matcher, method = None, type(model).group_matcher
    try:
        read = checked(model)
    finally:
        type(model).group_matcher = method
    assert read.how == "repeated blocks"
    different = [
        name
        for name in dict(model.named_parameters())
        if asked.factor(asked.layer_of(name).name, 0.5) != read.factor(read.layer_of(name).name, 0.5)
    ]
    assert different == ["norm.weight", "norm.bias"]
    assert asked.factor(asked.layer_of("norm.weight").name, 0.5) == 0.5
    assert read.factor(read.layer_of("norm.weight").name, 0.5) == 1.0


def test_depth_comes_from_the_full_model() -> None:
    """Frozen parameters are in no group and still count as layers."""
    timm = import_timm()
    model = timm.create_model("test_vit")
    whole = {name: discover(model).layer_of(name).depth for name in dict(model.named_parameters())}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith(("blocks.5", "head")))
    assert {name: discover(model).layer_of(name).depth for name in whole} == whole
    groups = layerwise_param_groups(model, lr=1.0, decay=0.5)
    assert {group["name"]: group["lr"] for group in groups} == {"blocks.5": 0.5, "head": 1.0}


def test_timm_backbone_inside_of_a_lightning_module() -> None:
    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.classifier = nn.Linear(64, 2)  # defined first, and yet the head
            self.backbone = import_timm().create_model("test_vit", num_classes=0)

    found = checked(Module())
    assert found.how == "timm group_matcher"
    assert found.layers[0].name == "backbone.stem"
    assert found.layers[-1].parameters == ("classifier.weight", "classifier.bias")
    assert [layer.name for layer in found.layers[1:-1]] == [f"backbone.blocks.{i}" for i in range(6)]


# ---------------------------------------------------------------------- torchvision and plain torch
@pytest.mark.parametrize(
    ("name", "layers", "first", "last"),
    [
        ("resnet18", 10, ["conv1.weight", "bn1.weight", "bn1.bias"], ["fc.weight", "fc.bias"]),
        ("vgg11", 9, ["features.0.weight", "features.0.bias"], None),
        ("mobilenet_v2", 20, None, ["classifier.1.weight", "classifier.1.bias"]),
        ("mobilenet_v3_small", 14, None, None),
        ("convnext_tiny", 20, None, None),
        ("swin_t", 14, None, ["norm.weight", "norm.bias", "head.weight", "head.bias"]),
        ("vit_b_16", 14, None, ["encoder.ln.weight", "encoder.ln.bias", "heads.head.weight", "heads.head.bias"]),
        ("efficientnet_b0", 19, None, None),
    ],
)
def test_torchvision(name: str, layers: int, first: list[str] | None, last: list[str] | None) -> None:
    models = import_torchvision_models()
    with torch.device("meta"):
        found = checked(getattr(models, name)(weights=None))
    assert found.how == "repeated blocks"
    assert found.depth == len(found.layers) == layers
    assert first is None or list(found.layers[0].parameters) == first
    assert last is None or list(found.layers[-1].parameters) == last


def vgg_like() -> nn.Module:
    model = nn.Module()
    model.features = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    )
    model.classifier = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model


def test_sequential_of_single_layers_in_the_style_of_torchvision() -> None:
    found = checked(vgg_like())
    assert [(layer.name, len(layer.parameters)) for layer in found.layers] == [
        ("features.0", 4),
        ("features.3", 4),
        ("head", 4),
    ]


def test_a_sequential_as_the_whole_model() -> None:
    found = checked(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 2)))
    assert depths(found) == {"0": 0, "2": 1, "4": 2}
    assert found.factor("4", 0.5, head_factor=10.0) == 10.0


def test_torch_transformer() -> None:
    found = checked(nn.Transformer(8, 2, 2, 3, 16))
    assert found.depth == 4, "decoder of three layers, and the final norms"
    assert found.distance_from_top("encoder.layers.1") == found.distance_from_top("decoder.layers.2") == 1


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(8)
        self.q = nn.Linear(8, 8)
        self.experts = nn.ModuleList([nn.Sequential(nn.Linear(8, 8)) for _ in range(4)])

    def forward(self, x: Tensor) -> Tensor:
        return x + self.q(self.norm(x))


class Plain(nn.Module):
    """A stem, three blocks (each with experts side by side), a final norm and a head."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(10, 8)
        self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
        self.blocks = nn.ModuleList([Attention() for _ in range(3)])
        self.norm = nn.LayerNorm(8)
        self.lm_head = nn.Linear(8, 10, bias=False)
        if tied:
            self.lm_head.weight = self.embed.weight

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for block in self.blocks:
            x = block(x)
        return self.lm_head(self.norm(x))


def test_experts_inside_of_a_block_are_no_depth() -> None:
    found = checked(Plain())
    assert depths(found) == {"stem": 0, "blocks.0": 1, "blocks.1": 2, "blocks.2": 3, "head": 4}
    assert len(found.layers[1].parameters) == 12


@pytest.mark.parametrize("make", [lambda: Plain(tied=True), gpt2, t5])
def test_tied_weights_train_once_at_the_lowest_of_their_places(make: Callable[[], nn.Module]) -> None:
    model = make()
    groups = layerwise_param_groups(model, lr=1.0, decay=0.5)
    ids = [id(parameter) for group in groups for parameter in group["params"]]
    assert len(ids) == len(set(ids)) == len(list(model.parameters()))
    assert places(
        checked(model), next(n for n, _ in model.named_parameters() if "embed" in n or "wte" in n or "shared" in n)
    ) == [0]


class LoRALinear(nn.Module):
    """A frozen layer and a low-rank update beside it (Hu et al. 2021)."""

    def __init__(self, base: nn.Linear, rank: int = 2) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.lora_A = nn.Linear(base.in_features, rank, bias=False)
        self.lora_B = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.lora_B(self.lora_A(x))


def test_lora_on_some_layers_keeps_the_depth_of_the_model() -> None:
    model = Plain().requires_grad_(False)
    for index in (0, 2):  # as peft's layers_to_transform
        model.blocks[index].q = LoRALinear(model.blocks[index].q)  # type: ignore[union-attr]
    groups = layerwise_param_groups(model, lr=1.0, decay=0.5)
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert {group["name"]: (group["lr"], [names[id(p)] for p in group["params"]]) for group in groups} == {
        "blocks.0": (0.125, ["blocks.0.q.lora_A.weight", "blocks.0.q.lora_B.weight"]),
        "blocks.2": (0.5, ["blocks.2.q.lora_A.weight", "blocks.2.q.lora_B.weight"]),
    }


# ---------------------------------------------------------------------- wrappers
def compiled(model: nn.Module) -> nn.Module:
    return torch.compile(model)  # type: ignore[return-value]  # compiled when it is called


def compiled_blocks(model: nn.Module) -> nn.Module:
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type, union-attr]
        model.blocks[index] = torch.compile(block)  # type: ignore[operator, index, union-attr]
    return model


def checkpointed_blocks(model: nn.Module) -> nn.Module:
    for index, block in enumerate(model.blocks):  # type: ignore[arg-type, union-attr]
        model.blocks[index] = checkpoint_wrapper(block)  # type: ignore[operator, index, union-attr]
    return model


@pytest.mark.parametrize(
    "wrap",
    [compiled, compiled_blocks, checkpointed_blocks, nn.DataParallel, lambda m: compiled(checkpointed_blocks(m))],
    ids=["compile", "compiled-blocks", "checkpointed-blocks", "data-parallel", "both"],
)
def test_names_are_seen_through_wrappers(wrap: Callable[[nn.Module], nn.Module]) -> None:
    plain = Plain()
    expected = discover(plain)
    wrapped = wrap(copy.deepcopy(plain))
    assert discover(wrapped) == expected
    assert list(parameters_by_name(wrapped)) == list(dict(plain.named_parameters()))


# ---------------------------------------------------------------------- patterns
def test_patterns_first_match_wins() -> None:
    found = checked(Plain(), ["embed", r"blocks\.(\d+)", "."])
    assert found.how == "patterns"
    assert [layer.depth for layer in found.layers] == [0, 1, 2, 3, 4]
    assert found.layers[-1].parameters == ("norm.weight", "norm.bias", "lm_head.weight")
    assert found.layers[0].parameters == ("pos_embed", "embed.weight")


def test_captured_numbers_order_as_numbers() -> None:
    model = nn.ModuleList([nn.Linear(1, 1) for _ in range(12)])
    assert [layer.parameters[0] for layer in discover(model, [r"^(\d+)"]).layers] == [f"{i}.weight" for i in range(12)]


def test_tied_weights_match_by_any_of_their_names() -> None:
    found = checked(Plain(tied=True), ["embed", "blocks", "norm", "embed|lm_head"][:3])
    assert places(found, "embed.weight") == [0]


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        (
            ["embed", "blocks", "nothing", "."],
            "the pattern 'nothing' matches no parameter of Plain; the names are like",
        ),
        ([".", "blocks"], "the pattern 'blocks' matches only parameters that earlier patterns take"),
        (["embed", "blocks"], r"no pattern matches norm.weight, norm.bias, lm_head.weight \(3 of 41 parameters\)"),
        (["("], "which is no regular expression"),
        ("timm", "got layers='timm'"),
        ([], "no pattern matches"),
    ],
)
def test_patterns_that_do_not_fit(layers: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        discover(Plain(), layers)


# ---------------------------------------------------------------------- no repeated structure
def test_definition_order_and_says_so() -> None:
    class Convolutions(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 2)
            self.conv1 = nn.Conv2d(1, 4, 3)
            self.bn1 = nn.BatchNorm2d(4)
            self.conv2 = nn.Conv2d(4, 4, 3)

    class Module(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = Convolutions()

    with pytest.warns(UserWarning, match=r"Module has no repeated blocks.*3 parts.*net.conv1, net.conv2, head") as said:
        found = checked(Module())
    assert len(said) == 1
    assert found.how == "definition order"
    assert places(found, "net.conv1.weight", "net.bn1.weight", "net.conv2.weight", "net.fc.weight") == [0, 0, 1, 2]


def test_a_model_without_parameters() -> None:
    with pytest.raises(ValueError, match="ReLU has no parameters"):
        discover(nn.ReLU())


def test_lazy_layers_are_refused_until_they_have_shapes() -> None:
    model = nn.Sequential(nn.LazyLinear(4), nn.ReLU(), nn.LazyLinear(2))
    with pytest.raises(
        ValueError, match=r"0\.weight, .* \(4 in all\) have no shape yet .*; call the model once on a batch"
    ):
        discover(model)
    model(torch.zeros(1, 3))
    assert places(discover(model), "0.weight", "2.weight") == [0, 1]


# ---------------------------------------------------------------------- groups
def test_groups_have_real_learning_rates_and_train() -> None:
    model = bert()
    groups = layerwise_param_groups(model, lr=0.1, decay=0.5, weight_decay=0.01, head_factor=2.0)
    assert {(group["name"], group["lr"]) for group in groups if group["name"].startswith("head")} == {
        ("head", 0.2),
        ("head/no_decay", 0.2),
    }
    assert all(group["params"] for group in groups)
    assert len({group["name"] for group in groups}) == len(groups) == 16
    for group in groups:
        exempt = {n for n, p in model.named_parameters() if any(p is q for q in group["params"])}
        is_exempt = {n.endswith(".bias") or "LayerNorm" in n for n in exempt}
        assert is_exempt == {group["weight_decay"] == 0.0}, group["name"]
    optimizer = torch.optim.AdamW(groups)
    loss = model(torch.ones(1, 3, dtype=torch.long), labels=torch.ones(1, dtype=torch.long)).loss
    before = {id(p): p.detach().clone() for p in model.parameters()}
    loss.backward()
    optimizer.step()
    moved = {group["name"]: max((p - before[id(p)]).abs().max().item() for p in group["params"]) for group in groups}
    # the first step of Adam is its lr, whatever the gradient; the decay adds lr x 0.01 x weight at most
    assert moved["head"] == pytest.approx(0.2, rel=0.05)
    assert moved["bert.encoder.layer.5"] == pytest.approx(0.05, rel=0.05)
    assert moved["bert.encoder.layer.0"] == pytest.approx(0.1 * 0.5**6, rel=0.05)


def test_no_weight_decay_lists_of_submodels_count() -> None:
    class Inner(Plain):
        def no_weight_decay(self) -> set[str]:
            return {"pos_embed"}

    outer = nn.ModuleDict({"net": Inner()})
    groups = {g["name"]: g for g in layerwise_param_groups(outer, 1.0, 0.5, weight_decay=0.1)}
    assert [p.shape for p in groups["stem/no_decay"]["params"]] == [(1, 5, 8)]
    assert [p.shape for p in groups["stem"]["params"]] == [(10, 8)]


def test_no_weight_decay_by_patterns() -> None:
    groups = layerwise_param_groups(Plain(), 1.0, 1.0, weight_decay=0.1, no_weight_decay=["embed"])
    assert {g["name"]: len(g["params"]) for g in groups} == {"decay": 39, "no_decay": 2}
    assert [g["name"] for g in layerwise_param_groups(Plain(), 1.0, 1.0, weight_decay=0.1, no_weight_decay=[])] == [
        "all"
    ]


def test_discovery_does_not_warn_where_it_is_sure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        discover(Plain())


# ---------------------------------------------------------------------- what has no weight decay by convention
def decays(model: nn.Module) -> dict[str, bool]:
    """Parameter to whether it gets weight decay."""
    name_of = {id(parameter): name for name, parameter in model.named_parameters()}
    groups = layerwise_param_groups(model, 1.0, 1.0, weight_decay=0.1)
    return {name_of[id(p)]: group["weight_decay"] > 0 for group in groups for p in group["params"]}


VISION = {
    "hidden_size": 16,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "intermediate_size": 32,
    "image_size": 32,
}


@pytest.mark.parametrize(
    ("kind", "arguments", "exempt"),
    [
        ("ViTModel", {}, ["embeddings.cls_token", "embeddings.position_embeddings"]),
        ("DeiTModel", {}, ["embeddings.cls_token", "embeddings.distillation_token", "embeddings.position_embeddings"]),
        ("Dinov2Model", {}, ["embeddings.cls_token", "embeddings.mask_token", "embeddings.position_embeddings"]),
        ("BeitModel", {"use_relative_position_bias": True}, ["embeddings.cls_token", "relative_position_bias_table"]),
        ("SwinModel", {"depths": [1], "num_heads": [2], "embed_dim": 8}, ["relative_position_bias_table"]),
        ("Swinv2Model", {"depths": [1], "num_heads": [2], "embed_dim": 8}, ["logit_scale", "position_bias_mlp"]),
        ("CLIPVisionModel", {}, ["position_embedding.weight", "class_embedding"]),
        ("MambaModel", {"state_size": 4, "vocab_size": 50}, ["mixer.A_log", "mixer.D"]),
    ],
)
def test_tokens_positions_and_state_spaces_have_no_decay(
    kind: str, arguments: dict[str, Any], exempt: list[str]
) -> None:
    t = transformers()
    sizes: dict[str, Any] = VISION
    if kind == "MambaModel":
        sizes = {"hidden_size": 16, "num_hidden_layers": 1}
    elif kind.startswith("Swin"):
        sizes = {"image_size": 32}
    with torch.device("meta"):
        model = getattr(t, kind)(getattr(t, kind.replace("Model", "Config"))(**{**sizes, **arguments}))
    found = decays(model)
    for name in exempt:
        places = [decay for parameter, decay in found.items() if name in parameter]
        assert places, name
        assert not any(places), name
    matrices = [n for n, p in model.named_parameters() if p.ndim > 1 and not any(name in n for name in exempt)]
    assert all(found[n] for n in matrices if "rel_pos" not in n and "mask_token" not in n), "and nothing else"


def test_word_and_position_embeddings_of_a_language_model_keep_their_decay() -> None:
    found = decays(bert())
    embeddings = [name for name in found if name.endswith("embeddings.weight")]
    assert len(embeddings) == 3
    assert all(found[name] for name in embeddings)


def test_marks_and_shapes_of_hand_written_parameters() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.pos_embed = nn.Parameter(torch.zeros(1, 5, 8))
            self.start = nn.Parameter(torch.zeros(1, 1, 8))
            self.layer_scale = nn.Parameter(torch.ones(8, 1, 1))
            self.marked = nn.Parameter(torch.zeros(3, 8))
            self.marked._no_weight_decay = True  # type: ignore[attr-defined]  # as Mamba's code does
            self.dictionary = nn.Parameter(torch.zeros(3, 8))
            self.weight = nn.Parameter(torch.zeros(1, 1, 8))
            self.conv = nn.Conv2d(1, 1, 3)

    assert decays(Net()) == {
        "pos_embed": False, "start": False, "layer_scale": False, "marked": False, "dictionary": True, "weight": True,
        "conv.weight": True, "conv.bias": False,
    }  # fmt: skip
