"""Networks of libraries: inputs that are optional by the signature alone, checks of their type, states by number."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from tests.support.nets.collection import Layer, Tower, layers, lin, right


class Hidden(Tower):
    """Gives the outputs of all layers."""

    def forward(self, x: Tensor, *more: Tensor) -> Any:
        hidden = [self.embed(x)]
        for layer in self.layers:
            hidden.append(layer(hidden[-1]))
        return hidden


class Fusion(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.projections, self.fusion = layers(2, lin), layers(2)

    def forward(self, states: list[Tensor]) -> Any:
        fused: Any = None
        for projection, layer, state in zip(self.projections, self.fusion, states, strict=False):
            y = projection(state)
            fused = layer(y if fused is None else fused + y)
        return fused


@right(
    "backbone.embed backbone.layers.0-3 neck.projections|neck.fusion.0 neck.fusion.1 head",
    name="hidden states of all layers, some taken by their number",
)
class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.taken, self.backbone, self.neck, self.head = [1, 3], Hidden(4), Fusion(), lin()
        del self.backbone.norm

    def forward(self, pixels: Tensor, labels: Tensor | None = None) -> Tensor:
        states = self.backbone(pixels)
        y: Tensor = self.head(self.neck([s for index, s in enumerate(states[1:]) if index in self.taken]))
        return y if labels is None else (y - labels).pow(2).mean()


def to_corners(boxes: Any) -> Any:
    if not isinstance(boxes, Tensor):
        raise ValueError(f"Unsupported input type {type(boxes)}")
    return boxes * 2


class Queries(nn.Module):
    """A decoder whose arguments are all optional; each layer moves the reference points for the next one."""

    def __init__(self, checks: bool) -> None:
        super().__init__()
        self.layers, self.checks = layers(3), checks
        self.bbox_embed = layers(3, lambda: Tower(2))
        self.class_embed, self.quality = layers(3, lin), layers(3, Layer)
        self.query_pos_head = nn.Sequential(lin(), nn.ReLU(), lin())

    def forward(
        self, inputs_embeds: Any = None, encoder_hidden_states: Any = None, reference_points: Any = None
    ) -> tuple[Tensor, Tensor]:
        points, hidden, boxes, scores = reference_points.sigmoid(), inputs_embeds, [], []
        for index, layer in enumerate(self.layers):
            hidden = layer(hidden + self.query_pos_head(points), encoder_hidden_states)
            new = (self.bbox_embed[index](hidden) + points).sigmoid()
            points = (to_corners(new) if self.checks else new).detach()
            boxes.append(new)
            scores.append(self.quality[index](self.class_embed[index](hidden), new))
        return torch.stack(boxes), torch.stack(scores)


class Detector(nn.Module):
    def __init__(self, checks: bool) -> None:
        super().__init__()
        self.denoising_class_embed = nn.Embedding(9, 4)
        self.backbone, self.decoder = Hidden(4), Queries(checks)
        del self.backbone.norm
        self.input_proj, self.enc_output, self.masks = (
            layers(3, lambda: nn.Sequential(lin(), nn.ReLU())),
            lin(),
            layers(5),
        )

    def forward(self, pixel_values: Tensor, labels: Any = None) -> Any:
        features = [self.input_proj[level](source) for level, source in enumerate(self.backbone(pixel_values))]
        memory = torch.cat(features, 1)
        if labels is not None:
            queries = self.denoising_class_embed(torch.tensor([int(one["labels"].item()) for one in labels]))
        else:
            queries = self.enc_output(memory)
        y = self.decoder(inputs_embeds=queries, encoder_hidden_states=memory, reference_points=memory)[0]
        for mask in self.masks:
            y = mask(y)
        return y


_ORDER = (
    "backbone.embed backbone.layers.0-3 input_proj decoder.layers.0|decoder.query_pos_head|enc_output"
    "|denoising_class_embed decoder.layers.1-2 masks.0|decoder.bbox_embed|decoder.class_embed|decoder.quality "
    "masks.1-4",
)
right(*_ORDER, name="a decoder that cannot do without its optional inputs")(lambda: Detector(False))
right(*_ORDER, name="a decoder that asks whether it has a tensor")(lambda: Detector(True))


@right(
    "small.embed|large.embed small.layers.0|large.layers.0 small.layers.1|large.layers.1 "
    "upsample.0|upsample.1|deeper.0|deeper.1 fuse",
    name="features of a list, each replaced by its own branch",
)
class Replaced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.small, self.large = Tower(), Tower()
        del self.small.norm, self.large.norm
        self.small.norm = self.large.norm = nn.Identity()
        self.fuse, self.upsample, self.deeper = lin(), layers(), layers()

    def replaced(self, features: Any) -> Any:
        for i in range(2):
            features[i] = self.upsample[i](features[i])
        for i in range(2):
            features[2 + i] = self.deeper[i](features[2 + i])
        return features

    def forward(self, pixels: Tensor) -> Tensor:
        small, large = self.small(pixels), self.large(pixels[:, ::2])
        features = torch.stack([small, small, large, large])
        features = self.replaced(features)
        y: Tensor = self.fuse(features[0] + features[1] + features[2] + features[-1])
        return y


@right(
    "sounds.embed|meaning.embed sounds.layers.0|meaning.layers.0 sounds.layers.1|meaning.layers.1 "
    "language_model.embed|projector language_model.layers.0-1 head",
    name="two encoders of an optional sound below a language model",
)
class Listener(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.sounds, self.meaning, self.language_model = Tower(), Tower(), Tower()
        self.projector, self.head = lin(), lin()

    def features(self, sound: Tensor) -> Tensor:
        heard, understood = [], []
        for chunk in torch.split(sound, 2, dim=-1):
            heard.append(self.sounds(chunk))
            understood.append(self.meaning(chunk))
        return self.projector(torch.cat(heard, 1) + torch.cat(understood, 1))  # type: ignore[no-any-return]

    def forward(self, input_ids: Any = None, inputs_embeds: Any = None, sound: Any = None) -> Tensor:
        if inputs_embeds is None:
            inputs_embeds = self.language_model.embed(input_ids)
        if sound is not None and input_ids is not None:
            inputs_embeds = inputs_embeds.masked_scatter(input_ids == 3, self.features(sound))
        y: Tensor = self.head(self.language_model(inputs_embeds))
        return y


@right("eye.embed eye.layers.0-1 body.layers.0-1 head", name="optional inputs that exclude one another")
class Excluding(nn.Module):
    """Ids or embeddings, pixels or what was made of them before: never both."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.eye, self.head = Tower(), Tower(), lin()

    def seen(self, pixels: Tensor, mask: Tensor) -> Tensor:
        found: Tensor = self.eye(pixels[mask].to(next(self.parameters()).dtype))
        torch._check(found.shape[0] == pixels.shape[0])
        return found

    def forward(
        self, ids: Any = None, embeds: Any = None, pixels: Any = None, mask: Any = None, cached: Any = None
    ) -> Tensor:
        if (ids is None) ^ (embeds is not None):
            raise ValueError("give either ids or embeds")
        if embeds is None:
            embeds = self.body.embed(ids)
        if pixels is not None and cached is not None:
            raise ValueError("give either pixels or cached")
        if cached is not None and not isinstance(cached, dict):
            raise ValueError("cached must be a dict")
        if pixels is not None:
            embeds = embeds.masked_scatter(ids == 3, self.seen(pixels, mask))
        y: Tensor = self.head(self.body.norm(self.run_layers(embeds)))
        return y

    def run_layers(self, x: Tensor) -> Tensor:
        for layer in self.body.layers:
            x = layer(x)
        return x
