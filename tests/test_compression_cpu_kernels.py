"""The C kernels of the packed format: the bits of the reference, and what happens where they cannot be made."""

from __future__ import annotations

import shutil
import subprocess
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_lr.activations.compression import cpu_kernels as native
from lightning_lr.activations.compression import exact
from lightning_lr.activations.compression import kernels as choice
from lightning_lr.activations.compression.kernels import Kernels
from tests.test_compression_codecs import cases, normal

KEY = (12345, -99)
REFERENCE = Kernels("eager")
needs_compiler = pytest.mark.skipif(
    not any(map(shutil.which, ("cc", "gcc", "clang"))), reason="no C compiler is installed"
)


def words(x: Tensor) -> Tensor:
    """The bits of numbers; whichever NaN it is does not count."""
    return torch.where(x.isnan(), 1.5, x).float().view(torch.int32)


def assert_same_bits(x: Tensor, bits: int, group_size: int, zero_exact: bool, where: object) -> None:
    one = REFERENCE.pack(x, bits, group_size, KEY, zero_exact)
    two = Kernels("native").pack(x, bits, group_size, KEY, zero_exact)
    assert torch.equal(one.codes, two.codes), where
    assert torch.equal(one.meta, two.meta), where
    assert torch.equal(words(REFERENCE.unpack(one)), words(Kernels("native").unpack(one))), where


@pytest.fixture
def no_memory() -> Iterator[None]:
    """What was compiled and asked before is forgotten, and what the test makes afterwards."""
    caches = (native.cpu_kernels, choice._is_cached)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


# ---------------------------------------------------------------------- bits
def more_cases() -> dict[str, Tensor]:
    step = torch.linspace(-1, 1, 700)
    return {
        **cases(),
        "whole range": step * torch.finfo(torch.float32).max,
        "wide": normal(600) * 1e38,
        "denormal": normal(700).relu() * 1e-40,
        "two values": torch.tensor([0.0, 1.0] * 350),
        "minus infinity": torch.full((300,), -torch.inf),
        "infinity among zeros": torch.cat([normal(300).relu(), torch.tensor([torch.inf])]),
        "zeros of both signs": torch.tensor([0.0, -0.0, 1.0, 0.25] * 70),
        "minus zero": -torch.zeros(300),
        "offset": step * 0.01 + 1000,
        "one": torch.tensor([0.7]),
        "none but the last group": normal(5),
    }


@needs_compiler
@pytest.mark.parametrize("bits", [8, 4, 2])
def test_the_bits_are_those_of_the_reference(bits: int) -> None:
    for name, x in more_cases().items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for group_size, zero_exact in ((256, True), (16, True), (64, False), (4096, True)):
                assert_same_bits(x.to(dtype), bits, group_size, zero_exact, (name, dtype, group_size, zero_exact))


@needs_compiler
def test_random_numbers_of_any_bits_give_the_bits_of_the_reference() -> None:
    # every exponent, sign, NaN and denormal number turns up in a group with any other
    random = torch.Generator().manual_seed(0)
    x = torch.randint(-(2**31), 2**31 - 1, (2**14,), generator=random, dtype=torch.int64).int().view(torch.float32)
    narrow = torch.where(x.isfinite(), x, 0.0).clamp(-10, 10)
    for given in (x, narrow, narrow.abs(), narrow.relu()):
        for bits in (8, 4, 2):
            assert_same_bits(given, bits, 16, True, bits)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
def test_threads_share_a_tensor_without_changing_it(threads: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(native, "NUMBERS_PER_THREAD", 256)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert_same_bits(normal(5000), 4, 256, True, threads)


@needs_compiler
def test_tensors_that_do_not_lie_in_a_row_are_read_as_they_are_meant() -> None:
    every_other = normal(2000)[::2]
    negated = torch.complex(normal(600), normal(600, seed=1)).conj().imag  # a view of which the sign is turned lazily
    assert negated.is_neg()
    repeated = normal(1)[0].expand(600)
    for x in (every_other, negated, repeated, normal(900)[37:]):
        assert_same_bits(x, 4, 64, True, x.stride())


@needs_compiler
def test_groups_too_long_for_the_kernels_go_through_the_reference() -> None:
    assert_same_bits(normal(9000), 4, 8192, True, "8192")


@needs_compiler
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [64, 1001, 4096])
def test_masks_of_two_values_are_those_of_torch(count: int, dtype: torch.dtype) -> None:
    mask = (normal(count) > 0.2).to(dtype) * torch.tensor(1 / 0.9, dtype=dtype)
    mask[3] = -0.0
    both = []
    for kernels in (None, native.cpu_kernels()):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(exact, "loaded_kernels", lambda: kernels)  # noqa: B023
            packed = exact.pack_two_valued(mask)
            assert packed is not None
            assert torch.equal(packed.unpack(), mask)
            assert exact.pack_two_valued(torch.where(torch.arange(count) == count - 1, 3.0, mask)) is None
            assert exact.pack_two_valued(torch.where(torch.arange(count) == count - 1, torch.nan, mask)) is None
            marks = exact.PackedBits(packed.words, count, mask.new_tensor(2.0), mask.new_tensor(-torch.inf))
            assert torch.equal(marks.unpack(), torch.where(mask > 0, 2.0, -torch.inf).to(dtype))
            both.append(packed.words)
    assert torch.equal(both[0], both[1])


# ---------------------------------------------------------------------- making them
@needs_compiler
@pytest.mark.usefixtures("no_memory")
def test_compiled_once_and_then_loaded_from_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(choice, "COMPILE_AFTER", 1000)
    kernels = Kernels()
    kernels.pack(normal(1000), 4, 256, KEY)
    assert not list(tmp_path.rglob("*.so"))  # so little does not pay
    packed = kernels.pack(normal(1000), 4, 256, KEY)
    (library,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert library.suffix == ".so"
    assert torch.equal(packed.codes, REFERENCE.pack(normal(1000), 4, 256, KEY).codes)

    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("compiled again")

    native.cpu_kernels.cache_clear()
    choice._is_cached.cache_clear()
    monkeypatch.setattr(subprocess, "run", refuse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        again = Kernels().pack(normal(1000), 4, 256, KEY)
    assert torch.equal(packed.codes, again.codes)


@pytest.mark.usefixtures("no_memory")
@pytest.mark.parametrize("why", ["missing", "failing", "none"])
def test_without_a_compiler_torch_packs_the_same_bits_after_one_warning(
    why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("CC", {"missing": "/nonexistent/cc", "failing": "false", "none": ""}[why])
    if why == "none":
        monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(choice, "COMPILE_AFTER", 0)
    x = normal(1000)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for kernels in (Kernels(), Kernels()):
            for _ in range(3):
                packed = kernels.pack(x, 4, 256, KEY)
                assert torch.equal(packed.codes, REFERENCE.pack(x, 4, 256, KEY).codes)
                assert torch.equal(kernels.unpack(packed), REFERENCE.unpack(packed))
    (warning,) = said
    assert "torch packs instead, with the same bits" in str(warning.message)
    assert "set CC" in str(warning.message)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]  # no half a library


@needs_compiler
@pytest.mark.usefixtures("no_memory")
def test_a_cache_that_cannot_be_written_does_without(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        packed = Kernels("native").pack(normal(1000), 4, 256, KEY)
    assert torch.equal(packed.codes, REFERENCE.pack(normal(1000), 4, 256, KEY).codes)


def test_kernels_of_other_bits_are_not_used() -> None:
    class FastArithmetic:
        """Rounds one step otherwise, as a compiler that reorders sums would."""

        def pack(self, flat: Tensor, bits: int, group_size: int, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
            packed = REFERENCE.pack(flat, bits, group_size, key)
            packed.codes[1, 3] ^= 1
            return packed.codes, packed.meta

        def unpack(self, codes: Tensor, meta: Tensor, bits: int, count: int, dtype: torch.dtype) -> Tensor:
            return native.decode_groups(codes, meta, bits, dtype).view(-1)

    with pytest.raises(ArithmeticError, match="at 8 bits they differ from the reference"):
        native._check(FastArithmetic())  # type: ignore[arg-type]
