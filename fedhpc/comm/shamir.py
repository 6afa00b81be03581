"""Shamir's secret sharing (Shamir 1979) of 32 bytes over the integers modulo a prime above 2^256.

Any `threshold` shares give the secret back, fewer say nothing about it: the secret is the value at 0 of a random
polynomial of degree threshold - 1, a share is its value at the holder's point.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

PRIME = 2**256 + 297  # the smallest prime above 2^256
SECRET_BYTES = 32
SHARE_BYTES = 33
EXCESS_BYTES = 16  # random bytes beyond the prime's: what is left modulo it is then uniform to within 2^-128

Random = Callable[[int], bytes]  # a number of random bytes


def split(secret: bytes, threshold: int, points: Sequence[int], random: Random) -> dict[int, bytes]:
    """A share of SHARE_BYTES for each of `points`, which are distinct and above 0."""
    assert len(secret) == SECRET_BYTES and 1 <= threshold <= len(points), (len(secret), threshold, len(points))
    assert len(set(points)) == len(points) and min(points) > 0, points
    coefficients = [int.from_bytes(random(SHARE_BYTES + EXCESS_BYTES)) % PRIME for _ in range(threshold - 1)]
    coefficients.append(int.from_bytes(secret))  # highest degree first, as Horner's rule wants them
    shares = {}
    for point in points:
        value = 0
        for coefficient in coefficients:
            value = (value * point + coefficient) % PRIME
        shares[point] = value.to_bytes(SHARE_BYTES)
    return shares


def join(shares: Mapping[int, bytes]) -> bytes:
    """The secret, from exactly as many shares (point -> share) as the threshold was.

    Raises:
        ValueError: the shares are not of one secret of 32 bytes. Wrong shares may also give a wrong secret.
    """
    # Lagrange at 0: share i counts prod_j x_j / (x_i prod_{j != i} (x_j - x_i)). One inversion serves all.
    points = list(shares)
    below = [point * math.prod(other - point for other in points if other != point) % PRIME for point in points]
    every = math.prod(points) % PRIME
    value = 0
    for share, inverse in zip(shares.values(), _inverses(below), strict=True):
        value = (value + int.from_bytes(share) * inverse) % PRIME
    value = value * every % PRIME
    if value >> 8 * SECRET_BYTES:
        raise ValueError("shares do not belong to one secret")
    return value.to_bytes(SECRET_BYTES)


def _inverses(values: Sequence[int]) -> list[int]:
    """Of numbers modulo the prime, none 0: products up to each are inverted together (Montgomery 1987)."""
    before = [1]
    for value in values:
        before.append(before[-1] * value % PRIME)
    rest = pow(before.pop(), -1, PRIME)
    found = []
    for value in reversed(values):
        found.append(before.pop() * rest % PRIME)
        rest = rest * value % PRIME
    return found[::-1]
