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
from itertools import chain
from operator import attrgetter, is_
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_lr.c_library import CSource, in_threads
from lightning_lr.hypergradient import directions
from lightning_lr.hypergradient.directions import pieces
from lightning_lr.hypergradient.last_update import LastUpdate
from lightning_lr.hypergradient.packing import Chunk

WIDEST = ("-mavx512f", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512")
SOURCE = CSource(Path(__file__).with_suffix(".c"), ("-fno-math-errno",), ("-mavx2", "-mfma"), WIDEST)

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
        self.of_job: Any = functions.alignment
        self.of_job.argtypes = [address]
        self.of_pieces.restype = self.of_groups.restype = self.of_job.restype = None


class Job:
    """What the kernel is given: arrays, which may be written between two runs.

    Args:
        kernel: what sums.
        addresses: of the gradients of all tensors, then of parameters, first and second sources, numbers of steps.
        owners: the group of each tensor.
        settings: the numbers of each group.
        pieces: tensor, first element and number of elements of each piece.
        how: formula, type of the tensors, and whether the numbers of steps are in double precision.
    """

    _ADDRESSES, _OWNERS, _SETTINGS, _PIECES, _SUMS, _TABLE = 0, 2, 3, 4, 9, 10
    """Places of addresses in what the kernel is given."""

    def __init__(
        self,
        kernel: Kernel,
        addresses: array[int],
        owners: array[int],
        settings: array[float],
        pieces: array[int],
        how: tuple[int, int, int],
    ) -> None:
        self.addresses, self.settings, self._kernel = addresses, settings, kernel
        self._groups, self._count = len(settings) // SETTINGS, len(pieces) // 3
        sums = array("d", bytes(24 * self._count))
        self._parts = -(-sum(pieces[2::3]) // (2 * PIECE))
        self._numbers = array("q", [0, len(owners), 0, 0, 0, self._count, *how, 0, 0, self._groups])
        self._arrays = (
            (self._ADDRESSES, addresses),
            (self._OWNERS, owners),
            (self._SETTINGS, settings),
            (self._PIECES, pieces),
            (self._SUMS, sums),
        )

    def run(self) -> Tensor:
        """The three sums of ``Alignment`` for each group."""
        table, numbers, kernel = torch.empty((self._groups, 3), dtype=torch.float64), self._numbers, self._kernel
        # an array that is written by others, copied or put back after a branch may have moved since
        for place, numbered in self._arrays:
            numbers[place] = numbered.buffer_info()[0]
        numbers[self._TABLE] = table.data_ptr()
        if self._count == 1 or torch.get_num_threads() == 1:
            kernel.of_job(numbers.buffer_info()[0])
            return table
        addresses, count, owners, settings, cut, _, *how, sums, to, groups = numbers
        in_threads(
            lambda begin, end: kernel.of_pieces(addresses, count, owners, settings, cut, begin, end, *how, sums),
            self._count,
            self._parts,
        )
        kernel.of_groups(cut, self._count, owners, sums, to, groups)
        return table


class CpuSums:
    """The sums over one chunk of a CPU's tensors.

    Args:
        kernel: what sums.
        last: the optimizer's last update.
        chunk: the tensors.
    """

    def __init__(self, kernel: Kernel, last: LastUpdate, chunk: Chunk) -> None:
        self.last, self.chunk, self._kernel = last, chunk, kernel
        self._groups = len(last.optimizer.param_groups)
        self.sizes = [piece.numel() for piece in pieces(chunk.parameters)]
        self.formula, self.second = self._how()
        self.job: Job | None = None
        """What was last given to the kernel."""
        self.read: list[list[Tensor]] = []
        """Whose addresses are in it: parameters, and what directions are made of. Gradients are not kept alive."""
        self.dtype = torch.float32
        self.as_they_are = False
        """Whether the gradients were read where they lie, and not changed into something that can be read."""
        self._pieces = array(
            "q",
            [
                number
                for index, size in enumerate(self.sizes)
                for start in range(0, size, PIECE)
                for number in (index, start, min(PIECE, size - start))
            ],
        )

    def sums(self, scale: float) -> Tensor:
        """The three sums of ``Alignment`` for each group."""
        parameters, last, steps = self.chunk.parameters, self.last, list[Tensor]()
        sources = [pieces([p.grad for p in parameters if p.grad is not None]), pieces(parameters)]
        if self.formula == ADAM:
            states = [last.optimizer.state[p] for p in parameters]
            sources += [pieces([s["exp_avg"] for s in states]), pieces([s[self.second] for s in states])]
            steps = _readable_steps([s["step"] for s in states])
        elif self.formula != NO_DIRECTION:
            if self.copied:
                sources.append(pieces([last.copies[place] for place in self.chunk.places]))
            if self.second is not None:
                sources.append(pieces([last.optimizer.state[p][self.second] for p in parameters]))
        given, (sources, dtype) = sources, self._readable(sources)
        self.dtype, self.as_they_are = dtype, all(map(is_, given[0], sources[0]))
        read = [list(map(Tensor.data_ptr, tensors)) for tensors in sources]
        read += [[0] * len(parameters)] * (4 - len(read))
        self.read = [*sources[1:], steps] if steps else sources[1:]
        self.job = Job(
            self._kernel,
            array("q", [*chain.from_iterable(read), *map(Tensor.data_ptr, steps)]),
            array("q", self.chunk.groups),
            self._settings_now(scale),
            self._pieces,
            (self.formula, TYPES[dtype], int(bool(steps) and steps[0].dtype == torch.float64)),
        )
        return self.job.run()

    # ------------------------------------------------------------------ inside
    def _how(self) -> tuple[int, str | None]:
        """The formula of the directions, and the entry of the optimizer's state that it is also of."""
        last, settings = self.last, self.last.settings_of(self.chunk.groups[0])
        self.copied = False
        if not self.chunk.known:
            return NO_DIRECTION, None
        if last.family == "adam":
            return ADAM, "max_exp_avg_sq" if settings["amsgrad"] else "exp_avg_sq"
        self.copied, buffer = directions.needs(last.family, settings)
        if last.family == "other":
            return SCALED, None
        return (NESTEROV if self.copied and buffer else AS_IT_IS), buffer

    def _readable(self, sources: list[list[Tensor]]) -> tuple[list[list[Tensor]], torch.dtype]:
        """The tensors, of one type that the kernel knows, those of a parameter in the same order of elements."""
        tensors = [tensor for kind in sources for tensor in kind]
        if list(map(Tensor.numel, tensors)) != self.sizes * len(sources) or not all(map(_ON_CPU, tensors)):
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
        last, table = self.last, array("d", bytes(8 * SETTINGS * self._groups))
        groups, kind = last.optimizer.param_groups, last.family
        penalties = [directions.penalty(kind, group) * scale for group in groups]
        columns: dict[int, list[float]] = {
            SIGN: [-1.0 if group.get("maximize") else 1.0 for group in groups],
            PENALTY: penalties,
        }
        if self.formula != NO_DIRECTION and last.lr is not None:
            columns[LR] = [*last.lr, *[0.0] * (len(groups) - len(last.lr))][: len(groups)]
        if self.formula == ADAM:
            decays = zip(last.column("weight_decay"), last.column("decoupled_weight_decay"), strict=True)
            columns[DECAY] = [decay if apart else 0.0 for decay, apart in decays]
            columns[BETA1], columns[BETA2] = map(list, zip(*last.column("betas"), strict=True))
            columns[EPS] = last.column("eps")
        elif self.formula == NESTEROV:
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
