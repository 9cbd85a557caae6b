"""The picture of the card of LayerwiseLRDecay: layers of four models as they are found, with their factors.

    python -m benchmarks.layers_picture

BERT, T5 and LLaVA of transformers with fewer layers than usual, without weights, and the U-Net of this file. Height is
the distance from the top: layers at one height have one factor. Result: ``docs/images/layers.png``.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from matplotlib import pyplot as plt
from torch import Tensor, nn

from lightning_lr.layers import LayerMap, discover

OUT = Path(__file__).parents[1] / "docs" / "images" / "layers.png"
DECAY = 0.8
SIZES = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2, "num_hidden_layers": 4}


class Level(nn.Module):
    """Two convolutions of a U-Net."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.two(self.one(x).relu()).relu()
        return found


class UNet(nn.Module):
    """Down, middle, up, with skip connections."""

    def __init__(self) -> None:
        super().__init__()
        self.inc, self.mid, self.outc = nn.Conv2d(3, 4, 3, padding=1), Level(), nn.Conv2d(4, 1, 1)
        self.down = nn.ModuleList(Level() for _ in range(3))
        self.up = nn.ModuleList(Level() for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inc(x)
        kept = []
        for level in self.down:
            x = level(x)
            kept.append(x)
        x = self.mid(x)
        for level in self.up:
            x = level(x + kept.pop())
        found: Tensor = self.outc(x)
        return found


def models() -> dict[str, tuple[nn.Module, dict[str, str]]]:
    """Each model, and for the beginnings of its layers' names what stands in the picture, a column for each."""
    import transformers as t

    vision = {**SIZES, "model_type": "clip_vision_model", "num_hidden_layers": 3, "image_size": 32, "patch_size": 8}
    text = {**SIZES, "model_type": "llama", "num_key_value_heads": 2, "vocab_size": 64}
    with torch.device("meta"):
        bert = t.BertForSequenceClassification(t.BertConfig(**SIZES))
        t5 = t.T5ForConditionalGeneration(t.T5Config(num_layers=4, num_decoder_layers=3, d_model=16, vocab_size=64))
        llava = t.LlavaForConditionalGeneration(t.LlavaConfig(vision_config=vision, text_config=text))
        unet = UNet()
    return {
        "BERT: a stack": (bert, {"bert.encoder.layer.": "layer "}),
        "U-Net: one series": (unet, {"down.": "down ", "mid": "middle", "up.": "up "}),
        "T5: side by side": (t5, {"encoder.block.": "encoder ", "decoder.block.": "decoder "}),
        "LLaVA: one upon the other": (
            llava,
            {
                "model.vision_tower.encoder.layers.": "vision ",
                "model.language_model.layers.": "language ",
                "model.language_model.stem": "projector, embedding",
            },
        ),
    }


def draw(axes: Any, title: str, found: LayerMap, names: dict[str, str], colour: Any, highest: int) -> None:
    """One model: a box per layer, side by side where the height is the same."""
    at_height: dict[int, list[str]] = {}
    for layer in found.layers:
        shown = next((n + layer.name[len(p) :] for p, n in names.items() if layer.name.startswith(p)), layer.name)
        at_height.setdefault(found.depth - 1 - layer.depth, []).append(shown)
    for distance, layers in at_height.items():
        factor = DECAY**distance
        width = 1.0 / len(layers)
        for column, name in enumerate(layers):
            axes.add_patch(
                plt.Rectangle((column * width + 0.01, -distance - 0.42), width - 0.02, 0.84, color=colour(factor))
            )
            axes.text((column + 0.5) * width, -distance, name, ha="center", va="center", fontsize=8,
                      color="white" if factor > 0.45 else "black")  # fmt: skip
        axes.text(1.03, -distance, f"{factor:.3g}", va="center", fontsize=8, color="0.3")
    axes.set(xlim=(0, 1.22), ylim=(-highest - 0.6, 1.0), xticks=[], yticks=[])
    axes.set_title(title, fontsize=9.5, loc="left")
    axes.text(1.03, 0.6, "factor", fontsize=8, color="0.3")
    for side in axes.spines.values():
        side.set_visible(False)


def main() -> None:
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    tried = {title: (discover(model), names) for title, (model, names) in models().items()}
    highest = max(found.depth for found, _ in tried.values()) - 1
    figure, panels = plt.subplots(1, len(tried), figsize=(11, 4.2), constrained_layout=True)
    shades = plt.get_cmap("Blues")
    for axes, (title, (found, names)) in zip(panels, tried.items(), strict=True):
        draw(axes, title, found, names, lambda factor: shades(0.08 + 0.82 * factor), highest)
    figure.suptitle(f"decay {DECAY}: output above, input below", fontsize=9.5, color="0.3", x=0.01, ha="left")
    figure.savefig(OUT, dpi=120)
    print(OUT)


if __name__ == "__main__":
    main()
