"""What LARS and LAMB share: which tensors have a trust ratio, their norms over all shards, the ratios of the last step.

A trust ratio is one number per parameter tensor, made of two norms. The norms of all tensors are computed together
and stay on the device: nothing is read back there. Where parameters are sharded over ranks (FSDP2, ZeRO) the update is
made by ``sharded``, with one all-reduce for all groups. On the CPU, where reading a number costs nothing, the ratios go
as plain numbers into torch's fused kernels, one tensor after the other, while it is in the cache.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_lr.checks import check_not_negative
from lightning_lr.optim.local_tensors import HALF, WHOLE, Piece, adapts, real
from lightning_lr.optim.sharded import update_sharded
from lightning_lr.shards import flat_of, local, partition_of

Adapt = Literal["ndim>1", "all", "none"] | Callable[[Tensor], bool]
"""Which parameters have a trust ratio; the others are updated as with a ratio of 1."""

QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
_RULES: dict[str, Callable[[Tensor], bool]] = {
    "ndim>1": lambda parameter: parameter.ndim > 1,
    "all": lambda parameter: True,
    "none": lambda parameter: False,
}


def check_learning_rate(caller: str, lr: float | Tensor) -> None:
    """Refuse a learning rate that no optimizer of torch's would take."""
    if isinstance(lr, Tensor) and lr.numel() != 1:
        raise ValueError(f"{caller}: got an lr tensor with {lr.numel()} elements; give one with a single element")
    check_not_negative(caller, lr=float(lr) if isinstance(lr, Tensor) else lr)


class TrustRatioOptimizer(Optimizer):
    """Base of the optimizers whose step is scaled by a trust ratio per tensor: no strategy must step one in parts.

    Args:
        params: parameters or groups; a group may have its own ``adapt``.
        defaults: hyperparameters of groups that do not set their own.

    Raises:
        RuntimeError: at a step, for parameters that were flattened without a registered layout of the tensors:
            FSDP1, and DeepSpeed ZeRO without ``ZeROStrategy``. FSDP2 (``fully_shard``) keeps tensors apart and works.
    """

    _fused_dtypes: ClassVar[dict[str, tuple[torch.dtype, ...]]] = {"cpu": HALF + WHOLE, "cuda": HALF + WHOLE}
    """What torch's fused or multi-tensor kernels take, by type of device."""

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        self._own: set[int] = set()
        self._ratios: list[Tensor | list[float]] = []
        self._sharded = False
        super().__init__(params, defaults)

    # ------------------------------------------------------------------ what users ask
    def trust_ratios(self) -> Tensor:
        """The trust ratios of the last step, one per tensor that has one, on the device; empty before the first step.

        Ratios that were replaced by 1 because a norm was 0 are among them.
        """
        ratios = [torch.tensor(r, dtype=torch.float64) if isinstance(r, list) else r for r in self._ratios]
        return torch.cat([some.to(ratios[0].device) for some in ratios]) if ratios else torch.empty(0)

    def trust_ratio_quantiles(self, at: Sequence[float] = QUANTILES) -> dict[float, float]:
        """Quantiles of the last step's trust ratios; the one place that reads them from the device."""
        ratios = self.trust_ratios()
        if ratios.numel() == 0:
            return {}
        wide = ratios.to(torch.float64 if ratios.dtype == torch.float64 else torch.float32)
        return dict(zip(at, torch.quantile(wide, wide.new_tensor(list(at))).tolist(), strict=True))

    # ------------------------------------------------------------------ torch.optim
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        adapt = group["adapt"]
        try:
            self._check(group)
            if not callable(adapt) and not (isinstance(adapt, str) and adapt in _RULES):
                raise ValueError(
                    f"{type(self).__name__}: got adapt={adapt!r}; allowed are {', '.join(map(repr, _RULES))} or a "
                    "function of a parameter"
                )
        except ValueError:
            self.param_groups.pop()
            raise
        if callable(adapt):  # plain numbers, which a checkpoint can hold and a loaded one can bring back
            group["adapt"] = [bool(adapt(parameter)) for parameter in group["params"]]
        self._own.update(map(id, group["params"]))

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._own = {id(parameter) for group in self.param_groups for parameter in group["params"]}
        self._ratios = []

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one update.

        Args:
            closure: evaluates the model again and returns the loss.

        Returns:
            what ``closure`` returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._ratios, self._sharded = [], False
        work = [(group, self._pieces(group)) for group in self.param_groups]
        if self._sharded:
            self._ratios += update_sharded(self, work)
            return loss
        for group, pieces in work:
            if pieces:
                self._update(group, pieces)
        return loss

    @abstractmethod
    def _check(self, group: dict[str, Any]) -> None:
        """Refuse hyperparameters that are none: those of the constructor, and a group's own.

        Raises:
            ValueError: with what was given and what is allowed.
        """

    @abstractmethod
    def _update(self, group: dict[str, Any], pieces: list[Piece]) -> None:
        """Update the pieces of a group in place; all of them are held whole."""

    # an update over shards, in the order in which these are called
    def _advance_step(self, group: dict[str, Any], pieces: list[Piece]) -> None:
        """Do what a step does to the pieces of a group once, before anything else."""
        return

    @abstractmethod
    def _denominator_tensors(self, group: dict[str, Any], pieces: list[Piece]) -> list[Tensor]:
        """What is compared with each piece's weight by the norm; called once per step."""

    @abstractmethod
    def _trust_ratio(self, group: dict[str, Any], weight: Any, other: Any) -> Any:
        """The trust ratio from the norms of a tensor and of what it is compared with, neither of which is 0."""

    @abstractmethod
    def _apply(
        self,
        group: dict[str, Any],
        pieces: list[Piece],
        compared: list[Tensor] | None,
        ratios: Sequence[float | Tensor | None],
    ) -> None:
        """Update pieces in place; those without a ratio have nothing that they were compared with."""

    @abstractmethod
    def _shaped_states(self, group: dict[str, Any]) -> Sequence[str]:
        """Names of the state tensors that have the parameter's shape and start at 0."""

    def _other_states(self, parameter: Tensor) -> dict[str, Tensor]:
        """State besides these, before the first update."""
        return {}

    # ------------------------------------------------------------------ inside
    def _pieces(self, group: dict[str, Any]) -> list[Piece]:
        adapt, names = group["adapt"], self._shaped_states(group)
        rule = _RULES[adapt] if isinstance(adapt, str) else None
        may_fuse = group["foreach"] is not False
        flattened = partition_of(group["params"]) is not None
        pieces: list[Piece] = []
        for index, parameter in enumerate(group["params"]):
            grad = parameter.grad
            if flattened:
                self._sharded = True
                pieces += self._segments(group, parameter)
                continue
            if grad is None:
                continue
            if grad.is_sparse:
                raise RuntimeError(f"{type(self).__name__} does not support sparse gradients")
            state = self.state[parameter]
            if not state:
                self._refuse_flattened(parameter)
                state.update(self._other_states(parameter))
            for name in names:
                if name not in state:
                    state[name] = torch.zeros_like(parameter, memory_format=torch.preserve_format)
            shaped = [state[name] for name in names]
            weight: Tensor = parameter
            if isinstance(parameter, DTensor) or parameter.is_complex():
                self._sharded = self._sharded or isinstance(parameter, DTensor)
                if isinstance(grad, DTensor) and grad.placements != parameter.placements:
                    grad = grad.redistribute(placements=parameter.placements)
                weight, grad, *shaped = (real(local(tensor)) for tensor in (parameter, grad, *shaped))
                state = {**state, **dict(zip(names, shaped, strict=True))}
            fuses = may_fuse and self._fuses(weight, grad, *shaped)
            pieces.append(Piece(parameter, weight, grad, state, rule(parameter) if rule else adapt[index], fuses))
        return pieces

    def _segments(self, group: dict[str, Any], vector: Tensor) -> Iterator[Piece]:
        """The pieces that a flat vector is made of; its padding is in none of them and stays as it is."""
        flat, grad, names = flat_of(vector), vector.grad, self._shaped_states(group)
        if flat is None or grad is None:
            return
        state = self.state[vector]
        if not state:
            state.update(self._other_states(vector))
        for name in names:
            if name not in state:
                state[name] = torch.zeros_like(vector)
        fuses = group["foreach"] is not False and self._fuses(vector, grad, *(state[name] for name in names))
        for segment in flat.segments:
            part = slice(segment.start, segment.stop)
            own = {**state, **{name: state[name][part] for name in names}}
            adapted = adapts(group, flat.partition.tensors[segment.tensor])
            yield Piece(vector, vector[part], grad[part], own, adapted, fuses, segment)

    def _fuses(self, weight: Tensor, *others: Tensor) -> bool:
        """Whether fused kernels take these tensors: they run over memory, so all must lie in it in the same order."""
        if weight.dtype not in self._fused_dtypes.get(weight.device.type, ()):
            return False
        in_order = weight.is_contiguous()
        for other in others:
            if other.dtype != weight.dtype or other.device != weight.device:
                return False
            in_order = in_order and other.is_contiguous()
        layout = torch.channels_last
        return in_order or (weight.ndim == 4 and all(t.is_contiguous(memory_format=layout) for t in (weight, *others)))

    def _refuse_flattened(self, parameter: Tensor) -> None:
        caller = type(self).__name__
        if getattr(parameter, "_fsdp_flattened", False):
            raise RuntimeError(
                f"{caller}: the parameters belong to FullyShardedDataParallel (FSDP1), which flattens them, so the "
                "norm of a tensor is not known; use FSDP2 (torch.distributed.fsdp.fully_shard, in Lightning "
                "ModelParallelStrategy)"
            )
        if id(parameter) not in self._own and parameter.ndim == 1:
            raise RuntimeError(
                f"{caller}: a parameter group was replaced by a flat vector of {parameter.numel()} numbers, as "
                "DeepSpeed ZeRO (stages 1, 2 and 3) does with its partitions, and no layout of the tensors in it "
                "was registered, so their norms are not known; use lightning_lr.ZeROStrategy (it does so), FSDP2 or DDP"
            )
