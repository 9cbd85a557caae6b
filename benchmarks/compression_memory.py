"""How much memory compressed activations take: bytes saved for the backward, and the peak of all live tensors.

Saved bytes are counted by the hooks, each tensor once, without parameters, buffers and the batch, which are there
anyway. The peak is that of every tensor which forward and backward make, results of each operation and gradients
included, on top of parameters and batch; what a kernel needs inside itself is not seen (nor are the temporaries of our
packing, which on a GPU has none).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from examples.models import GPT, ResNet, ViT
from lightning_lr.activations.compression import ActivationCompressor, Tally, probe, reallocate
from lightning_lr.activations.compression.kernels import Kernels, Packed

ARMS = ("8", "4", "auto-4", "2")


@dataclass(frozen=True)
class Problem:
    """A model and a batch."""

    name: str
    model: nn.Module
    batch: tuple[Tensor, Tensor]

    def loss(self, samples: int | None = None) -> Tensor:
        """Cross-entropy of the batch, or of its first samples."""
        inputs, targets = (part[:samples] for part in self.batch)
        return F.cross_entropy(self.model(inputs).flatten(0, -2), targets.flatten())


def problems() -> Iterator[Problem]:
    """The models of the tables, with random batches: how many bytes are saved does not depend on what they hold."""
    torch.manual_seed(0)
    images, labels = torch.randn(128, 1, 28, 28), torch.randint(0, 10, (128,))
    yield Problem("ResNet-14, 128 images", ResNet(14), (images, labels))
    yield Problem("ViT, 128 images", ViT(), (images, labels))
    text = torch.randint(0, 256, (16, 129))
    yield Problem("GPT, 16 x 128 tokens", GPT(), (text[:, :-1].contiguous(), text[:, 1:].contiguous()))
    text = torch.randint(0, 65, (4, 129))
    characters = GPT(dim=192, depth=6, heads=6, tokens=65)
    yield Problem("GPT of characters, 4 x 128", characters, (text[:, :-1].contiguous(), text[:, 1:].contiguous()))


def compressor_of(problem: Problem, arm: str, **settings: Any) -> ActivationCompressor:
    """What compresses in an arm of the tables; ``auto-4`` has probed once."""
    auto = arm.startswith("auto-")
    compressor = ActivationCompressor(problem.model, bits=int(arm.removeprefix("auto-")), **settings)
    if auto:
        found = probe(compressor, lambda: problem.loss(8), problem.model.parameters(), problem.batch)
        reallocate(compressor, found, 4.0)
    return compressor


def saved(problem: Problem, compressor: ActivationCompressor, amp: bool) -> Tally:
    """What one forward saves."""
    with torch.autocast("cpu", torch.bfloat16, enabled=amp), compressor.compressing(problem.batch) as tally:
        problem.loss()
    return tally


# ---------------------------------------------------------------------- peak
class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that operations make while it is entered, for as long as they live."""

    def __init__(self, known: set[int]) -> None:
        super().__init__()
        self.peak = 0
        self._known = known
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, kinds: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.note(result)
        return result

    def note(self, made: Any) -> None:
        """Count the tensors in ``made``, and forget those that are gone."""
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in self._known:
                storage = tensor.untyped_storage()
                self._live.setdefault(storage._cdata, (StorageWeakRef(storage), storage.nbytes()))
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))


class CountedKernels(Kernels):
    """Packs as it always does; only results are counted."""

    def __init__(self) -> None:
        super().__init__("eager")
        self.counter: LiveBytes | None = None

    def pack(self, *args: Any, **kwargs: Any) -> Packed:
        with _disable_current_modes():
            packed = super().pack(*args, **kwargs)
        if self.counter is not None:
            self.counter.note([packed.codes, packed.meta])
        return packed

    def unpack(self, packed: Packed) -> Tensor:
        with _disable_current_modes():
            flat = super().unpack(packed)
        if self.counter is not None:
            self.counter.note(flat)
        return flat


@contextmanager
def _nothing() -> Iterator[None]:
    yield


def peak_bytes(problem: Problem, arm: str | None) -> int:
    """Peak of live bytes over one forward and backward; ``arm`` None: without compression."""
    kernels = CountedKernels()
    around: Callable[[], Any] = _nothing
    if arm is not None:
        compressor = compressor_of(problem, arm, kernels=kernels)

        def around() -> Any:
            return compressor.compressing(problem.batch)

    problem.model.zero_grad(set_to_none=True)
    tensors = [*problem.model.parameters(), *problem.model.buffers(), *problem.batch]
    with LiveBytes({tensor.untyped_storage()._cdata for tensor in tensors}) as counter:
        kernels.counter = counter
        with around():
            loss = problem.loss()
        loss.backward()
    return counter.peak
