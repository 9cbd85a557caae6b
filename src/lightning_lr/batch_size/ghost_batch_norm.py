"""Ghost batch norm: statistics over parts of a batch of a fixed size, so that a growing batch keeps the same gradient.

Batch norm's output for a sample depends on who shares its batch, and the smaller the batch, the noisier. A ramp that
grows micro-batches would change that noise along with the gradient's, against the theory that it rests on; Smith et
al. normalise over ghost batches of 128 (32 and 64 on ImageNet). With accumulation alone, micro-batches are ghosts
already. Conversion changes a layer's class and nothing else: parameters, buffers, names, hooks and state dicts stay.
Sources: Hoffer, Hubara & Soudry 2017, arXiv:1705.08741, algorithm 1; Smith et al. 2018, arXiv:1711.00489, section 5.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_lr.checks import require

CALLER = "GhostBatchNorm"


class _GhostBatchNorm(_BatchNorm):
    r"""Batch norm over ghost batches: consecutive samples of a batch, ``ghost_batch_size`` at a time.

    The last ghost of a batch has what is left; a single sample, which has no statistics of its own, joins the ghost
    before it. In eval mode, and for a batch of one ghost, it is torch's batch norm.

    Running statistics are updated once per forward, by the average of the ghosts weighted by their samples:
    ``running = (1 - momentum) running + momentum mean_ghosts(statistic)``. So ``momentum`` means what it means in batch
    norm, a forward's weight, however many ghosts it has. (Hoffer et al. update once per ghost, which makes the running
    statistics forget faster the larger the batch is.)

    Args:
        num_features: channels C of an input (batch, C, ...).
        ghost_batch_size: samples in a ghost, at least 2.
        eps: as in batch norm, as are momentum, affine and track_running_stats.

    Raises:
        ValueError: if ghost_batch_size is not an integer of at least 2.

    Source: arXiv:1705.08741, algorithm 1.
    """

    ghost_batch_size: int

    def __init__(
        self,
        num_features: int,
        ghost_batch_size: int = 128,
        eps: float = 1e-5,
        momentum: float | None = 0.1,
        affine: bool = True,
        track_running_stats: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        _check_size(ghost_batch_size)
        super().__init__(num_features, eps, momentum, affine, track_running_stats, device, dtype)
        self.ghost_batch_size = ghost_batch_size

    def forward(self, input: Tensor) -> Tensor:
        sizes = ghost_sizes(input.shape[0], self.ghost_batch_size)
        if not self.training or len(sizes) == 1:
            return super().forward(input)
        self._check_input_dim(input)  # type: ignore[no-untyped-call]
        if _at_once(input):
            alike = len(sizes) if sizes[-1] == sizes[0] else len(sizes) - 1
            equal, last = torch.split(input, [sum(sizes[:alike]), sum(sizes[alike:])])
            parts = [self._normalise(equal, alike)] + ([self._normalise(last, 1)] if alike < len(sizes) else [])
        else:
            parts = [self._normalise(ghost, 1) for ghost in torch.split(input, sizes)]
        if self.track_running_stats:
            self._track([statistics for _, statistics in parts], sizes)
        return parts[0][0] if len(parts) == 1 else torch.cat([output for output, _ in parts])

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, ghost_batch_size={self.ghost_batch_size}"  # type: ignore[no-untyped-call]

    def _normalise(self, part: Tensor, ghosts: int) -> tuple[Tensor, Tensor]:
        """Normalise equal ghosts by one kernel: with their channels side by side they are channels of one batch.

        Returns:
            The output, and means and unbiased variances, (2, ghosts, channels).
        """
        size, channels, rest = part.shape[0] // ghosts, part.shape[1], part.shape[2:]
        side_by_side, weight, bias = part, self.weight, self.bias
        if ghosts > 1:
            side_by_side = part.reshape(ghosts, size, channels, *rest).transpose(0, 1).reshape(size, -1, *rest)
            weight, bias = (None if p is None else p.repeat(ghosts) for p in (self.weight, self.bias))  # type: ignore[assignment]
        # In float32 for half precision, as batch norm keeps them. Momentum 1 leaves the ghosts' own statistics in them.
        dtype = torch.promote_types(part.dtype, torch.float32) if self.running_mean is None else self.running_mean.dtype
        statistics = torch.zeros(2, ghosts * channels, dtype=dtype, device=part.device)
        output = functional.batch_norm(side_by_side, statistics[0], statistics[1], weight, bias, True, 1.0, self.eps)
        if ghosts > 1:
            output = output.reshape(size, ghosts, channels, *rest).transpose(0, 1).reshape(part.shape)
        return output, statistics.view(2, ghosts, channels)

    @torch.no_grad()
    def _track(self, statistics: list[Tensor], sizes: list[int]) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked.add_(1)
        # momentum None asks for the plain average of all batches
        momentum = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        means, variances = torch.cat(statistics, dim=1)
        shares = means.new_tensor(sizes).unsqueeze(1) / sum(sizes)
        # no matrix product: autocast would take it in half precision
        self.running_mean.lerp_((shares * means).sum(dim=0), momentum)
        self.running_var.lerp_((shares * variances).sum(dim=0), momentum)


class GhostBatchNorm1d(_GhostBatchNorm, nn.BatchNorm1d):
    __doc__ = _GhostBatchNorm.__doc__


class GhostBatchNorm2d(_GhostBatchNorm, nn.BatchNorm2d):
    __doc__ = _GhostBatchNorm.__doc__


class GhostBatchNorm3d(_GhostBatchNorm, nn.BatchNorm3d):
    __doc__ = _GhostBatchNorm.__doc__


GHOST_OF: dict[type[nn.Module], type[_GhostBatchNorm]] = {
    nn.BatchNorm1d: GhostBatchNorm1d,
    nn.BatchNorm2d: GhostBatchNorm2d,
    nn.BatchNorm3d: GhostBatchNorm3d,
}
PLAIN_OF = {ghost: plain for plain, ghost in GHOST_OF.items()}


def convert_ghost_batch_norm(module: nn.Module, ghost_batch_size: int = 128) -> int:
    """Turn every batch norm layer in ``module``, itself included, into ghost batch norm, in place.

    Layers keep their identity: parameters, buffers, hooks, names and state dicts are as before. Layers that are ghost
    batch norm already stay as they are.

    Args:
        module: any module.
        ghost_batch_size: samples in a ghost, at least 2.

    Returns:
        How many layers were converted; :func:`restore_batch_norm` turns these back.

    Raises:
        ValueError: if ghost_batch_size is not an integer of at least 2, or a layer is a SyncBatchNorm or another kind
            of batch norm whose forward is its own. Nothing is converted then.
    """
    _check_size(ghost_batch_size)
    layers = [(name, layer) for name, layer in module.named_modules() if isinstance(layer, _BatchNorm)]
    layers = [(name, layer) for name, layer in layers if not isinstance(layer, _GhostBatchNorm)]
    for name, layer in layers:
        _refuse_other_kinds(name, layer)
    for _, layer in layers:
        layer.__class__ = GHOST_OF[type(layer)]
        vars(layer).update(ghost_batch_size=ghost_batch_size, _was_plain=True)
    return len(layers)


def has_plain_batch_norm(module: nn.Module) -> bool:
    """Whether a module has batch norm layers that normalise over whatever micro-batch they are given."""
    return any(isinstance(layer, _BatchNorm) and not isinstance(layer, _GhostBatchNorm) for layer in module.modules())


def restore_batch_norm(module: nn.Module) -> int:
    """Turn the layers that :func:`convert_ghost_batch_norm` converted back into what they were; return how many."""
    converted = [layer for layer in module.modules() if type(layer) in PLAIN_OF and "_was_plain" in vars(layer)]
    for layer in converted:
        layer.__class__ = PLAIN_OF[type(layer)]  # type: ignore[index]
        del layer.ghost_batch_size, layer._was_plain
    return len(converted)


def ghost_sizes(samples: int, ghost_batch_size: int) -> list[int]:
    """Samples in each ghost of a batch; a single sample at the end joins the ghost before it."""
    whole, left = divmod(samples, ghost_batch_size)
    if whole == 0:
        return [left]
    if left == 1:
        return [ghost_batch_size] * (whole - 1) + [ghost_batch_size + 1]
    return [ghost_batch_size] * whole + [left] * (left > 0)


def _at_once(input: Tensor) -> bool:
    """Whether to normalise all ghosts by one kernel, at two copies of the batch, rather than one after the other.

    Few launches count on an accelerator. On a CPU the copies take longer than they save (1.1 to 1.6 times the loop's
    time, measured), and of channels_last they lose the format (2 to 5 times).
    """
    return not input.is_cpu and not (input.dim() == 4 and input.is_contiguous(memory_format=torch.channels_last))


def _check_size(ghost_batch_size: object) -> None:
    allowed = isinstance(ghost_batch_size, int) and not isinstance(ghost_batch_size, bool) and ghost_batch_size >= 2
    require(allowed, CALLER, "ghost_batch_size", ghost_batch_size, "a whole number of samples, at least 2")


def _refuse_other_kinds(name: str, layer: nn.Module) -> None:
    if isinstance(layer, nn.SyncBatchNorm):
        raise ValueError(
            f"{CALLER}: {name or 'the module'} is a SyncBatchNorm, which normalises over the batches of all devices, "
            "the opposite of ghost batches; set the Trainer's sync_batchnorm=False, or leave GhostBatchNorm out"
        )
    if type(layer) not in GHOST_OF:
        raise ValueError(
            f"{CALLER}: {name or 'the module'} is a {type(layer).__name__}, not one of torch's BatchNorm1d, 2d and 3d, "
            "and its forward may be its own; replace it by one of these (run a lazy layer once), or leave "
            "GhostBatchNorm out"
        )
