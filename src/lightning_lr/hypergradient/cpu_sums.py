"""The sums of a hypergradient on a CPU: a kernel in C that reads every tensor once, where it lies.

``packed_sums`` does the same by torch's operations, which pass over memory ten times and cost some five microseconds
each. Both add in double precision; the kernel multiplies in it too, so that the two differ by the rounding of single
precision. What was loaded is compared with the other on a small case before it is used. Where there is no compiler,
one warning says so.
"""

from __future__ import annotations

import ctypes
import functools
from array import array
from collections.abc import Sequence
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lr.c_library import CSource, in_threads
from lightning_lr.hypergradient import directions
from lightning_lr.hypergradient.directions import pieces
from lightning_lr.hypergradient.last_update import LastUpdate
from lightning_lr.hypergradient.packing import Chunk

SOURCE = CSource(Path(__file__).with_suffix(".c"), ("-fno-math-errno",), ("-mavx2", "-mfma"))

PIECE = 1 << 16
"""Elements that are summed at a time, in the same order whatever the number of threads."""

TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2}
NO_DIRECTION, AS_IT_IS, NESTEROV, ADAM, SCALED = range(5)
SIGN, PENALTY, LR, DECAY, BETA1, BETA2, EPS, MOMENTUM, SETTINGS = range(9)
"""Places of the numbers of a group, and how many there are."""

_DTYPE, _ON_CPU = attrgetter("dtype"), attrgetter("is_cpu")
_CHANNELS = {4: torch.channels_last, 5: torch.channels_last_3d}


class Kernel:
    """The compiled functions; see ``cpu_sums.c`` for what they are given.

    Args:
        functions: its shared library.
    """

    def __init__(self, functions: ctypes.CDLL) -> None:
        whole, place, address = ctypes.c_int32, ctypes.c_int64, ctypes.c_void_p
        self.of_pieces: Any = functions.alignment_of_pieces
        self.of_pieces.argtypes = [address, place, *[address] * 3, place, place, *[whole] * 3, address]
        self.of_groups: Any = functions.alignment_of_groups
        self.of_groups.argtypes = [address, place, address, address, address, place]
        self.of_pieces.restype = self.of_groups.restype = None


class CpuSums:
    """The sums over one chunk of a CPU's tensors.

    Args:
        kernel: what sums.
        last: the optimizer's last update.
        chunk: the tensors.
    """

    def __init__(self, kernel: Kernel, last: LastUpdate, chunk: Chunk) -> None:
        self._kernel, self._last, self._chunk = kernel, last, chunk
        self._groups = len(last.optimizer.param_groups)
        self._sizes = [piece.numel() for piece in pieces(chunk.parameters)]
        self._formula, self._second = self._how()
        cut = [
            (index, start, min(PIECE, size - start))
            for index, size in enumerate(self._sizes)
            for start in range(0, size, PIECE)
        ]
        self._count = len(cut)
        self._pieces = array("q", [number for piece in cut for number in piece])
        self._owners = array("q", chunk.groups)
        self._sums = array("d", bytes(24 * len(cut)))
        self._settings = array("d", bytes(8 * SETTINGS * self._groups))

    def sums(self, scale: float) -> Tensor:
        """The three sums of ``Alignment`` for each group."""
        parameters, last = self._chunk.parameters, self._last
        sources = [pieces([p.grad for p in parameters if p.grad is not None]), pieces(parameters)]
        steps: list[Tensor] = []
        if self._formula == ADAM:
            states = [last.optimizer.state[p] for p in parameters]
            sources += [pieces([s["exp_avg"] for s in states]), pieces([s[self._second] for s in states])]
            steps = _readable_steps([s["step"] for s in states])
        elif self._formula != NO_DIRECTION:
            if self._copied:
                sources.append(pieces([last.copies[place] for place in self._chunk.places]))
            if self._second is not None:
                sources.append(pieces([last.optimizer.state[p][self._second] for p in parameters]))
        sources, dtype = self._readable(sources)
        read = [list(map(Tensor.data_ptr, tensors)) for tensors in sources]
        read += [[0] * len(parameters)] * (4 - len(read))
        addresses = array("q", [*read[0], *read[1], *read[2], *read[3], *map(Tensor.data_ptr, steps)])
        settings, owners, cut = self._settings_now(scale), self._owners, self._pieces
        kernel, where = self._kernel, self._sums.buffer_info()[0]
        given = (*[a.buffer_info()[0] for a in (owners, settings, cut)],)
        how = (self._formula, TYPES[dtype], int(bool(steps) and steps[0].dtype == torch.float64), where)
        count, at = len(parameters), addresses.buffer_info()[0]
        if self._count == 1 or torch.get_num_threads() == 1:
            kernel.of_pieces(at, count, *given, 0, self._count, *how)
        else:
            in_threads(
                lambda begin, end: kernel.of_pieces(at, count, *given, begin, end, *how),
                self._count,
                -(-sum(self._sizes) // (2 * PIECE)),
            )
        table = torch.empty((self._groups, 3), dtype=torch.float64)
        kernel.of_groups(given[2], self._count, given[0], where, table.data_ptr(), self._groups)
        return table

    # ------------------------------------------------------------------ inside
    def _how(self) -> tuple[int, str | None]:
        """The formula of the directions, and the entry of the optimizer's state that it is also of."""
        last, settings = self._last, self._last.settings_of(self._chunk.groups[0])
        self._copied = False
        if not self._chunk.known:
            return NO_DIRECTION, None
        if last.family == "adam":
            return ADAM, "max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"
        self._copied, buffer = directions.needs(last.family, settings)
        if last.family == "other":
            return SCALED, None
        return (NESTEROV if self._copied and buffer else AS_IT_IS), buffer

    def _readable(self, sources: list[list[Tensor]]) -> tuple[list[list[Tensor]], torch.dtype]:
        """The tensors, of one type that the kernel knows, those of a parameter in the same order of elements."""
        tensors = [tensor for kind in sources for tensor in kind]
        if list(map(Tensor.numel, tensors)) != self._sizes * len(sources) or not all(map(_ON_CPU, tensors)):
            raise ValueError(
                "hypergradient: the optimizer's state does not fit its parameters (sizes or devices differ); was it "
                "loaded for another network?"
            )
        dtypes = set(map(_DTYPE, tensors))
        dtype = dtypes.pop()
        if dtypes or dtype not in TYPES:
            dtype = torch.float64 if sources[0][0].dtype == torch.float64 else torch.float32
            sources = [[tensor.detach().to(dtype) for tensor in kind] for kind in sources]
            tensors = [tensor for kind in sources for tensor in kind]
        if not all(map(Tensor.is_contiguous, tensors)):
            by_parameter = [_alike(kind) for kind in zip(*sources, strict=True)]
            sources = [list(kind) for kind in zip(*by_parameter, strict=True)]
        return sources, dtype

    def _settings_now(self, scale: float) -> array[float]:
        """What each group's update was made with, in the kernel's order."""
        last, table = self._last, self._settings
        groups, kind = last.optimizer.param_groups, last.family
        penalties = [directions.penalty(kind, group) * scale for group in groups]
        columns: dict[int, list[float]] = {
            SIGN: [-1.0 if group.get("maximize") else 1.0 for group in groups],
            PENALTY: penalties,
        }
        if self._formula != NO_DIRECTION and last.lr is not None:
            columns[LR] = [*last.lr, *[0.0] * (len(groups) - len(last.lr))][: len(groups)]
        if self._formula == ADAM:
            decays = zip(last.column("weight_decay"), last.column("decoupled_weight_decay"), strict=True)
            columns[DECAY] = [decay if apart else 0.0 for decay, apart in decays]
            columns[BETA1], columns[BETA2] = map(list, zip(*last.column("betas"), strict=True))
            columns[EPS] = last.column("eps")
        elif self._formula == NESTEROV:
            columns[MOMENTUM] = last.column("momentum")
        for place, column in columns.items():
            table[place::SETTINGS] = array("d", column)
        return table


@functools.cache
def kernel() -> Kernel | None:
    """The kernel, compiled now if it never was on this machine; None, after one warning, where that fails."""
    return SOURCE.made(
        Kernel,
        _check,
        "HypergradientDescent: its C kernel could not be made ({error}); torch's operations do the same at a tenth of "
        "the speed. It needs {compiler}",
    )


def _readable_steps(steps: list[Any]) -> list[Tensor]:
    """The numbers of steps, of one type that the kernel knows."""
    if set(map(type, steps)) == {Tensor} and all(map(_ON_CPU, steps)):
        dtypes = set(map(_DTYPE, steps))
        if dtypes == {torch.float32} or dtypes == {torch.float64}:
            return steps
    return [torch.as_tensor(step, dtype=torch.float64, device="cpu") for step in steps]


def _alike(tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Tensors of one parameter whose elements follow each other in the same order, without gaps."""
    first = tensors[0]
    if all(tensor.stride() == first.stride() for tensor in tensors):
        memory_format = _CHANNELS.get(first.dim())
        if first.is_contiguous() or (memory_format is not None and first.is_contiguous(memory_format=memory_format)):
            return tensors
    return [tensor.detach().contiguous() for tensor in tensors]


def _check(kernel: Kernel) -> None:
    """Refuse a kernel that does not compute what it should.

    Raises:
        ArithmeticError: where it does not.
    """
    size = 300
    numbers = torch.linspace(0.5, 7, 4 * size, dtype=torch.float64).sin().view(4, size)
    settings = array("d", [1.0, 0.0, 0.1, 0.5, 0.9, 0.99, 1e-3, 0.0])
    owners, cut, step = array("q", [0]), array("q", [0, 0, size]), torch.tensor(3.0)
    for dtype, type_number in TYPES.items():
        g, theta, mean, square = numbers.abs().to(dtype).unbind()
        addresses = array("q", [t.data_ptr() for t in (g, theta, mean, square, step)])
        sums, table = torch.zeros(3, dtype=torch.float64), torch.zeros(3, dtype=torch.float64)
        at, owner, numbers_of_groups, piece = (a.buffer_info()[0] for a in (addresses, owners, settings, cut))
        kernel.of_pieces(at, 1, owner, numbers_of_groups, piece, 0, 1, ADAM, type_number, 0, sums.data_ptr())
        kernel.of_groups(piece, 1, owner, sums.data_ptr(), table.data_ptr(), 1)
        g, theta, mean, square = (t.double() for t in (g, theta, mean, square))
        root2 = (1 - 0.99**3) ** 0.5
        factor = root2 / (1 - 0.9**3)
        d = factor * (mean / (square.sqrt() + root2 * 1e-3) + 0.5 / factor * theta) / (1 - 0.1 * 0.5)
        true = torch.stack([g @ d, g @ g, d @ d])
        if not torch.allclose(table, true, rtol=1e-12 if dtype == torch.float64 else 1e-6, atol=0):
            raise ArithmeticError(f"its sums are {table.tolist()} and not {true.tolist()}")
