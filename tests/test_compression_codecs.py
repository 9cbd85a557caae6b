"""The packed format: unbiased, within its bounds, of the predicted variance, and the same bits by every kernel."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from lightning_lr.activations.compression.exact import pack_bits, pack_integers, pack_two_valued
from lightning_lr.activations.compression.kernels import Kernels, packed_bytes
from lightning_lr.activations.compression.noise import halves, hashed, key_tensor, noise_key

KERNELS = Kernels("eager")
widths = pytest.mark.parametrize("bits", [8, 4, 2])


def decoded(x: Tensor, bits: int, repeat: int = 0, zero_exact: bool = True, group_size: int = 256) -> Tensor:
    return KERNELS.unpack(KERNELS.pack(x, bits, group_size, noise_key(1, 0, 0, repeat), zero_exact))


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# ---------------------------------------------------------------------- noise
def words(count: int, key: tuple[int, int]) -> Tensor:
    first, second, _ = key_tensor(key, 0, torch.device("cpu"))
    return hashed(torch.arange(count, dtype=torch.int32), first, second)


def test_noise_is_uniform() -> None:
    for half in halves(words(2**18, noise_key(0, 0, 0, 0))):
        counts = torch.bincount((half >> 8).long(), minlength=256).double()
        expected = 2**18 / 256
        chi_squared = float(((counts - expected) ** 2 / expected).sum())
        assert 180 < chi_squared < 345  # 255 degrees of freedom: 99.98 % of truly random draws


def test_noise_of_neighbours_halves_and_keys_is_uncorrelated() -> None:
    def centred(bits: Tensor) -> Tensor:
        return bits.double() / 65535 - 0.5

    here = [centred(half) for half in halves(words(2**17, noise_key(0, 0, 0, 0)))]
    other_keys = [noise_key(0, 1, 0, 0), noise_key(0, 0, 1, 0), noise_key(0, 0, 0, 1), noise_key(1, 0, 0, 0)]
    others = [centred(halves(words(2**17, key))[0]) for key in other_keys]
    pairs = [(here[0], here[1]), (here[0][1:], here[0][:-1]), *((here[0], other) for other in others)]
    for a, b in pairs:
        correlation = float((a * b).mean() * 12)
        assert abs(correlation) < 5 / 2**8.5  # five standard errors of 2^17 independent pairs


def test_every_part_of_the_key_changes_the_noise() -> None:
    keys = {noise_key(s, r, f, t) for s in range(3) for r in range(3) for f in range(3) for t in range(3)}
    assert len(keys) == 81


# ---------------------------------------------------------------------- rounding
@widths
@pytest.mark.parametrize("kind", ["normal", "relu"])
def test_rounding_is_unbiased_element_by_element(bits: int, kind: str) -> None:
    x = normal(1024)
    if kind == "relu":
        x = x.relu()
    draws = torch.stack([decoded(x, bits, repeat) for repeat in range(600)]).double()
    error, spread = draws.mean(0) - x.double(), draws.var(0)
    # per element a standard normal, were it unbiased: the mean square over 1024 of them is 1 within five deviations
    varies = spread > 0
    z2 = error[varies] ** 2 / (spread[varies] / 600)
    assert float(z2.mean()) == pytest.approx(1, abs=5 * (2 / varies.sum().item()) ** 0.5)


@widths
def test_error_variance_is_a_sixth_of_the_squared_step(bits: int) -> None:
    x = torch.rand(2**18, generator=torch.Generator().manual_seed(0)) * 2 - 1
    error = (decoded(x, bits) - x).view(-1, 256).square().mean(1)
    groups = x.view(-1, 256)
    step = (groups.amax(1) - groups.amin(1)) / (2**bits - 1)
    # uniform inside a step: p(1-p) integrates to 1/6; bf16 steps are up to 2^-7 longer, 0.8 % in the square on average
    assert float((error / step**2).mean()) == pytest.approx(1 / 6, rel=0.02)


@widths
def test_error_stays_below_one_step_and_values_inside_the_range(bits: int) -> None:
    for x in (normal(512), normal(512) * 1e-6 + 3, normal(512) * 1e20, torch.linspace(-1, 1, 512)):
        got, groups = decoded(x, bits).view(-1, 256), x.view(-1, 256)
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        rounding = low.abs() * 2**-7  # the least number is kept in bf16
        step = (high - low + rounding) / (2**bits - 1) * (1 + 2**-7)
        assert bool(((got - groups).abs() <= step * (1 + 1e-5)).all())
        assert bool((got >= low - rounding).all())
        assert bool((got <= high + step * 2**-6 * 2**bits + rounding).all())


@widths
def test_the_largest_number_never_wraps_into_its_neighbour(bits: int) -> None:
    # GACT's released kernel has no upper clamp: in fp16 its largest codes overflowed into the next number's bits
    x = normal(64 * 256).half()
    got = decoded(x, bits).view(-1, 256).float()
    top = x.view(-1, 256).float().argmax(1, keepdim=True)
    span = x.view(-1, 256).float().amax(1) - x.view(-1, 256).float().amin(1)
    error = (got.gather(1, top) - x.view(-1, 256).float().gather(1, top)).squeeze(1)
    assert bool((error.abs() <= span / (2**bits - 1) * 1.02).all())


@widths
def test_narrow_half_precision_groups_keep_their_numbers(bits: int) -> None:
    # a range of 1e-4: GACT's fp16 scale overflows there and decodes the whole group to its minimum
    x = (normal(256) * 2e-5).half()
    assert float((decoded(x, bits).float() - x.float()).abs().max()) <= float(x.max() - x.min()) / (2**bits - 1) * 1.05


@widths
def test_zeros_of_relu_stay_zeros_and_nothing_else_becomes_zero(bits: int) -> None:
    x = normal(4096).relu()
    got = decoded(x, bits)
    assert torch.equal(got > 0, x > 0)
    assert not torch.equal(decoded(x, bits, zero_exact=False) > 0, x > 0)


LARGEST = torch.finfo(torch.float32).max


@widths
@pytest.mark.parametrize("value", [0.0, 1.5, 0.1, -1 / 3, -3e-41, 1e-45, 3.3895314e38, -3.4e38, LARGEST, -LARGEST])
def test_constant_groups_are_exact(value: float, bits: int) -> None:
    x = torch.full((300,), value)
    assert torch.equal(decoded(x, bits), x)
    assert torch.equal(decoded(x, bits, group_size=16), x)


@widths
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_ends_of_a_type_stay_finite_and_within_a_step(dtype: torch.dtype, bits: int) -> None:
    largest = torch.finfo(dtype).max
    for x in (torch.linspace(0.3, 1, 256), torch.linspace(-1, -0.3, 256), torch.linspace(-0.4, 0.4, 256)):
        numbers = (x.double() * largest).to(dtype)
        got = decoded(numbers, bits)
        assert bool(got.isfinite().all())
        step = float(numbers.amax().double() - numbers.amin().double()) / (2**bits - 1)
        # the step of a wide group has 8 bits, its lower end too, and the result is rounded to its type
        assert float((got.double() - numbers.double()).abs().max()) <= step * (1 + 2**-7) + largest * 2**-7


@widths
@pytest.mark.parametrize("scale", [1e-31, 1e-33, 1e-36])
def test_tiny_numbers_are_unbiased_too(scale: float, bits: int) -> None:
    x = normal(2048) * scale
    draws = torch.stack([decoded(x, bits, repeat) for repeat in range(100)]).double()
    spread = draws.std(0)
    z = (draws.mean(0) - x.double()) / spread * 10
    # 12 for 1e-31 at 8 bits when every number of a group decoded to its least
    assert float(z[spread > 0].square().mean().sqrt()) == pytest.approx(1.0, abs=0.15)
    assert float((spread > 0).double().mean()) > 0.95


@widths
@pytest.mark.parametrize(("offset", "spread"), [(0.0, 1.0), (10.0, 1.0), (1000.0, 0.01), (-1000.0, 0.01), (1e6, 3.0)])
def test_error_variance_is_that_of_the_range_from_the_bf16_number_below(
    offset: float, spread: float, bits: int
) -> None:
    x = offset + spread * torch.rand(2**14, generator=torch.Generator().manual_seed(0))
    groups = x.view(-1, 256).double()
    least = groups.amin(1)
    below = least - torch.tensor([float(v) - float(_floor_bf16(v)) for v in least.float()], dtype=torch.float64)
    reach = groups.amax(1) - below
    assert bool((reach <= groups.amax(1) - least + least.abs() * 2**-7).all())
    draws = torch.stack([decoded(x, bits, repeat) for repeat in range(20)]).double().view(20, -1, 256)
    found = float((draws - groups).square().mean() / reach.square().mean()) * (2**bits - 1) ** 2
    # a step has 8 bits, rounded up; where numbers vary by less than a step, it matters where between two codes they lie
    assert found <= 1 / 4 * 1.02
    if abs(offset) <= 13 * spread:
        assert found == pytest.approx(1 / 6, rel=0.04)


@pytest.mark.parametrize(("offset", "reach"), [(1000.0, 0.01), (1001.0, 1.01)])
def test_noise_far_from_zero_is_that_of_the_range_from_the_bf16_number_below(offset: float, reach: float) -> None:
    # bf16 numbers there are 4 apart: 1000 is one, and 1001 to 1001.01 is coded like 1000 to 1001.01
    x = offset + 0.01 * torch.rand(2**14, generator=torch.Generator().manual_seed(0))
    draws = torch.stack([decoded(x, 4, repeat) for repeat in range(50)]).double()
    noise = float((draws - x.double()).square().mean().sqrt())
    if offset == 1000.0:
        assert noise == pytest.approx(reach / 15 / 6**0.5, rel=0.03)  # the step has 8 bits, fp32 there 2^-14
    else:
        assert 0.01 < noise < reach / 15 / 2 * 1.02  # between two codes at most half a step
    # of 50 x 2^14 independent draws the mean has a 900th of that; fp32 rounds to 2^-15 and is no bias of the codes
    assert abs(float((draws - x.double()).mean())) < 5 * noise / 900 + 2**-15


def _floor_bf16(value: Tensor) -> Tensor:
    near = value.bfloat16()
    return near if near <= value else torch.nextafter(near, torch.tensor(-torch.inf, dtype=torch.bfloat16))


@widths
def test_nothing_packs_to_nothing(bits: int) -> None:
    packed = KERNELS.pack(torch.empty(0, dtype=torch.bfloat16), bits, 256, noise_key(1, 0, 0, 0))
    assert packed.nbytes == packed_bytes(0, bits, 256) == 0
    got = KERNELS.unpack(packed)
    assert (got.shape, got.dtype) == ((0,), torch.bfloat16)


def test_largest_half_precision_number_does_not_become_infinite() -> None:
    x = torch.linspace(-65504, 65504, 512).half()
    assert bool(decoded(x, 2).isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_stay_so(bad: float) -> None:
    x = normal(512).relu()
    x[3] = bad
    got = decoded(x, 4)
    assert not got[3].isfinite()
    assert bool(got[256:].isfinite().all())  # the other group is not touched


@pytest.mark.parametrize("count", [1, 255, 256, 257, 1000])
def test_a_last_group_that_is_not_full(count: int) -> None:
    x = normal(count)
    packed = KERNELS.pack(x, 4, 256, (1, 2))
    assert KERNELS.unpack(packed).shape == x.shape
    assert packed.nbytes == packed_bytes(count, 4, 256)
    assert float((KERNELS.unpack(packed) - x).abs().max()) < 0.6


def test_sizes_are_those_promised() -> None:
    # 4 bits and two bf16 per 256 numbers: 4.125 bits each, 7.76x less than fp32 and 3.88x less than bf16
    packed = KERNELS.pack(normal(2**16), 4, 256, (1, 2))
    assert 2**16 * 4 / packed.nbytes == pytest.approx(32 / 4.125)


def test_the_global_generator_is_not_touched() -> None:
    before = torch.get_rng_state()
    decoded(normal(1000), 4)
    assert torch.equal(torch.get_rng_state(), before)


# ---------------------------------------------------------------------- exact codecs
def test_masks_cost_one_bit() -> None:
    mask = normal(1001) > 0
    packed = pack_bits(mask)
    assert packed.nbytes == 126 + 1  # eight to a byte, and what True is
    assert torch.equal(packed.unpack(), mask)


@pytest.mark.parametrize(("dtype", "value"), [(torch.float32, 1 / 0.9), (torch.bfloat16, 2.0), (torch.uint8, 1)])
def test_dropout_masks_are_exact(dtype: torch.dtype, value: float) -> None:
    mask = (normal(1001) > 0).to(dtype) * torch.tensor(value, dtype=dtype)
    packed = pack_two_valued(mask)
    assert packed is not None
    assert packed.nbytes <= 134
    assert packed.unpack().dtype == dtype
    assert torch.equal(packed.unpack(), mask)


def test_a_tensor_of_three_values_is_not_taken_for_a_mask() -> None:
    assert pack_two_valued(torch.tensor([0.0, 1.0, 2.0] * 100)) is None
    assert pack_two_valued(torch.tensor([0.0, -1.0] * 100)) is not None
    assert pack_two_valued(torch.tensor([0.0, float("nan")] * 100)) is None


@pytest.mark.parametrize(("top", "narrowed"), [(127, torch.int8), (128, torch.int16), (2**15, torch.int32)])
def test_integers_are_narrowed_without_loss(top: int, narrowed: torch.dtype) -> None:
    indices = torch.tensor([0, top, 5, -1])
    packed = pack_integers(indices, None)
    assert packed is not None
    assert packed.values.dtype == narrowed
    assert torch.equal(packed.unpack(), indices)
    assert pack_integers(indices * 2**32, None) is None
    assert pack_integers(torch.tensor([3], dtype=torch.int8), None) is None


def test_integers_with_a_known_bound_are_not_looked_at() -> None:
    packed = pack_integers(torch.tensor([0, 63]), (0, 783))
    assert packed is not None
    assert packed.values.dtype == torch.int16


# ---------------------------------------------------------------------- other kernels
def cases() -> dict[str, Tensor]:
    spoiled = normal(1000).relu()
    spoiled[7], spoiled[300] = float("nan"), float("inf")
    return {
        "normal": normal(5000),
        "relu": normal(5000).relu(),
        "narrow": normal(4500) * 1e-7 + 1,
        "zero": torch.zeros(600),
        "constant": torch.full((700,), 0.3),
        "tiny": normal(600) * 1e-38,
        "huge": normal(600) * 1e37,
        "bad": spoiled,
    }


def _compare_with_triton() -> None:
    from lightning_lr.activations.compression import triton_kernels

    for name, x in cases().items():
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            for bits in (8, 4, 2):
                for zero_exact in (True, False):
                    given = x.to(dtype)
                    reference = KERNELS.pack(given, bits, 256, (12345, -99), zero_exact)
                    codes, meta = triton_kernels.pack(given, bits, 256, (12345, -99), zero_exact)
                    where = (name, dtype, bits, zero_exact)
                    assert torch.equal(codes, reference.codes), where
                    assert torch.equal(meta, reference.meta), where
                    numbers = triton_kernels.unpack(codes, meta, bits, len(given), dtype)
                    assert torch.equal(numbers.nan_to_num(7), KERNELS.unpack(reference).nan_to_num(7)), where


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed (extra `triton`)")
def test_triton_in_its_interpreter_gives_the_same_bits() -> None:
    # in a process of its own: the interpreter has to be chosen before Triton is imported
    script = (
        "import os; os.environ['TRITON_INTERPRET'] = '1'\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "from tests import test_compression_codecs as t; t._compare_with_triton()"
    )
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=900)
    assert done.returncode == 0, done.stderr[-2000:]
