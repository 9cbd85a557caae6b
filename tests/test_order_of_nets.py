"""Networks written by hand, each with the right order of its layers written down before: none is wrong in silence."""

from __future__ import annotations

import warnings
from contextlib import suppress

import pytest
import torch
from torch import Tensor, nn
from torch._functorch.vmap import vmap_increment_nesting

from lightning_lr.layers import discover
from lightning_lr.layers.symbols import SymbolTracer
from tests.support.nets import NETS, wrong_places

GUESSED = {
    "a scripted part", "a trained copy beside a frozen U-Net, joined by zero convolutions",
    "adapters beside code that decides", "VAE whose code decides", "TreeOfCells",
    "through helpers, decided by a value", "towers in series, decided by a value",
    "towers side by side, decided by a value",
    "nnU-Net: deep supervision, and a decoder that holds the encoder",
}  # fmt: skip
"""Code that cannot be run on symbols: the order comes from its text and from names, and the table is shown."""
DOUBTED = {
    "BiSeNet: a spatial path beside a context path", "StyleGAN 2", "Temporal Fusion Transformer", "U-Net++",
    "diffusion U-Net: lists of four parts", "discriminators of two scales, layer by layer in attributes",
    "edge convolutions over neighbours", "experts, a gate and a tower per task",
    "summaries: pointer and generator, three networks in a step",
}  # fmt: skip
"""What is written down about them is right; the rest goes against the data's way, or seems to (U-Net++, StyleGAN)."""
SEEN = {
    "DETR whose boxes are refined after every block, a dataclass comes out",
    "Informer: the encoder distils between its layers", "SAC: an actor, twin critics and their targets",
    "deep and cross network: kernels in parameter lists", "prototypical network with a learned temperature",
    "robot policy: an encoder per camera in a ModuleDict, an EMA copy is kept outside",
    "a style-based generator: blocks named by their resolution", "language model with memories of the last segment",
}  # fmt: skip
"""Not in the right order; the second opinion says so."""
SILENT = {
    "ControlNet: a locked U-Net and a trained copy of its encoder",
    "Flamingo: gated attention to media before every block",
    "Fourier neural operator: numbered attributes, complex weights",
    "chat about pictures: features are put where the image tokens stand",
    "emotion from sight and sound: two encoders, fusion, tasks weighed by uncertainty",
    "video transformer, first over space and then over time",
    "a normalizing flow of several scales with data-dependent scales",
    "points: set abstraction and feature propagation",
    "restoration without activations: zipped lists of stages",
}
"""Known faults without a warning, and two orders with the last norm of a tower elsewhere (emotion, video)."""
STRICTER = {
    "an anchor-free detector with a path aggregation neck",
    "frames between frames: a flow that three blocks refine, a teacher that sees the answer",
    "objects as points: deconvolutions and heads set by name",
    "a world model of pixels, trained over time by training_step alone",
    "reading text in images: convolutions by name, then two recurrent layers",
}
"""Orders of the eighth sample that ask for more than the card: what is between blocks apart from both, single layers
of a Sequential apart where other parts have blocks, what follows the last block below the head."""
WRONG = SEEN | SILENT | STRICTER | {
    "towers side by side, decided by a value",
    "a trained copy beside a frozen U-Net, joined by zero convolutions",
}  # fmt: skip
"""What is not in the right order: the two last are guesses."""


@pytest.mark.parametrize("name", NETS)
def test_the_order_is_the_right_one_or_announced_as_a_guess(name: str) -> None:
    model = NETS[name].make()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = discover(model)
    guessed = [str(warning.message) for warning in said if "give layers as" in str(warning.message)]
    distance = {parameter: found.depth - 1 - layer.depth for layer in found.layers for parameter in layer.parameters}
    wrong = wrong_places(name, distance)
    assert bool(wrong) == (name in WRONG), wrong
    assert len(guessed) == (name in GUESSED | DOUBTED | SEEN), guessed
    assert all("from the top  layer" in table for table in guessed), "the table"


def test_there_are_as_many_as_it_takes() -> None:
    assert len(NETS) >= 60


class MaskedByCode(nn.Module):
    """What is given goes to a function in C++, which asks for its class, too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.masks, self.head = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor | None = None, size: Tensor | None = None) -> Tensor:
        if not isinstance(x, Tensor) or not isinstance(size, Tensor):
            raise TypeError("x and size: tensors")
        y = self.first(self.embed(x))
        with vmap_increment_nesting(size, "error"):  # type: ignore[arg-type]
            y = y + self.masks(size)
        out: Tensor = self.head(y)
        return out


def test_code_in_c_takes_no_symbol_for_a_tensor() -> None:
    """It read the memory of one as a tensor's, and the process ended (T5Gemma 2's masks)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = discover(MaskedByCode())
    depth = {name: layer.depth for layer in found.layers for name in layer.parameters}
    assert depth["embed.weight"] < depth["first.weight"] < depth["head.weight"]


@pytest.mark.parametrize("operands", [1, 2, 3])
def test_no_function_of_torch_reads_a_symbol_as_a_tensor(operands: int) -> None:
    functions = torch._C._VariableFunctions
    names = [name for name in dir(functions) if not name.startswith("_")]
    assert len(names) > 500
    for name in names:
        tracer = SymbolTracer()
        tracer.as_tensors = True
        with suppress(Exception):  # a refusal is an answer; the end of the process is none
            getattr(functions, name)(*(tracer.symbol() for _ in range(operands)))
