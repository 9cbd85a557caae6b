"""The random bits of stochastic rounding: a hash of a counter, so that nothing else is disturbed.

A number depends on a 64-bit key and on where in its tensor an element stands, and on nothing else: torch's global
generator is never read or moved, the same key gives the same bits on a CPU, in torch and in C, and on a GPU, and
a run that resumes at some forward pass continues with the bits it would have had. The key mixes seed, rank, forward
pass and tensor, so that ranks round differently (their errors then average out in the gradient's mean). Pure torch.

Source of the hash: the multiply-xorshift construction with the constants of C. Wellons' ``lowbias32`` (public domain),
with the second half of the key added between its two multiplications; keys by splitmix64 (Steele, Lea & Flood 2014,
OOPSLA).
"""

from __future__ import annotations

import torch
from torch import Tensor

FIRST_MULTIPLIER = 0x7FEB352D
SECOND_MULTIPLIER = 0x846CA68B - 2**32
"""As int32: torch multiplies int32 modulo 2^32."""


def noise_key(seed: int, rank: int, forward: int, tensor: int) -> tuple[int, int]:
    """The key of one tensor's noise, as two signed 32-bit numbers.

    Args:
        seed: of the run.
        rank: of the process.
        forward: how many forward passes the process made before.
        tensor: how many tensors were packed before in this pass.
    """
    state = 0
    for part in (seed, rank, forward, tensor):
        state = _splitmix(state ^ (part % 2**64))
    return _signed(state & 0xFFFFFFFF), _signed(state >> 32)


def hashed(counter: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """32 random bits for each int32 ``counter`` under the key ``(first, second)``, int32 as well."""
    bits = counter ^ first
    bits = (bits ^ ((bits >> 16) & 0xFFFF)) * FIRST_MULTIPLIER
    bits = bits + second
    bits = (bits ^ ((bits >> 15) & 0x1FFFF)) * SECOND_MULTIPLIER
    return bits ^ ((bits >> 16) & 0xFFFF)


def halves(bits: Tensor) -> tuple[Tensor, Tensor]:
    """The lower and the upper 16 of 32 bits: two uniform numbers in 0 .. 65535."""
    return bits & 0xFFFF, (bits >> 16) & 0xFFFF


def key_tensor(key: tuple[int, int], first_counter: int, device: torch.device) -> Tensor:
    """Key and first counter as int32 of shape (3,), which a compiled function takes without being compiled again."""
    return torch.tensor([*key, _signed(first_counter % 2**32)], dtype=torch.int32, device=device)


def _signed(word: int) -> int:
    return word - 2**32 if word >= 2**31 else word


def _splitmix(state: int) -> int:
    state = (state + 0x9E3779B97F4A7C15) % 2**64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) % 2**64
    return state ^ (state >> 31)
