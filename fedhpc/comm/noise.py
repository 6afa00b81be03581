"""Gaussian noise from a secret key: the same bits wherever it is drawn, and nothing to guess without the key.

torch's own generators start from 32 bits, which anybody can try out one by one; words here are AES-128 in counter mode
under keys of HKDF-SHA256, as those of masks are.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fedhpc.comm.keys import AES_BLOCK, add_streams, derive

CHUNK = 1 << 15  # pairs of numbers made at a time, so that temporaries stay in cache
WORD_BYTES = 8


class NoiseSource:
    """Draws for named purposes; each purpose has a stream of its own, so none is ever drawn twice.

    Args:
        key: 32 bytes. Secret, where noise is to hide anything.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key

    def uniform(self, purpose: str, count: int) -> Tensor:
        """float64 [count] on the CPU: multiples of 2^-53, moved by half a step, so neither 0 nor 1."""
        words = -(-count * WORD_BYTES // AES_BLOCK) * AES_BLOCK // WORD_BYTES
        drawn = torch.zeros(words, dtype=torch.int64)
        add_streams(drawn, 0, [(derive(self._key, purpose.encode()), 1)])
        return _unit(drawn[:count])

    def gaussian(self, purpose: str, count: int) -> Tensor:
        """Standard normal, float64 [count] on the CPU (Box and Muller 1958). Ends at 8.6 standard deviations."""
        stream = [(derive(self._key, purpose.encode()), 1)]
        out = torch.empty(count, dtype=torch.float64)
        # Whole chunks always: what kernels compute may depend on how many numbers they are given.
        for start in range(0, count, 2 * CHUNK):
            words = torch.zeros(2 * CHUNK, dtype=torch.int64)
            add_streams(words, start, stream)
            first, second = _unit(words).chunk(2)
            radius, angle = first.log_().mul_(-2).sqrt_(), second.mul_(2 * math.pi)
            both = torch.cat([radius * angle.cos(), radius * angle.sin()])
            part = out[start : start + 2 * CHUNK]
            part.copy_(both[: len(part)])
        return out

    def integer(self, purpose: str) -> int:
        """63 bits, as a seed."""
        return int.from_bytes(derive(self._key, purpose.encode())[:WORD_BYTES]) >> 1


def _unit(words: Tensor) -> Tensor:
    """int64 words as numbers of the open unit interval."""
    return words.bitwise_right_shift(11).bitwise_and_((1 << 53) - 1).double().add_(0.5).mul_(2.0**-53)
