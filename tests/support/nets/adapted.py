"""A pretrained network with something small of the user's beside it: adapters, prompts, LoRA, side networks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tests.support.nets.collection import Layer, Tower, layers, lin, must_decide, right


class Adapter(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.up = nn.Linear(4, 2), nn.Linear(2, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.up(self.down(x).relu())
        return y


BETWEEN = ("body.embed body.layers.0-2 head", "adapters.0-2 head", "body.norm")


@right(*BETWEEN)
class AdaptersInAListOfTheirOwn(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.adapters, self.head = Tower(3), layers(3, Adapter), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        for layer, adapter in zip(self.body.layers, self.adapters, strict=True):
            x = adapter(layer(x))
        y: Tensor = self.head(self.body.norm(x))
        return y


@right(*BETWEEN, name="adapters beside code that decides")
class AdaptersBesideCodeThatDecides(AdaptersInAListOfTheirOwn):
    def forward(self, x: Tensor) -> Tensor:
        must_decide(x)
        x = self.body.embed(x)
        for layer, adapter in zip(self.body.layers, self.adapters, strict=True):
            x = adapter(layer(x))
        y: Tensor = self.head(self.body.norm(x))
        return y


@right(*(chain.replace("adapters", "tuners") for chain in BETWEEN))
class AdaptersUnderAnotherName(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tuners, self.body, self.head = layers(3, Adapter), Tower(3), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        for i, layer in enumerate(self.body.layers):
            x = self.tuners[i](layer(x))
        y: Tensor = self.head(self.body.norm(x))
        return y


@right("body.embed body.layers.0-3 head", rising=("body.layers.0 tuned.0 body.layers.2 tuned.1 head",))
class AdaptersAfterEverySecondBlock(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.tuned, self.head = Tower(4), layers(2, Adapter), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        for i, layer in enumerate(self.body.layers):
            x = layer(x)
            if i % 2:
                x = self.tuned[i // 2](x)
        y: Tensor = self.head(self.body.norm(x))
        return y


@right("stem blocks.0-2 head", "adapter.0-2 head")
class AdaptersBesideBlocksOfTheSameModule(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.adapter, self.head = lin(), layers(3), layers(3, Adapter), lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block, adapter in zip(self.blocks, self.adapter, strict=True):
            x = adapter(block(x))
        y: Tensor = self.head(x)
        return y


@right("body.embed body.layers.0-2 head", "prompts.0-2 head")
class PromptsOfEveryLayer(nn.Module):
    """Visual prompt tuning, deep."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Tower(3), lin()
        self.prompts = nn.ParameterList(nn.Parameter(torch.zeros(2, 4)) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        for layer, prompt in zip(self.body.layers, self.prompts, strict=True):
            x = layer(torch.cat([prompt, x]))
        y: Tensor = self.head(self.body.norm(x))
        return y


@right("prompt|body.embed body.layers.0-1 head")
class PromptOfTheInput(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Tower(2), lin()
        self.prompt = nn.Parameter(torch.zeros(2, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.cat([self.prompt, self.body.embed(x)])
        for layer in self.body.layers:
            x = layer(x)
        y: Tensor = self.head(self.body.norm(x))
        return y


class LowRank(nn.Module):
    """As peft names it."""

    def __init__(self) -> None:
        super().__init__()
        self.base_layer = lin().requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(4, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, 4, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x))
        return y


class TunedLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.q_proj, self.mlp = nn.LayerNorm(4), LowRank(), lin()

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.mlp(self.q_proj(self.norm(x)))
        return y


class Wrapped(nn.Module):
    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.base_model = nn.Module()
        self.base_model.model = model

    def forward(self, *args: Tensor, **kwargs: Tensor) -> Tensor:
        y: Tensor = self.base_model.model(*args, **kwargs)
        return y


class Language(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.embed_tokens = nn.Embedding(9, 4)
        self.model.layers = layers(3, TunedLayer)
        self.model.norm = nn.LayerNorm(4)
        self.lm_head = lin()

    def forward(self, x: Tensor) -> Tensor:
        x = self.model.embed_tokens(x)
        for layer in self.model.layers:
            x = layer(x)
        y: Tensor = self.lm_head(self.model.norm(x))
        return y


@right(
    "base_model.model.model.embed_tokens base_model.model.model.layers.0-2 base_model.model.lm_head",
    "base_model.model.model.norm",
)
def low_rank_adaptation() -> nn.Module:
    return Wrapped(Language())


@right(rising=("body.embed body.layers.0 body.layers.1 body.layers.2 head", "downs.0 side.0 side.1 side.2 head"))
class LadderOfASideNetwork(nn.Module):
    """Side blocks read the frozen body's blocks and feed one another; nothing flows back."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head = Tower(3), lin()
        self.downs, self.side = layers(3, lin), layers(3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body.embed(x)
        y = torch.zeros(())
        for layer, down, side in zip(self.body.layers, self.downs, self.side, strict=True):
            x = layer(x)
            y = side(y + down(x))
        z: Tensor = self.head(y)
        return z


@right("body.embed body.layers.0-1 body.norm|probe", name="a probe that is called adapter")
class Probe(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.probe, self.body = Layer(), Tower(2)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.probe(self.body(x))
        return y
