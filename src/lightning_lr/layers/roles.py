"""What the name and type of a sub-module reveal about its place, where no forward pass shows it.

These are conventions of the models that people fine-tune. A forward pass (:mod:`~lightning_lr.layers.forward_pass`)
goes first; where neither decides, the order is a guess and the user gets a warning with the table of layers.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence

from torch import nn

from lightning_lr.layers.names import all_parameters, is_leaf, is_normalization

HEAD = re.compile(
    r"(\w+_)?(head|heads|classifier|pooler|score|qa_outputs|logits|logit_scale|logit_bias|temperature)\d*|_?fc|cls"
    r"|(class|bbox|box|score|iou)_embed|(aux|Aux)(Logits|\d*)"
)
"""Attributes that are the head wherever they are defined (outside of blocks)."""
LATE_HEAD = re.compile(r"(\w+_)?(decoder|generator|out|output|outputs|outc|final|predict\w*|readout|regressor)\d*")
"""Attributes that are the head, by a guess, where they are defined before the blocks and hold none."""
STEM = re.compile(r"(?!.*(embed_out|unembed)).*embed.*|wte|wpe|shared|(\w+_)?stem|\w*_tokens?")
"""Attributes that are the stem wherever they are defined (outside of blocks)."""
BLOCKS = re.compile(r"_?(layers?|blocks?|h|resblocks|stages?)\d*")
"""Containers that hold blocks even where there is only one."""
STAGE = re.compile(r"_?(layers|blocks|resblocks|stages?)")
"""Containers of a stage's blocks; inside a block, repeated parts are called otherwise."""
SIDE_BY_SIDE = re.compile(
    r".*(expert|branch|head|adapter|lora|hypernetwork|reassemble|readout|lateral|fpn|merger"
    r"|class_embed|bbox_embed).*"
)
"""Containers whose modules are used in parallel or as alternatives, so that their order is no depth."""
SMALL = re.compile(r".*(head|adapter|lora|readout|merger).*")
"""Of these, what is small, so that it has no depth even where its modules follow one another."""
TUNER = re.compile(r"(\w+_)?(adapters?|prompts?|loras?|prefix(es)?)(_\w+)?")
"""Lists of what is trained next to the blocks of a pretrained model, one for each."""
NUMBERED = re.compile(r"(.*?)_?(\d+)([a-z]?)")
"""Siblings of one class that are called so follow one another: stage1, layers_0, down1, inception3a."""
MIDDLE = re.compile(r"_?(mid|middle|bottleneck|bridge|center|centre|latent)(_?(block|layer|conv)s?)?")
"""A block between two lists of blocks."""
BACKBONE = re.compile(r"(.*_)?(backbone|feature_extractor|trunk|conv_encoder|cnn)(_.*)?")
"""Sub-models that come before their siblings wherever they are defined."""
MODALITY = re.compile(r"(.*_)?(vision|visual|image|img|pixel|audio|speech|sound|video)(_.*)?")
"""Towers that read something other than text."""
LANGUAGE = re.compile(r"(language|llm|lm|text_decoder)(_.*)?|(.*_)?(language_model|llm|lm)")
"""Models that write text: they come after the towers that they read."""
CONNECTOR = re.compile(
    r".*(projector|connector|aligner|resampler|merger|multi_?modal|mm_proj|qformer|perceiver|abstractor).*"
    r"|embed_(vision|audio|image|video|speech)|(vision|visual|image|audio|speech|video)_(to|2)_\w+"
)
"""What lies between a tower and the language model that reads it."""
FUSION = re.compile(r"(.*_)?(multi_?modal|fusion|cross_modal|joint)(_.*)?")
"""Models that read several towers."""
PLACED = re.compile(r"(.*_)?(tower|stream|view|branch|member|net|model|arm|path)s?(_?\d+|_[a-z])")
"""Sub-models of one class that are called so stand side by side, although they are counted through."""
INPUT = re.compile(r"(input|in)_?(proj|conv|layer|linear|fc|norm)\w*|(conv|proj|linear|fc)_in")
"""What the input goes through first, or what lies between a backbone and what reads it."""
ROLE = re.compile(
    r"text|language|vision|visual|image|img|audio|speech|video|query|context|ctx|question|document|doc|passage|student"
    r"|teacher|online|target|source|src|tgt|trg|anchor|left|right|rgb|flow|depth|lidar|camera|radar|user|item|actor"
    r"|critic|policy|value|generator|discriminator|gen|disc|momentum|ema|key|q|k|encoder|decoder|fast|slow"
)
"""Words in the names of sub-models that stand side by side: text_model and vision_model, encoder_q and encoder_k."""
OPPONENTS = (
    (frozenset({"generator", "gen"}), frozenset({"discriminator", "disc", "critic"})),
    (frozenset({"actor", "policy"}), frozenset({"critic", "value"})),
)
"""Networks with losses of their own: one reads what the other makes, and both end at the top."""
SUFFIX = re.compile(r".*_(encoder|backbone|net|network|model|transformer)")
"""Two of one such ending may follow one another (sentence and document) or not (image and patch)."""
IN_SERIES = re.compile(
    r"(.*_)?(backbone|feature\w*|trunk|conv_encoder|cnn|encoder|neck|decoder|transformer|body|model|net|network|layers?"
    r"|blocks?|stages?|down\w*|up\w*|mid\w*|bottleneck|stem|pre\w*|post\w*|main|base|rnn|lstm|gru|attention|mixer)(_.*)?"
    r"\d*"
)
"""Names that leave no doubt that sub-models follow one another in the order of definition."""
OPPOSITES = re.compile(
    r"(.*_)?(down|up|enc|dec|encoder|decoder|contract\w*|expan\w*|in|out|left|right|pre|post)(s|_.*)?\d*"
)
"""Lists that follow one another although they are equally long: down_blocks and up_blocks."""
PART_OF_A_LAYER = re.compile(
    r"(.*_)?((layer_?)?norms?|lns?|bns?|\w*attn\w*|\w*attentions?|ffn?s?|mlps?|feed|drop\w*|act\w*|residuals?|skips?|gates?"
    r"|gating|downsamples?|transitions?|patch_embed\w*)(_.*)?\d*"
)
"""Lists that hold one part of every layer: attentions, ffns, layer_norm1; convs and bns."""
CROSS_ATTENTION = re.compile(
    r".*(cross|encoder_?attn|encoder_?attention|enc_?dec_?att|encdecatt|multihead_attn).*", re.I
)
ATTENTION = re.compile(r"att|qkv|mix", re.I)
FEED_FORWARD = re.compile(r"mlp|ffn?|feed|linear|fc|up|down|w[123]\b", re.I)
"""Two blocks in a list that are one layer together, one of attention and one feed-forward."""

IsHead = Callable[[str], bool]


def heads(parts: Sequence[tuple[str, nn.Module | None]]) -> IsHead:
    """Names of heads; where all parts are named so (``self.classifier = Bert``), the name means nothing."""
    names = [name for name, module in parts if HEAD.fullmatch(name) and not isinstance(module, nn.Embedding)]
    if len(names) == len(parts):
        return lambda name: False
    return lambda name: name in names


def is_stem(name: str, module: nn.Module) -> bool:
    """Whether a part is the stem by its name; a norm lies where it is defined (LFM2's ``embedding_norm``)."""
    return STEM.fullmatch(name) is not None and not is_normalization(module)


def numbered(parts: Sequence[tuple[str, nn.Module]]) -> set[str]:
    """Names of siblings of one class that are counted through: they follow one another."""
    series: dict[tuple[str, type[nn.Module]], list[str]] = {}
    for name, module in parts:
        found = NUMBERED.fullmatch(name)
        if found and not is_leaf(module) and not SIDE_BY_SIDE.fullmatch(name) and not PLACED.fullmatch(name):
            series.setdefault((found.group(1), type(module)), []).append(name)
    return {name for names in series.values() if len(names) > 1 for name in names}


def has_cross_attention(module: nn.Module) -> bool:
    """Whether a decoder reads an encoder by attention, by the names of its parts."""
    return any(CROSS_ATTENTION.fullmatch(name.rpartition(".")[2]) for name, _ in module.named_modules())


def is_encoder_decoder(encoder: tuple[str, nn.Module], decoder: tuple[str, nn.Module], tokens: bool = False) -> bool:
    """Whether two siblings are the halves of a sequence-to-sequence model: each reads tokens of its own.

    ``tokens``: a forward pass shows that the decoder does.
    """
    return encoder[0].replace("encoder", "decoder") == decoder[0] != encoder[0] and (
        tokens or type(encoder[1]) is type(decoder[1]) or has_cross_attention(decoder[1])
    )


def words(name: str) -> frozenset[str]:
    """The words in a name that identify one of several towers."""
    parts = re.split(r"[_\d]+", re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower())
    return frozenset(part for part in parts if ROLE.fullmatch(part))


def are_towers(names: Iterable[str]) -> bool:
    """Whether every name identifies a tower, each another one."""
    names = list(names)
    if len(names) > 1 and all(PLACED.fullmatch(name) for name in names):
        return True
    found = [words(name) for name in names]
    return len(found) > 1 and all(found) and len(set(found)) == len(found)


def says_what_it_reads(name: str) -> bool:
    """Whether a sub-model's name tells its place among others: a tower, a projector, a language model, a half."""
    kinds = (MODALITY, LANGUAGE, BACKBONE, FUSION, CONNECTOR)
    return bool(words(name)) or any(kind.fullmatch(name) for kind in kinds)


def may_lack_its_input(name: str) -> bool:
    """Whether a part is called for reading, or passing on, something other than text, which not every batch has."""
    return any(kind.fullmatch(name) for kind in (MODALITY, CONNECTOR))


def are_opponents(one: str, other: str) -> bool:
    """Whether two networks are trained against one another, or one to judge the other, by their names."""
    a, b = words(one), words(other)
    return any((a & left and b & right) or (a & right and b & left) for left, right in OPPONENTS)


def signature(module: nn.Module) -> frozenset[str]:
    """Names of the parameters: what two blocks of one kind share."""
    return frozenset(name for name, _ in all_parameters(module))
