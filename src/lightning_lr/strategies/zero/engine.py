"""Every touch of DeepSpeed's engine, and nothing else; its checkpoints have a file of their own (``checkpoint``).

Checked against DeepSpeed 0.19.8. DeepSpeed is imported inside the functions: importing this package does not need it.
"""

from __future__ import annotations

import argparse
import atexit
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_lr.patching import override_on_instance
from lightning_lr.strategies.zero.shard_stamps import STAMP

EXTRA = "lightning-lr[deepspeed]"


# ---------------------------------------------------------------------- before the engine
def require_deepspeed(caller: str) -> None:
    """Refuse to go on without DeepSpeed.

    Raises:
        MisconfigurationException: names the extra.
    """
    if importlib.util.find_spec("deepspeed") is None:
        raise MisconfigurationException(f"{caller}: DeepSpeed is not installed; pip install '{EXTRA}'")


def choose_accelerator() -> None:
    """Let DeepSpeed take the CPU where there is nothing else; it decides once, when it is first imported."""
    if not torch.cuda.is_available():
        os.environ.setdefault("DS_ACCELERATOR", "cpu")


def prepare_cpu(caller: str) -> None:
    """Make DeepSpeed run on CPU without a compiler.

    Raises:
        MisconfigurationException: where it has been imported for another accelerator.
    """
    from deepspeed.accelerator import get_accelerator
    from deepspeed.ops import __compatible_ops__

    name = get_accelerator().device_name()
    if name != "cpu":
        raise MisconfigurationException(
            f"{caller}: the Trainer has accelerator='cpu', and DeepSpeed has chosen {name!r} when it was imported; set "
            "the environment variable DS_ACCELERATOR=cpu before Python starts"
        )
    # else it is compiled when the process group starts (40 s, needs ninja); only inference uses it
    __compatible_ops__["deepspeed_shm_comm"] = False


@contextmanager
def leaving_group_at_exit() -> Iterator[None]:
    """What starts a process group inside is its owner: the group is left before Python ends, while its threads can end.

    DeepSpeed leaves it to the exit of the interpreter, where gloo's threads abort about one run in twelve.
    """
    there = torch.distributed.is_initialized()
    yield
    if not there:
        atexit.register(_leave_group)


def _leave_group() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def check_precision(caller: str, precision: str) -> None:
    """Refuse fp16 where DeepSpeed does.

    Raises:
        MisconfigurationException: names the precisions that are left.
    """
    from deepspeed.accelerator import get_accelerator

    if precision.startswith("16-") and not get_accelerator().is_fp16_supported():
        device = "CPU" if get_accelerator().device_name() == "cpu" else "device"
        raise MisconfigurationException(
            f"{caller}: got precision={precision!r}, which DeepSpeed does not run on this {device}; use 'bf16-mixed' "
            "or '32-true'"
        )


def check_nvme(caller: str) -> None:
    """Refuse offloading to NVMe where its operator cannot be built.

    Raises:
        MisconfigurationException: names what is missing.
    """
    from deepspeed.ops.op_builder import AsyncIOBuilder

    missing = [] if shutil.which("ninja") else ["ninja"]
    if not AsyncIOBuilder().is_compatible(verbose=False):
        missing.append("libaio with its headers (libaio-dev)")
    if missing:
        raise MisconfigurationException(
            f"{caller}: offloading to 'nvme' needs DeepSpeed's async_io operator, and {' and '.join(missing)} cannot "
            "be found; install that, or offload to 'cpu'"
        )


def explain_failed_build(caller: str, error: BaseException) -> None:
    """Explain in plain words that an operator of DeepSpeed could not be compiled, if that is what happened.

    Raises:
        MisconfigurationException: for such an error.
    """
    if any(sign in str(error).lower() for sign in ("unable to jit load", "ninja", "failed to build")):
        raise MisconfigurationException(
            f"{caller}: configure_optimizers makes an optimizer of DeepSpeed that has to be compiled, which failed "
            f"({error}); install ninja and a C++ compiler, or return torch's optimizer, which needs neither"
        ) from error


def check_optimizer(caller: str, optimizer: Optimizer, stage: int) -> None:
    """Refuse optimizers that the engine would break.

    Raises:
        MisconfigurationException: with which and why.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise MisconfigurationException(
            f"{caller}: LBFGS evaluates its closure several times in a step, and the engine has no closure; use "
            "another optimizer, or strategy='ddp'"
        )
    if isinstance(optimizer, torch.optim.Adagrad) and stage < 3:
        raise MisconfigurationException(
            f"{caller}: DeepSpeed makes torch's Adagrad anew in stage {stage}, without its parameter groups and "
            "unknown to the LR scheduler; use stage 3, another optimizer, or strategy='ddp'"
        )
    for index, group in enumerate(optimizer.param_groups):
        if not any(parameter.requires_grad for parameter in group["params"]):
            raise MisconfigurationException(
                f"{caller}: all {len(group['params'])} parameters of group {group.get('name', index)} are frozen "
                "(requires_grad=False), and the engine shards what is trained; leave frozen parameters out of the "
                "optimizer"
            )


def initialize(
    model: nn.Module, optimizer: Optimizer | None, settings: dict[str, Any], device: torch.device, local_rank: int
) -> Any:
    """A DeepSpeed engine around the module; without an optimizer one that only runs it."""
    import deepspeed

    rank = local_rank if device.index is None else device.index  # a CPU has no index, and the engine compares it
    parameters = [p for p in model.parameters() if p.requires_grad] if optimizer is not None else []
    engine, *_ = deepspeed.initialize(
        args=argparse.Namespace(device_rank=rank),
        config=settings,
        model=model,
        model_parameters=parameters,
        optimizer=optimizer,
        dist_init_required=False,
    )
    return engine


# ---------------------------------------------------------------------- the engine at work
def client_optimizer(engine: Any, zero_grad: Callable[..., None]) -> Optimizer:
    """The optimizer that the user made, as the engine steps it: its groups are the ones that count.

    DeepSpeed's own wrapper is no ``torch.optim.Optimizer``. The client's gradients are the engine's buffers, so that
    its own ``zero_grad`` would find nothing: another one shadows it on this one instance, see :func:`release`.
    """
    client: Optimizer = engine.optimizer.optimizer
    client.__dict__["zero_grad"] = zero_grad
    return client


def backward(engine: Any, loss: Tensor, ends_update: bool, *args: Any, **kwargs: Any) -> None:
    """Backward of one micro-batch, whose loss is divided by the accumulation already."""
    engine.set_gradient_accumulation_boundary(ends_update)
    engine.backward(loss, *args, scale_wrt_gas=False, **kwargs)


def step(engine: Any, **kwargs: Any) -> bool:
    """Make the update; returns whether it was made (fp16 skips one whose gradients are not finite)."""
    engine.step(**kwargs)
    return bool(engine.was_step_applied())


def loss_scale(engine: Any) -> float:
    """What the engine multiplies the loss by; 1 but in fp16."""
    return float(getattr(engine.optimizer, "cur_scale", 1.0) or 1.0)


def gradient_norm(engine: Any) -> float | None:
    """The norm of the last update's whole gradient, averaged over the ranks and before clipping."""
    norm = engine.get_global_grad_norm()
    return None if norm is None else float(norm)


def set_clip_norm(engine: Any, norm: float) -> None:
    """Clip the next update's whole gradient to this norm; 0 for not at all."""
    engine.optimizer.clip_grad = norm


def gradient_pieces(engine: Any) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Between backward and step: a parameter, where this rank's piece of its gradient starts, and that piece, flat.

    Averaged over the ranks, times the loss scale; what is written to a piece is what the engine will use.
    """
    sharded = engine.optimizer
    if hasattr(sharded, "fp32_partitioned_groups_flat"):
        for parameter in (parameter for part in sharded.fp16_groups for parameter in part):
            piece, _ = sharded._get_fp32_grad_state_partition(param=parameter, release_swap_buffers=True)
            start = torch.distributed.get_rank(group=parameter.ds_process_group) * piece.numel()
            yield parameter, start, piece[: max(0, min(piece.numel(), int(parameter.ds_numel) - start))]
        return
    if sharded.cpu_offload:
        sharded._wait_for_offload_copies()
    for index, parameters in enumerate(sharded.bit16_groups):
        for parameter in parameters:
            mapping = parameter._hp_mapping
            if mapping is None:  # this rank has nothing of it
                continue
            here = mapping.hp_fragment_address
            if sharded.cpu_offload:
                piece = sharded.single_partition_of_fp32_groups[index].grad.narrow(0, here.start, here.numel)
            else:
                piece = mapping.get_lp_grad_fragment(parameter._index_in_param_group).view(-1)
            yield parameter, mapping.lp_fragment_address.start, piece


def sum_over_ranks(engine: Any, tensor: Tensor) -> None:
    """The sum over the ranks that share the gradients, in place."""
    torch.distributed.all_reduce(tensor, group=engine.optimizer.dp_process_group)


def writes_later(engine: Any) -> bool:
    """Whether a checkpoint is written in the background, and goes on after saving has returned."""
    return bool(engine.checkpoint_engine.is_decoupled())


def writes_on_each_node(engine: Any) -> bool:
    """Whether every node has a folder of its own for a checkpoint, under the same name."""
    return bool(engine.use_node_local_storage())


@contextmanager
def stamping(engine: Any, stamp: dict[str, Any]) -> Iterator[None]:
    """Inside, every file of a checkpoint that this rank writes carries its stamp."""
    writer = engine.checkpoint_engine
    save = writer.save

    def save_stamped(state_dict: dict[str, Any], path: str) -> Any:
        return save({**state_dict, STAMP: stamp}, path)

    with_stamp = override_on_instance(writer, "save", save_stamped)
    try:
        yield
    finally:
        with_stamp()


def weights_finite(module: nn.Module) -> bool:
    """Whether this rank's parameters (its pieces of them, in stage 3) and buffers are finite; waits for the device."""
    parameter: Any
    for parameter in module.parameters():
        piece = getattr(parameter, "ds_tensor", None)
        if piece is None:
            tensor = parameter.detach()
        else:  # the last rank's piece is padded with whatever was there
            rank, length = torch.distributed.get_rank(), int(piece.ds_numel)
            tensor = piece.detach().flatten()[: max(0, min(length, int(parameter.ds_numel) - rank * length))]
        if not bool(tensor.isfinite().all()):
            return False
    return all(bool(buffer.isfinite().all()) for buffer in module.buffers() if buffer.is_floating_point())


def release(engine: Any) -> None:
    """Take the engine's hooks off the module's parameters, so that another engine can have them."""
    if engine.optimizer is not None and hasattr(engine.optimizer, "optimizer"):
        engine.optimizer.optimizer.__dict__.pop("zero_grad", None)
    engine.destroy()


def trains(engine: Any) -> bool:
    """Whether it is an engine with an optimizer."""
    return hasattr(getattr(engine, "optimizer", None), "optimizer")


class Trained:
    """An engine whose run ends, so that what it trained can be saved when its hooks are off the module.

    Args:
        engine: before :func:`release`.
    """

    def __init__(self, engine: Any) -> None:
        self.engine = engine
        self._pieces: list[tuple[Tensor, int, Tensor]] = []
        """Up to stage 2: a parameter, where this rank's fragment of it starts, and the fp32 fragment. None in stage 3,
        and of an optimizer of DeepSpeed's that is none of ZeRO's, such as the one that sums bf16 gradients in fp32."""
        if hasattr(engine.optimizer, "fp32_partitioned_groups_flat") or not hasattr(engine.optimizer, "bit16_groups"):
            return
        for parameters, shard in zip(
            engine.optimizer.bit16_groups, engine.optimizer.single_partition_of_fp32_groups, strict=True
        ):
            for parameter in parameters:
                if parameter._hp_mapping is not None:
                    there, here = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                    self._pieces.append((parameter, there.start, shard.narrow(0, here.start, here.numel)))

    def check_unchanged(self, caller: str) -> None:
        """Refuse to save weights that the shards do not have; up to stage 2 the module holds both.

        Raises:
            MisconfigurationException: with what to do.
        """
        changed = False
        for parameter, start, piece in self._pieces:
            own = parameter.detach().flatten().narrow(0, start, piece.numel())
            changed |= not torch.equal(own.cpu(), piece.detach().to(own.dtype).cpu())
        anywhere = torch.tensor(int(changed), device=self.engine.device)
        torch.distributed.all_reduce(anywhere)
        if int(anywhere):
            raise MisconfigurationException(
                f"{caller}: the module's weights were changed after fit had returned, and the engine's fp32 shards "
                "were not; save before changing them, or save the weights by torch.save(module.state_dict(), FILE)"
            )
