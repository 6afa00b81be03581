"""Keys of one exchange: X25519 agreement, HKDF-SHA256, sealed messages, and streams of mask words.

Everything comes from the `cryptography` package (OpenSSL). Keys live as long as one exchange: nothing is stored.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from torch import Tensor

from fedhpc.comm.shamir import Random

KEY_BYTES = 32
SEAL_BYTES = 16  # that a sealed message is longer
AES_BLOCK = 16  # bytes
CHUNK_BYTES = 1 << 18  # worked on at a time, so that it stays in cache under all streams


class KeyPair:
    """An X25519 pair. private, public: 32 bytes each."""

    def __init__(self, private: bytes) -> None:
        self._key = X25519PrivateKey.from_private_bytes(private)
        self.private = private
        self.public = self._key.public_key().public_bytes_raw()
        self._secrets: dict[bytes, bytes] = {}  # what was agreed on, by the other's public key

    @classmethod
    def new(cls, random: Random) -> KeyPair:
        return cls(random(KEY_BYTES))

    def agree(self, public: bytes, purpose: bytes) -> bytes:
        """32 bytes that the owner of `public` finds too, for one purpose alone.

        Raises:
            ValueError: `public` is no key (a point of small order).
        """
        if public not in self._secrets:
            self._secrets[public] = self._key.exchange(X25519PublicKey.from_public_bytes(public))
        return derive(self._secrets[public], purpose)


def derive(secret: bytes, purpose: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869): 32 bytes for one purpose."""
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=purpose).derive(secret)


def seal(key: bytes, text: bytes, header: bytes) -> bytes:
    """ChaCha20-Poly1305 (RFC 8439). A key seals one message, so its nonce is 0; `header` is bound to it, not sent."""
    return ChaCha20Poly1305(key).encrypt(bytes(12), text, header)


def unseal(key: bytes, sealed: bytes, header: bytes) -> bytes:
    """Raises ValueError when the message is another's, of another exchange, or changed."""
    try:
        return ChaCha20Poly1305(key).decrypt(bytes(12), sealed, header)
    except InvalidTag:
        raise ValueError("a sealed message does not fit its sender, its receiver and its exchange") from None


def add_streams(total: Tensor, start: int, streams: Sequence[tuple[bytes, int]]) -> None:
    """total += sign * words [start, start + n) of each stream, in place, modulo 2^64 or 2^32.

    Args:
        total: int64 or int32 [n], on any device; streams are made on the CPU.
        start: a multiple of 16 bytes.
        streams: (key of 32 bytes, 1 or -1). A stream is AES-128 in counter mode from 0 on, under the key's first half.
    """
    size = total.element_size()
    assert start * size % AES_BLOCK == 0, start
    if not streams or not total.numel():
        return
    step = CHUNK_BYTES // size
    zeros = memoryview(bytes(CHUNK_BYTES))
    space = bytearray(CHUNK_BYTES + AES_BLOCK)
    first = (start * size // AES_BLOCK).to_bytes(AES_BLOCK)
    makers = [(Cipher(algorithms.AES(key[:16]), modes.CTR(first)).encryptor(), sign) for key, sign in streams]
    for part in total.split(step):
        on_cpu = part if part.device.type == "cpu" else torch.zeros(part.numel(), dtype=part.dtype)
        words = torch.frombuffer(space, dtype=total.dtype, count=part.numel())
        for maker, sign in makers:
            maker.update_into(zeros[: part.numel() * size], space)
            on_cpu.add_(words, alpha=sign)
        if on_cpu is not part:
            part.add_(on_cpu.to(part.device))
