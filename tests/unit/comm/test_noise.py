"""Noise: what the streams are, how they are distributed, and that nothing is drawn twice."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from scipy import stats

from fedhpc.comm.noise import CHUNK, NoiseSource

KEY = bytes(range(32))


def test_numbers_are_those_of_the_stream() -> None:
    """By the primitives themselves: HKDF-SHA256, AES-128-CTR, 53 bits a number, Box and Muller."""
    key = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"what").derive(KEY)
    maker = Cipher(algorithms.AES(key[:16]), modes.CTR(bytes(16))).encryptor()
    words = np.frombuffer(maker.update(bytes(16 * CHUNK)), dtype="<u8")
    unit = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    expected = [math.sqrt(-2 * math.log(unit[i])) * math.cos(2 * math.pi * unit[CHUNK + i]) for i in range(5)]
    assert NoiseSource(KEY).gaussian("what", 5).tolist() == pytest.approx(expected, rel=1e-12)
    assert NoiseSource(KEY).uniform("what", 5).tolist() == unit[:5].tolist()


def test_it_is_standard_normal() -> None:
    drawn = NoiseSource(KEY).gaussian("many", 200_001)
    assert stats.kstest(drawn.numpy(), "norm").pvalue > 0.01
    assert stats.kstest((drawn**2).numpy(), stats.chi2(1).cdf).pvalue > 0.01
    lagged = [float((drawn[:-lag] * drawn[lag:]).mean()) for lag in (1, 2, CHUNK)]
    assert max(map(abs, lagged)) < 4 / math.sqrt(150_000)


def test_uniform_is_uniform() -> None:
    drawn = NoiseSource(KEY).uniform("many", 100_001)
    assert len(drawn) == 100_001 and float(drawn.min()) > 0 and float(drawn.max()) < 1
    assert stats.kstest(drawn.numpy(), "uniform").pvalue > 0.01


def test_a_purpose_has_one_stream_and_no_other_has_it() -> None:
    source = NoiseSource(KEY)
    long, short = source.gaussian("a", 3 * CHUNK), source.gaussian("a", 100)
    assert torch.equal(long[:100], short), "how many are drawn changes none of them"
    for other in (source.gaussian("b", 3 * CHUNK), NoiseSource(bytes(32)).gaussian("a", 3 * CHUNK)):
        assert abs(float((long * other).mean())) < 4 / math.sqrt(3 * CHUNK)
    chunks = long.view(3, CHUNK)
    assert not torch.equal(chunks[0], chunks[2]), "a stream goes on"
    assert source.integer("a") != source.integer("b") and 0 <= source.integer("a") < 2**63
