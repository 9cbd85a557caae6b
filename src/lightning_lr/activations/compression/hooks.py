"""The forward pass under compression: what autograd saves is packed, and unpacked when the backward asks for it.

:class:`ActivationCompressor` outlives the passes: it holds the settings, how many passes there were (a part of the
noise keys) and the bits that the allocation gave to each tensor. Each pass is entered once, around everything that
builds the graph; the hooks see every tensor that an operation saves and decide by the rules of ``operations.py``.
Nothing is kept outside the graph: payloads die with the nodes that refer to them, also when a backward raises or never
happens. The forward itself is not changed by a bit. Pure torch.

Source: GACT, Liu et al. 2022, ICML (arXiv 2206.11357).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from lightning_lr.activations.compression.byte_counts import SavedKind, Tally
from lightning_lr.activations.compression.exact import pack_bits, pack_integers, pack_two_valued
from lightning_lr.activations.compression.kernels import Kernels, packed_bytes
from lightning_lr.activations.compression.names import ModuleNames
from lightning_lr.activations.compression.noise import noise_key
from lightning_lr.activations.compression.operations import Operations, integer_bounds, is_weight, least_bits
from lightning_lr.activations.compression.payloads import Exact, Payload, Rounded, SavedAsIs, TrialPayload, plain
from lightning_lr.activations.compression.regions import asks_for_regions, region_marks
from lightning_lr.activations.compression.storage import PackedOnce, in_memory_order, is_dense, restored, storages_of

COMPRESSED_TYPES = (torch.float32, torch.bfloat16, torch.float16)


class ActivationCompressor:
    """Packs what the forward saves for the backward.

    Args:
        model: whose parameters and buffers stay as they are, and whose modules give tensors their names.
        bits: 8, 4 or 2, for tensors that the allocation has given no bits.
        group_size: numbers that share a range, a power of two from 16.
        seed: of the noise.
        rank: of this process, so that ranks round differently.
        skip: names of modules in which nothing is packed.
        kernels: what packs and unpacks.
    """

    def __init__(
        self,
        model: nn.Module,
        bits: int = 4,
        group_size: int = 256,
        seed: int = 0,
        rank: int = 0,
        skip: Iterable[str] = (),
        kernels: Kernels | None = None,
    ) -> None:
        self.model, self.bits, self.group_size = model, bits, group_size
        self.seed, self.rank = seed, rank
        self.names = ModuleNames(model, tuple(skip))
        self.kernels = kernels or Kernels()
        self.allocation: dict[str, int] = {}
        self.forwards = 0
        self.tally = Tally()

    @contextmanager
    def compressing(self, batch: Iterable[Tensor] = ()) -> Iterator[Tally]:
        """Pack what is saved while this is entered; tensors of ``batch`` are alive anyway and stay as they are."""
        forward = _Forward(self, storages_of(self.model, batch))
        with forward.entered():
            yield forward.tally
        self.tally = forward.tally

    @contextmanager
    def probing(self, batch: Iterable[Tensor] = ()) -> Iterator[list[TrialPayload]]:
        """As :meth:`compressing`, but numbers are kept and are rounded whenever a backward reads them."""
        trials: list[TrialPayload] = []
        forward = _Forward(self, storages_of(self.model, batch), trials)
        with forward.entered():
            yield trials

    def state_dict(self) -> dict[str, Any]:
        """What another process needs to go on with the same bits and the same noise."""
        return {"forwards": self.forwards, "allocation": dict(self.allocation), "seed": self.seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where :meth:`state_dict` was taken."""
        self.forwards, self.allocation = state["forwards"], dict(state["allocation"])
        self.seed = state.get("seed", self.seed)


class _Saved:
    """One saved tensor: a payload, perhaps shared, and this tensor's view of it."""

    __slots__ = ("payload", "shape", "strides")

    def __init__(self, payload: Payload, shape: tuple[int, ...], strides: tuple[int, ...] | None) -> None:
        self.payload, self.shape, self.strides = payload, shape, strides


class _Forward:
    """One forward pass."""

    def __init__(
        self, compressor: ActivationCompressor, held: set[int], trials: list[TrialPayload] | None = None
    ) -> None:
        self.tally = Tally()
        self._own = compressor
        self._held = held
        self._trials = trials
        self._number = compressor.forwards
        self._packed = 0
        self._operations = Operations()
        self._once: PackedOnce[Any] = PackedOnce()
        compressor.forwards += 1

    @contextmanager
    def entered(self) -> Iterator[None]:
        try:
            with self._own.names.following(), saved_tensors_hooks(self._pack, _unpack), self._operations:
                yield
        finally:
            self._once.clear()

    def _pack(self, tensor: Tensor) -> Any:
        with torch._C.DisableTorchFunction(), torch.no_grad():
            return self._packed_form(tensor)

    def _packed_form(self, tensor: Tensor) -> Any:
        if not plain(tensor) or tensor.untyped_storage()._cdata in self._held or is_weight(tensor):
            return SavedAsIs(tensor, self._watched(tensor))
        marks = self._marks(tensor)
        if marks is not None:
            self._count(tensor, marks, again=False)
            return _Saved(marks, tuple(tensor.shape), tensor.stride() if is_dense(tensor) else None)
        least = self._least_bits(tensor)
        name = self._own.names.next_name(self._operation) if least is not None else ""
        bits = None if least is None else max(least, self._own.allocation.get(name, self._own.bits))
        found = self._once.find(tensor)
        if found is not None and (found.bits is None or (least is not None and found.bits >= least)):
            payload = found
        else:
            payload = self._new_payload(tensor, name, bits, adjustable=least == 0)
            self._count(tensor, payload, again=found is not None)
            self._once.add(tensor, payload)
        if isinstance(payload, SavedAsIs):
            return payload if payload is not found else SavedAsIs(tensor, self._watched(tensor))
        return _Saved(payload, tuple(tensor.shape), tensor.stride() if is_dense(tensor) else None)

    def _marks(self, tensor: Tensor) -> Exact | None:
        """What stands for a tensor of which only the regions of its numbers are needed, by this operation alone."""
        running = self._operations.running
        if not running or not asks_for_regions(running[-1]):
            return None
        if not tensor.is_floating_point() or tensor.numel() < 64 or self._own.names.skipped:
            return None
        marks = region_marks(in_memory_order(tensor), running[-1])
        return None if marks is None else Exact(marks)

    def _least_bits(self, tensor: Tensor) -> int | None:
        small = tensor.numel() < self._own.group_size or tensor.numel() > tensor.untyped_storage().nbytes()
        if tensor.dtype not in COMPRESSED_TYPES or self._own.names.skipped or tensor.numel() == 0:
            return None
        least = least_bits(tensor, self._operations.running)
        return None if small and self._trials is None else least

    def _new_payload(self, tensor: Tensor, name: str, bits: int | None, adjustable: bool) -> Payload:
        exact = self._exact(tensor)
        if exact is not None:
            return exact
        own = self._own
        if bits is None or packed_bytes(tensor.numel(), bits, own.group_size) >= tensor.nbytes:
            return SavedAsIs(tensor, self._watched(tensor))
        flat = in_memory_order(tensor.detach())
        self._packed += 1
        if self._trials is None:
            key = noise_key(own.seed, own.rank, self._number, self._packed)
            return Rounded(own.kernels.pack(flat, bits, own.group_size, key), own.kernels)
        keys = partial(_trial_key, own.seed, own.rank, self._number, self._packed)
        trial = TrialPayload(flat, name, bits, adjustable, own.group_size, own.kernels, keys)
        self._trials.append(trial)
        return trial

    def _exact(self, tensor: Tensor) -> Payload | None:
        """A mask or integers in a smaller form, where there is one."""
        if tensor.numel() < 64 or self._own.names.skipped:
            return None
        packed: Any = None
        values_can_be_seen = tensor.device.type == "cpu"
        if tensor.dtype == torch.bool:
            packed = pack_bits(in_memory_order(tensor))
        elif tensor.is_floating_point():
            mask = tensor.ndim > 1 and not tensor.requires_grad  # what has one dimension is a statistic, or small
            if values_can_be_seen and mask and tensor.dtype in COMPRESSED_TYPES:
                packed = pack_two_valued(in_memory_order(tensor))
        elif tensor.dtype in (torch.int16, torch.int32, torch.int64):
            bounds = integer_bounds(self._operations.running)
            if values_can_be_seen or bounds is not None:
                packed = pack_integers(in_memory_order(tensor), bounds)
        return None if packed is None else Exact(packed)

    def _count(self, tensor: Tensor, payload: Payload, again: bool) -> None:
        plain_bytes = min(tensor.nbytes, tensor.untyped_storage().nbytes())
        codec, held = "kept", plain_bytes
        if isinstance(payload, Rounded):
            codec, held = f"{payload.bits} bit", payload.packed.nbytes
            self.tally.rounded[payload.packed.bits] = self.tally.rounded.get(payload.packed.bits, 0) + tensor.numel()
        elif isinstance(payload, Exact):
            codec, held = "exact", payload.packed.nbytes
        part = SavedKind(codec, self._operation, self._own.names.running)
        self.tally.add(part, 0 if again else plain_bytes, held)

    @property
    def _operation(self) -> str:
        running = self._operations.running
        return running[-1].name if running else "unknown"

    def _watched(self, tensor: Tensor) -> bool:
        # running statistics are saved and change in the next forward; a norm's training backward does not use them
        running = self._operations.running
        norm = running[-1].name if running else ""
        statistics = norm in ("batch_norm", "instance_norm") and tensor.ndim == 1 and not tensor.requires_grad
        return not statistics or isinstance(tensor, nn.Parameter)


def _unpack(saved: Any) -> Tensor:
    if isinstance(saved, SavedAsIs):
        return saved.restore()
    if saved.payload.bits is not None and torch.is_grad_enabled():
        raise RuntimeError(
            "a backward with create_graph=True went through compressed activations, where second derivatives would be "
            "those of rounded numbers; put the modules concerned into skip, or do without compression"
        )
    with torch.no_grad():
        return restored(saved.payload.restore(), saved.shape, saved.strides)


def _trial_key(seed: int, rank: int, forward: int, tensor: int, draw: int) -> tuple[int, int]:
    return noise_key(seed ^ (draw << 32), rank, forward, tensor)
